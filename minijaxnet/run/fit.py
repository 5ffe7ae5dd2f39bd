"""Fit: carry a descent to its end, with the host looking in between chunks of the compiled loop.

Everything that a person waits for happens there: progress, the log, Ctrl-C. The compiled program knows nothing of it.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet.data import check_batch
from minijaxnet.descent import Descent, DescentState
from minijaxnet.feeds import OneBatch, minibatches_of
from minijaxnet.loop import chunk_capacity, flat_norm, own_copy, run_chunk
from minijaxnet.losses import Objective
from minijaxnet.pytrees import check_count, floating_arrays, named_leaves
from minijaxnet.run.folder import Log
from minijaxnet.trace import OUT_OF_STEPS, History, Status, Trace

# A chunk of compiled steps lasts about this long: short enough for Ctrl-C, long enough to cost nothing.
_CHUNK_S = 0.1


class Progress(NamedTuple):
    """Where a fit stands, told after each chunk."""

    step: int
    steps: int
    loss: float
    gradient_norm: float
    steps_per_s: float


class FitResult(NamedTuple):
    """How a fit went.

    Attributes:
        state: where the descent ended; finite, also if it diverged.
        trace: what each step saw; see ``Trace``. Steps are counted from where this fit started.
        rows: what was logged, as in ``metrics.jsonl``; the last row is of the state where it ended.
        interrupted: whether Ctrl-C ended it.
        compile_s: seconds to trace and compile, apart from all running.
        run_s: seconds in compiled steps.
    """

    state: DescentState
    trace: Trace
    rows: list[dict[str, float]]
    interrupted: bool
    compile_s: float
    run_s: float

    @property
    def status(self) -> Status:
        """How the descent ended: FLAT, OUT_OF_STEPS (also when interrupted) or DIVERGED."""
        return Status(int(self.trace.status))


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
    run_dir: str | Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> FitResult:
    """Take ``steps`` steps, or fewer: as ``descend``, but checked, logged, watched and interruptible.

    Values are checked first, on the host. Then chunks of about a tenth of a second run; Ctrl-C stops after the one that
    is under way, with what was learnt so far.

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
        run_dir: an existing folder, in which ``metrics.jsonl`` is written; nothing is written if None.
        on_progress: called after each chunk.

    Returns:
        The result; a descent that diverges is a result, too.

    Raises:
        ValueError: a value that no descent can use: NaN in the data or params, no points, labels that are no class, a
            batch size beyond the points, negative steps. The text names the argument.
        TypeError: the wrong kind of thing: integer params, a fractional number of steps, no key with ``batch_size``.

    Example:
        >>> from minijaxnet.descent import gradient_descent
        >>> objective = lambda weight, batch: jnp.mean((weight * batch[0] - batch[1]) ** 2)
        >>> descent = gradient_descent(objective, learning_rate=0.1)
        >>> result = fit(descent, descent.init(0.0), (jnp.ones(2), jnp.full(2, 3.0)), steps=100)
        >>> print(f"{result.state.params:.3f}", result.status.name)
        3.000 OUT_OF_STEPS
    """
    check_count("steps", steps)
    log_every = max(1, steps // 20) if log_every is None else check_count("log_every", log_every, least=1)
    rest = flat_norm(until_flat, sampled=batch_size is not None or state.key is not None)
    check_values(descent, state, data)
    data = jax.device_put(data)
    feed, source = (OneBatch(), data) if batch_size is None else (minibatches_of(data, batch_size), (data, key))
    if batch_size is not None:
        _check_key(key)
    began = time.perf_counter()
    state = own_copy(state)
    capacity = chunk_capacity(descent.step, feed, state, source)

    def chunk(state: DescentState, steps: int, until_flat: Any = rest) -> tuple[DescentState, Trace, float]:
        start = time.perf_counter()
        out = run_chunk(descent.step, feed, capacity, state, source, steps, until_flat, np.int32(OUT_OF_STEPS))
        jax.block_until_ready(out)
        return *out, time.perf_counter() - start

    state, trace, _ = chunk(state, 0)  # no step: all the time it takes is tracing and compiling
    compile_s, run_s, steps_per_s = time.perf_counter() - began, 0.0, 1.0
    history = History(steps)
    history.append(trace)

    with _interruptible() as interrupted, Log(run_dir) as log:
        while history.steps_taken < steps and history.status == OUT_OF_STEPS and not interrupted.is_set():
            step = history.steps_taken
            measured = _measured(measure, state.params) if step % log_every == 0 else None
            most = min(steps - step, log_every - step % log_every, capacity)
            state, trace, seconds = chunk(state, min(most, max(1, int(_CHUNK_S * steps_per_s))))
            seen = history.append(trace)
            if not len(seen.loss):
                break
            if measured is not None:
                log.append(step, seen.loss[0], seen.gradient_norm[0], measured)
            # Grow no faster than fourfold: the first chunk is one step, and its time mostly the call's.
            run_s, steps_per_s = run_s + seconds, min(len(seen.loss) / seconds, 4 * steps_per_s)
            if on_progress is not None:
                taken = history.steps_taken
                on_progress(Progress(taken, steps, float(seen.loss[-1]), float(seen.gradient_norm[-1]), taken / run_s))
        # A look without a step: everything is flat against an infinite norm.
        state, look, _ = chunk(state, 1, np.asarray(np.inf, rest.dtype))
        log.append(history.steps_taken, look.loss[0], look.gradient_norm[0], _measured(measure, state.params))
    return FitResult(state, history.trace(), log.rows, interrupted.is_set(), compile_s, run_s)


def _measured(measure: Callable[[Any], dict[str, Any]] | None, params: Any) -> dict[str, float]:
    measured = {} if measure is None else {name: float(value) for name, value in measure(params).items()}
    if taken := {"step", "loss", "gradient_norm"} & set(measured):
        raise ValueError(f"measure: got the name {taken.pop()!r}; expected another, fit itself logs that one")
    return measured


def check_values(descent: Descent, state: DescentState, data: Any, name: str = "data") -> None:
    """Say what no compiled program could: numbers that are not finite, labels that are no class.

    Raises:
        ValueError: with the place of the first such number.
    """
    check_batch(data, name)
    for name, leaf in named_leaves(floating_arrays(state.params, "state.params")).items():
        if not np.isfinite(np.asarray(leaf)).all():
            raise ValueError(f"state.params{name}: got NaN or infinity; expected finite numbers")
    objective = getattr(descent.step, "objective", None)
    while objective is not None and not isinstance(objective, Objective):
        objective = getattr(objective, "objective", None)  # a wrapper, such as with_gradient's
    if objective is not None:
        objective.check_values(state.params, data)


def _check_key(key: Any) -> None:
    dtype, ndim = getattr(key, "dtype", None), getattr(key, "ndim", None)
    is_key = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and ndim == 0
    if not is_key and not (dtype == jnp.uint32 and ndim == 1):
        got = "None" if key is None else f"a {type(key).__name__}" + (f" of shape {key.shape}" if ndim else "")
        raise TypeError(f"key: got {got}; expected a jax.random.key, for the order of the minibatches")


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one raises as ever. Outside the main thread nothing is caught."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = signal.getsignal(signal.SIGINT)

    def on_signal(signum: int, frame: Any) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, on_signal)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
