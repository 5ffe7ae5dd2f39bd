"""``minijaxnet show``: one run, as far as it has come."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minijaxnet._files import read_json
from minijaxnet._tables import printable, significant, text_table
from minijaxnet.cli.checks import CHECKED, count_of, read_checked
from minijaxnet.cli.parsing import parse_folder
from minijaxnet.run.folder import ENVIRONMENT, RESULT, read_config, run_state
from minijaxnet.run.log import METRICS, read_rows
from minijaxnet.verify.report import headline_of, subject_of

_MOST_ROWS = 12


def main(arguments: Sequence[str]) -> int:
    """Print the settings of a run, where it ran, its state and what it has logged."""
    folder = parse_folder("show", arguments, "Show the run of a folder.")
    text = _check(folder) if (folder / CHECKED).is_file() else _run(folder)
    print(printable(text, keep="\n"))
    return 0


def _check(folder: Path) -> str:
    content = read_json(folder / CHECKED)
    rows = read_checked(content)
    count = count_of([headline for *_, headline in rows])
    table = text_table(("checked", "dtype", "point", "verdict"), rows)
    return f"{folder}: check {content.get('file', '')}: {count}\n\n{table}"


def _run(folder: Path) -> str:
    config, environment = read_config(folder), read_json(folder / ENVIRONMENT)
    settings = config["flags"] | config["init"] | {f"data_{name}": value for name, value in config["data"].items()}
    names = environment.get("devices")
    devices = ", ".join(map(str, names)) if isinstance(names, list) else ""
    lines = [
        f"{folder}: {run_state(folder)}",
        f"{config['verb']} {config.get('file')}: {_pairs(settings)}",
        f"on {devices}; {_pairs(environment.get('versions'))}",
    ]
    result, rows = read_json(folder / RESULT), read_rows(folder / METRICS)
    if "error" in result:
        lines.append(f"\n{result['error']}")
    if rows:
        few = rows if len(rows) <= _MOST_ROWS else [*rows[: -1 : -(-len(rows) // _MOST_ROWS)], rows[-1]]
        names = [name for name in few[0] if name != "step"]
        cells = [(f"{row['step']:,}", *(significant(row.get(name, float("nan"))) for name in names)) for row in few]
        lines.append(f"\n{text_table(('step', *names), cells)}")
    if check := result.get("gradient_check"):
        try:
            lines.append(f"\n{subject_of(check)[0]}: {headline_of(check)}")
        except Exception:  # the folder may be damaged, or somebody else's
            lines.append(f"\n{folder / RESULT}: got another gradient_check; expected that of a run")
    return "\n".join(lines)


def _pairs(values: Any) -> str:
    if not isinstance(values, dict):
        return ""
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
