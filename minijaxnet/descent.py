"""Descents: pairs of pure functions that start, and take one step.

``init`` makes a state from parameters; ``step`` takes a state and a batch, and returns the next state with the loss and
the gradient norm before the step. ``gradient_descent`` and ``optax_descent`` make such pairs, and you can write your
own.
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
from minijaxnet._types import DTypeLike, Objective, Params, PyTree

OPTIMIZER = "state.optimizer, compared with that from the descent's init"


class DescentState(NamedTuple):
    """The state of a descent.

    Attributes:
        params: the parameters, a pytree of floating arrays.
        optimizer: the descent's own state, opaque to all other code.
        step: steps taken so far, int32.
        key: a ``jax.random.key`` if the objective takes one, else None.
    """

    params: Params
    optimizer: Any
    step: jax.Array
    key: jax.Array | None = None


class StepInfo(NamedTuple):
    """The loss and the gradient norm before a step, and whether the step may be taken.

    Attributes:
        loss: the objective's value, a scalar.
        gradient_norm: the Euclidean norm of its gradient, a scalar.
        aux: the further output of the objective; ``()`` if there is none.
        accepted: whether the step may be taken; ``()`` if it may whenever loss and gradient norm are finite.
    """

    loss: jax.Array
    gradient_norm: jax.Array
    aux: PyTree = ()
    accepted: Any = ()


Step = Callable[[DescentState, Any], tuple[DescentState, StepInfo]]


class Descent(NamedTuple):
    """A pair of functions, one that starts and one that takes a step; see ``gradient_descent`` and ``optax_descent``.

    Attributes:
        init: ``init(params, key=None) -> DescentState``.
        step: ``step(state, batch) -> (DescentState, StepInfo)``. It is the key by which compiled programs are reused,
            so equal steps should compare equal (a module's function, or a frozen dataclass with ``__call__``). It may
            have a method ``is_ready(state)``: where it returns False, a loop takes no step, and the descent has
            diverged.
    """

    init: Callable[..., DescentState]
    step: Step


def check_descent(descent: Any, name: str = "descent") -> None:
    """Check that this is a descent.

    >>> check_descent(None)
    Traceback (most recent call last):
    TypeError: descent: got NoneType; expected a Descent(init, step)
    """
    if not hasattr(descent, "init") or not hasattr(descent, "step"):
        raise TypeError(f"{name}: got {type(descent).__name__}; expected a Descent(init, step)")
    check_callable(f"{name}.step", descent.step)


def check_state(state: Any) -> None:
    """Check that this is the state of a descent."""
    if not isinstance(state, DescentState):
        raise TypeError(f"state: got {type(state).__name__}; expected a DescentState, such as descent.init(params)")


def is_ready(step: Any, state: DescentState) -> Any:
    """Whether a step can be taken from a state; True if the step has no ``is_ready``."""
    return getattr(step, "is_ready", lambda _: True)(state)


def gradient_descent(objective: Objective, learning_rate: float | jax.Array, *, has_aux: bool = False) -> Descent:
    """Gradient descent: ``params <- params - learning_rate * gradient``.

    The rate is part of the state, in ``state.optimizer``, so all rates share one compiled step. The update is made in
    each parameter's dtype, and clipped to the range of that dtype.

    Args:
        objective: ``f(params, batch)``, a scalar; or ``f(params, batch, key)`` for a state with a key, with
            ``fold_in(key, step)`` as key. A number that it reads from outside (a global, an attribute, what it closes
            over) is a constant of the compiled program; ``descend`` and ``fit`` compile again when it has changed.
        learning_rate: a positive number; may be traced.
        has_aux: whether the objective returns ``(loss, aux)``.

    Returns:
        A descent.

    Raises:
        TypeError: the objective is not a function; the learning rate is not a number; on ``step``, the objective does
            not return a scalar.
        ValueError: the learning rate is negative, zero, NaN, infinite, or not a scalar.

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

    def init(params: Params, key: jax.Array | None = None) -> DescentState:
        return start(params, lambda _: rate, key)

    return Descent(init, GradientStep(objective, has_aux))


@dataclass(frozen=True)
class GradientStep:
    """One step of gradient descent; equal for equal objectives, so that all rates share one compiled program."""

    objective: Objective
    has_aux: bool

    def is_ready(self, state: DescentState) -> jax.Array:
        """Whether the learning rate is finite; a traced one is not checked before."""
        return jnp.isfinite(_rate(state))

    def __call__(self, state: DescentState, batch: PyTree) -> tuple[DescentState, StepInfo]:
        """Take the step."""
        rate = _rate(state)
        loss, aux, gradient = gradient_of(self.objective, self.has_aux, state, batch)

        def downhill(weight: jax.Array, derivative: jax.Array) -> jax.Array:
            range_ = jnp.finfo(weight.dtype)
            step = _within(rate, weight.dtype) * derivative
            return lax.clamp(range_.min, weight - step, range_.max)

        params = jax.tree.map(downhill, state.params, gradient)
        state = state._replace(params=params, step=state.step + 1)
        return state, StepInfo(loss, l2_norm(gradient), aux)


def _rate(state: DescentState) -> jax.Array:
    rate = state.optimizer
    check_like(rate, jax.ShapeDtypeStruct((), getattr(rate, "dtype", jnp.float32)), OPTIMIZER)
    return rate


def _within(rate: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The rate in a parameter's dtype, clipped to its largest number, since infinity * 0 would be NaN."""
    if jnp.finfo(dtype).max < jnp.finfo(rate.dtype).max:
        rate = jnp.minimum(rate, float(jnp.finfo(dtype).max))
    return rate.astype(dtype)


def start(params: Params, optimizer_init: Callable[[Any], Any], key: jax.Array | None) -> DescentState:
    """Make the first state of a descent."""
    params = floating_arrays(params, "params")
    return DescentState(params, optimizer_init(params), jnp.int32(0), key)


def arguments(state: DescentState, batch: PyTree) -> tuple[Any, ...]:
    """The arguments of the objective after the parameters."""
    return (batch,) if state.key is None else (batch, jax.random.fold_in(state.key, state.step))


def gradient_of(objective: Objective, has_aux: bool, state: DescentState, batch: PyTree) -> tuple[jax.Array, Any, Any]:
    """The loss, aux and gradient of the objective; their types are checked while it is traced."""

    def checked(params: Params) -> tuple[Any, Any]:
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
    """The rate as a strongly typed scalar of JAX's default floating dtype, so that all rates share one program."""
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
