"""From a question and a point to a report."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet.verify.algebra import Compared, algebra, compare, leaf_report, typical_sizes
from minijaxnet.verify.behaviour import agrees, linearity, transforms
from minijaxnet.verify.evidence import EPSILON, to_host
from minijaxnet.verify.hints import Wrong, explain, guess
from minijaxnet.verify.interpret import equations
from minijaxnet.verify.mutants import changed, cotangent_ignored
from minijaxnet.verify.oracle import Estimate
from minijaxnet.verify.placement import placement
from minijaxnet.verify.precision import precision
from minijaxnet.verify.question import REACHES, Examiner, Look, look_at
from minijaxnet.verify.report import GradReport, Verdict, listed

# Operations without a slope of their own: whoever gives them one means a surrogate.
_FLAT = ("stop_gradient", "round", "floor", "ceil", "sign")
_NOT_PASSED = Verdict("unchecked", "the algebra did not pass")


def judge(examiner: Examiner, leaves: Sequence[Any], seed: int) -> GradReport:
    """Pass all verdicts but that on the structure, which has been passed when there is a question."""
    question = examiner.question
    verdicts = {"structure": Verdict("pass", "the gradient is like its argument")}
    hints: list[str] = []
    with jax.enable_x64(True), jax.disable_jit(False):
        look = look_at(examiner, leaves, seed)
        if question.n_values:
            verdicts["primal"] = _primal(look)
            if verdicts["primal"].state == "fail":
                hints.append("the rule's own forward pass is not the function's: differentiated, its value is another")
        compared = algebra(look)
        verdicts["algebra"] = _algebra_verdict(look, compared)
        good, ratios = verdicts["algebra"].state == "pass", [None] * len(compared)
        if not good:
            hints += _explained(look, compared) + _surrogate(look, compared)
        verdicts["precision"], ratios = precision(look, compared) if good else (_NOT_PASSED, ratios)
        verdicts["oracle"] = _oracle(look)
        if question.cotangents:
            verdicts["linearity"], hint = linearity(look)
            hints += [hint] if hint else []
        verdicts["transforms"] = transforms(look) if good else _NOT_PASSED
        known = verdicts["algebra"].state != "unchecked"
        if (found := placement(look, compared, good=good)) is not None:
            verdicts["placement"] = found[0]
            hints += found[1]
        if question.forward is not None:
            verdicts["forward"] = agrees(look, question.forward, "forward mode") if known else _NOT_PASSED
        if question.curved is not None:
            what = "the gradient's own derivative"
            verdicts["second order"] = agrees(look, question.curved, what, question.names) if known else _NOT_PASSED
            if good and verdicts["second order"].state == "fail":
                hints.append("second order only is wrong, value and gradient are right: the rule hides a dependence")
    dtype = np.result_type(*look.dtypes())
    reports = [leaf_report(c, dtype, ratio) for c, ratio in zip(compared, ratios, strict=True)]
    return GradReport(verdicts, {report.path: report for report in reports}, tuple(hints))


def _primal(look: Look) -> Verdict:
    for i in range(look.question.n_values):
        result = compare(look.evidence, i, "value")
        same = (result.hand == result.reference) | (np.isnan(result.hand) & np.isnan(result.reference))
        if (result.wrong | (result.undecided & ~same)).any():
            k = result.worst
            return Verdict("fail", f"the value is {result.hand[k]:.12g}, the function's own {result.reference[k]:.12g}")
    return Verdict("pass", "the value is the function's own")


def _algebra_verdict(look: Look, compared: Sequence[Compared]) -> Verdict:
    if wrong := [c.name for c in compared if c.wrong.any()]:
        return Verdict("fail", f"wrong beyond rounding in {listed(wrong)}")
    if undecided := [c.name for c in compared if c.undecided.any()]:
        why = "autodiff suspect: the function or its gradient is not finite there, and finite differences do not settle"
        return Verdict("unchecked", f"{why}: {listed(undecided)}")
    pair = look.examiner.pair
    notes = sorted({rule.note for rule in (pair.hand, pair.reference) if rule.note})
    return Verdict("pass", "; ".join(["equal to rounding in float64, every element of every leaf", *notes]))


def _oracle(look: Look) -> Verdict:
    """Do finite differences in random directions confirm autodiff?"""
    truths = look.evidence.reference[look.question.n_values :]
    if not all(np.isfinite(truth).all() for truth in truths):
        return Verdict("unchecked", "autodiff's gradient is not finite here")
    draw, worst = np.random.default_rng(look.seed), EPSILON
    for _ in range(2):
        direction = [draw.choice((-1.0, 1.0), size=x.shape) * typical_sizes(x) for x in look.differentiated()]
        parts = [float(np.sum(truth * way)) for truth, way in zip(truths, direction, strict=True)]
        value, size = sum(parts), max(map(abs, (*parts, sum(parts))))
        sharp: list[Estimate] = []
        for reach in REACHES:
            estimate = look.slope(direction, reach)
            sharp += [estimate] if estimate.settles(size, 1e-3) else []
            if sharp and sharp[-1].agrees(value, size):
                break
        if not sharp:
            return Verdict("unchecked", "finite differences do not settle here")
        if not sharp[-1].agrees(value, size):
            program = look.examiner.objective[0].program
            flat = sorted({eqn.primitive.name for eqn in equations(program)} & set(_FLAT))
            why = f"a surrogate, by {' and '.join(flat)}" if flat else "a kink, or a surrogate"
            values = f"finite differences give {sharp[-1].value:.6g}, autodiff {value:.6g}"
            return Verdict("unchecked", f"the function's own slope seems another ({values}): {why}")
        worst = max(worst, abs(sharp[-1].value - value) / max(size, np.finfo(np.float64).tiny))
    return Verdict("pass", f"finite differences agree with autodiff to {worst:.0e}")


def _surrogate(look: Look, compared: Sequence[Compared]) -> list[str]:
    """Whether a rule within a function gives a slope to what has none: on purpose, then."""
    flat = [c.name for c in compared if c.wrong.any() and not c.reference[c.wrong].any()]
    if not look.question.cotangents or not flat:
        return []
    why = f"the function is flat in {listed(flat)} where the rule is not"
    return [f"{why}: if it is meant as a surrogate, such as a straight-through estimate, pass reference="]


def _explained(look: Look, compared: Sequence[Compared]) -> list[str]:
    """How each wrong leaf is wrong, as far as the usual slips explain it."""
    truths = {c.name: c.reference for c in compared}
    is_key = [jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in look.wide]
    named = zip(look.question.paths, look.wide, is_key, strict=True)
    arguments = {path: to_host(x) for path, x, key in named if not key}
    slips = {}
    for i, (c, params) in enumerate(zip(compared, look.differentiated(), strict=True)):
        if c.wrong.any():
            others = {name: truth for name, truth in truths.items() if name != c.name}
            slips[i] = Wrong(c.name, c.hand, c.reference, c.tolerance, c.wrong, params, others, arguments)
    sentences: dict[int, str] = {}
    ways = (
        lambda slips: cotangent_ignored(look, slips),
        lambda slips: {i: explain(slip) for i, slip in slips.items()},
        lambda slips: changed(look, slips),
        lambda slips: {i: guess(slip) for i, slip in slips.items()},
    )
    for explained in ways:
        found = explained({i: slip for i, slip in slips.items() if i not in sentences})
        sentences |= {i: sentence for i, sentence in found.items() if sentence}
    return [sentences[i] for i in sorted(sentences)]
