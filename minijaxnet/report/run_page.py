"""The page of one run: its summary, and sections on the descent, the model, the gradient check and the benchmark."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from minijaxnet._tables import significant
from minijaxnet.report.axes import thin
from minijaxnet.report.curves import draw_curves
from minijaxnet.report.gradients import draw_errors, draw_precision
from minijaxnet.report.loss_sections import loss_around, played
from minijaxnet.report.page import Page, Picture, Section, Table, Text, Verdict
from minijaxnet.report.predictions import predictions
from minijaxnet.report.rates import draw_ends
from minijaxnet.report.record import RunRecord, command_of
from minijaxnet.report.summary import verdicts_of
from minijaxnet.report.timing import draw_forest, draw_samples
from minijaxnet.run.folder import CONFIG, ENVIRONMENT
from minijaxnet.run.log import METRICS, is_weight
from minijaxnet.verify.report import headline_of, subject_of

_MOST_ROWS = 200


def run_page(record: RunRecord) -> Page:
    """The page of one run. What cannot be shown is left out, and a sentence says why."""
    makers = {
        "Stop by stop": played,
        "Descent": _sweep if record.losses is not None else _descent,
        "The loss around the end": loss_around,
        "Predictions": predictions,
        "Gradient check": _gradient_check,
        "Benchmark": _benchmark,
        "What was run": _what_was_run,
    }
    sections = [section for title, make in makers.items() if (section := _made(title, make, record)) is not None]
    verdicts: list[Verdict] = []
    command = ""
    try:
        verdicts += verdicts_of(record)
        command = command_of(record.config)
    except Exception as error:  # a file holds something else than a run writes
        verdicts.append(Verdict("warning", f"This summary is not complete: {type(error).__name__}: {error}"))
    verdicts += [Verdict("neutral", note) for note in record.notes]
    devices = record.environment.get("devices")
    device = ", ".join(map(str, devices)) if isinstance(devices, list) and devices else "an unknown device"
    words = f"{record.folder.name}, on {device}, {record.environment.get('time_utc', 'at an unknown time')}"
    return Page(str(record.config.get("experiment", record.folder.name)), verdicts, sections, command, words)


def _made(title: str, make: Callable[[RunRecord], Section | None], record: RunRecord) -> Section | None:
    try:
        return make(record)
    except Exception as error:  # also of the experiment's own functions
        return Section(title, f"This cannot be shown: {type(error).__name__}: {error}")


def _descent(record: RunRecord) -> Section:
    rows = record.rows
    if not rows:
        return Section("Descent", "Nothing was logged.")
    names = [name for name in rows[-1] if name != "step" and not is_weight(name)]
    held = [of for of in ("validation", "test") if f"{of}_loss" in names]
    losses = [name for name in ("train_loss", *(f"{of}_loss" for of in held)) if name in names] or ["loss"]
    curves = {"Loss": losses, "Gradient norm": ["gradient_norm"]}
    metrics = [name for name in names if f"test_{name}" in names and name != "loss"]
    curves |= {name: [name, *(f"{of}_{name}" for of in held)] for name in metrics}
    pictures = [
        Picture(
            title,
            f"{title} over steps, from {significant(rows[0][of[0]])} to {significant(rows[-1][of[0]])}.",
            lambda axes, of=of: draw_curves(axes, rows, of, **_end_of(record.result)),
        )
        for title, of in curves.items()
    ]
    kept = [rows[i] for i in thin(np.array([row.get("loss", np.nan) for row in rows], float), _MOST_ROWS)]
    words = f"The table shows {len(kept)} of {len(rows):,} rows, with all spikes; {METRICS} has all."
    columns = list(dict.fromkeys([*rows[0], *rows[-1]]))
    table = Table("What was logged", columns, [[row.get(name) for name in columns] for row in kept])
    return Section("Descent", words if len(kept) < len(rows) else "", pictures=pictures, tables=[table])


def _end_of(result: Mapping[str, Any]) -> dict[str, int]:
    """The step at which a descent was flat or diverged, as ``draw_curves`` takes it; empty if it took all its steps.

    >>> _end_of({"status": "FLAT", "steps_taken": 7}), _end_of({"status": "OUT_OF_STEPS", "steps_taken": 7})
    ({'flat_at': 7}, {})
    """
    mark = {"FLAT": "flat_at", "DIVERGED": "diverged_at"}.get(str(result.get("status")))
    return {} if mark is None else {mark: result["steps_taken"]}


def _sweep(record: RunRecord) -> Section:
    losses, best = np.asarray(record.losses), record.result.get("best")
    alt = f"The loss at the end of {losses.size:,} descents, over {', '.join(record.axes)}."
    picture = Picture("Where the descents ended", alt, lambda axes: draw_ends(axes, record.axes, losses), 3.4)
    tables = [Table("Best", tuple(best), [tuple(best.values())])] if best else []
    return Section("Descents", pictures=[picture], tables=tables)


def _gradient_check(record: RunRecord) -> Section | None:
    check = record.result.get("gradient_check")
    if not check:
        return None
    leaves = check["leaves"]
    drawn = {" against ".join(subject_of(check)).capitalize(): draw_errors}
    if any(leaf["precision_ratio"] is not None for leaf in leaves.values()):
        drawn["Error in the working precision"] = draw_precision
    pictures = [
        Picture(
            title,
            f"{title}: {headline_of(check)}.",
            lambda axes, draw=draw: draw(axes, check),
            1.6 + 0.25 * len(leaves),
        )
        for title, draw in drawn.items()
    ]
    verdicts = [(name, verdict["state"], verdict.get("reason", "")) for name, verdict in check["verdicts"].items()]
    first = next(iter(leaves.values()), {})
    columns = [
        name
        for name, value in first.items()
        if name != "path"
        and not isinstance(value, dict | list)
        and any(leaf[name] not in (None, "") for leaf in leaves.values())
    ]
    rows = [(name, *(leaf[column] for column in columns)) for name, leaf in leaves.items()]
    tables = [Table("Verdicts", ("what", "verdict", "why"), verdicts), Table("Leaves", ("leaf", *columns), rows)]
    return Section("Gradient check", "\n\n".join(map(str, check["hints"])), pictures=pictures, tables=tables)


def _benchmark(record: RunRecord) -> Section | None:
    saved = record.comparison
    if not saved:
        return None
    found = saved["found"]
    tall = 1.3 + 0.35 * len(found["arms"])
    drawn = {
        "Which step is faster": ("Ratios of step times, with intervals.", draw_forest, tall),
        "Samples in the order of time": ("The time of a step in each round.", draw_samples, 2.2 + tall / 2),
    }
    pictures = [
        Picture(title, alt, lambda axes, draw=draw: draw(axes, saved), height)
        for title, (alt, draw, height) in drawn.items()
    ]
    rows = []
    for name, arm in found["arms"].items():
        interval = [found["ratios"].get(name, {}).get(part) for part in ("median", "low", "high")]
        compile_s, step_us = arm["compile_s"], arm["step_us"]
        verdict = found["verdicts"].get(name, "baseline")
        in_steps = round(1e6 * compile_s / step_us) if compile_s and step_us else None
        rows.append((name, step_us, *interval, verdict, compile_s, in_steps))
    columns = ("step", "us a step", "ratio", "95 % from", "to", "verdict", "compile s", "compile, in steps")
    return Section("Benchmark", pictures=pictures, tables=[Table("Steps", columns, rows)])


def _what_was_run(record: RunRecord) -> Section:
    config, environment = record.config, record.environment
    settings = config.get("flags", {}) | config.get("init", {})
    settings |= {f"data {name}": value for name, value in config.get("data", {}).items()}
    tables = [
        Table("Settings", ("setting", "value"), [each for each in settings.items() if each[1] not in (None, "")]),
        Table("Versions", ("package", "version"), list(environment.get("versions", {}).items())),
    ]
    texts = {
        CONFIG: json.dumps(config, indent=2),
        ENVIRONMENT: json.dumps(environment, indent=2) if environment else "",
        "log.txt": record.log,
    }
    return Section("What was run", tables=tables, texts=[Text(*each) for each in texts.items() if each[1]])
