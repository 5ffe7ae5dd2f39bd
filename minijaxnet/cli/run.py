"""``minijaxnet run``: carry out an experiment; say what it learnt, whether its gradient is right, how fast it is."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from minijaxnet.cli.begin import Asked, new_folder
from minijaxnet.cli.carry_out import carry_out
from minijaxnet.cli.flags import RunFlags, parse, split_file, together_of
from minijaxnet.cli.supervisor import noted_folder
from minijaxnet.cli.together import join, supervised_run
from minijaxnet.experiment import load_experiment


def main(arguments: Sequence[str]) -> int:
    """Carry out the experiment of a file."""
    file, rest = split_file("run", arguments)
    together = together_of(rest)
    if file is not None and (code := supervised_run("run", arguments, together)) is not None:
        return code
    join(together)
    experiment = None if file is None else load_experiment(file)
    flags, init, data = parse(RunFlags, "run", experiment, file or "FILE", rest)
    assert experiment is not None and file is not None, "without a file only help is shown"
    asked = Asked("run", file, experiment, flags, init, data)
    begun = noted_folder()  # by an earlier start of the same, which did not survive

    def open_folder(data_sha256: str) -> contextlib.AbstractContextManager[Path]:
        return new_folder(asked, experiment.name, data_sha256) if begun is None else contextlib.nullcontext(begun)

    return carry_out(asked, open_folder, resume=begun is not None)
