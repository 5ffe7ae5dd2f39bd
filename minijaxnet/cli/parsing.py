"""The words of a command as settings: the flags of its verb, and the experiment's own numbers, with its defaults."""

import ast
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from minijaxnet._checks import check_count
from minijaxnet.cli.errors import UsageError
from minijaxnet.experiment import Experiment, Settings, number_options, optimizer_options

_DESCRIPTIONS = {
    "check": "Check the gradient by hand of the experiment of a file, and the derivative rules within its loss; or "
    "what a small file defines: args with loss and gradient, or args with fun; or the derivative rules of a function "
    'by its name, as in: minijaxnet check my_package.module:function --args "jnp.ones(3), 2.0"',
}

Flags = TypeVar("Flags")

RANGE = "A RANGE, as for --learning-rate."
# The least that a whole number may be, where there is one.
_LEAST = {"steps": 0, "log_every": 1, "checkpoint_every": 1, "batch_size": 1, "block": 1, "seeds": 1}


def options_in(text: str) -> dict[str, str]:
    """``name=range`` pairs, with blanks between them.

    >>> options_in("b1=0.8 b2=0.9:0.99:3")
    {'b1': '0.8', 'b2': '0.9:0.99:3'}
    """
    pairs = [part.partition("=") for part in text.split()]
    if wrong := [name for name, equals, value in pairs if not (name.isidentifier() and equals and value)]:
        raise UsageError(f"optimizer_options: got {wrong[0]!r}; expected name=number, such as momentum=0.9")
    return {name: value for name, _, value in pairs}


def numbers_in(text: str) -> dict[str, int | float | bool]:
    """``name=number`` pairs, with blanks between them.

    >>> numbers_in("b1=0.8 nesterov=True")
    {'b1': 0.8, 'nesterov': True}
    """
    found = {}
    for name, value in options_in(text).items():
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = None
        if not isinstance(found[name], int | float):
            raise UsageError(f"optimizer_options: {name}: got {value!r}; expected a number, such as 0.9")
    return found


def split_file(verb: str, arguments: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """The file, which comes first, and the rest; no file where only help is asked for."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    if arguments and not {"-h", "--help"} & set(arguments):
        raise UsageError(f"{verb}: got {arguments[0]}; expected the file of an experiment first")
    return None, ["--help"]


def command_line(flags_type: type[Flags], **options: Any) -> Flags:
    """``tyro.cli``, without colours where ``NO_COLOR`` is set."""
    import tyro  # 80 ms: imported where used

    if os.environ.get("NO_COLOR"):
        tyro._experimental_options["ansi_codes"] = False
    return tyro.cli(flags_type, **options)


class Parsed(NamedTuple):
    """What was asked for on the command line.

    Attributes:
        flags: of the verb.
        init: the numbers of the experiment's ``init``.
        data: those of its ``data``.
        optimizer: those of its own optimizer.
    """

    flags: Any
    init: dict[str, Any]
    data: dict[str, Any]
    optimizer: dict[str, Any]


def parse(
    flags_class: type[Any],
    verb: str,
    experiment: Experiment | None,
    file: str,
    arguments: Sequence[str],
    *,
    ranges: bool = False,
) -> Parsed:
    """The flags of a verb, and the numbers of the experiment's own functions, with its defaults.

    With ``ranges``, numbers of ``init`` and of the optimizer are texts, for what they stand for is the verb's to say.
    """
    import tyro

    defaults, *parts = defaults_of(flags_class, experiment, ranges=ranges).values()
    init, data, optimizer = (
        {f"{prefix}{name}": value for name, value in part.items()}
        for prefix, part in zip(("", "data_", ""), parts, strict=True)
    )
    known = set(defaults)
    for of, own in (("init", init), ("optimizer", optimizer)):
        if clash := (known | set(data) | (set(init) if of != "init" else set())) & set(own):
            raise UsageError(
                f"{of}: its number {clash.pop()!r} has the name of a flag of {verb}; expected another name"
            )
    about = {name: RANGE for name in init | optimizer} if ranges else {}
    own = [
        (name, Annotated[type(value), tyro.conf.arg(help=about.get(name))], dataclasses.field(default=value))
        for name, value in (init | data | optimizer).items()
    ]
    flags_type = dataclasses.make_dataclass("Flags", own, bases=(flags_class,), frozen=True, kw_only=True)
    flags = command_line(
        flags_type,
        prog=f"minijaxnet {verb} {file}",
        description=_summary(file)
        if experiment
        else _DESCRIPTIONS.get(verb, f"{verb.capitalize()} the experiment of a file."),
        default=flags_type(**defaults),
        args=list(arguments),
    )
    values = dataclasses.asdict(flags)
    _check_numbers(values)
    return Parsed(
        flags_class(**{name: values[name] for name in known}),
        {name: values[name] for name in init},
        {name.removeprefix("data_"): values[name] for name in data},
        {name: values[name] for name in optimizer},
    )


def defaults_of(
    flags_class: type[Any], experiment: Experiment | None, *, ranges: bool = False
) -> dict[str, dict[str, Any]]:
    """What a verb's ``flags``, and the numbers of ``init``, ``data`` and ``optimizer`` are where nothing is said."""
    flags: dict[str, Any] = dataclasses.asdict(flags_class())
    if experiment is None:
        return {"flags": flags, "init": {}, "data": {}, "optimizer": {}}
    init, data = number_options(experiment.init), number_options(experiment.data)
    optimizer = optimizer_options(experiment.optimizer)
    settings = dataclasses.asdict(experiment.defaults)
    if ranges:
        settings |= {name: str(settings[name] or "all") for name in ("learning_rate", "batch_size")}
        init, optimizer = ({name: str(value) for name, value in part.items()} for part in (init, optimizer))
    if ranges or issubclass(flags_class, Settings):
        flags |= {name: value for name, value in settings.items() if name in flags}
    return {"flags": flags, "init": dict(init), "data": dict(data), "optimizer": dict(optimizer)}


def _check_numbers(values: dict[str, Any]) -> None:
    """Refuse numbers that no run can use, before anything is announced."""
    for name, least in _LEAST.items():
        if isinstance(value := values.get(name), int):
            check_count(name, value, least=least)
    for name in ("bench_seconds", "checkpoint_seconds"):
        if not 0 <= values.get(name, 0) < float("inf"):
            raise ValueError(f"{name}: got {values[name]}; expected a finite number, at least 0")
    if not values.get("until_flat", 0) >= 0:
        raise ValueError(f"until_flat: got {values['until_flat']}; expected a gradient norm, at least 0")
    if not 0 < values.get("seconds", 1) < float("inf"):
        raise ValueError(f"seconds: got {values['seconds']}; expected a positive number")
    if empty := [name for name in ("runs", "save", "since") if values.get(name) == ""]:
        raise ValueError(f"{empty[0]}: got ''; expected a path")


def _summary(file: str) -> str:
    docstring = ast.get_docstring(ast.parse(Path(file).read_text(encoding="utf-8")))
    return (docstring or "Run an experiment.").splitlines()[0]
