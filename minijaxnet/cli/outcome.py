"""What came out of a run, in words and in JSON."""

import signal
from collections.abc import Iterable
from typing import Any

from minijaxnet._tables import significant, text_table
from minijaxnet.bench import StepComparison
from minijaxnet.experiment import Experiment
from minijaxnet.goal import goal_of
from minijaxnet.history import DIVERGED, STOPPED_EARLY
from minijaxnet.run import FitResult
from minijaxnet.run.folder import BEST
from minijaxnet.verify import GradReport

WRONG = "its gradient is wrong, as the report says; --unchecked descends all the same"


def exit_code(result: FitResult) -> int:
    """0 done, 1 diverged, 128 + n stopped by signal n."""
    return 128 + result.interrupted if result.interrupted else int(result.status == DIVERGED)


def summary(experiment: Experiment, result: FitResult, held_out: Iterable[str], keep_best: str | None) -> str:
    """How a descent ended, and its loss and metrics."""
    lines = [f"\n{_how_it_ended(result)}", "", _metrics_table("at the end", experiment, result.rows[-1], held_out)]
    if result.best is not None and keep_best is not None:
        value, step = significant(result.best.value), f"{result.best.step:,}"
        lines += ["", f"{goal_of(keep_best)}: {value} at step {step}, kept in {BEST}"]
        if row := _row_of_best(result):
            lines += [_metrics_table("at the best", experiment, row, held_out)]
    if result.status == STOPPED_EARLY and not int(result.trace.steps_taken):
        lines += ["no step was taken: minijaxnet resume RUN --patience N waits for more lines of metrics"]
    return "\n".join(lines)


def _how_it_ended(result: FitResult) -> str:
    taken, steps = result.steps_taken, int(result.trace.steps_taken)
    if result.interrupted:
        how = f"stopped by {signal.Signals(result.interrupted).name} after {taken:,} steps"
    else:
        how = {
            "OUT_OF_STEPS": f"took all {taken:,} steps",
            "FLAT": f"flat after {taken:,} steps",
            "DIVERGED": f"DIVERGED at step {taken:,}; its last finite parameters are kept",
            "STOPPED_EARLY": f"stopped early after {taken:,} steps, since nothing became better",
        }[result.status.name]
    speed = f" ({1e6 * result.run_s / steps:.4g} us a step)" if steps >= 100 else ""
    return f"descent: {how}; compiled in {result.compile_s:.2f} s, then ran {result.run_s:.2f} s{speed}"


def _row_of_best(result: FitResult) -> dict[str, Any]:
    """What was logged where the weights were best; empty if that was before this process."""
    step = -1 if result.best is None else result.best.step
    return next((row for row in result.rows if row["step"] == step), {})


def _metrics_table(title: str, experiment: Experiment, row: dict[str, Any], held_out: Iterable[str]) -> str:
    batches = [batch for batch in ("train", *held_out) if f"{batch}_loss" in row]
    lines = [("loss", *(significant(row[f"{batch}_loss"]) for batch in batches))]
    for name in experiment.metrics:
        lines.append((name, *(significant(row[name if batch == "train" else f"{batch}_{name}"]) for batch in batches)))
    return text_table((title, *batches), lines)


def result_json(result: FitResult, report: GradReport | None) -> dict[str, Any]:
    """What came out, without a clock in it: the same for the same numbers."""
    return {
        "status": "INTERRUPTED" if result.interrupted else result.status.name,
        "steps_taken": result.steps_taken,
        "metrics": result.rows[-1],
        "kept_best": None if result.best is None else {"value": result.best.value, **_row_of_best(result)},
        "gradient_check": None if report is None else report.to_dict(),
    }


def timing_json(result: FitResult, comparison: StepComparison | None) -> dict[str, Any]:
    """How long it took."""
    taken = int(result.trace.steps_taken)
    return {
        "compile_s": result.compile_s,
        "step_us": 1e6 * result.run_s / taken if taken else None,
        "step_comparison": None if comparison is None else comparison.to_dict(),
    }
