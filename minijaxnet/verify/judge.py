"""From two rules and a point to a report: every verdict on a hand-derived gradient is passed here."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from minijaxnet.verify.evidence import (
    EPSILON,
    Evidence,
    Pair,
    compile_together,
    conventions,
    distance,
    gather,
    to_host,
    trace,
)
from minijaxnet.verify.hints import Wrong, explain
from minijaxnet.verify.interpret import Moves, equations, interpret
from minijaxnet.verify.oracle import Estimate, derivative
from minijaxnet.verify.report import GradReport, LeafReport, Verdict

Flat = Callable[..., list[Any]]
_FEW = 8
_MOST_EAGER = 40


class Question(NamedTuple):
    """What is to be judged, all of it on flat arguments.

    Attributes:
        hand: ``hand(*leaves) -> [*values, *gradients]``.
        reference: the same by autodiff of the plain function.
        objective: ``objective(*leaves)``, the scalar whose gradient it is.
        leaves: the arguments, in the dtype one works in.
        paths: their names.
        moved: which of them are differentiated; there is a gradient for each.
        names: the names of the gradients.
        n_values: how many values come before the gradients.
        cotangents: where among the leaves the cotangents are; none for a plain gradient.
        forward: the same pair of rules for forward mode, where there is one.
        curved: the same pair of rules for the derivative of the gradient, where it is asked for.
        values_by_hand: whether the hand rule returns values.
    """

    hand: Flat
    reference: Flat
    objective: Callable[..., Any]
    leaves: list[Any]
    paths: list[str]
    moved: list[bool]
    names: list[str]
    n_values: int
    cotangents: list[int]
    forward: tuple[Flat, Flat] | None = None
    curved: tuple[Flat, Flat] | None = None


class _Compared(NamedTuple):
    """One result of the two rules: which elements are wrong, and the figures for the report."""

    report: LeafReport
    wrong: np.ndarray
    open: np.ndarray  # could not be decided
    excused: np.ndarray  # right although autodiff says otherwise


def judge(question: Question, seed: int) -> GradReport:
    """Pass all verdicts but that on the structure, which has been passed when there is a question."""
    working_dtype = np.result_type(*(leaf.dtype for leaf, moved in _pairs(question) if moved))
    precise = all(leaf.dtype == np.float64 for leaf, moved in _pairs(question) if moved)
    with jax.enable_x64(True):
        wide = [_widened(leaf) for leaf in question.leaves]
        hand = trace(question.hand, wide, question.leaves)
        reference = trace(question.reference, wide, question.leaves)
        pair = Pair(hand, reference, question.moved)
        scalar = trace(lambda *leaves: [question.objective(*leaves)], wide, question.leaves)
        objective = jax.jit(lambda consts, leaves: interpret(scalar.program, consts, leaves)[0])
        programs = {"pair": pair.lower(wide), "objective": objective.lower(scalar.consts, wide)}
        near = _nearby(question, wide, seed)
        try:
            programs["stacked"] = jax.jit(jax.vmap(question.hand)).lower(*_stacked(wide, near))
            why_not_stacked = ""
        except Exception as error:
            why_not_stacked = f"under vmap: {' '.join(str(error).split())[:150]}"
    if not precise and hand.program is not None:
        in_working = jax.jit(lambda *leaves: (question.hand(*leaves), question.reference(*leaves)))
        programs["working"] = in_working.lower(*question.leaves)
    compiled = dict(zip(programs, compile_together(list(programs.values())), strict=True))
    pair.use(compiled["pair"])

    def objective_at(step: float, direction: Sequence[np.ndarray]) -> float:
        ways = iter(direction)
        leaves = [x + step * next(ways) if moved else x for x, moved in zip(wide, question.moved, strict=True)]
        return float(compiled["objective"](scalar.consts, leaves))

    with jax.enable_x64(True):
        evidence = gather(pair, wide, seed)
        look = _Look(question, pair, wide, evidence, objective_at, seed)
        compared = _algebra(look, working_dtype)
        verdicts, leaves, hints = _verdicts(look, compared)
        good = verdicts["algebra"].state == "pass"
        if not good:
            verdicts["precision"] = Verdict("unchecked", "the algebra is not right")
        elif precise:
            verdicts["precision"], leaves = _precision_by_doubt(look, leaves)
        elif "working" not in compiled:
            verdicts["precision"] = Verdict("unchecked", hand.note)
        else:
            working = [list(map(to_host, x)) for x in compiled["working"](*question.leaves)]
            verdicts["precision"], leaves = _precision(_as_drawn(look), compared, leaves, *working)
        verdicts["oracle"] = _oracle(look, good)
        if question.cotangents:
            verdicts["linearity"], more = _linearity(look)
            hints += more
        if not good:
            verdicts["transforms"] = Verdict("unchecked", "the algebra is not right")
        elif "stacked" not in compiled:
            verdicts["transforms"] = Verdict("unchecked", hand.note or why_not_stacked)
        else:
            verdicts["transforms"] = _transforms(look, near, compiled["stacked"])
        if question.forward is not None:
            verdicts["forward"] = _agrees(look, question.forward, "forward mode")
        if question.curved is not None:
            verdicts["second order"] = _agrees(look, question.curved, "the gradient's own derivative")
            if verdicts["second order"].state == "fail" and good:
                hints += ("value and gradient are right, second order only is wrong: the rule hides a dependence",)
    notes = {rule.note for rule in (hand, reference) if rule.note}
    if notes and good:
        verdicts["algebra"] = Verdict("pass", f"{verdicts['algebra'].reason}; {'; '.join(sorted(notes))}")
    return GradReport(verdicts, leaves, hints)


class _Look(NamedTuple):
    """What all verdicts look at."""

    question: Question
    pair: Pair
    wide: list[Any]
    evidence: Evidence
    objective_at: Callable[[float, Sequence[np.ndarray]], float]
    seed: int

    def differentiated(self) -> list[np.ndarray]:
        return [np.asarray(x) for x, moved in zip(self.wide, self.question.moved, strict=True) if moved]

    def slope(self, direction: Sequence[np.ndarray], *, side: int = 0) -> Estimate:
        """The derivative of the objective in a direction, by finite differences."""
        return derivative(lambda step: self.objective_at(step, direction), side=side)

    def slope_at(self, leaf: int, values: np.ndarray) -> Estimate:
        """The same, where only one leaf moves."""
        direction = [np.zeros_like(x) for x in self.differentiated()]
        direction[leaf] = values
        return self.slope(direction)


# --- Algebra: are the two the same function? -------------------------------------------------------------------------


def _algebra(look: _Look, dtype: Any) -> list[_Compared]:
    """Each gradient, element by element; where they differ, a kink or a failure of autodiff may excuse it."""
    first = look.question.n_values
    compared = [_compare(look, first + i, name, dtype) for i, name in enumerate(look.question.names)]
    if any(c.wrong.any() for c in compared):
        bounds = conventions(look.pair, look.wide, look.evidence)
        compared = [_excused_by_kink(look, first + i, c, bounds[first + i]) for i, c in enumerate(compared)]
    return [_decided_by_oracle(look, i, c) for i, c in enumerate(compared)]


def _compare(look: _Look, i: int, name: str, dtype: Any) -> _Compared:
    hand, reference, tolerance = look.evidence.hand[i], look.evidence.reference[i], look.evidence.tolerance(i)
    with np.errstate(invalid="ignore", over="ignore"):
        errors = np.where(hand == reference, 0.0, np.abs(hand - reference))
    is_open = ~np.isfinite(reference) & (errors != 0)
    errors = np.where(np.isnan(errors), np.inf, errors)
    wrong = (errors > tolerance) & ~is_open
    report = _leaf_report(name, hand, reference, tolerance, errors, wrong, is_open, dtype)
    return _Compared(report, wrong, is_open, np.zeros_like(wrong))


def _leaf_report(
    name: str,
    hand: np.ndarray,
    reference: np.ndarray,
    tolerance: np.ndarray,
    errors: np.ndarray,
    wrong: np.ndarray,
    is_open: np.ndarray,
    dtype: Any,
) -> LeafReport:
    if not errors.size:
        return LeafReport(name, hand.shape, 0.0, 0.0, 0.0, (), 0.0, 0.0)
    excess = errors / np.maximum(tolerance, 1e-300)
    excess = np.where(is_open, -1.0, excess) if wrong.any() else excess
    index = tuple(int(k) for k in np.unravel_index(np.argmax(excess), errors.shape))
    epsilon = float(jnp.finfo(dtype).eps)
    unit = epsilon * max(abs(reference[index]), 1e-300) if np.isfinite(reference[index]) else np.nan
    return LeafReport(
        name,
        hand.shape,
        float(errors[index]),
        float(tolerance[index]),
        float(np.max(tolerance)),
        index,
        float(hand[index]),
        float(reference[index]),
        ulps=float(errors[index] / unit),
        share_wrong=float(np.mean(wrong)),
    )


def _excused_by_kink(look: _Look, i: int, compared: _Compared, bounds: tuple[np.ndarray, np.ndarray]) -> _Compared:
    """A value between the slopes to both sides of a kink is a convention, not an error."""
    hand, (low, high), tolerance = look.evidence.hand[i], bounds, look.evidence.tolerance(i)
    slack = tolerance + 1e-9 * (np.abs(low) + np.abs(high))
    excused = compared.wrong & (high - low > slack) & (hand >= low - slack) & (hand <= high + slack)
    if not excused.any():
        return compared
    index = tuple(int(k) for k in np.argwhere(excused)[0])
    note = (
        f"at a kink{' in ' + str(list(index)) if index else ''} the slope may be from {low[index]:.6g} to "
        f"{high[index]:.6g}: by hand {hand[index]:.6g}, by autodiff {look.evidence.reference[i][index]:.6g}"
    )
    wrong = compared.wrong & ~excused
    report = _reported(look, i, compared, wrong, compared.open)
    return _Compared(replace(report, note=note), wrong, compared.open, excused)


def _reported(look: _Look, i: int, compared: _Compared, wrong: np.ndarray, is_open: np.ndarray) -> LeafReport:
    """The report of a leaf again, when some of its elements have been excused."""
    hand, reference, tolerance = look.evidence.hand[i], look.evidence.reference[i], look.evidence.tolerance(i)
    with np.errstate(invalid="ignore"):
        errors = np.where(hand == reference, 0.0, np.abs(hand - reference))
    errors = np.where(np.isnan(errors), np.inf, errors)
    errors = np.where(wrong | is_open | (errors <= tolerance), errors, 0.0)
    dtype = np.float64
    fresh = _leaf_report(compared.report.path, hand, reference, tolerance, errors, wrong, is_open, dtype)
    return replace(fresh, note=compared.report.note)


def _decided_by_oracle(look: _Look, leaf: int, compared: _Compared) -> _Compared:
    """Where the two differ, finite differences have the casting vote: they can acquit a hand rule, never condemn it."""
    doubtful = compared.wrong | compared.open
    if not doubtful.any():
        return compared
    i = look.question.n_values + leaf
    hand = look.evidence.hand[i]
    places = np.argwhere(doubtful)
    draw = np.random.default_rng(look.seed)
    chosen = places[draw.permutation(len(places))[:_FEW]]
    scale = _scale(look.differentiated()[leaf])
    acquitted = bool(np.isfinite(hand[doubtful]).all())
    votes = []
    for mask in [*_single(chosen, hand.shape), *([doubtful] if len(places) > _FEW else [])]:
        if not acquitted:
            break
        way = np.where(mask, draw.choice((-1.0, 1.0), size=hand.shape), 0.0) * scale
        estimate, value = look.slope_at(leaf, way), float(np.sum(np.where(mask, hand * way, 0.0)))
        acquitted = estimate.settles(abs(value)) and estimate.agrees(value)
        votes.append(estimate)
    report = compared.report
    if acquitted and votes:
        note = f"autodiff suspect: in {len(places)} of {hand.size} elements finite differences side with the hand rule"
        none = np.zeros_like(doubtful)
        excused = compared.excused | doubtful
        return _Compared(replace(_reported(look, i, compared, none, none), note=note), none, none, excused)
    if compared.wrong.any():
        unit = np.zeros(hand.shape)
        unit[report.index] = scale[report.index] if np.ndim(scale) else scale
        estimate = look.slope_at(leaf, unit)
        size = float(unit[report.index])
        if np.isfinite(estimate.error) and size:
            report = replace(report, finite_difference=estimate.value / size)
    return compared._replace(report=report)


def _single(places: np.ndarray, shape: tuple[int, ...]) -> list[np.ndarray]:
    masks = []
    for place in places:
        mask = np.zeros(shape, bool)
        mask[tuple(place)] = True
        masks.append(mask)
    return masks


def _scale(leaf: np.ndarray) -> np.ndarray:
    """How far each element may be moved for a difference: in proportion to itself, or to its leaf where it is small."""
    typical = np.sqrt(np.mean(np.square(leaf[np.isfinite(leaf)]))) if np.isfinite(leaf).any() else 0.0
    size = np.where(np.isfinite(leaf), np.abs(leaf), 0.0)
    return np.where(size > 1e-3 * typical, size, typical) if typical else np.ones_like(leaf)


# --- The verdicts ----------------------------------------------------------------------------------------------------


def _verdicts(
    look: _Look, compared: list[_Compared]
) -> tuple[dict[str, Verdict], dict[str, LeafReport], tuple[str, ...]]:
    question, evidence = look.question, look.evidence
    verdicts = {"structure": Verdict("pass", "the gradient is like its argument")}
    hints: tuple[str, ...] = ()
    if question.n_values:
        bad = [i for i in range(question.n_values) if _differs(evidence, i)]
        reason = "the value is the function's own"
        if bad:
            k = np.unravel_index(
                np.argmax(distance(evidence.hand[bad[0]], evidence.reference[bad[0]])), evidence.hand[bad[0]].shape
            )
            reason = (
                f"the value is {evidence.hand[bad[0]][k]:.12g}, the function's own {evidence.reference[bad[0]][k]:.12g}"
            )
        verdicts["primal"] = Verdict("fail" if bad else "pass", reason)
        if bad:
            hints = ("the rule's own forward pass is not the function's: its value is another when differentiated",)
    leaves = {c.report.path: c.report for c in compared}
    wrong = [c.report.path for c in compared if c.wrong.any()]
    undecided = [c.report.path for c in compared if c.open.any()]
    if wrong:
        verdicts["algebra"] = Verdict("fail", f"wrong beyond rounding in {_listed(wrong)}")
        hints += _hints(look, compared)
    elif undecided:
        why = "autodiff's gradient is not finite there, and finite differences do not settle"
        verdicts["algebra"] = Verdict("unchecked", f"{why}: {_listed(undecided)}")
    else:
        verdicts["algebra"] = Verdict("pass", "equal to rounding in float64, every element of every leaf")
    return verdicts, leaves, hints


def _differs(evidence: Evidence, i: int) -> bool:
    hand, reference = evidence.hand[i], evidence.reference[i]
    same = (hand == reference) | (np.isnan(hand) & np.isnan(reference))
    with np.errstate(invalid="ignore"):
        near = np.abs(hand - reference) <= evidence.tolerance(i)
    return not bool(np.all(same | near))


def _hints(look: _Look, compared: list[_Compared]) -> tuple[str, ...]:
    question, first = look.question, look.question.n_values
    truth = {c.report.path: look.evidence.reference[first + i] for i, c in enumerate(compared)}
    arguments = {
        path: to_host(x)
        for path, x in zip(question.paths, look.wide, strict=True)
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    }
    params = look.differentiated()
    summands, addends = _sums(look)
    sentences = []
    for i, c in enumerate(compared):
        if c.wrong.any():
            others = {path: x for path, x in truth.items() if path != c.report.path}
            tolerance = look.evidence.tolerance(first + i)
            slip = Wrong(
                c.report.path,
                look.evidence.hand[first + i],
                truth[c.report.path],
                tolerance,
                c.wrong,
                params[i],
                others,
                arguments,
                summands,
                addends,
            )
            sentences.append(explain(slip))
    return tuple(filter(None, sentences))


def _sums(look: _Look) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What autodiff's own program sums over axes, and what it adds, where that is small enough to look at."""
    program = look.pair.reference.program
    summands: list[np.ndarray] = []
    addends: list[np.ndarray] = []

    def watch(eqn: Any, operands: list[Any]) -> None:
        seen = {"reduce_sum": summands, "add_any": addends, "add": addends, "sub": addends}.get(eqn.primitive.name)
        if seen is not None:
            small = [x for x in operands if not isinstance(x, Tracer) and 1 < x.size < 100_000]
            seen.extend(np.asarray(x, np.float64) for x in small)

    if program is not None and sum(1 for _ in equations(program)) < 600:
        interpret(program, look.pair.reference.consts, look.wide, watch=watch)
    return summands, addends


