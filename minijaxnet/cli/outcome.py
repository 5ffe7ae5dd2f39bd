"""The outcome of a run: printed, and written into its folder, with what is measured after the descent."""

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from minijaxnet._files import naming
from minijaxnet._tables import significant, text_table
from minijaxnet.batches import minibatches_of
from minijaxnet.cli.optimizers import compare_with_rivals, differentiated
from minijaxnet.cli.report import PAGE, write_page_of_outcome
from minijaxnet.cli.setup import Setup
from minijaxnet.cli.start import first_batch
from minijaxnet.descent import DescentState
from minijaxnet.experiment import Experiment
from minijaxnet.goal import goal_of
from minijaxnet.history import DIVERGED, STOPPED_EARLY
from minijaxnet.parallel.processes import to_host
from minijaxnet.report.record import Trained
from minijaxnet.run import FitResult
from minijaxnet.run.checkpoint import write_checkpoint
from minijaxnet.run.diagnose import diagnose
from minijaxnet.run.folder import BEST, COMPARISON, PARAMS, RESULT, write_json
from minijaxnet.streams import is_read
from minijaxnet.verify import GradReport

Say = Callable[[str], None]
Check = Callable[[], GradReport | None]

WRONG = "the gradient is wrong, as the report above says"


def exit_code(result: FitResult) -> int:
    """0 done, 1 diverged, 128 + n stopped by signal n."""
    return 128 + result.interrupted if result.interrupted else int(result.status == DIVERGED)


def is_right(report: GradReport | None) -> bool:
    """Whether nothing by hand is wrong."""
    return report is None or report.ok


def report_outcome(setup: Setup, result: FitResult, check: Check, folder: Path, say: Say) -> int:
    """Print and write the result, the check, the times of the step and a page; the exit code."""
    experiment, flags = setup.request.experiment, setup.request.flags
    state, diverged = to_host(result.state), result.status == DIVERGED
    write_checkpoint(folder / PARAMS, state.params, step=result.steps_taken)
    taken = int(result.trace.steps_taken)
    step_us = 1e6 * result.run_s / taken if taken else None
    write_json(folder / "timing.json", {"compile_s": result.compile_s, "step_us": step_us})
    say(_summary(experiment, result, setup.start.held_out, flags.keep_best))
    report, right = None, result.interrupted > 0
    if not result.interrupted:
        with _on_the_side("not checked", say):
            report = check()
            right = is_right(report)
    if report is not None:
        say(f"\n{report}")
        if not (right or flags.unchecked):
            say(f"\nThe result cannot be relied on: {WRONG}.")
    write_json(folder / RESULT, _result_json(result, report))  # from here on the run is done
    if setup.has_share:
        say("what follows is of the points of process 0 alone")
    if diverged and flags.diagnose:
        with _on_the_side("not diagnosed", say):
            say(f"\n{_diagnosis(setup, state)}")
    if not (result.interrupted or diverged) and flags.bench_seconds > 0:
        with _on_the_side("not timed", say):
            _compare_step(setup, folder, say)
    if flags.report:
        with _on_the_side(f"no {PAGE}", say):
            say(_write_page(setup, state, result, folder))
    say(f"\nwritten to {folder}")
    if result.interrupted:
        say(f"minijaxnet resume {folder} goes on")
    elif diverged:
        say(f"hint: try a smaller learning rate: --learning-rate {flags.learning_rate / 10:g}")
    return exit_code(result) or int(not (right or flags.unchecked))


@contextlib.contextmanager
def _on_the_side(failed: str, say: Say) -> Iterator[None]:
    """If a measurement beside the descent fails, that is printed, and the exit code stays that of the descent."""
    try:
        yield
    except Exception as error:
        say(f"{failed}: {error if isinstance(error, ValueError | ImportError) else f'{type(error).__name__}: {error}'}")


