"""The loss as a surface over two directions, with the path of a descent: from the side, and from above."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from minijaxnet._trees import floating_arrays
from minijaxnet._types import Params
from minijaxnet.landscape import LossSurface
from minijaxnet.report.style import COLOURS, HEIGHTS, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DECADES = 2  # losses that span more are drawn as logarithms
_LEVELS = 14  # bands, from above
_MOST_LINES = 101  # along each direction, from the side
_HALO = {"color": "#ffffff", "linewidth": 3.2, "solid_capstyle": "round", "label": "halo"}


def random_directions(params: Params, *, seed: int = 0) -> tuple[Any, Any]:
    r"""Two random directions, each filter as long as that of the params: ``d_j = g_j / |g_j| * |w_j|``.

    ``g_j`` is a normal draw, and j goes over the filters: the weights into one unit, all that share an index of the
    last axis, so a column of weights ``(n_in, n_out)``. Thus a network whose weights are twice as large, and that may
    compute the same, is shown over twice the distance. Biases and other leaves with fewer than two axes are not moved,
    as in the paper. Drawn by NumPy, so nothing is compiled.

    Args:
        params: the middle of the picture, a pytree of floating arrays.
        seed: of the draws.

    Returns:
        Two trees like ``params``, nearly orthogonal where there are many weights.

    Raises:
        TypeError: params that are not floating.
        ValueError: no leaf with two axes or more.

    Example:
        >>> params = {"weights": np.float32([[3.0, 0.0], [4.0, 1.0]]), "bias": np.ones(2)}
        >>> direction, _ = random_directions(params)
        >>> print(np.linalg.norm(direction["weights"], axis=0).round(5), direction["bias"])
        [5. 1.] [0. 0.]

    Source: Li, Xu, Taylor, Studer and Goldstein, "Visualizing the loss landscape of neural nets", 2018, section 4.
    """
    leaves, structure = jax.tree.flatten(floating_arrays(params, "params"))
    if not any(leaf.ndim > 1 for leaf in leaves):
        raise ValueError(f"params: got leaves of shapes {[leaf.shape for leaf in leaves]}; expected one with two axes")
    rng = np.random.default_rng(seed)
    first, second = (jax.tree.unflatten(structure, [_filters_like(rng, leaf) for leaf in leaves]) for _ in range(2))
    return first, second


def _filters_like(rng: np.random.Generator, leaf: Any) -> np.ndarray:
    """A normal draw whose filters have the norms of the leaf's."""
    if leaf.ndim < 2:
        return np.zeros(leaf.shape, leaf.dtype)
    draw, axes = rng.normal(size=leaf.shape), tuple(range(leaf.ndim - 1))
    norm, of_leaf = (np.sqrt(np.sum(x**2, axis=axes, keepdims=True)) for x in (draw, np.asarray(leaf, np.float64)))
    return (draw / norm * of_leaf).astype(leaf.dtype)


def draw_surface(
    axes: Any, surface: LossSurface, path: Any, path_losses: Any, *, names: tuple[str, str] = ("weight 0", "weight 1")
) -> None:
    """Draw the surface from the side, with the path of a descent on it.

    Losses that are not finite are drawn at the top, stops beyond the edge are not drawn; a note says how many.

    Args:
        axes: to draw on, with ``projection="3d"``.
        surface: the loss over two directions.
        path: ``(stops, 2)``, as from ``project_path``, measured from the middle of the surface.
        path_losses: ``(stops,)``, the loss at each stop, which may lie off the plane.
        names: of the two directions.

    Raises:
        ValueError: a path of another shape, losses that do not fit it.
    """
    offsets, losses, log, notes = _heights(surface)
    stops, given = _stops(path), np.asarray(path_losses, float).ravel()
    if len(given) != len(stops):
        raise ValueError(f"path_losses: got {len(given)}; expected one for each of {len(stops)} stops")
    to_height = np.log10 if log else np.asarray
    axes.computed_zorder = False  # what is drawn later lies above
    first, second = np.meshgrid(offsets, offsets, indexing="ij")
    lines = min(len(offsets), _MOST_LINES)
    look = {"cmap": HEIGHTS, "linewidth": 0, "alpha": 0.9, "rasterized": True}
    axes.plot_surface(first, second, to_height(losses), rcount=lines, ccount=lines, zorder=1, **look)
    inside = np.all((stops >= offsets[0]) & (stops <= offsets[-1]), axis=1) & np.isfinite(given)
    if outside := int(np.sum(np.isfinite(stops).all(axis=1) & ~inside)):
        notes.append(f"{outside} stops beyond the picture")
    given = np.maximum(given[inside], losses.min()) if log else given[inside]  # lower ones are drawn at the bottom
    line = (*stops[inside].T, to_height(given))
    axes.plot(*line, zorder=4, **_HALO)
    axes.plot(*line, color=COLOURS["path"], linewidth=1.8, zorder=5, label="path")
    for place, mark, size in ((0, "o", 30), (-1, "*", 90)):
        at = [column[place : place + 1 or None] for column in line]
        ends = {"color": COLOURS["path"], "edgecolors": "#ffffff", "depthshade": False, "zorder": 6}
        axes.scatter(*at, marker=mark, s=size, **ends)
    axes.set_xlabel(names[0], parse_math=False)
    axes.set_ylabel(names[1], parse_math=False)
    axes.set_zlabel("loss", labelpad=0)
    axes.tick_params(axis="z", pad=1)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.get_major_locator().set_params(nbins=4)
        axis.pane.set_visible(False)
        axis.line.set_color(INK)
    if log:
        _label_powers(axes.zaxis, to_height(losses))
    axes.grid(False)
    axes.view_init(elev=44, azim=-128)
    axes.set_box_aspect((1, 1, 0.7), zoom=0.84)
    axes.text2D(0.0, 1.0, "\n".join(notes), transform=axes.transAxes, fontsize=8, va="top")


