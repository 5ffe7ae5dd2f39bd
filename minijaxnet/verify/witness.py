"""Where a rule and autodiff differ, finite differences tell which one is right, if they are sharp enough for that."""

import numpy as np

from minijaxnet.verify.compared import Compared
from minijaxnet.verify.estimates import Estimate, typical_sizes
from minijaxnet.verify.evaluation import Evaluation
from minijaxnet.verify.finite_differences import (
    MOST_ELEMENTS,
    STEP_SCALES,
    UNDECIDED,
    WRONG,
    change_of,
    held,
    slope,
    slope_of,
    stops_gradients,
)

_FEW = 8
# Finite differences are believed to see an error from so large a share of the gradient on.
_PLAIN = 1e-4


@np.errstate(invalid="ignore", over="ignore")  # elements that are not finite are others
def plainly_wrong(at: Evaluation, leaf: int, result: Compared) -> bool:
    """Whether a leaf's largest differences are so large that finite differences see them, and side with autodiff."""
    largest = float(np.max(np.abs(result.reference), initial=0.0, where=np.isfinite(result.reference)))
    apart = np.where(result.wrong, np.minimum(result.errors, 1e6 * largest + 1.0), 0.0)
    scale = typical_sizes(at.differentiated()[leaf])
    far = apart * scale >= 0.5 * np.max(apart * scale)
    one = np.zeros_like(far)
    one[np.unravel_index(np.argmax(apart * scale), far.shape)] = True
    for mask in (one, far):
        signs = np.where(np.isfinite(result.hand), np.sign(result.hand - result.reference), 1.0)
        direction = np.where(mask, signs, 0.0) * scale
        reference = float(np.sum(np.where(mask, result.reference, 0.0) * direction))
        gap = float(np.sum(np.where(mask, apart, 0.0) * scale))
        size = float(np.sum(np.abs(np.where(mask, result.reference, 0.0)) * scale)) + gap
        if not _PLAIN * size < gap < np.inf:
            return False
        estimates = [slope_of(at, leaf, direction, step_scale) for step_scale in STEP_SCALES[:2]]
        if not any(e.settles(gap, 1e-2) and e.smooth(size) and e.agrees(reference, size) for e in estimates):
            return False
    return True


def decided(at: Evaluation, results: list[Compared]) -> list[Compared]:
    """Where the two differ, finite differences may acquit the hand rule; they never condemn it.

    A rule is right by one reading of the function throughout: what acquits a leaf has to hold for the others, too. And
    where the function stops a gradient on purpose, its value's own slope is no witness against autodiff.
    """
    doubtful = [result.wrong | result.undecided for result in results]
    if not any(mask.any() for mask in doubtful):
        return results
    stopped = any(result.wrong.any() for result in results) and stops_gradients(at)
    acquitted = [
        mask.any() and not (stopped and result.wrong.any()) and _acquitted(at, i, result, mask)
        for i, (result, mask) in enumerate(zip(results, doubtful, strict=True))
    ]
    if any(acquitted) and any(result.wrong.any() for result in results):
        if not all(acquitted[i] or not mask.any() for i, mask in enumerate(doubtful)) or not _whole_agrees(at, results):
            acquitted = [False] * len(results)
    found = []
    for i, (result, mask) in enumerate(zip(results, doubtful, strict=True)):
        if acquitted[i]:
            count = f"{mask.sum()} of {mask.size} elements"
            note = f"autodiff suspect: in {count} finite differences side with the hand rule"
            none = np.zeros_like(mask)
            excused = result.excused | mask
            result = result._replace(wrong=none, undecided=none, excused=excused, note=note, acquitted=True)
        elif mask.any():
            result = _condemned(at, i, result)
            unit, scale = np.zeros(result.hand.shape), typical_sizes(at.differentiated()[i])
            unit[result.worst] = scale[result.worst]
            estimate = slope_of(at, i, unit)
            if np.isfinite(estimate.error):
                result = result._replace(finite_difference=estimate.value / float(scale[result.worst]))
        found.append(result)
    return found


def _condemned(at: Evaluation, leaf: int, result: Compared) -> Compared:
    """A leaf of which finite differences judge the elements where autodiff is not finite, while these are few."""
    places = np.argwhere(result.undecided)
    if len(places) > MOST_ELEMENTS or not np.isfinite(result.hand[result.undecided]).all():
        return result
    wrong, undecided, reference, tolerance = (
        np.array(x) for x in (result.wrong, result.undecided, result.reference, result.tolerance)
    )
    scale = typical_sizes(at.differentiated()[leaf])
    for place in map(tuple, places):
        unit = np.zeros_like(scale)
        unit[place] = scale[place]
        _, estimate, slack, state = held(at, leaf, result.hand, unit)
        if state != UNDECIDED:
            wrong[place], undecided[place] = state == WRONG, False
            reference[place], tolerance[place] = estimate, slack
    return result._replace(wrong=wrong, undecided=undecided, reference=reference, tolerance=tolerance)


def _acquitted(at: Evaluation, leaf: int, result: Compared, doubtful: np.ndarray) -> bool:
    """Whether finite differences agree with the hand rule in a few doubtful elements, and in all of them together."""
    if not np.isfinite(result.hand[doubtful]).all():
        return False
    scale = typical_sizes(at.differentiated()[leaf])
    draw, places = np.random.default_rng(at.seed), np.argwhere(doubtful)
    masks = [doubtful] if len(places) > _FEW else []
    for place in places[draw.permutation(len(places))[:_FEW]]:
        masks.append(np.zeros_like(doubtful))
        masks[-1][tuple(place)] = True
    largest = float(np.max(np.abs(result.hand), initial=0.0, where=np.isfinite(result.hand)))
    for mask in reversed(masks):
        direction = np.where(mask, draw.choice((-1.0, 1.0), size=mask.shape) * scale, 0.0)
        size = largest * float(np.sum(np.abs(direction))) or change_of(at, leaf, direction)
        mine, theirs = (float(np.sum(np.where(mask, x, 0.0) * direction)) for x in (result.hand, result.reference))
        estimates = (slope_of(at, leaf, direction, step_scale) for step_scale in STEP_SCALES)
        sharp = [e for e in estimates if e.settles(size, 1e-5)]
        if not any(e.agrees(mine, size) for e in sharp) or any(e.agrees(theirs, size) for e in sharp):
            return False
    return True


def _whole_agrees(at: Evaluation, results: list[Compared]) -> bool:
    """Whether finite differences in a direction of all leaves together agree with the hand rule."""
    draw = np.random.default_rng(at.seed + 5)
    directions = [draw.choice((-1.0, 1.0), size=x.shape) * typical_sizes(x) for x in at.differentiated()]
    parts = [float(np.sum(r.hand * d)) for r, d in zip(results, directions, strict=True)]
    size = max(map(abs, (*parts, sum(parts))))
    return any(agreeing(slope(at, directions, scale), sum(parts), size) for scale in STEP_SCALES)


def agreeing(estimate: Estimate, value: float, size: float) -> bool:
    """Whether an estimate is sharp, and agrees with a value."""
    return estimate.settles(size, 1e-3) and estimate.agrees(value, size)
