"""The page of several runs: their losses side by side, and which settings differ."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minijaxnet._tables import significant
from minijaxnet.report.curves import draw_runs
from minijaxnet.report.page import Page, Picture, Section, Table, Text, Verdict
from minijaxnet.report.record import RunRecord, command_of
from minijaxnet.run.log import is_weight

_CURVES = {"Training loss": "train_loss", "Test loss": "test_loss", "Gradient norm": "gradient_norm"}


def runs_page(records: Sequence[RunRecord]) -> Page:
    """The page that compares some runs."""
    named = _by_name(records)
    others = [
        Verdict("warning", f"{name}: {record.state}.") for name, record in named.items() if record.state != "done"
    ]
    sections = [_side_by_side(named), _what_was_run(named)]
    return Page(f"{len(records)} runs", [*_best(named), *others], sections)


def _by_name(records: Sequence[RunRecord]) -> dict[str, RunRecord]:
    """Runs by the names of their folders, with primes where those are the same."""
    named: dict[str, RunRecord] = {}
    for record in records:
        name = record.folder.resolve().name
        while name in named:
            name = f"{name}'"
        named[name] = record
    return named


def _best(named: Mapping[str, RunRecord]) -> list[Verdict]:
    """Which run has the lowest test loss, to the digits that are shown."""
    losses = {name: float(record.rows[-1].get("test_loss", np.inf)) for name, record in named.items() if record.rows}
    losses = {name: loss for name, loss in losses.items() if np.isfinite(loss)}
    if not losses:
        return []
    lowest = significant(min(losses.values()))
    best = [name for name, loss in losses.items() if significant(loss) == lowest]
    if len(best) == len(named) > 1:
        return [Verdict("neutral", f"All runs have the same test loss at the end, {lowest}.")]
    return [Verdict("neutral", f"The lowest test loss at the end, {lowest}, is that of {' and of '.join(best)}.")]


def _side_by_side(named: Mapping[str, RunRecord]) -> Section:
    rows = {name: record.rows for name, record in named.items()}
    height = 3.0 + 0.17 * sum(-(-len(name) // 50) for name in named)  # inches: a legend of so many lines
    pictures = [
        Picture(
            title,
            f"The {title.lower()} of each run over steps.",
            lambda axes, number=number: draw_runs(axes, rows, number),
            height,
        )
        for title, number in _CURVES.items()
        if any(number in row for some in rows.values() for row in some)
    ]
    last = {name: some[-1] if some else {} for name, some in rows.items()}
    columns = list(dict.fromkeys(column for row in last.values() for column in row if not is_weight(column)))
    ends = [(name, named[name].state, *(row.get(column) for column in columns)) for name, row in last.items()]
    return Section("Side by side", pictures=pictures, tables=[Table("At the end", ("run", "state", *columns), ends)])


def _what_was_run(named: Mapping[str, RunRecord]) -> Section:
    settings = {name: _settings(record.config) for name, record in named.items()}
    every = dict.fromkeys(setting for found in settings.values() for setting in found)
    differ = [setting for setting in every if len({str(found.get(setting)) for found in settings.values()}) > 1]
    first = next(iter(settings.values()))
    same = [
        (setting, first[setting]) for setting in every if setting not in differ and first[setting] not in (None, "")
    ]
    tables = [
        Table("What differs", ("run", *differ), [(n, *(f.get(s) for s in differ)) for n, f in settings.items()]),
        Table("What is the same", ("setting", "value"), same),
    ]
    commands = Text("The commands", "\n".join(command_of(record.config) for record in named.values()))
    return Section("What was run", tables=tables, texts=[commands])


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    data = {f"data {name}": value for name, value in config.get("data", {}).items()}
    found = {"file": config["file"], "code": config.get("code_sha256", "")[:12]}
    return found | config.get("flags", {}) | config.get("init", {}) | data
