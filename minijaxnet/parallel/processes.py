"""Communication between several processes that run one program, on the host between compiled steps.

All processes run the same lines and call the same compiled programs in the same order. Only one process sees a clock, a
signal or a disk, so it has to share the value before any process acts on it. All processes call each of these functions
together. With a single process the functions return at once.
"""

import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._trees import is_keys
from minijaxnet._types import PyTree

# The exit code of a process that ends because another one ended.
LOST = 3

_BROKEN = re.compile(r"\b(Gloo|NCCL|MPI|coordination service|heartbeat)\b")


def is_first() -> bool:
    """Whether this is the process that prints and writes; true if there is only one."""
    return jax.process_index() == 0


def all_gather(numbers: Sequence[int]) -> np.ndarray:
    """Gather the numbers of all processes, int32 of shape ``(processes, numbers)``.

    >>> all_gather([1, 2])
    array([[1, 2]], dtype=int32)
    """
    own = np.asarray(numbers, np.int32)
    if jax.process_count() == 1:
        return own[None]
    from jax.experimental import multihost_utils  # 10 ms: imported where used

    return multihost_utils.process_allgather(own)


def all_gather_texts(text: str) -> list[str]:
    """Gather a text from each process.

    >>> all_gather_texts("one")
    ['one']
    """
    if jax.process_count() == 1:
        return [text]
    from jax.experimental import multihost_utils

    content = text.encode()
    longest = int(all_gather([len(content)]).max())
    padded = np.frombuffer(content.ljust(longest + 1, b"\0"), np.uint8)  # + 1: the array must not be empty
    return [bytes(row).rstrip(b"\0").decode() for row in multihost_utils.process_allgather(padded)]


def broadcast(content: Any) -> Any:
    """Return the first process's content, a JSON value; that of the others is ignored.

    >>> broadcast({"step": 3})
    {'step': 3}
    """
    if jax.process_count() == 1:
        return content
    return json.loads(all_gather_texts(json.dumps(content) if is_first() else "")[0])


def broadcast_arrays(tree: PyTree, like: PyTree) -> Any:
    """Return the first process's arrays, bit by bit, placed like those of ``like``.

    Args:
        tree: in the first process a tree of JAX arrays, random keys and NumPy arrays, with all their data; ignored in
            the others.
        like: a tree of the same structure, shapes and dtypes, in each process.
    """
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    expected = jax.tree.map(_bits, to_host(like))
    own = jax.tree.map(_bits, tree) if is_first() else expected
    raw = [np.ascontiguousarray(leaf).reshape(-1).view(np.uint8) for leaf in jax.tree.leaves(own)]
    every = multihost_utils.broadcast_one_to_all(np.concatenate([np.zeros(1, np.uint8), *raw]))
    parts = np.split(np.asarray(every)[1:], np.cumsum([len(part) for part in raw])[:-1])
    leaves = zip(parts, jax.tree.leaves(expected), jax.tree.leaves(like), strict=True)
    placed = [_placed(part.view(bits.dtype).reshape(bits.shape), leaf) for part, bits, leaf in leaves]
    return jax.tree.unflatten(jax.tree.structure(like), placed)


def merge_rows(tree: PyTree, present: np.ndarray) -> tuple[Any, np.ndarray]:
    """Merge NumPy arrays of which each process has some rows; a row comes from the first process that has it.

    Args:
        tree: of the same structure, shapes and dtypes in each process, with the axes of ``present`` in front.
        present: which rows this process has.

    Returns:
        The arrays, and which rows any process has.

    >>> print(merge_rows(np.arange(3), np.array([True, False, True])))
    (array([0, 1, 2]), array([ True, False,  True]))
    """
    if jax.process_count() == 1:
        return tree, present
    from jax.experimental import multihost_utils

    each = np.asarray(multihost_utils.process_allgather(present))
    whose = np.argmax(each, axis=0)

    def chosen(leaf: np.ndarray) -> np.ndarray:
        # As bytes, since JAX may not have 64 bits enabled. The added axis becomes the bytes of each number.
        bits = np.ascontiguousarray(leaf)[..., None].view(np.uint8)
        every = np.asarray(multihost_utils.process_allgather(bits))
        picked = np.take_along_axis(every, whose.reshape(1, *whose.shape, *[1] * (bits.ndim - whose.ndim)), axis=0)[0]
        return np.ascontiguousarray(picked).view(leaf.dtype).reshape(leaf.shape)

    return jax.tree.map(chosen, tree), np.asarray(each.any(axis=0))


def to_host(tree: PyTree) -> Any:
    """Return the tree with all data in this process; arrays that are divided over processes are gathered."""
    return tree if jax.process_count() == 1 else jax.tree.map(_gathered, tree)


def local_share(tree: PyTree) -> Any:
    """This process's share of arrays that are divided over processes along their first axis."""

    def share(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        if leaf.is_fully_replicated:
            return leaf.addressable_data(0)
        parts = {shard.index[0].start or 0: shard.data for shard in leaf.addressable_shards}
        return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

    return jax.tree.map(share, tree)


def is_lost(error: BaseException) -> bool:
    """Whether an error means that another process has ended: a runtime error of JAX, or a ValueError in a gather."""
    of_jax = isinstance(error, jax.errors.JaxRuntimeError | ValueError)
    return of_jax and jax.process_count() > 1 and bool(_BROKEN.search(str(error)))


def leave(code: int) -> NoReturn:
    """End this process at once, without waiting for the others as a normal exit does."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _gathered(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
    if leaf.is_fully_replicated:
        return leaf.addressable_data(0)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(leaf, tiled=True)


def _bits(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if isinstance(leaf, jax.Array) and is_keys(leaf) else leaf)


def _placed(array: np.ndarray, like: PyTree) -> Any:
    if not isinstance(like, jax.Array):
        return array
    if is_keys(like):
        data = _placed(array, jax.random.key_data(like))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))
    if like.is_fully_addressable:
        return jnp.asarray(array)
    return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])
