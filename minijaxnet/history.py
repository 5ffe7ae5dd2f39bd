"""What a descent went through: a row a step, and how it ended."""

import enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from minijaxnet.descent import StepInfo


class Status(enum.IntEnum):
    """How a descent ended: ``OUT_OF_STEPS``, ``FLAT``, ``DIVERGED`` or ``STOPPED_EARLY``.

    FLAT: the gradient's norm was at most ``until_flat``. DIVERGED: the next loss or gradient was not finite.
    STOPPED_EARLY, by ``fit`` alone: a measured number became no better for as many rows as ``patience`` says.

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
    """What each step of a descent saw, and how it ended.

    NumPy arrays where a descent was called plainly, JAX arrays under ``jit`` and ``vmap``.

    Attributes:
        loss: ``(steps,)`` in the loss's dtype; row k is the loss before step k, NaN for steps that were not taken. Of
            more than 2^20 steps those that were not taken may have no row.
        gradient_norm: ``(steps,)``, float32 or wider; row k is the gradient's norm before step k.
        aux: the objective's aux, each leaf with a leading axis of steps; past the end NaN, or 0 where there is no NaN.
        steps_taken: int32. For a descent that diverged it is the step at which that happened.
        status: int32, a ``Status``: FLAT, OUT_OF_STEPS or DIVERGED; one a replica under ``jax.vmap``.
    """

    loss: Any
    gradient_norm: Any
    aux: Any
    steps_taken: Any
    status: Any


# A norm that no gradient has.
_NEVER_FLAT = -1.0
# Room for so many rows is made at once; for more of them only as they come.
_AT_ONCE = 2**20


class History:
    """The rows of consecutive chunks, put together on the host."""

    def __init__(self, steps: int):
        """Have no rows yet, of ``steps`` at most."""
        self.steps, self.steps_taken, self.status = steps, 0, np.int32(OUT_OF_STEPS)
        self._rows: Any = None

    def append(self, chunk: Trace) -> StepInfo:
        """Take over the rows of the steps that the chunk took, and hand them back."""
        chunk = jax.device_get(chunk)
        taken, first = int(chunk.steps_taken), self.steps_taken
        rows = jax.tree.map(lambda leaf: leaf[:taken], rows_of(chunk))
        if self._rows is None:
            self._rows = jax.tree.map(lambda leaf: _room(leaf, min(self.steps, _AT_ONCE)), rows)
        if first + taken > len(self._rows.loss):
            self._rows = jax.tree.map(lambda leaf: _room(leaf, min(self.steps, 2 * (first + taken))), self._rows)
        for mine, new in zip(jax.tree.leaves(self._rows), jax.tree.leaves(rows), strict=True):
            mine[first : first + taken] = new
        self.steps_taken, self.status = first + taken, chunk.status
        return rows

    def trace(self) -> Trace:
        """All rows so far; past the last step nothing, and no row where room for all was never made."""
        assert self._rows is not None, "a history has at least one chunk, be it empty"
        rows = self._rows
        if len(rows.loss) < self.steps:
            rows = jax.tree.map(lambda leaf: leaf[: self.steps_taken].copy(), rows)
        for leaf in jax.tree.leaves(rows):
            leaf[self.steps_taken :] = nothing(leaf)
        return Trace(rows.loss, rows.gradient_norm, rows.aux, np.int32(self.steps_taken), self.status)


def _room(rows: np.ndarray, count: int) -> np.ndarray:
    """The first of so many rows, with room for the others."""
    room = np.empty((count, *rows.shape[1:]), rows.dtype)
    room[: len(rows)] = rows
    return room


def packed(info: StepInfo) -> tuple[Any, ...]:
    """What is kept of a step: loss and norm side by side where they share a dtype.

    That is one write instead of two. XLA makes a loop for the CPU one native function, fifteen times as fast for the
    smallest networks, if a round touches no more than about a kilobyte; with this 2-2-1 with bias is below.
    """
    rest = (info.aux, info.accepted)
    if info.loss.dtype == info.gradient_norm.dtype:
        return jnp.stack((info.loss, info.gradient_norm)), *rest
    return info.loss, info.gradient_norm, *rest


def unpacked(history: tuple[Any, ...]) -> StepInfo:
    """What was kept, as a row a step of what ``packed`` made of each."""
    if len(history) == 4:
        return StepInfo(*history)
    pairs, *rest = history
    return StepInfo(pairs[:, 0], pairs[:, 1], *rest)


def flat_norm(until_flat: Any, *, sampled: bool) -> Any:
    """The gradient norm at which a descent rests, checked; never for 0 where a gradient is only a sample."""
    number = isinstance(until_flat, int | float | np.number | np.ndarray | jax.Array)
    if not number or isinstance(until_flat, bool) or jnp.shape(until_flat) != ():
        raise TypeError(f"until_flat: got {until_flat!r}; expected a gradient norm, a number")
    if not isinstance(until_flat, Tracer) and not float(until_flat) >= 0:
        raise ValueError(f"until_flat: got {until_flat}; expected a gradient norm, at least 0")
    xp = jnp if isinstance(until_flat, Tracer) else np
    never_for_zero = xp.where(until_flat > 0, until_flat, _NEVER_FLAT) if sampled else until_flat
    return xp.asarray(never_for_zero, jnp.result_type(float))


def may_go_on(info: StepInfo, until_flat: Any) -> Any:
    """Whether a step may be taken: the gradient is not flat, and the step is accepted."""
    is_flat = (info.gradient_norm <= until_flat) | jnp.isposinf(until_flat)  # where the norm is NaN, too
    if jax.tree.leaves(info.accepted):
        return info.accepted & ~is_flat
    return jnp.isfinite(info.loss) & jnp.isfinite(info.gradient_norm) & ~is_flat


def rows_of(trace: Trace) -> StepInfo:
    """What the steps of a trace saw."""
    return StepInfo(trace.loss, trace.gradient_norm, trace.aux)


def nothing(leaf: Any) -> Any:
    """What stands where nothing was recorded: NaN, or 0 for dtypes without it."""
    return np.asarray(jnp.nan if jnp.issubdtype(leaf.dtype, jnp.inexact) else 0, leaf.dtype)


def without_untaken(trace: Trace, steps: int) -> Trace:
    """The first ``steps`` rows, and nothing in those of steps that were not taken."""
    taken = lax.iota(jnp.int32, steps) < trace.steps_taken

    def mask(leaf: jax.Array) -> jax.Array:
        untaken = 0 if jax.config.values["jax_debug_nans"] else nothing(leaf)  # JAX then takes each NaN for an error
        return jnp.where(taken.reshape(-1, *[1] * (leaf.ndim - 1)), leaf[:steps], untaken)

    rows = jax.tree.map(mask, rows_of(trace))
    return trace._replace(loss=rows.loss, gradient_norm=rows.gradient_norm, aux=rows.aux)
