"""``minijaxnet run``: carry out an experiment; say what it learnt, whether its gradient is right, how fast it is."""

from collections.abc import Sequence

from minijaxnet.cli.begin import Asked, new_folder
from minijaxnet.cli.carry_out import carry_out
from minijaxnet.cli.flags import RunFlags, devices_asked, parse, split_file
from minijaxnet.experiment import load_experiment
from minijaxnet.parallel import divide_cpu


def main(arguments: Sequence[str]) -> int:
    """Carry out the experiment of a file."""
    file, rest = split_file("run", arguments)
    divide_cpu(devices_asked(rest))
    experiment = None if file is None else load_experiment(file)
    flags, init, data = parse(RunFlags, "run", experiment, file or "FILE", rest)
    assert experiment is not None and file is not None, "without a file only help is shown"
    asked = Asked("run", file, experiment, flags, init, data)
    return carry_out(asked, lambda data_sha256: new_folder(asked, experiment.name, data_sha256), resume=False)
