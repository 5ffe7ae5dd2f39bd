"""Which batch a step uses: always the same one, or minibatches in a new order each epoch.

An order is hashable, and a static argument of compiled programs. Its ``draw`` prepares, before the loop, the data that
``at`` needs inside it. A source has an order and the arrays that it draws from: ``InMemory`` here, ``streams.Stream``
for batches that are read while the descent runs.
"""

import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from minijaxnet._checks import check_count
from minijaxnet._types import PyTree

# The most steps of a chunk, and the most bytes of its history and order. All chunks share one compiled program.
CHUNK_STEPS = 2**15
CHUNK_BYTES = 2**24


class Order(Protocol):
    """How a step finds its batch in the arrays of a source."""

    def most_steps(self) -> int:
        """The most steps that a chunk may have."""
        ...

    def draw(self, arrays: PyTree, first: Any, steps: Any, capacity: int) -> PyTree:
        """Prepare what ``at`` needs for the steps from ``first`` on; called before the loop; ``steps <= capacity``."""
        ...

    def at(self, drawn: PyTree, k: Any) -> PyTree:
        """The batch of the k-th of these steps."""
        ...


class Source(Protocol):
    """Batches: their order, and the arrays they are drawn from."""

    @property
    def order(self) -> Order:
        """How a step finds its batch."""
        ...

    def arrays(self) -> PyTree:
        """The arrays that the order draws from."""
        ...


class OneBatch(NamedTuple):
    """The order in which every step uses the same batch."""

    def most_steps(self) -> int:
        """The most steps that a chunk may have."""
        return CHUNK_STEPS

    def draw(self, arrays: PyTree, first: Any, steps: Any, capacity: int) -> PyTree:
        """The batch itself."""
        return arrays

    def at(self, drawn: PyTree, k: Any) -> PyTree:
        """The batch of each step."""
        return drawn


class Minibatches(NamedTuple):
    """The order of shuffled rows of the data, in a new order each epoch; ``arrays`` are ``(data, key)``."""

    batch_size: int
    points: int

    @property
    def per_epoch(self) -> int:
        """Steps per epoch."""
        return self.points // self.batch_size

    def most_steps(self) -> int:
        """The most steps that a chunk may have, so that the drawn rows stay small."""
        return min(CHUNK_STEPS, max(self.per_epoch, CHUNK_BYTES // (4 * self.batch_size)))

    def draw(self, arrays: PyTree, first: Any, steps: Any, capacity: int) -> PyTree:
        """Draw the rows of each step from ``first`` on, several epochs at a time."""
        (data, key), per_epoch = arrays, self.per_epoch
        first_epoch, offset = first // per_epoch, first % per_epoch
        at_once = max(1, min(16, 2**14 // self.points))

        def rows_of_epoch(epoch: jax.Array) -> jax.Array:
            order = shuffled(jax.random.fold_in(key, epoch), self.points)
            return order[: per_epoch * self.batch_size].reshape(per_epoch, -1)

        def draw_epochs(i: jax.Array, rows: jax.Array) -> jax.Array:
            drawn = jax.vmap(rows_of_epoch)(first_epoch + i * at_once + jnp.arange(at_once))
            return lax.dynamic_update_slice_in_dim(rows, drawn, i * at_once, 0)

        most_epochs = -(-capacity // per_epoch) + at_once
        rows = jnp.zeros((most_epochs, per_epoch, self.batch_size), jnp.int32)
        epochs = (offset + steps + per_epoch - 1) // per_epoch
        rows = lax.fori_loop(0, (epochs + at_once - 1) // at_once, draw_epochs, rows)
        return data, rows.reshape(-1, self.batch_size), offset

    def at(self, drawn: PyTree, k: Any) -> PyTree:
        """The batch of the k-th of these steps."""
        data, rows, offset = drawn
        return jax.tree.map(lambda leaf: leaf[rows[offset + k]], data)


class InMemory(NamedTuple):
    """A source whose data are all in memory. The fields after ``data`` are those of a ``Stream``."""

    order: Order
    data: PyTree
    left: int = 2**31 - 1
    ended: bool = False
    left_out: int = 0
    position: int = 0

    def arrays(self) -> PyTree:
        """All data."""
        return self.data

    def take(self, count: int) -> None:
        """Do nothing: data in memory are not consumed."""

    def close(self) -> None:
        """Do nothing: no file is open."""


def shuffled(key: jax.Array, points: int) -> jax.Array:
    """Shuffle ``0 ... points - 1``: sort words of random high bits with each point's place in the low bits.

    XLA sorts words on a CPU several times faster than words with a payload. With r random bits per word, ``rounds``
    sorts leave fewer than ``points^2 / 2^(r rounds + 1) <= 1/2`` pairs tied on average. The highest bit in which the
    places of two tied points differ decides which comes first. As the places are XORed with a random word, both orders
    are equally likely.
    """
    place_bits = (points - 1).bit_length()
    rounds = math.ceil(2 * math.log2(points) / (32 - place_bits))
    low = jnp.uint32((1 << place_bits) - 1)
    places = order = jnp.arange(points, dtype=jnp.uint32)
    words = jax.random.bits(key, (rounds, points + 1), jnp.uint32)
    for word, coin in zip(words[:, :-1], words[:, -1] & low, strict=True):
        behind_bits = jnp.sort((word & ~low) | (places ^ coin))
        order = order[(behind_bits & low) ^ coin]
    return order.astype(jnp.int32)


def minibatches_of(data: PyTree, batch_size: Any) -> Minibatches:
    """The order of minibatches of the data, with checked arguments."""
    points, batch_size = count_points(data), check_count("batch_size", batch_size, least=1)
    if batch_size > points:
        raise ValueError(f"batch_size: got {batch_size}; expected at most {points}, the points there are")
    return Minibatches(batch_size, points)


def count_points(data: PyTree) -> int:
    """The length of the batch axis, which is the same for all leaves.

    Raises:
        ValueError: there are no leaves, the lengths differ, or the length is 0.
    """
    lengths = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(data)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"data: got batch axes of length {sorted(lengths)}; expected one length, above 0")
    return lengths.pop()


def check_steps(steps: Any) -> int:
    """Check a number of steps, which has to fit into the int32 counter of a state.

    Raises:
        TypeError: it is no int.
        ValueError: it is negative, or 2^31 or more.
    """
    if check_count("steps", steps) >= 2**31:
        raise ValueError(f"steps: got {steps:,}; expected less than {2**31:,}, as int32 counts them")
    return int(steps)


def check_key(key: Any) -> None:
    """Check that this is one random key.

    Raises:
        TypeError: it is not a key, or it is several keys.
    """
    dtype, ndim = getattr(key, "dtype", None), getattr(key, "ndim", None)
    is_key = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and ndim == 0
    if not is_key and not (dtype == jnp.uint32 and ndim == 1):
        got = "None" if key is None else f"a {type(key).__name__}" + (f" of shape {key.shape}" if ndim else "")
        raise TypeError(f"key: got {got}; expected a jax.random.key, for the order of the minibatches")
