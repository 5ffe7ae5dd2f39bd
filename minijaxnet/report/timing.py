"""Pictures of a comparison of steps: which is faster, what limits a step, what compiling costs.

They take a comparison, or what was kept of one as JSON: in a run's ``timing.json``, or by its ``save``.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from minijaxnet._tables import significant
from minijaxnet.bench import Interval, Limits, StepComparison
from minijaxnet.report.axes import as_written, inches, legend_above, name_rows, remark, scale
from minijaxnet.report.style import COLOURS, INK, SERIES

_WIDE = 3.0  # inches: room for verdicts at the side
_WHOLE = 1_000  # letters: legends have lines for names that are long
_MOST_GROUPS = 100
_MARKERS = "osD^vP"
_WORDS = {"faster": "hand", "slower": "diverged", "UNSOUND": "diverged"}  # their colours' meanings


class Compared(NamedTuple):
    """What the pictures need of a comparison.

    Attributes:
        baseline: the arm that the others are held against.
        step_s: ``{arm: seconds a step}``, the median.
        compile_s: ``{arm: seconds to compile the loop}``.
        ratios: ``{arm: its time over the baseline's}``, but for the baseline.
        verdicts: ``{arm: "faster", "slower", "same" or "undecided"}``.
        control: the baseline over itself.
        width: within so much of 1 arms are the same.
        sound: whether the baseline equals itself.
        samples_s: ``{arm: (rounds,)}``; empty where none were kept, as in ``timing.json``.
        control_s: ``(rounds,)`` of the baseline's second entry; empty where none were kept.
        sentinel_s: seconds of a fixed workload, every few rounds; empty where none were kept.
    """

    baseline: str
    step_s: dict[str, float]
    compile_s: dict[str, float]
    ratios: dict[str, Interval]
    verdicts: dict[str, str]
    control: Interval
    width: float
    sound: bool
    samples_s: dict[str, np.ndarray]
    control_s: np.ndarray
    sentinel_s: np.ndarray


Comparison = StepComparison | Compared | Mapping[str, Any]


def compared(source: Comparison) -> Compared:
    """What the pictures need, of a comparison or of what was kept of one.

    Args:
        source: a ``StepComparison``, what its ``to_dict`` made of it, the content of a file that ``save`` wrote, or
            that of a run's ``timing.json``.

    Raises:
        ValueError: there is no comparison in it.
    """
    if isinstance(source, Compared):
        return source
    samples: Mapping[str, Any] = {}
    if isinstance(source, StepComparison):
        found: Any = source.to_dict()
        arms = {name: {"samples_s": arm.samples_s} for name, arm in source.arms.items()}
        samples = {"arms": arms, "control_s": source.control_s, "sentinel_s": source.sentinel_s}
    elif "found" in source:
        found, samples = source["found"], source
    else:
        found = source.get("step_comparison", source)
    if not isinstance(found, Mapping) or "ratios" not in found:
        raise ValueError(f"source: got {', '.join(source) or 'nothing'}; expected a comparison of steps")  # pyright: ignore
    return Compared(
        baseline=found["baseline"],
        step_s={name: _number(arm["step_us"]) / 1e6 for name, arm in found["arms"].items()},
        compile_s={name: _number(arm["compile_s"]) for name, arm in found["arms"].items()},
        ratios={name: _interval(ratio) for name, ratio in found["ratios"].items()},
        verdicts=dict(found["verdicts"]),
        control=_interval(found["control"]),
        width=_number(found.get("width", 0.0)),
        sound=found["sound"],
        samples_s={name: np.asarray(arm["samples_s"], float) for name, arm in samples.get("arms", {}).items()},
        control_s=np.asarray(samples.get("control_s", ()), float),
        sentinel_s=np.asarray(samples.get("sentinel_s", ()), float),
    )


def draw_forest(axes: Any, comparison: Comparison) -> None:
    """Each arm's time over the baseline's, with its interval and its verdict; shaded is what counts as the same.

    Args:
        axes: of matplotlib.
        comparison: as ``compared`` takes it.
    """
    told = compared(comparison)
    rows = [(name, told.ratios.get(name, Interval(1.0, 1.0, 1.0))) for name in told.step_s]
    rows.append(("the baseline again", told.control))
    wide = inches(axes)[0] > _WIDE
    labels = []
    axes.set_xscale("log")
    axes.axvspan(1 / (1 + told.width), 1 + told.width, color=COLOURS["past"], alpha=0.25, linewidth=0)
    axes.axvline(1, color=INK, linewidth=1, linestyle="--")
    for y, (name, ratio) in enumerate(rows):
        word = "baseline" if name == told.baseline else told.verdicts.get(name, "sound" if told.sound else "UNSOUND")
        colour = INK if word == "baseline" else COLOURS[_WORDS.get(word, "past")]
        marker = {"faster": "<", "slower": ">", "baseline": "D", "UNSOUND": "X"}.get(word, "o")
        if math.isfinite(ratio.low) and math.isfinite(ratio.high):
            axes.plot([ratio.low, ratio.high], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
        axes.plot(ratio.median, y, marker=marker, color=colour, markersize=7, linestyle="none")
        text = word if name == told.baseline else f"{_ratio(ratio.median)}  {word}"
        if not math.isfinite(ratio.low) and name != told.baseline:
            text += ", too few rounds"
        labels.append(name if wide else f"{name}: {text}")
        if wide:
            beside = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": "small", "color": INK}
            axes.text(1.02, y, text, **beside)
    ends = np.array([x for _, ratio in rows for x in ratio] + [1 + told.width, 1 / (1 + told.width)])
    ends = ends[np.isfinite(ends) & (ends > 0)]
    _ratio_axis(axes, float(ends.min()), float(ends.max()), 6 if wide else 4)
    name_rows(axes, labels, lines=2 if wide else 3)
    axes.set_xlabel(f"time / time of {as_written(told.baseline, 30 if wide else 12)}")


def draw_samples(axes: Any, comparison: Comparison) -> None:
    """What was measured, round by round, each arm over its own median: what moves them together is the machine.

    Args:
        axes: of matplotlib.
        comparison: as ``compared`` takes it, with its samples.
    """
    told = compared(comparison)
    axes.set_xlabel("round")
    axes.set_ylabel("time / its median")
    if not told.samples_s:
        remark(axes, "the samples were not kept")
        axes.set_xticks([])
        axes.set_yticks([])
        return
    rounds = max(map(len, told.samples_s.values()))
    for i, (name, samples_s) in enumerate(told.samples_s.items()):
        label = f"{as_written(name, _WHOLE)}, {_us(float(np.median(samples_s)))}"
        style = {"color": SERIES[i % len(SERIES)], "marker": _MARKERS[i % len(_MARKERS)], "markersize": 3}
        _draw_over_median(axes, samples_s, rounds, label=label, linewidth=0.7, **style)
    _draw_over_median(axes, told.sentinel_s, rounds, label="a fixed workload", color=COLOURS["past"], linewidth=1.6)
    axes.axhline(1, color=INK, linewidth=0.6, linestyle="--")
    axes.xaxis.get_major_locator().set_params(integer=True)
    beside = scale(axes, "y", np.concatenate([_over_median(x) for x in told.samples_s.values()]))
    axes.set_ylabel("time / its median" + beside)
    legend_above(axes)


def draw_roofline(axes: Any, limits: Limits | Mapping[str, Any], points: Mapping[str, float] | None = None) -> None:
    """How near steps are to what this machine can do: the share of its peak over FLOPs a byte, under the roof.

    Left of the ridge memory is the limit, right of it arithmetic. Peers do the same work, and stand below or above the
    step; a step called from Python has a lower ceiling, that of the call, one of many kernels that of their launches.

    Args:
        axes: of matplotlib.
        limits: of the step, or its ``_asdict()``.
        points: ``{name: seconds a step}`` of others that do the same work.
    """
    told = limits if isinstance(limits, Limits) else Limits(**{**limits, "notes": tuple(limits.get("notes", ()))})
    if not (told.compute_s and 0 < told.intensity < math.inf and 0 < told.ridge < math.inf):
        remark(axes, "no matrix products, or no bytes: no roof to stand under")
        axes.set_axis_off()
        return
    each = {"this step": told.step_s, **(points or {})}
    shares = {name: told.compute_s / seconds for name, seconds in each.items() if 0 < (seconds or 0) < math.inf}
    x = np.geomspace(min(told.intensity, told.ridge) / 8, max(told.intensity, told.ridge) * 8, 100)
    roof = np.minimum(1, x / told.ridge)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.plot(x, roof, color=INK, linewidth=1.4)
    axes.set_ylim(min(min(shares.values()) / 2, float(roof[0])), 2.5)
    axes.set_xlim(x[0], x[-1])
    ticks = [m * 10.0**k for k in range(-8, 1) for m in (1, 2, 5) if axes.get_ylim()[0] <= m * 10.0**k <= 1]
    ticks = ticks if len(ticks) <= 7 else [x for x in ticks if f"{x:e}".startswith("1")]
    axes.set_yticks(ticks, [f"{100 * share:.3g} %" for share in ticks])
    axes.minorticks_off()
    above = {"fontsize": "small", "color": INK, "va": "bottom", "textcoords": "offset points"}
    axes.annotate("measured peak", (x[-1], 1), ha="right", xytext=(0, 2), **above)
    axes.plot([told.ridge] * 2, [axes.get_ylim()[0], 1], color=COLOURS["past"], linewidth=0.8, linestyle=":")
    axes.annotate(f"ridge {significant(told.ridge, 3)}", (told.ridge, axes.get_ylim()[0]), xytext=(3, 3), **above)
    for name, seconds, style in (("an empty call", told.dispatch_s, "-."), ("its launches", told.launches_s, ":")):
        if told.compute_s < seconds:
            axes.axhline(told.compute_s / seconds, color=COLOURS["past"], linestyle=style, linewidth=1, label=name)
    for i, (name, share) in enumerate(shares.items()):
        colour = COLOURS["hand"] if i == 0 else SERIES[(i - 1) % len(SERIES)]
        style = {"color": colour, "marker": "*" if i == 0 else _MARKERS[i % len(_MARKERS)], "linestyle": "none"}
        label = f"{as_written(name, _WHOLE)}, {_us(each[name])}, {100 * share:.3g} %"
        axes.plot(told.intensity, share, label=label, markersize=11 if i == 0 else 5, zorder=4 - (i > 0), **style)
    axes.set_xlabel("matrix FLOPs a byte")
    axes.set_ylabel("share of the peak")
    legend_above(axes)


def draw_compile_and_steady(axes: Any, comparison: Comparison) -> None:
    """What is paid once and what each step costs; beside them, how many steps take as long as compiling did.

    Args:
        axes: of matplotlib.
        comparison: as ``compared`` takes it.
    """
    told = compared(comparison)
    seconds = np.array([(told.step_s[name], told.compile_s[name]) for name in told.step_s])
    there = seconds[np.isfinite(seconds) & (seconds > 0)]
    axes.set_xscale("log")
    if not there.size:
        remark(axes, "no time is known")
        return
    low, y = there.min() / 3, np.arange(len(seconds))
    bars = (("a step", -0.2, COLOURS["hand"], ""), ("compiling", 0.2, COLOURS["past"], "////"))
    for which, (label, off, colour, hatch) in enumerate(bars):
        value = np.where(np.isfinite(seconds[:, which]) & (seconds[:, which] > low), seconds[:, which], low)
        style = {"facecolor": colour if not hatch else "none", "edgecolor": colour, "hatch": hatch}
        axes.barh(y + off, value - low, 0.36, left=low, label=label, **style)
    for i, (step, compiling) in enumerate(seconds):
        if step > 0 and math.isfinite(compiling / step):
            beside = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": "small", "color": INK}
            axes.text(1.02, i, f"= {compiling / step:,.0f} steps", **beside)
    axes.set_xlim(low, there.max() * 1.5)
    name_rows(axes, list(told.step_s))
    axes.set_xlabel("seconds")
    legend_above(axes)


def _over_median(samples: np.ndarray) -> np.ndarray:
    """Samples over their median; of many rounds the medians of so many groups."""
    groups = np.array_split(samples, min(len(samples), _MOST_GROUPS))
    return np.array([np.median(group) for group in groups]) / np.median(samples)


def _draw_over_median(axes: Any, samples: np.ndarray, rounds: int, **style: Any) -> None:
    if samples.size:
        over = _over_median(samples)
        axes.plot((0.5 + np.arange(len(over))) * rounds / len(over) + 0.5, over, **style)


def _ratio_axis(axes: Any, low: float, high: float, most: int) -> None:
    """Plain numbers on a logarithmic axis, with room on both sides."""
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


def _ratio(ratio: float) -> str:
    return f"{ratio:.3f}" if 0.1 <= ratio < 10 else significant(ratio, 3)


def _interval(told: Mapping[str, Any]) -> Interval:
    return Interval(*(_number(told[key]) for key in ("median", "low", "high")))


def _number(value: float | None) -> float:
    return math.nan if value is None else value
