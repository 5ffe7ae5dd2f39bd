"""Descents: what one step downhill is.

A descent is a pair of pure functions. ``init`` makes a state from parameters; ``step`` looks at one batch and
returns the next state, with the loss and the gradient that it saw on the way. Ours and optax's stand behind the same
pair, and so does any step that you write.
"""

import importlib.util
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from minijaxnet._trees import (
    array_type,
    check_arrays,
    check_callable,
    check_like,
    floating_arrays,
    is_number,
    l2_norm,
)

ObjectiveFn = Callable[..., Any]

_OPTIMIZER = "state.optimizer, as the descent's own init makes it"


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
        return _start(params, lambda _: rate, key)

    return Descent(init, GradientStep(objective, has_aux))


def optax_descent(objective: ObjectiveFn, optimizer: Any, *, has_aux: bool = False) -> Descent:
    """Descent with an optimizer of optax: ``params <- params + update(gradient, state.optimizer)``.

    Transformations that ask for more than the gradient (line searches, Polyak steps, SAM) get the loss, the gradient
    and the objective of the batch, by optax's own names; what a transformation does not take, it is not given.

    A step whose loss or gradient is not finite ends the descent, as ever, but for optimizers that handle such gradients
    themselves: ``optax.apply_if_finite``, ``optax.zero_nans``, and ``optax.MultiSteps`` with a
    ``should_skip_update_fn``. With these a step is refused only where the params would not be finite after it; the
    trace has the loss and the norm as they were seen.

    Args:
        objective: as for ``gradient_descent``.
        optimizer: any ``optax.GradientTransformation``.
        has_aux: whether the objective returns ``(loss, aux)``.

    Returns:
        A descent. Its compiled step is found again for the same objective and the same optimizer object.

    Raises:
        ImportError: optax is not installed.
        TypeError: an objective that is no function; an optimizer without ``init`` and ``update``; on ``step``, one
            whose parts ask for what others refuse.

    Example:
        >>> import optax
        >>> descent = optax_descent(lambda weight, batch: (weight - batch) ** 2, optax.sgd(0.1))
        >>> print(descent.step(descent.init(1.0), 0.0)[0].params)
        0.8

    Source: DeepMind et al., "The DeepMind JAX ecosystem", 2020.
    """
    check_callable("optax_descent: objective", objective)
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
class GradientStep:
    """One step of gradient descent; equal for equal objectives, so that any rate shares one compilation."""

    objective: ObjectiveFn
    has_aux: bool

    def is_ready(self, state: DescentState) -> jax.Array:
        """Whether any step can be taken: a traced rate may be infinite or NaN."""
        return jnp.isfinite(state.optimizer)

    def __call__(self, state: DescentState, batch: Any) -> tuple[DescentState, StepInfo]:
        """Take it."""
        rate = state.optimizer
        check_like(rate, jax.ShapeDtypeStruct((), getattr(rate, "dtype", jnp.float32)), _OPTIMIZER)
        loss, aux, gradient = _gradient(self.objective, self.has_aux, state, batch)

        def downhill(weight: jax.Array, slope: jax.Array) -> jax.Array:
            range_ = jnp.finfo(weight.dtype)
            step = _within(rate, weight.dtype) * slope
            return lax.clamp(range_.min, weight - step, range_.max)

        params = jax.tree.map(downhill, state.params, gradient)
        state = state._replace(params=params, step=state.step + 1)
        return state, StepInfo(loss, l2_norm(gradient), aux)


@dataclass(frozen=True)
class _OptaxStep:
    """One step of an optax optimizer."""

    objective: ObjectiveFn
    optimizer: Any
    has_aux: bool

    def __call__(self, state: DescentState, batch: Any) -> tuple[DescentState, StepInfo]:
        import optax

        check_like(state.optimizer, jax.eval_shape(self.optimizer.init, state.params), _OPTIMIZER)

        def value(params: Any) -> jax.Array:
            result = self.objective(params, *_arguments(state, batch))
            return result[0] if self.has_aux else result

        loss, aux, gradient = _gradient(self.objective, self.has_aux, state, batch)
        update = optax.with_extra_args_support(self.optimizer).update
        extra: dict[str, Any] = {"value": loss, "grad": gradient, "value_fn": value}
        if "grad_fn" in inspect.signature(update).parameters:  # SAM's; a line search refuses it
            extra["grad_fn"] = lambda params, _: jax.grad(value)(params)
        updates, optimizer_state = _given_what_it_takes(update, (gradient, state.optimizer, state.params), extra)
        params = optax.apply_updates(state.params, updates)
        norm = l2_norm(gradient)
        # An optimizer can make NaN of a finite gradient (0 / 0 with epsilon 0): such a step must not be taken either.
        accepted = jnp.isfinite(l2_norm(params))
        if not _handles_what_is_not_finite(state.optimizer):
            accepted &= jnp.isfinite(loss) & jnp.isfinite(norm)
        state = state._replace(params=params, optimizer=optimizer_state, step=state.step + 1)
        return state, StepInfo(loss, norm, aux, accepted)


def _given_what_it_takes(update: Callable[..., Any], arguments: tuple[Any, ...], extra: dict[str, Any]) -> Any:
    """What an optimizer's update returns, without those of the extra arguments that it, or a part of it, refuses."""
    refused = []
    while True:
        try:
            return update(*arguments, **extra)
        except TypeError as error:
            name = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if name is None or name[1] not in extra:
                if not refused:
                    raise
                without = f"a part of it takes no {', '.join(refused)}, another one needs more ({error})"
                raise TypeError(f"optax_descent: optimizer: {without}; expected parts that take the same") from error
            refused.append(name[1])
            del extra[name[1]]


def _handles_what_is_not_finite(optimizer_state: Any) -> bool:
    """Whether an optimizer of optax was asked to see to gradients that are not finite, by what it keeps."""
    import optax

    handlers = (optax.ApplyIfFiniteState, optax.ZeroNansState, optax.MultiStepsState)
    found = jax.tree.leaves(optimizer_state, is_leaf=lambda node: isinstance(node, handlers))
    return any(
        bool(jax.tree.leaves(node.skip_state)) or _handles_what_is_not_finite(node.inner_opt_state)
        if isinstance(node, optax.MultiStepsState)
        else isinstance(node, handlers)
        for node in found
    )


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


def _gradient(objective: ObjectiveFn, has_aux: bool, state: DescentState, batch: Any) -> tuple[jax.Array, Any, Any]:
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
