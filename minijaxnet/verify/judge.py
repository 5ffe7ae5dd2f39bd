"""From a problem and a point to a report."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from minijaxnet.verify import finite_differences
from minijaxnet.verify.algebra import algebra, verdict
from minijaxnet.verify.compared import Compared, leaf_report
from minijaxnet.verify.compilation import Compiled
from minijaxnet.verify.evaluation import Evaluation, evaluate
from minijaxnet.verify.hints import explained, not_converged
from minijaxnet.verify.placement import placement
from minijaxnet.verify.precision import precision
from minijaxnet.verify.report import GradReport, Verdict
from minijaxnet.verify.rounding import Rounding, measure_rounding, tolerances
from minijaxnet.verify.transforms import agrees, linearity, repeatable, transforms

_OTHER_VALUE = "the rule's own forward pass is not the function's: differentiated, its value is another"
_NOT_PASSED = Verdict("unchecked", "the algebra did not pass")


def judge(compiled: Compiled, leaves: Sequence[Any], seed: int, tell: Callable[[str], None]) -> GradReport:
    """Pass all verdicts but that on the structure, which has been passed when there is a problem."""
    with jax.enable_x64(True), jax.disable_jit(False):
        tell("comparing in float64")
        at = evaluate(compiled, leaves, seed, tell)
        seen = measure_rounding(at)
        judged = _by_finite_differences if compiled.problem.reference is None else _by_reference
        return judged(at, seen)


def _by_reference(at: Evaluation, seen: Rounding) -> GradReport:
    problem, first = at.problem, at.problem.n_values
    verdicts, hints = _structure(), []
    at, results = algebra(at, seen)
    compared = results[first:]
    if problem.n_values:
        verdicts["primal"] = _primal(results[:first])
        if verdicts["primal"].state == "fail":
            hints.append(_OTHER_VALUE if problem.cotangents else "the value by hand is not the loss's")
    verdicts["algebra"] = verdict(at, seen, compared)
    good = verdicts["algebra"].state == "pass"
    ratios: list[float | None] = [None] * len(compared)
    behaviour, not_linear = _behaviour(at, seen, good=good)
    if not good and not not_linear:  # of a rule that is not linear, the numbers tell of one cotangent alone
        at.tell("looking for the slip")
        hints += not_converged(at, compared) or explained(at, compared)
        hints += _surrogate(at, compared, explained=any("right up to" not in hint for hint in hints))
    verdicts["precision"], ratios = precision(at, seen, compared) if good else (_NOT_PASSED, ratios)
    verdicts["oracle"] = finite_differences.oracle(at)
    verdicts |= behaviour
    hints += not_linear
    known = verdicts["algebra"].state != "unchecked"
    if (found := placement(at, compared, good=good)) is not None:
        verdicts["placement"] = found[0]
        hints += found[1]
    further = (
        ("forward", problem.forward, "forward mode", []),
        ("second order", problem.second_order, "the gradient's own derivative", problem.names),
    )
    for name, rules, what, names in further:
        if rules is not None:
            verdicts[name] = agrees(at, rules, what, names) if known else _NOT_PASSED
            if verdicts[name].state == "fail" and any(c.acquitted for c in compared):
                verdicts[name] = Verdict("unchecked", f"{what}: autodiff is suspect here")
    if good and verdicts.get("second order", _NOT_PASSED).state == "fail":
        hints.append("second order only is wrong, value and gradient are right: the rule hides a dependence")
    return _reported(at, verdicts, compared, ratios, hints)


def _by_finite_differences(at: Evaluation, seen: Rounding) -> GradReport:
    """Where there is no other reference."""
    at = at._replace(tolerances=tolerances(at, seen))
    verdicts, hints = _structure(), []
    at.tell("finite differences")
    compared, verdicts["algebra"] = finite_differences.by_finite_differences(at)
    if verdicts["algebra"].state == "fail":
        hints += not_converged(at, compared)
    if at.problem.forward is not None:
        verdicts["primal"] = agrees(at, at.problem.forward, "the value")
    verdicts["precision"] = Verdict("unchecked", at.problem.why_no_reference)
    behaviour, not_linear = _behaviour(at, seen, good=verdicts["algebra"].state == "pass")
    return _reported(at, verdicts | behaviour, compared, [None] * len(compared), hints + not_linear)


def _structure() -> dict[str, Verdict]:
    return {"structure": Verdict("pass", "the gradient is like its argument")}


def _behaviour(at: Evaluation, seen: Rounding, *, good: bool) -> tuple[dict[str, Verdict], list[str]]:
    """The verdicts on what a rule has to do beside having the right values; and a hint if it is not linear."""
    verdicts, hints = {}, []
    if (found := repeatable(at, seen)) is not None:
        verdicts["repeatable"] = found
    if at.problem.cotangents:
        verdicts["linearity"], hint = linearity(at)
        hints += [hint] if hint else []
    verdicts["transforms"] = transforms(at) if good else _NOT_PASSED
    return verdicts, hints


def _reported(
    at: Evaluation,
    verdicts: dict[str, Verdict],
    compared: Sequence[Compared],
    ratios: Sequence[float | None],
    hints: Sequence[str],
) -> GradReport:
    reports = [leaf_report(*each) for each in zip(compared, at.dtypes(), ratios, strict=True)]
    return GradReport(verdicts, {report.path: report for report in reports}, tuple(hints), at.problem.subject)


def _primal(results: Sequence[Compared]) -> Verdict:
    for result in results:
        same = (result.hand == result.reference) | (np.isnan(result.hand) & np.isnan(result.reference))
        if (result.wrong | (result.undecided & ~same)).any():
            k = result.worst
            return Verdict("fail", f"the value is {result.hand[k]:.12g}, the function's own {result.reference[k]:.12g}")
    return Verdict("pass", "the value is the function's own")


def _surrogate(at: Evaluation, compared: Sequence[Compared], *, explained: bool) -> list[str]:
    """Whether a rule within a function gives a slope to what has none: on purpose, then, unless a slip explains it."""
    flat = [c for c in compared if c.wrong.any() and not c.reference[c.wrong].any()]
    flat = [c.name for c in flat if not (explained and c.reference.any())]
    if not at.problem.cotangents or not flat:
        return []
    why = f"the function is flat in {', '.join(flat)} where the rule is not"
    return [f"{why}: if it is meant as a surrogate, such as a straight-through estimate, pass reference="]
