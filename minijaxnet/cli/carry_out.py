"""Carry out a run in its folder, from the start or from where it stopped; what ``run`` and ``resume`` share."""

import contextlib
import functools
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from minijaxnet._files import Lines, naming
from minijaxnet._tables import printable, significant, text_table
from minijaxnet.batches import minibatches_of
from minijaxnet.bench import StepComparison
from minijaxnet.cli.arms import compare_with_rivals, differentiated, optimizer_asked
from minijaxnet.cli.begin import Asked, Beginning, OpenFolder, begin, digest_of, first_batch, worth_keeping
from minijaxnet.cli.checks import checks_of
from minijaxnet.cli.measured import log_every_of, measure_of
from minijaxnet.cli.report import PAGE, leave_report
from minijaxnet.cli.together import agree, described, divided, everywhere, mesh_of, placed_data, placed_start
from minijaxnet.descent import Descent, DescentState
from minijaxnet.experiment import Experiment, loads_its_share
from minijaxnet.goal import goal_of
from minijaxnet.history import DIVERGED, STOPPED_EARLY
from minijaxnet.parallel import replicate, shard_batch
from minijaxnet.parallel.processes import broadcast, is_first, is_lost, to_host
from minijaxnet.report.record import Trained
from minijaxnet.run import FitResult, Sink, check_values, fit
from minijaxnet.run.checkpoint import write_checkpoint
from minijaxnet.run.checkpoint_format import CheckpointError
from minijaxnet.run.diagnose import diagnose
from minijaxnet.run.folder import BEST, COMPARISON, PARAMS, RESULT, result_state, write_json
from minijaxnet.run.lock import hold
from minijaxnet.run.log import Progress
from minijaxnet.run.programs import kept_programs
from minijaxnet.streams import first_batch_of, is_read
from minijaxnet.verify import GradReport


def carry_out(asked: Asked, open_folder: OpenFolder, *, resume: bool) -> int:
    """Check the gradient, descend, time the step, and keep all that in a folder; the exit code.

    Args:
        asked: for what.
        open_folder: makes or finds the run folder.
        resume: whether to go on with what the folder holds.
    """
    with jax.enable_x64(asked.flags.precision == "float64"):
        return _carry_out(asked, open_folder, resume)


def _carry_out(asked: Asked, open_folder: OpenFolder, resume: bool) -> int:
    experiment, flags = asked.experiment, asked.flags
    beginning = begin(experiment, flags.seed, flags.precision, asked.init, asked.data)
    params, train, held, _, key = beginning
    mesh = mesh_of(flags)
    optimizer = optimizer_asked(asked)
    descent = divided(mesh, optimizer.descent(differentiated(experiment), flags.learning_rate))
    start = descent.init(params, key)
    seen = first_batch_of(train)
    for name, batch in {"train": seen, **held}.items():
        check_values(descent, start, batch, name)
    if flags.batch_size is not None and not (jax.process_count() > 1 and loads_its_share(experiment)):
        minibatches_of(seen, flags.batch_size)
    data_sha256 = agree(asked, digest_of(seen, *held.values()))
    run = _placed(asked, mesh, descent, start, beginning)
    heading = (
        f"{experiment.name}: {flags.steps:,} steps of {optimizer}, learning rate "
        f"{flags.learning_rate:g}, {flags.precision} on {described(mesh)}"
    )
    report = None
    if is_first():
        _print(heading)
        report = _checked(experiment, mesh, params, first_batch(seen, flags.batch_size), key)
    if not broadcast(report is None or report.ok or flags.unchecked):
        if is_first():
            why = "its gradient would lead it astray; --unchecked starts it all the same"
            print(f"\n{report}\n\nThe descent was not started: {why}.")
        return 1
    if not is_first():
        return _code(run())
    with (
        open_folder(data_sha256) as folder,
        hold(folder) as held,
        Lines(folder / "log.txt") as log,
    ):
        log.append(f"{heading}\n")

        def say(text: str) -> None:
            text = printable(text, keep="\n\t")
            _print(text)
            log.append(f"{text}\n")

        kept = kept_programs(folder, flags.keep_programs)
        with kept, failure_told(folder), _progress_bar(flags.steps) as sink:
            result = run(run_dir=held, resume=resume, sink=sink)
        for note in result.notes:
            say(f"warning: {note}")
        if resume:
            say(f"went on from step {result.first_step:,}")
        _tell(asked, beginning, result, report, folder, say)
    return _code(result)


