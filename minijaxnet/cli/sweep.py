"""``minijaxnet sweep``: an experiment at many seeds, learning rates and numbers of its own, at once."""

import contextlib
import math
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from minijaxnet.batches import minibatches_of
from minijaxnet.cli.errors import UsageError
from minijaxnet.cli.execute import failure_recorded
from minijaxnet.cli.flags import SweepFlags, place_flags_of
from minijaxnet.cli.parsing import parse, split_file
from minijaxnet.cli.placement import agree, described, join, launched, own_mesh
from minijaxnet.cli.request import OpenFolder, Request, new_folder
from minijaxnet.cli.start import digest_of, start_of
from minijaxnet.cli.sweep_plan import plan_of, run_of
from minijaxnet.cli.sweep_report import joined_result, report
from minijaxnet.experiment import load_experiment
from minijaxnet.goal import goal_of
from minijaxnet.parallel.processes import all_gather, broadcast, is_first, merge_rows
from minijaxnet.run.blocks import BLOCKS, blocks_below
from minijaxnet.run.lock import hold
from minijaxnet.run.programs import kept_programs
from minijaxnet.run.signals import stop_signals
from minijaxnet.streams import is_read
from minijaxnet.sweeps import SweepResult, sweep


def main(arguments: Sequence[str]) -> int:
    """Sweep the experiment of a file over all values that the flags give."""
    file, rest = split_file("sweep", arguments)
    place = place_flags_of(rest)
    if file is not None and (code := launched("sweep", arguments, place)) is not None:
        return code
    join(place)
    experiment = None if file is None else load_experiment(file)
    parsed = parse(SweepFlags, "sweep", experiment, file or "FILE", rest, ranges=True)
    assert experiment is not None and file is not None, "without a file only help is shown"
    request = Request("sweep", file, experiment, *parsed)
    return execute_sweep(request, lambda data_sha256: new_folder(request, f"{experiment.name}-sweep", data_sha256))


def execute_sweep(request: Request, open_folder: OpenFolder) -> int:
    """Run a sweep in its run folder, but for the blocks that it has already; the exit code."""
    with jax.enable_x64(request.flags.precision == "float64"):
        return _execute(request, open_folder)


def _execute(request: Request, open_folder: OpenFolder) -> int:
    experiment, flags, plan = request.experiment, request.flags, plan_of(request)
    start = start_of(experiment, 0, flags.precision, plan.first([*request.init]), request.data)
    _check(request, plan.program_axes.get("batch_size", ()), start.train, [*start.held_out])
    mesh, programs = own_mesh(flags), plan.programs()
    count = math.prod(map(len, plan.axes.values())) * len(programs)
    if is_first():
        processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
        heading = f"{experiment.name}: {count:,} descents of {flags.steps:,} steps, {flags.precision} on "
        print(f"{heading}{described(mesh)}{processes}", flush=True)
    data_sha256 = agree(request, digest_of(start.train, *start.held_out.values()))
    found: list[SweepResult] = []
    with contextlib.ExitStack() as opened:
        folder = None
        if is_first():
            folder = opened.enter_context(open_folder(data_sha256))
            opened.enter_context(hold(folder))
            opened.enter_context(failure_recorded(folder))
        folder = Path(broadcast(str(folder)))
        stop = opened.enter_context(stop_signals(raises=True))
        with contextlib.suppress(KeyboardInterrupt), kept_programs(folder, flags.keep_programs):
            for program in programs:
                name = "-".join(f"{name}-{number}" for name, number in program.items()) or "all"
                blocks = blocks_below(folder / BLOCKS / name, keep=folder.is_dir())._replace(mine=_mine)
                rest = {"block": flags.block, "blocks": blocks, "mesh": mesh, "on_progress": _on_progress()}
                run = run_of(request, plan, program, start.train, start.held_out)
                found.append(sweep(run, plan.axes, **rest))
                if stop or (jax.process_count() == 1 and found[-1].interrupted):
                    break
        found = _of_all(found)
        if not found:
            raise KeyboardInterrupt(stop.signum)
        whole = len(found) == len(programs) and not found[-1].interrupted
        result = joined_result(found, {name: some for name, some in plan.program_axes.items() if len(some) > 1})
        signum = 0 if whole else int(all_gather([stop.signum]).max()) or signal.SIGINT
        return report(request, folder, result, count, signum) if is_first() else 128 * bool(signum) + signum


def _check(request: Request, batch_sizes: Sequence[int], train: object, held_out: Sequence[str]) -> None:
    """Refuse what no sweep can run or choose by.

    Raises:
        ValueError: data that are read, a batch size beyond the points, a number to choose by that is not measured.
    """
    if is_read(train):
        raise ValueError("data: got a function that reads batches; expected arrays, of which all descents see the same")
    for size in batch_sizes:
        minibatches_of(train, size)
    measured = ["loss", *(f"{of}_{name}" for of in held_out for name in ("loss", *request.experiment.metrics))]
    if (by := goal_of(request.flags.by).name) not in measured:
        raise ValueError(f"by: got {by!r}; expected one of {', '.join(measured)}")


def _mine(first: int, size: int) -> bool:
    """Whether this process runs a block: they take turns.

    Raises:
        UsageError: blocks are of another size in another process.
    """
    if first == 0 and len(sizes := set(all_gather([size]).ravel().tolist())) > 1:
        got = " and ".join(map(str, sorted(sizes)))
        raise UsageError(
            f"block: got {got} in the processes, by their memory and cores; expected one for all (--block)"
        )
    return first // size % jax.process_count() == jax.process_index()


def _of_all(found: list[SweepResult]) -> list[SweepResult]:
    """What all processes have found: the only time that they say anything of it to one another."""
    if jax.process_count() == 1 or not (count := int(all_gather([len(found)]).min())):
        return found
    merged_results = []
    for result in found[:count]:
        output, finished = merge_rows(result.output, result.finished)
        merged_results.append(result._replace(output=output, finished=finished))
    return merged_results


def _on_progress() -> Callable[[int, int], None] | None:
    """Says on a terminal how many descents are done; nothing elsewhere."""
    if not sys.stderr.isatty():
        return None
    return lambda done, count: print(f"\r{done:,} of {count:,}", end="\n" if done == count else "", file=sys.stderr)
