"""Fit: carry a descent to its end, with the host looking in between chunks of the compiled loop.

Everything that a person waits for happens there: progress, the log, checkpoints, signals. The compiled program knows
nothing of it, and its chunks may be cut anywhere: the numbers are the same to the last bit.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._loops import block_on
from minijaxnet._programs import known
from minijaxnet.data import check_batch, numbers
from minijaxnet.descent import Descent, DescentState, check_descent, check_state
from minijaxnet.feeds import OneBatch, check_key, minibatches_of
from minijaxnet.loop import chunk_capacity, flat_norm, own_copy, run_chunk
from minijaxnet.losses import check_labels
from minijaxnet.processes import here, is_first, own_share, told
from minijaxnet.pytrees import (
    check_callable,
    check_count,
    checked_tree,
    floating_arrays,
    named_leaves,
)
from minijaxnet.run.keeper import Keeper
from minijaxnet.run.lock import Held, hold
from minijaxnet.run.log import Log, Sink
from minijaxnet.run.signals import heard
from minijaxnet.tables import figure, html_of
from minijaxnet.trace import DIVERGED, OUT_OF_STEPS, History, Status, Trace

# A chunk of compiled steps lasts about this long: short enough for Ctrl-C, long enough to cost nothing.
_CHUNK_S = 0.1


class Progress(NamedTuple):
    """Where a fit stands, told after each chunk; steps are counted from its first start."""

    step: int
    steps: int
    loss: float
    gradient_norm: float
    steps_per_s: float


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
    """

    state: DescentState
    trace: Trace
    rows: list[dict[str, Any]]
    first_step: int
    interrupted: int
    notes: list[str]
    compile_s: float
    run_s: float

    @property
    def status(self) -> Status:
        """How the descent ended: FLAT, OUT_OF_STEPS (also when interrupted) or DIVERGED."""
        return Status(int(self.trace.status))

    @property
    def steps_taken(self) -> int:
        """How many steps were taken since the first start."""
        return self.first_step + int(self.trace.steps_taken)

    def __repr__(self) -> str:
        """How it ended, in a line, and what is to be known of it."""
        loss = f", loss {figure(self.rows[-1]['loss'])}" if self.rows else ""
        ended = ", then was interrupted" if self.interrupted else ""
        notes = "".join(f"\n{note}" for note in self.notes)
        return f"FitResult: {self.status.name} after {self.steps_taken:,} steps{ended}{loss}{notes}"

    def _repr_html_(self) -> str:
        return html_of(self)


