"""Pictures of a gradient check: each leaf's error beside what rounding explains, and why finite differences mislead."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._trees import cast_floats, floating_arrays, structure_difference
from minijaxnet.descent import ObjectiveFn
from minijaxnet.report.axes import as_written, in_lines, inches, legend_above, name_rows, remark
from minijaxnet.report.style import COLOURS, INK
from minijaxnet.verify import GradReport
from minijaxnet.verify.report import headline_of, subject_of, values

_ROOM = 10.0  # beyond the smallest and the largest, for what is zero or not finite
_SEEN = (1e-60, 1e60)  # what is beyond stands at the edge
_HALVINGS = 48
_TRUNCATED = 8  # points of that branch that count, those with the smallest steps
_LETTERS = 13  # an inch has room for


class DifferenceErrors(NamedTuple):
    """How far central differences are from the derivative.

    Attributes:
        steps: ``(points,)``, falling, in lengths of the direction; each half of the one before.
        errors: ``{"float32", "float64": (points,)}``, float64: ``|difference - derivative| / |derivative|``, or, where
            the derivative is 0, without the division.
    """

    steps: np.ndarray
    errors: dict[str, np.ndarray]


def difference_errors(objective: ObjectiveFn, params: Any, batch: Any, direction: Any) -> DifferenceErrors:
    """Central differences along a direction against the derivative, for steps of all sizes.

    ::

        (L(params + h d) - L(params - h d)) / 2h - dL/dd  =  c h^2  +  rounding of L / h

    One compiled program for each dtype evaluates all steps. The derivative is a ``jvp`` in float64.

    Args:
        objective: ``f(params, batch)``, a scalar.
        params: where; a pytree of floating arrays.
        batch: what the objective looks at.
        direction: a pytree of real numbers like ``params``, not all zero.

    Returns:
        Steps from 1 down to 2^-47, and errors in float32 and float64.

    Raises:
        TypeError: a direction of another structure than ``params``.

    Example:
        >>> found = difference_errors(lambda w, batch: jnp.sin(w), 1.0, None, 1.0)
        >>> print(found.steps[10], found.errors["float64"].min() < 1e-10 < 1e-6 < found.errors["float32"].min())
        0.0009765625 True
    """
    params = jax.tree.map(np.asarray, floating_arrays(params, "params"))
    direction = jax.tree.map(np.asarray, floating_arrays(direction, "direction"))
    shapes = [jax.tree.map(lambda leaf: np.zeros(leaf.shape, bool), tree) for tree in (direction, params)]
    if difference := structure_difference(*shapes):
        raise TypeError(f"direction: {difference.replace('bool', '')}")
    batch = jax.tree.map(np.asarray, batch)
    steps = 0.5 ** np.arange(_HALVINGS)
    with jax.enable_x64(True):
        wide = [cast_floats(tree, jnp.float64) for tree in (params, batch, direction)]
        derivative = float(jax.jvp(lambda at: objective(at, wide[1]), (wide[0],), (wide[2],))[1])
    errors = {}
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            at, seen, along = (cast_floats(tree, dtype) for tree in (params, batch, direction))
            found = np.asarray(_differences(objective, at, seen, along, jnp.asarray(steps, dtype)), np.float64)
        errors[dtype] = np.abs(found - derivative) / (abs(derivative) or 1.0)
    return DifferenceErrors(steps, errors)


def _differences(objective: ObjectiveFn, params: Any, batch: Any, direction: Any, steps: jax.Array) -> jax.Array:
    def difference(step: jax.Array) -> jax.Array:
        def at(offset: jax.Array) -> jax.Array:
            return objective(jax.tree.map(lambda leaf, along: leaf + offset * along, params, direction), batch)

        return (at(step) - at(-step)) / (2 * step)

    return jax.jit(jax.vmap(difference))(steps)


def draw_difference_errors(axes: Any, found: DifferenceErrors) -> None:
    """The error of a central difference over its step: truncation on the right, rounding on the left.

    A line is fitted to each branch, and its slope written beside it: 2 and -1 where theory holds.

    Args:
        axes: of matplotlib.
        found: by ``difference_errors``.
    """
    looks = {"float32": ("test", "s"), "float64": ("train", "o")}
    nothing = True
    for dtype, errors in found.errors.items():
        colour, marker = COLOURS[looks[dtype][0]], looks[dtype][1]
        there = np.isfinite(errors) & (errors > 0)
        if not there.any():
            continue
        nothing = False
        style = {"color": colour, "marker": marker, "markersize": 3, "linestyle": "none"}
        axes.plot(found.steps[there], errors[there], label=dtype, **style)
        for slope, height, x in branches(found.steps[there], errors[there]):
            y = np.exp(height) * x**slope
            axes.plot(x, y, color=colour, linewidth=1, linestyle="-" if slope > 0 else "--")
            middle = {"ha": "left", "va": "bottom" if slope < 0 else "top", "fontsize": "small", "color": INK}
            beside = {"xytext": (4, 0), "textcoords": "offset points"}
            at = (float(np.sqrt(x[0] * x[-1])), float(np.sqrt(y[0] * y[-1])))
            axes.annotate(f"slope {slope:.2f}".replace("-", "−"), at, **beside, **middle)
    if nothing:
        remark(axes, "no difference is finite, or all are exact")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(found.steps.min() / 2, 2 * found.steps.max())
    axes.set_xlabel("step, in lengths of the direction")
    axes.set_ylabel("error / derivative")
    if not nothing:
        axes.legend(fontsize="small", loc="lower left")


def branches(steps: np.ndarray, errors: np.ndarray) -> list[tuple[float, float, np.ndarray]]:
    """The straight branches of ``log error`` over ``log step``, on either side of the least error.

    Args:
        steps: ``(points,)``, falling.
        errors: ``(points,)``, positive and finite.

    Returns:
        ``(slope, height at step 1, steps)`` of truncation and then of rounding; a branch of less than three points is
        left out. Near the least error both count; with the largest steps more than the first term does; and where
        the difference is 0, an error of exactly 1, so small a step has changed nothing.

    Example:
        >>> steps = 0.5 ** np.arange(40)
        >>> [round(slope, 2) for slope, _, _ in branches(steps, steps**2 + 1e-16 / steps)]
        [2.0, -1.0]
    """
    least = int(np.argmin(errors))
    clear = errors > 10 * errors[least]
    larger = clear & (errors < 0.5) & (np.arange(len(errors)) < least)
    smaller = clear & (np.abs(errors - 1) > 1e-6) & (np.arange(len(errors)) > least)
    found = []
    for branch, most in ((larger, _TRUNCATED), (smaller, len(steps))):
        x, y = steps[branch][-most:], errors[branch][-most:]
        if len(x) >= 3:
            slope, height = np.polyfit(np.log(x), np.log(y), 1)
            found.append((float(slope), float(height), x))
    return found


def draw_errors(axes: Any, report: GradReport | Mapping[str, Any]) -> None:
    """How far the rule is from its reference in each leaf, in float64, beside what rounding explains there.

    A dot within the tolerance, its bar, is right; a cross beyond it is wrong. Open circles at the left edge are no
    difference at all; a triangle at the right edge is one that is not finite. Below is the worst element.

    Args:
        axes: of matplotlib.
        report: of ``check_grad``, or what its ``to_dict`` made of it.
    """
    told = _told(report)
    leaves = list(told["leaves"].values())
    title = f"{subject_of(told)[0]}: {headline_of(told)}"
    if not leaves:
        axes.set_title(title)
        first = next((verdict["reason"] for verdict in told["verdicts"].values() if verdict["state"] == "fail"), "")
        remark(axes, as_written(first or "no leaf could be compared", 60))
        axes.set_axis_off()
        return
    errors, tolerances = (np.array([_number(leaf[key]) for leaf in leaves]) for key in ("error", "tolerance"))
    wrong = np.array([leaf["share_wrong"] != 0 for leaf in leaves])
    finite = np.concatenate([errors, tolerances])
    finite = np.clip(finite[np.isfinite(finite) & (finite > 0)], *_SEEN)
    low, high = (finite.min() / _ROOM, finite.max() * _ROOM) if finite.size else (1e-17, 1.0)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    y = np.arange(len(leaves))
    axes.barh(y, np.clip(np.where(np.isfinite(tolerances), tolerances, high), low, high) - low, left=low, **_BAR)
    shown = np.where(np.isfinite(errors), np.clip(errors, low, high), high)
    axes.hlines(y, low, shown, color=INK, linewidth=0.8)
    for where, marker, colour, label in (
        ((errors > 0) & np.isfinite(errors) & ~wrong, "o", COLOURS["hand"], f"difference from {subject_of(told)[1]}"),
        ((errors > 0) & np.isfinite(errors) & wrong, "X", COLOURS["diverged"], "difference, too large"),
        (errors == 0, "o", COLOURS["hand"], "no difference"),
        (~np.isfinite(errors), ">", COLOURS["diverged"], "not finite"),
    ):
        if where.any():
            face = "none" if label == "no difference" else colour
            style = {"linestyle": "none", "color": colour, "markerfacecolor": face, "markersize": 6, "clip_on": False}
            axes.plot(shown[where], y[where], marker=marker, label=label, zorder=3, **style)
    name_rows(axes, [leaf["path"] for leaf in leaves])
    worst = worst_element(told)
    room = int(_LETTERS * inches(axes)[0])
    named = f"\n{in_lines(as_written(f'worst: {worst}', 120), room)}" if worst else ""
    axes.set_xlabel(f"absolute difference, in float64{named}")
    legend_above(axes, title)


_BAR: Any = {"height": 0.6, "color": COLOURS["past"], "alpha": 0.3, "linewidth": 0, "label": "rounding explains"}


def draw_precision(axes: Any, report: GradReport | Mapping[str, Any]) -> None:
    """How far rounding takes the hand rule from the truth in each leaf, in multiples of autodiff's own rounding error.

    Args:
        axes: of matplotlib.
        report: of ``check_grad``, or what its ``to_dict`` made of it; leaves that were not measured are left out.
    """
    leaves = [leaf for leaf in _told(report)["leaves"].values() if leaf["precision_ratio"] is not None]
    leaves = [leaf for leaf in leaves if math.isfinite(leaf["precision_ratio"]) and leaf["precision_ratio"] > 0]
    axes.axvline(1, color=COLOURS["autodiff"], linestyle="--", linewidth=1, label="autodiff")
    if not leaves:
        remark(axes, "precision was not measured")
        axes.set_axis_off()
        return
    ratios, y = np.array([leaf["precision_ratio"] for leaf in leaves]), np.arange(len(leaves))
    axes.set_xscale("log")
    axes.hlines(y, 1, ratios, color=COLOURS["hand"], linewidth=1.2)
    axes.plot(ratios, y, color=COLOURS["hand"], marker="o", linestyle="none", label="by hand")
    far = max(2.0, 1.3 * ratios.max(), 1.3 / ratios.min())
    axes.set_xlim(1 / far, far)
    ticks = [x for x in (0.01, 0.1, 0.2, 0.5, 1, 2, 5, 10, 100) if 1 / far <= x <= far]
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.minorticks_off()
    name_rows(axes, [leaf["path"] for leaf in leaves])
    axes.set_xlabel("rounding error / autodiff's")
    legend_above(axes)


def verdict_line(report: GradReport | Mapping[str, Any]) -> str:
    """The verdicts, in one line.

    >>> verdict_line({"ok": True, "verdicts": {"primal": {"state": "pass"}, "algebra": {"state": "pass"}}})
    'right: primal pass, algebra pass'
    >>> verdict_line({"ok": False, "headline": "unchecked", "verdicts": {"algebra": {"state": "unchecked"}}})
    'unchecked: algebra unchecked'
    """
    told = _told(report)
    each = ", ".join(f"{name} {verdict['state']}" for name, verdict in told["verdicts"].items())
    return f"{headline_of(told)}: {each}"


def worst_element(report: GradReport | Mapping[str, Any]) -> str:
    """The element that is most wrong, with its values by hand and by autodiff; "" if none is wrong."""
    told = _told(report)
    leaves = [leaf for leaf in told["leaves"].values() if leaf["share_wrong"] != 0]
    if not leaves:
        return ""
    worst = max(leaves, key=lambda leaf: _number(leaf["error"]) / (_number(leaf["tolerance"]) or math.ulp(0.0)))
    place = f"{worst['path']}{list(worst['index']) if worst['index'] else ''}"
    return f"{place}: {values(_number(worst['hand']), _number(worst['reference']), subject_of(told))}"


def _told(report: GradReport | Mapping[str, Any]) -> Mapping[str, Any]:
    return report.to_dict() if isinstance(report, GradReport) else report


def _number(value: float | None) -> float:
    """JSON has no infinity and no NaN: where they were is None."""
    return math.inf if value is None else value
