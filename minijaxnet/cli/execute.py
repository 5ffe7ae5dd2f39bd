"""Run an experiment in its folder, from the start or from where it stopped; what ``run`` and ``resume`` share."""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from minijaxnet._files import Lines, naming
from minijaxnet._tables import printable, significant
from minijaxnet.batches import minibatches_of
from minijaxnet.cli import outcome
from minijaxnet.cli.checks import checks_of
from minijaxnet.cli.measure import log_every_of, measure_of
from minijaxnet.cli.optimizers import Optimizer, compare_with_rivals, differentiated, optimizer_of_request
from minijaxnet.cli.placement import agree, described, divided, everywhere, mesh_of, placed_data, placed_start
from minijaxnet.cli.report import PAGE, leave_report
from minijaxnet.cli.request import OpenFolder, Request, worth_keeping
from minijaxnet.cli.start import Start, digest_of, first_batch, start_of
from minijaxnet.descent import Descent, DescentState
from minijaxnet.experiment import loads_its_share
from minijaxnet.history import DIVERGED
from minijaxnet.parallel import replicate, shard_batch
from minijaxnet.parallel.processes import broadcast, is_first, is_lost, to_host
from minijaxnet.report.told import Known
from minijaxnet.run import FitResult, Sink, check_values, fit
from minijaxnet.run.checkpoint import write_checkpoint
from minijaxnet.run.checkpoint_format import CheckpointError
from minijaxnet.run.diagnose import diagnose
from minijaxnet.run.folder import COMPARISON, PARAMS, RESULT, result_state, write_json
from minijaxnet.run.lock import hold
from minijaxnet.run.log import Progress
from minijaxnet.run.programs import kept_programs
from minijaxnet.streams import first_batch_of, is_read
from minijaxnet.verify import GradReport

Say = Callable[[str], None]
Check = Callable[[], GradReport | None]

# A descent that takes longer has its gradient checked on the way, a shorter one when it has ended.
_LONG_S = 5.0


class WrongGradient(Exception):
    """A gradient by hand, or a derivative rule within the loss, that is wrong."""


class Setup(NamedTuple):
    """An experiment made ready to run.

    Attributes:
        start: its parameters, data and keys.
        batch: the training data; the first batch where they are read.
        mesh: the devices to run on; None for a single one.
        optimizer: of the request.
        descent: on these devices.
        state: the descent's first state.
    """

    start: Start
    batch: Any
    mesh: Mesh | None
    optimizer: Optimizer
    descent: Descent
    state: DescentState


def execute(request: Request, open_folder: OpenFolder, *, resume: bool) -> int:
    """Descend, check the gradient, time the step, and keep all that in a folder; the exit code.

    Args:
        request: what to run.
        open_folder: makes or finds the run folder.
        resume: whether to go on with what the folder holds.
    """
    with jax.enable_x64(request.flags.precision == "float64"):
        return _execute(request, open_folder, resume)


def _execute(request: Request, open_folder: OpenFolder, resume: bool) -> int:
    flags, setup = request.flags, _set_up(request)
    data_sha256 = agree(request, digest_of(setup.batch, *setup.start.held_out.values()))
    run = _placed(request, setup)
    check: Check = functools.cache(lambda: _checked(request, setup))
    heading = (
        f"{request.experiment.name}: {flags.steps:,} steps of {setup.optimizer}, learning rate "
        f"{flags.learning_rate:g}, {flags.precision} on {described(setup.mesh)}"
    )
    if is_first():
        _print(heading)
    if jax.process_count() > 1 and not broadcast(is_first() and (_is_right(check()) or flags.unchecked)):
        if is_first():  # the first process could not stop the others on the way
            print(f"\n{check()}\n\nThe descent was not started: {outcome.WRONG}.")
        return 1
    if not is_first():
        return outcome.exit_code(run())
    with open_folder(data_sha256) as folder, hold(folder) as held, Lines(folder / "log.txt") as log:
        log.append(f"{heading}\n")

        def say(text: str) -> None:
            text = printable(text, keep="\n\t")
            _print(text)
            log.append(f"{text}\n")

        try:
            kept = kept_programs(folder, flags.keep_programs)
            with kept, failure_recorded(folder), _sink(flags.steps, check, flags.unchecked) as sink:
                result = run(run_dir=held, resume=resume, sink=sink)
        except WrongGradient:
            say(f"\n{check()}\n\nThe descent was stopped: {outcome.WRONG}.")
            return 1
        for note in result.notes:
            say(f"warning: {note}")
        if resume:
            say(f"went on from step {result.first_step:,}")
        report = _report(request, setup, result, check, folder, say)
    return outcome.exit_code(result) or int(not (_is_right(report) or flags.unchecked))


