"""Carry out a run in its folder, from the start or from where it stopped; what ``run`` and ``resume`` share."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from minijaxnet.bench import StepComparison
from minijaxnet.cli.arms import compare_with_rivals, describe, differentiated, make_descent
from minijaxnet.cli.begin import Asked, OpenFolder, begin, digest_of, first_batch, worth_keeping
from minijaxnet.cli.measured import log_every_of, measure_of
from minijaxnet.cli.report import leave_report
from minijaxnet.descent import Descent, DescentState
from minijaxnet.experiment import Experiment
from minijaxnet.feeds import minibatches_of
from minijaxnet.parallel import data_mesh, on_mesh, replicate, shard_batch
from minijaxnet.report.story import Known
from minijaxnet.run import FitResult, Progress, check_values, fit
from minijaxnet.run.checkpoint_format import CheckpointError
from minijaxnet.run.diagnose import diagnose
from minijaxnet.run.folder import COMPARISON, RESULT, result_state, write_json, write_params
from minijaxnet.run.lock import hold
from minijaxnet.run.tensorboard import event_files
from minijaxnet.tables import figure, text_table
from minijaxnet.trace import DIVERGED
from minijaxnet.verify import GradReport, check_grad


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
    for name in ("bench_seconds", "checkpoint_seconds"):
        if not 0 <= (value := getattr(flags, name)) < float("inf"):
            raise ValueError(f"{name}: got {value}; expected a finite number, at least 0")
    params, train, test, order_key, key = begin(experiment, flags.seed, flags.precision, asked.init, asked.data)
    by_hand = experiment.value_and_gradient
    descent = _descent(asked, flags.learning_rate)
    start = descent.init(params, key)
    for name, batch in (("train", train), ("test", test)):
        check_values(descent, start, batch, name)
    start, data = _placed(asked, start, train)
    seen = first_batch(train, flags.batch_size)
    measure = measure_of(experiment, params, train, test, key)

    heading = (
        f"{experiment.name}: {flags.steps:,} steps of {describe(flags.optimizer)}, learning rate "
        f"{flags.learning_rate:g}, {flags.precision} on {kind_of_devices(flags.devices)}"
    )
    print(heading, flush=True)
    report = None
    if by_hand is not None:
        extra = () if key is None else (key,)
        report = check_grad(experiment.objective, by_hand, (params, seen, *extra), has_value=True)
        if not (report.ok or flags.unchecked):
            print(f"\n{report}\n\nThe descent was not started: its gradient would lead it astray.")
            return 1

    with (
        open_folder(digest_of(train, test)) as folder,
        hold(folder),
        (folder / "log.txt").open("a", encoding="utf-8") as log,
    ):
        print(heading, file=log)

        def say(text: str) -> None:
            print(text, flush=True)
            print(text, file=log, flush=True)

        events = event_files(folder) if flags.tensorboard else contextlib.nullcontext()
        with failure_told(folder), events as sink, _progress_bar(flags.steps) as on_progress:
            result = fit(
                descent,
                start,
                data,
                steps=flags.steps,
                until_flat=flags.until_flat,
                batch_size=flags.batch_size,
                key=order_key if flags.batch_size is not None else None,
                log_every=flags.log_every or log_every_of(params, flags.steps),
                measure=measure,
                run_dir=folder,
                resume=resume,
                held=True,
                checkpoint_every=flags.checkpoint_every,
                checkpoint_s=flags.checkpoint_seconds,
                on_divergence=_halve_rate(asked) if flags.on_divergence == "halve-rate" else None,
                sink=sink,
                on_progress=on_progress,
            )
        for note in result.notes:
            say(f"warning: {note}")
        if resume:
            say(f"went on from step {result.first_step:,}")
        write_params(folder / "params.safetensors", result.state.params)
        write_json(folder / RESULT, _result(result, report))
        write_json(folder / "timing.json", _timing(result, None))
        for event in (row for row in result.rows if "event" in row):
            say(f"diverged at step {event['diverged_at']:,}: back to step {event['step']:,}, at half the learning rate")
        say(f"\n{_outcome(result)}\n\n{_metrics_table(experiment, result)}")
        if report is not None:
            say(f"\n{report}")
        if result.status == DIVERGED and flags.diagnose:
            batch = _batch_at(result.state, train, flags.batch_size, order_key)
            extra = () if key is None else (jax.random.fold_in(key, result.state.step),)
            say(f"\n{diagnose(differentiated(experiment), result.state.params, batch, *extra)}")
        if not result.interrupted and result.status != DIVERGED and flags.bench_seconds > 0:
            comparison = compare_with_rivals(
                experiment, flags.optimizer, flags.learning_rate, params, seen, key, seconds=flags.bench_seconds
            )
            if comparison is not None:
                say(f"\n{comparison}")
                write_json(folder / "timing.json", _timing(result, comparison))
                comparison.save(folder / COMPARISON)
        if flags.report:
            say(leave_report(folder, Known(experiment, result.state.params, train, test, key)))
        say(f"\nwritten to {folder}")
        if result.interrupted:
            say(f"minijaxnet resume {folder} goes on")
        elif result.status == DIVERGED:
            say(f"hint: a smaller step goes less far astray: --learning-rate {flags.learning_rate / 10:g}")
    return 128 + result.interrupted if result.interrupted else int(result.status == DIVERGED)


@contextlib.contextmanager
def failure_told(folder: Path) -> Iterator[None]:
    """Have the result say how a descent failed, unless it was done before or its checkpoints are lost."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, CheckpointError) and worth_keeping(folder) and result_state(folder) != "done":
            write_json(folder / RESULT, {"status": "FAILED", "error": f"{type(error).__name__}: {error}"})
        raise


