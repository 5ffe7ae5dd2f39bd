"""One style for all pictures: one colour for each meaning, lines that take the page's colour, files that stay the same.

Figures are made without pyplot: they need no display and share no state. Matplotlib is imported when one is drawn. The
colours are those of Okabe and Ito, which people with any kind of colour blindness can tell apart.

Source: Okabe and Ito, "Color Universal Design: how to make figures and presentations that are friendly to colorblind
people", 2008.
"""

import io
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "train": "#0072B2",
    "test": "#E69F00",
    "autodiff": "#0072B2",
    "hand": "#009E73",
    "path": "#D55E00",
    "diverged": "#D55E00",
    "positive": "#0072B2",
    "negative": "#D55E00",
    "past": "#8c8c8c",
}
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
HEIGHTS = "cividis"  # the colour map of losses and counts
INK = "#1b1c1f"
WIDTH = 4.8  # inches: a column of the page
_MISSING = 'pictures need matplotlib: pip install "minijaxnet[plot]"'

_RULES: Any = {
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.formatter.use_mathtext": False,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "image.cmap": HEIGHTS,
} | dict.fromkeys(
    ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK
)


class NoMatplotlib(ImportError):
    """Matplotlib is not installed; the text says what to install."""


def figure(width: float = WIDTH, height: float = 3.2) -> "Figure":
    """An empty figure, its sizes in inches; draw on it within ``with styled():``.

    Raises:
        NoMatplotlib: it is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NoMatplotlib(_MISSING) from error
    return Figure(figsize=(width, height), layout="constrained")


def styled(name: str | None = None) -> AbstractContextManager[Any]:
    """A context in which matplotlib draws in this style.

    Args:
        name: of the picture: its SVG has the same ids each time.

    Raises:
        NoMatplotlib: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise NoMatplotlib(_MISSING) from error
    return matplotlib.rc_context(_RULES | {"svg.hashsalt": name})


def svg_of(draw: "Callable[[Figure], None]", name: str, height: float, width: float = WIDTH) -> str:
    """Draw a figure as an SVG element for a page: text stays text, and lines take the page's colour.

    Args:
        draw: is given the empty figure.
        name: of the picture; pictures of different names share no ids.
        height: inches.
        width: inches.
    """
    with styled(name):
        made, written = figure(width, height), io.StringIO()
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        draw(made)
        FigureCanvasSVG(made).print_svg(written, metadata={"Date": None})  # savefig would lay the figure out twice
    svg = written.getvalue()[written.getvalue().index("<svg") :]
    svg = re.sub("<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(?<= id=")(?=[^"]+_\d+")', f"{slug(name)}-", svg)
    return svg.replace(INK, "currentColor")


def save(figure: "Figure", path: str | Path) -> None:
    """Write the figure as the file's suffix says: ``.png``, ``.svg`` or ``.pdf``.

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"path: got {str(path)!r}; expected one that ends in .png, .svg or .pdf")
    with styled(path.stem):
        metadata = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[path.suffix]
        figure.savefig(path, facecolor="white", metadata=metadata)


def slug(name: str) -> str:
    """A name as an id.

    >>> slug("Loss & accuracy")
    'loss-accuracy'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
