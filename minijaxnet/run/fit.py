"""``fit``: a descent in chunks of the compiled loop, with work of the host between the chunks.

This work is progress, the log, checkpoints and signals. It does not change the compiled program, and the results are
equal to the last bit wherever the chunks end.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
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
    """The result of ``fit``.

    Attributes:
        state: the last state; finite, also if the descent diverged.
        trace: see ``Trace``; its rows start at ``first_step``.
        rows: the logged rows, as in ``metrics.jsonl``; the last row is of the last state.
        first_step: the step from which it was resumed, or 0.
        interrupted: the signal that ended it, SIGINT or SIGTERM; 0 if none did.
        notes: remarks on checkpoints that could not be used, lost rows, batches that were left out, and weights that
            did not change.
        compile_s: seconds to trace and compile.
        run_s: seconds in compiled steps.
        best: the best weights, with ``keep_best``; else None.
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
        """How it ended, in a line, and the notes."""
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
    """Take ``steps`` steps, or fewer: like ``descend``, with checks of values, a log, checkpoints and signals.

    Values are checked first, on the host. Then the steps run in chunks of about a tenth of a second. SIGINT (Ctrl-C)
    and SIGTERM stop after the running chunk, and the state is saved; a second signal ends the process at once. Only one
    process at a time can use a run folder. It has the three newest checkpoints, with parameters, optimizer and keys,
    from which also the order of minibatches follows. A run that is resumed from them gives the same bits.

    Several processes call it together, with state and data on a mesh of all their devices (see ``parallel``). The first
    one logs and writes. They agree on chunks, checkpoints and signals, so that all stop after the same step.

    Args:
        descent: a pair ``(init, step)``.
        state: the start; it is copied, not donated.
        data: ``Batch(x, y)`` or any other tree of arrays, the batch axis first; or, for data that does not fit into
            memory, ``batches(first_step)``, which returns an iterator of batches of one shape from that step on. They
            are read ahead by a thread. Batches with fewer points are left out; ``padded`` pads them.
        steps: the most steps, at least 0.
        until_flat: stop before a step whose gradient norm is at most this. With minibatches, batches that are read, or
            a keyed objective the gradient is only a sample, and 0 means never.
        batch_size: points per step, in a new order each epoch; all points if None.
        key: a ``jax.random.key`` for the order of the minibatches; required with ``batch_size``.
        log_every: steps from one logged row to the next; about 20 rows if None.
        measure: ``measure(params) -> {name: number}``, added to each logged row.
        keep_best: the name of one of these numbers. The weights for which it is best are kept, in ``.best`` and as
            ``best.safetensors``. "highest NAME" or "lowest NAME" says what is best; a name alone is enough for an
            accuracy or a score (the highest), and for a loss, an error or a norm (the lowest).
        patience: stop when that number has not improved for this many logged rows; never if None.
        run_dir: a folder for ``metrics.jsonl``, ``timing.jsonl`` and ``checkpoints/``. It is made if it does not exist,
            and locked during the fit, unless it is a ``HeldFolder`` that the caller has locked. If None, nothing is
            written.
        resume: continue from the newest valid checkpoint in ``run_dir``, or from the start if there is none. With the
            same arguments it gives the same bits. A resumed fit may have more steps, another batch size, and in
            gradient descent another learning rate.
        checkpoint_every: steps between checkpoints, or a ``timedelta``; by default a minute. There is also one at the
            end, unless the descent diverged.
        sink: functions that receive the logged rows and the progress; see ``Sink``.
        on_interrupt: whether a signal raises KeyboardInterrupt, after the state has been saved, or returns the result.

    Returns:
        The result, also of a descent that diverges.

    Raises:
        ValueError: a value cannot be used: NaN in the data or params, no points, labels that are not classes, a batch
            size above the number of points, negative steps. The text names the argument.
        CheckpointError: all checkpoints are damaged, or the newest is of another descent.
        RunInUse: another process uses the run folder.
        TypeError: integer params, a fractional number of steps, no key with ``batch_size``, or a ``measure`` that does
            not return a dictionary of numbers.

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
    flat_at = flat_norm(until_flat, sampled=batch_size is not None or state.key is not None or is_read(data))
    source = None if is_read(data) else _in_memory(descent, state, data, batch_size, key)
    began, initial, state = time.perf_counter(), state, own_copy(state)
    if source is not None:  # errors of the objective come before anything is written
        chunk_capacity(descent.step, state, source)
    trace_s = time.perf_counter() - began
    if not is_first():  # the first process writes
        run_dir, resume, sink = None, False, None
    folder = run_dir.folder if isinstance(run_dir, HeldFolder) else run_dir
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)

    with ExitStack() as exit_stack:
        if run_dir is not None:
            exit_stack.enter_context(hold(run_dir))
        keeper = Keeper(folder, every=checkpoint_every, resume=resume)
        log = exit_stack.enter_context(Log(folder, resume=resume, sink=sink))
        stop = exit_stack.enter_context(stop_signals())
        best = BestKeeper(keep_best, patience, folder)
        every: int = log_every or broadcast(log.every) or max(1, steps // 20)
        first, state = keeper.restore(state, log, every)
        # The rate of gradient descent may differ from that of the checkpoint.
        if isinstance(getattr(descent.step, "step", descent.step), GradientStep):
            state = state._replace(optimizer=own_copy(initial.optimizer))
        log.restart(first)
        notes = best.restore(state.params, log.rows, first, resume=resume)
        source = source or exit_stack.enter_context(closing(Stream(data, keeper.read or first)))
        watch = Watch(every, measure, best, keeper, log, sink, stop)
        outcome = run_watched(descent.step, state, source, flat_at, range(first, steps), watch)
        end = first + outcome.history.steps_taken
        if outcome.history.status != DIVERGED:
            keeper.keep(end, outcome.state, log.synced_sha256(), source.position)
        state = log_last_row(descent.step, outcome, source, flat_at, end, watch)
        if outcome.history.status == DIVERGED and is_read(data):
            try:
                check_values(descent, state, jax.device_get(source.order.at(source.arrays(), 0)), "batch")
            except ValueError as error:
                notes.append(f"the batch of step {end:,} is the cause: {error}")
    if outcome.interrupted and on_interrupt == "raise":
        raise KeyboardInterrupt(f"stopped after {end:,} steps; {_how_to_resume(folder)}")
    if source.ended:
        notes.append(f"the data ended after {end:,} of {steps:,} steps")
    if source.left_out:
        notes.append(f"{source.left_out:,} batches with fewer points were left out (minijaxnet.padded pads them)")
    notes += [*keeper.notes, *lost_updates(initial.params, state.params, end)]
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
    """Check data that is in memory, and make a source of it."""
    check_values(descent, state, data)
    data = numbers(data, "data")
    data = jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else jax.device_put(leaf), data)
    if batch_size is None:
        return InMemory(OneBatch(), data)
    order = minibatches_of(data, batch_size)
    check_key(key)
    return InMemory(order, (data, key))


def _how_to_resume(folder: Any) -> str:
    if folder is None:
        return "run_dir= would save it, on_interrupt='return' would return the result"
    return f"resume=True continues in {folder}"


def check_values(descent: Descent, state: DescentState, data: PyTree, name: str = "data") -> None:
    """Check on the host that numbers are finite and labels are classes; a compiled program cannot raise an error.

    Raises:
        ValueError: a value is invalid; the text has the place of the first one.
    """
    data, params = local_share(checked_tree(data, name)), to_host(state.params)
    check_batch(data, name)
    for name, leaf in named_leaves(floating_arrays(params, "state.params")).items():
        if not np.isfinite(np.asarray(leaf)).all():
            raise ValueError(f"state.params{name}: got NaN or infinity; expected finite numbers")
    if not to_host(is_ready(descent.step, state)):
        raise ValueError(f"state.optimizer: got {state.optimizer}; expected a finite learning rate")
    check_labels(descent.step, params, numbers(data, name))
