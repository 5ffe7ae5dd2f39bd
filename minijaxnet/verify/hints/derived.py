"""The program of a gradient, arranged as people write it: what follows from a function's value by a simple formula."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from minijaxnet.verify.evaluation import Evaluation
from minijaxnet.verify.hints.changes import is_real
from minijaxnet.verify.interpreter import Hooks, bind, interpret

_RULES: dict[str, Callable[..., tuple[Any, ...]]] = {
    "div": lambda g, y, a, b: (_summed_to(g / b, a), -_summed_to(g * y, b) / b),
    "tanh": lambda g, y, a: (g * (1 - y**2),),
    "logistic": lambda g, y, a: (g * (y * (1 - y)),),
    "sqrt": lambda g, y, a: (g / (2 * y),),
}


def by_people(at: Evaluation) -> Any:
    """That program, from constants and arguments to gradients; None where it can't be had."""

    def instead(eqn: Any, operands: list[Any]) -> list[Any] | None:
        if eqn.primitive.name not in _RULES or not is_real(eqn.outvars[0]):
            return None
        function = jax.custom_vjp(lambda *operands: bind(eqn, list(operands))[0])

        def forward(*operands: Any) -> tuple[Any, Any]:
            value = function(*operands)
            return value, (value, *operands)

        function.defvjp(forward, lambda kept, g: _RULES[eqn.primitive.name](g, *kept))
        return [function(*operands)]

    try:
        return jax.make_jaxpr(gradients(at, Hooks(instead)))(at.compiled.objective.consts, at.wide)
    except Exception:  # no reverse mode through a loop: no hint is lost
        return None


def gradients(at: Evaluation, hooks: Hooks) -> Callable[[Any, Any], list[Any]]:
    """The gradients of the objective, some of it done otherwise, as a function of its constants and the arguments."""

    def gradients(consts: Any, leaves: Any) -> list[Any]:
        value = lambda *leaves: interpret(at.compiled.objective.program, consts, leaves, hooks=hooks)[0]  # noqa: E731
        return list(jax.grad(value, tuple(range(at.problem.n_params)))(*leaves))

    return gradients


def _summed_to(x: Any, like: Any) -> Any:
    """Summed over the axes along which something was broadcast."""
    axes = tuple(a for a, n in enumerate(x.shape) if like.ndim == 0 or like.shape[a] != n)
    return jnp.sum(x, axes, keepdims=like.ndim > 0) if axes else x