def _descent(asked: Asked, learning_rate: float) -> Descent:
    """The descent that was asked for, over as many devices."""
    descent = make_descent(differentiated(asked.experiment), asked.flags.optimizer, learning_rate)
    return descent if asked.flags.devices == 1 else on_mesh(data_mesh(asked.flags.devices), descent)


def _placed(asked: Asked, start: DescentState, train: Any) -> tuple[DescentState, Any]:
    """State and data where the descent runs: the points divided, or for minibatches all of them on each device."""
    count, size = asked.flags.devices, asked.flags.batch_size
    if count == 1:
        return start, train
    mesh = data_mesh(count)
    if size is not None and size % count:
        raise ValueError(f"batch_size: got {size}; expected a multiple of {count}, the devices")
    return replicate(mesh, start), shard_batch(mesh, train) if size is None else replicate(mesh, train)


def kind_of_devices(count: int) -> str:
    """How the line that says what is asked for names so many devices."""
    kind = jax.devices()[0].device_kind
    shared = ", which share its cores" if count > 1 and jax.devices()[0].platform == "cpu" else ""
    return kind if count == 1 else f"{count} devices ({kind}{shared})"


def _halve_rate(asked: Asked) -> Callable[[DescentState, int], tuple[Descent, DescentState]]:
    """Go on with half the learning rate each time a descent has diverged."""

    def retry(state: DescentState, times: int) -> tuple[Descent, DescentState]:
        flags = asked.flags
        descent = _descent(asked, flags.learning_rate / 2**times)
        if flags.optimizer == "gd":  # whose rate is in the state
            state = state._replace(optimizer=descent.init(state.params, state.key).optimizer)
        return descent, state

    return retry


def _batch_at(state: DescentState, train: Any, batch_size: int | None, order_key: Any) -> Any:
    """What the next step looks at."""
    if batch_size is None:
        return train
    feed = minibatches_of(train, batch_size)
    return feed.at(feed.draw((train, order_key), state.step, 1, 1), 0)


@contextlib.contextmanager
def _progress_bar(steps: int) -> Iterator[Callable[[Progress], None] | None]:
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
            bar.update(task, completed=progress.step, loss=figure(progress.loss), speed=speed)

        yield on_progress


def _outcome(result: FitResult) -> str:
    taken, here = result.steps_taken, int(result.trace.steps_taken)
    if result.interrupted:
        how = f"stopped by {signal.Signals(result.interrupted).name} after {taken:,} steps"
    else:
        how = {
            "OUT_OF_STEPS": f"took all {taken:,} steps",
            "FLAT": f"flat after {taken:,} steps",
            "DIVERGED": f"DIVERGED at step {taken:,}; its last finite parameters are kept",
        }[result.status.name]
    speed = f" ({1e6 * result.run_s / here:.4g} us a step)" if here >= 100 else ""
    return f"descent: {how}; compiled in {result.compile_s:.2f} s, then ran {result.run_s:.2f} s{speed}"


def _metrics_table(experiment: Experiment, result: FitResult) -> str:
    last = result.rows[-1]
    rows = [("loss", figure(last["train_loss"]), figure(last["test_loss"]))]
    rows += [(name, figure(last[name]), figure(last[f"test_{name}"])) for name in experiment.metrics]
    return text_table(("at the end", "train", "test"), rows)


def _result(result: FitResult, report: GradReport | None) -> dict[str, Any]:
    """What came out, without a clock in it: the same for the same numbers."""
    return {
        "status": "INTERRUPTED" if result.interrupted else result.status.name,
        "steps_taken": result.steps_taken,
        "metrics": result.rows[-1],
        "gradient_check": None if report is None else report.to_dict(),
    }


def _timing(result: FitResult, comparison: StepComparison | None) -> dict[str, Any]:
    taken = int(result.trace.steps_taken)
    return {
        "compile_s": result.compile_s,
        "step_us": 1e6 * result.run_s / taken if taken else None,
        "step_comparison": None if comparison is None else comparison.to_dict(),
    }
