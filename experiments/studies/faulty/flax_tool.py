"""Flax: a linen module in a ``TrainState``, and its serialisation to msgpack."""

import functools
from pathlib import Path
from typing import Any

import flax.linen as nn  # pyright: ignore[reportMissingImports]
import flax.serialization  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState  # pyright: ignore[reportMissingImports]

from .judge import Arrays
from .raw_jax import OPTIMIZER, batches, loss_of, rows_of
from .tool import CLASSES, FEATURES, HIDDEN, Call, Tool, good_call


class Network(nn.Module):
    """Two layers."""

    outputs: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Tanh between them."""
        return nn.Dense(self.outputs)(nn.tanh(nn.Dense(HIDDEN)(x)))


def state_of(outputs: int, optimizer: Any, change: Any = None) -> Any:
    """A ``TrainState``."""
    network = Network(outputs)
    params = network.init(jax.random.key(0), jnp.zeros((1, FEATURES)))["params"]
    params = params if change is None else change(params)
    return TrainState.create(apply_fn=network.apply, params=params, tx=optimizer)


@jax.jit
def run_step(state: Any, x: Any, y: Any) -> Any:
    """A step of momentum."""
    slope = jax.grad(lambda params: loss_of(state.apply_fn({"params": params}, x), y, True))(state.params)
    return state.apply_gradients(grads=slope)


class Flax(Tool):
    """As its documentation's pages on training and on saving have it."""

    cold = True
    suffix = ".msgpack"
    layout = "msgpack"

    @functools.cached_property
    def _state(self) -> Any:
        """The functions of a state are told apart by what they are: one state for all."""
        return state_of(CLASSES, OPTIMIZER)

    def train(self, call: Call) -> Arrays:
        """The loop that it documents."""
        state = state_of(CLASSES if call.classes else 1, optax.sgd(call.learning_rate), call.change_params)
        apply = state.apply_fn
        return self._descend(state, call, lambda params, x, y: loss_of(apply({"params": params}, x), y, call.classes))

    def diverge(self, how: str, scratch: Path) -> Arrays:
        """An objective whose slope is NaN beyond a place; or a rate that is too large."""
        if how != "NaN":
            return super().diverge(how, scratch)

        def steep(weight: Any, x: Any, y: Any) -> Any:
            return jnp.where(jnp.abs(weight["w"]) > 100, jnp.nan, 1.0) * weight["w"] ** 2

        state = TrainState.create(apply_fn=steep, params={"w": jnp.float32(1)}, tx=optax.sgd(1.6))
        return self._descend(state, good_call(False).but(steps=20), steep)

    def _descend(self, state: Any, call: Call, loss: Any) -> Arrays:
        x, y = jnp.asarray(call.x), jnp.asarray(call.y)

        @jax.jit
        def step(state: Any, x: Any, y: Any) -> Any:
            return state.apply_gradients(grads=jax.grad(loss)(state.params, x, y))

        for rows in batches(call, len(x)):
            state = step(state, x[rows], y[rows])
        return self.arrays(state.params)

    def tree(self, change: str = "") -> Any:
        """A ``TrainState``."""

        def changed(params: Any) -> Any:
            first = dict(params["Dense_0"])
            if change == "extra leaf":
                return params | {"Dense_2": {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}}
            if change == "missing leaf":
                del first["bias"]
            elif change == "wrong shape":
                first["kernel"] = jnp.ones((FEATURES + 1, HIDDEN))
            elif change == "renamed key":
                first["offset"] = first.pop("bias")
            elif change == "changed dtype":
                first["bias"] = first["bias"].astype(jnp.float16)
            return params | {"Dense_0": first}

        if not change:
            return self._state
        return state_of(CLASSES, optax.adam(0.01) if change == "other optimizer" else OPTIMIZER, changed)

    def arrays(self, tree: Any) -> Arrays:
        """By JAX's names."""
        found = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}

    def save(self, path: Path, tree: Any) -> None:
        """``flax.serialization.to_bytes``."""
        path.write_bytes(flax.serialization.to_bytes(tree))

    def load(self, path: Path, like: Any) -> Any:
        """``flax.serialization.from_bytes``, with the state that it is to be like."""
        return flax.serialization.from_bytes(like, path.read_bytes())

    def step(self, tree: Any, number: int) -> Any:
        """A step of momentum."""
        return run_step(tree, *rows_of(number))
