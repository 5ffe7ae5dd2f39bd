"""The loss as a surface over two directions, and the paths of descents on it: seen from the side, and from above."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minijaxnet.landscape import LossSurface
from minijaxnet.report.style import COLOURS, HEIGHTS, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = ("weight 0", "weight 1")
_DECADES = 2  # losses that span more are drawn on a scale of their logarithms


def draw_surface(
    axes: Any,
    surface: LossSurface,
    path: Any = None,
    *,
    path_losses: Any = None,
    names: tuple[str, str] = NAMES,
    log: bool | None = None,
) -> None:
    """Draw the surface from the side, with the path of a descent on it.

    Losses that are not finite, or not positive on a logarithmic scale, are drawn at the top, or at the bottom; stops
    beyond the picture's edge are not drawn. A note says how many.

    Args:
        axes: to draw on; needs ``projection="3d"``.
        surface: the loss over two directions.
        path: ``(stops, 2)``, as from ``project_path``, measured from the middle of the surface; rows of NaN are left
            out.
        path_losses: ``(stops,)``, the loss at each stop, which may lie off the plane; where left out the path lies on
            the surface.
        names: of the two directions.
        log: whether heights are logarithms; where left out, if positive losses span more than two decades.

    Raises:
        ValueError: a path of another shape than ``(stops, 2)``, losses that do not fit it.
    """
    offsets, losses, log, notes = _heights(surface, log)
    axes.computed_zorder = False  # what is drawn later lies above
    heights = _logged(losses, log)
    first, second = np.meshgrid(offsets, offsets, indexing="ij")
    most = min(len(offsets), 101)
    axes.plot_surface(
        first,
        second,
        heights,
        cmap=HEIGHTS,
        rcount=most,
        ccount=most,
        linewidth=0,
        alpha=0.9,
        zorder=1,
        rasterized=True,
    )
    if path is not None:
        stops = _stops("path", path)
        given = _on_surface(stops, offsets, losses) if path_losses is None else np.asarray(path_losses, float).ravel()
        if len(given) != len(stops):
            raise ValueError(f"path_losses: got {len(given)}; expected one for each of {len(stops)} stops")
        inside = _inside(stops, offsets) & np.isfinite(given)
        if outside := int(np.sum(np.isfinite(stops).all(axis=1) & ~inside)):
            notes.append(f"{outside} stops beyond the picture")
        # Heights that the scale has no place for are drawn at its bottom.
        line = stops[inside].T, _logged(np.maximum(given[inside], losses.min() if log else -np.inf), log)
        axes.plot(*line[0], line[1], color="#ffffff", linewidth=3.2, zorder=4, solid_capstyle="round", label="halo")
        axes.plot(*line[0], line[1], color=COLOURS["path"], linewidth=1.8, zorder=5, label="path")
        for place, mark, size in ((0, "o", 30), (-1, "*", 90)):
            at = [column[place : place + 1 or None] for column in (*line[0], line[1])]
            axes.scatter(
                *at, marker=mark, s=size, color=COLOURS["path"], edgecolors="#ffffff", depthshade=False, zorder=6
            )
    axes.set_xlabel(names[0], parse_math=False)
    axes.set_ylabel(names[1], parse_math=False)
    axes.set_zlabel("loss", labelpad=0)
    axes.tick_params(axis="z", pad=1)
    if log:
        _label_powers(axes.zaxis, heights)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.pane.set_visible(False)
        axis.line.set_color(INK)
    axes.grid(False)
    axes.view_init(elev=44, azim=-128)
    axes.set_box_aspect((1, 1, 0.7), zoom=0.84)
    if notes:
        axes.text2D(0.0, 1.0, "\n".join(notes), transform=axes.transAxes, fontsize=8, va="top")


def draw_contour(
    axes: "Axes",
    surface: LossSurface,
    paths: Sequence[Any] = (),
    *,
    names: tuple[str, str] = NAMES,
    log: bool | None = None,
    levels: int = 14,
) -> None:
    """Draw the surface from above, in bands of equal steps of the loss, with the paths of some descents.

    A path starts at a ring with its letter, where there are several, and ends at a star. What is not finite stays
    blank, and a note says so.

    Args:
        axes: to draw on.
        surface: the loss over two directions.
        paths: each ``(stops, 2)``, as from ``project_path``, measured from the middle of the surface; rows of NaN are
            left out.
        names: of the two directions.
        log: whether the bands are equal steps of the loss's logarithm; where left out, if positive losses span more
            than two decades.
        levels: how many bands.

    Raises:
        ValueError: a path of another shape than ``(stops, 2)``.
    """
    from matplotlib.patheffects import Normal, Stroke

    offsets, losses, log, notes = _heights(surface, log)
    unknown = ~np.isfinite(np.asarray(surface.losses, float))
    edges = _edges(losses, log, levels)
    norm = {"norm": _norm(edges)}
    if unknown.all():
        axes.set(xlim=(offsets[0], offsets[-1]), ylim=(offsets[0], offsets[-1]))
    else:
        known = np.ma.masked_where(unknown, np.clip(losses, edges[0], edges[-1]))
        bands = axes.contourf(offsets, offsets, known.T, levels=edges, cmap=HEIGHTS, **norm)
        bands.set_rasterized(True)
        ticks = edges[:: max(1, levels // 6)]
        bar = axes.figure.colorbar(bands, cax=axes.inset_axes((1.05, 0, 0.05, 1)), label="loss", ticks=ticks)
        bar.ax.set_yticks(ticks, [f"{float(f'{tick:.3g}'):g}" for tick in ticks])
        bar.ax.minorticks_off()
        bar.outline.set_visible(False)
    halo = [Stroke(linewidth=3.2, foreground="#ffffff"), Normal()]
    gone = 0
    for i, path in enumerate(paths):
        stops = _stops(f"paths[{i}]", path)
        stops = stops[np.isfinite(stops).all(axis=1)]
        if not len(stops):
            gone += 1
            continue
        axes.plot(*stops.T, color=COLOURS["path"], linewidth=1.6, path_effects=halo, zorder=3, label=f"path {i}")
        several, clip = len(paths) > 1, not _inside(stops[:1], offsets).all()
        axes.scatter(
            *stops[0],
            s=90 if several else 34,
            color="#ffffff",
            edgecolors=COLOURS["path"],
            linewidths=1.5,
            zorder=5,
            clip_on=clip,
        )
        if several:
            centred: Any = {"ha": "center", "va": "center_baseline", "fontsize": 7, "color": "#101010"}
            axes.text(stops[0, 0], stops[0, 1], _letter(i), zorder=6, clip_on=True, **centred)
        axes.scatter(*stops[-1], marker="*", s=130, color=COLOURS["path"], edgecolors="#ffffff", zorder=4)
        gone += not _inside(stops[-1:], offsets).all()
    if gone:
        notes.append(f"{gone} of {len(paths)} paths end beyond the picture")
    axes.set(xlim=(offsets[0], offsets[-1]), ylim=(offsets[0], offsets[-1]), aspect="equal")
    axes.set_xlabel(names[0], parse_math=False)
    axes.set_ylabel(names[1], parse_math=False)
    if notes:
        axes.set_title("\n".join(notes), fontsize=8)


def _heights(surface: LossSurface, log: bool | None) -> tuple[np.ndarray, np.ndarray, bool, list[str]]:
    """Offsets and finite losses, whether the scale is logarithmic, and what a person should know of it."""
    offsets, losses = np.asarray(surface.offsets, float), np.asarray(surface.losses, float)
    finite = losses[np.isfinite(losses)]
    positive = finite[finite > 0]
    notes = []
    if not finite.size:
        return offsets, np.zeros_like(losses), False, ["no loss is finite"]
    if finite.size < losses.size:
        notes.append(f"{losses.size - finite.size} of {losses.size} losses not finite")
    if log is None:
        log = positive.size == finite.size and bool(positive.max() > 10.0**_DECADES * positive.min())
    if log and not positive.size:
        log, notes = False, [*notes, "no loss is positive: no logarithms"]
    if log and positive.size < finite.size:
        notes.append(f"{finite.size - positive.size} losses not positive")
    losses = np.where(np.isfinite(losses), losses, finite.max())
    return offsets, np.maximum(losses, positive.min()) if log else losses, log, notes


def _logged(losses: np.ndarray, log: bool) -> np.ndarray:
    return np.log10(losses) if log else losses


def _edges(losses: np.ndarray, log: bool, levels: int) -> np.ndarray:
    """The limits of the bands."""
    low, high = float(losses.min()), float(losses.max())
    if low == high:
        low, high = (low / 2, high * 2) if log else (low - 1, high + 1)
    return np.geomspace(low, high, levels + 1) if log else np.linspace(low, high, levels + 1)


def _norm(edges: np.ndarray) -> Any:
    from matplotlib.colors import BoundaryNorm

    return BoundaryNorm(edges, 256)


def _label_powers(axis: Any, heights: np.ndarray) -> None:
    """Ticks at whole powers of ten, named as losses; at three heights where there are too few of them."""
    powers = np.arange(np.ceil(heights.min()), np.floor(heights.max()) + 1)
    ticks = powers if len(powers) > 1 else np.linspace(heights.min(), heights.max(), 3)
    ticks = ticks[:: -(-len(ticks) // 6)]
    axis.set_ticks(ticks, [f"{10.0**tick:.3g}" for tick in ticks])


def _stops(name: str, path: Any) -> np.ndarray:
    stops = np.asarray(path, float)
    if stops.ndim != 2 or stops.shape[1] != 2:
        raise ValueError(f"{name}: got shape {stops.shape}; expected (stops, 2)")
    return stops


def _inside(stops: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    return np.all((stops >= offsets[0]) & (stops <= offsets[-1]), axis=1)


def _on_surface(stops: np.ndarray, offsets: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """The surface's height at each stop, between its points by both coordinates; NaN at NaN."""
    known = np.nan_to_num(stops)
    low = np.clip(np.searchsorted(offsets, known, side="right") - 1, 0, len(offsets) - 2)
    i, j = low.T
    a, b = ((known - offsets[low]) / (offsets[low + 1] - offsets[low])).T
    near = (1 - b) * losses[i, j] + b * losses[i, j + 1]
    far = (1 - b) * losses[i + 1, j] + b * losses[i + 1, j + 1]
    return np.where(np.isfinite(stops).all(axis=1), (1 - a) * near + a * far, np.nan)


def _letter(i: int) -> str:
    """A for the first path; numbers where the alphabet ends.

    >>> _letter(0), _letter(30)
    ('A', '31')
    """
    return chr(ord("A") + i) if i < 26 else str(i + 1)
