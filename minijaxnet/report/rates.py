"""Pictures of a sweep: where descents end, over their learning rate or over two settings, and where they diverge."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minijaxnet._tables import significant
from minijaxnet._trees import is_keys
from minijaxnet.report.axes import as_written, inches, legend_above, remark, scale, spans_a_decade
from minijaxnet.report.style import COLOURS, INK
from minijaxnet.sweeps import SweepResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOSS = "loss at the end"
_APART = 0.4  # inches between two counts
_TICK = (0.55, 0.3)  # inches between two ticks, to the right and upward
_SEEDS = ("key", "keys", "seed", "seeds")


def draw_sweep(axes: "Axes", result: SweepResult) -> None:
    """Where the descents of a sweep ended: over its first axis of numbers, or over its first two.

    Medians are taken over keys, seeds and all further axes, and over what was zipped with the first axis.

    Args:
        axes: of matplotlib.
        result: of ``sweep``, with a trace in its output.

    Raises:
        TypeError: there is no trace in the output.
    """
    values = {name: np.arange(len(axis)) if is_keys(axis) else np.asarray(axis) for name, axis in result.axes.items()}
    draw_ends(axes, values, result.losses, seeds=[name for name, axis in result.axes.items() if is_keys(axis)])


def draw_ends(axes: "Axes", values: Mapping[str, Any], losses: Any, *, seeds: Sequence[str] = ()) -> None:
    """The same from arrays, such as those of a ``sweep.npz``.

    Args:
        axes: of matplotlib.
        values: ``{name: values}`` of each axis.
        losses: of the axes' shape, or of one axis for all of them if they were zipped.
        seeds: the axes that are draws, which medians are taken over; key, keys, seed and seeds always are.
    """
    losses, names = np.asarray(losses, np.float64), list(values)
    draws = {*seeds, *_SEEDS}
    settings = [name for name in names if name not in draws and len(values[name]) > 1]
    zipped = losses.ndim != len(names)
    chosen = (settings or names[:1])[: 1 if zipped else 2]
    places = [0] if zipped else [names.index(name) for name in chosen]
    moved = np.moveaxis(losses, places, range(len(places)))
    moved = moved.reshape(*moved.shape[: len(places)], -1)
    numbers = [np.asarray(values[name]) for name in chosen]
    if len(chosen) == 2:
        draw_heat(axes, numbers[0], numbers[1], moved, chosen)
        return
    x = numbers[0] if numbers[0].ndim == 1 and numbers[0].dtype.kind in "iuf" else np.arange(len(numbers[0]))
    others = [name for name in names if name not in chosen and len(values[name]) > 1]
    noun = "seeds" if set(others) <= draws else " and ".join(others)
    draw_rates(axes, x, moved, name=chosen[0], noun=noun)


def draw_rates(axes: "Axes", rates: Any, losses: Any, *, name: str = "learning rate", noun: str = "seeds") -> None:
    """Where descents ended, over their learning rates: the median and the 10 % and 90 % quantiles of the seeds.

    Those that diverged count as infinitely high. They are triangles at the upper edge, full where all diverged, with
    how many of how many.

    Args:
        axes: of matplotlib.
        rates: ``(rates,)``, in any order.
        losses: ``(rates, seeds)``: infinite where a descent diverged, NaN where nothing is known.
        name: of the rates.
        noun: what a column of losses is one of.

    Raises:
        ValueError: losses of another shape.
    """
    rates, losses = np.asarray(rates, np.float64), np.asarray(losses, np.float64)
    if losses.ndim != 2 or rates.shape != losses.shape[:1]:
        raise ValueError(f"losses: got shape {losses.shape}; expected (rates, seeds), with {rates.size} rates")
    order = np.argsort(rates, kind="stable")
    rates, losses = rates[order], losses[order]
    ended = ~np.isnan(losses)
    low, median, high = np.array([_quantiles(row[there]) for row, there in zip(losses, ended, strict=True)]).T
    gone, of = np.isposinf(losses).sum(axis=1), ended.sum(axis=1)

    beside, beside_rate = scale(axes, "y", losses), scale(axes, "x", rates)
    if np.isfinite(median).any():
        label = "a descent" if losses.shape[1] == 1 else f"median of {losses.shape[1]:,}"
        joined = "none" if name in _SEEDS else "-"
        style: Any = {"color": COLOURS["train"], "marker": "o", "markersize": 3.5, "linestyle": joined}
        axes.plot(rates, np.where(np.isfinite(median), median, np.nan), label=label, **style)
        best = int(np.argmin(np.where(np.isfinite(median), median, np.inf)))
        star: Any = {"color": COLOURS["hand"], "marker": "*", "markersize": 9, "linestyle": "none", "zorder": 3}
        axes.plot(rates[best], median[best], label=f"lowest, at {significant(float(rates[best]), 3)}", **star)
    if losses.shape[1] > 1 and np.isfinite(low).any():
        _draw_band(axes, rates, low, high)
    if gone.any():
        _draw_diverged(axes, rates, gone, of)
    elif not np.isfinite(losses).any():
        remark(axes, "no loss at the end is known")
    axes.set_xlabel(as_written(name.replace("_", " ")) + beside_rate)
    axes.set_ylabel(_LOSS + (f", over {as_written(noun)}" if losses.shape[1] > 1 else "") + beside)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small", loc="best" if np.isfinite(median).any() else "center")


def draw_heat(axes: "Axes", first: Any, second: Any, losses: Any, names: Sequence[str]) -> None:
    """Where descents ended, over two settings: the median of the seeds as a colour.

    A large cross where most diverged, a small dot where some did; empty where nothing is known.

    Args:
        axes: of matplotlib; a bar for the colours is put beside it.
        first: ``(m,)``, to the right, one column a value.
        second: ``(n,)``, upward.
        losses: ``(m, n)`` or ``(m, n, seeds)``, infinite where a descent diverged, NaN where nothing is known.
        names: of the two.

    Raises:
        ValueError: losses of another shape.
    """
    first, second, losses = np.asarray(first), np.asarray(second), np.asarray(losses, np.float64)
    if losses.shape[:2] != (len(first), len(second)) or losses.ndim not in (2, 3):
        expected = f"({len(first)}, {len(second)}), or this and seeds"
        raise ValueError(f"losses: got shape {losses.shape}; expected {expected}")
    each = losses.reshape(-1, math.prod(losses.shape[2:]))
    medians = np.array([_quantiles(row[~np.isnan(row)])[1] for row in each]).reshape(losses.shape[:2])
    some = np.isposinf(each).any(axis=1).reshape(medians.shape) & ~np.isposinf(medians)
    heights = np.ma.masked_invalid(medians.T)
    if heights.count():
        norm = "log" if spans_a_decade(heights.compressed()) else "linear"
        image = axes.imshow(heights, origin="lower", aspect="auto", interpolation="nearest", norm=norm)
        axes.figure.colorbar(image, ax=axes, label=_LOSS)
    else:
        axes.set(xlim=(-0.5, len(first) - 0.5), ylim=(-0.5, len(second) - 0.5))
    room = [72 * length / count for length, count in zip(inches(axes), medians.shape, strict=True)]
    size = max(2.0, min(7.0, 0.5 * min(room)))
    style: Any = {"linestyle": "none", "color": COLOURS["diverged"]}
    if np.isposinf(medians).any():
        axes.plot(*np.nonzero(np.isposinf(medians)), marker="x", markersize=size, label="diverged", **style)
    if some.any():
        halo: Any = {"markeredgecolor": "white", "markeredgewidth": 0.6}
        axes.plot(*np.nonzero(some), marker="o", markersize=size / 1.8, label="some diverged", **style, **halo)
    for axis, values, name, length, tick in zip(
        (axes.xaxis, axes.yaxis), (first, second), names, inches(axes), _TICK, strict=True
    ):
        places = np.arange(len(values))[:: -(-len(values) // max(2, int(length / tick)))]
        axis.set_ticks(places, [_value(values[i]) for i in places])
        axis.set_label_text(as_written(name.replace("_", " ")))
    if some.any() or np.isposinf(medians).any():
        legend_above(axes)


def _quantiles(losses: np.ndarray) -> np.ndarray:
    """10 %, 50 % and 90 %, each one of the losses; NaN of none."""
    return np.quantile(losses, (0.1, 0.5, 0.9), method="nearest") if losses.size else np.full(3, np.nan)


def _draw_band(axes: "Axes", rates: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """From the low to the high quantile, up to the upper edge where the high one diverged."""
    low, top = np.where(np.isfinite(low), low, np.nan), np.where(np.isfinite(high), high, np.nan)
    style: Any = {"color": COLOURS["train"], "alpha": 0.2, "linewidth": 0, "label": "10 % to 90 %"}
    axes.fill_between(rates, low, top, **style)
    upward = np.isfinite(low) & np.isposinf(high)
    if upward.any():
        edge = axes.get_ylim()[1]
        axes.vlines(rates[upward], low[upward], edge, color=COLOURS["train"], alpha=0.35, linewidth=1, linestyle=":")
        axes.set_ylim(None, edge)


def _draw_diverged(axes: "Axes", rates: np.ndarray, gone: np.ndarray, of: np.ndarray) -> None:
    """Triangles at the upper edge, and counts above those that have room for one."""
    across: Any = {"transform": axes.get_xaxis_transform(), "clip_on": False}
    for where, face, label in (
        ((gone > 0) & (gone < of), "none", "some diverged"),
        ((gone > 0) & (gone == of), COLOURS["diverged"], "all diverged" if of.max() > 1 else "diverged"),
    ):
        if where.any():
            style: Any = {"color": COLOURS["diverged"], "marker": "^", "markersize": 5, "linestyle": "none"}
            axes.plot(rates[where], np.ones(where.sum()), label=label, markerfacecolor=face, **style, **across)
    width, last, last_count = inches(axes)[0], -math.inf, 0
    for i in np.flatnonzero(gone) if of.max() > 1 else ():
        place = width * float(axes.transAxes.inverted().transform(axes.transData.transform((rates[i], 1)))[0])
        if gone[i] == last_count or place - last < _APART:
            continue
        last, last_count = place, gone[i]
        text: Any = {
            "xytext": (0, 5),
            "textcoords": "offset points",
            "ha": "center",
            "fontsize": "x-small",
            "color": INK,
        }
        place: Any = {"xycoords": axes.get_xaxis_transform(), "annotation_clip": False}
        axes.annotate(f"{gone[i]}/{of[i]}", (rates[i], 1.0), **text, **place)


def _value(value: Any) -> str:
    return significant(float(value), 3) if np.ndim(value) == 0 and np.asarray(value).dtype.kind in "iuf" else str(value)
