"""What a page is made from: the content of a run's folder, read once, and what its experiment adds to that."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minijaxnet._files import read_json
from minijaxnet._types import Params, PyTree
from minijaxnet.experiment import Experiment
from minijaxnet.run.folder import COMPARISON, ENVIRONMENT, RESULT, SWEPT, read_config, result_state, run_state
from minijaxnet.run.log import METRICS, read_rows


class Trained(NamedTuple):
    """The experiment of a run with its params and data, for pictures that need its code.

    Attributes:
        experiment: of the run.
        params: where the run ended, or its best ones.
        train: the training batch.
        test: the test batch.
        key: for an objective that draws random numbers; None for any other.
    """

    experiment: Experiment
    params: Params
    train: PyTree
    test: Any
    key: Any = None

    @property
    def loss(self) -> Callable[[Any, Any], Any]:
        """``loss(params, batch)``, with the key where the objective needs one."""
        if self.key is None:
            return self.experiment.objective
        return lambda params, batch: self.experiment.objective(params, batch, self.key)


class RunRecord(NamedTuple):
    """The content of a run's folder.

    Attributes:
        folder: of the run.
        state: running, done, interrupted, diverged or failed.
        config: its settings.
        environment: where it ran.
        result: how it ended; empty while it runs.
        comparison: of its step with others, as saved; empty where there is none.
        rows: what was logged.
        losses: of a sweep, where each descent ended; None of another run.
        axes: of a sweep, ``{name: values}``.
        log: what the run printed.
        trained: what pictures need the experiment's code for; None where it may not be run.
        notes: sentences for the page.
    """

    folder: Path
    state: str
    config: dict[str, Any]
    environment: dict[str, Any]
    result: dict[str, Any]
    comparison: dict[str, Any]
    rows: list[dict[str, Any]]
    losses: np.ndarray | None = None
    axes: Mapping[str, np.ndarray] = {}
    log: str = ""
    trained: Trained | None = None
    notes: Sequence[str] = ()


def read_record(folder: Path, *, ended: bool = False) -> RunRecord:
    """Read the folder of a run, as far as it is complete.

    Args:
        folder: of the run.
        ended: whether the run has ended although its folder is still locked, by the caller.

    Raises:
        ValueError: it is not the folder of a run.
    """
    config = read_config(folder)
    swept = {}
    if (folder / SWEPT).is_file():
        with np.load(folder / SWEPT) as file:
            swept = {name: file[name] for name in file.files}
    log = folder / "log.txt"
    return RunRecord(
        folder,
        result_state(folder) if ended else run_state(folder),
        config,
        read_json(folder / ENVIRONMENT),
        read_json(folder / RESULT),
        read_json(folder / COMPARISON),
        read_rows(folder / METRICS),
        swept.get("loss"),
        {name.removeprefix("axis_"): values for name, values in swept.items() if name.startswith("axis_")},
        log.read_text(encoding="utf-8", errors="replace") if log.is_file() else "",
    )


def command_of(config: Mapping[str, Any]) -> str:
    """The command that repeats a run: with all flags that differ from the defaults, where the config has those.

    >>> flags = {"steps": 3, "seed": 0}
    >>> command_of({"verb": "run", "file": "a.py", "flags": flags, "defaults": {"flags": {"steps": 5, "seed": 0}}})
    'minijaxnet run a.py --steps 3'
    """
    flags, defaults = [], config.get("defaults", {})
    for part, prefix in (("flags", ""), ("init", ""), ("optimizer", ""), ("data", "data-")):
        usual = defaults.get(part, {})
        for name, value in config.get(part, {}).items():
            if value != usual[name] if name in usual else value not in (None, ""):
                flags.append(_flag(prefix + name.replace("_", "-"), value))
    return " ".join(["minijaxnet", config["verb"], shlex.quote(str(config["file"])), *flags])


def _flag(name: str, value: Any) -> str:
    """A setting as it is typed.

    >>> _flag("seed", 0), _flag("report", False), _flag("runs", "my runs")
    ('--seed 0', '--no-report', "--runs 'my runs'")
    """
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name} {shlex.quote(str(value))}"
