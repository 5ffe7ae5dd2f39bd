"""What else a rule has to be: linear in the cotangent, repeatable, right under vmap, and differentiable itself."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet.verify.algebra import with_enlarged_roundings
from minijaxnet.verify.comparison import compare_all
from minijaxnet.verify.compilation import compile_problem, in_short, mapped_axes, stacked
from minijaxnet.verify.evaluation import Arrays, Evaluation, evaluate, on_host, outputs
from minijaxnet.verify.problem import Flat, Problem
from minijaxnet.verify.report import Verdict
from minijaxnet.verify.rounding import Rounding, distance, measure_rounding, tolerances
from minijaxnet.verify.widening import largest


@np.errstate(invalid="ignore", over="ignore")  # infinite gradients
def linearity(at: Evaluation) -> tuple[Verdict, list[str]]:
    """``bwd(c g) = c bwd(g)``, ``bwd(0) = 0``, ``bwd(g + h) = bwd(g) + bwd(h)``; and a hint where not."""
    what, hint = _not_linear(at, 0)
    if not what:
        return Verdict("pass", "linear in the cotangent: scaled, zero, summed"), []
    if at.reference and _not_linear(at, 1)[0]:
        return Verdict("unchecked", f"{what}; nor is the reference linear in the cotangent"), []
    return Verdict("fail", what), [hint]


def _not_linear(at: Evaluation, which: int) -> tuple[str, str]:
    """Where the rule by hand, or the reference for which = 1, is not linear, and a hint; "" where it is."""
    problem, n = at.problem, at.problem.n_values
    start = len(at.wide) - problem.n_cotangents
    cotangents, draw = at.wide[start:], np.random.default_rng(at.seed + 1)
    others = [draw.normal(size=c.shape) for c in cotangents]
    plain = (at.hand, at.reference)[which][n:]

    def back(new: Sequence[np.ndarray]) -> Arrays:
        new = [np.asarray(x, c.dtype) for x, c in zip(new, cotangents, strict=True)]
        return outputs(at.compiled, [*at.wide[:start], *new])[which][n:]

    def unequal(got: Arrays, expected: Arrays, scale: float) -> str:
        each = zip(problem.names, got, expected, at.tolerances[n:], strict=True)
        return next((name for name, a, b, tolerance in each if _unlike(a, b, scale * tolerance)), "")

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
        what = f"the sum of two cotangents does not give the sum of two gradients in {name}"
        return what, "the backward rule is not linear in the cotangent"
    return "", ""


def repeatable(at: Evaluation, seen: Rounding) -> Verdict | None:
    """Whether the rule returns the same again; None where it does, to the bit."""
    most = list(map(largest, seen.unrepeatable))
    if not any(most):
        return None
    size, name = max(zip(most, at.names, strict=True))
    what = f"called again with the same arguments it differs by up to {size:.1e} in {name}"
    coarsest = max(float(jnp.finfo(dtype).eps) for dtype in at.dtypes())
    if size <= 64 * coarsest * max(map(largest, at.hand)):
        return Verdict("unchecked", f"{what}: taken for rounding")
    return Verdict("fail", f"{what}, and that was allowed for")


def transforms(at: Evaluation) -> Verdict:
    """Is the rule the same under vmap?"""
    problem, compiled = at.problem, at.compiled
    if compiled.mapped.program is None:
        return Verdict("unchecked", compiled.mapped.why_not)
    draw, near = np.random.default_rng(at.seed + 2), list(at.wide)
    for i, x in enumerate(near[: problem.n_params]):
        near[i] = x * (1 + 2.0**-10 * draw.choice((-1.0, 1.0), size=x.shape))
    axes = mapped_axes(compiled.hand, at.wide)
    both = jax.device_get(compiled.mapped.program(stacked(at.wide, near, axes)))
    for k, alone in enumerate((at.hand, outputs(compiled, near)[0])):
        got = on_host([x[k] for x in both], problem.n_values)
        for i, name in enumerate(problem.names, start=problem.n_values):
            if _unlike(got[i], alone[i], at.tolerances[i]):
                return Verdict("fail", f"under vmap it returns something else in {name}")
    limit = ", vmap over floats alone: its keys draw other numbers there" if None in axes else ""
    return Verdict("pass", f"the same alone and under vmap, both jitted{limit}")


def same_function(at: Evaluation, rules: tuple[Flat, Flat], what: str, names: Sequence[str] = ()) -> Verdict:
    """Whether two further rules are the same function, compared like the gradients; names of their results."""
    at.tell(f"comparing {what}")
    problem = Problem(*rules, at.problem.objective, at.problem.paths, at.problem.n_params, names=[])
    try:
        further = evaluate(compile_problem(problem, at.leaves, pair_only=True), at.leaves, at.seed, at.tell)
    except Exception as error:
        return Verdict("unchecked", f"{what}: {in_short(error)}")
    count, seen = len(further.hand), measure_rounding(further)
    names = list(names) if len(names) == count else [f"result {i}" for i in range(count)]
    further = further._replace(tolerances=tolerances(further, seen))
    results = compare_all(further, names)
    if any(result.wrong.any() for result in results):
        _, results = with_enlarged_roundings(further, seen, names)
    for result in results:
        if result.wrong.any():
            k = result.worst
            found = f"by hand {result.hand[k]:.10g}, by autodiff {result.reference[k]:.10g}"
            return Verdict("fail", f"{what} is wrong in {result.name}{list(k) if k else ''}: {found}")
    if any(result.undecided.any() for result in results):
        return Verdict("unchecked", f"{what}: autodiff's own is not finite here")
    return Verdict("pass", f"{what} is equal to rounding")


def _unlike(got: np.ndarray, expected: np.ndarray, tolerance: np.ndarray) -> bool:
    """Whether two results of the same rule differ by clearly more than rounding."""
    slack = 8 * tolerance + 1e-9 * largest(expected)
    return bool((distance(got, expected) > slack).any() or (np.isfinite(got) != np.isfinite(expected)).any())
