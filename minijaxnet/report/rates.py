"""Pictures of a sweep: where descents end by their learning rate, or by two settings, and where they diverge."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minijaxnet._tables import significant
from minijaxnet._trees import is_keys
from minijaxnet.report.axes import as_written, inches, legend_above, remark, scale, spans_a_decade
from minijaxnet.report.style import COLOURS, INK
from minijaxnet.sweeps import SweepResult

_LOSS = "loss at the end"
_APART = 0.4  # inches that a count takes
_TICK = (0.55, 0.3)  # inches that a tick takes, to the right and upward
_SEEDS = ("key", "keys", "seed", "seeds")


def draw_rates(
    axes: Any, rates: Any, losses: Any, *, edge: float | None = None, name: str = "learning rate", noun: str = "seeds"
) -> None:
    """Where descents ended, over their learning rates: the median and the 10 % and 90 % quantiles of the seeds.

    Those that diverged count as infinitely high. They are triangles at the upper edge, full where all did, with how
    many of how many.

    Args:
        axes: of matplotlib.
        rates: ``(rates,)``, in any order.
        losses: ``(rates, seeds)``: infinite where a descent diverged, NaN where nothing is known.
        edge: the rate above which theory expects divergence, 2 / the largest curvature.
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
    known = ~np.isnan(losses)
    low, median, high = np.array([_quantiles(row[there]) for row, there in zip(losses, known, strict=True)]).T
    gone, of = np.isposinf(losses).sum(axis=1), known.sum(axis=1)

    beside = scale(axes, "y", losses)
    beside_rate = scale(axes, "x", np.append(rates, edge) if edge is not None else rates)
    if np.isfinite(median).any():
        label = "a descent" if losses.shape[1] == 1 else f"median of {losses.shape[1]:,}"
        joined = "none" if name in _SEEDS else "-"
        style = {"color": COLOURS["train"], "marker": "o", "markersize": 3.5, "linestyle": joined}
        axes.plot(rates, np.where(np.isfinite(median), median, np.nan), label=label, **style)
        best = int(np.argmin(np.where(np.isfinite(median), median, np.inf)))
        star = {"color": COLOURS["hand"], "marker": "*", "markersize": 9, "linestyle": "none", "zorder": 3}
        axes.plot(rates[best], median[best], label=f"lowest, at {significant(float(rates[best]), 3)}", **star)
    if losses.shape[1] > 1 and np.isfinite(low).any():
        _draw_band(axes, rates, low, high)
    if gone.any():
        _draw_diverged(axes, rates, gone, of)
    elif not np.isfinite(losses).any():
        remark(axes, "nothing is known of where they ended")
    if edge is not None:
        label = f"edge, 2 / curvature = {significant(edge, 3)}"
        axes.axvline(edge, color=INK, linestyle="--", linewidth=1, label=label)
    axes.set_xlabel(as_written(name.replace("_", " ")) + beside_rate)
    axes.set_ylabel(_LOSS + (f", over {as_written(noun)}" if losses.shape[1] > 1 else "") + beside)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small", loc="best" if np.isfinite(median).any() else "center")