def _as_drawn(look: _Look) -> _Look:
    """The same with the random numbers of the working dtype: float64 would draw others."""
    question, program = look.question, look.pair.reference.program
    if not any(eqn.primitive.name in _DRAWS for eqn in equations(program)):
        return look
    with jax.enable_x64(False):
        rules = (trace(rule, question.leaves, question.leaves) for rule in (question.hand, question.reference))
        pair = Pair(next(rules), next(rules), question.moved)
    hand, reference = pair(look.wide)
    return look._replace(pair=pair, evidence=look.evidence._replace(hand=hand, reference=reference))


_DRAWS = ("random_bits", "threefry2x32", "random_gamma", "rng_bit_generator")


def _precision(
    look: _Look,
    compared: list[_Compared],
    leaves: dict[str, LeafReport],
    hand: list[np.ndarray],
    autodiff: list[np.ndarray],
) -> tuple[Verdict, dict[str, LeafReport]]:
    """In the working dtype: the hand rule's error against float64, judged by autodiff's own."""
    question, first = look.question, look.question.n_values
    dtypes = [leaf.dtype for leaf, moved in _pairs(question) if moved]
    coarsest = max(float(jnp.finfo(dtype).eps) for dtype in dtypes)
    spread = _moved_by(look, Moves(size=coarsest))
    ulp = _moved_by(look, Moves(size=_SMALL, inputs=1.0), scale=coarsest / _SMALL)
    too_coarse, leaves = [], dict(leaves)
    for i, name in enumerate(question.names):
        k, epsilon = first + i, float(jnp.finfo(dtypes[i]).eps)
        truth, mine, theirs = look.evidence.reference[k], hand[k], autodiff[k]
        my_truth = np.where(compared[i].excused, look.evidence.hand[k], truth)
        largest = float(np.max(np.abs(truth), initial=0.0, where=np.isfinite(truth)))
        broken = ~np.isfinite(mine) & np.isfinite(theirs) & np.isfinite(my_truth)
        floor = max(epsilon * largest, float(jnp.finfo(dtypes[i]).tiny))
        error, own = (float(np.max(distance(x, y), initial=0.0)) for x, y in ((mine, my_truth), (theirs, truth)))
        leaves[name] = replace(leaves[name], precision_ratio=max(error, floor / 2) / max(own, floor / 2))
        if broken.any() or error > 8 * max(own, spread[k]) + ulp[k] + 4 * floor:
            too_coarse.append(name)
    if too_coarse:
        return Verdict("fail", f"far less precise than autodiff in {_listed(too_coarse)}"), leaves
    names = ", ".join(sorted({dtype.name for dtype in dtypes}))
    return Verdict("pass", f"in {names} its rounding error is like autodiff's"), leaves


