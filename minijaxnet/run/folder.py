"""The run folder: what was asked for, where it ran, what happened, on disk as it happens."""

import hmac
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minijaxnet._files import plain, read_json, replace_file
from minijaxnet._machine import description
from minijaxnet.run import code
from minijaxnet.run.lock import owner

CONFIG, CODE, RESULT, ENVIRONMENT = "config.json", "code", "result.json", "environment.json"
COMPARISON, SWEPT = "comparison.json", "sweep.npz"
# Weights: where it ended, and the best by a measured number, where that was asked for.
PARAMS, BEST = "params.safetensors", "best.safetensors"


def create_run_folder(parent: str | Path, name: str) -> Path:
    """A new folder ``parent/name-YYYYMMDD-HHMMSS`` (UTC) that nobody else has; a number is added if need be.

    Args:
        parent: made if it is not there.
        name: of the experiment.

    Returns:
        Its path.
    """
    stem = Path(parent) / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    for attempt in range(1, 1000):
        folder = stem if attempt == 1 else stem.with_name(f"{stem.name}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{stem}: got 999 runs of the same second; expected fewer")


def write_beginning(folder: Path, config: dict[str, Any], file: str | Path, files: Sequence[str | Path] = ()) -> None:
    """Write what a run begins with: ``config.json``, the code and the environment.

    The code is kept below ``code/``, the config once more beside it, so that what has changed since can be shown.
    """
    texts = code.sources(file, files)
    config = config | {"code_sha256": code.digest(texts)}
    code.keep(folder / CODE, texts | {CONFIG: _json(config)})
    write_json(folder / CONFIG, config)
    write_json(folder / ENVIRONMENT, environment() | {"mark": own_mark(folder)})


def change_settings(folder: Path, flags: dict[str, Any], at_step: int) -> None:
    """Have the config of a run say that from a step on it goes on with other flags; what was before stays in it."""
    config, is_mine = read_config(folder), own_mark(folder) == read_json(folder / ENVIRONMENT).get("mark")
    change = {name: [config["flags"].get(name), value] for name, value in flags.items()}
    config["flags"] |= flags
    config["changes"] = [*config.get("changes", []), {"at_step": at_step} | change]
    (folder / RESULT).unlink(missing_ok=True)  # it is not done any more
    text, then = _json(config), read_json(folder / ENVIRONMENT)
    if is_mine:  # both marks hold until all is written, whenever it is killed
        changed = code.mark(code.digest(code.kept(folder / CODE) | {CONFIG: text}))
        write_json(folder / ENVIRONMENT, then | {"mark": f"{then['mark']} {changed}"})
    replace_file(folder / CODE / CONFIG, text.encode())
    finish_change(folder)
    write_json(folder / CONFIG, config)


def finish_change(folder: Path) -> None:
    """Complete a change of settings of this user's own run that was killed on the way."""
    then = read_json(folder / ENVIRONMENT)
    marks = str(then.get("mark", "")).split()
    if len(marks) > 1 and own_mark(folder) in marks:
        replace_file(folder / CONFIG, code.kept(folder / CODE)[CONFIG].encode())
        write_json(folder / ENVIRONMENT, then | {"mark": own_mark(folder)})


def changes(folder: Path, file: str | Path, files: Sequence[str | Path] = ()) -> str:
    """How the config and the code have changed since a run was started, as a diff; nothing if they have not."""
    then = code.kept(folder / CODE)
    now = code.present(file, then) | code.sources(file, files)
    return code.difference(then, now | {CONFIG: (folder / CONFIG).read_text(encoding="utf-8")})


def is_own(folder: Path, file: str | Path) -> bool:
    """Whether this user has started a run, with the code that is kept with it, from a file of this name."""
    mark, marked = own_mark(folder), str(read_json(folder / ENVIRONMENT).get("mark", ""))
    its = Path(file).name in code.kept(folder / CODE)
    return bool(mark) and its and hmac.compare_digest(mark.encode(), marked.encode())


def changes_before_loading(folder: Path, file: str | Path) -> str:
    """As ``changes``, of an experiment that is not loaded: none of its code runs."""
    then = code.kept(folder / CODE)
    seen = {name: text for name, text in then.items() if not name.startswith(code.FILES)}
    return code.difference(seen, code.present(file, seen) | {CONFIG: (folder / CONFIG).read_text(encoding="utf-8")})


def own_mark(folder: Path) -> str:
    """What shows that this user has started a run, with the code and the config that are kept with it."""
    return code.mark(code.digest(code.kept(folder / CODE)))


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a run.

    Raises:
        ValueError: the folder is none of a run.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder}: there is no {CONFIG}; expected the folder of a run")
    config = read_json(path)
    parts = [config.get(name) for name in ("flags", "init", "data")]
    if config.get("verb") not in ("run", "sweep") or not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{path}: expected the settings of a run")
    return config


def run_state(folder: Path) -> str:
    """How it stands with a run: running, done, interrupted (also when it was killed), diverged or failed."""
    if owner(folder) is not None:
        return "running"
    return result_state(folder)


def result_state(folder: Path) -> str:
    """The same of a run that nobody carries out."""
    result = read_json(folder / RESULT)
    if not result:
        return "interrupted"
    states = {"DIVERGED": "diverged", "INTERRUPTED": "interrupted", "FAILED": "failed"}
    return states.get(str(result.get("status")), "done")


def _json(content: Any) -> str:
    return json.dumps(plain(content), indent=2) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all; numbers that JSON lacks (NaN, infinity) become null."""
    replace_file(path, _json(content).encode())


def environment() -> dict[str, Any]:
    """What a result depends on beside the code, and when it was made.

    >>> sorted(environment())[:3]
    ['cores', 'devices', 'driver']
    """
    return description() | {
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "python_executable": Path(sys.executable).name,
    }
