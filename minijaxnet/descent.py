"""Descents: what one step downhill is.

A descent is a pair of pure functions. ``init`` makes a state from parameters; ``step`` looks at one batch and
returns the next state, with the loss and the gradient that it saw on the way. Ours and optax's stand behind the same
pair, and so does any step that you write.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from minijaxnet._checks import check_callable, is_number
from minijaxnet._trees import array_type, check_arrays, check_like, floating_arrays, l2_norm

ObjectiveFn = Callable[..., Any]

OPTIMIZER = "state.optimizer, as the descent's own init makes it"


class DescentState(NamedTuple):
    """Where a descent stands.

    Attributes:
        params: the parameters, a pytree of floating arrays.
        optimizer: what the descent keeps for itself between steps; opaque to everybody else.
        step: steps taken so far, int32.
        key: a ``jax.random.key`` where the objective takes one, else None.
    """

    params: Any
    optimizer: Any
    step: jax.Array
    key: jax.Array | None = None


class StepInfo(NamedTuple):
    """What a step saw before it moved, and whether it may be taken.

    Attributes:
        loss: the objective's value, a scalar.
        gradient_norm: the Euclidean norm of its gradient, a scalar.
        aux: what the objective returned beside its loss; ``()`` if nothing.
        accepted: whether the step may be taken, where that does not follow from a finite loss and gradient norm; ``()``
            where it does.
    """

    loss: jax.Array
    gradient_norm: jax.Array
    aux: Any = ()
    accepted: Any = ()


Step = Callable[[DescentState, Any], tuple[DescentState, StepInfo]]


class Descent(NamedTuple):
    """How to start and how to step; see ``gradient_descent`` and ``optax_descent``, or write your own.

    Attributes:
        init: ``init(params, key=None) -> DescentState``.
        step: ``step(state, batch) -> (DescentState, StepInfo)``. Compiled programs are found again by it, so it should
            compare equal for equal work (a module's function, or a frozen dataclass with ``__call__``). It may have a
            method ``is_ready(state)``: where that is false, a loop takes no step, and the descent has diverged.
    """

    init: Callable[..., DescentState]
    step: Step


def check_descent(descent: Any, name: str = "descent") -> None:
    """Say what is no descent.

    >>> check_descent(None)
    Traceback (most recent call last):
    TypeError: descent: got NoneType; expected a Descent(init, step)
    """
    if not hasattr(descent, "init") or not hasattr(descent, "step"):
        raise TypeError(f"{name}: got {type(descent).__name__}; expected a Descent(init, step)")
    check_callable(f"{name}.step", descent.step)


def check_state(state: Any) -> None:
    """Say what is no state of a descent."""
    if not isinstance(state, DescentState):
        raise TypeError(f"state: got {type(state).__name__}; expected a DescentState, such as descent.init(params)")


def is_ready(step: Any, state: DescentState) -> Any:
    """Whether a step can take any step from a state at all; so it can if it does not say."""
    return getattr(step, "is_ready", lambda _: True)(state)


def gradient_descent(objective: ObjectiveFn, learning_rate: float | jax.Array, *, has_aux: bool = False) -> Descent:
    """Gradient descent: ``params <- params - learning_rate * gradient``.

    The rate lives in ``state.optimizer``, so another rate is another state of the same compiled step. The update is
    made in each parameter's dtype; where it would leave the range of that dtype it stops at the edge.

    Args:
        objective: ``f(params, batch)``, a scalar; ``f(params, batch, key)`` for a state with a key, which gets
            ``fold_in(key, step)`` at each step. A number that it reads from outside (a global, an attribute, what it
            closes over) is compiled in; ``descend`` and ``fit`` notice when it is another one, and compile anew.
        learning_rate: a positive number, also a traced one.
        has_aux: whether the objective returns ``(loss, aux)``.

    Returns:
        A descent.

    Raises:
        TypeError: an objective that is no function; a learning rate that is not a number; on ``step``, an objective
            that does not return a scalar.
        ValueError: a learning rate that is negative, zero, NaN, infinite, or not a scalar.

    Example:
        >>> squared_error = lambda weight, batch: (batch[0] * weight - batch[1]) ** 2
        >>> descent = gradient_descent(squared_error, learning_rate=0.01)
        >>> state, info = descent.step(descent.init(2.0), (3.0, 10.0))  # gradient 2 * 3 * (6 - 10) = -24
        >>> print(state.params, info.loss, info.gradient_norm)
        2.24 16.0 24.0

    Source: Cauchy, "Méthode générale pour la résolution des systèmes d'équations simultanées", 1847.
    """
    check_callable("gradient_descent: objective", objective)
    rate = _learning_rate(learning_rate)

    def init(params: Any, key: jax.Array | None = None) -> DescentState:
        return start(params, lambda _: rate, key)

    return Descent(init, GradientStep(objective, has_aux))


@dataclass(frozen=True)
class GradientStep:
    """One step of gradient descent; equal for equal objectives, so that any rate shares one compilation."""

    objective: ObjectiveFn
    has_aux: bool

    def is_ready(self, state: DescentState) -> jax.Array:
        """Whether any step can be taken: a traced rate may be infinite or NaN."""
        return jnp.isfinite(_rate(state))

    def __call__(self, state: DescentState, batch: Any) -> tuple[DescentState, StepInfo]:
        """Take it."""
        rate = _rate(state)
        loss, aux, gradient = gradient_of(self.objective, self.has_aux, state, batch)

        def downhill(weight: jax.Array, slope: jax.Array) -> jax.Array:
            range_ = jnp.finfo(weight.dtype)
            step = _within(rate, weight.dtype) * slope
            return lax.clamp(range_.min, weight - step, range_.max)

        params = jax.tree.map(downhill, state.params, gradient)
        state = state._replace(params=params, step=state.step + 1)
        return state, StepInfo(loss, l2_norm(gradient), aux)


def _rate(state: DescentState) -> jax.Array:
    rate = state.optimizer
    check_like(rate, jax.ShapeDtypeStruct((), getattr(rate, "dtype", jnp.float32)), OPTIMIZER)
    return rate


def _within(rate: jax.Array, dtype: Any) -> jax.Array:
    """The rate in a parameter's dtype; at its edge where that is narrower, since infinity * 0 would be NaN."""
    if jnp.finfo(dtype).max < jnp.finfo(rate.dtype).max:
        rate = jnp.minimum(rate, float(jnp.finfo(dtype).max))
    return rate.astype(dtype)


def start(params: Any, optimizer_init: Callable[[Any], Any], key: jax.Array | None) -> DescentState:
    """The first state of a descent."""
    params = floating_arrays(params, "params")
    return DescentState(params, optimizer_init(params), jnp.int32(0), key)


def arguments(state: DescentState, batch: Any) -> tuple[Any, ...]:
    """What the objective takes beside the parameters."""
    return (batch,) if state.key is None else (batch, jax.random.fold_in(state.key, state.step))


def gradient_of(objective: ObjectiveFn, has_aux: bool, state: DescentState, batch: Any) -> tuple[jax.Array, Any, Any]:
    """The objective's loss, aux and gradient with respect to the parameters, each checked as it is traced."""

    def checked(params: Any) -> tuple[Any, Any]:
        result = objective(params, *arguments(state, batch))
        if has_aux and not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(f"objective: got {type(result).__name__}; expected (loss, aux), as has_aux=True says")
        loss, aux = result if has_aux else (result, ())
        dtype, shape = getattr(loss, "dtype", None), getattr(loss, "shape", None)
        if dtype is None or shape != () or not jnp.issubdtype(dtype, jnp.floating):
            got = type(loss).__name__ if dtype is None else array_type(loss)
            raise TypeError(f"objective: got {got}; expected the loss, a floating scalar")
        return loss, check_arrays(aux, "objective: aux")

    (loss, aux), gradient = jax.value_and_grad(checked, has_aux=True)(state.params)
    return loss, aux, gradient


def _learning_rate(learning_rate: Any) -> jax.Array:
    """The rate as a strongly typed scalar of JAX's default floating dtype, so that all rates share one compilation."""
    where = "gradient_descent: learning_rate"
    if shape := getattr(learning_rate, "shape", ()):
        raise ValueError(f"{where}: got an array of shape {shape}; expected one number")
    if not is_number(learning_rate):
        raise TypeError(f"{where}: got {learning_rate!r}; expected a positive number (a schedule: optax_descent)")
    dtype = jnp.result_type(float)
    if not isinstance(learning_rate, Tracer):
        with np.errstate(over="ignore", under="ignore"):
            rounded = float(np.asarray(learning_rate, dtype))
        if not 0 < rounded < float("inf"):
            raise ValueError(f"{where}: got {learning_rate}; expected a positive, finite {dtype.name}")
    return jnp.asarray(learning_rate, dtype)
