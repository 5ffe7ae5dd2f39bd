"""Where an experiment begins: its data, its first parameters and its keys."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from minijaxnet.data import check_batch
from minijaxnet.experiment import Experiment
from minijaxnet.pytrees import cast_floats


class Beginning(NamedTuple):
    """What an experiment begins with.

    Attributes:
        params: the first parameters.
        train: the training batch.
        test: the test batch.
        order_key: for the order of minibatches.
        draw_key: for an objective that draws numbers; None for any other.
    """

    params: Any
    train: Any
    test: Any
    order_key: jax.Array
    draw_key: jax.Array | None


def begin(experiment: Experiment, seed: int, precision: str, init_options: dict, data_options: dict) -> Beginning:
    """Draw an experiment's parameters and get its data, floats in the given precision.

    Raises:
        ValueError: a seed out of range, data that cannot be used.
        TypeError: data that is not two batches.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: got {seed}; expected a number from 0 to {2**32 - 1}")
    dtype = jnp.dtype(precision)
    train, test = (cast_floats(batch, dtype) for batch in _data(experiment, data_options))
    start_key, order_key, draw_key = keys_of(seed)
    params = cast_floats(jax.jit(functools.partial(experiment.init, **init_options))(start_key), dtype)
    return Beginning(params, train, test, order_key, draw_key if draws(experiment.objective) else None)


def keys_of(seed: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a seed stands for: the key of the start, of the order of minibatches, and of what an objective draws."""
    start_key, order_key, draw_key = jax.random.split(jax.random.key(seed), 3)
    return start_key, order_key, draw_key


def first_batch(data: Any, batch_size: int | None) -> Any:
    """What a step sees: the first points, or all."""
    return data if batch_size is None else jax.tree.map(lambda leaf: leaf[:batch_size], data)


def _data(experiment: Experiment, options: dict) -> tuple[Any, Any]:
    """The experiment's two batches, checked."""
    batches = experiment.data(**options)
    if not isinstance(batches, tuple | list) or len(batches) != 2:
        raise TypeError(f"data: it returns a {type(batches).__name__}; expected a pair of batches (train, test)")
    for name, batch in zip(("train", "test"), batches, strict=True):
        check_batch(batch, name)
    return batches[0], batches[1]


def draws(objective: Callable[..., Any]) -> bool:
    """Whether an objective takes a key as its third argument."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(objective).parameters.values()
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters) >= 3
