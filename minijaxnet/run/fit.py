"""Fit: carry a descent to its end, with the host looking in between chunks of the compiled loop.

Everything that a person waits for happens there: progress, the log, checkpoints, signals. The compiled program knows
nothing of it, and its chunks may be cut anywhere: the numbers are the same to the last bit.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from minijaxnet._checks import check_callable, check_count
from minijaxnet._tables import html_result, significant
from minijaxnet._trees import checked_tree, floating_arrays, named_leaves, own_copy
from minijaxnet._types import PyTree
from minijaxnet.batches import InMemory, OneBatch, check_key, check_steps, minibatches_of
from minijaxnet.data import check_batch, numbers
from minijaxnet.descent import Descent, DescentState, GradientStep, check_descent, check_state, is_ready
from minijaxnet.history import DIVERGED, OUT_OF_STEPS, STOPPED_EARLY, Status, Trace, flat_norm
from minijaxnet.loop import chunk_capacity
from minijaxnet.losses import check_labels
from minijaxnet.parallel.processes import broadcast, is_first, local_share, to_host
from minijaxnet.run.best import Best, BestKeeper
from minijaxnet.run.keeper import EACH_MINUTE, Keeper
from minijaxnet.run.lock import HeldFolder, hold
from minijaxnet.run.log import Log, Sink, first_and_last
from minijaxnet.run.measured import lost_updates
from minijaxnet.run.signals import stop_signals
from minijaxnet.run.watch import Watch, log_last_row, run_watched
from minijaxnet.streams import Stream, is_read


class FitResult(NamedTuple):
    """How a fit went.

    Attributes:
        state: where the descent ended; finite, also if it diverged.
        trace: what each step saw; see ``Trace``. Steps are counted from ``first_step``.
        rows: what was logged, as in ``metrics.jsonl``; the last row is of the state where it ended.
        first_step: where it was resumed; 0 if it was not.
        interrupted: the signal that ended it, SIGINT or SIGTERM; 0 if none did.
        notes: what a person should know of checkpoints that could not be used, of rows that are lost, and of weights
            that did not move.
        compile_s: seconds to trace and compile, apart from all running.
        run_s: seconds in compiled steps.
        best: the best weights, if ``keep_best`` asked for them.
    """

    state: DescentState
    trace: Trace
    rows: list[dict[str, Any]]
    first_step: int
    interrupted: int
    notes: list[str]
    compile_s: float
    run_s: float
    best: Best | None = None

    @property
    def status(self) -> Status:
        """How it ended: FLAT, OUT_OF_STEPS (also when interrupted), DIVERGED or STOPPED_EARLY."""
        return Status(int(self.trace.status))

    @property
    def steps_taken(self) -> int:
        """How many steps were taken since the first start."""
        return self.first_step + int(self.trace.steps_taken)

    def __repr__(self) -> str:
        """How it ended, in a line, and what is to be known of it."""
        loss = f", loss {significant(self.rows[-1]['loss'])}" if self.rows else ""
        ended = ", then was interrupted" if self.interrupted else ""
        notes = "".join(f"\n{note}" for note in self.notes)
        return f"FitResult: {self.status.name} after {self.steps_taken:,} steps{ended}{loss}{notes}"

    def _repr_html_(self) -> str:
        return html_result(repr(self).split("\n")[0], first_and_last(self.rows), remarks=self.notes)


def fit(
    descent: Descent,
    state: DescentState,
    data: PyTree,
    *,
    steps: int,
    until_flat: float = 0.0,
    batch_size: int | None = None,
    key: jax.Array | None = None,
    log_every: int | None = None,
    measure: Callable[[Any], dict[str, Any]] | None = None,
    keep_best: str | None = None,
    patience: int | None = None,
    run_dir: str | Path | HeldFolder | None = None,
    resume: bool = False,
    checkpoint_every: int | timedelta = EACH_MINUTE,
    sink: Sink | None = None,
    on_interrupt: Literal["raise", "return"] = "raise",
) -> FitResult:
    """Take ``steps`` steps, or fewer: as ``descend``, but checked, logged, watched and interruptible.

    Values are checked first, on the host. Then chunks of about a tenth of a second run; SIGINT (Ctrl-C) and SIGTERM
    stop after the one that is under way, and what was learnt is kept; a second one ends at once. A run folder is held
    by one process at a time. It has the three newest checkpoints, from which ``resume`` goes on to the same bits,
    whatever ended the process: parameters, optimizer and keys are in them, the order of minibatches follows from these.

    Several processes call it alike, with state and data on a mesh of all their devices (see ``parallel``). The first
    one logs and writes; chunks, checkpoints and signals are agreed upon, so that all stop after the same step.

    Args:
        descent: how to step.
        state: where to start; copied once, so it stays yours.
        data: ``Batch(x, y)`` or any other tree of arrays, the batch axis first; or, for more than memory holds,
            ``batches(first_step)`` that returns an iterator of batches from that step on, of one shape. They are read
            ahead by a thread; batches of fewer points are left out, or filled up by ``padded``.
        steps: how many steps at most, at least 0.
        until_flat: stop before a step whose gradient norm is at most this; with minibatches, batches that are read, or
            a keyed objective the gradient is only a sample, and 0 means never.
        batch_size: points a step, drawn anew each epoch; each step sees all points if None.
        key: a ``jax.random.key`` for the order of the minibatches; needed with ``batch_size``.
        log_every: steps from one logged row to the next; about 20 rows if None.
        measure: ``measure(params) -> {name: number}``, added to each logged row.
        keep_best: the name of one of these numbers: the weights are kept where it was best, in ``.best`` and as
            ``best.safetensors``. Of an accuracy or a score the highest is the best, else the lowest; "highest NAME" or
            "lowest NAME" say it.
        patience: stop when that number has not become better for so many logged rows; never if None.
        run_dir: a folder, in which ``metrics.jsonl``, ``timing.jsonl`` and ``checkpoints/`` are written; it is made if
            need be, and held meanwhile; what ``run.lock.hold`` gave is held by the caller. Nothing is written if None.
        resume: go on where the newest checkpoint in ``run_dir`` is that is whole, or from the start if there is none.
            With the arguments of the first start it comes to the same bits; steps may be more, and a plain descent's
            rate or the batch size another from here on.
        checkpoint_every: steps from one checkpoint to the next, or a ``timedelta``; a minute if not said. There is one
            at the end, too, unless it diverged.
        sink: who else is told the logged rows, and how far it has come; see ``Sink``.
        on_interrupt: whether Ctrl-C raises KeyboardInterrupt, when all is kept, or returns what was learnt.

    Returns:
        The result; a descent that diverges is a result, too.

    Raises:
        ValueError: a value that no descent can use: NaN in the data or params, no points, labels that are no class, a
            batch size beyond the points, negative steps. The text names the argument.
        CheckpointError: the checkpoints are damaged, all of them, or of another descent.
        RunInUse: another process holds the run folder.
        TypeError: the wrong kind of thing: integer params, a fractional number of steps, no key with ``batch_size``, a
            ``measure`` that returns no dictionary of numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> from minijaxnet.descent import gradient_descent
        >>> objective = lambda weight, batch: jnp.mean((weight * batch[0] - batch[1]) ** 2)
        >>> descent = gradient_descent(objective, learning_rate=0.1)
        >>> result = fit(descent, descent.init(0.0), (jnp.ones(2), jnp.full(2, 3.0)), steps=100)
        >>> print(f"{result.state.params:.3f}", result.status.name)
        3.000 OUT_OF_STEPS
    """
    check_descent(descent)
    check_state(state)
    check_steps(steps)
    _check_options(data, batch_size, log_every, measure, run_dir, sink, on_interrupt)
    rest = flat_norm(until_flat, sampled=batch_size is not None or state.key is not None or is_read(data))
    source = None if is_read(data) else _in_memory(descent, state, data, batch_size, key)
    began, start, state = time.perf_counter(), state, own_copy(state)
    if source is not None:  # what is wrong with the objective is said before a folder is written to
        chunk_capacity(descent.step, state, source)
    trace_s = time.perf_counter() - began
    if not is_first():  # the first process writes
        run_dir, resume, sink = None, False, None
    folder = run_dir.folder if isinstance(run_dir, HeldFolder) else run_dir
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)

    with (
        nullcontext() if run_dir is None else hold(run_dir),
        nullcontext(Keeper(folder, every=checkpoint_every, resume=resume)) as keeper,
        Log(folder, resume=resume, sink=sink) as log,
        stop_signals() as stop,
        ExitStack() as at_the_end,
    ):
        best = BestKeeper(keep_best, patience, folder)
        every: int = log_every or broadcast(log.every) or max(1, steps // 20)
        first, state = keeper.restore(state, log, every)
        if isinstance(getattr(descent.step, "step", descent.step), GradientStep):  # its rate may be another than then
            state = state._replace(optimizer=own_copy(start.optimizer))
        log.restart(first)
        notes = best.restore(state.params, log.rows, first, resume=resume)
        source = source or at_the_end.enter_context(closing(Stream(data, keeper.read or first)))
        watch = Watch(every, measure, best, keeper, log, sink, stop)
        outcome = run_watched(descent.step, state, source, rest, range(first, steps), watch)
        end = first + outcome.history.steps_taken
        if outcome.history.status != DIVERGED:
            keeper.keep(end, outcome.state, log.synced_sha256(), source.position)
        state = log_last_row(descent.step, outcome, source, rest, end, watch)
        if outcome.history.status == DIVERGED and is_read(data):
            try:
                check_values(descent, state, jax.device_get(source.order.at(source.arrays(), 0)), "batch")
            except ValueError as error:
                notes.append(f"the cause is in the batch of step {end:,}: {error}")
    if outcome.interrupted and on_interrupt == "raise":
        raise KeyboardInterrupt(f"stopped after {end:,} steps; {_how_to_go_on(folder)}")
    if source.ended:
        notes.append(f"the data ended after {end:,} of {steps:,} steps")
    if source.left_out:
        notes.append(f"{source.left_out:,} batches of fewer points were left out (minijaxnet.padded fills them up)")
    notes += [*keeper.notes, *lost_updates(start.params, state.params, end)]
    trace = outcome.history.trace()
    if outcome.stopped_early and trace.status == OUT_OF_STEPS:
        trace = trace._replace(status=np.int32(STOPPED_EARLY))
    return FitResult(
        state, trace, log.rows, first, outcome.interrupted, notes, trace_s + outcome.compile_s, outcome.run_s, best.best
    )


def _check_options(
    data: PyTree, batch_size: Any, log_every: Any, measure: Any, run_dir: Any, sink: Any, on_interrupt: Any
) -> None:
    check_callable("measure", measure or (lambda: None))
    check_count("log_every", 1 if log_every is None else log_every, least=1)
    if not isinstance(run_dir, str | Path | HeldFolder | None):
        raise TypeError(f"run_dir: got {run_dir!r}; expected a folder")
    if isinstance(run_dir, str | Path) and (not str(run_dir) or Path(run_dir).is_file()):
        raise ValueError(f"run_dir: got {str(run_dir)!r}; expected a folder")
    if not isinstance(sink, Sink | None):
        raise TypeError(f"sink: got {type(sink).__name__}; expected a Sink(write)")
    if on_interrupt not in ("raise", "return"):
        raise ValueError(f"on_interrupt: got {on_interrupt!r}; expected 'raise' or 'return'")
    if is_read(data) and (batch_size is not None or jax.process_count() > 1):
        got = "batch_size, too" if batch_size is not None else "several processes"
        raise ValueError(f"data: got a function that reads batches, and {got}; expected an array or a tree of them")


def _in_memory(descent: Descent, state: DescentState, data: PyTree, batch_size: int | None, key: Any) -> InMemory:
    """Data that is all at hand, checked."""
    check_values(descent, state, data)
    data = numbers(data, "data")
    data = jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else jax.device_put(leaf), data)
    if batch_size is None:
        return InMemory(OneBatch(), data)
    order = minibatches_of(data, batch_size)
    check_key(key)
    return InMemory(order, (data, key))


def _how_to_go_on(folder: Any) -> str:
    if folder is None:
        return "with run_dir= it could go on, on_interrupt='return' returns what was learnt"
    return f"resume=True goes on in {folder}"


def check_values(descent: Descent, state: DescentState, data: PyTree, name: str = "data") -> None:
    """Say what no compiled program could: numbers that are not finite, labels that are no class.

    Raises:
        ValueError: with the place of the first such number.
    """
    data, params = local_share(checked_tree(data, name)), to_host(state.params)
    check_batch(data, name)
    for name, leaf in named_leaves(floating_arrays(params, "state.params")).items():
        if not np.isfinite(np.asarray(leaf)).all():
            raise ValueError(f"state.params{name}: got NaN or infinity; expected finite numbers")
    if not to_host(is_ready(descent.step, state)):
        raise ValueError(f"state.optimizer: got {state.optimizer}; expected a finite learning rate")
    check_labels(descent.step, params, numbers(data, name))
