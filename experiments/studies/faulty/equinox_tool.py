"""Equinox: a module, optax, and ``tree_serialise_leaves``."""

from pathlib import Path
from typing import Any

import equinox as eqx  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp
import numpy as np
import optax

from .judge import Arrays, NotOffered
from .raw_jax import OPTIMIZER, batches, loss_of, rows_of
from .tool import CLASSES, FEATURES, HIDDEN, Call, Tool, good_call


def module(outputs: int, *, n_in: int = FEATURES, depth: int = 1, bias: bool = True) -> Any:
    """Equinox's MLP."""
    key = jax.random.key(0)
    return eqx.nn.MLP(n_in, outputs, HIDDEN, depth, activation=jnp.tanh, use_bias=bias, key=key)


@eqx.filter_jit
def run_step(model: Any, state: Any, x: Any, y: Any) -> Any:
    """A step of momentum."""
    slope = eqx.filter_grad(lambda model: loss_of(jax.vmap(model)(x), y, True))(model)
    updates, state = OPTIMIZER.update(slope, state, eqx.filter(model, eqx.is_array))
    return eqx.apply_updates(model, updates), state


class Equinox(Tool):
    """As its documentation's pages on training and serialisation have it."""

    cold = True
    suffix = ".eqx"
    layout = "npy"

    def train(self, call: Call) -> Arrays:
        """The loop that it documents."""
        model = module(CLASSES if call.classes else 1)
        if call.change_params is not None:
            arrays, rest = eqx.partition(model, eqx.is_array)
            model = eqx.combine(call.change_params(arrays), rest)
        return self._descend(model, call, lambda model, x, y: loss_of(jax.vmap(model)(x), y, call.classes))

    def diverge(self, how: str, scratch: Path) -> Arrays:
        """An objective whose slope is NaN beyond a place; or a rate that is too large."""
        if how != "NaN":
            return super().diverge(how, scratch)

        def steep(weight: Any, x: Any, y: Any) -> Any:
            return jnp.where(jnp.abs(weight["w"]) > 100, jnp.nan, 1.0) * weight["w"] ** 2

        return self._descend({"w": jnp.float32(1)}, good_call(False).but(learning_rate=1.6, steps=20), steep)

    def _descend(self, model: Any, call: Call, loss: Any) -> Arrays:
        x, y = jnp.asarray(call.x), jnp.asarray(call.y)
        optimizer = optax.sgd(call.learning_rate)
        state = optimizer.init(eqx.filter(model, eqx.is_array))

        @eqx.filter_jit
        def step(model: Any, state: Any, x: Any, y: Any) -> Any:
            slope = eqx.filter_grad(loss)(model, x, y)
            updates, state = optimizer.update(slope, state, eqx.filter(model, eqx.is_array))
            return eqx.apply_updates(model, updates), state

        for rows in batches(call, len(x)):
            model, state = step(model, state, x[rows], y[rows])
        return self.arrays(model)

    def tree(self, change: str = "") -> Any:
        """The module, and the state of the optimizer."""
        model = module(
            CLASSES,
            n_in=FEATURES + (change == "wrong shape"),
            depth=1 + (change == "extra leaf"),
            bias=change != "missing leaf",
        )
        if change == "renamed key":
            raise NotOffered("its files name nothing")
        if change == "changed dtype":
            model = eqx.tree_at(lambda m: m.layers[0].bias, model, model.layers[0].bias.astype(jnp.float16))
        optimizer = optax.adam(0.01) if change == "other optimizer" else OPTIMIZER
        return model, optimizer.init(eqx.filter(model, eqx.is_array))

    def spoiled(self, spoil: Any) -> Any:
        """Each array changed."""
        return jax.tree.map(lambda leaf: spoil(leaf) if eqx.is_array(leaf) else leaf, self.tree())

    def arrays(self, tree: Any) -> Arrays:
        """By JAX's names."""
        found = jax.tree_util.tree_flatten_with_path(eqx.filter(tree, eqx.is_array))[0]
        return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}

    def save(self, path: Path, tree: Any) -> None:
        """``tree_serialise_leaves``."""
        eqx.tree_serialise_leaves(path, tree)

    def load(self, path: Path, like: Any) -> Any:
        """``tree_deserialise_leaves``."""
        return eqx.tree_deserialise_leaves(path, like)

    def step(self, tree: Any, number: int) -> Any:
        """A step of momentum."""
        model, state = tree
        x, y = rows_of(number)
        return run_step(model, state, x, y)
