"""``minijaxnet resume``: go on with a run where it stopped, to the numbers that it would have come to."""

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minijaxnet.cli.carry_out import Asked, carry_out
from minijaxnet.cli.errors import UsageError
from minijaxnet.cli.flags import RunFlags, SweepFlags
from minijaxnet.cli.sweep import Asked as SweepAsked
from minijaxnet.cli.sweep import carry_out_sweep
from minijaxnet.experiment import load_experiment
from minijaxnet.run.folder import CONFIG, changes, environment, run_state

_USAGE = (
    "usage: minijaxnet resume RUN [--force]\n\nGo on with a run where its newest checkpoint is.\n\n"
    "  --force  even if the code or the config has changed since, or it is done"
)


def main(arguments: Sequence[str]) -> int:
    """Go on with the run of a folder."""
    if {"-h", "--help"} & set(arguments):
        print(_USAGE)
        return 0
    force = "--force" in arguments
    named = [argument for argument in arguments if argument != "--force"]
    if len(named) != 1 or named[0].startswith("-"):
        raise UsageError(f"resume: got {' '.join(arguments) or 'nothing'}; expected the folder of one run, and --force")
    folder = Path(named[0])
    config = read_config(folder)
    if run_state(folder) == "done" and not force:
        raise UsageError(f"{folder}: this run is done; expected one that stopped (--force carries its end out again)")
    file = _file_of(config, folder)
    experiment = load_experiment(file)
    if (changed := changes(folder, file)) and not force:
        raise UsageError(
            f"{folder}: got other code or another config than it was started with; expected the same "
            f"(--force goes on all the same)\n{changed}"
        )
    _warn_of_other_versions(folder)
    try:
        flags = (SweepFlags if config["verb"] == "sweep" else RunFlags)(**config["flags"])
        rest = config["init"], config["data"]
    except (TypeError, KeyError) as error:
        raise UsageError(f"{folder / CONFIG}: got {error}; expected the settings of a run") from None

    def open_folder() -> contextlib.AbstractContextManager[Path]:
        return contextlib.nullcontext(folder)

    if isinstance(flags, SweepFlags):
        return carry_out_sweep(SweepAsked(experiment, flags, *rest), open_folder)
    return carry_out(Asked(experiment, flags, *rest), open_folder, resume=True)


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a run.

    Raises:
        UsageError: the folder is none of a run.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{folder}: there is no {CONFIG}; expected the folder of a run") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder / CONFIG}: {error}; expected the settings of a run") from None
    if not isinstance(config, dict) or config.get("verb") not in ("run", "sweep"):
        raise UsageError(f"{folder / CONFIG}: expected the settings of a run")
    return config


def _file_of(config: dict[str, Any], folder: Path) -> str:
    file = str(config.get("file"))
    if not Path(file).is_file():
        raise UsageError(f"{folder}: its experiment {file} is not there; expected to be called where it was started")
    return file


def _warn_of_other_versions(folder: Path) -> None:
    try:
        then = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["versions"]
    except (OSError, ValueError, KeyError):
        return
    now = environment()["versions"]
    for name in now:
        if then.get(name) != now[name]:
            print(f"warning: {name} was {then.get(name)}, now it is {now[name]}: bits may differ", file=sys.stderr)
