"""JAX alone: a jitted step called from Python, and the loop inside the program, as ``lax.scan``."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from . import LOOP, SCAN, Arm, Run, Workload
from .arms import python_loop


def on_device(workload: Workload) -> tuple[Any, Any]:
    """The starting weights and the batch as JAX's own arrays: copies, which may be donated."""
    return jax.block_until_ready(jax.tree.map(jnp.array, (workload.weights(), workload.data())))


def predictions(params: Any, x: jax.Array) -> jax.Array:
    """``h_l = relu(h_{l-1} @ W_l + b_l)``, without relu at the end."""
    *hidden, (weights, bias) = params
    for hidden_weights, hidden_bias in hidden:
        x = jax.nn.relu(x @ hidden_weights + hidden_bias)
    return x @ weights + bias


def squared_loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The mean squared error."""
    return jnp.mean((predictions(params, x) - y) ** 2)


def surprise(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The softmax cross-entropy of classes; by one-hot labels or a scatter it takes as long."""
    log_probabilities = jax.nn.log_softmax(predictions(params, x))
    return -jnp.mean(jnp.take_along_axis(log_probabilities, y[:, None], axis=-1))


def over_copies(step: Callable[..., Any], workload: Workload, n_states: int = 1) -> Callable[..., Any]:
    """The step ``(*states, x, y)`` for all copies at once, where there are copies."""
    return step if workload.copies is None else jax.vmap(step, in_axes=(0,) * n_states + (None, None))


def scanned(step: Callable[..., Any], states: tuple[Any, ...], batch: Any) -> Callable[[], Run]:
    """Arms that take all steps in one ``lax.scan``, compiled for each number of steps."""

    @functools.partial(jax.jit, static_argnames="steps")
    def program(states: tuple[Any, ...], batch: Any, steps: int) -> Any:
        def body(states: tuple[Any, ...], _: None) -> tuple[Any, Any]:
            *states_after, loss = step(*states, *batch)
            return tuple(states_after), loss

        return lax.scan(body, states, None, length=steps)

    return lambda: lambda steps: jax.block_until_ready(program(states, batch, steps))[1]


def arms(workload: Workload) -> dict[str, Arm]:
    """The usual loop, the same with donated weights, and the scan that all others are held against."""
    params, batch = on_device(workload)
    loss_of = surprise if workload.classifies else squared_loss

    def step(params: Any, x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
        loss, gradient = jax.value_and_grad(loss_of)(params, x, y)
        return jax.tree.map(lambda weight, slope: weight - workload.learning_rate * slope, params, gradient), loss

    step = over_copies(step, workload)
    donating = jax.jit(step, donate_argnums=0)
    return {
        SCAN: Arm(scanned(step, (params,), batch), whole=True),
        LOOP: Arm(python_loop(jax.jit(step), lambda: (params,), batch)),
        "raw jax, jitted step, donated": Arm(python_loop(donating, lambda: (jax.tree.map(jnp.copy, params),), batch)),
    }
