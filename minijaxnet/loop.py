"""The loop: many steps of a descent inside one compiled program.

Gradient descent is: start somewhere; until the loss is flat there, compute the gradient and take a step downhill. All
of it is one ``lax.while_loop``, compiled once for any number of steps and any learning rate. Nothing raises inside a
compiled program: a ``Trace`` has the loss and the gradient norm of each step, and how the descent ended.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from minijaxnet._checks import check_count
from minijaxnet._loops import block_on, repeated_while
from minijaxnet._programs import JitOf, function_key, is_being_traced
from minijaxnet._trees import own_copy, structure_difference
from minijaxnet._types import PyTree
from minijaxnet.batches import CHUNK_BYTES, InMemory, OneBatch, Order, Source, check_key, minibatches_of
from minijaxnet.data import numbers
from minijaxnet.descent import Descent, DescentState, Step, StepInfo, check_descent, check_state, is_ready
from minijaxnet.history import (
    DIVERGED,
    FLAT,
    OUT_OF_STEPS,
    History,
    Trace,
    flat_norm,
    may_step,
    packed,
    unpacked,
    without_untaken,
)
from minijaxnet.losses import check_labels, check_probabilities


def descend(
    descent: Descent,
    state: DescentState,
    batch: PyTree,
    *,
    steps: int,
    until_flat: float | jax.Array = 0.0,
) -> tuple[DescentState, Trace]:
    """Take ``steps`` steps on one batch, or fewer: stop where the gradient's norm is at most ``until_flat``.

    The descent also stops, at its last finite state, before a step whose loss or gradient is not finite, unless its
    optimizer handles these. Works under ``jax.jit``, ``jax.vmap`` (each replica stops as if it were alone) and
    ``jax.jvp``; reverse mode cannot differentiate a loop of dynamic length.

    Args:
        descent: a pair ``(init, step)``.
        state: the start, from ``descent.init(params)``; it is not changed.
        batch: the batch of every step; any tree of arrays.
        steps: the most steps, at least 0.
        until_flat: stop before a step whose gradient norm is at most this. At 0, the default, a descent stops where the
            gradient is 0, except with a key in the state, since then the gradient of one step is only a sample.

    Returns:
        The last state, and the trace of ``steps`` rows.

    Raises:
        TypeError: ``steps`` is not an int; a step returns a state of another structure, shape or dtype.
        ValueError: ``steps`` is negative; ``until_flat`` is negative or NaN.

    Example:
        >>> from minijaxnet.descent import gradient_descent
        >>> from minijaxnet.history import Status
        >>> descent = gradient_descent(lambda weight, batch: (weight - batch) ** 2, learning_rate=0.5)
        >>> state, trace = descend(descent, descent.init(3.0), 1.0, steps=4)
        >>> print(state.params, trace.loss, Status(int(trace.status)).name)
        1.0 [ 4. nan nan nan] FLAT
    """
    check_descent(descent)
    check_state(state)
    flat_at, batch = flat_norm(until_flat, sampled=state.key is not None), numbers(batch, "batch")
    return _checked_descent(descent, state, InMemory(OneBatch(), batch), batch, steps, flat_at)


def descend_epochs(
    descent: Descent,
    state: DescentState,
    data: PyTree,
    key: jax.Array,
    *,
    batch_size: int,
    epochs: int,
) -> tuple[DescentState, Trace]:
    """Take one step on each minibatch of the data, in a new order each epoch.

    The order of epoch e is drawn from ``fold_in(key, e)``, and e follows from ``state.step``, so two calls of three
    epochs equal one call of six. If the last batch of an epoch would be smaller, its points are left out.

    Args:
        descent: a pair ``(init, step)``.
        state: the start; ``state.step`` should be a whole number of epochs.
        data: ``Batch(x, y)`` or any tree of arrays with the batch axis first.
        key: a ``jax.random.key`` for the order.
        batch_size: points per step, from 1 to the number of points.
        epochs: the number of epochs, at least 0.

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
    check_descent(descent)
    check_state(state)
    data = numbers(data, "data")
    steps = check_count("epochs", epochs) * minibatches_of(data, batch_size).per_epoch
    return descend_minibatches(descent, state, data, key, batch_size=batch_size, steps=steps)


