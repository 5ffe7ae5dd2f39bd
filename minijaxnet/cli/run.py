"""``minijaxnet run``: carry out an experiment; say what it learnt, whether its gradient is right, how fast it is."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from minijaxnet.cli.carry_out import Asked, carry_out
from minijaxnet.cli.flags import RunFlags, parse, split_file
from minijaxnet.experiment import load_experiment
from minijaxnet.run.folder import create_run_folder, write_beginning
from minijaxnet.run.log import METRICS, read_rows


def main(arguments: Sequence[str]) -> int:
    """Carry out the experiment of a file."""
    file, rest = split_file("run", arguments)
    experiment = None if file is None else load_experiment(file)
    flags, init, data = parse(RunFlags, "run", experiment, file or "FILE", rest)
    assert experiment is not None and file is not None, "without a file only help is shown"
    asked = Asked(experiment, flags, init, data)
    return carry_out(asked, lambda: _new_folder(asked, file), resume=False)


@contextlib.contextmanager
def _new_folder(asked: Asked, file: str) -> Iterator[Path]:
    """A new run folder, which goes again if what runs in it fails before a first row is logged."""
    folder = create_run_folder(asked.flags.runs, asked.experiment.name)
    try:
        config = {"verb": "run", "file": file, "experiment": asked.experiment.name}
        config |= {"flags": dataclasses.asdict(asked.flags), "init": asked.init, "data": asked.data}
        write_beginning(folder, config, file)
        yield folder
    except BaseException:
        if not read_rows(folder / METRICS):
            shutil.rmtree(folder)
        raise
