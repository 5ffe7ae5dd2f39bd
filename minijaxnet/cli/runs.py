"""``minijaxnet runs``: the runs of a folder, with their states and results."""

import os
from collections.abc import Sequence
from pathlib import Path

from minijaxnet._files import read_json
from minijaxnet._tables import printable, significant, text_table
from minijaxnet.cli.checks import CHECKED, count_of, read_checked
from minijaxnet.cli.parsing import parse_folder
from minijaxnet.run.folder import CONFIG, RESULT, run_state
from minijaxnet.run.log import METRICS, read_rows


def main(arguments: Sequence[str]) -> int:
    """Print a line for each run, the newest last."""
    folder = parse_folder("runs", arguments, "List the runs of a folder (runs, if left out).", "runs")
    paths = [path for path in folder.iterdir() if any(os.path.isfile(path / name) for name in (CONFIG, CHECKED))]
    rows = [_row(path) for path in sorted(paths, key=lambda path: path.name)]
    print(text_table(("run", "state", "steps", "result"), rows) if rows else f"{printable(str(folder))}: no runs")
    return 0


def _row(folder: Path) -> tuple[str, ...]:
    """A line of the table, also for a folder that is damaged in some way."""
    try:
        return folder.name, *_state(folder)
    except Exception as error:
        return folder.name, "unreadable", "", f"{type(error).__name__}: {error}"[:60]


def _state(folder: Path) -> tuple[str, str, str]:
    """The state of a run, its steps and its result; values of a kind that no run writes are printed as they are."""
    if os.path.isfile(folder / CHECKED):
        return "check", "", count_of([headline for *_, headline in read_checked(read_json(folder / CHECKED))])
    state, result, rows = run_state(folder), read_json(folder / RESULT), read_rows(folder / METRICS)
    last = rows[-1] if rows else {}
    steps = result.get("steps_taken", last.get("step", ""))
    if "best" in result:
        loss = result.get("loss")
        number = significant(loss) if isinstance(loss, int | float) else str(loss)[:20]
        outcome = "no finite loss" if result["best"] is None else f"best loss {number}"
    elif state == "failed":
        outcome = str(result.get("error", ""))[:60]
    else:
        metrics = {name: value for name, value in last.items() if name not in ("step", "loss", "gradient_norm")}
        outcome = ", ".join(f"{name} {significant(value)}" for name, value in metrics.items())
    return state, f"{steps:,}" if isinstance(steps, int) else str(steps)[:20], outcome
