"""``minijaxnet bench``: what a step costs, and is the gradient by hand right, precise and faster than autodiff's?"""

from collections.abc import Sequence
from pathlib import Path

import jax

from minijaxnet._tables import percent
from minijaxnet._types import PyTree
from minijaxnet.batches import minibatches_of
from minijaxnet.bench import StepComparison, StepCost, limits, measure_roofline, step_cost, time_step
from minijaxnet.bench.comparison import as_ratio, distance
from minijaxnet.bench.saved import read_result
from minijaxnet.cli.devices import checked_devices, compare_devices
from minijaxnet.cli.flags import BenchFlags
from minijaxnet.cli.optimizers import compare_with_rivals, differentiated, optimizer_of
from minijaxnet.cli.request import Request, read_request
from minijaxnet.cli.start import Start, first_batch, start_of
from minijaxnet.descent import Descent
from minijaxnet.experiment import OWN
from minijaxnet.streams import is_read
from minijaxnet.verify import GradReport, check_grad


def main(arguments: Sequence[str]) -> int:
    """Time the step of an experiment."""
    request = read_request("bench", BenchFlags, arguments)
    if isinstance(request, int):
        return request
    with jax.enable_x64(request.flags.precision == "float64"):
        return _bench(request)


def _bench(request: Request) -> int:
    experiment, flags, settings = request.experiment, request.flags, request.experiment.defaults
    if flags.since is not None:
        read_result(flags.since)
    if flags.save is not None and not Path(flags.save).absolute().parent.is_dir():
        raise ValueError(f"save: got {flags.save}; expected a file in a folder that exists")
    start = start_of(experiment, flags.seed, flags.precision, request.init, request.data)
    params, train, key = start.params, start.train, start.draw_key
    size = settings.batch_size if flags.batch_size is None else flags.batch_size
    batch = first_batch(train, size)
    if size is not None and not is_read(train):
        minibatches_of(train, size)
    devices = checked_devices(flags.devices, batch)
    options = request.optimizer if settings.optimizer == OWN else {}
    optimizer, rate = optimizer_of(experiment, settings.optimizer, settings.steps, options), settings.learning_rate
    descent = optimizer.descent(differentiated(experiment), rate)
    points = len(jax.tree.leaves(batch)[0])
    where = f"{flags.precision} on {jax.devices()[0].device_kind}"
    print(f"{experiment.name}: a step of {optimizer} on {points:,} points, {where}", flush=True)
    report = None
    if experiment.value_and_gradient is not None:
        arguments = (params, batch) if key is None else (params, batch, key)
        report = check_grad(experiment.objective, experiment.value_and_gradient, arguments, has_value=True)
        if not report.ok:
            print(f"\n{report}\n\nNothing was timed, since the gradient is wrong.")
            return 1
    comparison = compare_with_rivals(experiment, optimizer, rate, start, batch, seconds=flags.seconds)
    cost = step_cost(descent.step, descent.init(params, key), batch)
    if comparison is None:
        print("\nno rival to compare with: no gradient by hand, and optax is not installed")
    else:
        autodiff = optimizer.descent(experiment.objective, rate)
        its_cost = cost if report is None else step_cost(autodiff.step, autodiff.init(params, key), batch)
        print(f"\n{_answer(comparison, report, cost, its_cost)}\n\n{comparison}", flush=True)
    _print_step(descent, start, batch, cost, seconds=flags.seconds / 2)
    if devices:
        same_result = settings.optimizer == "gd"
        table = compare_devices(descent, devices, start, batch, seconds=flags.seconds, same_result=same_result)
        print(f"\n{table}", flush=True)
    if comparison is not None and flags.save is not None:
        comparison.save(flags.save)
        print(f"\nwritten to {flags.save}")
    if comparison is not None and flags.since is not None:
        print(f"\n{comparison.against(flags.since)}")
    return 0


def _print_step(descent: Descent, start: Start, batch: PyTree, cost: StepCost, *, seconds: float) -> None:
    """Print what a step costs, what it is made of, and which limit of the machine it is near."""
    timing = time_step(descent, start.params, batch, seconds=seconds, key=start.draw_key)
    roofline = measure_roofline([*cost.matrix_flops] or ["float32"], seconds=seconds / 5)
    print(f"\n{timing}\n\n{cost}\n\n{limits(cost, timing.fused_s.median, roofline)}", flush=True)


def _answer(comparison: StepComparison, report: GradReport | None, cost: StepCost, autodiff: StepCost) -> str:
    """The gradient by hand against autodiff in a sentence, or else the rivals against the step."""
    own, *rivals = comparison.arms
    if report is None:
        return " ".join(f"{_times(comparison, rival, rival, own)}." for rival in rivals)
    parts = [_times(comparison, own, "By hand", "autodiff")]
    for name, passed in (("algebra", "right"), ("precision", "as precise")):
        verdict = report.verdicts[name]
        parts.append(passed if verdict.state == "pass" else f"{name} not checked ({verdict.reason})")
    if cost.planned_peak_bytes is not None and autodiff.planned_peak_bytes:
        parts.append(f"{cost.planned_peak_bytes / autodiff.planned_peak_bytes:.2g} times its memory")
    return ", ".join(parts) + "."


def _times(comparison: StepComparison, arm: str, name: str, baseline: str) -> str:
    """How an arm's time compares, as the beginning of a sentence."""
    ratio, verdict = comparison.ratios[arm], comparison.verdicts[arm]
    if verdict == "same":
        return f"{name}: the same time as {baseline} within {percent(distance(ratio))}"
    low, high, doubt = as_ratio(ratio.low), as_ratio(ratio.high), ", undecided" if verdict == "undecided" else ""
    return f"{name}: {as_ratio(ratio.median)} times {baseline}'s time ({low} to {high}{doubt})"
