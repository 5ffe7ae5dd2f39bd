"""Raw JAX and optax, with what is used most to keep their arrays: npz, pickle, safetensors, and Orbax."""

import pickle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .judge import Arrays, NotOffered
from .tool import CLASSES, FEATURES, HIDDEN, RUN_BATCH, Call, Tool, good_call

Params = dict[str, dict[str, jax.Array]]
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def start(outputs: int) -> Params:
    """Two layers."""
    keys = jax.random.split(jax.random.key(0))
    sizes = ((FEATURES, HIDDEN), (HIDDEN, outputs))
    return {
        name: {"weight": jax.random.normal(key, size) / size[0] ** 0.5, "bias": jnp.zeros(size[1])}
        for name, key, size in zip(("dense_1", "dense_2"), keys, sizes, strict=True)
    }


def predict(params: Params, x: jax.Array) -> jax.Array:
    """Tanh between the layers."""
    hidden = jnp.tanh(x @ params["dense_1"]["weight"] + params["dense_1"]["bias"])
    return hidden @ params["dense_2"]["weight"] + params["dense_2"]["bias"]


def loss_of(outputs: jax.Array, y: jax.Array, classes: bool) -> jax.Array:
    """The losses of optax."""
    if classes:
        return optax.losses.softmax_cross_entropy_with_integer_labels(outputs, y).mean()
    return optax.losses.squared_error(outputs, y).mean()


def batches(call: Call, points: int) -> Any:
    """Rows for each step, in a new order each epoch."""
    if call.seed is None:
        raise NotOffered("its order needs no key")
    key, per_epoch = jax.random.key(call.seed), points // call.batch_size
    for number in range(call.steps):
        order = jax.random.permutation(jax.random.fold_in(key, number // per_epoch), points)
        first = number % per_epoch * call.batch_size
        yield order[first : first + call.batch_size]


@jax.jit
def run_step(params: Params, state: Any, x: jax.Array, y: jax.Array) -> tuple[Params, Any]:
    """A step of momentum."""
    slope = jax.grad(lambda params: loss_of(predict(params, x), y, True))(params)
    updates, state = OPTIMIZER.update(slope, state, params)
    return optax.apply_updates(params, updates), state  # pyright: ignore[reportReturnType]


def rows_of(number: int) -> tuple[Any, Any]:
    """The minibatch of a step of a run."""
    call = good_call(classes=True)
    rows = np.random.default_rng(number).permutation(len(call.x))[:RUN_BATCH]
    return call.x[rows], call.y[rows]


class RawJax(Tool):
    """What storages share: the loop that one writes with JAX and optax."""

    def tree(self, change: str = "") -> Any:
        """Parameters, and the state of the optimizer."""
        params: dict[str, Any] = start(CLASSES)
        optimizer = optax.adam(0.01) if change == "other optimizer" else OPTIMIZER
        if change == "extra leaf":
            params["dense_3"] = {"weight": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
        elif change == "missing leaf":
            del params["dense_1"]["bias"]
        elif change == "wrong shape":
            params["dense_1"]["weight"] = jnp.ones((FEATURES + 1, HIDDEN))
        elif change == "renamed key":
            params["dense_1"]["offset"] = params["dense_1"].pop("bias")
        elif change == "changed dtype":
            params["dense_1"]["bias"] = params["dense_1"]["bias"].astype(jnp.float16)
        return {"params": params, "optimizer": optimizer.init(params)}

    def arrays(self, tree: Any) -> Arrays:
        """By JAX's names."""
        return {name: np.asarray(leaf) for name, leaf in self.flat(tree).items()}

    def flat(self, tree: Any) -> dict[str, Any]:
        """Leaves by their names."""
        found = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in found}

    def step(self, tree: Any, number: int) -> Any:
        """A step of momentum."""
        params, state = run_step(tree["params"], tree["optimizer"], *rows_of(number))
        return {"params": params, "optimizer": state}


class Npz(RawJax):
    """NumPy's archive, a leaf a name; the one of these that stands for training with JAX and optax, too."""

    suffix = ".npz"
    layout = "npz"

    def train(self, call: Call) -> Arrays:
        """The loop that optax documents."""
        params: Any = start(CLASSES if call.classes else 1)
        params = params if call.change_params is None else call.change_params(params)
        return self._descend(params, call, lambda params, x, y: loss_of(predict(params, x), y, call.classes))

    def diverge(self, how: str, scratch: Path) -> Arrays:
        """An objective whose slope is NaN beyond a place; or a rate that is too large."""
        if how != "NaN":
            return super().diverge(how, scratch)

        def steep(weight: Any, x: Any, y: Any) -> Any:
            return jnp.where(jnp.abs(weight["w"]) > 100, jnp.nan, 1.0) * weight["w"] ** 2

        return self._descend({"w": jnp.float32(1)}, good_call(False).but(learning_rate=1.6, steps=20), steep)

    def _descend(self, params: Any, call: Call, loss: Any) -> Arrays:
        x, y = jnp.asarray(call.x), jnp.asarray(call.y)
        optimizer = optax.sgd(call.learning_rate)
        state = optimizer.init(params)

        @jax.jit
        def step(params: Any, state: Any, x: Any, y: Any) -> Any:
            slope = jax.grad(loss)(params, x, y)
            updates, state = optimizer.update(slope, state, params)
            return optax.apply_updates(params, updates), state

        for rows in batches(call, len(x)):
            params, state = step(params, state, x[rows], y[rows])
        return self.arrays(params)

    def save(self, path: Path, tree: Any) -> None:
        """``numpy.savez``."""
        np.savez(path, **self.flat(tree))

    def load(self, path: Path, like: Any) -> Any:
        """``numpy.load``, and each leaf by its name."""
        with np.load(path) as file:
            leaves = [jnp.asarray(file[name]) for name in self.flat(like)]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)


class Pickle(RawJax):
    """Python's pickle."""

    suffix = ".pickle"
    layout = "pickle"

    def save(self, path: Path, tree: Any) -> None:
        """``pickle.dump`` of NumPy arrays."""
        with path.open("wb") as file:
            pickle.dump(jax.tree.map(np.asarray, tree), file)

    def load(self, path: Path, like: Any) -> Any:
        """``pickle.load``; it takes no template."""
        with path.open("rb") as file:
            return jax.tree.map(jnp.asarray, pickle.load(file))


class Safetensors(RawJax):
    """safetensors alone."""

    suffix = ".safetensors"
    layout = "safetensors"

    def save(self, path: Path, tree: Any) -> None:
        """``safetensors.flax.save_file``."""
        from safetensors.flax import save_file

        save_file(self.flat(tree), path)

    def load(self, path: Path, like: Any) -> Any:
        """``safetensors.flax.load_file``, and each leaf by its name."""
        from safetensors.flax import load_file

        found = load_file(path)
        return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in self.flat(like)])


class Orbax(RawJax):
    """Orbax's standard checkpointer, a folder a checkpoint."""

    layout = "zarr"
    cold = True

    def __init__(self) -> None:
        """Fail here where it is not installed."""
        import orbax.checkpoint as ocp  # pyright: ignore[reportMissingImports]

        self._ocp = ocp

    def save(self, path: Path, tree: Any) -> None:
        """``StandardCheckpointer.save``."""
        with self._ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path.absolute(), tree, force=path.exists())

    def load(self, path: Path, like: Any) -> Any:
        """``StandardCheckpointer.restore``, with the abstract tree that it is to be."""
        with self._ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path.absolute(), jax.tree.map(self._ocp.utils.to_shape_dtype_struct, like))