def draw_contour(
    axes: "Axes", surface: LossSurface, path: Any, *, names: tuple[str, str] = ("weight 0", "weight 1")
) -> None:
    """Draw the surface from above, in bands of equal steps of the loss or its logarithm, with the path of a descent.

    The path starts at a ring and ends at a star. Where a loss is not finite the picture stays blank; a note says so.

    Args:
        axes: to draw on.
        surface: the loss over two directions.
        path: ``(stops, 2)``, as from ``project_path``, measured from the middle of the surface.
        names: of the two directions.

    Raises:
        ValueError: a path of another shape.
    """
    from matplotlib.colors import BoundaryNorm
    from matplotlib.patheffects import Normal, Stroke

    offsets, losses, log, notes = _heights(surface)
    unknown = ~np.isfinite(np.asarray(surface.losses, float))
    if not unknown.all():
        edges = _edges(losses, log)
        finite = np.ma.masked_where(unknown, np.clip(losses, edges[0], edges[-1]))
        bands = axes.contourf(offsets, offsets, finite.T, levels=edges, cmap=HEIGHTS, norm=BoundaryNorm(edges, 256))
        bands.set_rasterized(True)
        ticks = edges[:: max(1, _LEVELS // 6)]
        bar = axes.figure.colorbar(bands, cax=axes.inset_axes((1.05, 0, 0.05, 1)), label="loss", ticks=ticks)
        bar.ax.set_yticks(ticks, [f"{float(f'{tick:.3g}'):g}" for tick in ticks])
        bar.ax.minorticks_off()
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    stops = _stops(path)
    stops = stops[np.isfinite(stops).all(axis=1)]
    colour, halo = COLOURS["path"], [Stroke(linewidth=3.2, foreground="#ffffff"), Normal()]
    axes.plot(*stops.T, color=colour, linewidth=1.6, path_effects=halo, zorder=3, label="path")
    axes.scatter(*stops[:1].T, s=34, color="#ffffff", edgecolors=colour, linewidths=1.5, zorder=5)
    axes.scatter(*stops[-1:].T, marker="*", s=130, color=colour, edgecolors="#ffffff", zorder=4)
    if not ((stops[-1:] >= offsets[0]) & (stops[-1:] <= offsets[-1])).all():
        notes.append("the path ends beyond the picture")
    axes.set(xlim=(offsets[0], offsets[-1]), ylim=(offsets[0], offsets[-1]), aspect="equal")
    axes.set_xlabel(names[0], parse_math=False)
    axes.set_ylabel(names[1], parse_math=False)
    axes.set_title("\n".join(notes), fontsize=8)


def _heights(surface: LossSurface) -> tuple[np.ndarray, np.ndarray, bool, list[str]]:
    """Offsets and losses, the highest one for what is not finite; whether to draw their logarithms; and notes."""
    offsets, losses = np.asarray(surface.offsets, float), np.asarray(surface.losses, float)
    finite = losses[np.isfinite(losses)]
    if not finite.size:
        return offsets, np.zeros_like(losses), False, ["no loss is finite"]
    gone = losses.size - finite.size
    log = bool(finite.min() > 0 and finite.max() > 10.0**_DECADES * finite.min())
    notes = [f"{gone} of {losses.size} losses not finite"] if gone else []
    return offsets, np.where(np.isfinite(losses), losses, finite.max()), log, notes


def _edges(losses: np.ndarray, log: bool) -> np.ndarray:
    """The limits of the bands."""
    low, high = float(losses.min()), float(losses.max())
    if low == high:
        low, high = low - 1, high + 1
    return np.geomspace(low, high, _LEVELS + 1) if log else np.linspace(low, high, _LEVELS + 1)


def _label_powers(axis: Any, heights: np.ndarray) -> None:
    """Ticks at whole powers of ten, labelled as losses; at three heights where there are too few powers."""
    powers = np.arange(np.ceil(heights.min()), np.floor(heights.max()) + 1)
    ticks = powers if len(powers) > 1 else np.linspace(heights.min(), heights.max(), 3)
    ticks = ticks[:: -(-len(ticks) // 6)]
    axis.set_ticks(ticks, [f"{10.0**tick:.3g}" for tick in ticks])


def _stops(path: Any) -> np.ndarray:
    stops = np.asarray(path, float)
    if stops.ndim != 2 or stops.shape[1] != 2:
        raise ValueError(f"path: got shape {stops.shape}; expected (stops, 2)")
    return stops