_SMALL = 2.0**-40


def _moved_by(look: _Look, moves: Moves, *, scale: float = 1.0) -> list[float]:
    """How far moves of rounding take each result of the reference, at most."""
    largest = [0.0] * len(look.evidence.reference)
    for probe in range(2):
        _, moved = look.pair(look.wide, moves._replace(seed=np.uint32((look.seed + 50 + probe) % 2**32)))
        for i, (x, before) in enumerate(zip(moved, look.evidence.reference, strict=True)):
            largest[i] = max(largest[i], scale * float(np.max(distance(x, before), initial=0.0)))
    return largest


def _precision_by_doubt(look: _Look, leaves: dict[str, LeafReport]) -> tuple[Verdict, dict[str, LeafReport]]:
    """In float64 there is no truth to measure by: how far enlarged roundings take the two rules is compared instead."""
    first, too_coarse, leaves = look.question.n_values, [], dict(leaves)
    for i, name in enumerate(look.question.names):
        k = first + i
        floor = EPSILON * float(np.max(np.abs(look.evidence.reference[k]), initial=0.0))
        mine, theirs = (
            float(np.max(x[k], initial=0.0)) for x in (look.evidence.hand_doubt, look.evidence.reference_doubt)
        )
        ratio = max(mine, floor) / max(theirs, floor) if floor or theirs or mine else 1.0
        leaves[name] = replace(leaves[name], precision_ratio=ratio if np.isfinite(ratio) else None)
        if mine > 64 * max(theirs, floor):
            too_coarse.append(name)
    if too_coarse:
        return Verdict("fail", f"enlarged roundings take it far further than autodiff in {_listed(too_coarse)}"), leaves
    return Verdict("pass", "in float64 enlarged roundings take it no further than autodiff"), leaves


