"""Finite differences of the objective, which do not depend on autodiff: they confirm it, or replace it."""

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minijaxnet._jaxpr import equations
from minijaxnet.verify.comparison import Comparison
from minijaxnet.verify.compilation import EPSILON
from minijaxnet.verify.estimates import Estimate, derivative, typical_sizes
from minijaxnet.verify.evaluation import Arrays, Evaluation
from minijaxnet.verify.report import Verdict, listed
from minijaxnet.verify.rounding import ITERATED
from minijaxnet.verify.widening import largest

# How long steps are, in proportion to the arguments: shorter where kinks are near.
STEP_SCALES = (1.0, 2.0**-10, 2.0**-18)
# As the only reference: element by element up to so many, and otherwise in so many directions a leaf.
MOST_ELEMENTS, _DIRECTIONS = 64, 4
# A difference may be so many times the error estimate.
_SAFE = 20
TINY = float(np.finfo(np.float64).tiny)


class Outcome(enum.Enum):
    """What a comparison with finite differences says."""

    RIGHT = enum.auto()
    WRONG = enum.auto()
    UNDECIDED = enum.auto()
    AT_KINK = enum.auto()


class Judged(NamedTuple):
    """A derivative in a direction by hand and by finite differences, how far apart they may be, and what that says."""

    hand: float
    estimate: float
    tolerance: float
    outcome: Outcome


def directional(at: Evaluation, direction: Arrays, step_scale: float, enough: float = 0.0) -> Estimate:
    """The derivative of the objective in a direction of all leaves, by differences of steps up to so many times it."""
    start = at.params()

    def along(step: float) -> float:
        return at.value([x + step_scale * step * d for x, d in zip(start, direction, strict=True)])

    return derivative(along, at.compiled.noise, enough).scaled(1 / step_scale)


def of_leaf(at: Evaluation, leaf: int, direction: np.ndarray, step_scale: float = 1.0) -> Estimate:
    """The derivative of the objective where only one leaf moves."""
    directions = [np.zeros_like(x) for x in at.params()]
    directions[leaf] = direction
    return directional(at, directions, step_scale)


def size_of_change(at: Evaluation, leaf: int, direction: np.ndarray) -> float:
    """The size to measure a derivative by that may be 0: how much an eighth of a direction does, eight times."""
    moved = [x + direction / 8 if i == leaf else x for i, x in enumerate(at.params())]
    change = 8 * abs(at.value(moved) - at.value(at.params()))
    return change if np.isfinite(change) else 0.0


def random_direction(at: Evaluation, seed: int) -> Arrays:
    """A random direction of all leaves, each element as long as it is typical."""
    draw = np.random.default_rng(seed)
    return [draw.choice((-1.0, 1.0), size=x.shape) * typical_sizes(x) for x in at.params()]


def by_finite_differences(at: Evaluation) -> tuple[list[Comparison], Verdict]:
    """The gradients compared with finite differences, where there is no other reference.

    Element by element where they are few, and otherwise leaf by leaf in random directions. A difference is an error
    where two estimates from steps of different scales agree with one another, and neither with the rule.
    """
    gradients, params = at.hand[at.problem.n_values :], at.params()
    elementwise = sum(x.size for x in params) <= MOST_ELEMENTS
    draw, results, sharpest = np.random.default_rng(at.seed + 6), [], EPSILON
    for i, (name, hand, point) in enumerate(zip(at.problem.names, gradients, params, strict=True)):
        scale = typical_sizes(point)
        if elementwise or hand.size <= _DIRECTIONS:
            places, shape = np.arange(point.size).reshape(point.shape), hand.shape
            directions = [np.where(places == k, scale, 0.0) for k in range(point.size)]
        else:
            shape = (_DIRECTIONS,)
            directions = [draw.choice((-1.0, 1.0), size=point.shape) * scale for _ in range(_DIRECTIONS)]
        found = [judged(at, i, hand, direction) for direction in directions]
        numbers = np.reshape([(j.hand, j.estimate, j.tolerance) for j in found], (*shape, 3))
        by_hand, estimates, errors = np.moveaxis(numbers, -1, 0)
        wrong, undecided, at_kink, right = (
            np.reshape([j.outcome is outcome for j in found], shape).astype(bool)
            for outcome in (Outcome.WRONG, Outcome.UNDECIDED, Outcome.AT_KINK, Outcome.RIGHT)
        )
        note = "at a kink: between the one-sided derivatives" if at_kink.any() else ""
        none = np.zeros_like(at_kink)
        results.append(Comparison(name, by_hand, estimates, errors, wrong, undecided, at_kink, none, note=note))
        if (certain := np.isfinite(errors) & right).any():
            sharpest = max(sharpest, float(np.max(errors[certain])) / max(float(np.max(np.abs(by_hand))), TINY))
    if stops_gradients(at):  # the derivative of its value is not what is meant
        results = [result.without_wrong() for result in results]
    return results, _verdict(at, results, sharpest)


