"""Pictures of a comparison of steps: which is faster, and what was measured."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from minijaxnet._tables import significant
from minijaxnet.bench import Interval, StepComparison
from minijaxnet.bench.comparison import as_ratio
from minijaxnet.report.axes import as_written, inches, legend_above, name_rows, remark, scale
from minijaxnet.report.style import COLOURS, INK, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDE = 3.0  # inches: room for verdicts at the side
_MOST_GROUPS = 100
_MARKERS = "osD^vP"
_LOOKS = {  # the colour and the marker of each verdict
    "baseline": (INK, "D"),
    "faster": (COLOURS["hand"], "<"),
    "slower": (COLOURS["diverged"], ">"),
    "UNSOUND": (COLOURS["diverged"], "X"),
}


Comparison = StepComparison | Mapping[str, Any]


def draw_forest(axes: "Axes", comparison: Comparison) -> None:
    """Each arm's time over the baseline's, with its interval and its verdict; shaded is what counts as the same.

    Args:
        axes: of matplotlib.
        comparison: or the content of a file that its ``save`` wrote.
    """
    found = _saved(comparison)["found"]
    baseline, width = found["baseline"], found["width"]
    ratios = {name: _interval(ratio) for name, ratio in found["ratios"].items()}
    rows = [(name, ratios.get(name, Interval(1.0, 1.0, 1.0))) for name in found["arms"]]
    rows.append(("the baseline again", _interval(found["control"])))
    wide = inches(axes)[0] > _WIDE
    labels = []
    axes.set_xscale("log")
    axes.axvspan(1 / (1 + width), 1 + width, color=COLOURS["past"], alpha=0.25, linewidth=0)
    axes.axvline(1, color=INK, linewidth=1, linestyle="--")
    for y, (name, ratio) in enumerate(rows):
        word = "baseline" if name == baseline else found["verdicts"].get(name, "sound" if found["sound"] else "UNSOUND")
        colour, marker = _LOOKS.get(word, (COLOURS["past"], "o"))
        if math.isfinite(ratio.low) and math.isfinite(ratio.high):
            axes.plot([ratio.low, ratio.high], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
        axes.plot(ratio.median, y, marker=marker, color=colour, markersize=7, linestyle="none")
        text = word if name == baseline else f"{as_ratio(ratio.median)}  {word}"
        if not math.isfinite(ratio.low) and name != baseline:
            text += ", too few rounds"
        labels.append(name if wide else f"{name}: {text}")
        if wide:
            beside: Any = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": "small", "color": INK}
            axes.text(1.02, y, text, **beside)
    ends = np.array([x for _, ratio in rows for x in ratio] + [1 + width, 1 / (1 + width)])
    ends = ends[np.isfinite(ends) & (ends > 0)]
    _ratio_axis(axes, float(ends.min()), float(ends.max()), 6 if wide else 4)
    name_rows(axes, labels, lines=2 if wide else 3)
    axes.set_xlabel(f"time / time of {as_written(baseline, 30 if wide else 12)}")


def draw_samples(axes: "Axes", comparison: Comparison) -> None:
    """What was measured, round by round, each arm over its own median: what all share comes from the machine.

    Args:
        axes: of matplotlib.
        comparison: or the content of a file that its ``save`` wrote.
    """
    saved = _saved(comparison)
    arms = {name: np.asarray(arm["samples_s"], float) for name, arm in saved.get("arms", {}).items()}
    axes.set_xlabel("round")
    axes.set_ylabel("time / its median")
    if not arms:
        remark(axes, "the samples were not saved")
        axes.set(xticks=[], yticks=[])
        return
    rounds = max(map(len, arms.values()))
    for i, (name, samples_s) in enumerate(arms.items()):
        label = f"{as_written(name, 1_000)}, {_us(float(np.median(samples_s)))}"
        style: Any = {"color": SERIES[i % len(SERIES)], "marker": _MARKERS[i % len(_MARKERS)], "markersize": 3}
        _draw_over_median(axes, samples_s, rounds, label=label, linewidth=0.7, **style)
    if len(sentinel_s := np.asarray(saved["sentinel_s"], float)):
        _draw_over_median(axes, sentinel_s, rounds, label="a fixed workload", color=COLOURS["past"])
    axes.axhline(1, color=INK, linewidth=0.6, linestyle="--")
    axes.xaxis.get_major_locator().set_params(integer=True)  # pyright: ignore[reportCallIssue]
    beside = scale(axes, "y", np.concatenate([_over_median(x) for x in arms.values()]))
    axes.set_ylabel("time / its median" + beside)
    legend_above(axes)


def _over_median(samples: np.ndarray) -> np.ndarray:
    """Samples over their median; of many rounds the medians of so many groups."""
    groups = np.array_split(samples, min(len(samples), _MOST_GROUPS))
    return np.array([np.median(group) for group in groups]) / np.median(samples)


def _draw_over_median(axes: "Axes", samples: np.ndarray, rounds: int, **style: Any) -> None:
    over = _over_median(samples)
    axes.plot((0.5 + np.arange(len(over))) * rounds / len(over) + 0.5, over, **style)


def _ratio_axis(axes: "Axes", low: float, high: float, most: int) -> None:
    """At most so many plain numbers on a logarithmic axis, with room on both sides."""
    low, high = min(low, 0.97), max(high, 1.03)
    room = (high / low) ** 0.06
    low, high = low / room, high * room
    near = [[1 + step * k for k in range(-99, 100)] for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)]
    far = [[m * 10.0**k for k in range(-9, 10) for m in marks] for marks in ((1, 2, 5), (1,))]
    candidates = [[x for x in ticks if low <= x <= high] for ticks in ((near if high / low < 3 else []) + far)]
    ticks = next((ticks for ticks in candidates if len(ticks) <= most), [1.0])
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [f"{x:.4g}" for x in ticks])
    axes.minorticks_off()


def _us(seconds: float) -> str:
    return f"{1e6 * seconds:,.0f} us" if 1e-4 <= seconds < 1e3 else f"{significant(1e6 * seconds, 3)} us"


def _saved(comparison: Comparison) -> Mapping[str, Any]:
    """The content of a comparison's file."""
    if not isinstance(comparison, StepComparison):
        return comparison
    arms = {name: {"samples_s": arm.samples_s} for name, arm in comparison.arms.items()}
    return {"found": comparison.to_dict(), "arms": arms, "sentinel_s": comparison.sentinel_s}


def _interval(content: Mapping[str, Any]) -> Interval:
    """An interval from JSON, which has null for what is not finite."""
    return Interval(*(math.nan if content[key] is None else content[key] for key in ("median", "low", "high")))
