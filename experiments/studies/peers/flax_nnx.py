"""Flax NNX: a mutable model and optimizer. ``nnx.jit`` is the usual way, the others are from its performance guide.

Source: "Performance considerations", in the guides of Flax.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx  # pyright: ignore[reportMissingImports]

from . import Arm, Run, Workload
from .optax_steps import loss_of
from .raw_jax import on_device, scanned


class Network(nnx.Module):
    """Dense layers with relu between them."""

    def __init__(self, params: Any):
        """Layers with the given weights."""
        layers = []
        for weights, bias in params:
            layer = nnx.Linear(*weights.shape, rngs=nnx.Rngs(0))
            layer.kernel, layer.bias = nnx.Param(weights), nnx.Param(bias)
            layers.append(layer)
        self.layers = nnx.List(layers)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The predictions."""
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


def arms(workload: Workload) -> dict[str, Arm]:
    """``nnx.jit``, the same with its arguments cached, and the functional form in a scan."""
    params, batch = on_device(workload)
    loss_function = loss_of(workload)
    optimizer = optax.sgd(workload.learning_rate)  # one for all starts: with another, nnx.jit would compile again

    def fresh() -> tuple[Any, Any]:
        model = Network(jax.tree.map(jnp.copy, params))
        return model, nnx.Optimizer(model, optimizer, wrt=nnx.Param)

    def train_step(model: Any, optimizer: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        loss, grads = nnx.value_and_grad(lambda model: loss_function(model, x, y))(model)
        optimizer.update(model, grads)
        return loss

    def python_loop(prepare: Callable[..., Any]) -> Callable[[], Run]:
        # A function of its own: one that it has seen before, Flax would not compile again.
        jitted = nnx.jit(lambda model, optimizer, x, y: train_step(model, optimizer, x, y))

        def start() -> Run:
            model, optimizer = fresh()
            step = prepare(jitted, model, optimizer)

            def run(steps: int) -> Any:
                losses = [step(*batch) for _ in range(steps)]
                return jax.block_until_ready((nnx.state((model, optimizer)), losses))[1]

            return run

        return start

    graphdef, state = nnx.split(fresh())

    def pure_step(state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
        model, optimizer = nnx.merge(graphdef, state)
        loss = train_step(model, optimizer, x, y)
        return nnx.state((model, optimizer)), loss

    return {
        "Flax NNX, nnx.jit (usual)": Arm(python_loop(functools.partial)),
        "Flax NNX, cached_partial": Arm(python_loop(nnx.cached_partial)),
        "Flax NNX, scan of split, merge": Arm(scanned(pure_step, (state,), batch), whole=True),
    }
