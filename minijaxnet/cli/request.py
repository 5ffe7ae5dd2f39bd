"""A command as a request: its experiment, the flags of its verb, and the numbers of the experiment's own functions."""

import ast
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from minijaxnet._checks import check_count
from minijaxnet.cli.errors import UsageError
from minijaxnet.cli.flags import PlaceFlags, SweepFlags, place_flags_of
from minijaxnet.cli.launcher import join, launch_if_needed
from minijaxnet.cli.parsing import command_line, split_path
from minijaxnet.experiment import Experiment, Settings, load_experiment, number_options, optimizer_options

_RANGE = "A RANGE, as for --learning-rate."
# The least that a whole number may be.
_LEAST = {"steps": 0, "log_every": 1, "checkpoint_every": 1, "batch_size": 1, "block": 1, "seeds": 1}


class Request(NamedTuple):
    """What a verb is to do with an experiment.

    Attributes:
        verb: its name.
        file: of the experiment.
        experiment: as the file defines it.
        flags: of the verb.
        init: the numbers for the experiment's ``init``; for a sweep texts, each a range.
        data: the numbers for its ``data``.
        optimizer: the numbers for its own optimizer; for a sweep texts, each a range.
        changed: the flags that were changed when the run was resumed, and that its rows show.
    """

    verb: str
    file: str
    experiment: Experiment
    flags: Any
    init: dict[str, Any]
    data: dict[str, Any]
    optimizer: dict[str, Any]
    changed: tuple[str, ...] = ()


def read_request(verb: str, flags_class: type[Any], arguments: Sequence[str], description: str = "") -> Request | int:
    """The request of a command, or the exit code of the processes that were launched for it.

    Devices are chosen before the experiment is loaded, since that may ask JAX for one.
    """
    file, rest = split_path(verb, arguments, "the file of an experiment")
    place = place_flags_of(rest)
    if not issubclass(flags_class, PlaceFlags):
        place = PlaceFlags(place.devices, deterministic=place.deterministic)
    if file is not None and (code := launch_if_needed([verb, *arguments], place)) is not None:
        return code
    join(place)
    experiment = None if file is None else load_experiment(file)
    parsed = parse(verb, flags_class, file or "FILE", experiment, rest, description)
    assert file is not None and experiment is not None, "without a file only help is printed"
    return Request(verb, file, experiment, *parsed)


def parse(
    verb: str,
    flags_class: type[Any],
    file: str,
    experiment: Experiment | None,
    arguments: Sequence[str],
    description: str = "",
) -> tuple[Any, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The flags of a verb, and the numbers of the experiment's ``init``, ``data`` and optimizer."""
    import tyro  # 80 ms: imported where used

    defaults = defaults_of(flags_class, experiment)
    flags, init, optimizer = defaults["flags"], defaults["init"], defaults["optimizer"]
    data = {f"data_{name}": value for name, value in defaults["data"].items()}
    taken = flags | data
    for of, own in (("init", init), ("optimizer", optimizer)):
        if clash := sorted(taken.keys() & own.keys()):
            raise UsageError(f"{of}: its number {clash[0]!r} has the name of a flag of {verb}; expected another name")
        taken |= own
    own, sweeps = [], issubclass(flags_class, SweepFlags)
    for part, about in ((init, _RANGE if sweeps else None), (data, None), (optimizer, _RANGE if sweeps else None)):
        for name, value in part.items():
            annotation = Annotated[type(value), tyro.conf.arg(help=about)]
            own.append((name, annotation, dataclasses.field(default=value)))
    flags_type = dataclasses.make_dataclass("Flags", own, bases=(flags_class,), frozen=True, kw_only=True)
    parsed = command_line(
        flags_type,
        prog=f"minijaxnet {verb} {file}",
        description=_summary(file) if experiment else description or f"{verb.capitalize()} the experiment of a file.",
        default=flags_type(**flags),
        args=list(arguments),
    )
    values = dataclasses.asdict(parsed)
    _check_numbers(values)
    return (
        flags_class(**{name: values[name] for name in flags}),
        {name: values[name] for name in init},
        {name.removeprefix("data_"): values[name] for name in data},
        {name: values[name] for name in optimizer},
    )


def defaults_of(flags_class: type[Any], experiment: Experiment | None) -> dict[str, dict[str, Any]]:
    """The defaults of a verb's ``flags`` and of the numbers of ``init``, ``data`` and ``optimizer``."""
    flags: dict[str, Any] = dataclasses.asdict(flags_class())
    if experiment is None:
        return {"flags": flags, "init": {}, "data": {}, "optimizer": {}}
    init, data = number_options(experiment.init), number_options(experiment.data)
    optimizer = optimizer_options(experiment.optimizer)
    settings = dataclasses.asdict(experiment.defaults)
    if ranges := issubclass(flags_class, SweepFlags):
        settings |= {name: str(settings[name] or "all") for name in ("learning_rate", "batch_size")}
        init, optimizer = ({name: str(value) for name, value in part.items()} for part in (init, optimizer))
    if ranges or issubclass(flags_class, Settings):
        flags |= {name: value for name, value in settings.items() if name in flags}
    return {"flags": flags, "init": dict(init), "data": dict(data), "optimizer": dict(optimizer)}


def _check_numbers(values: dict[str, Any]) -> None:
    """Refuse numbers that no run can use, before anything is printed."""
    for name, least in _LEAST.items():
        if isinstance(value := values.get(name), int):
            check_count(name, value, least=least)
    for name in ("bench_seconds", "checkpoint_seconds", "until_flat"):
        if not 0 <= values.get(name, 0) < float("inf"):
            raise ValueError(f"{name}: got {values[name]}; expected a finite number, at least 0")
    if not 0 < values.get("seconds", 1) < float("inf"):
        raise ValueError(f"seconds: got {values['seconds']}; expected a positive number")
    if empty := [name for name in ("runs", "save", "since") if values.get(name) == ""]:
        raise ValueError(f"{empty[0]}: got ''; expected a path")


def _summary(file: str) -> str:
    docstring = ast.get_docstring(ast.parse(Path(file).read_text(encoding="utf-8")))
    return (docstring or "Run an experiment.").splitlines()[0]