def _print(text: str) -> None:
    with naming(Path("standard output"), "not written"):  # it may be a file on a full disk
        print(text, flush=True)


def _checked(experiment: Experiment, mesh: Mesh | None, params: Any, seen: Any, key: Any) -> GradReport | None:
    """What is to be said of what is by hand, if anything is: what is wrong, or the gradient.

    Placed as it will be, if that is all here.
    """
    arguments = (params, seen) if key is None else (params, seen, key)
    if mesh is not None and jax.process_count() == 1:
        arguments = (replicate(mesh, params), shard_batch(mesh, seen), *replicate(mesh, arguments[2:]))
    report = None
    for check in checks_of(experiment, arguments).values():
        report = check(arguments)
        if not report.ok:
            break
    return report


def _placed(
    asked: Asked, mesh: Mesh | None, descent: Descent, start: DescentState, beginning: Beginning
) -> Callable[..., FitResult]:
    """The descent, where it is to run; it takes the rest of what ``fit`` does."""
    changed = {name: getattr(asked.flags, name) for name in asked.changed}
    flags, minibatches = asked.flags, asked.flags.batch_size is not None
    train, held = placed_data(mesh, asked, beginning.train, beginning.held)
    start = placed_start(mesh, start)
    return functools.partial(
        fit,
        descent,
        start,
        train,
        steps=flags.steps,
        until_flat=flags.until_flat,
        batch_size=flags.batch_size,
        key=everywhere(mesh, beginning.order_key) if minibatches else None,
        log_every=log_every_of(start.params, flags.steps) if flags.log_every is None else flags.log_every,
        measure=measure_of(
            asked.experiment, start.params, ({} if is_read(train) else {"train": train}) | held, start.key, changed
        ),
        keep_best=flags.keep_best,
        patience=flags.patience,
        checkpoint_every=flags.checkpoint_every or timedelta(seconds=flags.checkpoint_seconds),
        on_interrupt="return",
    )