def _oracle(look: _Look, good: bool) -> Verdict:
    """Do finite differences in random directions confirm the reference?"""
    first, params = look.question.n_values, look.differentiated()
    truths = look.evidence.reference[first:]
    if any(c.size and not np.isfinite(c).all() for c in truths):
        return Verdict("unchecked", "autodiff's gradient is not finite here")
    draw, worst = np.random.default_rng(look.seed), 0.0
    for _ in range(2):
        direction = [draw.choice((-1.0, 1.0), size=x.shape) * _scale(x) for x in params]
        estimate = look.slope(direction)
        parts = [float(np.sum(t * d)) for t, d in zip(truths, direction, strict=True)]
        value = sum(parts)
        if not estimate.settles(max(map(abs, (*parts, value)), default=0.0)):
            return Verdict("unchecked", "finite differences do not settle here")
        if not estimate.agrees(value):
            why = _surrogate(look)
            if why:
                return Verdict("unchecked", f"the function's own slope is another: {why}")
            return Verdict(
                "unchecked",
                f"finite differences give {estimate.value:.6g}, autodiff {value:.6g}: a kink, or a surrogate",
            )
        worst = max(worst, abs(estimate.value - value) / max(abs(value), 1e-300))
    return Verdict("pass", f"finite differences agree with autodiff to {max(worst, EPSILON):.0e}")


