"""Where an experiment starts: its data, its first parameters and its keys."""

import functools
import hashlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._trees import cast_floats
from minijaxnet.data import check_batch, numbers
from minijaxnet.experiment import Experiment, loads_its_share
from minijaxnet.streams import first_batch_of, is_read


class Start(NamedTuple):
    """Where an experiment starts.

    Attributes:
        params: the first parameters.
        train: the training batch; or what reads batches, as ``fit`` takes it.
        held_out: the batches that it does not learn from, by their names: "test", and "validation" if there is one.
        order_key: for the order of minibatches.
        draw_key: for an objective that draws numbers; None for any other.
    """

    params: Any
    train: Any
    held_out: dict[str, Any]
    order_key: jax.Array
    draw_key: jax.Array | None


def start_of(
    experiment: Experiment,
    seed: int,
    precision: str,
    init_options: dict,
    data_options: dict,
    compiler_options: dict | None = None,
) -> Start:
    """Draw an experiment's parameters and get its data, floats in the given precision.

    With ``compiler_options`` the parameters may be others in their last places.

    Raises:
        ValueError: a seed out of range, data that cannot be used.
        TypeError: data that is not two batches.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: got {seed}; expected a number from 0 to {2**32 - 1}")
    dtype = jnp.dtype(precision)
    data = {name: _cast(batch, dtype) for name, batch in _data(experiment, data_options).items()}
    start_key, order_key, draw_key = keys_of(seed)
    init = jax.jit(functools.partial(experiment.init, **init_options), compiler_options=compiler_options)
    params = cast_floats(init(start_key), dtype)
    train, key = data.pop("train"), draw_key if draws(experiment.objective) else None
    return Start(params, train, data, order_key, key)


def keys_of(seed: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a seed stands for: the key of the start, of the order of minibatches, and of what an objective draws."""
    start_key, order_key, draw_key = jax.random.split(jax.random.key(seed), 3)
    return start_key, order_key, draw_key


def first_batch(data: Any, batch_size: int | None) -> Any:
    """What a step sees: the first points, or all; the first batch where batches are read."""
    data = first_batch_of(data)
    return data if batch_size is None else jax.tree.map(lambda leaf: leaf[:batch_size], data)


def _data(experiment: Experiment, options: dict) -> dict[str, Any]:
    """The experiment's batches by their names, checked."""
    if loads_its_share(experiment):
        options = options | {"process_id": jax.process_index(), "num_processes": jax.process_count()}
    batches = experiment.data(**options)
    names = {2: ("train", "test"), 3: ("train", "validation", "test")}
    if not isinstance(batches, tuple | list) or len(batches) not in names:
        size = f" of {len(batches)}" if isinstance(batches, tuple | list) else ""
        expected = "batches (train, test), or (train, validation, test)"
        raise TypeError(f"data: it returns a {type(batches).__name__}{size}; expected {expected}")
    found = dict(zip(names[len(batches)], batches, strict=True))
    read = {"train": found.pop("train")} if is_read(found["train"]) else {}
    for name, batch in found.items():
        check_batch(batch, name)
    return read | {name: numbers(batch, name) for name, batch in found.items()}


def _cast(batch: Any, dtype: Any) -> Any:
    """A batch with its floats in a dtype; of what reads batches the same, read so."""
    if not is_read(batch):
        return cast_floats(batch, dtype)
    return lambda first_step: (cast_floats(numbers(each, "batch"), dtype) for each in batch(first_step))


def draws(objective: Callable[..., Any]) -> bool:
    """Whether an objective takes a key as its third argument."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(objective).parameters.values()
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters) >= 3


def digest_of(*batches: Any) -> str:
    """A SHA-256 over the dtypes, shapes and data of some batches."""
    total = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(batches)):
        total.update(f"{leaf.dtype}{leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()