def draw_heat(axes: Any, first: Any, second: Any, losses: Any, names: Sequence[str]) -> None:
    """Where descents ended, over two settings: the median of the seeds as a colour.

    A large cross where most diverged, a small dot where some did; empty where nothing is known.

    Args:
        axes: of matplotlib; a bar for the colours is put beside it.
        first: ``(m,)``, to the right; each value has a column of its own, wherever it lies.
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
    shown = np.ma.masked_invalid(medians.T)
    heights = shown.compressed()
    if heights.size:
        norm = "log" if spans_a_decade(heights) else "linear"
        image = axes.imshow(shown, origin="lower", aspect="auto", interpolation="nearest", norm=norm)
        axes.figure.colorbar(image, ax=axes, label=_LOSS)
    else:
        axes.set_xlim(-0.5, len(first) - 0.5)
        axes.set_ylim(-0.5, len(second) - 0.5)
    room = [72 * length / count for length, count in zip(inches(axes), medians.shape, strict=True)]
    size = max(2.0, min(7.0, 0.5 * min(room)))
    style = {"linestyle": "none", "color": COLOURS["diverged"]}
    if np.isposinf(medians).any():
        axes.plot(*np.nonzero(np.isposinf(medians)), marker="x", markersize=size, label="diverged", **style)
    if some.any():
        halo = {"markeredgecolor": "white", "markeredgewidth": 0.6}
        axes.plot(*np.nonzero(some), marker="o", markersize=size / 1.8, label="some diverged", **style, **halo)
    for axis, values, name, length, tick in zip(
        (axes.xaxis, axes.yaxis), (first, second), names, inches(axes), _TICK, strict=True
    ):
        places = np.arange(len(values))[:: -(-len(values) // max(2, int(length / tick)))]
        axis.set_ticks(places, [_value(values[i]) for i in places])
        axis.set_label_text(as_written(name.replace("_", " ")))
    if some.any() or np.isposinf(medians).any():
        legend_above(axes)


def draw_sweep(axes: Any, result: SweepResult, *, edge: float | None = None) -> None:
    """Where the descents of a sweep ended: over its first axis of numbers, or over its first two.

    Keys, seeds and all axes beyond are what the medians are taken over; so is what was zipped with the first axis.

    Args:
        axes: of matplotlib.
        result: what ``sweep`` returned, with a trace in its output.
        edge: as for ``draw_rates``.

    Raises:
        TypeError: there is no trace in the output.
    """
    values = {name: np.arange(len(axis)) if is_keys(axis) else np.asarray(axis) for name, axis in result.axes.items()}
    seeds = [name for name, axis in result.axes.items() if is_keys(axis)]
    draw_ends(axes, values, result.losses, seeds=seeds, edge=edge)


def draw_ends(
    axes: Any, values: Mapping[str, Any], losses: Any, *, seeds: Sequence[str] = _SEEDS, edge: float | None = None
) -> None:
    """The same from arrays, such as those of a ``sweep.npz``.

    Args:
        axes: of matplotlib.
        values: ``{name: values}`` of each axis.
        losses: of the axes' shape, or of one axis for all of them if they were zipped.
        seeds: which axes are but draws, and the medians are taken over.
        edge: as for ``draw_rates``.
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
    draw_rates(axes, x, moved, edge=edge, name=chosen[0], noun=noun)


def _quantiles(losses: np.ndarray) -> np.ndarray:
    """10 %, 50 % and 90 %, each one of the losses; NaN of none."""
    return np.quantile(losses, (0.1, 0.5, 0.9), method="nearest") if losses.size else np.full(3, np.nan)


def _draw_band(axes: Any, rates: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """From the low to the high quantile, up to the upper edge where the high one diverged."""
    axes.fill_between(
        rates,
        np.where(np.isfinite(low), low, np.nan),
        np.where(np.isfinite(high), high, np.nan),
        color=COLOURS["train"],
        alpha=0.2,
        linewidth=0,
        label="10 % to 90 %",
    )
    upward = np.isfinite(low) & np.isposinf(high)
    if upward.any():
        top = axes.get_ylim()[1]
        axes.vlines(rates[upward], low[upward], top, color=COLOURS["train"], alpha=0.35, linewidth=1, linestyle=":")
        axes.set_ylim(None, top)


def _draw_diverged(axes: Any, rates: np.ndarray, gone: np.ndarray, of: np.ndarray) -> None:
    across = {"transform": axes.get_xaxis_transform(), "clip_on": False}
    for where, face, label in (
        ((gone > 0) & (gone < of), "none", "some diverged"),
        ((gone > 0) & (gone == of), COLOURS["diverged"], "all diverged" if of.max() > 1 else "diverged"),
    ):
        if where.any():
            style = {"color": COLOURS["diverged"], "marker": "^", "markersize": 5, "linestyle": "none"}
            axes.plot(rates[where], np.ones(where.sum()), label=label, markerfacecolor=face, **style, **across)
    width, told, last = inches(axes)[0], -math.inf, 0
    for i in np.flatnonzero(gone) if of.max() > 1 else ():
        place = width * float(axes.transAxes.inverted().transform(axes.transData.transform((rates[i], 1)))[0])
        if gone[i] == last or place - told < _APART:
            continue
        told, last = place, gone[i]
        text = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center", "fontsize": "x-small"}
        place = {"xycoords": axes.get_xaxis_transform(), "annotation_clip": False, "color": INK}
        axes.annotate(f"{gone[i]}/{of[i]}", (rates[i], 1.0), **text, **place)


def _value(value: Any) -> str:
    return significant(float(value), 3) if np.ndim(value) == 0 and np.asarray(value).dtype.kind in "iuf" else str(value)
