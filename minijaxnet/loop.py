"""The loop: many steps of a descent inside one compiled program.

Gradient descent is: start somewhere; until you are somewhere flat, find the slope, take a step downhill. The whole
of it is one ``lax.while_loop``, compiled once for any number of steps and any learning rate. What happened is data: a
``Trace`` says what each step saw and how it ended; nothing raises inside a compiled program.
"""

import enum
import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.custom_batching import custom_vmap

from minijaxnet.descent import Descent, DescentState, StepInfo
from minijaxnet.pytrees import structure_difference

Step = Callable[[DescentState, Any], tuple[DescentState, StepInfo]]

# A chunk's history is at most this long and this large, so that one compilation serves any number of steps.
_CHUNK_STEPS = 2**15
_CHUNK_BYTES = 2**24


class Status(enum.IntEnum):
    """How a descent ended."""

    OUT_OF_STEPS = 0
    FLAT = 1
    DIVERGED = 2


OUT_OF_STEPS, FLAT, DIVERGED = Status


class Trace(NamedTuple):
    """What each step of a descent saw, and how it ended.

    Attributes:
        loss: ``(steps,)`` in the loss's dtype; row k is the loss before step k, NaN for steps that were not taken.
        gradient_norm: ``(steps,)``, float32 or wider; row k is the slope's norm before step k.
        aux: the objective's aux, each leaf with a leading axis of steps; past the end NaN, or 0 where there is no NaN.
        steps_taken: int32. For a descent that diverged it is the step at which that happened.
        status: int32, a ``Status``: FLAT, OUT_OF_STEPS or DIVERGED; one a replica under ``jax.vmap``.
    """

    loss: Any
    gradient_norm: Any
    aux: Any
    steps_taken: Any
    status: Any


def descend(
    descent: Descent,
    state: DescentState,
    batch: Any,
    *,
    steps: int,
    until_flat: float | jax.Array = 0.0,
) -> tuple[DescentState, Trace]:
    """Take ``steps`` steps on one batch, or fewer: stop where the slope's norm is at most ``until_flat``.

    The descent also stops, at its last finite state, before a step whose loss or slope is not finite. Works
    under ``jax.jit``, ``jax.vmap`` (replicas stop one by one, each as if it were alone) and ``jax.jvp``; reverse mode
    does not pass a loop of dynamic length.

    Args:
        descent: how to step.
        state: where to start, from ``descent.init(params)``; it is left as it is.
        batch: what each step looks at; any pytree of arrays.
        steps: how many steps at most, at least 0.
        until_flat: stop before a step whose gradient norm is at most this. At 0, the default, a descent stops where the
            slope vanishes; not so if the state has a key, since then one step's slope is only a sample.

    Returns:
        The last state, and the trace of ``steps`` rows.

    Raises:
        TypeError: ``steps`` is not an int; a step that returns another structure, shape or dtype than it took.
        ValueError: ``steps`` is negative; ``until_flat`` is negative or NaN.

    Example:
        >>> from minijaxnet.descent import gradient_descent
        >>> descent = gradient_descent(lambda weight, batch: (weight - batch) ** 2, learning_rate=0.5)
        >>> state, trace = descend(descent, descent.init(3.0), 1.0, steps=4)
        >>> print(state.params, trace.loss, Status(int(trace.status)).name)
        1.0 [ 4. nan nan nan] FLAT
    """
    return run_steps(descent.step, state, OneBatch(), batch, steps=steps, until_flat=until_flat)


