"""Keras on JAX: ``fit``, and weights, the optimizer's among them, in its own HDF5 files."""

from pathlib import Path
from typing import Any

import keras  # pyright: ignore[reportMissingImports]
import numpy as np

from .judge import Arrays, NotOffered
from .raw_jax import rows_of
from .tool import CLASSES, FEATURES, HIDDEN, Call, Tool


def model_of(classes: bool, optimizer: Any, *, n_in: int = FEATURES, layers: int = 1, bias: bool = True) -> Any:
    """A compiled model of dense layers."""
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(HIDDEN, activation="tanh", use_bias=bias) for _ in range(layers)]
    model = keras.Sequential([keras.Input((n_in,)), *hidden, keras.layers.Dense(CLASSES if classes else 1)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True) if classes else "mse"
    model.compile(optimizer=optimizer, loss=loss)
    return model


class Keras(Tool):
    """As its guides on training and on saving have it."""

    cold = True
    suffix = ".weights.h5"
    layout = "hdf5"

    def train(self, call: Call) -> Arrays:
        """``fit``, an epoch a step."""
        if call.seed is None:
            raise NotOffered("its order needs no key")
        model = model_of(call.classes, keras.optimizers.SGD(call.learning_rate))
        if call.change_params is not None:
            model.set_weights(call.change_params(model.get_weights()))
        keras.utils.set_random_seed(call.seed)
        model.fit(call.x, call.y, batch_size=call.batch_size, epochs=call.steps, verbose=0)
        return self.arrays(model)

    def tree(self, change: str = "") -> Any:
        """A compiled model, whose optimizer has its variables."""
        if change in ("renamed key", "changed dtype"):
            raise NotOffered("its layers name their own weights")
        name = "Adam" if change == "other optimizer" else "SGD"
        optimizer = getattr(keras.optimizers, name)(0.1, **({"momentum": 0.9} if name == "SGD" else {}))
        model = model_of(
            True,
            optimizer,
            n_in=FEATURES + (change == "wrong shape"),
            layers=1 + (change == "extra leaf"),
            bias=change != "missing leaf",
        )
        optimizer.build(model.trainable_variables)
        return model

    def spoiled(self, spoil: Any) -> Any:
        """Each weight changed."""
        model = self.tree()
        model.set_weights([np.asarray(spoil(leaf)) for leaf in model.get_weights()])
        return model

    def arrays(self, tree: Any) -> Arrays:
        """Weights and the optimizer's variables."""
        found = {f"weight {n}": np.asarray(leaf) for n, leaf in enumerate(tree.get_weights())}
        return found | {f"optimizer {n}": np.asarray(leaf) for n, leaf in enumerate(tree.optimizer.variables)}

    def save(self, path: Path, tree: Any) -> None:
        """``save_weights``."""
        tree.save_weights(path)

    def load(self, path: Path, like: Any) -> Any:
        """``load_weights`` into a model."""
        like.load_weights(path)
        return like

    def step(self, tree: Any, number: int) -> Any:
        """``train_on_batch``."""
        tree.train_on_batch(*rows_of(number))
        return tree
