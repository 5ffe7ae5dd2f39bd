"""The pictures of a page, each as a file of its own, for papers and slides."""

import itertools
from pathlib import Path
from typing import Literal, get_args

from minijaxnet.report.page import Page
from minijaxnet.report.player import OneWeight
from minijaxnet.report.style import save, slug
from minijaxnet.report.weight import Bowl, animate

Format = Literal["png", "svg", "pdf"]
FORMATS: tuple[Format, ...] = get_args(Format)


def write_pictures(report: Page, folder: str | Path, suffix: Format = "png") -> list[Path]:
    """Write each picture of a page under its title, and the descent of a single weight as a moving bowl, a GIF.

    Args:
        report: the page.
        folder: made if it is not there; files of the same names are replaced.
        suffix: what to write pictures as.

    Returns:
        The files.
    """
    folder, written = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)

    def path_of(title: str, suffix: str) -> Path:
        names = itertools.chain([slug(title)], (f"{slug(title)}-{number}" for number in itertools.count(2)))
        written.append(next(path for name in names if (path := folder / f"{name}.{suffix}") not in written))
        return written[-1]

    for section in report.sections:
        for picture in section.pictures:
            if picture.figure is not None:
                save(picture.figure, path_of(picture.title, suffix))
        for player in section.players:
            if isinstance(player, OneWeight):
                (weights, losses, _), (stops, stop_losses, slopes, _) = player.curve, player.stops
                animate(path_of("bowl", "gif"), Bowl(weights, losses, stops, stop_losses, slopes), name=player.weight)
    return written
