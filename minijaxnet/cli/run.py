"""``minijaxnet run``: carry out an experiment; say what it learnt, whether its gradient is right, how fast it is."""

import contextlib
import dataclasses
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from minijaxnet.bench import StepComparison
from minijaxnet.cli.arms import compare_with_rivals, describe, differentiated, make_descent
from minijaxnet.cli.begin import begin, first_batch
from minijaxnet.cli.flags import RunFlags, parse, split_file
from minijaxnet.experiment import Experiment, load_experiment
from minijaxnet.pytrees import array_type
from minijaxnet.run import FitResult, Progress, check_values, fit
from minijaxnet.run.folder import METRICS, create_run_folder, environment, write_json, write_params
from minijaxnet.tables import figure, text_table
from minijaxnet.trace import DIVERGED
from minijaxnet.verify import GradReport, check_grad


def main(arguments: Sequence[str]) -> int:
    """Carry out the experiment of a file."""
    file, rest = split_file("run", arguments)
    experiment = None if file is None else load_experiment(file)
    flags, init_options, data_options = parse(RunFlags, "run", experiment, file or "FILE", rest)
    assert experiment is not None and file is not None, "without a file only help is shown"
    with jax.enable_x64(flags.precision == "float64"):
        return _run(experiment, file, flags, init_options, data_options)


def _run(experiment: Experiment, file: str, flags: RunFlags, init_options: dict, data_options: dict) -> int:
    if not 0 <= flags.bench_seconds < float("inf"):
        raise ValueError(f"bench_seconds: got {flags.bench_seconds}; expected a finite number, at least 0")
    params, train, test, order_key, key = begin(experiment, flags.seed, flags.precision, init_options, data_options)
    by_hand = experiment.value_and_gradient
    descent = make_descent(differentiated(experiment), flags.optimizer, flags.learning_rate)
    start = descent.init(params, key)
    for name, batch in (("train", train), ("test", test)):
        check_values(descent, start, batch, name)
    seen = first_batch(train, flags.batch_size)
    measure = _measure(experiment, train, test, key)
    _check_scalars(jax.eval_shape(measure, params))

    print(
        f"{experiment.name}: {flags.steps:,} steps of {describe(flags.optimizer)}, learning rate "
        f"{flags.learning_rate:g}, {flags.precision} on {jax.devices()[0].device_kind}",
        flush=True,
    )
    report = None
    if by_hand is not None:
        extra = () if key is None else (key,)
        report = check_grad(experiment.objective, by_hand, (params, seen, *extra), has_value=True)
        if not report.ok:
            print(f"\n{report}\n\nThe descent was not started: its gradient would lead it astray.")
            return 1

    with _run_folder(flags.runs, experiment.name) as folder, _progress_bar(flags.steps) as on_progress:
        config = {"file": file, "experiment": experiment.name, "flags": dataclasses.asdict(flags)}
        write_json(folder / "config.json", config | {"init": init_options, "data": data_options})
        write_json(folder / "environment.json", environment())
        result = fit(
            descent,
            start,
            train,
            steps=flags.steps,
            until_flat=flags.until_flat,
            batch_size=flags.batch_size,
            key=order_key if flags.batch_size is not None else None,
            measure=measure,
            run_dir=folder,
            on_progress=on_progress,
        )
    write_params(folder / "params.safetensors", result.state.params)
    write_json(folder / "result.json", _result(result, report, None))
    print(f"\n{_outcome(result)}\n\n{_metrics_table(experiment, result)}", flush=True)
    if report is not None:
        print(f"\n{report}", flush=True)
    if not result.interrupted and result.status != DIVERGED and flags.bench_seconds > 0:
        comparison = compare_with_rivals(
            experiment, flags.optimizer, flags.learning_rate, params, seen, key, seconds=flags.bench_seconds
        )
        if comparison is not None:
            print(f"\n{comparison}", flush=True)
            write_json(folder / "result.json", _result(result, report, comparison))
    print(f"\nwritten to {folder}")
    if result.status == DIVERGED:
        print(f"hint: a smaller step goes less far astray: --learning-rate {flags.learning_rate / 10:g}")
        return 1
    return 130 if result.interrupted else 0


@contextlib.contextmanager
def _run_folder(parent: str, name: str) -> Iterator[Path]:
    """A new run folder, which goes again if what runs in it fails before a first row is logged."""
    folder = create_run_folder(parent, name)
    try:
        yield folder
    except BaseException:
        if not (folder / METRICS).exists():
            shutil.rmtree(folder)
        raise


def _measure(experiment: Experiment, train: Any, test: Any, key: Any) -> Callable[[Any], dict[str, Any]]:
    """``measure(params)``: the loss and the metrics over all training points, and over all test points.

    A logged row's own ``loss`` is the one that the step saw: with minibatches that of its batch.
    """
    extra = () if key is None else (key,)
    names = ["train_loss", "test_loss", *experiment.metrics, *(f"test_{name}" for name in experiment.metrics)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"metrics: got the name {twice.pop()!r}; expected another, that one is logged already")

    @jax.jit
    def measure(params: Any) -> dict[str, Any]:
        measured = {"train_loss": experiment.objective(params, train, *extra)}
        measured |= {name: metric(params, train) for name, metric in experiment.metrics.items()}
        measured["test_loss"] = experiment.objective(params, test, *extra)
        return measured | {f"test_{name}": metric(params, test) for name, metric in experiment.metrics.items()}

    return measure


def _check_scalars(measured: dict[str, Any]) -> None:
    for name, value in measured.items():
        if not hasattr(value, "shape") or value.shape != ():
            got = array_type(value) if hasattr(value, "shape") else type(value).__name__
            raise TypeError(f"{name}: got {got}; expected a scalar")


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
    taken = int(result.trace.steps_taken)
    if result.interrupted:
        how = f"stopped by Ctrl-C after {taken:,} steps"
    else:
        how = {
            "OUT_OF_STEPS": f"took all {taken:,} steps",
            "FLAT": f"flat after {taken:,} steps",
            "DIVERGED": f"DIVERGED at step {taken:,}; its last finite parameters are kept",
        }[result.status.name]
    speed = f" ({1e6 * result.run_s / taken:.4g} us a step)" if taken >= 100 else ""
    return f"descent: {how}; compiled in {result.compile_s:.2f} s, then ran {result.run_s:.2f} s{speed}"


def _metrics_table(experiment: Experiment, result: FitResult) -> str:
    last = result.rows[-1]
    rows = [("loss", figure(last["train_loss"]), figure(last["test_loss"]))]
    rows += [(name, figure(last[name]), figure(last[f"test_{name}"])) for name in experiment.metrics]
    return text_table(("at the end", "train", "test"), rows)


def _result(result: FitResult, report: GradReport | None, comparison: StepComparison | None) -> dict[str, Any]:
    taken = int(result.trace.steps_taken)
    return {
        "status": "INTERRUPTED" if result.interrupted else result.status.name,
        "steps_taken": taken,
        "metrics": result.rows[-1],
        "compile_s": result.compile_s,
        "step_us": 1e6 * result.run_s / taken if taken else None,
        "gradient_check": None if report is None else report.to_dict(),
        "step_comparison": None if comparison is None else comparison.to_dict(),
    }
