"""An objective with a hand-derived gradient instead of autodiff's."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from minijaxnet._checks import check_callable
from minijaxnet._trees import structure_difference
from minijaxnet._types import Objective, Params, PyTree, ValueAndGradient


def with_gradient(objective: Objective, value_and_gradient: ValueAndGradient) -> Objective:
    """Return the same objective, whose gradient with respect to the params is computed by your rule.

    Everything that differentiates it runs the rule: ``jax.grad``, a descent, Hessian-vector products, ``jax.hessian``.
    The rule computes loss and gradient in one call. A derivative with respect to the batch is taken by autodiff of the
    plain objective.

    The rule returns ``dL/dparams``, so the cotangent ``g`` of the loss only scales it: ``g * dL/dparams``.

    Args:
        objective: ``f(params, batch)``, a scalar; further arguments, such as a key, are passed to both functions, by
            position or by name.
        value_and_gradient: ``(params, batch) -> (loss, gradient)``, the gradient of the structure of ``params``.

    Returns:
        ``f(params, batch)``. JAX refuses plain forward mode (``jax.jvp``), as for any ``custom_vjp``; forward over
        reverse works.

    Raises:
        TypeError: an argument is not a function; on differentiation, the structure, shapes or dtypes of the gradient
            differ from those of ``params``, or the loss is not a scalar.

    Example:
        >>> square = lambda weight, batch: (weight - batch) ** 2
        >>> by_hand = lambda weight, batch: (square(weight, batch), 2 * (weight - batch))
        >>> square = with_gradient(square, by_hand)
        >>> print(jax.grad(square)(3.0, 1.0), jax.grad(square, argnums=1)(3.0, 1.0))
        4.0 -4.0

    Source: the JAX documentation, "Custom derivative rules".
    """
    check_callable("with_gradient: objective", objective)
    return _WithGradient(objective, check_callable("with_gradient: value_and_gradient", value_and_gradient))


@dataclass(frozen=True)
class _WithGradient:
    """The objective that ``with_gradient`` returns; equal for an equal objective and rule."""

    objective: Callable[[Any, Any], Any]
    value_and_gradient: ValueAndGradient

    def __call__(self, params: Params, *batch: PyTree, **named: Any) -> jax.Array:
        return _with_gradient(self.objective, self.value_and_gradient, params, (batch, named))


# The arguments after the params are one tree, ``rest = (positional, named)``.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _with_gradient(objective: Any, value_and_gradient: Any, params: Params, rest: Any) -> jax.Array:
    return objective(params, *rest[0], **rest[1])


def _forward(objective: Any, value_and_gradient: Any, params: Params, rest: Any) -> tuple[jax.Array, Any]:
    perturbed = any(primal.perturbed for primal in jax.tree.leaves(rest))
    params, rest = jax.tree.map(lambda primal: primal.value, (params, rest))
    returned = value_and_gradient(params, *rest[0], **rest[1])
    if not (isinstance(returned, tuple) and len(returned) == 2 and _is_scalar(returned[0])):
        raise TypeError(
            f"value_and_gradient: got a {type(returned).__name__}; expected (loss, gradient), loss a scalar"
        )
    loss, gradient = returned
    if difference := structure_difference(gradient, params):
        raise TypeError(f"value_and_gradient: the gradient is not like params: {difference}")
    pull_back = jax.vjp(lambda rest: objective(params, *rest[0], **rest[1]), rest)[1] if perturbed else None
    return loss, (gradient, pull_back)


def _backward(objective: Any, value_and_gradient: Any, residuals: Any, cotangent: Any) -> tuple[Any, Any]:
    gradient, pull_back = residuals
    params_cotangent = jax.tree.map(lambda leaf: (cotangent * leaf).astype(leaf.dtype), gradient)
    return params_cotangent, None if pull_back is None else pull_back(cotangent)[0]


def _is_scalar(loss: Any) -> bool:
    return jax.tree.structure(loss) == jax.tree.structure(0) and jnp.shape(loss) == ()


_with_gradient.defvjp(_forward, _backward, symbolic_zeros=True)