def _diagnosis(setup: Setup, state: DescentState) -> Any:
    """The first operation of the next step whose result is not finite."""
    train, batch_size = setup.start.train, setup.request.flags.batch_size
    if is_read(train):
        batch = next(iter(train(int(state.step))))
    elif batch_size is None or setup.has_share:
        batch = train
    else:
        order = minibatches_of(train, batch_size)
        batch = order.at(order.draw((train, setup.start.order_key), state.step, 1, 1), 0)
    key = setup.start.draw_key
    extra = () if key is None else (jax.random.fold_in(key, state.step),)
    return diagnose(differentiated(setup.request.experiment), state.params, batch, *extra)


def _compare_step(setup: Setup, folder: Path, say: Say) -> None:
    """Time the step against its rivals, if there are any."""
    experiment, flags, batch = setup.request.experiment, setup.request.flags, setup.batch
    batch, rate, seconds = first_batch(batch, flags.batch_size), flags.learning_rate, flags.bench_seconds
    comparison = compare_with_rivals(experiment, setup.optimizer, rate, setup.start, batch, seconds=seconds)
    if comparison is not None:
        say(f"\n{comparison}")
        with naming(folder / COMPARISON, "file not written"):
            comparison.save(folder / COMPARISON)


def _write_page(setup: Setup, state: DescentState, result: FitResult, folder: Path) -> str:
    """Write the page; where it is."""
    start, params, notes = setup.start, state.params, []
    if (best := result.best) is not None:
        params, notes = to_host(best.params), [f"Pictures of weights are of the best ones, step {best.step:,}"]
    trained = Trained(setup.request.experiment, params, setup.batch, start.held_out["test"], start.draw_key)
    return write_page_of_outcome(folder, trained, notes)


def _summary(experiment: Experiment, result: FitResult, held_out: Iterable[str], keep_best: str | None) -> str:
    """How a descent ended, and its loss and metrics."""
    lines = [f"\n{_ending(result)}", "", _metrics_table("at the end", experiment, result.rows[-1], held_out)]
    if result.best is not None and keep_best is not None:
        value, step = significant(result.best.value), f"{result.best.step:,}"
        goal = goal_of(keep_best, "keep_best")
        lines += ["", f"{goal}: {value} at step {step}, kept in {BEST}"]
        if row := _row_of_best(result):
            lines += [_metrics_table("at the best", experiment, row, held_out)]
    if result.status == STOPPED_EARLY and not int(result.trace.steps_taken):
        lines += ["no step was taken: minijaxnet resume RUN --patience N waits for more lines of metrics"]
    return "\n".join(lines)


def _ending(result: FitResult) -> str:
    taken = result.steps_taken
    if result.interrupted:
        how = f"stopped by {signal.Signals(result.interrupted).name} after {taken:,} steps"
    else:
        how = {
            "OUT_OF_STEPS": f"took all {taken:,} steps",
            "FLAT": f"flat after {taken:,} steps",
            "DIVERGED": f"DIVERGED at step {taken:,}; its last finite parameters are kept",
            "STOPPED_EARLY": f"stopped early after {taken:,} steps, since nothing became better",
        }[result.status.name]
    return f"descent: {how}; compiled in {result.compile_s:.2f} s, then ran {result.run_s:.2f} s"


def _row_of_best(result: FitResult) -> dict[str, Any]:
    """The logged row of the best parameters; empty if an earlier process logged it."""
    step = -1 if result.best is None else result.best.step
    return next((row for row in result.rows if row["step"] == step), {})


def _metrics_table(title: str, experiment: Experiment, row: dict[str, Any], held_out: Iterable[str]) -> str:
    batches = [batch for batch in ("train", *held_out) if f"{batch}_loss" in row]
    lines = [("loss", *(significant(row[f"{batch}_loss"]) for batch in batches))]
    for name in experiment.metrics:
        lines.append((name, *(significant(row[name if batch == "train" else f"{batch}_{name}"]) for batch in batches)))
    return text_table((title, *batches), lines)


def _result_json(result: FitResult, report: GradReport | None) -> dict[str, Any]:
    """The result without clock times: the same for the same numbers."""
    return {
        "status": "INTERRUPTED" if result.interrupted else result.status.name,
        "steps_taken": result.steps_taken,
        "metrics": result.rows[-1],
        "kept_best": None if result.best is None else {"value": result.best.value, **_row_of_best(result)},
        "gradient_check": None if report is None else report.to_dict(),
    }
