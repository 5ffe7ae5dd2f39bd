"""A report as one page: a file that opens from disk, asks the network for nothing and holds all that it shows.

What a page holds is said in plain tuples: verdicts in words, sections of pictures, tables and texts, and descent
players, in which a recorded descent is stepped through. Names may hold any characters; they are shown as they are.
"""

import base64
import hashlib
import numbers
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minijaxnet._tables import significant
from minijaxnet.report.player import OneWeight, TwoWeights, player_data
from minijaxnet.report.style import COLOURS

MARKS = {"ok": ("✓", "good"), "warning": ("!", "warning"), "bad": ("✗", "bad"), "neutral": ("–", "note")}
_MISSING = 'pages need jinja2: pip install "minijaxnet[plot]"'


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
        image: an SVG element, as from ``style.to_svg``, taken as it is.
        words: below the picture.
        figure: of matplotlib, to write the picture as a file; None if there is none.
    """

    title: str
    alt: str
    image: str
    words: str = ""
    figure: Any = None


class Text(NamedTuple):
    """A text whose lines and blanks stay as they are, such as a config."""

    title: str
    text: str


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
        ValueError: a kind of verdict that there is not, a row that does not fit its columns, an image that is no
            SVG, a player whose arrays do not fit together.

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
    environment.filters |= {"cells": _cells, "svg": _svg, "player": player_data, "paragraphs": _paragraphs}
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
    value = "" if value is None else value
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    whole = str(value)
    text = significant(float(value), 6) if number and not isinstance(value, numbers.Integral) else whole
    return {"text": text, "full": whole if whole != text else None, "number": number}


def _svg(picture: Picture) -> str:
    """The SVG element with the picture's name."""
    if not picture.image.startswith("<svg"):
        raise ValueError(f"picture {picture.title!r}: got {picture.image[:20]!r}...; expected an SVG element")
    from markupsafe import Markup, escape

    return Markup(f'<svg role="img" aria-label="{escape(picture.alt)}"{picture.image[4:]}')
