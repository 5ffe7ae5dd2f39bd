"""Descents with the optimizers of optax."""

import importlib.util
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from minijaxnet._checks import check_callable
from minijaxnet._trees import check_like, l2_norm
from minijaxnet._types import Objective, Params, PyTree
from minijaxnet.descent import OPTIMIZER, Descent, DescentState, StepInfo, arguments, gradient_of, start


def optax_descent(objective: Objective, optimizer: Any, *, has_aux: bool = False) -> Descent:
    """Descent with an optimizer of optax: ``params <- params + update(gradient, state.optimizer)``.

    Transformations that need more than the gradient (line searches, Polyak steps, SAM) get the loss, the gradient and
    the objective of the batch, under optax's names. An argument that a transformation does not take is left out.

    A step whose loss or gradient is not finite ends the descent, except with optimizers that handle such gradients:
    ``optax.apply_if_finite``, ``optax.zero_nans``, and ``optax.MultiSteps`` with a ``should_skip_update_fn``. With
    these a step is refused only if the params after it would not be finite. The trace has the loss and the norm of each
    step, finite or not.

    Args:
        objective: as for ``gradient_descent``.
        optimizer: any ``optax.GradientTransformation``.
        has_aux: whether the objective returns ``(loss, aux)``.

    Returns:
        A descent. Its compiled step is reused for the same objective and the same optimizer object.

    Raises:
        ImportError: optax is not installed.
        TypeError: the objective is not a function; the optimizer has no ``init`` and ``update``; on ``step``, a part of
            the optimizer needs an argument that another part refuses.

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

    def init(params: Params, key: jax.Array | None = None) -> DescentState:
        return start(params, optimizer.init, key)

    return Descent(init, _OptaxStep(objective, optimizer, has_aux))


@dataclass(frozen=True)
class _OptaxStep:
    """One step of an optax optimizer."""

    objective: Objective
    optimizer: Any
    has_aux: bool

    def __call__(self, state: DescentState, batch: PyTree) -> tuple[DescentState, StepInfo]:
        import optax

        check_like(state.optimizer, jax.eval_shape(self.optimizer.init, state.params), OPTIMIZER)

        def value(params: Params) -> jax.Array:
            result = self.objective(params, *arguments(state, batch))
            return result[0] if self.has_aux else result

        loss, aux, gradient = gradient_of(self.objective, self.has_aux, state, batch)
        update = optax.with_extra_args_support(self.optimizer).update
        extra: dict[str, Any] = {"value": loss, "grad": gradient, "value_fn": value}
        if "grad_fn" in inspect.signature(update).parameters:  # for SAM; a line search refuses it
            extra["grad_fn"] = lambda params, _: jax.grad(value)(params)
        updates, optimizer_state = _call_update(update, (gradient, state.optimizer, state.params), extra)
        params = optax.apply_updates(state.params, updates)
        norm = l2_norm(gradient)
        # An optimizer can make NaN of a finite gradient (0 / 0 with epsilon 0): such a step must not be taken either.
        accepted = jnp.isfinite(l2_norm(params))
        if not _handles_non_finite(state.optimizer):
            accepted &= jnp.isfinite(loss) & jnp.isfinite(norm)
        state = state._replace(params=params, optimizer=optimizer_state, step=state.step + 1)
        return state, StepInfo(loss, norm, aux, accepted)


def _call_update(update: Callable[..., Any], arguments: tuple[Any, ...], extra: dict[str, Any]) -> Any:
    """Call an optimizer's update without the extra arguments that it, or a part of it, refuses."""
    refused = []
    while True:
        try:
            return update(*arguments, **extra)
        except TypeError as error:
            name = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if name is None or name[1] not in extra:
                if not refused:
                    raise
                got = f"got a part that takes no {', '.join(refused)}, and another that needs more arguments ({error})"
                raise TypeError(f"optax_descent: optimizer: {got}; expected parts with the same arguments") from error
            refused.append(name[1])
            del extra[name[1]]


def _handles_non_finite(optimizer_state: Any) -> bool:
    """Whether an optimizer handles gradients that are not finite; its state shows it."""
    import optax

    handlers = (optax.ApplyIfFiniteState, optax.ZeroNansState, optax.MultiStepsState)
    found = jax.tree.leaves(optimizer_state, is_leaf=lambda node: isinstance(node, handlers))
    return any(
        bool(jax.tree.leaves(node.skip_state)) or _handles_non_finite(node.inner_opt_state)
        if isinstance(node, optax.MultiStepsState)
        else isinstance(node, handlers)
        for node in found
    )
