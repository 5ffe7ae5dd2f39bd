"""``minijaxnet run``: what an experiment learns, whether its gradient is right, how fast it is."""

import functools
from collections.abc import Sequence
from pathlib import Path

from minijaxnet.cli.execute import execute
from minijaxnet.cli.flags import RunFlags
from minijaxnet.cli.request import read_request
from minijaxnet.cli.resume import resume_run
from minijaxnet.cli.run_folder import latest_run_like, new_folder
from minijaxnet.parallel.processes import broadcast
from minijaxnet.run.folder import run_state


def main(arguments: Sequence[str]) -> int:
    """Run the experiment of a file."""
    request = read_request("run", RunFlags, arguments)
    if isinstance(request, int):
        return request
    if not request.flags.resume_latest or (latest := broadcast(latest_run_like(request))) is None:
        return execute(request, functools.partial(new_folder, request), resume=False)
    if broadcast(run_state(Path(latest))) == "done":
        print(f"{latest}: this run is done already; without --resume-latest a new one is started")
        return 0
    return resume_run(Path(latest), request)
