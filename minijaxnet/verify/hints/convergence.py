"""Had an iteration converged? If not, its implicit gradient is not yet that of what the loop returns.

Every loop that carries a state and nothing else is continued for more rounds. Where the two rules then agree, the rule
was checked too early. An unrolled loop can't be recognized.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from minijaxnet._jaxpr import inner_programs
from minijaxnet.verify.comparison import Comparison
from minijaxnet.verify.compilation import Traced, compile_all
from minijaxnet.verify.evaluation import Evaluation, on_host
from minijaxnet.verify.finite_differences import by_finite_differences
from minijaxnet.verify.interpreter import Hooks, interpret

_MORE = 300
_LOOPS = ("scan", "while")


def not_converged(at: Evaluation, compared: Sequence[Comparison]) -> list[str]:
    """A hint where more rounds of the loops make the two rules agree."""
    rules = (at.compiled.hand, at.compiled.objective)
    if not any(_outermost(rule.program) for rule in rules if rule.program is not None) or rules[0].program is None:
        return []
    try:
        moved, hand, reference = _continued(at)
    except Exception:  # a loop that can't be continued, or not differentiated then: there is no hint
        return []
    before = max(_apart(c.hand, c.reference) for c in compared)
    after = max(_apart(h, r) for h, r in zip(hand, reference, strict=True))
    if not (0 < moved and after < 0.1 * before):
        return []
    return [
        f"the iteration had not converged: one more round moves it by {moved:.1e} of its size, and {_MORE} more bring "
        f"the two gradients from {before:.1e} to {after:.1e} apart; converge further before the rule can be judged"
    ]


def _continued(at: Evaluation) -> tuple[float, list[np.ndarray], list[np.ndarray]]:
    """How far one more round moves a state, and both gradients when the loops are continued."""
    hand, objective, first = at.compiled.hand, at.compiled.objective, at.problem.n_values

    def both(hand_consts: Any, consts: Any, leaves: Sequence[Any]) -> Any:
        results, moves = _with_more(hand, hand_consts, leaves)
        value, more = _with_more(objective, consts, leaves)
        if at.problem.reference is None:
            return results, [], moves + more, value[0]
        loss = lambda *leaves: _with_more(objective, consts, leaves)[0][0]  # noqa: E731
        return results, jax.grad(loss, tuple(range(at.problem.n_params)))(*leaves), moves + more, value[0]

    (program,) = compile_all([jax.jit(both).lower(hand.consts, objective.consts, at.wide)])
    results, gradients, moves, _ = program(hand.consts, objective.consts, at.wide)
    moved, results = max(map(float, moves)), on_host(results, first)
    if at.problem.reference is not None:
        return moved, results[first:], on_host(gradients, 0)

    def value(consts: Any, leaves: Sequence[Any]) -> Any:
        return program(hand.consts, consts, leaves)[3]

    compared, _ = by_finite_differences(at._replace(compiled=at.compiled._replace(value=value), hand=results))
    return moved, [c.hand for c in compared], [c.reference for c in compared]


def _with_more(rule: Traced, consts: Any, leaves: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """The results of a program whose loops are continued, and how far one round moves each, relative to its size."""
    mine, moves = {id(eqn) for eqn in _outermost(rule.program)}, []

    def ended(eqn: Any, operands: list[Any], results: list[Any], one_more: Any) -> list[Any]:
        if id(eqn) not in mine or one_more is None:
            return results
        pairs = zip(results, one_more(results), strict=True)
        pairs = [(b - a, a) for a, b in pairs if jnp.issubdtype(a.dtype, jnp.inexact)]
        if pairs:
            step, size = (jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in xs])) for xs in zip(*pairs, strict=True))
            moves.append(lax.stop_gradient(step / size))
        return lax.fori_loop(0, _MORE, lambda _, carry: one_more(carry), results)

    return interpret(rule.program, consts, leaves, hooks=Hooks(ended=ended)), moves


def _outermost(program: Any) -> list[Any]:
    """The loops of a program that are in no other loop."""

    def found(program: Any) -> Iterator[Any]:
        for eqn in getattr(program, "jaxpr", program).eqns:
            if eqn.primitive.name in _LOOPS:
                yield eqn
            elif eqn.primitive.name != "cond":
                for inner in inner_programs(eqn):
                    yield from found(inner)

    return list(found(program))


def _apart(hand: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference, relative to the largest number."""
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.max(np.abs(reference), initial=1e-300)
        return float(np.max(np.abs(hand - reference), initial=0.0) / size)
