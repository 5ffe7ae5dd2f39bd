"""Equinox: a module, optax, and ``tree_serialise_leaves``."""

from pathlib import Path
from typing import Any

import equinox as eqx  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp

from .judge import NotOffered
from .raw_jax import RawJax
from .tool import FEATURES, HIDDEN


class Network(eqx.Module):
    """Linear layers."""

    layers: list[Any]

    def __call__(self, x: Any) -> Any:
        """Tanh between them."""
        for layer in self.layers[:-1]:
            x = jnp.tanh(layer(x))
        return self.layers[-1](x)


class Equinox(RawJax):
    """As its documentation's pages on training and serialisation have it."""

    cold = True
    suffix = ".eqx"
    trains = True

    def start(self, outputs: int, change: str = "") -> Any:
        """A module."""
        if change == "renamed key":
            raise NotOffered("its files name nothing")
        sizes = [FEATURES + (change == "wrong shape"), HIDDEN, *[HIDDEN] * (change == "extra leaf"), outputs]
        keys, bias = jax.random.split(jax.random.key(0), len(sizes)), change != "missing leaf"
        layers = zip(sizes[:-1], sizes[1:], keys[1:], strict=True)
        model = Network([eqx.nn.Linear(n_in, n_out, use_bias=bias, key=key) for n_in, n_out, key in layers])
        if change == "changed dtype":
            model = eqx.tree_at(lambda m: m.layers[0].bias, model, model.layers[0].bias.astype(jnp.float16))
        return model

    def predict(self, params: Any, x: Any) -> Any:
        """The module, for each point."""
        return jax.vmap(params)(x)

    def save(self, path: Path, tree: Any) -> None:
        """``tree_serialise_leaves``."""
        eqx.tree_serialise_leaves(path, tree)

    def load(self, path: Path, like: Any) -> Any:
        """``tree_deserialise_leaves``."""
        return eqx.tree_deserialise_leaves(path, like)
