"""``minijaxnet resume``: go on with a run where it stopped, to the numbers that it would have come to."""

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from minijaxnet._files import plain, read_json
from minijaxnet._machine import jax_settings
from minijaxnet._tables import printable
from minijaxnet.batches import check_steps
from minijaxnet.cli.errors import UsageError
from minijaxnet.cli.execute import execute
from minijaxnet.cli.flags import PlaceFlags, place_flags_of
from minijaxnet.cli.optimizers import own_arguments
from minijaxnet.cli.parsing import command_line
from minijaxnet.cli.placement import join, launched
from minijaxnet.cli.request import Request, changed_flags, request_of_run
from minijaxnet.cli.sweep import execute_sweep
from minijaxnet.load import OtherCode
from minijaxnet.parallel.processes import broadcast, is_first
from minijaxnet.run.checkpoint_folder import checkpoints
from minijaxnet.run.folder import change_settings, changes, environment, finish_change, read_config, run_state
from minijaxnet.run.keeper import CHECKPOINTS
from minijaxnet.run.log import METRICS, read_rows

# What may be another than before, and is then written into the run's config and, but for steps and patience, its rows.
CHANGEABLE = ("steps", "learning_rate", "batch_size", "patience")


@dataclasses.dataclass(frozen=True)
class ResumeFlags(PlaceFlags):
    """The flags of ``minijaxnet resume``; all other settings stay those of the run."""

    force: bool = False
    """Go on though the code or the config has changed, or the run is done."""
    trust: bool = False
    """Run the experiment's code though you did not start the run on this machine."""
    steps: int | None = None
    """Take this many steps in all, more than before; a run that is done goes on, too."""
    learning_rate: float | None = None
    """From here on use this learning rate."""
    batch_size: int | None = None
    """From here on use this many points a step."""
    patience: int | None = None
    """Stop when this many lines of metrics bring nothing better."""


def main(arguments: Sequence[str]) -> int:
    """Go on with the run of a folder."""
    folders = list(itertools.takewhile(lambda argument: not argument.startswith("-"), arguments))
    helped = {"-h", "--help"} & set(arguments)
    if len(folders) != 1 and not helped:
        raise UsageError(f"resume: got {' '.join(arguments) or 'nothing'}; expected the folder of one run first")
    folder = Path(folders[0] if folders else "RUN")
    if not helped and folder.is_dir():
        finish_change(folder)
    config = {"flags": {}} if helped else read_config(folder)
    before = {
        name: config["flags"][name] for name in ("devices", "processes", "deterministic") if name in config["flags"]
    }
    if place_flags_of(arguments).coordinator is not None:  # they are started one by one
        before.pop("processes", None)
    flags = command_line(
        ResumeFlags,
        prog=f"minijaxnet resume {folder}",
        description="Go on with a run where its newest checkpoint is.",
        default=ResumeFlags(**before),
        args=list(arguments[len(folders) :]),
    )
    changed = {name: value for name in CHANGEABLE if (value := getattr(flags, name)) is not None}
    if run_state(folder) == "done" and not flags.force and not changed:
        hint = "--steps goes on for more, --force carries its end out again"
        raise UsageError(f"{folder}: this run is done; expected one that stopped ({hint})")
    if config["verb"] == "sweep" and changed:
        raise UsageError(f"{folder}: got a sweep and --{next(iter(changed))}; expected the run of one descent")
    if (code := launched("resume", arguments, flags)) is not None:
        return code
    join(flags)
    request = request_of_run(folder, config, trust=flags.trust, changed=flags.force)
    known = {field.name for field in dataclasses.fields(request.flags)} - {"processes", *CHANGEABLE}
    chosen = {name: value for name, value in dataclasses.asdict(flags).items() if name in known}
    if changed and is_first():
        changed = _checked_change(folder, request, changed)
    changed = broadcast(changed)
    names = changed_flags({"changes": [*config.get("changes", []), changed]})
    request = request._replace(flags=dataclasses.replace(request.flags, **chosen, **changed), changed=names)
    return go_on(folder, request, force=flags.force, changed=changed)


