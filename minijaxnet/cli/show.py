"""``minijaxnet show``: one run, as far as it has come."""

from collections.abc import Sequence
from pathlib import Path

from minijaxnet.cli.checks import CHECKED, checked_in, conclusion_of
from minijaxnet.cli.errors import UsageError
from minijaxnet.run.folder import RESULT, read_config, read_json, run_state
from minijaxnet.run.log import METRICS, read_rows
from minijaxnet.tables import figure, text_table
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
    settings = (
        config.get("flags", {})
        | config.get("init", {})
        | {f"data_{name}": value for name, value in config.get("data", {}).items()}
    )
    said = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    versions = ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items() if version)
    print(f"{folder}: {run_state(folder)}\n{config['verb']} {config['file']}: {said}")
    print(f"on {', '.join(environment.get('devices', []))}; {versions}")
    if "error" in result:
        print(f"\n{result['error']}")
    rows = read_rows(folder / METRICS)
    shown = rows if len(rows) <= _MOST_ROWS else [*rows[: -1 : -(-len(rows) // _MOST_ROWS)], rows[-1]]
    if shown:
        names = [name for name in shown[0] if name != "step"]
        lines = [(f"{row['step']:,}", *(figure(row.get(name, float("nan"))) for name in names)) for row in shown]
        print(f"\n{text_table(('step', *names), lines)}")
    if check := result.get("gradient_check"):
        print(f"\n{subject_of(check)[0]}: {headline_of(check)}")
    return 0
