"""What a rule has to do beside having the right values: be linear, repeatable, bear vmap, and differentiate on."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from minijaxnet.verify.compared import compare
from minijaxnet.verify.compilation import compile_problem, in_short, mapped_axes, stacked
from minijaxnet.verify.evaluation import Evaluation, evaluate, on_host, outputs
from minijaxnet.verify.kinks import excused_at_kinks
from minijaxnet.verify.problem import Flat, Problem
from minijaxnet.verify.report import Verdict
from minijaxnet.verify.rounding import (
    Rounding,
    distance,
    enlarged_tolerances,
    measure_rounding,
    tolerances,
)


@np.errstate(invalid="ignore", over="ignore")  # infinite slopes
def linearity(at: Evaluation) -> tuple[Verdict, str]:
    """``bwd(c g) = c bwd(g)``, ``bwd(0) = 0``, ``bwd(g + h) = bwd(g) + bwd(h)``; and a hint where not."""
    where, hint = _not_linear(at, 0)
    if not where:
        return Verdict("pass", "linear in the cotangent: scaled, zero, summed"), ""
    if at.reference and _not_linear(at, 1)[0]:
        return Verdict("unchecked", f"{where}; nor is the reference linear in the cotangent"), ""
    return Verdict("fail", where), hint


def _not_linear(at: Evaluation, which: int) -> tuple[str, str]:
    """Where the rule by hand, or the reference for which = 1, is not linear, and a hint; "" where it is."""
    problem, first = at.problem, at.problem.n_values
    draw = np.random.default_rng(at.seed + 1)
    cotangents = [at.wide[k] for k in problem.cotangents]
    others = [draw.normal(size=c.shape) for c in cotangents]
    plain = (at.hand, at.reference)[which][first:]

    def back(cotangents: Sequence[np.ndarray]) -> list[np.ndarray]:
        leaves = list(at.wide)
        for k, cotangent in zip(problem.cotangents, cotangents, strict=True):
            leaves[k] = np.asarray(cotangent, at.wide[k].dtype)
        return outputs(at.compiled, leaves)[which][first:]

    def unequal(got: Sequence[np.ndarray], expected: Sequence[np.ndarray], scale: float) -> str:
        for name, a, b, tolerance in zip(problem.names, got, expected, at.tolerances[first:], strict=True):
            if _unlike(a, b, scale * tolerance):
                return name
        return ""

    scaled = {factor: back([factor * c for c in cotangents]) for factor in (-1.0, 2.0**10, 2.0**-10)}
    for factor, got in scaled.items():
        if name := unequal(got, [factor * x for x in plain], abs(factor)):
            hint = "the backward rule is not linear in the cotangent: clipped, squashed, a power, or a term without it?"
            if not any(unequal(results, plain, 1.0) for results in scaled.values()):
                hint = "the backward rule ignores the cotangent: multiply by it"
            return f"{factor:g} times the cotangent does not give {factor:g} times {name}", hint
    if name := unequal(back([0 * c for c in cotangents]), [0 * x for x in plain], 1.0):
        return f"a cotangent of zeros does not give zeros in {name}", "a term of the backward rule lacks the cotangent"
    total = back([a + b for a, b in zip(cotangents, others, strict=True)])
    if name := unequal(total, [a + b for a, b in zip(plain, back(others), strict=True)], 8.0):
        hint = "the backward rule is not linear in the cotangent"
        return f"the sum of two cotangents does not give the sum of two gradients in {name}", hint
    return "", ""


def repeatable(at: Evaluation, seen: Rounding) -> Verdict | None:
    """Whether the rule returns the same again; None where it does, to the bit."""
    most = [float(np.max(x, initial=0.0)) for x in seen.unrepeatable]
    if not any(most):
        return None
    names = [*["the value"] * at.problem.n_values, *at.problem.names]
    coarsest = max(float(jnp.finfo(dtype).eps) for dtype in at.dtypes())
    size, name = max(zip(most, names, strict=True))
    largest = max(float(np.max(np.abs(x), initial=0.0, where=np.isfinite(x))) for x in at.hand)
    what = f"called again with the same arguments it differs by up to {size:.1e} in {name}"
    if size <= 64 * coarsest * largest:
        return Verdict("unchecked", f"{what}: taken for rounding")
    return Verdict("fail", f"{what}, and that was allowed for")


def transforms(at: Evaluation) -> Verdict:
    """Is the rule the same under vmap?"""
    problem, first, compiled = at.problem, at.problem.n_values, at.compiled
    if isinstance(compiled.mapped, str):
        return Verdict("unchecked", compiled.mapped)
    draw = np.random.default_rng(at.seed + 2)
    near = [
        x * (1 + 2.0**-10 * draw.choice((-1.0, 1.0), size=x.shape)) if moved else x
        for x, moved in zip(at.wide, problem.moved, strict=True)
    ]
    axes = mapped_axes(compiled.hand, at.wide)
    together = compiled.mapped(stacked(at.wide, near, axes))
    for k, alone in enumerate((at.hand, outputs(compiled, near)[0])):
        got = on_host(problem, [x[k] for x in together])
        for i, name in enumerate(problem.names, start=first):
            if _unlike(got[i], alone[i], at.tolerances[i]):
                return Verdict("fail", f"under vmap it returns something else in {name}")
    limit = ", vmap over floats alone: its keys draw other numbers there" if None in axes else ""
    return Verdict("pass", f"the same alone and under vmap, both jitted{limit}")


def agrees(at: Evaluation, rules: tuple[Flat, Flat], what: str, names: Sequence[str] = ()) -> Verdict:
    """Whether two further rules are the same function, as the gradients were asked to be; names of their results."""
    at.tell(f"comparing {what}")
    problem = Problem(*rules, at.problem.objective, at.problem.paths, at.problem.moved, [], 0, [])
    try:
        further = evaluate(compile_problem(problem, at.leaves, pair_only=True), at.leaves, at.seed, at.tell)
    except Exception as error:
        return Verdict("unchecked", f"{what}: {in_short(error)}")
    count = len(further.hand)
    names = names if len(names) == count else [f"result {i}" for i in range(count)]

    def compared(at: Evaluation) -> list[Any]:
        return [compare(*each) for each in zip(names, at.hand, at.reference, at.tolerances, strict=True)]

    seen = measure_rounding(further)
    further = further._replace(tolerances=tolerances(further, seen))
    results = compared(further)
    if any(result.wrong.any() for result in results):
        further = further._replace(tolerances=enlarged_tolerances(further, seen))
        results = compared(further)
    if any(result.wrong.any() for result in results):
        results = excused_at_kinks(further, results)
    for result in results:
        if result.wrong.any():
            k = result.worst
            values = f"by hand {result.hand[k]:.10g}, by autodiff {result.reference[k]:.10g}"
            return Verdict("fail", f"{what} is wrong in {result.name}{list(k) if k else ''}: {values}")
    if any(result.undecided.any() for result in results):
        return Verdict("unchecked", f"{what}: autodiff's own is not finite here")
    return Verdict("pass", f"{what} is equal to rounding")


def _unlike(got: np.ndarray, expected: np.ndarray, tolerance: np.ndarray) -> bool:
    """Whether two results of the same rule differ by more than rounding, generously taken."""
    slack = 8 * tolerance + 1e-9 * np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected))
    return bool((distance(got, expected) > slack).any() or (np.isfinite(got) != np.isfinite(expected)).any())