def _steps_taken(folder: Path) -> int:
    kept = checkpoints(folder / CHECKPOINTS) if (folder / CHECKPOINTS).is_dir() else []
    return kept[0][0] if kept else 0


def _checked_change(folder: Path, request: Request, changed: dict[str, Any]) -> dict[str, Any]:
    """The flags that are to be others from here on."""
    taken = _steps_taken(folder)
    if (steps := check_steps(changed.get("steps", request.flags.steps))) < taken:
        raise UsageError(f"steps: got {steps:,}; expected more than the {taken:,} that the run has taken")
    if (patience := changed.get("patience")) is not None and (request.flags.keep_best is None or patience < 1):
        got = f"got {patience}" if patience < 1 else f"got {patience}, and a run without --keep-best"
        raise UsageError(f"patience: {got}; expected at least 1, and a run that keeps the best of a number")
    if steps != request.flags.steps and "steps" in own_arguments(request):
        print(f"its own optimizer is made anew, for {steps:,} steps in place of {request.flags.steps:,}", flush=True)
    rows = read_rows(folder / METRICS)
    if request.flags.log_every is None and len(rows) > 2:  # the lines that are there stay where they are
        changed = changed | {"log_every": rows[1]["step"] - rows[0]["step"]}
    return changed


def go_on(folder: Path, request: Request, *, force: bool = False, changed: dict[str, Any] | None = None) -> int:
    """Go on with what was asked for, in the folder that holds its beginning; the exit code.

    Of several processes the first one alone looks into the folder. What is changed goes into the run's config, once
    all that can be checked has been.

    Raises:
        UsageError: code, config or data have changed since, and it is not forced.
    """
    how = f"minijaxnet resume {folder} --force goes on all the same"
    if is_first():
        if (difference := changes(folder, request.file, request.experiment.files)) and not force:
            raise OtherCode(folder, difference)
        if (others := _other_settings(folder)) and not force:
            raise UsageError(f"{folder}: {'; '.join(others)}: the numbers would be others ({how})")
        for name, then, now in _other_surroundings(folder):
            text = f"warning: {name} was {then}, now it is {now}: bits may differ"
            print(printable(text), file=sys.stderr)

    def open_folder(data_sha256: str) -> contextlib.AbstractContextManager[Path]:
        then, now = str(read_config(folder).get("data_sha256")).split(), data_sha256.split()
        # Shares of another number of processes are others, though all of them together may be the same.
        if then != now and len(then) == len(now) and not force:
            raise UsageError(f"{folder}: got other data than it was started with; expected the same ({how})")
        if changed:
            change_settings(folder, changed, _steps_taken(folder))
        return contextlib.nullcontext(folder)

    if request.verb == "sweep":
        return execute_sweep(request, open_folder)
    return execute(request, open_folder, resume=True)


def _other_settings(folder: Path) -> list[str]:
    """Settings of JAX that are others now, by which it computes other numbers."""
    then, now = read_json(folder / "environment.json").get("settings"), plain(jax_settings())
    if not isinstance(then, dict):  # a run of before they were kept
        return []
    return [
        f"{name}: got {now[name]!r}; expected {then[name]!r}" for name in now if then.get(name, now[name]) != now[name]
    ]


def _other_surroundings(folder: Path) -> Iterator[tuple[str, Any, Any]]:
    """What else than code and config bits may depend on, and has changed."""
    then, now = read_json(folder / "environment.json"), environment()
    versions = then.get("versions")
    for name, version in now["versions"].items():
        if isinstance(versions, dict) and versions.get(name) != version:
            yield name, versions.get(name), version
    for name in ("platform", "devices", "processor", "processor_count", "xla_flags"):
        if then and then.get(name, now[name]) != now[name]:
            yield name, then.get(name), now[name]
