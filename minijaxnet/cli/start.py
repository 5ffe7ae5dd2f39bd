"""Where an experiment starts: its data, its first parameters and its keys."""

import functools
import hashlib
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._trees import cast_floats
from minijaxnet._types import DTypeLike, Objective, Params, PyTree
from minijaxnet.data import Batch, check_batch, numbers
from minijaxnet.experiment import Experiment, loads_its_share
from minijaxnet.streams import first_batch_of, is_read


class Start(NamedTuple):
    """Where an experiment starts.

    Attributes:
        params: the first parameters.
        train: the training batch; or the function that reads batches, as ``fit`` takes it.
        held_out: the other batches by their names: "test", and "validation" if there is one.
        order_key: for the order of minibatches.
        draw_key: for an objective that draws numbers; None for any other.
    """

    params: Params
    train: PyTree
    held_out: dict[str, Any]
    order_key: jax.Array
    draw_key: jax.Array | None


def start_of(
    experiment: Experiment,
    seed: int,
    precision: str,
    init_numbers: Mapping[str, Any],
    data_numbers: Mapping[str, Any],
    compiler_options: dict | None = None,
) -> Start:
    """Draw an experiment's parameters and get its data, floats in the given precision.

    With ``compiler_options`` the parameters may differ in their last places.

    Raises:
        ValueError: a seed out of range, data that cannot be used.
        TypeError: data that is not two batches.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: got {seed}; expected a number from 0 to {2**32 - 1}")
    data = batches_of(experiment, precision, data_numbers)
    start_key, order_key, draw_key = keys_of(seed)
    init = jax.jit(functools.partial(experiment.init, **init_numbers), compiler_options=compiler_options)
    params = cast_floats(init(start_key), precision)
    return Start(params, data.pop("train"), data, order_key, draw_key if draws(experiment.objective) else None)


def keys_of(seed: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The keys of a seed: for the start, for the order of minibatches, and for what an objective draws."""
    start_key, order_key, draw_key = jax.random.split(jax.random.key(seed), 3)
    return start_key, order_key, draw_key


def first_batch(data: PyTree, batch_size: int | None) -> Any:
    """The batch of the first step: the first points, or all; the first batch where batches are read."""
    data = first_batch_of(data)
    return data if batch_size is None else jax.tree.map(lambda leaf: leaf[:batch_size], data)


def batches_of(experiment: Experiment, precision: str, numbers_of_data: Mapping[str, Any]) -> dict[str, Any]:
    """The experiment's batches by their names, checked, with floats in the given precision."""
    share = {"process_id": jax.process_index(), "num_processes": jax.process_count()}
    batches = experiment.data(**numbers_of_data, **(share if loads_its_share(experiment) else {}))
    names = {2: ("train", "test"), 3: ("train", "validation", "test")}
    if not isinstance(batches, tuple | list) or isinstance(batches, Batch) or len(batches) not in names:
        size = f" of {len(batches)}" if type(batches) in (tuple, list) else ""
        expected = "batches (train, test), or (train, validation, test)"
        raise TypeError(f"data: it returns a {type(batches).__name__}{size}; expected {expected}")
    named = dict(zip(names[len(batches)], batches, strict=True))
    for name, batch in named.items():
        if not (name == "train" and is_read(batch)):
            check_batch(batch, name)
            named[name] = numbers(batch, name)
    return {name: _cast(batch, jnp.dtype(precision)) for name, batch in named.items()}


def _cast(batch: PyTree, dtype: DTypeLike) -> Any:
    """A batch with its floats in a dtype; a function that reads batches with theirs."""
    if not is_read(batch):
        return cast_floats(batch, dtype)
    return lambda first_step: (cast_floats(numbers(each, "batch"), dtype) for each in batch(first_step))


def draws(objective: Objective) -> bool:
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
