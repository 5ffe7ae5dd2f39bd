"""Finite differences as an oracle: is autodiff itself right, and where it differs from a rule, which one is right?"""

from collections.abc import Sequence

import numpy as np

from minijaxnet._jaxpr import equations
from minijaxnet.verify.comparison import Comparison
from minijaxnet.verify.compilation import EPSILON
from minijaxnet.verify.estimates import Estimate, typical_sizes
from minijaxnet.verify.evaluation import Evaluation
from minijaxnet.verify.finite_differences import (
    MOST_ELEMENTS,
    STEP_SCALES,
    TINY,
    Outcome,
    directional,
    judged,
    of_leaf,
    random_direction,
    size_of_change,
    stops_gradients,
)
from minijaxnet.verify.report import Verdict
from minijaxnet.verify.widening import largest

# Operations without a gradient of their own: whoever gives them one means a surrogate.
_FLAT = {"stop_gradient", "round", "floor", "ceil", "sign"}
# So many doubtful elements are looked at one by one.
_FEW = 8
# Finite differences can be relied on to show an error of so large a share of the gradient.
_VISIBLE = 1e-4


def oracle(at: Evaluation) -> Verdict:
    """Do finite differences in a random direction of all leaves confirm autodiff?"""
    gradients = at.reference[at.problem.n_values :]
    if not all(np.isfinite(gradient).all() for gradient in gradients):
        return Verdict("unchecked", "autodiff's gradient is not finite here")
    direction = random_direction(at, at.seed)
    parts = [float(np.sum(gradient * d)) for gradient, d in zip(gradients, direction, strict=True)]
    value, size = sum(parts), max(map(abs, (*parts, sum(parts))))
    sharp: list[Estimate] = []
    for step_scale in STEP_SCALES:
        estimate = directional(at, direction, step_scale, enough=1e-9)
        sharp += [estimate] if estimate.is_sharp(size, 1e-3) else []
        if sharp and sharp[-1].agrees(value, size):
            apart = max(EPSILON, abs(sharp[-1].value - value) / max(size, TINY))
            return Verdict("pass", f"finite differences agree with autodiff to {apart:.0e}")
    if not sharp:
        return Verdict("unchecked", "finite differences do not settle here")
    flat = sorted({eqn.primitive.name for eqn in equations(at.compiled.objective.program)} & _FLAT)
    why = f"a surrogate, by {' and '.join(flat)}" if flat else "a kink, or a surrogate"
    found = f"finite differences give {sharp[-1].value:.6g}, autodiff {value:.6g}"
    return Verdict("unchecked", f"the function's own gradient seems to be another ({found}): {why}")


@np.errstate(invalid="ignore", over="ignore")  # elements that are not finite are others
def clearly_wrong(at: Evaluation, leaf: int, result: Comparison) -> bool:
    """Whether a leaf's largest differences are so large that finite differences see them, and confirm autodiff."""
    apart = np.where(result.wrong, np.minimum(result.errors, 1e6 * largest(result.reference) + 1.0), 0.0)
    scale = typical_sizes(at.params()[leaf])
    far = apart * scale >= 0.5 * np.max(apart * scale)
    one = np.zeros_like(far)
    one[np.unravel_index(np.argmax(apart * scale), far.shape)] = True
    for mask in (one, far):
        signs = np.where(np.isfinite(result.hand), np.sign(result.hand - result.reference), 1.0)
        direction = np.where(mask, signs, 0.0) * scale
        reference = float(np.sum(np.where(mask, result.reference, 0.0) * direction))
        gap = float(np.sum(np.where(mask, apart, 0.0) * scale))
        size = float(np.sum(np.abs(np.where(mask, result.reference, 0.0)) * scale)) + gap
        if not _VISIBLE * size < gap < np.inf:
            return False
        estimates = [of_leaf(at, leaf, direction, step_scale) for step_scale in STEP_SCALES[:2]]
        if not any(e.is_sharp(gap, 1e-2) and e.is_smooth(size) and e.agrees(reference, size) for e in estimates):
            return False
    return True


