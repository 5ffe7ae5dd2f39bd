"""Raw JAX and optax, with what keeps their arrays: npz, safetensors and Orbax; and Flax, whose params are alike."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .judge import Arrays, NotOffered
from .tool import CLASSES, FEATURES, HIDDEN, Call, Tool, good_call, minibatch

MOMENTUM = optax.sgd(0.1, momentum=0.9)


class RawJax(Tool):
    """The loop that one writes with JAX and optax.

    Attributes:
        trains: whether it stands for training, too; otherwise for its checkpoints alone.
    """

    trains = False

    def start(self, outputs: int, change: str = "") -> Any:
        """The params of two layers; with a change, other ones."""
        keys = jax.random.split(jax.random.key(0))
        sizes = ((FEATURES, HIDDEN), (HIDDEN, outputs))
        params: dict[str, Any] = {
            name: {"kernel": jax.random.normal(key, size) / size[0] ** 0.5, "bias": jnp.zeros(size[1])}
            for name, key, size in zip(("Dense_0", "Dense_1"), keys, sizes, strict=True)
        }
        first = params["Dense_0"]
        if change == "extra leaf":
            params["Dense_2"] = {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
        elif change == "missing leaf":
            del first["bias"]
        elif change == "wrong shape":
            first["kernel"] = jnp.ones((FEATURES + 1, HIDDEN))
        elif change == "renamed key":
            first["offset"] = first.pop("bias")
        elif change == "changed dtype":
            first["bias"] = first["bias"].astype(jnp.float16)
        return params

    def predict(self, params: Any, x: Any) -> Any:
        """Tanh between the layers."""
        hidden = jnp.tanh(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
        return hidden @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]

    def loss(self, params: Any, x: Any, y: Any, classes: bool = True) -> Any:
        """The losses of optax."""
        outputs = self.predict(params, x)
        if classes:
            return optax.losses.softmax_cross_entropy_with_integer_labels(outputs, y).mean()
        return optax.losses.squared_error(outputs, y).mean()

    def train(self, call: Call) -> Arrays:
        """The loop that optax documents."""
        if not self.trains:
            raise NotOffered("it keeps checkpoints, and trains nothing")
        params = call.change_params(self.start(CLASSES if call.classes else 1))
        return self._descend(params, call, lambda params, x, y: self.loss(params, x, y, call.classes))

    def diverge(self, how: str, scratch: Path) -> Arrays:
        """An objective whose gradient is NaN beyond a place; or a rate that is too high."""
        if how != "NaN" or not self.trains:
            return super().diverge(how, scratch)

        def steep(weight: Any, x: Any, y: Any) -> Any:
            return jnp.where(jnp.abs(weight["w"]) > 100, jnp.nan, 1.0) * weight["w"] ** 2

        return self._descend({"w": jnp.float32(1)}, good_call(False).but(learning_rate=1.6, steps=20), steep)

    def _descend(self, params: Any, call: Call, loss: Any) -> Arrays:
        if call.seed is None:
            raise NotOffered("its order needs no key")
        x, y = jnp.asarray(call.x), jnp.asarray(call.y)
        optimizer = optax.sgd(call.learning_rate)
        state = optimizer.init(params)

        @jax.jit
        def step(params: Any, state: Any, x: Any, y: Any) -> Any:
            updates, state = optimizer.update(jax.grad(loss)(params, x, y), state, params)
            return optax.apply_updates(params, updates), state

        key, per_epoch = jax.random.key(call.seed), len(x) // call.batch_size
        for number in range(call.steps):
            order = jax.random.permutation(jax.random.fold_in(key, number // per_epoch), len(x))
            rows = order[number % per_epoch * call.batch_size :][: call.batch_size]
            params, state = step(params, state, x[rows], y[rows])
        return self.arrays(params)

    def tree(self, change: str = "") -> Any:
        """The params, and the state of the optimizer."""
        params = self.start(CLASSES, change)
        optimizer = optax.adam(0.01) if change == "other optimizer" else MOMENTUM
        return {"params": params, "optimizer": optimizer.init(params)}

    def step(self, tree: Any, number: int) -> Any:
        """A step of momentum."""
        return self._jitted_step(tree, *minibatch(number))

    @functools.cached_property
    def _jitted_step(self) -> Any:
        def step(tree: Any, x: Any, y: Any) -> Any:
            params, gradient = tree["params"], jax.grad(self.loss)(tree["params"], x, y)
            updates, state = MOMENTUM.update(gradient, tree["optimizer"], params)
            return {"params": optax.apply_updates(params, updates), "optimizer": state}

        return jax.jit(step)


class Npz(RawJax):
    """NumPy's archive, an array for each leaf; it stands for training with JAX and optax, too."""

    suffix = ".npz"
    trains = True

    def save(self, path: Path, tree: Any) -> None:
        """``numpy.savez``."""
        np.savez(path, **self.arrays(tree))  # pyright: ignore[reportArgumentType]

    def load(self, path: Path, like: Any) -> Any:
        """``numpy.load``, and each leaf by its name."""
        with np.load(path) as file:
            leaves = [jnp.asarray(file[name]) for name in self.arrays(like)]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)


class Safetensors(RawJax):
    """safetensors alone."""

    suffix = ".safetensors"

    def save(self, path: Path, tree: Any) -> None:
        """``safetensors.numpy.save_file``."""
        from safetensors.numpy import save_file

        save_file(self.arrays(tree), path)

    def load(self, path: Path, like: Any) -> Any:
        """``safetensors.numpy.load_file``, and each leaf by its name."""
        from safetensors.numpy import load_file

        found = load_file(path)
        return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(found[name]) for name in self.arrays(like)])


class Orbax(RawJax):
    """Orbax's standard checkpointer, a folder for each checkpoint."""

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


class Flax(RawJax):
    """Flax: dense layers of ``flax.linen``, and its serialization to msgpack."""

    cold = True
    suffix = ".msgpack"
    trains = True

    def __init__(self) -> None:
        """Fail here where it is not installed."""
        import flax.linen as nn  # pyright: ignore[reportMissingImports]
        import flax.serialization  # pyright: ignore[reportMissingImports]

        self._nn, self._serialization = nn, flax.serialization

    def predict(self, params: Any, x: Any) -> Any:
        """``Dense`` applied to the params of each layer."""
        first, last = params["Dense_0"], params["Dense_1"]
        hidden = jnp.tanh(self._nn.Dense(HIDDEN).apply({"params": first}, x))
        return self._nn.Dense(last["kernel"].shape[1]).apply({"params": last}, hidden)

    def save(self, path: Path, tree: Any) -> None:
        """``flax.serialization.to_bytes``."""
        path.write_bytes(self._serialization.to_bytes(tree))

    def load(self, path: Path, like: Any) -> Any:
        """``flax.serialization.from_bytes``, with the state that it is to be like."""
        return self._serialization.from_bytes(like, path.read_bytes())