_DEAF = {"stop_gradient": "stop_gradient", "round": "rounding", "floor": "floor", "ceil": "ceil", "sign": "sign"}


def _surrogate(look: _Look) -> str:
    rule = trace(lambda *leaves: [look.question.objective(*leaves)], look.wide, look.question.leaves)
    names = {eqn.primitive.name for eqn in equations(rule.program)}
    found = [word for name, word in _DEAF.items() if name in names]
    return f"a surrogate, by {' and '.join(found)}" if found else ""


def _linearity(look: _Look) -> tuple[Verdict, tuple[str, ...]]:
    """``bwd(c g) = c bwd(g)``, ``bwd(0) = 0``, ``bwd(g + h) = bwd(g) + bwd(h)``."""
    question, first = look.question, look.question.n_values
    draw = np.random.default_rng(look.seed + 1)
    cotangents = [np.asarray(look.wide[k]) for k in question.cotangents]
    other = [draw.normal(size=c.shape) for c in cotangents]

    def back(values: Sequence[np.ndarray]) -> list[np.ndarray]:
        leaves = list(look.wide)
        for k, value in zip(question.cotangents, values, strict=True):
            leaves[k] = jnp.asarray(value)
        return look.pair(leaves)[0][first:]

    plain = look.evidence.hand[first:]
    tolerances = [look.evidence.tolerance(first + i) for i in range(len(plain))]

    def unequal(got: list[np.ndarray], expected: list[np.ndarray], scale: float) -> str:
        for name, a, b, tolerance in zip(question.names, got, expected, tolerances, strict=True):
            bad = distance(a, b) > 8 * scale * tolerance + 1e-11 * scale * np.max(np.abs(b), initial=0.0)
            if bad.any() or (np.isfinite(a) != np.isfinite(b)).any():
                return name
        return ""

    for factor in (-1.0, 2.0**10, 2.0**-10):
        got = back([factor * c for c in cotangents])
        if name := unequal(got, [factor * x for x in plain], abs(factor)):
            if not unequal(got, plain, 1.0):
                hint = "the backward rule ignores the cotangent: multiply by it"
            elif factor > 1:
                hint = "the backward rule is not linear in the cotangent: clipped, or squashed?"
            else:
                hint = "the backward rule is not linear in the cotangent: a power, a sign, or a term without it?"
            return Verdict("fail", f"{factor:g} times the cotangent does not give {factor:g} times {name}"), (hint,)
    zero = [np.zeros_like(x) for x in plain]
    if name := unequal(back([np.zeros_like(c) for c in cotangents]), zero, 1.0):
        hint = "a term of the backward rule lacks the cotangent"
        return Verdict("fail", f"a cotangent of zeros does not give zeros in {name}"), (hint,)
    total = back([a + b for a, b in zip(cotangents, other, strict=True)])
    parts = [a + b for a, b in zip(plain, back(other), strict=True)]
    if name := unequal(total, parts, 8.0):
        hint = "the backward rule is not linear in the cotangent"
        return Verdict("fail", f"the sum of two cotangents does not give the sum of two gradients in {name}"), (hint,)
    return Verdict("pass", "linear in the cotangent: scaled, zero, summed"), ()