def settled(at: Evaluation, results: Sequence[Comparison]) -> list[Comparison]:
    """The gradients where the two differ, or autodiff is not finite, settled by finite differences as far as they can.

    A rule is right by one reading of the function throughout: what excuses a leaf has to hold for the others, too. And
    where the function stops a gradient on purpose, the derivative of its value says nothing about autodiff.
    """
    doubtful = [result.wrong | result.undecided for result in results]
    if not any(mask.any() for mask in doubtful):
        return list(results)
    some_wrong = any(result.wrong.any() for result in results)
    stopped = some_wrong and stops_gradients(at)
    confirmed = [
        mask.any() and not (stopped and result.wrong.any()) and _confirms_hand(at, i, result, mask)
        for i, (result, mask) in enumerate(zip(results, doubtful, strict=True))
    ]
    if any(confirmed) and some_wrong:
        throughout = all(yes or not mask.any() for yes, mask in zip(confirmed, doubtful, strict=True))
        if not (throughout and _confirms_hand_as_a_whole(at, results)):
            confirmed = [False] * len(results)
    found = []
    for i, (result, mask) in enumerate(zip(results, doubtful, strict=True)):
        if confirmed[i]:
            note = f"autodiff suspect: in {mask.sum()} of {mask.size} elements finite differences agree with the rule"
            none, excused = np.zeros_like(mask), result.excused | mask
            result = result._replace(wrong=none, undecided=none, excused=excused, note=note, autodiff_suspect=True)
        elif mask.any():
            result = _with_finite_difference(at, i, _without_undecided(at, i, result))
        found.append(result)
    return found


def _with_finite_difference(at: Evaluation, leaf: int, result: Comparison) -> Comparison:
    """The worst element with its finite difference."""
    scale = typical_sizes(at.params()[leaf])
    estimate = of_leaf(at, leaf, _only(result.worst, scale))
    if not np.isfinite(estimate.error):
        return result
    return result._replace(finite_difference=estimate.value / float(scale[result.worst]))


def _without_undecided(at: Evaluation, leaf: int, result: Comparison) -> Comparison:
    """The elements where autodiff is not finite compared with finite differences, while they are few."""
    places = np.argwhere(result.undecided)
    if len(places) > MOST_ELEMENTS or not np.isfinite(result.hand[result.undecided]).all():
        return result
    wrong, undecided, reference, tolerance = (
        np.array(x) for x in (result.wrong, result.undecided, result.reference, result.tolerance)
    )
    scale = typical_sizes(at.params()[leaf])
    for place in map(tuple, places):
        _, estimate, slack, outcome = judged(at, leaf, result.hand, _only(place, scale))
        if outcome is not Outcome.UNDECIDED:
            wrong[place], undecided[place] = outcome is Outcome.WRONG, False
            reference[place], tolerance[place] = estimate, slack
    return result._replace(wrong=wrong, undecided=undecided, reference=reference, tolerance=tolerance)


def _confirms_hand(at: Evaluation, leaf: int, result: Comparison, doubtful: np.ndarray) -> bool:
    """Whether finite differences agree with the hand rule in a few doubtful elements, and in the sum of all of them."""
    if not np.isfinite(result.hand[doubtful]).all():
        return False
    scale = typical_sizes(at.params()[leaf])
    draw, places = np.random.default_rng(at.seed), np.argwhere(doubtful)
    masks = [_only(tuple(place), doubtful) for place in places[draw.permutation(len(places))[:_FEW]]]
    for mask in (*reversed(masks), *([doubtful] if len(places) > _FEW else [])):
        direction = np.where(mask, draw.choice((-1.0, 1.0), size=mask.shape) * scale, 0.0)
        size = largest(result.hand) * float(np.sum(np.abs(direction))) or size_of_change(at, leaf, direction)
        mine, theirs = (float(np.sum(np.where(mask, x, 0.0) * direction)) for x in (result.hand, result.reference))
        estimates = (of_leaf(at, leaf, direction, step_scale) for step_scale in STEP_SCALES)
        sharp = [e for e in estimates if e.is_sharp(size, 1e-5)]
        if not any(e.agrees(mine, size) for e in sharp) or any(e.agrees(theirs, size) for e in sharp):
            return False
    return True


def _confirms_hand_as_a_whole(at: Evaluation, results: Sequence[Comparison]) -> bool:
    """Whether finite differences in a direction of all leaves agree with the hand rule."""
    direction = random_direction(at, at.seed + 5)
    parts = [float(np.sum(r.hand * d)) for r, d in zip(results, direction, strict=True)]
    size = max(map(abs, (*parts, sum(parts))))
    estimates = (directional(at, direction, step_scale) for step_scale in STEP_SCALES)
    return any(e.is_sharp(size, 1e-3) and e.agrees(sum(parts), size) for e in estimates)


def _only(place: tuple[int, ...], array: np.ndarray) -> np.ndarray:
    """The array with all elements but one set to 0."""
    alone = np.zeros_like(array)
    alone[place] = array[place]
    return alone
