"""``minijaxnet sweep``: an experiment at many seeds, learning rates and numbers of its own, at once."""

import contextlib
import functools
import math
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from minijaxnet.batches import minibatches_of
from minijaxnet.cli.checks import report_on
from minijaxnet.cli.errors import UsageError
from minijaxnet.cli.flags import SweepFlags
from minijaxnet.cli.measure import measured_names
from minijaxnet.cli.outcome import WRONG
from minijaxnet.cli.parsing import parse_range
from minijaxnet.cli.placement import agree, described, own_mesh
from minijaxnet.cli.request import Request, read_request
from minijaxnet.cli.run_folder import OpenFolder, failure_recorded, new_folder
from minijaxnet.cli.start import Start, digest_of, first_batch, start_of
from minijaxnet.cli.sweep_plan import plan_of, run_of
from minijaxnet.cli.sweep_report import joined_result, report
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
    request = read_request("sweep", SweepFlags, arguments)
    if isinstance(request, int):
        return request
    return execute_sweep(request, functools.partial(new_folder, request))


def execute_sweep(request: Request, open_folder: OpenFolder) -> int:
    """Run the blocks of a sweep that its run folder does not have yet; the exit code."""
    with jax.enable_x64(request.flags.precision == "float64"):
        return _execute(request, open_folder)


def _execute(request: Request, open_folder: OpenFolder) -> int:
    experiment, flags, plan = request.experiment, request.flags, plan_of(request)
    first = {name: plan.values[name][0] for name in request.init}
    start = start_of(experiment, 0, flags.precision, first, request.data)
    if is_read(start.train):
        raise ValueError("data: got a function that reads batches; expected arrays, of which all descents see the same")
    for size in plan.program_axes.get("batch_size", ()):
        minibatches_of(start.train, size)
    names = ["loss", *measured_names(experiment, start.held_out)]
    if (by := goal_of(flags.by, "by").name) not in names:
        raise ValueError(f"by: got {by!r}; expected one of {', '.join(names)}")
    mesh, programs = own_mesh(flags), plan.programs()
    count = math.prod(map(len, plan.axes.values())) * len(programs)
    if is_first():
        processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
        heading = f"{experiment.name}: {count:,} descents of {flags.steps:,} steps, {flags.precision} on "
        print(f"{heading}{described(mesh)}{processes}", flush=True)
    data_sha256 = agree(request, digest_of(start.train, *start.held_out.values()))
    if not broadcast(flags.unchecked or (is_first() and _gradient_is_right(request, start))):
        return 1
    results: list[SweepResult] = []
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
                blocks = blocks_below(folder / BLOCKS / name, keep=folder.is_dir())._replace(mine=_is_mine)
                rest = {"block": flags.block, "blocks": blocks, "mesh": mesh, "on_progress": _on_progress()}
                results.append(sweep(run_of(request, plan, program, start), plan.axes, **rest))
                if stop or (jax.process_count() == 1 and results[-1].interrupted):
                    break
        results = _of_all_processes(results)
        if not results:
            raise KeyboardInterrupt(stop.signum)
        complete = len(results) == len(programs) and not results[-1].interrupted
        result = joined_result(results, {name: some for name, some in plan.program_axes.items() if len(some) > 1})
        signum = 0 if complete else int(all_gather([stop.signum]).max()) or signal.SIGINT
        return report(request, plan, folder, result, signum) if is_first() else 128 * bool(signum) + signum


def _gradient_is_right(request: Request, start: Start) -> bool:
    """Whether the gradient by hand is right at the start of the first descent; a wrong one is reported."""
    sizes = request.flags.batch_size
    batch = first_batch(start.train, None if sizes == "all" else int(parse_range("batch_size", sizes)[0]))
    report = report_on(
        request.experiment, (start.params, batch, *(() if start.draw_key is None else (start.draw_key,)))
    )
    if report is None or report.ok:
        return True
    print(f"\n{report}\n\nThe sweep was not started: {WRONG}; --unchecked descends all the same.")
    return False


def _is_mine(first: int, size: int) -> bool:
    """Whether this process runs a block: they take turns.

    Raises:
        UsageError: blocks are of another size in another process.
    """
    if first == 0 and len(sizes := set(all_gather([size]).ravel().tolist())) > 1:
        got = " and ".join(map(str, sorted(sizes)))
        raise UsageError(f"block: got {got}, by the memory and cores of each process; expected the same (--block)")
    return first // size % jax.process_count() == jax.process_index()


def _of_all_processes(results: list[SweepResult]) -> list[SweepResult]:
    """The results of all processes, which exchange nothing else."""
    if jax.process_count() == 1 or not (count := int(all_gather([len(results)]).min())):
        return results
    all_results = []
    for result in results[:count]:
        output, finished = merge_rows(result.output, result.finished)
        all_results.append(result._replace(output=output, finished=finished))
    return all_results


def _on_progress() -> Callable[[int, int], None] | None:
    """Shows on a terminal how many descents are done."""
    if not sys.stderr.isatty():
        return None
    return lambda done, count: print(f"\r{done:,} of {count:,}", end="\n" if done == count else "", file=sys.stderr)
