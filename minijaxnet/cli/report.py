"""``minijaxnet report``: the page of a run, or of several."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from minijaxnet._files import replace_file
from minijaxnet._trees import cast_floats
from minijaxnet.cli.run_folder import request_of_run
from minijaxnet.cli.start import batches_of, draws, keys_of
from minijaxnet.load import OtherCode, load_params
from minijaxnet.report.page import Page, html_page
from minijaxnet.report.pictures import FORMATS, write_pictures
from minijaxnet.report.record import RunRecord, Trained, read_record
from minijaxnet.report.run_page import run_page
from minijaxnet.report.runs_page import runs_page
from minijaxnet.run.folder import PARAMS, changes
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
    parser.add_argument(
        "--format", default="png", choices=FORMATS, help="of the files; the descent of one weight is a GIF"
    )
    parser.add_argument("--trust", action="store_true", help="run the code of runs that were not started by you")
    request = parser.parse_args(arguments)
    records = [read_record(folder) for folder in request.runs]
    output = request.output or (request.runs[0] / PAGE if len(records) == 1 else Path(PAGE))
    with jax.enable_x64(len(records) == 1 and records[0].config["flags"].get("precision") == "float64"):
        page = runs_page(records) if len(records) > 1 else run_page(_with_experiment(records[0], trust=request.trust))
        print(_write(page, output))
        if request.pictures is not None:
            print("\n".join(map(str, write_pictures(page, request.pictures, request.format))))
    return 0


def write_page_of_outcome(folder: Path, trained: Trained, notes: Sequence[str] = ()) -> str:
    """Write the page of a run that has just ended into its folder; a line that says where."""
    record = read_record(folder, ended=True)._replace(trained=trained, notes=notes)
    return _write(run_page(record), folder / PAGE)


def _write(page: Page, output: Path) -> str:
    replace_file(output, html_page(page).encode())
    return f"page: {output}"


def _with_experiment(record: RunRecord, *, trust: bool) -> RunRecord:
    """The record of an earlier run with its experiment, or with a note on why that is missing."""
    if record.config["verb"] != "run":
        return record
    try:
        return record._replace(trained=_trained(record.folder, record.config, trust=trust))
    except OtherCode:
        why = "the experiment's code or the config has changed since"
    except Exception as error:
        why = str(error)
    return record._replace(notes=[f"Only what the folder holds is shown: {why}"])


def _trained(folder: Path, config: dict[str, Any], *, trust: bool) -> Trained:
    """Where an earlier run ended, and its data.

    Raises:
        ValueError: the experiment has changed since or is somebody else's, or the run has not ended.
    """
    request = request_of_run(folder, config, trust=trust)
    experiment, flags = request.experiment, request.flags
    if difference := changes(folder, request.file, experiment.files):
        raise OtherCode(folder, difference)
    if not (folder / PARAMS).is_file():
        raise ValueError("the run has not ended")
    batches = batches_of(experiment, flags.precision, request.data)
    like = jax.eval_shape(lambda: cast_floats(experiment.init(jax.random.key(0), **request.init), flags.precision))
    key = keys_of(flags.seed)[2] if draws(experiment.objective) else None
    return Trained(experiment, load_params(folder, like), first_batch_of(batches["train"]), batches["test"], key)
