"""JAX alone: a jitted step called from Python, and the loop inside the program, as ``lax.scan``."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from . import SCAN, Arm, Run, Workload


def on_device(workload: Workload) -> tuple[Any, Any]:
    """The starting weights and the batch as JAX's own arrays."""
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


def cross_entropy(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The softmax cross-entropy of classes."""
    log_probabilities = jax.nn.log_softmax(predictions(params, x))
    return -jnp.mean(jnp.take_along_axis(log_probabilities, y[:, None], axis=-1))


def python_loop(step: Callable[..., Any], states: tuple[Any, ...], batch: Any) -> Callable[[], Run]:
    """The start of an arm that calls ``step(*states, *batch) -> (*states, loss)`` from Python."""

    def run(steps: int) -> Any:
        current, losses = states, []
        for _ in range(steps):
            *current, loss = step(*current, *batch)
            losses.append(loss)  # on the device until all of them are there
        return jax.block_until_ready((current, losses))[1]

    return lambda: run


def scanned(step: Callable[..., Any], states: tuple[Any, ...], batch: Any) -> Callable[[], Run]:
    """The start of an arm that takes all steps in one ``lax.scan``, compiled for each number of steps."""

    @functools.partial(jax.jit, static_argnames="steps")
    def program(states: tuple[Any, ...], batch: Any, steps: int) -> Any:
        def body(states: tuple[Any, ...], _: None) -> tuple[Any, Any]:
            *states_after, loss = step(*states, *batch)
            return tuple(states_after), loss

        return lax.scan(body, states, None, length=steps)

    return lambda: lambda steps: jax.block_until_ready(program(states, batch, steps))[1]


def arms(workload: Workload) -> dict[str, Arm]:
    """The usual loop, and the scan that all others are compared with."""
    params, batch = on_device(workload)
    loss_of = cross_entropy if workload.classifies else squared_loss

    def step(params: Any, x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
        loss, gradient = jax.value_and_grad(loss_of)(params, x, y)
        return jax.tree.map(lambda weight, slope: weight - workload.learning_rate * slope, params, gradient), loss

    return {
        SCAN: Arm(scanned(step, (params,), batch), whole=True),
        "raw jax, jitted step": Arm(python_loop(jax.jit(step), (params,), batch)),
    }
