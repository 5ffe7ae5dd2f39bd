"""The work of a fit between chunks of compiled steps: measuring, logging, checkpoints, agreement of processes."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from minijaxnet._loops import block_on
from minijaxnet.batches import InMemory
from minijaxnet.descent import DescentState
from minijaxnet.history import OUT_OF_STEPS, History
from minijaxnet.loop import chunk_capacity, chunks
from minijaxnet.parallel.processes import all_gather
from minijaxnet.run.best import BestKeeper
from minijaxnet.run.keeper import Keeper
from minijaxnet.run.log import Log, Progress, Sink
from minijaxnet.run.measured import measured_by, row_of
from minijaxnet.run.signals import Stop
from minijaxnet.streams import Stream

# The time of a chunk of compiled steps: short enough for Ctrl-C, long enough that the work between costs little.
_CHUNK_S = 0.1


class Watch(NamedTuple):
    """The parts of a fit that work between its chunks.

    Attributes:
        every: steps between logged rows.
    """

    every: int
    measure: Callable[[Any], dict[str, Any]] | None
    best: BestKeeper
    keeper: Keeper
    log: Log
    sink: Sink | None
    stop: Stop


class Outcome(NamedTuple):
    """The end of a descent: its last state, its history, and its times.

    Attributes:
        interrupted: the signal that ended it; 0 if none did.
        stopped_early: whether the metric has not improved for ``patience`` rows.
    """

    state: DescentState
    history: History
    interrupted: int
    stopped_early: bool
    compile_s: float
    run_s: float


def run_watched(
    step: Any, state: DescentState, source: InMemory | Stream, until_flat: Any, steps: range, watch: Watch
) -> Outcome:
    """Run a descent for a range of steps.

    Before each chunk, metrics are measured if a row is due, all processes agree on the length of the chunk, and a
    checkpoint is saved if one is due. After the chunk the row is logged.

    Args:
        step: of a descent.
        state: the start; donated.
        source: of the batches.
        until_flat: from ``flat_norm``.
        steps: the range of steps.
        watch: the parts of the fit.
    """
    started, history, run_s, steps_per_s = time.perf_counter(), History(len(steps)), 0.0, 1.0
    capacity, block = chunk_capacity(step, state, source), block_on(state)
    measured, interrupted, stopped_early = None, 0, False

    def lengths() -> Iterator[int]:
        nonlocal started, measured, interrupted, stopped_early
        yield 0  # a chunk without steps: its time is that of tracing and compiling
        while True:
            at, goes_on = steps.start + history.steps_taken, history.status == OUT_OF_STEPS
            most = min(steps.stop - at, watch.every - at % watch.every, watch.keeper.steps_left(at), capacity)
            if goes_on and most > 0:
                source.arrays()  # reads the next batches
                most = 0 if source.ended else min(most, source.left)
            measured = None
            if goes_on and most > 0 and at % watch.every == 0:
                measured = measured_by(watch.measure, state.params)
                watch.best.update(at, state.params, measured)
            in_time = max(1, int(_CHUNK_S * steps_per_s))
            own = (min(most, in_time // block * block or in_time), watch.keeper.is_due(at), watch.best.is_over)
            # Clocks and signals differ between processes, so the processes agree on what comes next.
            plans = all_gather((*own, watch.stop.signum))
            (length, is_due, stopped_early, _), interrupted = plans[0].tolist(), int(plans[:, 3].max())
            if not goes_on or most <= 0 or interrupted or stopped_early:
                return
            if is_due:
                watch.keeper.keep(at, state, watch.log.synced_sha256(), source.position)
            started = time.perf_counter()
            yield length

    running = chunks(step, state, source, lengths(), until_flat)
    state, trace = jax.block_until_ready(next(running))
    history.append(trace)
    compile_s = time.perf_counter() - started
    for state, trace in running:
        jax.block_until_ready((state, trace))
        seconds, info = time.perf_counter() - started, history.append(trace)
        taken, run_s = len(info.loss), run_s + seconds
        source.take(taken)
        if not taken:
            continue
        # At most fourfold: the first chunk is one step, and most of its time is that of the call.
        steps_per_s, at = min(taken / seconds, 4 * steps_per_s), steps.start + history.steps_taken
        if measured is not None:
            watch.log.append(at - taken, row_of(info, measured), run_s)
        if watch.sink is not None:
            loss, norm = float(info.loss[-1]), float(info.gradient_norm[-1])
            watch.sink.progress(Progress(at, steps.stop, loss, norm, history.steps_taken / run_s))
    return Outcome(state, history, interrupted, bool(stopped_early), compile_s, run_s)


def log_last_row(
    step: Any, outcome: Outcome, source: InMemory | Stream, until_flat: Any, end: int, watch: Watch
) -> DescentState:
    """Log a last row for the last state, without taking a step; return this state."""
    everything_is_flat = np.asarray(np.inf, until_flat.dtype)
    [(state, info)] = chunks(step, outcome.state, source, [1], everything_is_flat)
    measured = measured_by(watch.measure, state.params)
    if not (outcome.interrupted and end % watch.every):  # without the signal there would be no row at this step
        watch.best.update(end, state.params, measured)
    watch.log.append(end, row_of(jax.device_get(info), measured), outcome.run_s)
    watch.log.sync()
    return state
