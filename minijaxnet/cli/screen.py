"""What is shown while something takes long, and standard streams that never end it."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from minijaxnet._tables import significant
from minijaxnet.run.log import Progress


class Screen(NamedTuple):
    """Functions that print.

    Attributes:
        say: prints a line, at once.
        show_stage: shows what is being done, on a terminal; nothing elsewhere.
    """

    say: Callable[[str], None]
    show_stage: Callable[[str], None]


@contextlib.contextmanager
def screen() -> Iterator[Screen]:
    """Standard output, with a line for the current stage if it is a terminal."""
    if not sys.stdout.isatty():
        yield Screen(lambda text: print(text, flush=True), lambda stage: None)
        return
    from rich.console import Console  # 50 ms: imported where used
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(file=sys.stdout)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True) as status:
        task = status.add_task("", total=None)
        yield Screen(
            lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True),
            lambda stage: status.reset(task, description=stage, total=None),
        )


@contextlib.contextmanager
def progress_bar(steps: int) -> Iterator[Callable[[Progress], None]]:
    """A bar with loss, speed and time left, on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda progress: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    text = TextColumn("loss {task.fields[loss]}  {task.fields[speed]} steps/s  left")
    columns = (BarColumn(), MofNCompleteColumn(), text, TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("descent", total=steps, loss="-", speed="-")
        yield lambda progress: bar.update(
            task,
            completed=progress.step,
            loss=significant(progress.loss),
            speed=f"{progress.steps_per_s:,.0f}",
        )


@contextlib.contextmanager
def patient_streams() -> Iterator[None]:
    """Standard output and errors whose failure ends nothing.

    A stream that was closed (``2>&-``) leads nowhere: otherwise the next file that is opened would receive its text.
    Text that nobody reads any more, as after ``| head``, is lost. Characters that the encoding lacks are replaced.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8", errors="replace"))
    streams = (
        ("stdout", "replace", contextlib.redirect_stdout),
        ("stderr", "backslashreplace", contextlib.redirect_stderr),
    )
    with contextlib.ExitStack() as stack:
        for name, errors, redirect in streams:
            stream = getattr(sys, name)
            if stream is getattr(sys, f"__{name}__"):  # else a notebook or a test has replaced it
                stream.reconfigure(errors=errors)
                if not stream.isatty():
                    raw = io.BufferedWriter(_Patient(stream.fileno(), "w", closefd=False))
                    patient = io.TextIOWrapper(raw, stream.encoding, errors, line_buffering=True)
                    stack.enter_context(redirect(patient))
                    stack.callback(patient.flush)
        yield


class _Patient(io.FileIO):
    """A file whose reader may go."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)
