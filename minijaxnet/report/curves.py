"""Pictures of a run: what was logged over its steps, and what each single step saw."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from minijaxnet.history import DIVERGED, FLAT, Trace
from minijaxnet.report.axes import as_written, remark, scale
from minijaxnet.report.style import COLOURS, SERIES
from minijaxnet.report.thin import thin

_DASHES = ("-", "--", "-.", ":")
_FEW = 60  # points that may each have a marker


class _Look(NamedTuple):
    colour: str
    dash: str
    marker: str


def draw_curves(
    axes: Any,
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    *,
    flat_at: int | None = None,
    diverged_at: int | None = None,
) -> None:
    """What was logged, over steps: training and test in their colours, and what happened on the way.

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
    lines = {}
    for name in names:
        pairs = [(row["step"], row[name]) for row in rows if name in row]
        steps, values = np.array(pairs, np.float64).reshape(-1, 2).T
        lines[name] = (steps, values, _look(name, names))
    _draw_lines(axes, lines)
    _draw_end(axes, flat_at, diverged_at)
    _finish(axes)


def draw_trace(axes: Any, trace: Trace, *, first_step: int = 0) -> None:
    """the loss and the gradient's norm that each step saw, and how the descent ended.

    Args:
        axes: of matplotlib.
        trace: of one descent.
        first_step: what its first row is counted as.

    Raises:
        ValueError: the traces of several descents.
    """
    if np.ndim(trace.status):
        shape = np.shape(trace.status)
        raise ValueError(f"trace: got those of descents of shape {shape}; expected that of one")
    taken = int(trace.steps_taken)
    steps = first_step + np.arange(taken)
    looks = {"loss": _Look(COLOURS["train"], "-", "o"), "gradient norm": _Look(COLOURS["slope"], "--", "s")}
    values = {"loss": trace.loss, "gradient norm": trace.gradient_norm}
    lines = {name: (steps, np.asarray(of, np.float64)[:taken], looks[name]) for name, of in values.items()}
    _draw_lines(axes, lines)
    ended, at = int(trace.status), first_step + taken
    _draw_end(axes, at if ended == FLAT else None, at if ended == DIVERGED else None)
    _finish(axes)


def _look(name: str, names: Sequence[str]) -> _Look:
    """How a number's line looks."""
    if name.startswith("test_"):
        return _Look(COLOURS["test"], "--", "s")
    if name.startswith("train_") or f"test_{name}" in names:
        return _Look(COLOURS["train"], "-", "o")
    if not any(other.startswith(("test_", "train_", "validation_")) for other in names):
        place = list(names).index(name)
        return _Look(SERIES[place % len(SERIES)], _DASHES[place % len(_DASHES)], "os^Dv"[place % 5])
    return _Look(COLOURS["hand"], "-.", "^")


def _draw_lines(axes: Any, lines: Mapping[str, tuple[np.ndarray, np.ndarray, _Look]]) -> None:
    for name, (steps, values, look) in lines.items():
        few_steps, few = thin(steps, np.where(np.isfinite(values), values, np.nan))
        marker = {"marker": look.marker, "markersize": 3} if len(few) <= _FEW else {}
        axes.plot(few_steps, few, color=look.colour, linestyle=look.dash, label=_label(name), **marker)
    gaps = [steps[~np.isfinite(values)] for steps, values, _ in lines.values()]
    where = np.unique(np.concatenate(gaps)) if gaps else np.array([])
    if len(where):
        where = where[:: -(-len(where) // _FEW)]
        style = {"color": COLOURS["diverged"], "marker": "x", "markersize": 5, "linestyle": "none", "clip_on": False}
        axes.plot(where, np.ones(len(where)), transform=axes.get_xaxis_transform(), label="not finite", **style)
    values = np.concatenate([of for _, of, _ in lines.values()]) if lines else np.array([])
    if not np.isfinite(values).any():
        remark(axes, "nothing was logged" if not values.size else "no value is finite")
        axes.set_yticks([])
    beside = scale(axes, "y", values)
    axes.set_ylabel(as_written(", ".join(name.replace("_", " ") for name in _in_short(lines))) + beside)


def _in_short(names: Any) -> list[str]:
    """Names without what the legend says, each once.

    >>> _in_short(["train_loss", "test_loss"])
    ['loss']
    """
    return list(dict.fromkeys(re.sub("^(test|train|validation)_", "", name) for name in names))


def _draw_end(axes: Any, flat_at: int | None, diverged_at: int | None) -> None:
    for at, word, colour, marker in (
        (flat_at, "flat", COLOURS["hand"], "v"),
        (diverged_at, "diverged", COLOURS["diverged"], "X"),
    ):
        if at is not None:
            style = {"color": colour, "linestyle": (0, (5, 2)), "linewidth": 1, "marker": marker, "clip_on": False}
            across = {"transform": axes.get_xaxis_transform(), "markevery": [1], "label": f"{word} at step {at:,}"}
            axes.plot([at, at], [0, 1], **style, **across)


def _finish(axes: Any) -> None:
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")


def _label(name: str) -> str:
    """A name for the legend, which leaves out those that begin with an underscore."""
    return as_written(name.replace("_", " ") if not name.startswith("_") else f" {name}")
