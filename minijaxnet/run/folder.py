"""The run folder: its config, code, environment and result on disk."""

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
# Weights: the last ones, and with keep_best the best ones.
PARAMS, BEST = "params.safetensors", "best.safetensors"


def create_run_folder(parent: str | Path, name: str) -> Path:
    """Make a new folder ``parent/name-YYYYMMDD-HHMMSS`` (UTC), with a number if that name exists.

    Args:
        parent: made if it does not exist.
        name: of the experiment.

    Returns:
        The path of the folder.
    """
    stem = Path(parent) / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    for attempt in range(1, 1000):
        folder = stem if attempt == 1 else stem.with_name(f"{stem.name}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{stem}: got 999 runs within one second; expected fewer")


def write_beginning(folder: Path, config: dict[str, Any], file: str | Path, files: Sequence[str | Path] = ()) -> None:
    """Write the files at the start of a run: ``config.json``, the code and the environment.

    The code is stored below ``code/``, with a copy of the config, so that later changes can be shown.
    """
    texts = code.sources(file, files)
    config = config | {"code_sha256": code.digest(texts)}
    code.keep(folder / CODE, texts | {CONFIG: _json(config)})
    write_json(folder / CONFIG, config)
    write_json(folder / ENVIRONMENT, environment() | {"mark": own_mark(folder)})


def change_settings(folder: Path, flags: dict[str, Any], at_step: int) -> None:
    """Change the flags of a run from a step on; the config also keeps the old ones."""
    config, is_mine = read_config(folder), own_mark(folder) == read_json(folder / ENVIRONMENT).get("mark")
    change = {name: [config["flags"].get(name), value] for name, value in flags.items()}
    config["flags"] |= flags
    config["changes"] = [*config.get("changes", []), {"at_step": at_step} | change]
    (folder / RESULT).unlink(missing_ok=True)  # the run is no longer done
    text, then = _json(config), read_json(folder / ENVIRONMENT)
    if is_mine:  # until all is written both marks are valid, in case the process is killed
        changed = code.mark(code.digest(code.kept(folder / CODE) | {CONFIG: text}))
        write_json(folder / ENVIRONMENT, then | {"mark": f"{then['mark']} {changed}"})
    replace_file(folder / CODE / CONFIG, text.encode())
    finish_change(folder)
    write_json(folder / CONFIG, config)


def finish_change(folder: Path) -> None:
    """Complete a change of settings that was killed, if this user has started the run."""
    then = read_json(folder / ENVIRONMENT)
    marks = str(then.get("mark", "")).split()
    if len(marks) > 1 and own_mark(folder) in marks:
        replace_file(folder / CONFIG, code.kept(folder / CODE)[CONFIG].encode())
        write_json(folder / ENVIRONMENT, then | {"mark": own_mark(folder)})


def changes(folder: Path, file: str | Path, files: Sequence[str | Path] = ()) -> str:
    """The changes of the config and the code since the start of a run, as a diff; "" if there are none."""
    then = code.kept(folder / CODE)
    now = code.present(file, then) | code.sources(file, files)
    return code.difference(then, now | {CONFIG: (folder / CONFIG).read_text(encoding="utf-8")})


def is_own(folder: Path, file: str | Path) -> bool:
    """Whether this user has started a run, with the code that is stored with it, from a file of this name."""
    mark, marked = own_mark(folder), str(read_json(folder / ENVIRONMENT).get("mark", ""))
    same_name = Path(file).name in code.kept(folder / CODE)
    return bool(mark) and same_name and hmac.compare_digest(mark.encode(), marked.encode())


def changes_before_loading(folder: Path, file: str | Path) -> str:
    """As ``changes``, for an experiment that is not loaded; none of its code is run."""
    then = code.kept(folder / CODE)
    texts = {name: text for name, text in then.items() if not name.startswith(code.FILES)}
    return code.difference(texts, code.present(file, texts) | {CONFIG: (folder / CONFIG).read_text(encoding="utf-8")})


def own_mark(folder: Path) -> str:
    """A signature of this user for the code and the config that are stored with a run."""
    return code.mark(code.digest(code.kept(folder / CODE)))


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a run.

    Raises:
        ValueError: this is not the folder of a run.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder}: there is no {CONFIG}; expected the folder of a run")
    config = read_json(path)
    parts = [config.get(name) for name in ("flags", "init", "data")]
    if config.get("verb") not in ("run", "sweep") or not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{path}: got other content; expected the settings of a run")
    return config


def run_state(folder: Path) -> str:
    """The state of a run: running, done, interrupted (also if it was killed), diverged or failed."""
    if owner(folder) is not None:
        return "running"
    return result_state(folder)


def result_state(folder: Path) -> str:
    """The state of a run that is not running."""
    result = read_json(folder / RESULT)
    if not result:
        return "interrupted"
    states = {"DIVERGED": "diverged", "INTERRUPTED": "interrupted", "FAILED": "failed"}
    check = result.get("gradient_check")
    done = "wrong gradient" if isinstance(check, dict) and check.get("ok") is False else "done"
    return states.get(str(result.get("status")), done)


def _json(content: Any) -> str:
    return json.dumps(plain(content), indent=2) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file; numbers that JSON does not have (NaN, infinity) become null."""
    replace_file(path, _json(content).encode())


def environment() -> dict[str, Any]:
    """The machine and software that a result depends on, and the time.

    >>> sorted(environment())[:3]
    ['cores', 'devices', 'driver']
    """
    return description() | {
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "python_executable": Path(sys.executable).name,
    }
