"""The pictures of a page as files of their own, for papers and slides."""

import itertools
from pathlib import Path
from typing import Literal, get_args

from minijaxnet.report.page import Page
from minijaxnet.report.player import OneWeight
from minijaxnet.report.style import figure, save, slug, styled
from minijaxnet.report.weight import animate

Format = Literal["png", "svg", "pdf"]
FORMATS: tuple[Format, ...] = get_args(Format)


def write_pictures(page: Page, folder: str | Path, suffix: Format = "png") -> list[Path]:
    """Write each picture of a page under its title, and the descent of a single weight as an animated GIF.

    A picture that cannot be drawn is left out; the page says why.

    Args:
        page: with the pictures.
        folder: made if it is not there; files of the same names are replaced.
        suffix: of the files.

    Returns:
        The files.
    """
    folder, written = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)

    def path_of(title: str, suffix: str) -> Path:
        names = itertools.chain([slug(title)], (f"{slug(title)}-{number}" for number in itertools.count(2)))
        written.append(next(path for name in names if (path := folder / f"{name}.{suffix}") not in written))
        return written[-1]

    for section in page.sections:
        for picture in section.pictures:
            with styled():
                made = figure(height=picture.height)
                try:
                    picture.draw_on(made)
                except Exception:
                    continue
            save(made, path_of(picture.title, suffix))
        for player in section.players:
            if isinstance(player, OneWeight):
                animate(path_of("bowl", "gif"), player.bowl, name=player.weight)
    return written
