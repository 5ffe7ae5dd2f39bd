"""``minijaxnet run``: what an experiment learns, whether its gradient is right, how fast it is."""

from collections.abc import Sequence
from pathlib import Path

from minijaxnet.cli.execute import execute
from minijaxnet.cli.flags import RunFlags, place_flags_of
from minijaxnet.cli.parsing import parse, split_file
from minijaxnet.cli.placement import join, launched
from minijaxnet.cli.request import Request, latest_run_like, new_folder
from minijaxnet.cli.resume import go_on
from minijaxnet.experiment import load_experiment
from minijaxnet.parallel.processes import broadcast
from minijaxnet.run.folder import run_state


def main(arguments: Sequence[str]) -> int:
    """Run the experiment of a file."""
    file, rest = split_file("run", arguments)
    place = place_flags_of(rest)
    if file is not None and (code := launched("run", arguments, place)) is not None:
        return code
    join(place)
    experiment = None if file is None else load_experiment(file)
    parsed = parse(RunFlags, "run", experiment, file or "FILE", rest)
    assert experiment is not None and file is not None, "without a file only help is shown"
    request = Request("run", file, experiment, *parsed)
    if not parsed.flags.resume_latest or (latest := broadcast(latest_run_like(request))) is None:
        return execute(request, lambda data_sha256: new_folder(request, experiment.name, data_sha256), resume=False)
    if broadcast(run_state(Path(latest))) == "done":
        print(f"{latest}: this run is done already; without --resume-latest a new one is started")
        return 0
    return go_on(Path(latest), request)
