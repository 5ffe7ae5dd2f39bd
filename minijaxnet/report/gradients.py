"""Pictures of a gradient check: the error of each leaf beside what rounding explains, and the loss of precision."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from minijaxnet.report.axes import as_written, in_lines, inches, legend_above, name_rows, remark
from minijaxnet.report.style import COLOURS, INK
from minijaxnet.verify import GradReport
from minijaxnet.verify.report import headline_of, subject_of, values

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROOM = 10.0  # the edges are this many times beyond the smallest and the largest: for zero, and for not finite
_NEAREST, _FARTHEST = 1e-60, 1e60  # errors beyond are drawn at the edges
_LETTERS = 13  # an inch
_TICKS = (0.01, 0.1, 0.2, 0.5, 1, 2, 5, 10, 100)

Report = GradReport | Mapping[str, Any]


def draw_errors(axes: "Axes", report: Report) -> None:
    """How far the rule is from its reference in each leaf, in float64, beside what rounding explains there.

    A dot within the tolerance, its bar, is right; a cross beyond it is wrong. An open circle at the left edge is no
    difference at all; a triangle at the right edge is one that is not finite. The worst element is named below.

    Args:
        axes: of matplotlib.
        report: of ``check_grad``, or what its ``to_dict`` made of it.
    """
    found = _as_dict(report)
    leaves = list(found["leaves"].values())
    judged, reference = subject_of(found)
    errors, tolerances = (np.array([_number(leaf[key]) for leaf in leaves]) for key in ("error", "tolerance"))
    wrong = np.array([leaf["share_wrong"] != 0 for leaf in leaves], bool)
    finite = np.concatenate([errors, tolerances])
    finite = np.clip(finite[np.isfinite(finite) & (finite > 0)], _NEAREST, _FARTHEST)
    low, high = (finite.min() / _ROOM, finite.max() * _ROOM) if finite.size else (1e-17, 1.0)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    y = np.arange(len(leaves))
    bars: Any = {"height": 0.6, "color": COLOURS["past"], "alpha": 0.3, "linewidth": 0, "label": "rounding explains"}
    axes.barh(y, np.clip(np.where(np.isfinite(tolerances), tolerances, high), low, high) - low, left=low, **bars)
    x = np.where(np.isfinite(errors), np.clip(errors, low, high), high)
    axes.hlines(y, low, x, color=INK, linewidth=0.8)
    for where, marker, colour, label in (
        ((errors > 0) & np.isfinite(errors) & ~wrong, "o", COLOURS["hand"], f"difference from {reference}"),
        ((errors > 0) & np.isfinite(errors) & wrong, "X", COLOURS["diverged"], "difference, too large"),
        (errors == 0, "o", COLOURS["hand"], "no difference"),
        (~np.isfinite(errors), ">", COLOURS["diverged"], "not finite"),
    ):
        if where.any():
            face = "none" if label == "no difference" else colour
            style: Any = {
                "linestyle": "none",
                "color": colour,
                "markerfacecolor": face,
                "markersize": 6,
                "clip_on": False,
            }
            axes.plot(x[where], y[where], marker=marker, label=label, zorder=3, **style)
    name_rows(axes, [leaf["path"] for leaf in leaves])
    room = int(_LETTERS * inches(axes)[0])
    worst = worst_element(found)
    named = f"\n{in_lines(as_written(f'worst: {worst}', 120), room)}" if worst else ""
    axes.set_xlabel(f"absolute difference, in float64{named}")
    legend_above(axes, f"{judged}: {headline_of(found)}")


def draw_precision(axes: "Axes", report: Report) -> None:
    """The rule's rounding error in each leaf, in multiples of autodiff's own.

    Args:
        axes: of matplotlib.
        report: of ``check_grad``, or what its ``to_dict`` made of it; leaves that were not measured are left out.
    """
    leaves = [leaf for leaf in _as_dict(report)["leaves"].values() if leaf["precision_ratio"] is not None]
    leaves = [leaf for leaf in leaves if math.isfinite(leaf["precision_ratio"]) and leaf["precision_ratio"] > 0]
    if not leaves:
        remark(axes, "precision was not measured")
        axes.set_axis_off()
        return
    ratios, y = np.array([leaf["precision_ratio"] for leaf in leaves]), np.arange(len(leaves))
    axes.axvline(1, color=COLOURS["autodiff"], linestyle="--", linewidth=1, label="autodiff")
    axes.set_xscale("log")
    axes.hlines(y, 1, ratios, color=COLOURS["hand"], linewidth=1.2)
    axes.plot(ratios, y, color=COLOURS["hand"], marker="o", linestyle="none", label="by hand")
    far = max(2.0, 1.3 * ratios.max(), 1.3 / ratios.min())
    axes.set_xlim(1 / far, far)
    ticks = [x for x in _TICKS if 1 / far <= x <= far]
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.minorticks_off()
    name_rows(axes, [leaf["path"] for leaf in leaves])
    axes.set_xlabel("rounding error / autodiff's")
    legend_above(axes)


def worst_element(report: Report) -> str:
    """The element with the largest error for its tolerance, with both its values; "" if no element is wrong."""
    found = _as_dict(report)
    leaves = [leaf for leaf in found["leaves"].values() if leaf["share_wrong"] != 0]
    if not leaves:
        return ""
    worst = max(leaves, key=lambda leaf: _number(leaf["error"]) / (_number(leaf["tolerance"]) or math.ulp(0.0)))
    place = f"{worst['path']}{list(worst['index']) if worst['index'] else ''}"
    return f"{place}: {values(_number(worst['hand']), _number(worst['reference']), subject_of(found))}"


def _as_dict(report: Report) -> Mapping[str, Any]:
    return report.to_dict() if isinstance(report, GradReport) else report


def _number(value: float | None) -> float:
    """A number from JSON, which has null for what is not finite."""
    return math.inf if value is None else value
