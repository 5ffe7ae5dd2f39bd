"""Data that is read as it is needed: batches from an iterator, read ahead by a thread, several in one compiled chunk.

``batches(first_step)`` returns an iterator of batches from that step on. So a run that goes on needs no state of the
reader: it asks for the batches from where it is.
"""

import inspect
import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._trees import structure_difference
from minijaxnet._types import PyTree
from minijaxnet.batches import CHUNK_BYTES, count_points
from minijaxnet.data import check_batch, numbers

# Batches that are stacked for a chunk, at most: enough that the host is not waited for, few enough to be read soon.
_STACKED = 64
_AHEAD = 2  # stacks that are read before they are needed
_LEAVING_S = 2.0  # how long the thread is waited for: one batch, unless the reader hangs

Batches = Callable[[int], Iterator[Any]]


class Stacked(NamedTuple):
    """The order of a stack of batches: ``arrays`` are ``(stack, first)``, the place of the first step's batch in it."""

    batches: int

    def most_steps(self) -> int:
        """How many steps a chunk may have."""
        return self.batches

    def draw(self, arrays: PyTree, first: Any, steps: Any, capacity: int) -> PyTree:
        """The stack itself."""
        return arrays

    def at(self, drawn: PyTree, k: Any) -> PyTree:
        """The batch of the k-th step."""
        stack, first = drawn
        return jax.tree.map(lambda leaf: leaf[first + k], stack)


class Stream:
    """A source whose batches are read from a step on, in stacks.

    Attributes:
        order: how a step finds its batch.
        ended: whether there are no more batches.
        left_out: how many batches were left out, since they had fewer points than the first.
    """

    def __init__(self, batches: Batches, position: int):
        """Read the first batch, from a position on: so many batches were read before.

        Raises:
            TypeError: no iterator, or one of what is no batch.
            ValueError: there is no batch.
        """
        try:
            inspect.signature(batches).bind(position)
        except TypeError as error:
            raise TypeError(
                f"data: got a function with other arguments ({error}); expected batches(first_step)"
            ) from None
        read = batches(position)
        if not hasattr(read, "__iter__"):
            raise TypeError(f"data: it returns a {type(read).__name__}; expected an iterator of batches")
        self._read = iter(read)
        try:
            first = next(self._read)
        except StopIteration:
            raise ValueError(f"data: got no batch from step {position:,} on; expected some") from None
        check_batch(first, "batch")
        first = _on_host(first)
        whole = first_batch_of(batches) if position else first  # it may go on at a batch that has fewer points
        self._like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), whole)
        nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(first))
        self.order = Stacked(max(2, min(_STACKED, CHUNK_BYTES // max(1, nbytes))))
        self.left_out, self.ended = 0, False
        self._stack: Any = None
        self._at, self._numbers, self._first, self._next = 0, [], position, position
        self._queue: queue.Queue[Any] = queue.Queue(_AHEAD)
        self._stop = threading.Event()
        x64 = jnp.result_type(float) == jnp.float64
        self._thread = threading.Thread(target=self._read_ahead, args=(first, x64), daemon=True)
        self._thread.start()

    def _read_ahead(self, first: Any, x64: bool) -> None:
        """Put stacks into the queue, and last of all an error or None."""
        try:
            with jax.enable_x64(x64):  # which each thread has for itself
                whole = self._whole(itertools.chain([first], map(_on_host, self._read)))
                while some := list(itertools.islice(whole, self.order.batches)):
                    if self._stop.is_set():
                        return
                    numbers, stack = map(list, zip(*some, strict=True))
                    stack += [stack[-1]] * (self.order.batches - len(stack))  # one shape, one program
                    stacked = jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *stack))
                    if not self._give((stacked, numbers)):
                        return
            self._give(None)
        except BaseException as error:
            self._give(error)

    def _whole(self, read: Iterator[Any]) -> Iterator[tuple[int, Any]]:
        """The batches that are like the first, and their places; those with fewer points are left out."""
        points = count_points(self._like)
        for number, batch in enumerate(read, self._first):
            if self._stop.is_set():
                return
            if difference := structure_difference(batch, self._like):
                if jax.tree.structure(batch) == jax.tree.structure(self._like):
                    if 0 <= count_points(batch) < points:
                        self.left_out += 1
                        continue
                raise ValueError(f"data: batch {number:,} is not like the first one: {difference}")
            yield number, batch

    def _give(self, item: Any) -> bool:
        """Put it where it is waited for; whether anybody still waits."""
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def arrays(self) -> PyTree:
        """The stack, and where in it the next batch is; after the end the last one there was.

        Raises:
            Exception: what reading raised.
        """
        if not self.left and not self.ended:
            item = self._queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                if self._stack is None:
                    raise ValueError(f"data: got no whole batch from step {self._first:,} on; expected some")
                self.ended = True
            else:
                (self._stack, self._numbers), self._at = item, 0
        return self._stack, np.int32(min(self._at, max(0, len(self._numbers) - 1)))

    @property
    def left(self) -> int:
        """How many batches of the stack at hand are left."""
        return len(self._numbers) - self._at

    @property
    def position(self) -> int:
        """How many batches have been read up to the next one, those that were left out among them."""
        return self._next

    def take(self, count: int) -> None:
        """Go on by so many batches."""
        self._at += count
        if count:
            self._next = self._numbers[self._at - 1] + 1

    def close(self) -> None:
        """Have the thread end, and wait for that: a thread within XLA while Python ends would abort the process."""
        self._stop.set()
        self._thread.join(_LEAVING_S)
        if (close := getattr(self._read, "close", None)) is not None and not self._thread.is_alive():
            close()


def _on_host(batch: PyTree) -> Any:
    """A batch as NumPy arrays, also one of torch's tensors."""
    return jax.tree.map(np.asarray, numbers(batch, "batch"))


def is_read(data: PyTree) -> TypeGuard[Batches]:
    """Whether data is read as it is needed, by a function ``batches(first_step)``."""
    return callable(data)


def padded(batches: Batches) -> Batches:
    """Batches of one size, with a weight for each point: 0 for those that fill up a batch which has fewer, else 1.

    ::

        loss = sum(weight * error) / sum(weight)

    Args:
        batches: ``batches(first_step)``, as for ``fit``; the first one is the largest.

    Returns:
        The same, with the weights, ``(points,)`` in float32, as a last entry of a tuple, or as ``"weight"`` of a dict.

    Example:
        >>> read = padded(lambda first_step: iter([(np.ones(3),), (np.ones(2),)]))
        >>> [weight.tolist() for _, weight in read(0)]
        [[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]
    """

    def weighted(first_step: int) -> Iterator[Any]:
        most = count_points(first_batch_of(batches)) if first_step else 0  # a run may go on at a batch that has fewer
        for batch in batches(first_step):
            batch = _on_host(batch)
            points = count_points(batch)
            most = most or points
            if points > most:
                raise ValueError(f"data: got a batch of {points:,} points; expected at most {most:,}, as in the first")
            more = most - points
            filled = jax.tree.map(lambda leaf, more=more: np.pad(leaf, [(0, more)] + [(0, 0)] * (leaf.ndim - 1)), batch)
            weight = (np.arange(most) < points).astype(np.float32)
            yield {**filled, "weight": weight} if isinstance(filled, dict) else (*filled, weight)

    return weighted


def first_batch_of(data: PyTree) -> Any:
    """The first batch where data is read as it is needed; other data as they are.

    >>> first_batch_of(lambda first_step: iter([np.ones(2)]))
    array([1., 1.])
    """
    return _on_host(next(iter(data(0)))) if is_read(data) else data
