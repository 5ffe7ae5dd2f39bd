"""``minijaxnet run``: carry out an experiment; say what it learnt, whether its gradient is right, how fast it is."""

from collections.abc import Sequence
from pathlib import Path

from minijaxnet.cli.begin import Asked, latest_like, new_folder
from minijaxnet.cli.carry_out import carry_out
from minijaxnet.cli.flags import RunFlags, together_of
from minijaxnet.cli.parsing import parse, split_file
from minijaxnet.cli.resume import go_on
from minijaxnet.cli.together import join, launched
from minijaxnet.experiment import load_experiment
from minijaxnet.parallel.processes import broadcast
from minijaxnet.run.folder import run_state


def main(arguments: Sequence[str]) -> int:
    """Carry out the experiment of a file."""
    file, rest = split_file("run", arguments)
    together = together_of(rest)
    if file is not None and (code := launched("run", arguments, together)) is not None:
        return code
    join(together)
    experiment = None if file is None else load_experiment(file)
    parsed = parse(RunFlags, "run", experiment, file or "FILE", rest)
    assert experiment is not None and file is not None, "without a file only help is shown"
    asked = Asked("run", file, experiment, *parsed)
    if not parsed.flags.resume_latest or (latest := broadcast(latest_like(asked))) is None:
        return carry_out(asked, lambda data_sha256: new_folder(asked, experiment.name, data_sha256), resume=False)
    if broadcast(run_state(Path(latest))) == "done":
        print(f"{latest}: this run is done already; without --resume-latest a new one is started")
        return 0
    return go_on(Path(latest), asked)