def descend_epochs(
    descent: Descent,
    state: DescentState,
    data: Any,
    key: jax.Array,
    *,
    batch_size: int,
    epochs: int,
) -> tuple[DescentState, Trace]:
    """Take one step on each minibatch of the data, in a new order each epoch.

    The order of epoch e is drawn from ``fold_in(key, e)``, and e from ``state.step``: two calls of three epochs equal
    one of six. Points that do not fill a last batch sit an epoch out.

    Args:
        descent: how to step.
        state: where to start; ``state.step`` should be a whole number of epochs.
        data: ``Batch(x, y)`` or any pytree of arrays with the batch axis first.
        key: a ``jax.random.key`` for the order.
        batch_size: points a step, from 1 to as many as there are.
        epochs: how often each point is seen, at least 0.

    Returns:
        The last state, and the trace of ``epochs * (points // batch_size)`` rows.

    Raises:
        TypeError: ``batch_size`` or ``epochs`` is not an int.
        ValueError: ``batch_size`` is below 1 or above the number of points; ``epochs`` is negative.

    Example:
        >>> from minijaxnet.descent import gradient_descent
        >>> descent = gradient_descent(lambda weight, batch: jnp.mean((weight - batch) ** 2), 0.1)
        >>> state, trace = descend_epochs(
        ...     descent, descent.init(0.0), jnp.arange(10.0), jax.random.key(0), batch_size=3, epochs=2
        ... )
        >>> int(trace.steps_taken)
        6
    """
    minibatches = minibatches_of(data, batch_size)
    steps = check_count("epochs", epochs) * minibatches.per_epoch
    return run_steps(descent.step, state, minibatches, (data, key), steps=steps, until_flat=-1.0)


class OneBatch(NamedTuple):
    """Every step looks at the same batch."""

    def most_steps(self) -> int:
        """How many steps a chunk may have."""
        return _CHUNK_STEPS

    def draw(self, source: Any, first: jax.Array, steps: jax.Array, capacity: int) -> Callable[[Any], Any]:
        """The batch of each step from ``first`` on: always the source itself."""
        return lambda k: source


