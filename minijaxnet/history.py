"""The history of a descent: a row for each step, and how it ended."""

import enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from minijaxnet._checks import is_number
from minijaxnet._types import PyTree
from minijaxnet.descent import StepInfo


class Status(enum.IntEnum):
    """How a descent ended: ``OUT_OF_STEPS``, ``FLAT``, ``DIVERGED`` or ``STOPPED_EARLY``.

    FLAT: the gradient's norm was at most ``until_flat``. DIVERGED: the next loss or gradient was not finite.
    STOPPED_EARLY (only by ``fit``): a metric did not improve for ``patience`` rows.

    Example:
        >>> Status(1).name, Status.DIVERGED == 2
        ('FLAT', True)
    """

    OUT_OF_STEPS = 0
    FLAT = 1
    DIVERGED = 2
    STOPPED_EARLY = 3


OUT_OF_STEPS, FLAT, DIVERGED, STOPPED_EARLY = Status


class Trace(NamedTuple):
    """Loss, gradient norm and aux before each step of a descent, and how it ended.

    Its leaves are NumPy arrays, and JAX arrays under ``jit`` and ``vmap``.

    Attributes:
        loss: ``(steps,)`` in the loss's dtype; row k is the loss before step k, NaN for steps that were not taken. With
            more than 2^20 steps the rows of steps that were not taken may be missing.
        gradient_norm: ``(steps,)``, float32 or wider; row k is the gradient's norm before step k.
        aux: the objective's aux, each leaf with a leading axis of steps; after the last step NaN, or 0 for dtypes
            without NaN.
        steps_taken: int32. For a descent that diverged it is the step at which that happened.
        status: int32, a ``Status``: FLAT, OUT_OF_STEPS or DIVERGED; one for each replica under ``jax.vmap``.
    """

    loss: Any
    gradient_norm: Any
    aux: PyTree
    steps_taken: Any
    status: Any


# Below every gradient norm.
_NEVER_FLAT = -1.0
# Memory for this many rows is allocated at the start, and for more of them when needed.
_FIRST_ROWS = 2**20


class History:
    """The rows of consecutive chunks, collected on the host."""

    def __init__(self, steps: int):
        """Start without rows; at most ``steps`` rows follow."""
        self.steps, self.steps_taken, self.status = steps, 0, np.int32(OUT_OF_STEPS)
        self._rows: Any = None

    def append(self, chunk: Trace) -> StepInfo:
        """Append the rows of the steps that the chunk took, and return them."""
        chunk = jax.device_get(chunk)
        taken, first = int(chunk.steps_taken), self.steps_taken
        rows = jax.tree.map(lambda leaf: leaf[:taken], rows_of(chunk))
        if self._rows is None:
            self._rows = jax.tree.map(lambda leaf: _enlarged(leaf, min(self.steps, _FIRST_ROWS)), rows)
        if first + taken > len(self._rows.loss):
            self._rows = jax.tree.map(lambda leaf: _enlarged(leaf, min(self.steps, 2 * (first + taken))), self._rows)
        for mine, new in zip(jax.tree.leaves(self._rows), jax.tree.leaves(rows), strict=True):
            mine[first : first + taken] = new
        self.steps_taken, self.status = first + taken, chunk.status
        return rows

    def trace(self) -> Trace:
        """The trace of all rows so far, with missing values after the last step."""
        assert self._rows is not None, "a history has at least one chunk, even if it is empty"
        rows = self._rows
        if len(rows.loss) < self.steps:
            rows = jax.tree.map(lambda leaf: leaf[: self.steps_taken].copy(), rows)
        for leaf in jax.tree.leaves(rows):
            leaf[self.steps_taken :] = missing_value(leaf)
        return Trace(rows.loss, rows.gradient_norm, rows.aux, np.int32(self.steps_taken), self.status)


def _enlarged(rows: np.ndarray, count: int) -> np.ndarray:
    """An array of ``count`` rows that starts with the given ones."""
    enlarged = np.empty((count, *rows.shape[1:]), rows.dtype)
    enlarged[: len(rows)] = rows
    return enlarged


def packed(info: StepInfo) -> tuple[Any, ...]:
    """A row of the history: loss and norm in one array if they share a dtype.

    That is one write instead of two. XLA compiles a loop for the CPU to one native function, fifteen times as fast for
    the smallest networks, if a round touches at most about a kilobyte; so packed, a 2-2-1 network with bias does.
    """
    rest = (info.aux, info.accepted)
    if info.loss.dtype == info.gradient_norm.dtype:
        return jnp.stack((info.loss, info.gradient_norm)), *rest
    return info.loss, info.gradient_norm, *rest


def unpacked(history: tuple[Any, ...]) -> StepInfo:
    """Undo ``packed`` for a history of rows."""
    if len(history) == 4:
        return StepInfo(*history)
    pairs, *rest = history
    return StepInfo(pairs[:, 0], pairs[:, 1], *rest)


def flat_norm(until_flat: Any, *, sampled: bool) -> Any:
    """Check ``until_flat``. With sampled gradients 0 means that the descent never counts as flat."""
    if not is_number(until_flat):
        raise TypeError(f"until_flat: got {until_flat!r}; expected a gradient norm, a number")
    if not isinstance(until_flat, Tracer) and not float(until_flat) >= 0:
        raise ValueError(f"until_flat: got {until_flat}; expected a gradient norm, at least 0")
    xp = jnp if isinstance(until_flat, Tracer) else np
    never_for_zero = xp.where(until_flat > 0, until_flat, _NEVER_FLAT) if sampled else until_flat
    return xp.asarray(never_for_zero, jnp.result_type(float))


def may_step(info: StepInfo, until_flat: Any) -> Any:
    """Whether a step may be taken: the gradient is not flat, and the step is accepted."""
    norm = info.gradient_norm
    if jax.tree.leaves(info.accepted):  # an accepted norm may be NaN, which only an infinite limit calls flat
        return info.accepted & ((norm > until_flat) | (jnp.isnan(norm) & (until_flat < jnp.inf)))
    return jnp.isfinite(info.loss) & jnp.isfinite(norm) & (norm > until_flat)


def rows_of(trace: Trace) -> StepInfo:
    """The rows of a trace."""
    return StepInfo(trace.loss, trace.gradient_norm, trace.aux)


def missing_value(leaf: Any) -> Any:
    """The value for rows of steps that were not taken: NaN, or 0 for dtypes without NaN."""
    return np.asarray(jnp.nan if jnp.issubdtype(leaf.dtype, jnp.inexact) else 0, leaf.dtype)


def without_untaken(trace: Trace, steps: int) -> Trace:
    """The first ``steps`` rows, with missing values for steps that were not taken."""
    taken = lax.iota(jnp.int32, steps) < trace.steps_taken

    def mask(leaf: jax.Array) -> jax.Array:
        # With jax_debug_nans JAX raises an error for any NaN.
        untaken = 0 if jax.config.values["jax_debug_nans"] else missing_value(leaf)
        return jnp.where(taken.reshape(-1, *[1] * (leaf.ndim - 1)), leaf[:steps], untaken)

    rows = jax.tree.map(mask, rows_of(trace))
    return trace._replace(loss=rows.loss, gradient_norm=rows.gradient_norm, aux=rows.aux)
