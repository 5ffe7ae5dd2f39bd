"""Tables of results, as plain text and as HTML for a notebook."""

import html
import unicodedata
from collections.abc import Sequence
from typing import Any


def text_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str = "") -> str:
    """Format rows under their headings, the first column flush left, the others flush right.

    Args:
        columns: the headings.
        rows: one cell per column; cells are formatted by ``str``.
        title: a line above the table.

    Returns:
        Lines without trailing blanks.

    Raises:
        ValueError: a row has more or fewer cells than there are columns.

    Example:
        >>> print(text_table(("leaf", "error"), [("weights", 1.5), ("bias", 10)]))
        leaf     error
        --------------
        weights    1.5
        bias        10
    """
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"rows: got one of {len(row)} cells; expected {len(columns)}, one per column")
    cells = [[printable(str(cell)) for cell in row] for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        first, *rest = (
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join((first, *rest)).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([*([title] if title else []), line(cells[0]), rule, *map(line, cells[1:])])


def printable(text: str, keep: str = "") -> str:
    """Replace control characters, and others that a terminal cannot show, by Python's escapes.

    Args:
        text: any text.
        keep: control characters that stay.

    >>> print(printable("a\x1b[2J"))
    a\\x1b[2J
    """

    def escaped(character: str) -> str:
        is_control = character not in keep and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        return character.encode("unicode_escape").decode() if is_control else character

    return text if text.isascii() and text.isprintable() else "".join(map(escaped, text))


def html_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Format rows as a table of HTML; the first cell of each row is a heading, too.

    >>> html_table(("leaf", "error"), [("w<1>", 0)])
    '<table><thead><tr><th>leaf</th><th>error</th></tr></thead><tbody><tr><th>w&lt;1&gt;</th><td>0</td></tr></tbody></table>'
    """
    heading = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    kinds = ("th", *["td"] * len(columns))
    lines = [
        "".join(f"<{kind}>{html.escape(str(cell))}</{kind}>" for kind, cell in zip(kinds, row, strict=False))
        for row in rows
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table>"


def html_result(
    verdict: str, *tables: tuple[Sequence[str], Sequence[Sequence[Any]]], remarks: Sequence[str] = ()
) -> str:
    """Format a result for a notebook: a verdict, tables and remarks.

    >>> html_result("right", remarks=["a < b"])
    '<div><p><strong>right</strong></p><p>a &lt; b</p></div>'
    """
    parts = [f"<p><strong>{html.escape(verdict)}</strong></p>", *(html_table(*table) for table in tables)]
    parts += [f"<p>{html.escape(text)}</p>" for text in remarks]
    return f"<div>{''.join(parts)}</div>"


def significant(value: float, digits: int = 4) -> str:
    """Format a number with a few significant digits.

    >>> significant(0.000123456), significant(1234567.0), significant(12.5)
    ('0.0001235', '1.235e+06', '12.5')
    """
    return f"{value:.{digits}g}"


def percent(share: float) -> str:
    """Format a share as a percentage.

    >>> percent(0.9722)
    '97.2 %'
    """
    return f"{100 * share:.1f} %"
