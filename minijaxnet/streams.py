"""Data that is read during the descent: batches from an iterator, read ahead by a thread, several per compiled chunk.

``batches(first_step)`` returns an iterator of batches from that step on. So a resumed run needs no state of the reader.
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

# The most batches in a stack: enough that chunks rarely wait for the host, few enough to be read quickly.
_STACKED = 64
_AHEAD = 2  # stacks that are read ahead
_LEAVING_S = 2.0  # the most seconds to wait for the thread, which stops after one batch unless the reader hangs

Batches = Callable[[int], Iterator[Any]]


class Stacked(NamedTuple):
    """The order of a stack of batches; ``arrays`` are ``(stack, first)``, with the first step's place in the stack."""

    batches: int

    def most_steps(self) -> int:
        """The most steps that a chunk may have."""
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
        left_out: how many batches were left out because they had fewer points than the first one.
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
        """Put stacks into the queue, and at the end an error or None."""
        try:
            with jax.enable_x64(x64):  # the setting is separate for each thread
                whole = self._whole(itertools.chain([first], map(_on_host, self._read)))
                while some := list(itertools.islice(whole, self.order.batches)):
                    if self._stop.is_set():
                        return
                    numbers, stack = map(list, zip(*some, strict=True))
                    stack += [stack[-1]] * (self.order.batches - len(stack))  # so that all stacks share one program
                    stacked = jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *stack))
                    if not self._put((stacked, numbers)):
                        return
            self._put(None)
        except BaseException as error:
            self._put(error)

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

    def _put(self, item: Any) -> bool:
        """Put an item into the queue; False if the stream has been closed."""
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def arrays(self) -> PyTree:
        """The stack, and the place of the next batch in it; after the end that of the last batch.

        Raises:
            Exception: reading raised it.
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
        """How many batches of the current stack are left."""
        return len(self._numbers) - self._at

    @property
    def position(self) -> int:
        """How many batches were read before the next one, including those that were left out."""
        return self._next

    def take(self, count: int) -> None:
        """Advance by some batches."""
        self._at += count
        if count:
            self._next = self._numbers[self._at - 1] + 1

    def close(self) -> None:
        """Stop the thread and wait for it: a thread that is inside XLA when Python exits would abort the process."""
        self._stop.set()
        self._thread.join(_LEAVING_S)
        if (close := getattr(self._read, "close", None)) is not None and not self._thread.is_alive():
            close()


def _on_host(batch: PyTree) -> Any:
    """Convert a batch to NumPy arrays, also one of torch tensors."""
    return jax.tree.map(np.asarray, numbers(batch, "batch"))


def is_read(data: PyTree) -> TypeGuard[Batches]:
    """Whether data is a function ``batches(first_step)``."""
    return callable(data)


def padded(batches: Batches) -> Batches:
    """Pad smaller batches to the size of the first one, and add a weight for each point: 0 for padding, else 1.

    ::

        loss = sum(weight * error) / sum(weight)

    Args:
        batches: ``batches(first_step)``, as for ``fit``; the first one is the largest.

    Returns:
        A function like ``batches``, whose batches have the weights, ``(points,)`` in float32, as last entry of a tuple,
        or as ``"weight"`` of a dict.

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
    """The first batch if data is a function ``batches(first_step)``; else the data.

    >>> first_batch_of(lambda first_step: iter([np.ones(2)]))
    array([1., 1.])
    """
    return _on_host(next(iter(data(0)))) if is_read(data) else data
