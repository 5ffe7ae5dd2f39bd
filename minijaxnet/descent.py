"""Descents: what one step downhill is.

A descent is a pair of pure functions. ``init`` makes a state from parameters; ``step`` looks at one batch and
returns the next state, with the loss and the slope that it saw on the way. Ours and optax's stand behind the same pair,
and so does any step that you write.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from minijaxnet.pytrees import array_type, floating_arrays, l2_norm

ObjectiveFn = Callable[..., Any]


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
    """What a step saw before it moved: a loss or a norm that is not finite means that it must not be taken.

    Attributes:
        loss: the objective's value, a scalar.
        gradient_norm: the Euclidean norm of its gradient, a scalar.
        aux: what the objective returned beside its loss; ``()`` if nothing.
    """

    loss: jax.Array
    gradient_norm: jax.Array
    aux: Any = ()


class Descent(NamedTuple):
    """How to start and how to step; see ``gradient_descent`` and ``optax_descent``, or write your own.

    Attributes:
        init: ``init(params, key=None) -> DescentState``.
        step: ``step(state, batch) -> (DescentState, StepInfo)``. Compiled programs are found again by it, so it should
            compare equal for equal work (a module's function, or a frozen dataclass with ``__call__``).
    """

    init: Callable[..., DescentState]
    step: Callable[[DescentState, Any], tuple[DescentState, StepInfo]]


def gradient_descent(objective: ObjectiveFn, learning_rate: float | jax.Array, *, has_aux: bool = False) -> Descent:
    """Gradient descent: ``params <- params - learning_rate * slope``.

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
        TypeError: a learning rate that is not a number; on ``step``, an objective that does not return a scalar.
        ValueError: a learning rate that is negative, zero, NaN, infinite, or not a scalar.

    Example:
        >>> squared_error = lambda weight, batch: (batch[0] * weight - batch[1]) ** 2
        >>> descent = gradient_descent(squared_error, learning_rate=0.01)
        >>> state, info = descent.step(descent.init(2.0), (3.0, 10.0))  # slope 2 * 3 * (6 - 10) = -24
        >>> print(state.params, info.loss, info.gradient_norm)
        2.24 16.0 24.0

    Source: Cauchy, "Méthode générale pour la résolution des systèmes d'équations simultanées", 1847.
    """
    rate = _learning_rate(learning_rate)

    def init(params: Any, key: jax.Array | None = None) -> DescentState:
        return _start(params, lambda _: rate, key)

    return Descent(init, _GradientStep(objective, has_aux))


def optax_descent(objective: ObjectiveFn, optimizer: Any, *, has_aux: bool = False) -> Descent:
    """Descent with an optimizer of optax: ``params <- params + update(slope, state.optimizer)``.

    Transformations that ask for more than the gradient (line searches, Polyak steps) get the loss, the gradient and the
    objective of the batch.

    Args:
        objective: as for ``gradient_descent``.
        optimizer: any ``optax.GradientTransformation``.
        has_aux: whether the objective returns ``(loss, aux)``.

    Returns:
        A descent. Its compiled step is found again for the same objective and the same optimizer object.

    Raises:
        ImportError: optax is not installed.
        TypeError: an optimizer without ``init`` and ``update``.

    Example:
        >>> import optax
        >>> descent = optax_descent(lambda weight, batch: (weight - batch) ** 2, optax.sgd(0.1))
        >>> print(descent.step(descent.init(1.0), 0.0)[0].params)
        0.8

    Source: DeepMind et al., "The DeepMind JAX ecosystem", 2020.
    """
    if importlib.util.find_spec("optax") is None:
        raise ImportError('optax is not installed: pip install "minijaxnet[optax]"')
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            f"optax_descent: optimizer: got {type(optimizer).__name__}; "
            "expected an optax.GradientTransformation, such as optax.sgd(0.1)"
        )

    def init(params: Any, key: jax.Array | None = None) -> DescentState:
        return _start(params, optimizer.init, key)

    return Descent(init, _OptaxStep(objective, optimizer, has_aux))


@dataclass(frozen=True)
class _GradientStep:
    """One step of gradient descent; equal for equal objectives, so that any rate shares one compilation."""

    objective: ObjectiveFn
    has_aux: bool

    def __call__(self, state: DescentState, batch: Any) -> tuple[DescentState, StepInfo]:
        rate = state.optimizer
        loss, aux, slope = _slope(self.objective, self.has_aux, state, batch)

        def downhill(weight: jax.Array, slope: jax.Array) -> jax.Array:
            range_ = jnp.finfo(weight.dtype)
            step = _within(rate, weight.dtype) * slope
            return lax.clamp(range_.min, weight - step, range_.max)

        params = jax.tree.map(downhill, state.params, slope)
        # 0 * rate is NaN for a rate that is not finite: no step can be taken with it.
        loss = loss + (0 * rate).astype(loss.dtype)
        state = state._replace(params=params, step=state.step + 1)
        return state, StepInfo(loss, l2_norm(slope), aux)


@dataclass(frozen=True)
class _OptaxStep:
    """One step of an optax optimizer."""

    objective: ObjectiveFn
    optimizer: Any
    has_aux: bool

    def __call__(self, state: DescentState, batch: Any) -> tuple[DescentState, StepInfo]:
        import optax

        def value(params: Any) -> jax.Array:
            result = self.objective(params, *_arguments(state, batch))
            return result[0] if self.has_aux else result

        loss, aux, slope = _slope(self.objective, self.has_aux, state, batch)
        updates, optimizer_state = optax.with_extra_args_support(self.optimizer).update(
            slope, state.optimizer, state.params, value=loss, grad=slope, value_fn=value
        )
        params = optax.apply_updates(state.params, updates)
        # An optimizer can make NaN of a finite slope (0 / 0 with epsilon 0): such a step must not be taken either.
        finite = jnp.isfinite(l2_norm(params))
        norm = jnp.where(finite, l2_norm(slope), jnp.nan)
        state = state._replace(params=params, optimizer=optimizer_state, step=state.step + 1)
        return state, StepInfo(loss, norm, aux)


def _within(rate: jax.Array, dtype: Any) -> jax.Array:
    """The rate in a parameter's dtype; at its edge where that is narrower, since infinity * 0 would be NaN."""
    if jnp.finfo(dtype).max < jnp.finfo(rate.dtype).max:
        rate = jnp.minimum(rate, float(jnp.finfo(dtype).max))
    return rate.astype(dtype)


def _start(params: Any, optimizer_init: Callable[[Any], Any], key: jax.Array | None) -> DescentState:
    params = floating_arrays(params, "params")
    return DescentState(params, optimizer_init(params), jnp.int32(0), key)


def _arguments(state: DescentState, batch: Any) -> tuple[Any, ...]:
    return (batch,) if state.key is None else (batch, jax.random.fold_in(state.key, state.step))


def _slope(objective: ObjectiveFn, has_aux: bool, state: DescentState, batch: Any) -> tuple[jax.Array, Any, Any]:
    """The objective's loss, aux and gradient with respect to the parameters, each checked as it is traced."""

    def checked(params: Any) -> tuple[Any, Any]:
        result = objective(params, *_arguments(state, batch))
        if has_aux and not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(f"objective: got {type(result).__name__}; expected (loss, aux), as has_aux=True says")
        loss, aux = result if has_aux else (result, ())
        dtype, shape = getattr(loss, "dtype", None), getattr(loss, "shape", None)
        if dtype is None or shape != () or not jnp.issubdtype(dtype, jnp.floating):
            got = type(loss).__name__ if dtype is None else array_type(loss)
            raise TypeError(f"objective: got {got}; expected the loss, a floating scalar")
        return loss, aux

    (loss, aux), slope = jax.value_and_grad(checked, has_aux=True)(state.params)
    return loss, aux, slope


def _learning_rate(learning_rate: Any) -> jax.Array:
    """The rate as a strongly typed scalar of JAX's default floating dtype, so that all rates share one compilation."""
    where = "gradient_descent: learning_rate"
    number = isinstance(learning_rate, int | float | np.number | np.ndarray | jax.Array)
    kind = jnp.result_type(learning_rate) if number else None
    if kind is None or not (jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)):
        raise TypeError(f"{where}: got {learning_rate!r}; expected a positive number")
    if jnp.shape(learning_rate) != ():
        raise ValueError(f"{where}: got an array of shape {jnp.shape(learning_rate)}; expected one number")
    dtype = jnp.result_type(float)
    if not isinstance(learning_rate, Tracer):
        with np.errstate(over="ignore", under="ignore"):
            rounded = float(np.asarray(learning_rate, dtype))
        if not 0 < rounded < float("inf"):
            raise ValueError(f"{where}: got {learning_rate}; expected a positive, finite {dtype.name}")
    return jnp.asarray(learning_rate, dtype)