def _set_up(request: Request) -> Setup:
    """The experiment, its values checked."""
    experiment, flags = request.experiment, request.flags
    start = start_of(experiment, flags.seed, flags.precision, request.init, request.data)
    mesh, optimizer = mesh_of(flags), optimizer_of_request(request)
    descent = divided(mesh, optimizer.descent(differentiated(experiment), flags.learning_rate))
    state = descent.init(start.params, start.draw_key)
    batch = first_batch_of(start.train)
    for name, each in {"train": batch, **start.held_out}.items():
        check_values(descent, state, each, name)
    if flags.batch_size is not None and not (jax.process_count() > 1 and loads_its_share(experiment)):
        minibatches_of(batch, flags.batch_size)
    return Setup(start, batch, mesh, optimizer, descent, state)


def _placed(request: Request, setup: Setup) -> Callable[..., FitResult]:
    """The descent, where it is to run; it takes the rest of what ``fit`` does."""
    flags, mesh = request.flags, setup.mesh
    train, held_out = placed_data(mesh, request, setup.start.train, setup.start.held_out)
    state = placed_start(mesh, setup.state)
    batches = held_out if is_read(train) else {"train": train, **held_out}
    changed = {name: getattr(flags, name) for name in request.changed}
    return functools.partial(
        fit,
        setup.descent,
        state,
        train,
        steps=flags.steps,
        until_flat=flags.until_flat,
        batch_size=flags.batch_size,
        key=None if flags.batch_size is None else everywhere(mesh, setup.start.order_key),
        log_every=log_every_of(state.params, flags.steps) if flags.log_every is None else flags.log_every,
        measure=measure_of(request.experiment, state.params, batches, state.key, changed),
        keep_best=flags.keep_best,
        patience=flags.patience,
        checkpoint_every=flags.checkpoint_every or timedelta(seconds=flags.checkpoint_seconds),
        on_interrupt="return",
    )


def _checked(request: Request, setup: Setup) -> GradReport | None:
    """What is wrong with what is derived by hand, or the report on the gradient; None where nothing is.

    The arguments lie where they will, if that is all in this process.
    """
    params, key, mesh = setup.start.params, setup.start.draw_key, setup.mesh
    batch, keys = first_batch(setup.batch, request.flags.batch_size), () if key is None else (key,)
    arguments = (params, batch, *keys)
    if mesh is not None and jax.process_count() == 1:
        arguments = (replicate(mesh, params), shard_batch(mesh, batch), *replicate(mesh, keys))
    report = None
    for check in checks_of(request.experiment, arguments).values():
        report = check(arguments)
        if not report.ok:
            break
    return report


def _is_right(report: GradReport | None) -> bool:
    return report is None or report.ok


