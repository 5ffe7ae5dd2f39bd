"""A report as one page: a file that opens from disk, asks the network for nothing and holds all that it shows.

What a page holds is said in plain tuples: verdicts in words, sections of pictures, tables and texts, and descent
players, in which a recorded descent is stepped through. Names may hold any characters; they are shown as they are.
"""

import base64
import hashlib
import math
import numbers
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minijaxnet.report.style import COLOURS, HEIGHTS
from minijaxnet.tables import figure as short

MARKS = {"ok": ("✓", "good"), "warning": ("!", "warning"), "bad": ("✗", "bad"), "neutral": ("–", "note")}
MOST_STOPS = 1_000  # more stops than a slider has places
_BANDS = 24  # colours of a loss surface: few enough that their edges read as contours
_MISSING = 'pages need jinja2 and matplotlib: pip install "minijaxnet[plot]"'


class Verdict(NamedTuple):
    """What was found, in words; the kind is ``"ok"``, ``"warning"``, ``"bad"`` or ``"neutral"``."""

    kind: str
    words: str


class Table(NamedTuple):
    """Rows under their columns. Numbers are shown short and copied in full, so hand them over as numbers."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Picture(NamedTuple):
    """A picture.

    Attributes:
        title: above the picture.
        alt: what it shows, for those who cannot see it.
        image: an SVG element, as from ``style.to_svg``, taken as it is; or a PNG, as from ``style.data_url``.
        words: below the picture.
    """

    title: str
    alt: str
    image: str
    words: str = ""


class Text(NamedTuple):
    """A text whose lines and blanks stay as they are, such as a config."""

    title: str
    text: str


class Curve(NamedTuple):
    """The loss over one weight.

    Attributes:
        weights: ``(points,)``, rising, at least 2 at which all is finite.
        losses: ``(points,)``.
        slopes: ``(points,)``; estimated from the losses where left out, exactly if they are a parabola.
    """

    weights: Any
    losses: Any
    slopes: Any = None


class Stops(NamedTuple):
    """A recorded descent of one weight, ``(stops,)`` each; the last step was not taken. NaN where it diverged."""

    weights: Any
    losses: Any
    slopes: Any
    steps: Any


class OneWeight(NamedTuple):
    """A player of one weight: the record in the bowl, and beside it the bowl at any learning rate.

    Attributes:
        title: above the player.
        weight: the weight's name.
        curve: the bowl.
        stops: the record; anything with the attributes of ``Stops``.
        learning_rate: that of the record, positive.
        curvature: the second derivative of the loss at its lowest point, to mark where a rate overshoots and diverges.
    """

    title: str
    weight: str
    curve: Curve
    stops: Any
    learning_rate: float
    curvature: float | None = None


class TwoWeights(NamedTuple):
    """A player of two weights: the record on the loss surface.

    Attributes:
        title: above the player.
        weights: the names of the two.
        axes: their values ``(n,)`` and ``(m,)``, rising in even steps, at least 2 each.
        surface: ``(n, m)``, the losses there, the first weight along the first axis.
        path: ``(stops, 2)``, the record.
        losses: ``(stops,)``, the loss at each stop.
        learning_rate: that of the record.
    """

    title: str
    weights: tuple[str, str]
    axes: tuple[Any, Any]
    surface: Any
    path: Any
    losses: Any
    learning_rate: float


class Section(NamedTuple):
    """A part of the page: words (a blank line parts paragraphs), then players, pictures, tables and texts."""

    title: str
    words: str = ""
    players: Sequence[OneWeight | TwoWeights] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    texts: Sequence[Text] = ()


class Page(NamedTuple):
    """A whole page.

    Attributes:
        title: its only first heading.
        verdicts: the first thing to be read.
        sections: in their order.
        command: the command that repeats what is shown; none if empty.
        words: a line below the title, such as when and where it ran.
    """

    title: str
    verdicts: Sequence[Verdict]
    sections: Sequence[Section]
    command: str = ""
    words: str = ""


def page(report: Page) -> str:
    """The page as HTML, style and script included.

    Returns:
        The file's text; write it as UTF-8.

    Raises:
        ImportError: jinja2 or matplotlib is not installed.
        ValueError: a kind of verdict that there is not, a row that does not fit its columns, an image that is neither
            SVG nor PNG, a player whose arrays do not fit together.

    Example:
        >>> text = page(Page("line", [Verdict("ok", "The gradient is <right>.")], []))
        >>> text.startswith("<!doctype html>"), "The gradient is &lt;right&gt;." in text
        (True, True)
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ImportError(_MISSING) from error
    for verdict in report.verdicts:
        if verdict.kind not in MARKS:
            raise ValueError(f"verdicts: got the kind {verdict.kind!r}; expected one of {', '.join(MARKS)}")
    script = _file("scenes.js") + _file("player.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {"cells": _cells, "svg": _svg, "player": _player, "paragraphs": _paragraphs}
    return environment.from_string(_file("page.html.jinja")).render(
        report=report,
        marks=MARKS,
        colours=COLOURS,
        style=_file("page.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _file(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _paragraphs(words: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", words.strip()) if part]


def _cells(table: Table) -> list[list[dict[str, Any]]]:
    """Each cell as it is shown, as it is copied where that is longer, and whether it is a number."""
    for row in table.rows:
        if len(row) != len(table.columns):
            raise ValueError(
                f"table {table.caption!r}: got a row of {len(row)} cells; expected {len(table.columns)}, one a column"
            )
    return [[_cell(value) for value in row] for row in table.rows]


def _cell(value: Any) -> dict[str, Any]:
    """A cell.

    >>> _cell(1 / 3)
    {'text': '0.333333', 'full': '0.3333333333333333', 'number': True}
    >>> _cell("weights")
    {'text': 'weights', 'full': None, 'number': False}
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    whole = "" if value is None else str(value)
    text = short(float(value), 6) if number and not isinstance(value, numbers.Integral) else whole
    return {"text": text, "full": whole if whole != text else None, "number": number}


def _svg(picture: Picture) -> str | None:
    """The SVG element with the picture's name; None for a PNG."""
    if picture.image.startswith("data:image/png;base64,"):
        return None
    if not picture.image.startswith("<svg"):
        raise ValueError(f"picture {picture.title!r}: got {picture.image[:20]!r}...; expected an SVG element or a PNG")
    from markupsafe import Markup, escape

    return Markup(f'<svg role="img" aria-label="{escape(picture.alt)}"{picture.image[4:]}')


def _player(player: OneWeight | TwoWeights) -> dict[str, Any]:
    """What the script needs to know of a player, and what the template says of it."""
    return _one_weight(player) if isinstance(player, OneWeight) else _two_weights(player)


def _one_weight(player: OneWeight) -> dict[str, Any]:
    where, stops = f"player {player.title!r}", player.stops
    record = [np.atleast_1d(values) for values in (stops.weights, stops.losses, stops.slopes, stops.steps)]
    shown = _shown(where, record)
    if not (math.isfinite(player.learning_rate) and player.learning_rate > 0):
        raise ValueError(f"{where}: learning_rate: got {player.learning_rate}; expected a positive number")
    weights, losses = (np.asarray(values, float) for values in player.curve[:2])
    if weights.ndim != 1 or weights.shape != losses.shape:
        raise ValueError(f"{where}: curve: got shapes {weights.shape} and {losses.shape}; expected two equal rows")
    finite = np.isfinite(weights) & np.isfinite(losses)
    if player.curve.slopes is not None:
        finite &= np.isfinite(np.asarray(player.curve.slopes, float))
    weights, losses = weights[finite], losses[finite]
    if len(weights) < 2 or not (np.diff(weights) > 0).all():
        raise ValueError(f"{where}: curve: got {len(weights)} finite points; expected 2 or more, their weights rising")
    if player.curve.slopes is None:
        slopes = np.gradient(losses, weights, edge_order=min(2, len(weights) - 1))
    else:
        slopes = np.asarray(player.curve.slopes, float)[finite]
    curvature = player.curvature if player.curvature is not None and 0 < player.curvature < math.inf else None
    data = {
        "curve": [_plain(values) for values in (weights, losses, slopes)],
        "stops": [_plain(values[shown]) for values in record],
        "at": shown.tolist(),
        "names": [player.weight, "loss"],
        "rate": float(player.learning_rate),
        "curvature": curvature,
    }
    keys = [("w0", player.weight), ("loss", "loss"), ("slope", "slope"), ("step0", "step taken")]
    return {"kind": "one", "data": data, "keys": keys, "stops": len(shown), "of": len(record[0])}


def _two_weights(player: TwoWeights) -> dict[str, Any]:
    where, path = f"player {player.title!r}", np.asarray(player.path)
    axes, surface = [np.asarray(axis, float) for axis in player.axes], np.asarray(player.surface)
    for axis in axes:
        steps = np.diff(axis)
        if axis.ndim != 1 or len(axis) < 2 or not (steps > 0).all() or np.ptp(steps) > 1e-3 * steps.mean():
            raise ValueError(f"{where}: axes: got shape {axis.shape}; expected 2 values or more, rising in even steps")
    if surface.shape != tuple(map(len, axes)):
        raise ValueError(f"{where}: surface: got shape {surface.shape}; expected {tuple(map(len, axes))}, as the axes")
    if path.ndim != 2 or path.shape[1] != 2:
        raise ValueError(f"{where}: path: got shape {path.shape}; expected (stops, 2)")
    steps = np.diff(path, axis=0, append=np.nan)
    record = [*path.T, np.atleast_1d(player.losses), *steps.T]
    shown = _shown(where, record)
    data = {
        "axes": [_plain(axis[[0, -1]]) for axis in axes],
        "surface": [_plain(row) for row in surface],
        "stops": [_plain(values[shown]) for values in record],
        "at": shown.tolist(),
        "names": list(player.weights),
        "colours": _height_colours(),
    }
    first, second = player.weights
    keys = [("w0", first), ("w1", second), ("loss", "loss"), ("step0", f"step in {first}"), ("step1", f"step in {second}")]
    return {"kind": "two", "data": data, "keys": keys, "stops": len(shown), "of": len(path)}


def _shown(where: str, record: Sequence[np.ndarray]) -> np.ndarray:
    """Which stops the slider has: all of a short record; of a long one the first, the last and the early ones most."""
    sizes = {values.shape for values in record}
    if len(sizes) != 1 or record[0].ndim != 1 or not len(record[0]):
        raise ValueError(f"{where}: stops: got shapes {sorted(sizes)}; expected one or more stops, as many of each")
    n = len(record[0])
    if n <= MOST_STOPS:
        return np.arange(n)
    ranks = np.concatenate([np.linspace(1, n, MOST_STOPS // 2), np.geomspace(1, n, MOST_STOPS // 2)])
    return np.unique(np.rint(ranks).astype(int)) - 1


def _plain(values: np.ndarray) -> list[float | str]:
    """Numbers as JSON has them: the shortest that round to the same in their dtype; others as JavaScript names them.

    >>> _plain(np.array([0.1, np.nan, -np.inf], np.float32))
    [0.1, 'NaN', '-Infinity']
    """
    named = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    return [named.get(text) or float(text) for text in map(str, values)]


def _height_colours() -> list[list[int]]:
    try:
        from matplotlib import colormaps
    except ImportError as error:
        raise ImportError(_MISSING) from error
    return colormaps[HEIGHTS](np.linspace(0, 1, _BANDS), bytes=True)[:, :3].tolist()