def _verdict(at: Evaluation, results: Sequence[Comparison], sharpest: float) -> Verdict:
    why = at.problem.why_no_reference
    if at.compiled.iterates:
        why += "; what iterates to a tolerance of its own may be off by a millionth"
    if wrong := [r.name for r in results if r.wrong.any()]:
        return Verdict("fail", f"wrong by finite differences in {listed(wrong)}")
    if undecided := [r.name for r in results if r.undecided.any()]:
        return Verdict("unchecked", f"{why}, and finite differences do not settle in {listed(undecided)}")
    return Verdict("pass", f"by finite differences, to {sharpest:.0e}: {why}; reference= would be sharper")


def judged(at: Evaluation, leaf: int, hand: np.ndarray, direction: np.ndarray) -> Judged:
    """The derivative in a direction of one leaf, by hand and by finite differences."""
    units = float(np.max(direction)) if np.count_nonzero(direction) == 1 else 1.0
    mine = float(np.sum(np.where(direction != 0, hand, 0.0) * direction))
    estimates = [of_leaf(at, leaf, direction, step_scale) for step_scale in STEP_SCALES]
    size = max(abs(mine) if np.isfinite(mine) else 0.0, largest(hand) * float(np.max(np.abs(direction))))
    size = size or size_of_change(at, leaf, direction)
    sharp = [e for e in estimates if e.is_sharp(max(size, abs(e.value)), 1e-3)]
    least = (ITERATED if at.compiled.iterates else _SAFE * EPSILON) * size

    def as_judged(estimate: Estimate, outcome: Outcome) -> Judged:
        slack = _SAFE * estimate.error + least
        return Judged(mine / units, estimate.value / units, slack / units, outcome)

    if np.isfinite(mine):
        if agreeing := [e for e in sharp if abs(mine - e.value) <= _SAFE * e.error + least]:
            return as_judged(agreeing[0], Outcome.RIGHT)
        if any(e.is_between_sides(mine, size) for e in sharp):
            return as_judged(min(estimates, key=lambda e: e.error), Outcome.AT_KINK)
    two_agree = any(
        abs(a.value - b.value) <= _SAFE * (a.error + b.error) + 1e-7 * size and a.is_smooth(size)
        for i, a in enumerate(sharp)
        for b in sharp[i + 1 :]
    )
    outcome = Outcome.WRONG if two_agree else Outcome.UNDECIDED
    return as_judged(min(estimates, key=lambda e: e.error), outcome)


def stops_gradients(at: Evaluation) -> bool:
    """Whether the function is meant to have another derivative than its value has.

    It stops a gradient on purpose somewhere, not just within a function of JAX's own; or it draws gamma variates, whose
    derivative in JAX is that of the distribution, not of the numbers that are rejected on the way.
    """
    program = at.compiled.objective.program
    eqns = list(equations(program)) if program else []
    stops = [eqn for eqn in eqns if eqn.primitive.name == "stop_gradient" and "/jax/_src/" not in _caller(eqn)]
    return bool(stops) or any(eqn.primitive.name == "random_gamma" for eqn in eqns)


def _caller(eqn: Any) -> str:
    """The file whose code calls ``stop_gradient``; JAX's own where an operation came about without it."""
    frames = list(getattr(eqn.source_info.traceback, "frames", ()))
    called = [k for k, frame in enumerate(frames[:-1]) if frame.function_name == "stop_gradient"]
    return frames[called[-1] + 1].file_name if called else "/jax/_src/"