def _nearby(question: Question, wide: list[Any], seed: int) -> list[Any]:
    """The arguments again, with what is differentiated moved a little."""
    draw = np.random.default_rng(seed + 2)
    return [
        x * (1 + 2.0**-10 * draw.choice((-1.0, 1.0), size=x.shape)) if moved else x
        for x, moved in zip(wide, question.moved, strict=True)
    ]


def _stacked(first: list[Any], second: list[Any]) -> list[Any]:
    pairs = zip(first, second, strict=True)
    return [np.stack(pair) if isinstance(pair[0], np.ndarray) else jnp.stack(pair) for pair in pairs]


def _transforms(look: _Look, near: list[Any], stacked: Any) -> Verdict:
    """Is the rule the same called eagerly, and under vmap?"""
    question, first = look.question, look.question.n_values
    n = len(look.evidence.hand)

    def unlike(got: Sequence[Any], expected: Sequence[np.ndarray]) -> str:
        for i in range(first, n):
            mine = to_host(got[i])
            slack = 8 * look.evidence.tolerance(i) + 1e-9 * np.max(np.abs(expected[i]), initial=0.0)
            if (distance(mine, expected[i]) > slack).any() or (np.isfinite(mine) != np.isfinite(expected[i])).any():
                return question.names[i - first]
        return ""

    count = sum(1 for _ in equations(look.pair.hand.program))
    if count <= _MOST_EAGER and (name := unlike(question.hand(*jax.device_put(look.wide)), look.evidence.hand)):
        return Verdict("fail", f"called without jit it returns something else in {name}")
    alone = [look.evidence.hand, look.pair(near)[0]]
    together = stacked(*_stacked(look.wide, near))
    for k in range(2):
        if name := unlike([x[k] for x in together], alone[k]):
            return Verdict("fail", f"under vmap it returns something else in {name}")
    if count > _MOST_EAGER:
        return Verdict("pass", f"jit and vmap agree (not called eagerly: {count} operations to compile one by one)")
    return Verdict("pass", "eager, jit and vmap agree")


