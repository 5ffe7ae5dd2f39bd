"""Which batch a step looks at: always the same one, or minibatches in a new order each epoch.

A feed is hashable, and static where it is compiled. ``draw`` makes, before the loop, what ``at`` needs inside it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from minijaxnet.pytrees import check_count

# A chunk of steps is at most this long, and what is kept for it at most this large: one compilation serves any number.
CHUNK_STEPS = 2**15
CHUNK_BYTES = 2**24


class OneBatch(NamedTuple):
    """Every step looks at the same batch."""

    def most_steps(self) -> int:
        """How many steps a chunk may have."""
        return CHUNK_STEPS

    def draw(self, source: Any, first: Any, steps: Any, capacity: int) -> Any:
        """Nothing is to be drawn."""
        return source

    def at(self, drawn: Any, k: Any) -> Any:
        """The batch of a step."""
        return drawn


class Minibatches(NamedTuple):
    """Each step looks at its own rows of the data, in a new order each epoch; ``source`` is ``(data, key)``."""

    batch_size: int
    points: int

    @property
    def per_epoch(self) -> int:
        """Steps an epoch."""
        return self.points // self.batch_size

    def most_steps(self) -> int:
        """How many steps a chunk may have, so that its order of points stays small."""
        return min(CHUNK_STEPS, max(self.per_epoch, CHUNK_BYTES // (4 * self.batch_size)))

    def draw(self, source: Any, first: Any, steps: Any, capacity: int) -> Any:
        """The rows of each step from ``first`` on, drawn before the loop: a sort inside would cost it dearly."""
        (data, key), per_epoch = source, self.per_epoch
        first_epoch, offset = first // per_epoch, first % per_epoch

        def draw_epoch(i: jax.Array, order: jax.Array) -> jax.Array:
            shuffled = jax.random.permutation(jax.random.fold_in(key, first_epoch + i), self.points)
            return order.at[i].set(shuffled[: per_epoch * self.batch_size].reshape(per_epoch, -1))

        most_epochs = -(-capacity // per_epoch) + 1
        order = jnp.zeros((most_epochs, per_epoch, self.batch_size), jnp.int32)
        epochs = (offset + steps + per_epoch - 1) // per_epoch
        rows = lax.fori_loop(0, epochs, draw_epoch, order).reshape(-1, self.batch_size)
        return data, rows, offset

    def at(self, drawn: Any, k: Any) -> Any:
        """The batch of the k-th step of those that were drawn for."""
        data, rows, offset = drawn
        return jax.tree.map(lambda leaf: leaf[rows[offset + k]], data)


def minibatches_of(data: Any, batch_size: Any) -> Minibatches:
    """How the data falls into minibatches of a size, checked."""
    points, batch_size = count_points(data), check_count("batch_size", batch_size, least=1)
    if batch_size > points:
        raise ValueError(f"batch_size: got {batch_size}; expected at most {points}, the points there are")
    return Minibatches(batch_size, points)


def count_points(data: Any) -> int:
    """The length of the batch axis, the same for all leaves.

    Raises:
        ValueError: there are none, or they differ.
    """
    lengths = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(data)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"data: got batch axes of length {sorted(lengths)}; expected one length, above 0")
    return lengths.pop()