class Minibatches(NamedTuple):
    """Each step looks at its own rows of the data, in a new order each epoch; ``source`` is ``(data, key)``."""

    batch_size: int
    points: int

    @property
    def per_epoch(self) -> int:
        """Steps an epoch."""
        if check_count("batch_size", self.batch_size, least=1) > self.points:
            raise ValueError(f"batch_size: got {self.batch_size}; expected at most {self.points}, the points there are")
        return self.points // self.batch_size

    def most_steps(self) -> int:
        """How many steps a chunk may have, so that its order of points stays small."""
        return min(_CHUNK_STEPS, max(self.per_epoch, _CHUNK_BYTES // (4 * self.batch_size)))

    def draw(self, source: Any, first: jax.Array, steps: jax.Array, capacity: int) -> Callable[[Any], Any]:
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
        return lambda k: jax.tree.map(lambda leaf: leaf[rows[offset + k]], data)


def minibatches_of(data: Any, batch_size: Any) -> Minibatches:
    """How the data falls into minibatches of a size, checked."""
    points = count_points(data)
    if check_count("batch_size", batch_size, least=1) > points:
        raise ValueError(f"batch_size: got {batch_size}; expected at most {points}, the points there are")
    return Minibatches(batch_size, points)


def run_steps(
    step: Step, state: DescentState, feed: Any, source: Any, *, steps: int, until_flat: Any
) -> tuple[DescentState, Trace]:
    """What ``descend`` and ``descend_epochs`` share: chunks of one compiled program, or one program if traced."""
    check_count("steps", steps)
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((state, source, until_flat, jnp.int32(steps))))
    until_flat = flat_norm(until_flat, sampled=state.key is not None)
    if traced:
        capacity = _power_of_two_from(max(steps, 1))
        state, trace = _traced_chunk(step, feed, capacity, state, source, steps, until_flat, OUT_OF_STEPS)
        return state, _without_untaken(trace, steps)
    state = own_copy(state)
    capacity = chunk_capacity(step, feed, state, source)

    def chunk(state: DescentState, first: int, status: Any) -> tuple[DescentState, Trace]:
        return run_chunk(step, feed, capacity, state, source, min(steps - first, capacity), until_flat, status)

    history = History(steps)
    state, trace = chunk(state, 0, np.int32(OUT_OF_STEPS))
    for first in range(capacity, steps, capacity):
        # A chunk after the end takes no step, so the next one starts before this one is read.
        state, next_trace = chunk(state, first, trace.status)
        history.append(trace)
        trace = next_trace
        if history.status != OUT_OF_STEPS:
            break
    history.append(trace)
    return state, history.trace()


def chunk_capacity(step: Step, feed: Any, state: DescentState, source: Any) -> int:
    """How many steps the history of a chunk can hold: a power of two, fewer where a step records much."""
    info = _first_info.eval_shape(step, feed, state, source)
    row_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(info))
    return _power_of_two_from(max(1, min(feed.most_steps(), _CHUNK_BYTES // row_bytes)) // 2 + 1)


@functools.partial(jax.jit, static_argnames=("step", "feed"))
def _first_info(step: Step, feed: Any, state: DescentState, source: Any) -> StepInfo:
    return _traced_once(step)(state, feed.draw(source, state.step, 1, 1)(0))[1]


def _traced_once(step: Step) -> Step:
    """The step as a function that JAX traces once for given shapes, wherever it then stands."""
    return jax.jit(step, inline=True)


def _chunk(
    step: Step,
    feed: Any,
    capacity: int,
    state: DescentState,
    source: Any,
    steps: Any,
    until_flat: Any,
    status: Any,
) -> tuple[DescentState, Trace]:
    """At most ``steps <= capacity`` steps, and their trace of ``capacity`` rows; none if ``status`` says it is over."""
    batch_at = feed.draw(source, state.step, steps, capacity)
    step = _traced_once(step)
    next_state, info = jax.eval_shape(step, state, jax.eval_shape(batch_at, 0))
    if difference := structure_difference(next_state, state):
        raise TypeError(f"step: the state it returns is not like the one it took: {difference}")
    _check_scalars(info)
    history = jax.tree.map(lambda leaf: jnp.full((capacity, *leaf.shape), _nothing(leaf), leaf.dtype), info)

    def unfinished(carry: tuple[Any, ...]) -> jax.Array:
        k, running, _, _ = carry
        return (k < steps) & _any_replica(running)

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        k, running, state, history = carry
        next_state, info = step(state, batch_at(k))
        running = running & _may_go_on(info, until_flat)
        state = jax.tree.map(lambda new, old: jnp.where(running, new, old), next_state, state)
        history = jax.tree.map(lambda rows, leaf: lax.dynamic_update_index_in_dim(rows, leaf, k, 0), history, info)
        return k + 1, running, state, history

    _, running, state, history = lax.while_loop(
        unfinished, body, (jnp.int32(0), status == OUT_OF_STEPS, state, history)
    )
    # A descent that stopped did so at the first row that forbids a step; a frozen replica's later rows mean nothing.
    row = lax.iota(jnp.int32, capacity)
    stopped_at = jnp.min(jnp.where(_may_go_on(history, until_flat), capacity, row), initial=capacity)
    is_flat = history.gradient_norm[jnp.minimum(stopped_at, capacity - 1)] <= until_flat
    ended = jnp.where(running, OUT_OF_STEPS, jnp.where(is_flat, FLAT, DIVERGED))
    status = jnp.where(status == OUT_OF_STEPS, ended, status).astype(jnp.int32)
    return state, Trace(history.loss, history.gradient_norm, history.aux, jnp.minimum(stopped_at, steps), status)


@jax.jit
def own_copy(tree: Any) -> Any:
    """A copy that may be donated."""
    return jax.tree.map(jnp.copy, tree)


def _without_untaken(trace: Trace, steps: int) -> Trace:
    """The first ``steps`` rows, and nothing in those of steps that were not taken."""
    taken = lax.iota(jnp.int32, steps) < trace.steps_taken

    def mask(leaf: jax.Array) -> jax.Array:
        return jnp.where(taken.reshape(-1, *[1] * (leaf.ndim - 1)), leaf[:steps], _nothing(leaf))

    return trace._replace(**jax.tree.map(mask, rows_of(trace))._asdict())


def _may_go_on(info: StepInfo, until_flat: Any) -> Any:
    """Whether a step may be taken: there is a slope, and all numbers are finite."""
    return (info.gradient_norm > until_flat) & jnp.isfinite(info.loss) & jnp.isfinite(info.gradient_norm)


_STATIC = ("step", "feed", "capacity")
_traced_chunk = jax.jit(_chunk, static_argnames=_STATIC)
# Compiled once for any steps, flat norm and learning rate; it donates the state.
run_chunk = jax.jit(_chunk, static_argnames=_STATIC, donate_argnames="state")


@custom_vmap
def _any_replica(running: jax.Array) -> jax.Array:
    """Whether any replica still runs: one flag for all.

    Under ``vmap`` a loop whose condition differs between replicas selects its whole carry, history included, at each
    step: time squared in the number of steps. One shared flag and replicas that freeze themselves keep it linear.
    """
    return running


@_any_replica.def_vmap
def _(axis_size: int, in_batched: list[bool], running: jax.Array) -> tuple[jax.Array, bool]:
    return _any_replica(jnp.any(running, axis=0) if in_batched[0] else running), False


class History:
    """The rows of consecutive chunks, put together on the host."""

    def __init__(self, steps: int):
        """Room for ``steps`` rows."""
        self.steps, self.steps_taken, self.status = steps, 0, np.int32(OUT_OF_STEPS)
        self._rows: StepInfo | None = None

    def append(self, chunk: Trace) -> StepInfo:
        """Take over the rows of the steps that the chunk took, and hand them back."""
        taken, first = int(chunk.steps_taken), self.steps_taken
        rows = jax.tree.map(lambda leaf: np.asarray(leaf)[:taken], rows_of(chunk))
        if self._rows is None:
            self._rows = jax.tree.map(lambda leaf: np.empty((self.steps, *leaf.shape[1:]), leaf.dtype), rows)
        for mine, new in zip(jax.tree.leaves(self._rows), jax.tree.leaves(rows), strict=True):
            mine[first : first + taken] = new
        self.steps_taken, self.status = first + taken, np.asarray(chunk.status)
        return rows

    def trace(self) -> Trace:
        """All rows so far; past the last step nothing."""
        for leaf in jax.tree.leaves(self._rows):
            leaf[self.steps_taken :] = _nothing(leaf)
        assert self._rows is not None, "a history has at least one chunk, be it empty"
        rows = self._rows
        return Trace(rows.loss, rows.gradient_norm, rows.aux, np.int32(self.steps_taken), self.status)


def rows_of(trace: Trace) -> StepInfo:
    """What the steps of a trace saw."""
    return StepInfo(trace.loss, trace.gradient_norm, trace.aux)


def flat_norm(until_flat: Any, *, sampled: bool) -> Any:
    """The gradient norm at which a descent rests, checked; -1 (never) for 0 where a slope is only a sample."""
    if isinstance(until_flat, str | bool) or jnp.shape(until_flat) != ():
        raise TypeError(f"until_flat: got {until_flat!r}; expected a gradient norm, a number")
    if not isinstance(until_flat, Tracer) and not (float(until_flat) >= 0 or until_flat == -1):
        raise ValueError(f"until_flat: got {until_flat}; expected a gradient norm, at least 0")
    xp = jnp if isinstance(until_flat, Tracer) else np
    never_for_zero = xp.where(until_flat > 0, until_flat, -1) if sampled else until_flat
    return xp.asarray(never_for_zero, jnp.result_type(float))


def check_count(name: str, value: Any, *, least: int = 0) -> int:
    """A whole number of at least ``least``.

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


def count_points(data: Any) -> int:
    """The length of the batch axis, the same for all leaves.

    Raises:
        ValueError: there are none, or they differ.
    """
    lengths = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(data)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"data: got batch axes of length {sorted(lengths)}; expected one length, above 0")
    return lengths.pop()


def _check_scalars(info: StepInfo) -> None:
    for name in ("loss", "gradient_norm"):
        leaf = getattr(info, name)
        if leaf.shape != () or not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"step: {name}: got {leaf.dtype}{list(leaf.shape)}; expected a floating scalar")


def _nothing(leaf: Any) -> Any:
    return jnp.nan if jnp.issubdtype(leaf.dtype, jnp.inexact) else 0


def _power_of_two_from(count: int) -> int:
    return 1 << (count - 1).bit_length()
