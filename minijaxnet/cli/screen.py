"""What is said while something takes long: lines as they come, and on a terminal what is being done, for how long."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Screen(NamedTuple):
    """Where to say things.

    Attributes:
        say: prints a line, at once.
        tell: shows what is being done, on a terminal; nothing elsewhere.
    """

    say: Callable[[str], None]
    tell: Callable[[str], None]


@contextlib.contextmanager
def screen() -> Iterator[Screen]:
    """The screen that standard output is, or is not."""
    if not sys.stdout.isatty():
        yield Screen(lambda text: print(text, flush=True), lambda doing: None)
        return
    from rich.console import Console  # 50 ms: imported where used
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(file=sys.stdout)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as status:
        task = status.add_task("", total=None)
        yield Screen(
            lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True),
            lambda doing: status.reset(task, description=doing, total=None),
        )


@contextlib.contextmanager
def patient_streams() -> Iterator[None]:
    """Standard output and errors that never end what is being done.

    What their encoding lacks is replaced. Where nobody reads them any more, as after ``| head``, what is said is lost.
    """
    with contextlib.ExitStack() as stack:
        for name, redirect in (("stdout", contextlib.redirect_stdout), ("stderr", contextlib.redirect_stderr)):
            stream = getattr(sys, name)
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace" if name == "stdout" else "backslashreplace")
                stack.enter_context(redirect(_Patient(stream)))  # pyright: ignore[reportArgumentType]
                stack.callback(sys.__dict__[name].flush)
        yield


class _Patient:
    """A text stream whose reader may go."""

    def __init__(self, stream: io.TextIOWrapper):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._unless_gone(self._stream.write, text) or len(text)

    def flush(self) -> None:
        self._unless_gone(self._stream.flush)

    def _unless_gone(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            return None
