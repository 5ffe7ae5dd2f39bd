"""``minijaxnet bench``: what a step costs, and how the gradient by hand does against autodiff: right, precise, fast?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from minijaxnet.bench import StepComparison, StepCost, limits, measure_roofline, step_cost, time_step
from minijaxnet.bench.saved import read_result
from minijaxnet.cli.arms import compare_with_rivals, describe, differentiated, make_descent
from minijaxnet.cli.begin import begin, first_batch
from minijaxnet.cli.devices import checked_devices, compare_devices, most_devices
from minijaxnet.cli.flags import BenchFlags, parse, split_file
from minijaxnet.descent import Descent
from minijaxnet.experiment import Experiment, load_experiment
from minijaxnet.parallel import divide_cpu
from minijaxnet.tables import figure, text_table
from minijaxnet.verify import GradReport, check_grad


def main(arguments: Sequence[str]) -> int:
    """Time the step of an experiment."""
    file, rest = split_file("bench", arguments)
    divide_cpu(most_devices(rest))
    experiment = None if file is None else load_experiment(file)
    flags, init_options, data_options = parse(BenchFlags, "bench", experiment, file or "FILE", rest)
    assert experiment is not None, "without a file only help is shown"
    with jax.enable_x64(flags.precision == "float64"):
        return _bench(experiment, flags, init_options, data_options)


def _bench(experiment: Experiment, flags: BenchFlags, init_options: dict, data_options: dict) -> int:
    params, train, _, _, key = begin(experiment, flags.seed, flags.precision, init_options, data_options)
    settings = experiment.defaults
    if flags.since is not None:
        read_result(flags.since)
    if flags.save is not None and not Path(flags.save).absolute().parent.is_dir():
        raise ValueError(f"save: got {flags.save}; expected a file in a folder that exists")
    batch = first_batch(train, settings.batch_size if flags.batch_size is None else flags.batch_size)
    devices = checked_devices(flags.devices, batch)
    descent = make_descent(differentiated(experiment), settings.optimizer, settings.learning_rate)
    points = len(jax.tree.leaves(batch)[0])
    print(
        f"{experiment.name}: a step of {describe(settings.optimizer)} on {points:,} points, "
        f"{flags.precision} on {jax.devices()[0].device_kind}",
        flush=True,
    )
    report = None
    if experiment.value_and_gradient is not None:
        arguments = (params, batch) if key is None else (params, batch, key)
        report = check_grad(experiment.objective, experiment.value_and_gradient, arguments, has_value=True)
        if not report.ok:
            print(f"\n{report}\n\nNothing was timed: a wrong gradient may be as fast as it likes.")
            return 1
    cost = _show_step(descent, params, batch, key, seconds=flags.seconds / 2)
    comparison = compare_with_rivals(
        experiment, settings.optimizer, settings.learning_rate, params, batch, key, seconds=flags.seconds
    )
    if comparison is None:
        print("\nno rival to compare with: no gradient by hand, and optax is not installed")
    else:
        print(f"\n{comparison}", flush=True)
    if comparison is not None and report is not None:
        autodiff = make_descent(experiment.objective, settings.optimizer, settings.learning_rate)
        print(f"\n{_by_hand(report, comparison, cost, step_cost(autodiff.step, autodiff.init(params, key), batch))}")
    if devices:
        options: dict[str, Any] = {"seconds": flags.seconds, "same_result": settings.optimizer == "gd"}
        print(f"\n{compare_devices(descent, devices, params, batch, key, **options)}", flush=True)
    if comparison is not None and flags.save is not None:
        comparison.save(flags.save)
        print(f"\nwritten to {flags.save}")
    if comparison is not None and flags.since is not None:
        print(f"\n{comparison.against(flags.since)}")
    return 0


def _show_step(descent: Descent, params: Any, batch: Any, key: Any, *, seconds: float) -> StepCost:
    """What a step costs, what it is made of, and what it is up against."""
    timing = time_step(descent, params, batch, seconds=seconds, key=key)
    print(f"\n{timing}", flush=True)
    cost = step_cost(descent.step, descent.init(params, key), batch)
    roofline = measure_roofline([*cost.matrix_flops] or ["float32"], seconds=seconds / 5)
    print(f"\n{cost}\n\n{limits(cost, timing.fused_s.median, roofline)}", flush=True)
    return cost


def _by_hand(report: GradReport, comparison: StepComparison, cost: StepCost, autodiff_cost: StepCost) -> str:
    """The gradient by hand against autodiff, in four lines."""
    own = next(iter(comparison.arms))
    ratio, verdict = comparison.ratios[own], comparison.verdicts[own]
    times = f"{ratio.median:.3f} times autodiff's step ({ratio.low:.3f} to {ratio.high:.3f})"
    rows = [
        ("right?", f"{report.verdicts['algebra'].state}: {report.verdicts['algebra'].reason}"),
        ("precise?", f"{report.verdicts['precision'].state}: {report.verdicts['precision'].reason}"),
        ("fast?", f"{verdict}: {times}"),
        ("memory?", _memory(cost.planned_peak_bytes, autodiff_cost.planned_peak_bytes)),
    ]
    width = max(len(answer) for _, answer in rows)
    return text_table(("by hand", "against autodiff".ljust(width)), [(what, a.ljust(width)) for what, a in rows])


def _memory(by_hand: int | None, autodiff: int | None) -> str:
    if by_hand is None or autodiff is None:
        return "not known: the compiler does not tell"
    word = "more" if by_hand > autodiff else "less" if by_hand < autodiff else "the same"
    return f"{word}: {figure(by_hand / autodiff)} times autodiff's planned peak ({by_hand:,} bytes)"