def _report(
    request: Request, setup: Setup, result: FitResult, check: Check, folder: Path, say: Say
) -> GradReport | None:
    """Say and write what came out: what was learnt, whether the gradient is right, how fast a step is, and a page."""
    experiment, flags, (params, train, held_out, _, key) = request.experiment, request.flags, setup.start
    state, best = to_host(result.state), result.best
    write_checkpoint(folder / PARAMS, state.params, step=result.steps_taken)
    write_json(folder / "timing.json", outcome.timing_json(result, None))
    say(outcome.summary(experiment, result, held_out, flags.keep_best))
    report = None
    if not result.interrupted and (report := check()) is not None:
        say(f"\n{report}")
        if not (report.ok or flags.unchecked):
            say(f"\nThe result cannot be relied on: {outcome.WRONG}.")
    write_json(folder / RESULT, outcome.result_json(result, report))  # from here on the run is done
    has_share = jax.process_count() > 1 and loads_its_share(experiment)
    if has_share:
        say("what follows is of the points of process 0 alone")
    if result.status == DIVERGED and flags.diagnose:
        with _beside("not diagnosed", say):
            batch = _batch_at(state, train, None if has_share else flags.batch_size, setup.start.order_key)
            extra = () if key is None else (jax.random.fold_in(key, state.step),)
            say(f"\n{diagnose(differentiated(experiment), state.params, batch, *extra)}")
    if not result.interrupted and result.status != DIVERGED and flags.bench_seconds > 0:
        with _beside("not timed", say):
            batch, seconds = first_batch(setup.batch, flags.batch_size), flags.bench_seconds
            comparison = compare_with_rivals(
                experiment, setup.optimizer, flags.learning_rate, params, batch, key, seconds=seconds
            )
            if comparison is not None:
                say(f"\n{comparison}")
                write_json(folder / "timing.json", outcome.timing_json(result, comparison))
                with naming(folder / COMPARISON, "file not written"):
                    comparison.save(folder / COMPARISON)
    if flags.report:
        with _beside(f"no {PAGE}", say):
            weights, notes = state.params, []
            if best is not None:
                weights, notes = to_host(best.params), [f"Pictures of weights are of the best ones, step {best.step:,}"]
            say(leave_report(folder, Known(experiment, weights, setup.batch, held_out["test"], key), notes))
    say(f"\nwritten to {folder}")
    if result.interrupted:
        say(f"minijaxnet resume {folder} goes on")
    elif result.status == DIVERGED:
        say(f"hint: a smaller step goes less far astray: --learning-rate {flags.learning_rate / 10:g}")
    return report


def _print(text: str) -> None:
    with naming(Path("standard output"), "not written"):  # it may be a file on a full disk
        print(text, flush=True)


@contextlib.contextmanager
def _beside(failed: str, say: Say) -> Iterator[None]:
    """Something that a run also does: if it fails, that is said, and the exit code is the descent's all the same."""
    try:
        yield
    except Exception as error:
        say(f"{failed}: {error if isinstance(error, ValueError | ImportError) else f'{type(error).__name__}: {error}'}")


@contextlib.contextmanager
def failure_recorded(folder: Path) -> Iterator[None]:
    """Have the result say how a descent failed, unless it was done before or others are to blame."""
    try:
        yield
    except Exception as error:
        kept = isinstance(error, CheckpointError) or is_lost(error)  # there is something to go on with
        if not kept and worth_keeping(folder) and result_state(folder) != "done":
            with contextlib.suppress(OSError):  # on a full disk the first error is the one to tell
                write_json(folder / RESULT, {"status": "FAILED", "error": f"{type(error).__name__}: {error}"})
        raise


def _batch_at(state: DescentState, train: Any, batch_size: int | None, order_key: Any) -> Any:
    """What the next step looks at."""
    if is_read(train):
        return next(iter(train(int(state.step))))
    if batch_size is None:
        return train
    order = minibatches_of(train, batch_size)
    return order.at(order.draw((train, order_key), state.step, 1, 1), 0)


@contextlib.contextmanager
def _sink(steps: int, check: Check, unchecked: bool) -> Iterator[Sink]:
    """What looks at a descent on the way: its check once it has run for long, and on a terminal a bar."""
    began = time.monotonic()
    with _progress_bar(steps) as show:

        def on_progress(progress: Progress) -> None:
            show(progress)
            is_long = jax.process_count() == 1 and time.monotonic() - began > _LONG_S
            if is_long and not unchecked and not _is_right(check()):
                raise WrongGradient(outcome.WRONG)

        yield Sink(lambda row: None, progress=on_progress)


@contextlib.contextmanager
def _progress_bar(steps: int) -> Iterator[Callable[[Progress], None]]:
    """A live bar with loss, speed and time left, on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda progress: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  {task.fields[speed]} steps/s  left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("descent", total=steps, loss="-", speed="-")

        def show(progress: Progress) -> None:
            speed = f"{progress.steps_per_s:,.0f}"
            bar.update(task, completed=progress.step, loss=significant(progress.loss), speed=speed)

        yield show
