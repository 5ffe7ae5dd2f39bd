"""Pictures of what was logged over the steps of a run, or of several."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minijaxnet.report.axes import as_written, legend_above, remark, scale, thin
from minijaxnet.report.style import COLOURS, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DASHES = ("-", "--", "-.", ":")
_FEW = 60  # points that may each have a marker

Rows = Sequence[Mapping[str, Any]]


class _Look(NamedTuple):
    colour: str
    dash: str
    marker: str


def draw_curves(
    axes: "Axes", rows: Rows, names: Sequence[str], *, flat_at: int | None = None, diverged_at: int | None = None
) -> None:
    """What was logged, over steps: training and test in their colours, and where the descent ended.

    A value that is not finite is a gap in its line, and a cross at the upper edge.

    Args:
        axes: of matplotlib.
        rows: as in ``metrics.jsonl``: ``{"step", "loss", ...}``.
        names: which of the numbers to draw. ``test_<name>`` is drawn as test; ``train_<name>``, and a name whose
            ``test_<name>`` is drawn, too, as training.
        flat_at: the step at which the descent was flat.
        diverged_at: the step at which it diverged.

    Raises:
        ValueError: a name that no row has.
    """
    if missing := [name for name in names if rows and not any(name in row for row in rows)]:
        raise ValueError(f"names: got {missing[0]!r}; expected one of {', '.join(sorted(rows[0].keys() - {'step'}))}")
    lines = {name: _line(rows, name) for name in names}
    for name, (steps, values) in lines.items():
        kept, look = thin(values), _look(name, names)
        marker: Any = {"marker": look.marker, "markersize": 3} if len(kept) <= _FEW else {}
        label = as_written(name.replace("_", " ") if not name.startswith("_") else f" {name}")  # else it is left out
        axes.plot(steps[kept], values[kept], color=look.colour, linestyle=look.dash, label=label, **marker)
    _draw_gaps(axes, lines.values())
    values = np.concatenate([values for _, values in lines.values()])
    if not np.isfinite(values).any():
        remark(axes, "no value is finite" if values.size else "nothing was logged")
        axes.set_yticks([])
    beside = scale(axes, "y", values)
    short = dict.fromkeys(re.sub("^(test|train|validation)_", "", name) for name in names)  # the legend says the rest
    axes.set_ylabel(as_written(", ".join(name.replace("_", " ") for name in short)) + beside)
    for at, word, colour, marker in (
        (flat_at, "flat", COLOURS["hand"], "v"),
        (diverged_at, "diverged", COLOURS["diverged"], "X"),
    ):
        if at is not None:
            style: Any = {"color": colour, "linestyle": (0, (5, 2)), "linewidth": 1, "marker": marker, "clip_on": False}
            across: Any = {"transform": axes.get_xaxis_transform(), "markevery": [1], "label": f"{word} at step {at:,}"}
            axes.plot([at, at], [0, 1], **style, **across)
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True)  # pyright: ignore[reportCallIssue]
    axes.legend(fontsize="small")


def draw_runs(axes: "Axes", runs: Mapping[str, Rows], name: str) -> None:
    """One logged number of several runs, over steps.

    Args:
        axes: of matplotlib.
        runs: ``{run: rows}``, rows as in ``metrics.jsonl``.
        name: of the number.
    """
    lines = {run: _line(rows, name) for run, rows in runs.items()}
    scale(axes, "y", np.concatenate([values for _, values in lines.values()]))
    for i, (run, (steps, values)) in enumerate(lines.items()):
        kept = thin(values)
        look: Any = {"color": SERIES[i % len(SERIES)], "linestyle": _DASHES[i // len(SERIES) % len(_DASHES)]}
        axes.plot(steps[kept], values[kept], label=as_written(run, 1_000), **look)
    axes.set(xlabel="step", ylabel=name.replace("_", " "))
    legend_above(axes)


def _line(rows: Rows, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, NaN for what is not finite."""
    steps, values = np.array([(row["step"], row[name]) for row in rows if name in row], float).reshape(-1, 2).T
    return steps, np.where(np.isfinite(values), values, np.nan)


def _look(name: str, names: Sequence[str]) -> _Look:
    if name.startswith("test_"):
        return _Look(COLOURS["test"], "--", "s")
    if name.startswith("validation_"):
        return _Look(COLOURS["hand"], "-.", "^")
    if name.startswith("train_") or f"test_{name}" in names:
        return _Look(COLOURS["train"], "-", "o")
    place = list(names).index(name)
    return _Look(SERIES[place % len(SERIES)], _DASHES[place % len(_DASHES)], "os^Dv"[place % 5])


def _draw_gaps(axes: "Axes", lines: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
    """Crosses at the upper edge, where a value is not finite."""
    where = np.unique(np.concatenate([steps[np.isnan(values)] for steps, values in lines]))
    if len(where):
        where = where[:: -(-len(where) // _FEW)]
        style: Any = {
            "color": COLOURS["diverged"],
            "marker": "x",
            "markersize": 5,
            "linestyle": "none",
            "clip_on": False,
        }
        axes.plot(where, np.ones(len(where)), transform=axes.get_xaxis_transform(), label="not finite", **style)
