"""Several runs on one page: what they were asked for, what came out, and their losses side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minijaxnet._tables import significant
from minijaxnet.report.axes import as_written, legend_above, scale
from minijaxnet.report.page import Page, Section, Table, Text, Verdict
from minijaxnet.report.sections import Seen, Wanted, illustrated
from minijaxnet.report.story import command_of
from minijaxnet.report.style import SERIES
from minijaxnet.report.thin import thin
from minijaxnet.report.told import Told
from minijaxnet.run.log import is_weight

_CURVES = {"Training loss": "train_loss", "Test loss": "test_loss", "Gradient norm": "gradient_norm"}
_DASHES = ("-", "--", "-.", ":")


def tell_several(runs: Sequence[Told]) -> Page:
    """The page that compares some runs."""
    names = _names(runs)
    losses = {name: _last(told, "test_loss") for name, told in names.items()}
    lowest = significant(min(losses.values()))
    best = [name for name, loss in losses.items() if significant(loss) == lowest]
    verdicts = [Verdict("warning", f"{name}: {told.state}.") for name, told in names.items() if told.state != "done"]
    if np.isfinite(min(losses.values())):
        words = f"The lowest test loss at the end, {lowest}, is that of {' and of '.join(best)}."
        if len(best) == len(runs) > 1:
            words = f"All runs have the same test loss at the end, {lowest}."
        verdicts.insert(0, Verdict("neutral", words))
    columns = list(dict.fromkeys(c for told in runs if told.rows for c in told.rows[-1] if not is_weight(c)))
    rows = [
        (name, told.state, *(told.rows[-1].get(column) if told.rows else None for column in columns))
        for name, told in names.items()
    ]
    ends = Table("At the end", ("run", "state", *columns), rows)
    height = 3.0 + 0.17 * sum(-(-len(name) // 50) for name in names)  # inches: a legend of so many lines
    pictures = [
        Wanted(title, f"The {title.lower()} of each run over steps.",
               lambda axes, of=of: draw_runs(axes, {name: told.rows for name, told in names.items()}, of), height)
        for title, of in _CURVES.items()
        if any(of in row for told in runs for row in told.rows)
    ]  # fmt: skip
    settings = {name: _settings(told) for name, told in names.items()}
    every = dict.fromkeys(setting for found in settings.values() for setting in found)
    differ = [setting for setting in every if len({str(found.get(setting)) for found in settings.values()}) > 1]
    same = [setting for setting in every if setting not in differ]
    asked = [
        Table("What differs", ("run", *differ), [(n, *(f.get(s) for s in differ)) for n, f in settings.items()]),
        Table("What is the same", ("setting", "value"), [(s, next(iter(settings.values()))[s]) for s in same]),
    ]
    commands = Text("The commands", "\n".join(command_of(told.config) for told in runs))
    sections = [
        illustrated("Side by side", Seen("", pictures, tables=[ends])),
        Section("What was run", "", (), (), asked, [commands]),
    ]
    return Page(f"{len(runs)} runs", verdicts, sections)


def draw_runs(axes: Any, runs: Mapping[str, Sequence[Mapping[str, Any]]], name: str) -> None:
    """Draw one number of the log for several runs.

    Args:
        axes: of matplotlib.
        runs: ``{run: rows}``, rows as in ``metrics.jsonl``.
        name: of the number.
    """
    lines = {}
    for run, rows in runs.items():
        steps, values = np.array([(row["step"], row.get(name, np.nan)) for row in rows], float).reshape(-1, 2).T
        lines[run] = thin(steps, np.where(np.isfinite(values), values, np.nan))
    scale(axes, "y", np.concatenate([values for _, values in lines.values()]))
    for i, (run, (steps, values)) in enumerate(lines.items()):
        look = {"color": SERIES[i % len(SERIES)], "linestyle": _DASHES[i // len(SERIES) % len(_DASHES)]}
        axes.plot(steps, values, label=as_written(run, 1_000), **look)
    axes.set(xlabel="step", ylabel=name.replace("_", " "))
    legend_above(axes)


def _settings(told: Told) -> dict[str, Any]:
    config = told.config
    data = {f"data {name}": value for name, value in config.get("data", {}).items()}
    found = {"file": config["file"], "code": config.get("code_sha256", "")[:12]}
    return found | config.get("flags", {}) | config.get("init", {}) | data


def _names(runs: Sequence[Told]) -> dict[str, Told]:
    """Runs by the names of their folders, told apart by a number where those are the same."""
    named: dict[str, Told] = {}
    for told in runs:
        name = told.folder.resolve().name
        while name in named:
            name = f"{name}'"
        named[name] = told
    return named


def _last(told: Told, name: str) -> float:
    value = float(told.rows[-1].get(name, np.inf)) if told.rows else np.inf
    return value if np.isfinite(value) else np.inf