def descend_minibatches(
    descent: Descent,
    state: DescentState,
    data: PyTree,
    key: jax.Array,
    *,
    batch_size: int,
    steps: int,
    until_flat: float | jax.Array = 0.0,
) -> tuple[DescentState, Trace]:
    """The same for any number of steps; ``until_flat=0`` never stops it."""
    flat_at, data = flat_norm(until_flat, sampled=True), numbers(data, "data")
    check_key(key)
    source = InMemory(minibatches_of(data, batch_size), (data, key))
    return _checked_descent(descent, state, source, data, steps, flat_at)


def _checked_descent(
    descent: Descent, state: DescentState, source: Source, data: PyTree, steps: int, until_flat: Any
) -> tuple[DescentState, Trace]:
    """Run a descent; if it diverged, check the labels, and raise an error if they are the cause."""
    check_probabilities(descent.step, data)
    end, trace = _run_steps(descent.step, state, source, check_count("steps", steps), until_flat)
    if not isinstance(trace.status, jax.Array) and trace.status == DIVERGED:
        check_labels(descent.step, state.params, data)
    return end, trace


def _run_steps(
    step: Any, state: DescentState, source: Source, steps: int, until_flat: Any
) -> tuple[DescentState, Trace]:
    """Run a descent as chunks of one compiled program, or as a single program if this call is traced."""
    if is_being_traced():
        # With a power of two the rows of all replicas would be mapped to the same lines of the cache.
        capacity = (1 << steps.bit_length()) + 48
        if capacity > 2**31:
            raise ValueError(f"steps: got {steps}; expected fewer: within jit or vmap the history has a row for each")
        arguments = (state, source.arrays(), steps, until_flat, OUT_OF_STEPS)
        end, trace = _traced_chunk(step, source.order, capacity, block_on(state), *arguments)
        return end, without_untaken(trace, steps)
    capacity, history = chunk_capacity(step, state, source), History(steps)
    lengths = (min(steps - first, capacity) for first in range(0, max(1, steps), capacity))
    running = chunks(step, own_copy(state), source, lengths, until_flat, ahead=True)
    chunk = next(running)
    for next_chunk in running:  # the next chunk is already running while this one is read
        history.append(chunk.trace)
        chunk = next_chunk
        if history.status != OUT_OF_STEPS:
            break
    history.append(chunk.trace)
    return chunk.state, history.trace()


class Chunk(NamedTuple):
    """The state of a descent after some steps, and their trace."""

    state: DescentState
    trace: Trace


def chunks(
    step: Any, state: DescentState, source: Source, lengths: Iterable[int], until_flat: Any, *, ahead: bool = False
) -> Iterator[Chunk]:
    """Run a descent by chunks of one compiled program: the state after each, and what its steps saw.

    Args:
        step: of a descent.
        state: the start; donated.
        source: of the batches.
        lengths: steps of each chunk, at most ``chunk_capacity``; each is asked for when its chunk is.
        until_flat: from ``flat_norm``.
        ahead: whether a chunk is asked for before the one before it is read; after the end it then takes no step.
    """
    step, block, status = function_key(step), block_on(state), np.int32(OUT_OF_STEPS)
    capacity = chunk_capacity(step, state, source)
    for length in lengths:
        with jax.transfer_guard("allow"):  # for the three numbers after the arrays; all else is on the device
            arguments = (state, source.arrays(), length, until_flat, status)
            state, trace = run_chunk(step, source.order, capacity, block, *arguments)
        if ahead:
            status = trace.status
        yield Chunk(state, trace)


def chunk_capacity(step: Any, state: DescentState, source: Source) -> int:
    """The most steps of a chunk, so that its history stays below ``CHUNK_BYTES``."""
    info = _first_info.eval_shape(step, source.order, state, source.arrays())
    row_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(info))
    # At least two: XLA optimizes a history of one row away, and then sums the loss in another order.
    return max(2, min(source.order.most_steps(), CHUNK_BYTES // row_bytes))


@functools.partial(JitOf, static_argnums=(0,))
def _first_info(step: Step, order: Order, state: DescentState, arrays: PyTree) -> StepInfo:
    return _traced_once(step)(state, order.at(order.draw(arrays, state.step, 1, 1), 0))[1]


_inlined = JitOf(lambda step, state, batch: step(state, batch), inline=True)


def _traced_once(step: Step) -> Step:
    """The step as a function that JAX traces only once for given shapes; its output is checked."""

    def checked(state: DescentState, batch: PyTree) -> tuple[DescentState, StepInfo]:
        returned = _inlined(step, state, batch)
        if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], StepInfo)):
            raise TypeError(f"step: it returns a {type(returned).__name__}; expected (state, StepInfo)")
        return returned

    return checked


