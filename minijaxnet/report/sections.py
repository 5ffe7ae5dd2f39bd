"""Sections of a page, with their pictures drawn; what fails costs itself alone."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from minijaxnet.report.page import Picture, Section, Table
from minijaxnet.report.player import player_data
from minijaxnet.report.style import WIDTH, NoMatplotlib, figure, styled, to_svg


class Wanted(NamedTuple):
    """A picture that is to be drawn.

    Attributes:
        title: above it.
        alt: what it shows, for those who cannot see it.
        draw: draws it, given axes; given the figure if ``whole``.
        height: inches, at a column's width.
        whole: whether it lays the figure out itself.
        words: below it.
    """

    title: str
    alt: str
    draw: Callable[[Any], None]
    height: float = 3.0
    whole: bool = False
    words: str = ""


class Seen(NamedTuple):
    """What a section shows, not drawn yet."""

    words: str
    wanted: Sequence[Wanted] = ()
    players: Sequence[Any] = ()
    tables: Sequence[Table] = ()


def illustrated(title: str, seen: Seen) -> Section:
    """A section with its pictures drawn; of those that failed, players among them, it says why."""
    pictures, failed = drawn(seen.wanted)
    players = []
    for player in seen.players:
        try:
            player_data(player)
        except ValueError as error:
            failed.append(f"The descent cannot be stepped through: {error}")
        else:
            players.append(player)
    return Section(title, "\n\n".join([seen.words, *failed]), players, pictures, seen.tables)


def drawn(wanted: Iterable[Wanted]) -> tuple[list[Picture], list[str]]:
    """Draw pictures; those that fail cost themselves alone: a text each says why."""
    pictures, failed = [], []
    for picture in wanted:
        try:
            with styled():
                made = figure(WIDTH, picture.height)
                picture.draw(made if picture.whole else made.subplots())
                pictures.append(Picture(picture.title, picture.alt, to_svg(made, picture.title), picture.words, made))
        except NoMatplotlib:
            raise
        except Exception as error:
            failed.append(f"The picture {picture.title!r} could not be drawn: {type(error).__name__}: {error}")
    return pictures, failed
