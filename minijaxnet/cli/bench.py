"""``minijaxnet bench``: what a step costs, and how the gradient by hand does against autodiff: right, precise, fast?"""

from collections.abc import Sequence

import jax

from minijaxnet.bench import StepComparison, time_step
from minijaxnet.cli.arms import AUTODIFF, compare_with_rivals, describe, differentiated, make_descent
from minijaxnet.cli.begin import begin, first_batch
from minijaxnet.cli.flags import BenchFlags, parse, split_file
from minijaxnet.experiment import Experiment, load_experiment
from minijaxnet.tables import text_table
from minijaxnet.verify import GradReport, check_grad


def main(arguments: Sequence[str]) -> int:
    """Time the step of an experiment."""
    file, rest = split_file("bench", arguments)
    experiment = None if file is None else load_experiment(file)
    flags, init_options, data_options = parse(BenchFlags, "bench", experiment, file or "FILE", rest)
    assert experiment is not None, "without a file only help is shown"
    with jax.enable_x64(flags.precision == "float64"):
        return _bench(experiment, flags, init_options, data_options)


def _bench(experiment: Experiment, flags: BenchFlags, init_options: dict, data_options: dict) -> int:
    params, train, _, _, key = begin(experiment, flags.seed, flags.precision, init_options, data_options)
    settings = experiment.defaults
    batch = first_batch(train, settings.batch_size if flags.batch_size is None else flags.batch_size)
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
    print(f"\n{time_step(descent, params, batch, seconds=flags.seconds / 2, key=key)}", flush=True)
    comparison = compare_with_rivals(
        experiment, settings.optimizer, settings.learning_rate, params, batch, key, seconds=flags.seconds
    )
    if comparison is None:
        print("\nno rival to compare with: no gradient by hand, and optax is not installed")
        return 0
    print(f"\n{comparison}", flush=True)
    if report is not None:
        print(f"\n{_by_hand(report, comparison)}")
    if flags.save is not None:
        comparison.save(flags.save)
        print(f"\nwritten to {flags.save}")
    if flags.against is not None:
        print(f"\n{comparison.against(flags.against)}")
    return 0


def _by_hand(report: GradReport, comparison: StepComparison) -> str:
    """The gradient by hand against autodiff, in three lines."""
    autodiff = comparison.ratios[AUTODIFF]
    opposite = {"faster": "slower", "slower": "faster"}
    speed = opposite.get(comparison.verdicts[AUTODIFF], comparison.verdicts[AUTODIFF])
    interval = f"{1 / autodiff.high:.3f} to {1 / autodiff.low:.3f}"
    rows = [
        ("right?", f"{report.verdicts['algebra'].state}: {report.verdicts['algebra'].reason}"),
        ("precise?", f"{report.verdicts['precision'].state}: {report.verdicts['precision'].reason}"),
        ("fast?", f"{speed}: {1 / autodiff.median:.3f} times autodiff's step ({interval})"),
    ]
    width = max(len(answer) for _, answer in rows)
    return text_table(("by hand", "against autodiff".ljust(width)), [(what, a.ljust(width)) for what, a in rows])