def _agrees(look: _Look, rules: tuple[Flat, Flat], what: str) -> Verdict:
    """Whether two further rules are the same function, as the gradients were asked to be."""
    try:
        hand, reference = (trace(rule, look.wide, look.question.leaves) for rule in rules)
    except Exception as error:
        return Verdict("unchecked", f"{what}: {str(error).strip().splitlines()[0][:150]}")
    pair = Pair(hand, reference, look.question.moved)
    evidence = gather(pair, look.wide, look.seed)
    bad = [i for i in range(len(evidence.hand)) if _differs(evidence, i)]
    if bad:
        bounds = conventions(pair, look.wide, evidence)
        for i in list(bad):
            low, high = bounds[i]
            slack = evidence.tolerance(i) + 1e-9 * (np.abs(low) + np.abs(high))
            if np.all((evidence.hand[i] >= low - slack) & (evidence.hand[i] <= high + slack)):
                bad.remove(i)
    if bad:
        i = bad[0]
        k = np.unravel_index(np.argmax(distance(evidence.hand[i], evidence.reference[i])), evidence.hand[i].shape)
        values = f"by hand {evidence.hand[i][k]:.10g}, by autodiff {evidence.reference[i][k]:.10g}"
        return Verdict("fail", f"{what} is wrong: result {i}{list(map(int, k)) if k else ''}: {values}")
    return Verdict("pass", f"{what} is equal to rounding")


def _pairs(question: Question) -> list[tuple[Any, bool]]:
    return list(zip(question.leaves, question.moved, strict=True))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _widened(leaf: Any) -> Any:
    return np.asarray(leaf).astype(np.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
