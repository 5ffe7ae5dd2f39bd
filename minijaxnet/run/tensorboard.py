"""The rows of a run as TensorBoard's event files, beside ``metrics.jsonl``; needs the extra ``tensorboard``."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minijaxnet.run.log import Sink

EVENTS = "tensorboard"


@contextlib.contextmanager
def event_files(folder: Path) -> Iterator[Sink]:
    """Keep the rows of a run, each number as a scalar under its name.

    Raises:
        ImportError: tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ImportError('tensorboard: tensorboardX is not installed: pip install "minijaxnet[tensorboard]"') from None
    writers: list[Any] = []

    def back_to(step: int) -> None:
        # Files are named by the second: those of the same second are told apart, and ordered, by their number.
        number = len(list((folder / EVENTS).glob("*")))
        writers.append(SummaryWriter(str(folder / EVENTS), purge_step=step, filename_suffix=f".{number:04d}"))

    def write(row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name != "step":
                writers[-1].add_scalar(name, value, row["step"])
        writers[-1].flush()

    try:
        yield Sink(write, back_to)
    finally:
        for writer in writers:
            writer.close()
