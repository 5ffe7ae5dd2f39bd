"""``minijaxnet show``: one run, as far as it has come."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minijaxnet._files import read_json
from minijaxnet._tables import printable, significant, text_table
from minijaxnet.cli.checks import CHECKED, checked_in, conclusion_of
from minijaxnet.cli.errors import UsageError
from minijaxnet.run.folder import RESULT, read_config, run_state
from minijaxnet.run.log import METRICS, read_rows
from minijaxnet.verify.report import headline_of, subject_of

_MOST_ROWS = 12


def main(arguments: Sequence[str]) -> int:
    """Print what a run was asked for, where it ran, how it stands and what it has logged."""
    if {"-h", "--help"} & set(arguments):
        print("usage: minijaxnet show RUN\n\nShow the run of a folder.")
        return 0
    if len(arguments) != 1:
        raise UsageError(f"show: got {' '.join(arguments) or 'nothing'}; expected the folder of one run")
    folder = Path(arguments[0])
    if (folder / CHECKED).is_file():
        told = read_json(folder / CHECKED)
        found = checked_in(told)
        print(f"{folder}: check {told.get('file', '')}: {conclusion_of([how for *_, how in found])}\n")
        print(text_table(("judged", "dtype", "point", "verdict"), found))
        return 0
    config, environment, result = (
        read_config(folder),
        read_json(folder / "environment.json"),
        read_json(folder / RESULT),
    )
    settings = config["flags"] | config["init"] | {f"data_{name}": value for name, value in config["data"].items()}
    versions, devices = environment.get("versions"), environment.get("devices")
    said = _pairs(settings)
    on = ", ".join(map(str, devices)) if isinstance(devices, list) else ""
    lines = [
        f"{folder}: {run_state(folder)}\n{config['verb']} {config.get('file')}: {said}",
        f"on {on}; {_pairs(versions)}",
    ]
    if "error" in result:
        lines.append(f"\n{result['error']}")
    rows = read_rows(folder / METRICS)
    shown = rows if len(rows) <= _MOST_ROWS else [*rows[: -1 : -(-len(rows) // _MOST_ROWS)], rows[-1]]
    if shown:
        names = [name for name in shown[0] if name != "step"]
        cells = [(f"{row['step']:,}", *(significant(row.get(name, float("nan"))) for name in names)) for row in shown]
        lines.append(f"\n{text_table(('step', *names), cells)}")
    if check := result.get("gradient_check"):
        try:
            lines.append(f"\n{subject_of(check)[0]}: {headline_of(check)}")
        except Exception:
            lines.append(f"\n{folder / RESULT}: got another gradient_check; expected that of a run")
    print(printable("\n".join(lines), keep="\n"))
    return 0


def _pairs(values: Any) -> str:
    return (
        ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
        if isinstance(values, dict)
        else ""
    )
