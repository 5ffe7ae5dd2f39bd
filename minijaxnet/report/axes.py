"""What pictures of numbers share: names, legends, scales that suit the numbers, and fewer points for long lines."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minijaxnet.report.style import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DECADE = 10.0
_NAME = 22  # letters beside a row
_FAR = 1e100
_WIDE = 3.0  # inches: room for two columns in a legend
_LETTERS, _HANDLE = 15, 6  # in a legend: letters an inch, and the width of the line before a label, in letters
_MOST_POINTS = 2_000  # of a line


def as_written(name: Any, most: int = 40) -> str:
    r"""A name that matplotlib draws as it is: a dollar starts no formula, and what is too long is cut in its middle.

    >>> as_written("cost in $"), as_written("a" * 30 + "z" * 30, most=9)
    ('cost in \\$', 'aaaa…zzzz')
    """
    name = " ".join(str(name).split())
    if len(name) > most:
        name = f"{name[: most // 2]}…{name[-(most // 2) :]}"
    return name.replace("$", r"\$")


def remark(axes: "Axes", text: str) -> None:
    """A sentence in the middle of axes that are empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize="small", color=INK)


def in_lines(text: str, width: int) -> str:
    """A long text in lines, which may also begin at a bracket: so paths of leaves stay readable.

    >>> print(in_lines("['blocks'][3]['weights']", 16))
    ['blocks'][3]
    ['weights']
    """
    lines = textwrap.wrap(text.replace("][", "] ["), width, break_on_hyphens=False)
    return "\n".join(line.replace("] [", "][") for line in lines)


def name_rows(axes: "Axes", names: Sequence[str], *, lines: int = 2) -> None:
    """Name the rows of a picture, from above; a long name takes several lines, at most so many."""
    named = [in_lines(as_written(name, 1_000), _NAME).split("\n") for name in names]
    short = [each if len(each) <= lines else [*each[: lines - 1], f"…{each[-1]}"] for each in named]
    axes.set_yticks(range(len(names)), ["\n".join(each) for each in short])
    axes.set_ylim(len(names) - 0.4, -0.6)


def inches(axes: "Axes") -> tuple[float, float]:
    """About how wide and how high the axes are."""
    figure: Any = axes.get_figure(root=True)
    (width, height), box = figure.get_size_inches(), axes.get_position()
    return float(width * box.width), float(height * box.height)


def legend_above(axes: "Axes", title: str = "") -> None:
    """The legend above the axes, in lines that are no wider, and a title above that."""
    handles, labels = axes.get_legend_handles_labels()
    wide, room = inches(axes)[0] > _WIDE, int(_LETTERS * inches(axes)[0])
    columns = 2 if wide and all(len(label) <= room // 2 - _HANDLE for label in labels) else 1
    labels = [in_lines(label, max(room // columns - _HANDLE, _HANDLE)) for label in labels]
    if labels:
        place: Any = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2, "handletextpad": 0.5}
        axes.legend(handles, labels, fontsize="small", ncols=columns, columnspacing=1.2, **place)
    if title:
        lines = -(-sum(1 + label.count("\n") for label in labels) // columns)
        axes.set_title(title, fontsize="large" if wide else "medium", pad=6 + 12.5 * lines)


def limits(values: np.ndarray, margin: float) -> tuple[float, float]:
    """The range of some values with a margin; of width 2 where they are all the same, from 0 to 1 if there are none."""
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    wide = margin * (high - low) or max(abs(low) * 0.1, 1.0)
    return low - wide, high + wide


def spans_a_decade(values: np.ndarray) -> bool:
    """Whether finite numbers are all positive and the largest is more than ten times the smallest.

    >>> spans_a_decade(np.array([1.0, 11.0])), spans_a_decade(np.array([0.0, 11.0]))
    (True, False)
    """
    return bool(values.size and values.min() > 0 and values.max() / _DECADE > values.min())


def scale(axes: "Axes", which: str, values: np.ndarray) -> str:
    """Give the axis the scale that suits the numbers: logarithmic where they are positive and span more than a decade.

    With zeros among such numbers the axis is logarithmic down to the smallest positive one, and linear below.

    Args:
        axes: of matplotlib.
        which: ``"x"`` or ``"y"``.
        values: the numbers along it; those that are not finite are left out.

    Returns:
        Text for the axis' label: where the axis is linear, or "".
    """
    values = np.asarray(values, np.float64).ravel()
    values = values[np.isfinite(values)]
    positive, set_scale = values[values > 0], getattr(axes, f"set_{which}scale")
    if spans_a_decade(values):
        extreme = values.min() < 1 / _FAR or values.max() > _FAR
        if extreme:  # matplotlib's own margins and ticks would overflow
            getattr(axes, f"set_{which}lim")(values.min(), values.max())
        set_scale("log")
        if extreme:
            low, high = (float(np.log10(end)) for end in (values.min(), values.max()))
            getattr(axes, f"set_{which}ticks")(10.0 ** np.trunc(np.linspace(low, high, 5)))
            getattr(axes, f"set_{which}ticks")([], minor=True)
    elif positive.size < values.size and not (values < 0).any() and spans_a_decade(positive):
        least = float(positive.min())
        set_scale("symlog", linthresh=least, linscale=0.5)
        getattr(axes, f"set_{which}lim")(0 if which == "x" else -0.1 * least, None)
        return f", linear below {least:.2g}"
    return ""


def thin(values: np.ndarray, most: int = _MOST_POINTS) -> np.ndarray:
    """Which points of a long line to draw, so that it looks the same: its ends, its spikes and its gaps.

    The line is cut into stretches of equally many points. Of each stretch the lowest and the highest finite value
    stay, and the first one that is not finite.

    Args:
        values: ``(points,)``; NaN and infinity are gaps.
        most: how many points may stay, at least 5.

    Returns:
        Their indices, rising: all, if there are no more than ``most``.

    Example:
        >>> kept = thin(np.where(np.arange(1_000_000) == 123_456, 9.0, 1.0))
        >>> print(len(kept) <= 2_000, kept[0], kept[-1], 123_456 in kept)
        True 0 999999 True
    """
    if len(values) <= most:
        return np.arange(len(values))
    finite = np.isfinite(values)
    stretches = (most - 2) // (2 if finite.all() else 3)
    size = -(-len(values) // stretches)
    padding = -len(values) % size

    def rows(array: np.ndarray, beyond: float) -> np.ndarray:
        return np.pad(array, (0, padding), constant_values=beyond).reshape(-1, size)

    first = np.arange(0, len(values), size)
    lowest = np.argmin(rows(np.where(finite, values, np.inf), np.inf), axis=1)
    highest = np.argmax(rows(np.where(finite, values, -np.inf), -np.inf), axis=1)
    gaps = rows(~finite, False)
    broken = (first + np.argmax(gaps, axis=1))[gaps.any(axis=1)]
    return np.unique(np.concatenate([[0], first + lowest, first + highest, broken, [len(values) - 1]]))
