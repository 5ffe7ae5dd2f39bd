"""Derivatives that owe nothing to autodiff: finite differences with their own error estimate."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minijaxnet._jaxpr import equations
from minijaxnet.verify.compared import Compared
from minijaxnet.verify.evaluation import EPSILON, Evaluation
from minijaxnet.verify.report import Verdict, listed

_LEVELS = 11
_SHRINK = 4.0
_FIRST_STEP = 2.0**-3
# How long steps are, in proportion to the arguments: shorter where kinks are in the way.
STEP_SCALES = (1.0, 2.0**-10, 2.0**-18)
_FEW = 8
# Finite differences are believed to see an error from so large a share of the gradient on.
_PLAIN = 1e-4
# Where they are the only reference: element by element up to so many, and otherwise in so many directions a leaf; a
# difference may be so many times their own error estimate.
_MOST_ELEMENTS, _DIRECTIONS, _SAFE = 64, 4, 20
# Operations without a slope of their own: whoever gives them one means a surrogate.
_FLAT = ("stop_gradient", "round", "floor", "ceil", "sign")
# What a comparison with them may come to.
_RIGHT, _WRONG, _UNDECIDED, _AT_KINK = 0.0, 1.0, 2.0, 3.0
# So far apart may two answers be of what iterates to a tolerance of its own.
_ITERATED = 1e-6
_TINY = float(np.finfo(np.float64).tiny)


class Estimate(NamedTuple):
    """A derivative and how far off it may be.

    Attributes:
        value: the derivative; at a kink the mean of those to both sides.
        error: how far off it may be; infinite where there is no estimate.
        jump: the derivative to the right less that to the left: 0 but at a kink.
        jump_error: how far off that may be.
    """

    value: float
    error: float
    jump: float = 0.0
    jump_error: float = float("inf")

    def settles(self, size: float, share: float) -> bool:
        """Whether its error is at most this share of a number of this size."""
        return self.error <= share * size

    def agrees(self, value: float, size: float) -> bool:
        """Whether a number is this derivative, as far as can be seen, where numbers are of this size."""
        return abs(value - self.value) <= 10 * self.error + 1e-7 * size

    def smooth(self, size: float) -> bool:
        """Whether there is no kink, as far as can be seen."""
        return self.jump_error <= 1e-4 * size and abs(self.jump) <= 10 * self.jump_error + 1e-6 * size

    def between(self, value: float, size: float) -> bool:
        """Whether a number lies between the derivatives to both sides of a kink."""
        if self.smooth(size) or not np.isfinite(self.jump_error):
            return False
        slack = 10 * (self.error + self.jump_error) + 1e-7 * size
        return abs(value - self.value) <= abs(self.jump) / 2 + slack

    def scaled(self, factor: float) -> "Estimate":
        """The derivative where a step counts for so much more."""
        return Estimate(*(x * factor for x in self))


def derivative(function: Callable[[float], float], noise: float = EPSILON) -> Estimate:
    """The derivative at 0, by differences of falling width, extrapolated to width 0.

    ``(f(h) - f(-h)) / 2h = f'(0) + c_2 h^2 + c_4 h^4 + ...``: two widths h and h/s give
    ``(s^2 D(h/s) - D(h)) / (s^2 - 1)``, free of the first error term, and so on in a triangle. The entry that differs
    least from its neighbours wins, and that difference, with what rounding of f does at its width, is its error.
    ``(f(h) - 2 f(0) + f(-h)) / h = jump + c_1 h + c_3 h^3 + ...`` is treated alike.

    Args:
        function: of one number, smooth near 0 at the scale of 1.
        noise: the relative rounding error of its values.

    Returns:
        The estimate; its error is infinite where no width gives a finite difference.

    Example:
        >>> import math
        >>> estimate = derivative(math.exp)
        >>> abs(estimate.value - 1) <= estimate.error < 1e-8
        True
        >>> abs(derivative(abs).jump - 2) < 1e-8
        True

    Source: Ridders, "Accurate computation of F'(x) and F'(x) F''(x)", 1982.
    """
    middle = function(0.0)
    slope, jump = _Limit(first_power=2), _Limit(first_power=1)
    with np.errstate(invalid="ignore", over="ignore"):
        for level in range(_LEVELS):
            h = _FIRST_STEP / _SHRINK**level
            right, left = function(h), function(-h)
            rounding = 2 * noise * (abs(right) + abs(left)) / h
            if np.isfinite(middle):
                apart = right - middle - (middle - left)
            else:  # as where a formula divides 0 by 0: from two points on either side
                apart = function(2 * h) - right - (left - function(-2 * h))
            sharper = slope.refined((right - left) / (2 * h), rounding)
            sharper |= jump.refined(apart / h, 2 * rounding)
            if not sharper and slope.error <= 1e-8 * abs(slope.value):
                break
    return Estimate(slope.value, slope.error, jump.value, jump.error)


class _Limit:
    """The limit of values at falling widths, whose error has every second power of the width, and its error."""

    def __init__(self, first_power: int):
        self.first_power = first_power
        self.value, self.error = float("nan"), float("inf")
        self._row: list[float] = []

    def refined(self, value: float, rounding: float) -> bool:
        """Take in the value at the next width; whether the limit is sharper by it."""
        row, before = [value], self.error
        for i, last in enumerate(self._row):
            row.append(row[i] + (row[i] - last) / (_SHRINK ** (2 * i + self.first_power) - 1))
            error = max(abs(row[i + 1] - row[i]), abs(row[i + 1] - last)) + rounding
            if np.isfinite(row[i + 1]) and error < self.error:
                self.value, self.error = float(row[i + 1]), float(error)
        self._row = row
        return self.error < before


def typical_sizes(leaf: np.ndarray) -> np.ndarray:
    """How far each element may be moved for a difference: in proportion to itself, or to its leaf where it is small."""
    size = np.where(np.isfinite(leaf), np.abs(leaf), 0.0)
    largest = np.max(size, initial=0.0)
    if not largest:
        return np.ones_like(size)
    typical = largest * np.sqrt(np.mean(np.square(size / largest)))
    return np.where(size > 1e-3 * typical, size, typical)


def slope(at: Evaluation, direction: Sequence[np.ndarray], step_scale: float) -> Estimate:
    """The derivative of the objective in a direction, by differences of steps up to so many times as long."""
    start = at.differentiated()

    def along(step: float) -> float:
        return at.value([x + step_scale * step * d for x, d in zip(start, direction, strict=True)])

    return derivative(along, at.compiled.noise).scaled(1 / step_scale)


def slope_of(at: Evaluation, leaf: int, direction: np.ndarray, step_scale: float = 1.0) -> Estimate:
    """The same, where only one leaf moves."""
    directions = [np.zeros_like(x) for x in at.differentiated()]
    directions[leaf] = direction
    return slope(at, directions, step_scale)


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


def heard(at: Evaluation, results: list[Compared]) -> list[Compared]:
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
            result = result._replace(wrong=none, undecided=none, excused=result.excused | mask, note=note)
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
    if len(places) > _MOST_ELEMENTS or not np.isfinite(result.hand[result.undecided]).all():
        return result
    wrong, undecided, reference, tolerance = (
        x.copy() for x in (result.wrong, result.undecided, result.reference, result.tolerance)
    )
    scale = typical_sizes(at.differentiated()[leaf])
    for place in map(tuple, places):
        unit = np.zeros_like(scale)
        unit[place] = scale[place]
        _, estimate, slack, state = _held(at, leaf, result.hand, unit)
        if state != _UNDECIDED:
            wrong[place], undecided[place] = state == _WRONG, False
            reference[place], tolerance[place] = estimate, slack
    return result._replace(wrong=wrong, undecided=undecided, reference=reference, tolerance=tolerance)


def stops_gradients(at: Evaluation) -> bool:
    """Whether the function stops a gradient on purpose somewhere, and not just within a function of JAX's own."""
    program = at.compiled.objective.program
    stops = [eqn for eqn in equations(program) if eqn.primitive.name == "stop_gradient"] if program else []
    return any("/jax/_src/" not in _caller(eqn) for eqn in stops)