def _tell(
    asked: Asked, beginning: Beginning, result: FitResult, report: GradReport | None, folder: Path,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Write and say what came out of a descent."""
    (experiment, flags), (params, train, held, order_key, key) = (asked.experiment, asked.flags), beginning
    state = to_host(result.state)
    write_checkpoint(folder / PARAMS, state.params, step=result.steps_taken)
    write_json(folder / RESULT, _result(result, report))
    write_json(folder / "timing.json", _timing(result, None))
    say(f"\n{_outcome(result)}\n\n{_metrics_table('at the end', experiment, result.rows[-1], held)}")
    if (best := result.best) is not None:
        say(f"\n{goal_of(flags.keep_best)}: {significant(best.value)} at step {best.step:,}, kept in {BEST}")
        if row := _row_of(result):
            say(_metrics_table("at the best", experiment, row, held))
    if result.status == STOPPED_EARLY and not int(result.trace.steps_taken):
        say("no step was taken: minijaxnet resume RUN --patience N waits for more lines of metrics")
    if report is not None:
        say(f"\n{report}")
    is_share = jax.process_count() > 1 and loads_its_share(experiment)
    if is_share:
        say("what follows is of the points of process 0 alone")
    if result.status == DIVERGED and flags.diagnose:
        with _on_the_side("not diagnosed", say):
            batch = _batch_at(state, train, None if is_share else flags.batch_size, order_key)
            extra = () if key is None else (jax.random.fold_in(key, state.step),)
            say(f"\n{diagnose(differentiated(experiment), state.params, batch, *extra)}")
    if not result.interrupted and result.status != DIVERGED and flags.bench_seconds > 0:
        with _on_the_side("not timed", say):
            seen, seconds = first_batch(train, flags.batch_size), flags.bench_seconds
            comparison = compare_with_rivals(
                experiment, optimizer_asked(asked), flags.learning_rate, params, seen, key, seconds=seconds
            )
            if comparison is not None:
                say(f"\n{comparison}")
                write_json(folder / "timing.json", _timing(result, comparison))
                with naming(folder / COMPARISON, "file not written"):
                    comparison.save(folder / COMPARISON)
    if flags.report:
        with _on_the_side(f"no {PAGE}", say):
            shown, notes = state.params, []
            if best is not None:
                shown, notes = to_host(best.params), [f"Pictures of weights are of the best ones, step {best.step:,}"]
            say(leave_report(folder, Trained(experiment, shown, first_batch_of(train), held["test"], key), notes))
    say(f"\nwritten to {folder}")
    if result.interrupted:
        say(f"minijaxnet resume {folder} goes on")
    elif result.status == DIVERGED:
        say(f"hint: a smaller step goes less far astray: --learning-rate {flags.learning_rate / 10:g}")


@contextlib.contextmanager
def _on_the_side(failed: str, say: Callable[[str], None]) -> Iterator[None]:
    """Something that a run also does: if it fails, that is said, and the exit code is the descent's all the same."""
    try:
        yield
    except Exception as error:
        say(f"{failed}: {error if isinstance(error, ValueError | ImportError) else f'{type(error).__name__}: {error}'}")


def _code(result: FitResult) -> int:
    return 128 + result.interrupted if result.interrupted else int(result.status == DIVERGED)


@contextlib.contextmanager
def failure_told(folder: Path) -> Iterator[None]:
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
    feed = minibatches_of(train, batch_size)
    return feed.at(feed.draw((train, order_key), state.step, 1, 1), 0)


@contextlib.contextmanager
def _progress_bar(steps: int) -> Iterator[Sink | None]:
    """A live bar with loss, speed and time left, on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
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

        def on_progress(progress: Progress) -> None:
            speed = f"{progress.steps_per_s:,.0f}"
            bar.update(task, completed=progress.step, loss=significant(progress.loss), speed=speed)

        yield Sink(lambda row: None, progress=on_progress)


def _outcome(result: FitResult) -> str:
    taken, here = result.steps_taken, int(result.trace.steps_taken)
    if result.interrupted:
        how = f"stopped by {signal.Signals(result.interrupted).name} after {taken:,} steps"
    else:
        how = {
            "OUT_OF_STEPS": f"took all {taken:,} steps",
            "FLAT": f"flat after {taken:,} steps",
            "DIVERGED": f"DIVERGED at step {taken:,}; its last finite parameters are kept",
            "STOPPED_EARLY": f"stopped early after {taken:,} steps, since nothing became better",
        }[result.status.name]
    speed = f" ({1e6 * result.run_s / here:.4g} us a step)" if here >= 100 else ""
    return f"descent: {how}; compiled in {result.compile_s:.2f} s, then ran {result.run_s:.2f} s{speed}"


def _row_of(result: FitResult) -> dict[str, Any]:
    """What was logged where the weights were best."""
    step = -1 if result.best is None else result.best.step
    return next((row for row in result.rows if row["step"] == step), {})


def _metrics_table(title: str, experiment: Experiment, row: dict[str, Any], held: Iterable[str]) -> str:
    each = [of for of in ("train", *held) if f"{of}_loss" in row]
    rows = [("loss", *(significant(row[f"{of}_loss"]) for of in each))]
    for name in experiment.metrics:
        rows.append((name, *(significant(row[name if of == "train" else f"{of}_{name}"]) for of in each)))
    return text_table((title, *each), rows)


def _result(result: FitResult, report: GradReport | None) -> dict[str, Any]:
    """What came out, without a clock in it: the same for the same numbers."""
    return {
        "status": "INTERRUPTED" if result.interrupted else result.status.name,
        "steps_taken": result.steps_taken,
        "metrics": result.rows[-1],
        "kept_best": None if result.best is None else {"value": result.best.value, **_row_of(result)},
        "gradient_check": None if report is None else report.to_dict(),
    }


def _timing(result: FitResult, comparison: StepComparison | None) -> dict[str, Any]:
    taken = int(result.trace.steps_taken)
    return {
        "compile_s": result.compile_s,
        "step_us": 1e6 * result.run_s / taken if taken else None,
        "step_comparison": None if comparison is None else comparison.to_dict(),
    }
