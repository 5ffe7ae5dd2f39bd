"""``minijaxnet runs``: the runs of a folder, how they stand and what came out."""

import os
from collections.abc import Sequence
from pathlib import Path

from minijaxnet._files import read_json
from minijaxnet._tables import printable, significant, text_table
from minijaxnet.cli.checks import CHECKED, checked_in, conclusion_of
from minijaxnet.cli.errors import UsageError
from minijaxnet.run.folder import CONFIG, RESULT, run_state
from minijaxnet.run.log import METRICS, read_rows


def main(arguments: Sequence[str]) -> int:
    """Print a line a run, the newest last."""
    if {"-h", "--help"} & set(arguments):
        print("usage: minijaxnet runs [FOLDER]\n\nShow the runs of a folder (runs, if left out).")
        return 0
    if len(arguments) > 1:
        raise UsageError(f"runs: got {' '.join(arguments)}; expected one folder at most")
    folder = Path(arguments[0] if arguments else "runs")
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise UsageError(f"runs: got {folder}; expected a folder, but {folder.absolute()} {what}")
    found = sorted(
        (path for path in folder.iterdir() if any(os.path.isfile(path / name) for name in (CONFIG, CHECKED))),
        key=lambda path: path.name,
    )
    if not found:
        print(f"{printable(str(folder))}: no runs")
        return 0
    print(text_table(("run", "state", "steps", "result"), [_row(path) for path in found]))
    return 0


def _row(folder: Path) -> tuple[str, ...]:
    """A line of the table; one odd folder, whatever is wrong with it, does not cost the others theirs."""
    try:
        return folder.name, *_told(folder)
    except Exception as error:
        return folder.name, "unreadable", "", f"{type(error).__name__}: {error}"[:60]


def _told(folder: Path) -> tuple[str, str, str]:
    if os.path.isfile(folder / CHECKED):
        return "check", "", conclusion_of([how for *_, how in checked_in(read_json(folder / CHECKED))])
    state, result = run_state(folder), read_json(folder / RESULT)
    rows = read_rows(folder / METRICS)
    last = rows[-1] if rows else {}
    steps = result.get("steps_taken", last.get("step"))
    if "best" in result:
        shown = "no finite loss" if result["best"] is None else f"best loss {_figure(result.get('loss'))}"
    elif state == "failed":
        shown = str(result.get("error", ""))[:60]
    else:
        metrics = {name: value for name, value in last.items() if name not in ("step", "loss", "gradient_norm")}
        shown = ", ".join(f"{name} {significant(value)}" for name, value in metrics.items())
    return state, "" if steps is None else f"{steps:,}" if isinstance(steps, int) else str(steps)[:20], shown


def _figure(value: object) -> str:
    """A number as tables show it; what is none as it is."""
    return significant(value) if isinstance(value, int | float) else str(value)[:20]
