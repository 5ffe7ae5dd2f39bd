"""One style for all pictures: a colour a meaning, ink that takes the page's colour, and files that do not change.

Figures are made without pyplot, so that they need no display, share no state and can be drawn in any thread. The
colours are those of Okabe and Ito, which people who are blind to some colours tell apart.

Source: Okabe and Ito, "Color Universal Design: how to make figures and presentations that are friendly to colorblind
people", 2008.
"""

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "train": "#0072B2",
    "test": "#E69F00",
    "autodiff": "#0072B2",
    "hand": "#009E73",
    "optax": "#CC79A7",
    "path": "#D55E00",
    "slope": "#D55E00",
    "diverged": "#D55E00",
    "positive": "#0072B2",
    "negative": "#D55E00",
    "past": "#8c8c8c",
}
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
HEIGHTS = "cividis"  # the colour map of losses and counts
INK = "#1b1c1f"
WIDTH = 4.8  # inches: a column's width, at which all text is readable
_MISSING = 'pictures need matplotlib: pip install "minijaxnet[plot]"'

_RULES: Any = {
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
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
    """An empty figure; draw on it within ``with styled():``.

    Args:
        width: inches.
        height: inches.

    Raises:
        NoMatplotlib: it is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NoMatplotlib(_MISSING) from error
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def styled() -> Any:
    """A context in which matplotlib draws in this style; nothing of it stays behind."""
    try:
        import matplotlib
    except ImportError as error:
        raise NoMatplotlib(_MISSING) from error
    return matplotlib.rc_context(_RULES)


def to_svg(figure: "Figure", name: str) -> str:
    """The figure as an SVG element for a page: text stays text, and ink takes the page's colour.

    Args:
        figure: what was drawn.
        name: of the picture; pictures of different names share no ids.

    Returns:
        The element, the same each time.
    """
    written = io.StringIO()
    with styled() as _, _rules({"svg.hashsalt": name}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    svg = written.getvalue()[written.getvalue().index("<svg") :]
    svg = re.sub("<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(?<= id=")(?=[^"]+_\d+")', f"{slug(name)}-", svg)
    return svg.replace(INK, "currentColor")


def save(figure: "Figure", path: str | Path) -> None:
    """Write the figure; the file's suffix, ``.png``, ``.svg`` or ``.pdf``, says as what.

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"path: got {str(path)!r}; expected one that ends in .png, .svg or .pdf")
    with styled(), _rules({"svg.hashsalt": path.stem}):
        metadata = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[path.suffix]
        figure.savefig(path, facecolor="white", metadata=metadata)


def _rules(rules: Any) -> Any:
    import matplotlib

    return matplotlib.rc_context(rules)


def slug(name: str) -> str:
    """A name as an id.

    >>> slug("Loss & slope")
    'loss-slope'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
