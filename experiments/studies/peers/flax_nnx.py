"""Flax NNX: a mutable model and optimizer. ``nnx.jit`` is the usual way, the others come from its performance guide.

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
from .arms import python_loop
from .optax_steps import loss_of
from .raw_jax import on_device, scanned


class Network(nnx.Module):
    """Dense layers with relu between them; with copies, each weight has their axis first."""

    def __init__(self, params: Any):
        """Layers with the given weights."""
        layers = []
        for weights, bias in params:
            layer = nnx.Linear(*weights.shape[-2:], rngs=nnx.Rngs(0))
            layer.kernel, layer.bias = nnx.Param(weights), nnx.Param(bias)
            layers.append(layer)
        self.layers = nnx.List(layers)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The predictions."""
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


def arms(workload: Workload) -> dict[str, Arm]:
    """``nnx.jit``, the same with its arguments cached, and the functional form in ``jax.jit`` and in a scan."""
    params, batch = on_device(workload)
    loss_function = loss_of(workload.classifies)

    optimizer = optax.sgd(workload.learning_rate)  # one for all starts: with another, nnx.jit would compile again

    def fresh() -> tuple[Any, Any]:
        model = Network(jax.tree.map(jnp.copy, params))
        return model, nnx.Optimizer(model, optimizer, wrt=nnx.Param)

    def slope(model: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
        return nnx.value_and_grad(lambda model: loss_function(model, x, y))(model)

    if workload.copies is not None:
        slope = nnx.vmap(slope, in_axes=(0, None, None))

    def train_step(model: Any, optimizer: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        loss, grads = slope(model, x, y)
        optimizer.update(model, grads)
        return loss

    def mutating(prepare: Callable[[Any, Any], Callable[..., Any]]) -> Callable[[], Run]:
        def start() -> Run:
            model, optimizer = fresh()
            step = prepare(model, optimizer)

            def run(steps: int) -> Any:
                losses = [step(*batch) for _ in range(steps)]
                return jax.block_until_ready((nnx.state((model, optimizer)), losses))[1]

            return run

        return start

    def jitted() -> Callable[..., Any]:
        """Compiled anew for each arm: a function that it has seen before, Flax would find again."""
        return nnx.jit(lambda model, optimizer, x, y: train_step(model, optimizer, x, y))

    usual, cached = jitted(), jitted()
    graphdef, state = nnx.split(fresh())

    def pure_step(state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
        model, optimizer = nnx.merge(graphdef, state)
        loss = train_step(model, optimizer, x, y)
        return nnx.state((model, optimizer)), loss

    return {
        "Flax NNX, nnx.jit (usual)": Arm(mutating(lambda model, optimizer: functools.partial(usual, model, optimizer))),
        "Flax NNX, cached_partial": Arm(
            mutating(lambda model, optimizer: nnx.cached_partial(cached, model, optimizer))
        ),
        "Flax NNX, split, merge, jax.jit": Arm(python_loop(jax.jit(pure_step), lambda: (state,), batch)),
        "Flax NNX, scan of split, merge": Arm(scanned(pure_step, (state,), batch), whole=True),
    }
