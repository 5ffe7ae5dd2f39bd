"""What a rule has to do beside having the right values: be linear, bear transforms, and differentiate on."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from minijaxnet.verify.algebra import compare, excused_at_kinks
from minijaxnet.verify.evidence import conventions, distance, gather, in_short, pair_of, to_host, trace
from minijaxnet.verify.interpret import equations
from minijaxnet.verify.question import Flat, Look, mapped_axes, stacked
from minijaxnet.verify.report import Verdict

# Called eagerly, each operation is compiled by itself, some 30 ms each.
_MOST_EAGER = 40


@np.errstate(invalid="ignore", over="ignore")  # infinite slopes
def linearity(look: Look) -> tuple[Verdict, str]:
    """``bwd(c g) = c bwd(g)``, ``bwd(0) = 0``, ``bwd(g + h) = bwd(g) + bwd(h)``; and a hint where not."""
    question, first = look.question, look.question.n_values
    draw = np.random.default_rng(look.seed + 1)
    cotangents = [look.wide[k] for k in question.cotangents]
    others = [draw.normal(size=c.shape) for c in cotangents]
    plain = look.evidence.hand[first:]

    def back(cotangents: Sequence[np.ndarray]) -> list[np.ndarray]:
        leaves = list(look.wide)
        for k, cotangent in zip(question.cotangents, cotangents, strict=True):
            leaves[k] = np.asarray(cotangent)
        return look.examiner.pair(leaves)[0][first:]

    def unequal(got: Sequence[np.ndarray], expected: Sequence[np.ndarray], scale: float) -> str:
        for i, (name, a, b) in enumerate(zip(question.names, got, expected, strict=True)):
            if _unlike(a, b, scale * look.evidence.tolerance(first + i)):
                return name
        return ""

    scaled = {factor: back([factor * c for c in cotangents]) for factor in (-1.0, 2.0**10, 2.0**-10)}
    for factor, got in scaled.items():
        if name := unequal(got, [factor * x for x in plain], abs(factor)):
            hint = "the backward rule is not linear in the cotangent: clipped, squashed, a power, or a term without it?"
            if not any(unequal(results, plain, 1.0) for results in scaled.values()):
                hint = "the backward rule ignores the cotangent: multiply by it"
            return Verdict("fail", f"{factor:g} times the cotangent does not give {factor:g} times {name}"), hint
    if name := unequal(back([0 * c for c in cotangents]), [0 * x for x in plain], 1.0):
        hint = "a term of the backward rule lacks the cotangent"
        return Verdict("fail", f"a cotangent of zeros does not give zeros in {name}"), hint
    total = back([a + b for a, b in zip(cotangents, others, strict=True)])
    if name := unequal(total, [a + b for a, b in zip(plain, back(others), strict=True)], 8.0):
        hint = "the backward rule is not linear in the cotangent"
        return Verdict("fail", f"the sum of two cotangents does not give the sum of two gradients in {name}"), hint
    return Verdict("pass", "linear in the cotangent: scaled, zero, summed"), ""


def transforms(look: Look) -> Verdict:
    """Is the rule the same called eagerly, and under vmap?"""
    question, first, pair = look.question, look.question.n_values, look.examiner.pair
    if isinstance(look.examiner.stacked, str):
        return Verdict("unchecked", look.examiner.stacked)

    def unequal(got: Sequence[Any], expected: Sequence[np.ndarray]) -> str:
        for i, name in enumerate(question.names, start=first):
            if _unlike(to_host(got[i]), expected[i], look.evidence.tolerance(i)):
                return name
        return ""

    count = sum(1 for _ in equations(pair.hand.program))
    if count <= _MOST_EAGER and (name := unequal(question.hand(*jax.device_put(look.wide)), look.evidence.hand)):
        return Verdict("fail", f"called without jit it returns something else in {name}")
    draw = np.random.default_rng(look.seed + 2)
    near = [
        x * (1 + 2.0**-10 * draw.choice((-1.0, 1.0), size=x.shape)) if moved else x
        for x, moved in zip(look.wide, question.moved, strict=True)
    ]
    axes = mapped_axes(pair.hand, look.wide)
    together = look.examiner.stacked(*stacked(look.wide, near, axes))
    for k, alone in enumerate((look.evidence.hand, pair(near)[0])):
        if name := unequal([x[k] for x in together], alone):
            return Verdict("fail", f"under vmap it returns something else in {name}")
    limit = ", vmap over floats alone: its keys draw other numbers there" if None in axes else ""
    if count > _MOST_EAGER:
        eager = f"not called eagerly: {count} operations to compile one by one"
        return Verdict("pass", f"jit and vmap agree ({eager}){limit}")
    return Verdict("pass", f"eager, jit and vmap agree{limit}")


def agrees(look: Look, rules: tuple[Flat, Flat], what: str, names: Sequence[str] = ()) -> Verdict:
    """Whether two further rules are the same function, as the gradients were asked to be; names of their results."""
    try:
        pair = pair_of(*(trace(rule, look.wide, look.leaves) for rule in rules), moved=look.question.moved)
        evidence = gather(pair, look.wide, look.seed)
    except Exception as error:
        return Verdict("unchecked", f"{what}: {in_short(error)}")
    count = len(evidence.hand)
    names = names if len(names) == count else [f"result {i}" for i in range(count)]
    results = [compare(evidence, i, name) for i, name in enumerate(names)]
    if any(result.wrong.any() for result in results):
        bounds = conventions(pair, look.wide, evidence)
        results = [excused_at_kinks(result, *bound) for result, bound in zip(results, bounds, strict=True)]
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
