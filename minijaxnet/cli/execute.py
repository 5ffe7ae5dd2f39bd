"""Run an experiment in its folder, from the start or from where it stopped; what ``run`` and ``resume`` share."""

import contextlib
import functools
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from minijaxnet._files import Lines, naming
from minijaxnet._tables import printable
from minijaxnet.cli.outcome import WRONG, Check, exit_code, is_right, report_outcome
from minijaxnet.cli.placement import agree, described
from minijaxnet.cli.request import Request
from minijaxnet.cli.run_folder import OpenFolder, failure_recorded
from minijaxnet.cli.screen import progress_bar
from minijaxnet.cli.setup import check_gradient, placed_fit, set_up
from minijaxnet.cli.start import digest_of
from minijaxnet.parallel.processes import broadcast, is_first
from minijaxnet.run import Progress, Sink
from minijaxnet.run.lock import hold
from minijaxnet.run.programs import kept_programs

# A descent that takes longer has its gradient checked on the way, a shorter one when it has ended.
_LONG_S = 5.0


class WrongGradient(Exception):
    """A gradient by hand, or a derivative rule within the loss, is wrong."""


def execute(request: Request, open_folder: OpenFolder, *, resume: bool) -> int:
    """Descend, check the gradient, time the step, and keep all that in a folder; the exit code.

    Args:
        request: what to run.
        open_folder: makes or finds the run folder.
        resume: whether to resume the run that the folder holds.
    """
    with jax.enable_x64(request.flags.precision == "float64"):
        return _execute(request, open_folder, resume)


def _execute(request: Request, open_folder: OpenFolder, resume: bool) -> int:
    flags, setup = request.flags, set_up(request)
    data_sha256 = agree(request, digest_of(setup.batch, *setup.start.held_out.values()))
    run = placed_fit(setup)
    check: Check = functools.cache(lambda: check_gradient(setup))
    heading = (
        f"{request.experiment.name}: {flags.steps:,} steps of {setup.optimizer}, learning rate "
        f"{flags.learning_rate:g}, {flags.precision} on {described(setup.mesh)}"
    )
    if is_first():
        _print(heading)
    # Of several processes the first one could not stop the others on the way: it checks before the descent.
    if jax.process_count() > 1 and not broadcast(is_first() and (is_right(check()) or flags.unchecked)):
        if is_first():
            print(f"\n{check()}\n\nThe descent was not started: {WRONG}; --unchecked descends all the same.")
        return 1
    if not is_first():
        return exit_code(run())
    with open_folder(data_sha256) as folder, hold(folder) as held, Lines(folder / "log.txt") as log:
        log.append(f"{heading}\n")

        def say(text: str) -> None:
            text = printable(text, keep="\n\t")
            _print(text)
            log.append(f"{text}\n")

        try:
            programs = kept_programs(folder, flags.keep_programs)
            with programs, failure_recorded(folder), _sink(flags.steps, check, flags.unchecked) as sink:
                result = run(run_dir=held, resume=resume, sink=sink)
        except WrongGradient:
            say(f"\n{check()}\n\nThe descent was stopped: {WRONG}; --unchecked goes on all the same.")
            return 1
        for note in result.notes:
            say(f"warning: {note}")
        if resume:
            say(f"went on from step {result.first_step:,}")
        return report_outcome(setup, result, check, folder, say)


def _print(text: str) -> None:
    with naming(Path("standard output"), "not written"):  # it may be a file on a full disk
        print(text, flush=True)


@contextlib.contextmanager
def _sink(steps: int, check: Check, unchecked: bool) -> Iterator[Sink]:
    """A progress bar, and the check of the gradient once the descent has run for long."""
    began = time.monotonic()
    with progress_bar(steps) as show:

        def on_progress(progress: Progress) -> None:
            show(progress)
            is_long = jax.process_count() == 1 and time.monotonic() - began > _LONG_S
            if is_long and not unchecked and not is_right(check()):
                raise WrongGradient(WRONG)

        yield Sink(lambda row: None, progress=on_progress)
