"""Pages with one of everything on them."""

from pathlib import Path
from typing import Any

import numpy as np

from minijaxnet.report.page import Page, Picture, Section, Table, Text, Verdict
from minijaxnet.report.player import OneWeight, TwoWeights
from minijaxnet.report.record import RunRecord
from minijaxnet.report.weight import Bowl

NASTY = "</script><!--<b>&\"'\u2028$x_1$"


def bowl(weights: Any) -> Any:
    return (3 * weights - 10) ** 2


def one_weight(n: int = 20, *, name: str = "w", rate: float = 0.01) -> OneWeight:
    weights = 10 / 3 - 4 / 3 * (1 - 18 * rate) ** np.arange(n)
    gradients = 6 * (3 * weights - 10)
    around = np.linspace(1, 6, 51)
    found = Bowl(around, bowl(around), weights, bowl(weights), gradients)
    return OneWeight(f"One weight {name}", name, found, -rate * gradients, rate, 18.0)


def two_weights(n: int = 30, *, name: str = "v") -> TwoWeights:
    axis = np.linspace(-2, 2, 21)
    surface = axis[:, None] ** 2 + 4 * axis**2
    path = np.array([1.5, 1.2]) * np.array([0.9, 0.6]) ** np.arange(n)[:, None]
    losses = path[:, 0] ** 2 + 4 * path[:, 1] ** 2
    return TwoWeights(
        f"Two weights {name}",
        (name, "u"),
        (axis, axis),
        surface,
        path,
        losses,
        np.diff(path, axis=0, append=np.nan),
        0.05,
    )


def picture(name: str = "Loss") -> Picture:
    return Picture(name, f"{name} falls.", lambda axes: axes.plot([0, 1], [1, 0]), 1)


def whole(name: str = "plain") -> Page:
    """A page with one of everything, each with this name in it."""
    players = [one_weight(name=name), two_weights(name=name)]
    table = Table(f"Rows {name}", (name, "loss"), [(name, 1 / 3), ("b", float("nan"))])
    sections = [
        Section(f"Descent {name}", f"{name}\n\nAgain.", players, [picture(name)]),
        Section("Numbers", tables=[table], texts=[Text(f"Text {name}", name)]),
    ]
    verdicts = [Verdict(kind, f"{kind} {name}") for kind in ("ok", "warning", "bad", "neutral")]
    return Page(f"A page {name}", verdicts, sections, f"run {name}", f"of {name}")


def record(rows: list[dict[str, Any]], **flags: Any) -> RunRecord:
    """The record of a run that is done, if it logged these rows."""
    flags = {"learning_rate": 0.1} | flags
    return RunRecord(Path("run"), "done", {"verb": "run", "file": "e.py", "flags": flags}, {}, {}, {}, rows)
