"""What is said while something takes long: lines as they come, and on a terminal what is being done, for how long."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple


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
