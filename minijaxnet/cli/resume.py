"""``minijaxnet resume``: resume a run where it stopped, to the bits of a run that never stopped."""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minijaxnet._files import plain, read_json
from minijaxnet._tables import printable
from minijaxnet.batches import check_steps
from minijaxnet.cli.errors import UsageError
from minijaxnet.cli.execute import execute
from minijaxnet.cli.flags import PlaceFlags, place_flags_of
from minijaxnet.cli.launcher import join, launch_if_needed
from minijaxnet.cli.parsing import command_line, split_path
from minijaxnet.cli.request import Request
from minijaxnet.cli.run_folder import changed_flags, request_of_run
from minijaxnet.cli.sweep import execute_sweep
from minijaxnet.experiment import OWN
from minijaxnet.load import OtherCode
from minijaxnet.parallel.processes import broadcast, is_first
from minijaxnet.run.checkpoint_folder import checkpoints
from minijaxnet.run.folder import (
    ENVIRONMENT,
    change_settings,
    changes,
    environment,
    finish_change,
    read_config,
    run_state,
)
from minijaxnet.run.keeper import CHECKPOINTS
from minijaxnet.run.log import METRICS, read_rows

# The flags that may change: the run's config has each change, and its rows have those of rate and batch size.
CHANGEABLE = ("steps", "learning_rate", "batch_size", "patience")
# The parts of the environment that bits may depend on, beside versions.
_SURROUNDINGS = ("platform", "devices", "processor", "processor_count", "xla_flags")


@dataclasses.dataclass(frozen=True)
class ResumeFlags(PlaceFlags):
    """The flags of ``minijaxnet resume``; all other settings stay those of the run."""

    force: bool = False
    """Resume though the code, the config or the data have changed, or the run is done."""
    trust: bool = False
    """Run the experiment's code though you did not start the run on this machine."""
    steps: int | None = None
    """Take this many steps in all, more than before; this also resumes a run that is done."""
    learning_rate: float | None = None
    """From here on use this learning rate."""
    batch_size: int | None = None
    """From here on use this many points a step."""
    patience: int | None = None
    """Stop when this many lines of metrics bring nothing better."""


def main(arguments: Sequence[str]) -> int:
    """Resume the run of a folder."""
    path, rest = split_path("resume", arguments, "the folder of one run")
    folder = Path(path or "RUN")
    if folder.is_dir():
        finish_change(folder)
    config: dict[str, Any] = {"flags": {}} if path is None else read_config(folder)
    before = {
        name: config["flags"][name] for name in ("devices", "processes", "deterministic") if name in config["flags"]
    }
    if place_flags_of(rest).coordinator is not None:  # the processes are started one by one
        before.pop("processes", None)
    flags = command_line(
        ResumeFlags,
        prog=f"minijaxnet resume {folder}",
        description="Resume a run from its newest checkpoint.",
        default=ResumeFlags(**before),
        args=list(rest),
    )
    changed = {name: value for name in CHANGEABLE if (value := getattr(flags, name)) is not None}
    if run_state(folder) == "done" and not flags.force and not changed:
        hint = "--steps takes more steps, --force repeats its end"
        raise UsageError(f"{folder}: this run is done; expected one that stopped ({hint})")
    if config["verb"] == "sweep" and changed:
        raise UsageError(f"{folder}: got a sweep and --{next(iter(changed))}; expected the run of one descent")
    if (code := launch_if_needed(["resume", *arguments], flags)) is not None:
        return code
    join(flags)
    request = request_of_run(folder, config, trust=flags.trust, changed=flags.force)
    if changed and is_first():
        changed = _checked_change(folder, request, changed)
    changed = broadcast(changed)
    place = {field.name: getattr(flags, field.name) for field in dataclasses.fields(PlaceFlags)}
    del place["processes"]
    in_rows = changed_flags({"changes": [*config.get("changes", []), changed]})
    request = request._replace(flags=dataclasses.replace(request.flags, **place, **changed), changed=in_rows)
    return resume_run(folder, request, force=flags.force, changed=changed)


def _checked_change(folder: Path, request: Request, changed: dict[str, Any]) -> dict[str, Any]:
    """The changed flags; with ``log_every``, so that the rows that are there keep their distance."""
    taken = _steps_taken(folder)
    if (steps := check_steps(changed.get("steps", request.flags.steps))) < taken:
        raise UsageError(f"steps: got {steps:,}; expected more than the {taken:,} that the run has taken")
    if (patience := changed.get("patience")) is not None and (request.flags.keep_best is None or patience < 1):
        got = f"got {patience}" if patience < 1 else f"got {patience}, and a run without --keep-best"
        raise UsageError(f"patience: {got}; expected at least 1, and a run that keeps the best of a number")
    if steps != request.flags.steps and request.flags.optimizer == OWN and callable(request.experiment.optimizer):
        print(f"its own optimizer is made anew, for {steps:,} steps in place of {request.flags.steps:,}", flush=True)
    rows = read_rows(folder / METRICS)
    if request.flags.log_every is None and len(rows) > 2:
        changed = changed | {"log_every": rows[1]["step"] - rows[0]["step"]}
    return changed


def _steps_taken(folder: Path) -> int:
    kept = checkpoints(folder / CHECKPOINTS) if (folder / CHECKPOINTS).is_dir() else []
    return kept[0][0] if kept else 0


def resume_run(folder: Path, request: Request, *, force: bool = False, changed: dict[str, Any] | None = None) -> int:
    """Resume a run in its folder; the exit code.

    Of several processes only the first one reads the folder. Changed flags are written into the run's config once all
    that can be checked has been.

    Raises:
        UsageError: code, config, data or settings of JAX have changed since, and it is not forced.
    """
    how = f"minijaxnet resume {folder} --force goes on all the same"
    if is_first():
        _compare_with_start(folder, request, how, force=force)

    def open_folder(data_sha256: str) -> contextlib.AbstractContextManager[Path]:
        then, now = str(read_config(folder).get("data_sha256")).split(), data_sha256.split()
        # Shares of another number of processes differ, though all of them may be the same data.
        if then != now and len(then) == len(now) and not force:
            raise UsageError(f"{folder}: got other data than it was started with; expected the same ({how})")
        if changed:
            change_settings(folder, changed, _steps_taken(folder))
        return contextlib.nullcontext(folder)

    if request.verb == "sweep":
        return execute_sweep(request, open_folder)
    return execute(request, open_folder, resume=True)


def _compare_with_start(folder: Path, request: Request, how: str, *, force: bool) -> None:
    """Refuse code and settings of JAX that have changed since the start, and warn of another machine or version."""
    then, now = read_json(folder / ENVIRONMENT), plain(environment())
    if (difference := changes(folder, request.file, request.experiment.files)) and not force:
        raise OtherCode(folder, difference)
    if (others := _changed(then.get("settings"), now["settings"])) and not force:
        got = "; ".join(f"{name}: got {value!r}; expected {before!r}" for name, before, value in others)
        raise UsageError(f"{folder}: {got}: it would compute other numbers ({how})")
    surroundings = {name: now[name] for name in _SURROUNDINGS}
    for name, before, value in _changed(then.get("versions"), now["versions"]) + _changed(then, surroundings):
        print(printable(f"warning: {name} was {before}, now it is {value}: bits may differ"), file=sys.stderr)


def _changed(then: Any, now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """The names whose values have changed, with both values; none if nothing is recorded."""
    if not isinstance(then, dict):
        return []
    return [(name, then[name], value) for name, value in now.items() if name in then and then[name] != value]