def _chunk(
    step: Step,
    order: Order,
    capacity: int,
    block: int,
    state: DescentState,
    arrays: PyTree,
    steps: Any,
    until_flat: Any,
    status: Any,
) -> tuple[DescentState, Trace]:
    """Take at most ``steps <= capacity`` steps; none if ``status`` says that the descent has ended.

    The trace has ``capacity`` rows. The loop's condition is evaluated between blocks of steps. Where the descent ends
    within a block, the block's other steps leave the state unchanged.
    """
    drawn = order.draw(arrays, state.step, steps, capacity)
    step_once = _traced_once(step)
    next_state, info = jax.eval_shape(step_once, state, jax.eval_shape(order.at, drawn, 0))
    if difference := structure_difference(next_state, state):
        raise TypeError(f"step: the state it returns is not like the one it took: {difference}")
    _check_scalars(info)
    row = jax.eval_shape(packed, info)
    history = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), row)

    def may_take(carry: tuple[Any, ...], more: int) -> jax.Array:
        k, running, _, _ = carry
        return (steps - k >= more) & _any_replica(running)

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        k, running, state, history = carry
        next_state, info = step_once(state, order.at(drawn, k))
        running = running & may_step(info, until_flat)
        state = jax.tree.map(lambda new, old: jnp.where(running, new, old), next_state, state)
        row = packed(info)
        history = jax.tree.map(lambda rows, leaf: lax.dynamic_update_index_in_dim(rows, leaf, k, 0), history, row)
        return k + 1, running, state, history

    ready = is_ready(step, state)
    starts = (ready | (steps == 0)) & (status == OUT_OF_STEPS)
    _, running, state, history = repeated_while(may_take, body, (jnp.int32(0), starts, state, history), block)
    history = unpacked(history)
    # A descent stops at the first row that forbids a step. Later rows of a replica that has stopped are not valid.
    rows = lax.iota(jnp.int32, capacity)
    stopped_at = jnp.min(jnp.where(may_step(history, until_flat), capacity, rows), initial=capacity)
    taken = jnp.where(starts, jnp.minimum(stopped_at, steps), 0)
    last = jnp.minimum(taken, capacity - 1)
    is_flat = (history.gradient_norm[last] <= until_flat) & jnp.isfinite(history.loss[last])
    ended = jnp.where(running, OUT_OF_STEPS, jnp.where(is_flat & ready, FLAT, DIVERGED))
    status = jnp.where(status == OUT_OF_STEPS, ended, status).astype(jnp.int32)
    return state, Trace(history.loss, history.gradient_norm, history.aux, taken, status)


@custom_vmap
def _any_replica(running: jax.Array) -> jax.Array:
    """Whether any replica still runs: one flag for all replicas.

    Under ``vmap`` a loop whose condition differs between replicas copies its whole carry, with the history, at each
    step: the time is quadratic in the number of steps. With one shared flag, and replicas that keep their state once
    they have stopped, it is linear.
    """
    return running


@_any_replica.def_vmap
def _(axis_size: int, in_batched: list[bool], running: jax.Array) -> tuple[jax.Array, bool]:
    return _any_replica(jnp.any(running, axis=0) if in_batched[0] else running), False


_traced_chunk = JitOf(_chunk, static_argnums=(0, 1, 2))
# Compiled once for any steps, flat norm and learning rate; it donates the state.
run_chunk = JitOf(_chunk, static_argnums=(0, 1, 2), donate_argnums=(3,))


def _check_scalars(info: StepInfo) -> None:
    for name in ("loss", "gradient_norm"):
        leaf = getattr(info, name)
        if leaf.shape != () or not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"step: {name}: got {leaf.dtype}{list(leaf.shape)}; expected a floating scalar")
