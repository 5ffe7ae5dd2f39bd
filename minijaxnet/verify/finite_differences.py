"""Finite differences of the objective, which owe nothing to autodiff: they confirm it, or stand in its place."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minijaxnet._jaxpr import equations
from minijaxnet.verify.compared import Compared
from minijaxnet.verify.compilation import EPSILON
from minijaxnet.verify.estimates import Estimate, derivative, typical_sizes
from minijaxnet.verify.evaluation import Evaluation
from minijaxnet.verify.report import Verdict, listed

# How long steps are, in proportion to the arguments: shorter where kinks are in the way.
STEP_SCALES = (1.0, 2.0**-10, 2.0**-18)
# Where they are the only reference: element by element up to so many, and otherwise in so many directions a leaf; a
# difference may be so many times their own error estimate.
MOST_ELEMENTS, _DIRECTIONS, _SAFE = 64, 4, 20
# Operations without a slope of their own: whoever gives them one means a surrogate.
_FLAT = ("stop_gradient", "round", "floor", "ceil", "sign")
# What a comparison with them may come to.
RIGHT, WRONG, UNDECIDED, AT_KINK = 0.0, 1.0, 2.0, 3.0
# So far apart may two answers be of what iterates to a tolerance of its own.
_ITERATED = 1e-6
_TINY = float(np.finfo(np.float64).tiny)


def slope(at: Evaluation, direction: Sequence[np.ndarray], step_scale: float, enough: float = 0.0) -> Estimate:
    """The derivative of the objective in a direction, by differences of steps up to so many times as long."""
    start = at.differentiated()

    def along(step: float) -> float:
        return at.value([x + step_scale * step * d for x, d in zip(start, direction, strict=True)])

    return derivative(along, at.compiled.noise, enough).scaled(1 / step_scale)


def slope_of(at: Evaluation, leaf: int, direction: np.ndarray, step_scale: float = 1.0) -> Estimate:
    """The same, where only one leaf moves."""
    directions = [np.zeros_like(x) for x in at.differentiated()]
    directions[leaf] = direction
    return slope(at, directions, step_scale)


def change_of(at: Evaluation, leaf: int, direction: np.ndarray) -> float:
    """How much an eighth of a direction changes the objective, eight times: the size of a slope that may be 0."""
    moved = [x + direction / 8 if i == leaf else x for i, x in enumerate(at.differentiated())]
    change = 8 * abs(at.value(moved) - at.value(at.differentiated()))
    return change if np.isfinite(change) else 0.0


def oracle(at: Evaluation) -> Verdict:
    """Do finite differences in a random direction of all leaves confirm autodiff?"""
    truths = at.reference[at.problem.n_values :]
    if not all(np.isfinite(truth).all() for truth in truths):
        return Verdict("unchecked", "autodiff's gradient is not finite here")
    draw = np.random.default_rng(at.seed)
    direction = [draw.choice((-1.0, 1.0), size=x.shape) * typical_sizes(x) for x in at.differentiated()]
    parts = [float(np.sum(truth * d)) for truth, d in zip(truths, direction, strict=True)]
    value, size = sum(parts), max(map(abs, (*parts, sum(parts))))
    sharp: list[Estimate] = []
    for step_scale in STEP_SCALES:
        estimate = slope(at, direction, step_scale, enough=1e-9)
        sharp += [estimate] if estimate.settles(size, 1e-3) else []
        if sharp and sharp[-1].agrees(value, size):
            apart = max(EPSILON, abs(sharp[-1].value - value) / max(size, _TINY))
            return Verdict("pass", f"finite differences agree with autodiff to {apart:.0e}")
    if not sharp:
        return Verdict("unchecked", "finite differences do not settle here")
    flat = sorted({eqn.primitive.name for eqn in equations(at.compiled.objective.program)} & set(_FLAT))
    why = f"a surrogate, by {' and '.join(flat)}" if flat else "a kink, or a surrogate"
    values = f"finite differences give {sharp[-1].value:.6g}, autodiff {value:.6g}"
    return Verdict("unchecked", f"the function's own slope seems another ({values}): {why}")


def by_finite_differences(at: Evaluation) -> tuple[list[Compared], Verdict]:
    """The gradients held against finite differences, where there is no other reference.

    Element by element where they are few, and otherwise leaf by leaf in random directions. A difference is an error
    where two estimates from steps of different scales agree with one another, and neither with the rule.
    """
    results, sharpest = [], EPSILON
    gradients, points = at.hand[at.problem.n_values :], at.differentiated()
    elementwise = sum(x.size for x in points) <= MOST_ELEMENTS
    draw = np.random.default_rng(at.seed + 6)
    for i, (name, hand, point) in enumerate(zip(at.problem.names, gradients, points, strict=True)):
        scale = typical_sizes(point)
        if elementwise or hand.size <= _DIRECTIONS:
            places = np.arange(point.size).reshape(point.shape)
            directions = [np.where(places == k, scale, 0.0) for k in range(point.size)]
        else:
            directions = [draw.choice((-1.0, 1.0), size=point.shape) * scale for _ in range(_DIRECTIONS)]
        figures = [held(at, i, hand, direction) for direction in directions]
        shape = hand.shape if len(figures) == hand.size else (len(figures),)
        by_hand, estimates, errors, states = (np.reshape(x, shape) for x in np.transpose(figures))
        wrong, undecided, kinks = (states == state for state in (WRONG, UNDECIDED, AT_KINK))
        result = Compared(name, by_hand, estimates, errors, wrong, undecided, kinks, np.zeros_like(kinks))
        if (known := np.isfinite(errors) & (states == RIGHT)).any():
            sharpest = max(sharpest, float(np.max(errors[known])) / max(float(np.max(np.abs(by_hand))), _TINY))
        if (states == AT_KINK).any():
            result = result._replace(note="at a kink: between the slopes to both sides")
        results.append(result)
    if stops_gradients(at):  # its value's own slope is no witness against what is meant
        results = [r._replace(wrong=np.zeros_like(r.wrong), undecided=r.undecided | r.wrong) for r in results]
    why = at.problem.why_no_reference
    if at.compiled.iterates:
        why += "; what iterates to a tolerance of its own may be off by a millionth"
    return results, _numerical_verdict(results, sharpest, why)


def _numerical_verdict(results: Sequence[Compared], sharpest: float, why: str) -> Verdict:
    names = {kind: [r.name for r in results if getattr(r, kind).any()] for kind in ("wrong", "undecided")}
    if names["wrong"]:
        return Verdict("fail", f"wrong by finite differences in {listed(names['wrong'])}")
    if names["undecided"]:
        return Verdict("unchecked", f"{why}, and finite differences do not settle in {listed(names['undecided'])}")
    return Verdict("pass", f"by finite differences, to {sharpest:.0e}: {why}; reference= would be sharper")


def held(at: Evaluation, leaf: int, hand: np.ndarray, direction: np.ndarray) -> tuple[float, float, float, float]:
    """By hand, by finite differences, how far apart they may be, and what that means."""
    units = float(np.max(direction)) if np.count_nonzero(direction) == 1 else 1.0
    mine = float(np.sum(np.where(direction != 0, hand, 0.0) * direction))
    largest = float(np.max(np.abs(hand), initial=0.0, where=np.isfinite(hand)))
    estimates = [slope_of(at, leaf, direction, step_scale) for step_scale in STEP_SCALES]
    size = max(abs(mine) if np.isfinite(mine) else 0.0, largest * float(np.max(np.abs(direction))))
    size = size or change_of(at, leaf, direction)
    sharp = [e for e in estimates if e.settles(max(size, abs(e.value)), 1e-3)]
    best = min(estimates, key=lambda e: e.error)
    least = (_ITERATED if at.compiled.iterates else _SAFE * EPSILON) * size
    slack = [_SAFE * e.error + least for e in sharp]
    found = (mine / units, best.value / units, (_SAFE * best.error + least) / units)
    if np.isfinite(mine) and any(abs(mine - e.value) <= s for e, s in zip(sharp, slack, strict=True)):
        k = next(i for i, (e, s) in enumerate(zip(sharp, slack, strict=True)) if abs(mine - e.value) <= s)
        return mine / units, sharp[k].value / units, slack[k] / units, RIGHT
    if np.isfinite(mine) and any(e.between(mine, size) for e in sharp):
        return *found, AT_KINK
    agreed = [
        (a, b)
        for i, a in enumerate(sharp)
        for b in sharp[i + 1 :]
        if abs(a.value - b.value) <= _SAFE * (a.error + b.error) + 1e-7 * size and a.smooth(size)
    ]
    return *found, WRONG if agreed else UNDECIDED


def stops_gradients(at: Evaluation) -> bool:
    """Whether the function's value has another slope than it is meant to have.

    It stops a gradient on purpose somewhere, not just within a function of JAX's own; or it draws gamma variates, whose
    slope in JAX is that of the distribution, not of the numbers that are rejected on the way.
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