def _caller(eqn: Any) -> str:
    """The file whose code called for an operation, through the machinery of ``stop_gradient``."""
    frames = getattr(eqn.source_info.traceback, "frames", ())
    own = ("core.py", "lax/lax.py", "tree_util.py", "traceback_util.py")
    return next((frame.file_name for frame in frames if not frame.file_name.endswith(own)), "")


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
        size = largest * float(np.sum(np.abs(direction)))
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


def oracle(at: Evaluation) -> Verdict:
    """Do finite differences in random directions confirm autodiff?"""
    truths = at.reference[at.problem.n_values :]
    if not all(np.isfinite(truth).all() for truth in truths):
        return Verdict("unchecked", "autodiff's gradient is not finite here")
    draw, worst = np.random.default_rng(at.seed), EPSILON
    for _ in range(2):
        direction = [draw.choice((-1.0, 1.0), size=x.shape) * typical_sizes(x) for x in at.differentiated()]
        parts = [float(np.sum(truth * d)) for truth, d in zip(truths, direction, strict=True)]
        value, size = sum(parts), max(map(abs, (*parts, sum(parts))))
        sharp: list[Estimate] = []
        for step_scale in STEP_SCALES:
            estimate = slope(at, direction, step_scale)
            sharp += [estimate] if estimate.settles(size, 1e-3) else []
            if sharp and sharp[-1].agrees(value, size):
                break
        if not sharp:
            return Verdict("unchecked", "finite differences do not settle here")
        if not sharp[-1].agrees(value, size):
            program = at.compiled.objective.program
            flat = sorted({eqn.primitive.name for eqn in equations(program)} & set(_FLAT))
            why = f"a surrogate, by {' and '.join(flat)}" if flat else "a kink, or a surrogate"
            values = f"finite differences give {sharp[-1].value:.6g}, autodiff {value:.6g}"
            return Verdict("unchecked", f"the function's own slope seems another ({values}): {why}")
        worst = max(worst, abs(sharp[-1].value - value) / max(size, np.finfo(np.float64).tiny))
    return Verdict("pass", f"finite differences agree with autodiff to {worst:.0e}")


