"""From a problem and a point to a report: all verdicts but that on the structure, which comes before."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from minijaxnet.verify.algebra import algebra, verdict
from minijaxnet.verify.comparison import Comparison, leaf_report
from minijaxnet.verify.compilation import Compiled
from minijaxnet.verify.evaluation import Evaluation, Progress, evaluate
from minijaxnet.verify.finite_differences import by_finite_differences
from minijaxnet.verify.hints import explained, not_converged
from minijaxnet.verify.oracle import oracle
from minijaxnet.verify.placement import placement
from minijaxnet.verify.precision import precision
from minijaxnet.verify.report import GradReport, Verdict
from minijaxnet.verify.rounding import Rounding, measure_rounding, tolerances
from minijaxnet.verify.transforms import linearity, repeatable, same_function, transforms

_NOT_PASSED = Verdict("unchecked", "the algebra did not pass")


def report_at(compiled: Compiled, leaves: Sequence[Any], seed: int, tell: Progress) -> GradReport:
    """The report on a problem at a point."""
    with jax.enable_x64(True), jax.disable_jit(False):
        tell("comparing in float64")
        at = evaluate(compiled, leaves, seed, tell)
        by = _by_finite_differences if compiled.problem.reference is None else _by_autodiff
        verdicts, compared, ratios, hints = by(at, measure_rounding(at))
    leaves_found = [leaf_report(*each) for each in zip(compared, at.dtypes(), ratios, strict=True)]
    structure = {"structure": Verdict("pass", "the gradient is like its argument")}
    return GradReport(structure | verdicts, {leaf.path: leaf for leaf in leaves_found}, hints, at.problem.subject)


Found = tuple[dict[str, Verdict], list[Comparison], list[float | None], list[str]]


def _by_autodiff(at: Evaluation, seen: Rounding) -> Found:
    """Verdicts, gradients compared, ratios of rounding errors, and hints."""
    problem, n = at.problem, at.problem.n_values
    verdicts, hints = {}, []
    at, results = algebra(at, seen)
    compared = results[n:]
    if n:
        verdicts["primal"] = _primal(results[:n])
        if verdicts["primal"].state == "fail":
            of_rule = "the rule's own forward pass is not the function's: differentiated, its value is another"
            hints.append(of_rule if problem.n_cotangents else "the value by hand is not the loss's")
    verdicts["algebra"] = verdict(at, seen, compared)
    good = verdicts["algebra"].state == "pass"
    behaviour, not_linear = _behaviour(at, seen, good=good)
    if not good and not not_linear:  # of a rule that is not linear, the numbers are those of one cotangent
        at.tell("looking for the slip")
        hints += not_converged(at, compared) or explained(at, compared)
        hints += _surrogate(at, compared, has_hint=any("right up to" not in hint for hint in hints))
    ratios: list[float | None] = [None] * len(compared)
    verdicts["precision"], ratios = precision(at, seen, compared) if good else (_NOT_PASSED, ratios)
    verdicts["oracle"] = oracle(at)
    verdicts |= behaviour
    hints += not_linear
    if (placed := placement(at, compared, good=good)) is not None:
        verdicts["placement"] = placed[0]
        hints += placed[1]
    for name, rules, what, names in (
        ("forward", problem.forward, "forward mode", []),
        ("second order", problem.second_order, "the gradient's own derivative", problem.names),
    ):
        if rules is not None:
            decided = verdicts["algebra"].state != "unchecked"
            verdicts[name] = same_function(at, rules, what, names) if decided else _NOT_PASSED
            if verdicts[name].state == "fail" and any(c.autodiff_suspect for c in compared):
                verdicts[name] = Verdict("unchecked", f"{what}: autodiff is suspect here")
    if good and verdicts.get("second order", _NOT_PASSED).state == "fail":
        hints.append("second order only is wrong, value and gradient are right: the rule hides a dependence")
    return verdicts, compared, ratios, hints


def _by_finite_differences(at: Evaluation, seen: Rounding) -> Found:
    """The same where there is no other reference."""
    at = at._replace(tolerances=tolerances(at, seen))
    at.tell("finite differences")
    compared, algebra = by_finite_differences(at)
    verdicts = {"algebra": algebra}
    hints = not_converged(at, compared) if algebra.state == "fail" else []
    if at.problem.forward is not None:
        verdicts["primal"] = same_function(at, at.problem.forward, "the value")
    verdicts["precision"] = Verdict("unchecked", at.problem.why_no_reference)
    behaviour, not_linear = _behaviour(at, seen, good=algebra.state == "pass")
    return verdicts | behaviour, compared, [None] * len(compared), hints + not_linear


def _behaviour(at: Evaluation, seen: Rounding, *, good: bool) -> tuple[dict[str, Verdict], list[str]]:
    """The verdicts on what a rule has to be beside right; and a hint if it is not linear."""
    verdicts, hints = {}, []
    if (again := repeatable(at, seen)) is not None:
        verdicts["repeatable"] = again
    if at.problem.n_cotangents:
        verdicts["linearity"], hints = linearity(at)
    verdicts["transforms"] = transforms(at) if good else _NOT_PASSED
    return verdicts, hints


def _primal(results: Sequence[Comparison]) -> Verdict:
    for result in results:
        same = (result.hand == result.reference) | (np.isnan(result.hand) & np.isnan(result.reference))
        if (result.wrong | (result.undecided & ~same)).any():
            k = result.worst
            return Verdict("fail", f"the value is {result.hand[k]:.12g}, the function's own {result.reference[k]:.12g}")
    return Verdict("pass", "the value is the function's own")


def _surrogate(at: Evaluation, compared: Sequence[Comparison], *, has_hint: bool) -> list[str]:
    """A hint for a rule that has a gradient where its function has none: on purpose, unless a slip explains it."""
    flat = [c for c in compared if c.wrong.any() and not c.reference[c.wrong].any()]
    names = [c.name for c in flat if not (has_hint and c.reference.any())]
    if not at.problem.n_cotangents or not names:
        return []
    why = f"the function is flat in {', '.join(names)} where the rule is not"
    return [f"{why}: if it is meant as a surrogate, such as a straight-through estimate, pass reference="]
