"""Checks of arguments: a function, a count, a number, one batch."""

import operator
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._trees import array_type
from minijaxnet._types import PyTree


def check_callable(name: str, value: Any) -> Any:
    """Return the value if it can be called.

    >>> check_callable("objective", None)
    Traceback (most recent call last):
    TypeError: objective: got None; expected a function
    """
    if not callable(value):
        got = value if value is None or isinstance(value, str | bool | int | float) else type(value).__name__
        raise TypeError(f"{name}: got {got!r}; expected a function")
    return value


def check_count(name: str, value: Any, *, least: int = 0) -> int:
    """Return the value as an int that is at least ``least``.

    >>> check_count("steps", -1)
    Traceback (most recent call last):
    ValueError: steps: got -1; expected at least 0
    """
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: got {value!r}; expected an int") from None
    if isinstance(value, bool):
        raise TypeError(f"{name}: got {value!r}; expected an int")
    if count < least:
        raise ValueError(f"{name}: got {count}; expected at least {least}")
    return count


def is_number(value: Any) -> bool:
    """Whether the value is one real number of Python, NumPy or JAX.

    >>> is_number(np.int64(1)), is_number(jnp.ones(())), is_number(True), is_number("1"), is_number(np.ones(1))
    (True, True, False, False, False)
    """
    if not isinstance(value, int | float | np.number | np.ndarray | jax.Array) or isinstance(value, bool):
        return False
    kind = jnp.result_type(value)
    return jnp.shape(value) == () and (jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer))


def pair(batch: PyTree, where: str = "batch") -> tuple[Any, Any]:
    """Return a batch as ``(x, y)``.

    Raises:
        TypeError: it is not a pair; x or y is None; it is several batches, or an iterator of batches.

    Example:
        >>> pair([1, 2, 3])
        Traceback (most recent call last):
        TypeError: batch: got list of 3; expected a pair (x, y)
    """
    check_one_batch(batch, where)
    if not is_pair(batch):
        size = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        got = array_type(batch) if hasattr(batch, "dtype") else type(batch).__name__ + size
        raise TypeError(f"{where}: got {got}; expected a pair (x, y)")
    return batch[0], batch[1]


def check_one_batch(batch: PyTree, where: str) -> None:
    """Check that this is one batch.

    Raises:
        TypeError: it is a list of batches, an iterator of batches, or a pair in which x or y is None.
    """
    join = "expected one tree of arrays with all points (np.concatenate joins batches, batch_size= makes minibatches), "
    join += "or a function batches(first_step) that returns an iterator of batches"
    if isinstance(batch, Iterator) or (hasattr(batch, "__iter__") and not hasattr(batch, "__getitem__")):
        raise TypeError(f"{where}: got a {type(batch).__name__}, which yields batches; {join}")
    if isinstance(batch, list) and len(batch) > 1 and _alike_containers(batch):
        raise TypeError(f"{where}: got a list of {len(batch)} batches; {join}")
    for side, half in zip("xy", batch, strict=True) if is_pair(batch) else ():
        if half is None:
            raise TypeError(f"{where}.{side}: got None; expected an array, or a tree of them")


def is_pair(batch: PyTree) -> bool:
    """Whether a batch is a tuple or list of two."""
    return isinstance(batch, tuple | list) and len(batch) == 2


def _alike_containers(trees: list[Any]) -> bool:
    if not all(isinstance(tree, tuple | list | dict) for tree in trees):
        return False
    return len({jax.tree.structure(tree) for tree in trees}) == 1
