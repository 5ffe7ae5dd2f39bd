"""The flags of ``minijaxnet run``: the settings, and the experiment's own numbers, with its defaults."""

import ast
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from minijaxnet.cli.errors import UsageError
from minijaxnet.experiment import Experiment, Settings, number_options


@dataclasses.dataclass(frozen=True)
class RunFlags(Settings):
    """What ``minijaxnet run`` can be told, beside the experiment's own numbers."""

    runs: str = "runs"
    """The folder in which the run's own folder is made."""
    bench_seconds: float = 1.0
    """How long to time the step against optax's; 0 leaves it out."""


def parse(experiment: Experiment | None, file: str, arguments: Sequence[str]) -> tuple[RunFlags, dict, dict]:
    """The flags of the verb, and of the experiment's ``init`` and ``data``, with its defaults."""
    import tyro  # 80 ms: imported where used

    init = number_options(experiment.init) if experiment else {}
    data = {f"data_{name}": value for name, value in (number_options(experiment.data) if experiment else {}).items()}
    known = {field.name for field in dataclasses.fields(RunFlags)}
    if clash := known & set(init):
        raise UsageError(f"init: its number {clash.pop()!r} has the name of a flag of run; expected another name")
    own = [(name, type(value), dataclasses.field(default=value)) for name, value in (init | data).items()]
    flags_type = dataclasses.make_dataclass("Flags", own, bases=(RunFlags,), frozen=True, kw_only=True)
    defaults = dataclasses.asdict(experiment.defaults) if experiment else {}
    flags = tyro.cli(
        flags_type,
        prog=f"minijaxnet run {file}",
        description=_summary(file) if experiment else "Carry out the experiment of a file.",
        default=flags_type(**defaults),
        args=list(arguments),
    )
    values = dataclasses.asdict(flags)
    return (
        RunFlags(**{name: values[name] for name in known}),
        {name: values[name] for name in init},
        {name.removeprefix("data_"): values[name] for name in data},
    )


def _summary(file: str) -> str:
    docstring = ast.get_docstring(ast.parse(Path(file).read_text(encoding="utf-8")))
    return (docstring or "Carry out an experiment.").splitlines()[0]