def fit(
    descent: Descent,
    state: DescentState,
    data: Any,
    *,
    steps: int,
    until_flat: float = 0.0,
    batch_size: int | None = None,
    key: jax.Array | None = None,
    log_every: int | None = None,
    measure: Callable[[Any], dict[str, Any]] | None = None,
    run_dir: str | Path | Held | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    checkpoint_s: float = 60.0,
    sink: Sink | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> FitResult:
    """Take ``steps`` steps, or fewer: as ``descend``, but checked, logged, watched and interruptible.

    Values are checked first, on the host. Then chunks of about a tenth of a second run; SIGINT (Ctrl-C) and SIGTERM
    stop after the one that is under way, with what was learnt so far; a second one ends at once. A run folder is held
    by one process at a time. It has the three newest checkpoints, from which ``resume`` goes on to the same bits,
    whatever ended the process: parameters, optimizer and keys are in them, the order of minibatches follows from these.

    Several processes call it alike, with state and data on a mesh of all their devices (see ``parallel``). The first
    one logs and writes; chunks, checkpoints and signals are agreed upon, so that all stop after the same step.

    Args:
        descent: how to step.
        state: where to start; copied once, so it stays yours.
        data: ``Batch(x, y)``, the batch axis first.
        steps: how many steps at most, at least 0.
        until_flat: stop before a step whose gradient norm is at most this; with minibatches or a keyed objective the
            slope is only a sample, and 0 means never.
        batch_size: points a step, drawn anew each epoch; each step sees all points if None.
        key: a ``jax.random.key`` for the order of the minibatches; needed with ``batch_size``.
        log_every: steps from one logged row to the next; about 20 rows if None.
        measure: ``measure(params) -> {name: number}``, added to each logged row.
        run_dir: an existing folder, in which ``metrics.jsonl``, ``timing.jsonl`` and ``checkpoints/`` are written;
            nothing is written if None. It is held meanwhile; what ``run.lock.hold`` gave is held by the caller.
        resume: go on where the newest checkpoint in ``run_dir`` is that is whole, or from the start if there is none;
            all other arguments are to be those of the first start.
        checkpoint_every: steps from one checkpoint to the next; None for by time alone.
        checkpoint_s: seconds from one checkpoint to the next. There is one at the end, too, unless it diverged.
        sink: who else keeps the logged rows; see ``Sink``.
        on_progress: called after each chunk.

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
        >>> from minijaxnet.descent import gradient_descent
        >>> objective = lambda weight, batch: jnp.mean((weight * batch[0] - batch[1]) ** 2)
        >>> descent = gradient_descent(objective, learning_rate=0.1)
        >>> result = fit(descent, descent.init(0.0), (jnp.ones(2), jnp.full(2, 3.0)), steps=100)
        >>> print(f"{result.state.params:.3f}", result.status.name)
        3.000 OUT_OF_STEPS
    """
    check_descent(descent)
    check_state(state)
    check_count("steps", steps)
    for name, given in (("measure", measure), ("on_progress", on_progress)):
        check_callable(name, (lambda: None) if given is None else given)
    if not isinstance(sink, Sink | None):
        raise TypeError(f"sink: got {type(sink).__name__}; expected a Sink(write)")
    if isinstance(run_dir, str | Path) and (not str(run_dir) or not Path(run_dir).is_dir()):
        raise ValueError(f"run_dir: got {str(run_dir)!r}; expected a folder that is there")
    if not isinstance(run_dir, str | Path | Held | None):
        raise TypeError(f"run_dir: got {run_dir!r}; expected a folder")
    log_every = max(1, steps // 20) if log_every is None else check_count("log_every", log_every, least=1)
    rest = flat_norm(until_flat, sampled=batch_size is not None or state.key is not None)
    check_values(descent, state, data)
    data = numbers(data, "data")
    data = jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else jax.device_put(leaf), data)
    feed, source = (OneBatch(), data) if batch_size is None else (minibatches_of(data, batch_size), (data, key))
    if batch_size is not None:
        check_key(key)
    began, run_s, start = time.perf_counter(), 0.0, state
    state = own_copy(state)
    step_known = known(descent.step)
    capacity, block = chunk_capacity(step_known, feed, state, source), block_on(state)

    if not is_first():  # the first process writes
        run_dir, resume, sink, on_progress = None, False, None, None
    folder = run_dir.folder if isinstance(run_dir, Held) else run_dir

    with (
        nullcontext() if run_dir is None else hold(run_dir),
        nullcontext(Keeper(folder, every=checkpoint_every, seconds=checkpoint_s, resume=resume)) as keeper,
        Log(folder, resume=resume, sink=sink) as log,
        heard() as stop,
    ):
        first, state = keeper.begin(state, log, log_every)
        log.begin(first)

        under_way = np.int32(OUT_OF_STEPS)

        def chunk(state: DescentState, steps: int, until_flat: Any = rest) -> tuple[DescentState, Trace, float]:
            start = time.perf_counter()
            with jax.transfer_guard("allow"):  # of the three numbers that follow the source; all else is there
                out = run_chunk(step_known, feed, capacity, block, state, source, steps, until_flat, under_way)
            jax.block_until_ready(out)
            return *out, time.perf_counter() - start

        state, trace, _ = chunk(state, 0)  # no step: all the time it takes is tracing and compiling
        compile_s, steps_per_s = time.perf_counter() - began, 1.0
        history = History(max(0, steps - first))
        history.append(trace)
        while True:
            step = first + history.steps_taken
            most = min(steps - step, log_every - step % log_every, keeper.steps_left(step), capacity)
            # What clocks and signals say is not the same in each process: here they agree on what comes next.
            timely = max(1, int(_CHUNK_S * steps_per_s))
            wanted = min(most, timely // block * block or timely)
            plans = told((wanted, keeper.is_due(step), stop.signum))
            (length, is_due, _), interrupted = plans[0].tolist(), int(plans[:, 2].max())
            if step >= steps or history.status != OUT_OF_STEPS or interrupted:
                break
            if is_due:
                log.sync()
                keeper.keep(step, state, log.sha256)
            measured = _measured(measure, state.params) if step % log_every == 0 else None
            state, trace, seconds = chunk(state, length)
            seen = history.append(trace)
            run_s += seconds
            if len(seen.loss):
                if measured is not None:
                    log.append(step, _row(seen, measured), run_s)
                # Grow no faster than fourfold: the first chunk is one step, and its time mostly the call's.
                steps_per_s = min(len(seen.loss) / seconds, 4 * steps_per_s)
                taken = first + history.steps_taken
                if on_progress is not None:
                    loss, norm = float(seen.loss[-1]), float(seen.gradient_norm[-1])
                    on_progress(Progress(taken, steps, loss, norm, history.steps_taken / run_s))
        end = first + history.steps_taken
        if history.status != DIVERGED:
            log.sync()
            keeper.keep(end, state, log.sha256)
        # A look without a step: everything is flat against an infinite norm.
        state, look, _ = chunk(state, 1, np.asarray(np.inf, rest.dtype))
        log.append(end, _row(jax.device_get(look), _measured(measure, state.params)), run_s)
        log.sync()
    notes = [*keeper.notes, *_lost_updates(start.params, state.params, end)]
    return FitResult(state, history.trace(), log.rows, first, interrupted, notes, compile_s, run_s)


def _lost_updates(before: Any, after: Any, steps: int) -> list[str]:
    """A note where of the weights of few digits hardly one has moved; one that is 0 always does, however little."""
    pairs = zip(jax.tree.leaves(here(before)), jax.tree.leaves(here(after)), strict=True)
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in pairs if jnp.finfo(a.dtype).bits < 32]
    count = sum(int(np.sum(a != 0)) for a, _ in pairs)
    moved = sum(int(np.sum((a != 0) & (a != b))) for a, b in pairs)
    if steps < 2 or not count or moved > count / 100:
        return []
    dtypes = ", ".join(sorted({str(a.dtype) for a, _ in pairs}))
    return [
        f"{moved:,} of {count:,} weights have moved: if the others are not meant to stay, the learning rate times the "
        f"gradient is below half a unit in their last place ({dtypes}); take float32 weights, a larger rate, or "
        "stochastic rounding"
    ]


def _row(seen: Any, measured: dict[str, float]) -> dict[str, float]:
    """What the first of some steps saw."""
    return {"loss": float(seen.loss[0]), "gradient_norm": float(seen.gradient_norm[0])} | measured


def _measured(measure: Callable[[Any], dict[str, Any]] | None, params: Any) -> dict[str, float]:
    told = {} if measure is None else measure(params)
    if not isinstance(told, Mapping) or not all(isinstance(name, str) for name in told):
        got = f"the names {[*told]}" if isinstance(told, Mapping) else type(told).__name__
        raise TypeError(f"measure: got {got}; expected a dictionary of numbers by their names, such as {{'norm': 1.0}}")
    measured = {name: _number(f"measure: {name}", value) for name, value in told.items()}
    if taken := {"step", "loss", "gradient_norm"} & set(measured):
        raise ValueError(f"measure: got the name {taken.pop()!r}; expected another, fit itself logs that one")
    return measured


def _number(name: str, value: Any) -> float:
    try:
        if not isinstance(value, str | bytes) and np.ndim(value) == 0 and not np.iscomplexobj(value):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    dtype = getattr(value, "dtype", None)
    got = type(value).__name__ if dtype is None else f"{dtype}[{','.join(map(str, np.shape(value)))}]"
    raise TypeError(f"{name}: got {got}; expected a number")


def check_values(descent: Descent, state: DescentState, data: Any, name: str = "data") -> None:
    """Say what no compiled program could: numbers that are not finite, labels that are no class.

    Raises:
        ValueError: with the place of the first such number.
    """
    data, params = own_share(checked_tree(data, name)), here(state.params)
    check_batch(data, name)
    for name, leaf in named_leaves(floating_arrays(params, "state.params")).items():
        if not np.isfinite(np.asarray(leaf)).all():
            raise ValueError(f"state.params{name}: got NaN or infinity; expected finite numbers")
    check_labels(descent.step, params, numbers(data, name))
