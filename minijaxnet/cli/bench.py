"""``minijaxnet bench``: what a step costs, and how the gradient by hand does against autodiff: right, precise, fast?"""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from minijaxnet._machine import choose_deterministic
from minijaxnet._tables import percent
from minijaxnet.batches import minibatches_of
from minijaxnet.bench import StepComparison, StepCost, limits, measure_roofline, step_cost, time_step
from minijaxnet.bench.comparison import as_ratio, distance
from minijaxnet.bench.rounds import WARM_CALLS
from minijaxnet.bench.saved import read_result
from minijaxnet.cli.devices import checked_devices, compare_devices, most_devices
from minijaxnet.cli.flags import BenchFlags, place_flags_of
from minijaxnet.cli.launcher import another
from minijaxnet.cli.optimizers import compare_with_rivals, differentiated, optimizer_of
from minijaxnet.cli.parsing import parse, split_file
from minijaxnet.cli.start import first_batch, start_of
from minijaxnet.descent import Descent
from minijaxnet.experiment import Experiment, load_experiment
from minijaxnet.parallel import divide_cpu
from minijaxnet.streams import is_read
from minijaxnet.verify import GradReport, check_grad


def main(arguments: Sequence[str]) -> int:
    """Time the step of an experiment."""
    file, rest = split_file("bench", arguments)
    divide_cpu(most_devices(rest))
    if place_flags_of(rest).deterministic:
        choose_deterministic()
    if "--peak" in rest:  # else JAX takes most of a GPU's memory at once
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    experiment = None if file is None else load_experiment(file)
    flags, init_options, data_options, _ = parse(BenchFlags, "bench", experiment, file or "FILE", rest)
    assert experiment is not None, "without a file only help is shown"
    with jax.enable_x64(flags.precision == "float64"):
        return _bench(arguments, experiment, flags, init_options, data_options)


def _bench(
    arguments: Sequence[str], experiment: Experiment, flags: BenchFlags, init_options: dict, data_options: dict
) -> int:
    params, train, *_, key = start_of(experiment, flags.seed, flags.precision, init_options, data_options)
    settings = experiment.defaults
    if flags.since is not None:
        read_result(flags.since)
    if flags.save is not None and not Path(flags.save).absolute().parent.is_dir():
        raise ValueError(f"save: got {flags.save}; expected a file in a folder that exists")
    size = settings.batch_size if flags.batch_size is None else flags.batch_size
    batch = first_batch(train, size)
    if size is not None and not is_read(train):
        minibatches_of(train, size)
    devices = checked_devices(flags.devices, batch)
    optimizer = optimizer_of(experiment, settings.optimizer, settings.steps)
    descent = optimizer.descent(differentiated(experiment), settings.learning_rate)
    if flags.peak:
        peak = _peak(descent, params, batch, key)
        print("the device does not tell its memory" if peak is None else peak)
        return 0
    points = len(jax.tree.leaves(batch)[0])
    print(
        f"{experiment.name}: a step of {optimizer} on {points:,} points, "
        f"{flags.precision} on {jax.devices()[0].device_kind}",
        flush=True,
    )
    report = None
    if experiment.value_and_gradient is not None:
        seen = (params, batch) if key is None else (params, batch, key)
        report = check_grad(experiment.objective, experiment.value_and_gradient, seen, has_value=True)
        if not report.ok:
            print(f"\n{report}\n\nNothing was timed: a wrong gradient may be as fast as it likes.")
            return 1
    comparison = compare_with_rivals(
        experiment, optimizer, settings.learning_rate, params, batch, key, seconds=flags.seconds
    )
    cost = step_cost(descent.step, descent.init(params, key), batch)
    if comparison is None:
        print("\nno rival to compare with: no gradient by hand, and optax is not installed")
    else:
        if report is not None:
            autodiff = optimizer.descent(experiment.objective, settings.learning_rate)
            answer = _by_hand(report, comparison, cost, step_cost(autodiff.step, autodiff.init(params, key), batch))
        else:
            own, *rivals = comparison.arms
            answer = " ".join(f"{_times(comparison, rival, rival, own)}." for rival in rivals)
        print(f"\n{answer}\n\n{comparison}", flush=True)
    _show_step(descent, params, batch, key, cost, seconds=flags.seconds / 2)
    if cost.process_peak_bytes is not None:
        print(f"\npeak bytes of a step, observed in a process of its own: {_peak_observed(arguments)}", flush=True)
    if devices:
        options: dict[str, Any] = {"seconds": flags.seconds, "same_result": settings.optimizer == "gd"}
        print(f"\n{compare_devices(descent, devices, params, batch, key, **options)}", flush=True)
    if comparison is not None and flags.save is not None:
        comparison.save(flags.save)
        print(f"\nwritten to {flags.save}")
    if comparison is not None and flags.since is not None:
        print(f"\n{comparison.against(flags.since)}")
    return 0


def _show_step(descent: Descent, params: Any, batch: Any, key: Any, cost: StepCost, *, seconds: float) -> None:
    """What a step costs, what it is made of, and what it is up against."""
    timing = time_step(descent, params, batch, seconds=seconds, key=key)
    roofline = measure_roofline([*cost.matrix_flops] or ["float32"], seconds=seconds / 5)
    print(f"\n{timing}\n\n{cost}\n\n{limits(cost, timing.fused_s.median, roofline)}", flush=True)


def _peak(descent: Descent, params: Any, batch: Any, key: Any) -> int | None:
    """The most bytes that this process has had on the device, after some steps."""
    step, state = jax.jit(lambda state, batch: descent.step(state, batch), donate_argnums=0), descent.init(params, key)
    for _ in range(WARM_CALLS):
        state, _ = step(state, batch)
    (device,) = jax.block_until_ready(state.step).devices()
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


def _peak_observed(arguments: Sequence[str]) -> str:
    """The same in a process of its own, of which no other step has had the memory."""
    command, environment = another(["bench", *arguments, "--peak"])
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return f"{int(done.stdout):,}" if done.stdout.strip().isdecimal() else f"not seen ({done.stderr.strip()[-200:]})"


def _by_hand(report: GradReport, comparison: StepComparison, cost: StepCost, autodiff_cost: StepCost) -> str:
    """The gradient by hand against autodiff, in a sentence."""
    right, precise = (report.verdicts[name].state == "pass" for name in ("algebra", "precision"))
    parts = [
        _times(comparison, next(iter(comparison.arms)), "By hand", "autodiff"),
        "right" if right else f"not checked ({report.verdicts['algebra'].reason})",
        "as precise" if precise else f"its precision not checked ({report.verdicts['precision'].reason})",
    ]
    mine, its = cost.planned_peak_bytes, autodiff_cost.planned_peak_bytes
    if mine is not None and its:
        times = f"{mine / its:.2g}"
        parts.append("the same memory" if times == "1" else f"{times} times its memory")
    return ", ".join(parts) + "."


def _times(comparison: StepComparison, arm: str, name: str, baseline: str) -> str:
    """How an arm's time compares, as the beginning of a sentence."""
    ratio, verdict = comparison.ratios[arm], comparison.verdicts[arm]
    if verdict == "same":
        return f"{name} the same time as {baseline} within {percent(distance(ratio))}"
    low, high, doubt = as_ratio(ratio.low), as_ratio(ratio.high), ", undecided" if verdict == "undecided" else ""
    return f"{name} {as_ratio(ratio.median)} times {baseline}'s time ({low} to {high}{doubt})"