def by_finite_differences(at: Evaluation) -> tuple[list[Compared], Verdict]:
    """The gradients held against finite differences, where there is no other reference.

    Element by element where they are few, and otherwise leaf by leaf in random directions. A difference is an error
    where two estimates from steps of different scales agree with one another, and neither with the rule.
    """
    results, sharpest = [], EPSILON
    gradients, points = at.hand[at.problem.n_values :], at.differentiated()
    elementwise = sum(x.size for x in points) <= _MOST_ELEMENTS
    draw = np.random.default_rng(at.seed + 6)
    for i, (name, hand, point) in enumerate(zip(at.problem.names, gradients, points, strict=True)):
        scale = typical_sizes(point)
        if elementwise or hand.size <= _DIRECTIONS:
            places = np.arange(point.size).reshape(point.shape)
            directions = [np.where(places == k, scale, 0.0) for k in range(point.size)]
        else:
            directions = [draw.choice((-1.0, 1.0), size=point.shape) * scale for _ in range(_DIRECTIONS)]
        figures = [_held(at, i, hand, direction) for direction in directions]
        shape = hand.shape if len(figures) == hand.size else (len(figures),)
        by_hand, estimates, errors, states = (np.reshape(x, shape) for x in np.transpose(figures))
        result = Compared(name, by_hand, estimates, errors, states == _WRONG, states == _UNDECIDED, states == _AT_KINK)
        if (known := np.isfinite(errors) & (states == _RIGHT)).any():
            sharpest = max(sharpest, float(np.max(errors[known])) / max(float(np.max(np.abs(by_hand))), _TINY))
        if (states == _AT_KINK).any():
            result = result._replace(note="at a kink: between the slopes to both sides")
        results.append(result)
    if stops_gradients(at):  # its value's own slope is no witness against what is meant
        results = [r._replace(wrong=np.zeros_like(r.wrong), undecided=r.undecided | r.wrong) for r in results]
    why = at.problem.why_no_reference
    if at.compiled.iterates:
        why += "; what iterates to a tolerance of its own may be off by a millionth"
    return results, _numerical_verdict(results, sharpest, why)


def _held(at: Evaluation, leaf: int, hand: np.ndarray, direction: np.ndarray) -> tuple[float, float, float, float]:
    """By hand, by finite differences, how far apart they may be, and what that means."""
    units = float(np.max(direction)) if np.count_nonzero(direction) == 1 else 1.0
    mine = float(np.sum(np.where(direction != 0, hand, 0.0) * direction))
    largest = float(np.max(np.abs(hand), initial=0.0, where=np.isfinite(hand)))
    estimates = [slope_of(at, leaf, direction, step_scale) for step_scale in STEP_SCALES]
    size = max(abs(mine) if np.isfinite(mine) else 0.0, largest * float(np.max(np.abs(direction))))
    sharp = [e for e in estimates if e.settles(max(size, abs(e.value)), 1e-3)]
    best = min(estimates, key=lambda e: e.error)
    least = (_ITERATED if at.compiled.iterates else _SAFE * EPSILON) * size
    slack = [_SAFE * e.error + least for e in sharp]
    found = (mine / units, best.value / units, (_SAFE * best.error + least) / units)
    if np.isfinite(mine) and any(abs(mine - e.value) <= s for e, s in zip(sharp, slack, strict=True)):
        k = next(i for i, (e, s) in enumerate(zip(sharp, slack, strict=True)) if abs(mine - e.value) <= s)
        return mine / units, sharp[k].value / units, slack[k] / units, _RIGHT
    if np.isfinite(mine) and any(e.between(mine, size) for e in sharp):
        return *found, _AT_KINK
    agreed = [
        (a, b)
        for i, a in enumerate(sharp)
        for b in sharp[i + 1 :]
        if abs(a.value - b.value) <= _SAFE * (a.error + b.error) + 1e-7 * size and a.smooth(size)
    ]
    return *found, _WRONG if agreed else _UNDECIDED


def _numerical_verdict(results: Sequence[Compared], sharpest: float, why: str) -> Verdict:
    names = {kind: [r.name for r in results if getattr(r, kind).any()] for kind in ("wrong", "undecided")}
    if names["wrong"]:
        return Verdict("fail", f"wrong by finite differences in {listed(names['wrong'])}")
    if names["undecided"]:
        return Verdict("unchecked", f"{why}, and finite differences do not settle in {listed(names['undecided'])}")
    return Verdict("pass", f"by finite differences, to {sharpest:.0e}: {why}; reference= would be sharper")
