"""``minijaxnet report``: the page that tells what came out of a run, or of several."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from minijaxnet._files import replace_file
from minijaxnet.cli.request import request_of_run
from minijaxnet.cli.start import start_of
from minijaxnet.load import OtherCode, load_params
from minijaxnet.report.page import Page, page
from minijaxnet.report.pictures import FORMATS, write_pictures
from minijaxnet.report.several import tell_several
from minijaxnet.report.shown import shown
from minijaxnet.report.story import tell
from minijaxnet.report.told import Known, told_by
from minijaxnet.run.folder import PARAMS, changes, read_config
from minijaxnet.streams import first_batch_of

PAGE = "report.html"


def main(arguments: Sequence[str]) -> int:
    """Make the page of one run or of several."""
    parser = argparse.ArgumentParser(
        prog="minijaxnet report",
        description=f"Make the page of a run, {PAGE} in its folder; of several runs, one page that compares them.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the folder of a run")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"the page; {PAGE} here for several runs")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="where its pictures are written as files")
    parser.add_argument("--format", default="png", choices=FORMATS, help="of the files; a bowl that moves is a GIF")
    parser.add_argument("--trust", action="store_true", help="run the code of runs that you did not start")
    request = parser.parse_args(arguments)
    for folder in request.runs:
        read_config(folder)
    output = request.output or (request.runs[0] / PAGE if len(request.runs) == 1 else Path(PAGE))
    made = _page_of(request.runs, None, trust=request.trust)
    print(_write(made, output))
    if request.pictures is not None:
        print("\n".join(map(str, write_pictures(made, request.pictures, request.format))))
    return 0


def leave_report(folder: Path, known: Known, notes: Sequence[str] = ()) -> str:
    """Leave the page of a run that has just ended in its folder, and say where."""
    return _write(_page_of([folder], known, notes), folder / PAGE)


def _page_of(folders: Sequence[Path], known: Known | None, notes: Sequence[str] = (), *, trust: bool = False) -> Page:
    if len(folders) > 1:
        return tell_several([told_by(folder) for folder in folders])
    [folder] = folders
    found = told_by(folder, ended=known is not None)
    with jax.enable_x64(found.config["flags"].get("precision") == "float64"):
        if known is None and found.config["verb"] == "run":
            try:
                known = _known(folder, found.config, trust=trust)
            except OtherCode:
                notes = ["Only what the folder holds is shown: the experiment's code or the config has changed since"]
            except Exception as error:
                notes = [f"Only what the folder holds is shown: {error}"]
        return tell(found, [] if known is None else shown(found, known), notes)


def _write(made: Page, output: Path) -> str:
    replace_file(output, page(made).encode())
    return f"page: {output}"


def _known(folder: Path, config: dict[str, Any], *, trust: bool) -> Known:
    """Where an earlier run ended, and what it learnt from.

    Raises:
        ValueError: the experiment has changed since or is somebody else's, or the run has not ended.
    """
    request = request_of_run(folder, config, trust=trust)
    if difference := changes(folder, request.file, request.experiment.files):
        raise OtherCode(folder, difference)
    if not (folder / PARAMS).is_file():
        raise ValueError("the run has not ended")
    flags = request.flags
    params, train, held_out, _, key = start_of(
        request.experiment, flags.seed, flags.precision, request.init, request.data
    )
    return Known(request.experiment, load_params(folder, params), first_batch_of(train), held_out["test"], key)
