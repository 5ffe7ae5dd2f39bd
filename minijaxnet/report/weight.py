"""The single weight: the loss as a bowl, the stops of a descent in it, and the slope at each of them."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._checks import check_count
from minijaxnet._programs import JitOf
from minijaxnet._trees import floating_arrays
from minijaxnet.descent import ObjectiveFn
from minijaxnet.report.style import COLOURS, INK, figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARGIN = 1.15  # how far the curve goes on either side of the lowest stop, in ways to the farthest stop
_TITLE = 36  # letters above a panel of a strip
_FRAMES_S = 8  # frames a second
_LAST_FRAMES = 8  # the last moment stays for so many


class Bowl(NamedTuple):
    """The loss over a single weight, and the stops of a descent in it.

    Attributes:
        weights: ``(points,)``, rising: where the curve is known.
        losses: ``(points,)``, the curve.
        stops: ``(stops,)``, the weight at each stop, the last included.
        stop_losses: ``(stops,)``, the loss there.
        slopes: ``(stops,)``, the derivative of the loss there.
    """

    weights: np.ndarray
    losses: np.ndarray
    stops: np.ndarray
    stop_losses: np.ndarray
    slopes: np.ndarray


def bowl_of(objective: ObjectiveFn, path: Any, batch: Any, *, points: int = 201) -> Bowl:
    """The bowl of an objective with one weight, around the stops of a descent.

    The curve reaches as far on the one side of the lowest stop as on the other, so that both sides of the bowl are
    seen. Losses and slopes are computed in the weight's dtype, in one compiled program.

    Args:
        objective: ``f(params, batch)``, a scalar, of params with a single number in them.
        path: the params at each stop: a tree with one leaf, whose first axis is that of the stops. Rows of NaN, of
            steps that a descent did not take, are left out.
        batch: what the objective looks at.
        points: of the curve, at least 2.

    Returns:
        The bowl, as NumPy arrays.

    Raises:
        TypeError: a path that is not of floating numbers.
        ValueError: more than one weight; no finite stop; fewer than 2 points.

    Example:
        >>> squared_error = lambda weight, batch: (weight * batch[0] - batch[1]) ** 2
        >>> bowl = bowl_of(squared_error, jnp.array([2.0, 2.24]), (3.0, 10.0), points=3)
        >>> print(bowl.stop_losses[0], bowl.slopes[0])
        16.0 -24.0
    """
    check_count("points", points, least=2)
    leaves, structure = jax.tree.flatten(floating_arrays(path, "path"))
    shapes = [leaf.shape for leaf in leaves]
    if len(leaves) != 1 or not shapes[0] or np.prod(shapes[0][1:]) != 1:
        raise ValueError(
            f"path: got leaves of shapes {shapes}; expected a single one, (stops,), with one weight a stop"
        )
    taken = leaves[0][~np.isnan(np.asarray(leaves[0], np.float64)).reshape(shapes[0][0])]
    if not np.isfinite(np.asarray(taken, np.float64)).any():
        raise ValueError(f"path: got {shapes[0][0]} stops, none of them finite; expected at least one")
    curve, at_stops = _evaluate(objective, structure, taken, batch, points)
    (weights, losses), (stop_losses, slopes) = jax.tree.map(np.asarray, (curve, at_stops))
    return Bowl(weights, losses, np.asarray(taken).reshape(-1), stop_losses, slopes)


@functools.partial(JitOf, static_argnums=(0, 3))
def _evaluate(objective: ObjectiveFn, structure: Any, path: jax.Array, batch: Any, points: int) -> Any:
    """Weights and losses of the curve; losses and slopes at the stops."""
    stops, shape = path.reshape(-1), path.shape[1:]

    def loss(weight: jax.Array) -> jax.Array:
        return objective(jax.tree.unflatten(structure, [weight.reshape(shape)]), batch).reshape(())

    losses, slopes = jax.vmap(jax.value_and_grad(loss))(stops)
    known = jnp.isfinite(stops) & jnp.isfinite(losses)
    known = jnp.where(jnp.any(known), known, jnp.isfinite(stops))
    lowest = stops[jnp.argmin(jnp.where(known & jnp.isfinite(losses), losses, jnp.inf))]
    lowest = jnp.where(jnp.isfinite(lowest), lowest, stops[jnp.argmax(known)])
    reach = jnp.max(jnp.where(known, jnp.abs(stops - lowest), 0))
    reach = jnp.where(reach > 0, reach, jnp.maximum(1, jnp.abs(lowest)))
    weights = lowest + _MARGIN * reach * jnp.linspace(-1, 1, points, dtype=stops.dtype)
    return (weights, jax.vmap(loss)(weights)), (losses, slopes)


def draw_bowl(axes: "Axes", bowl: Bowl, *, at: int = -1, rate: float | None = None, name: str = "weight w") -> None:
    """Draw the bowl with the stops up to one of them, the tangent there, and the step that follows.

    Stops that are not finite are not drawn; a note says how many.

    Args:
        axes: to draw on.
        bowl: the curve and the stops.
        at: which stop; negative ones count from the last.
        rate: the learning rate: the step goes to ``weight - rate * slope``. Where left out it goes to the next stop,
            and none is drawn at the last.
        name: of the weight.

    Raises:
        ValueError: a stop that is not there.
    """
    at = _index(bowl, at)
    weight, loss, slope = (float(column[at]) for column in (bowl.stops, bowl.stop_losses, bowl.slopes))
    known = np.isfinite(bowl.weights) & np.isfinite(bowl.losses)
    axes.plot(bowl.weights[known], bowl.losses[known], color=COLOURS["train"], label="loss")
    (left, right), (low, high) = limits(bowl.weights[known], 0.02), limits(bowl.losses[known], 0.08)
    axes.set(xlim=(left, right), ylim=(low, high), xlabel=" ", ylabel="loss")
    axes.set_xlabel(name, parse_math=False)

    seen = np.isfinite(bowl.stops) & np.isfinite(bowl.stop_losses)
    past = seen & (np.arange(len(seen)) < at)
    axes.scatter(bowl.stops[past], bowl.stop_losses[past], s=16, color=COLOURS["past"], alpha=0.6, zorder=3)
    if hidden := int(np.sum(~seen[: at + 1])):
        axes.text(
            0.98, 0.98, f"{hidden} not finite: not drawn", ha="right", va="top", fontsize=8, transform=axes.transAxes
        )
    if not seen[at]:
        axes.set_title(f"stop {at}\nnot finite", fontsize=9)
        return
    axes.set_title(f"stop {at}\nw {weight:.3g}, loss {loss:.3g}, slope {slope:.3g}", fontsize=9)
    axes.plot([weight], [loss], "o", color=COLOURS["path"], markersize=7, zorder=5, label="stop")
    if not np.isfinite(slope):
        return
    # The tangent is as long as a half of the picture at any slope.
    half = 0.25 / np.hypot(1 / (right - left), slope / (high - low))
    ends = weight + half * np.array([-1, 1])
    axes.plot(
        ends, loss + slope * (ends - weight), "--", color=COLOURS["slope"], linewidth=1.3, zorder=4, label="tangent"
    )
    to = weight - rate * slope if rate is not None else bowl.stops[at + 1] if at + 1 < len(bowl.stops) else weight
    if np.isfinite(to) and to != weight:
        axes.annotate(
            "",
            (float(to), loss),
            (weight, loss),
            arrowprops={"arrowstyle": "-|>", "color": INK, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.2},
            annotation_clip=False,
            zorder=4,
        )
        if left <= to <= right and known.sum() > 1:
            below = np.interp(to, bowl.weights[known], bowl.losses[known])
            axes.plot([to, to], [loss, below], ":", color=COLOURS["past"], linewidth=1, zorder=2, label="next")


def moments(stops: int, most: int) -> list[int]:
    """Which stops to show: the first, the second, the last, and some between, farther apart the later they are.

    >>> moments(100, 4)
    [0, 1, 10, 99]
    >>> moments(2, 4)
    [0, 1]
    """
    if stops <= most:
        return list(range(stops))
    return sorted({0, *np.rint(np.geomspace(1, stops - 1, most - 1)).astype(int).tolist()})


def draw_strip(
    figure: "Figure", bowl: Bowl, *, most: int = 4, rate: float | None = None, name: str = "weight w"
) -> None:
    """Draw a few moments of the descent side by side, on shared axes: the first, the second, ..., the last.

    Args:
        figure: an empty one; as many moments stand in a row as its width has room for.
        bowl: the curve and the stops.
        most: moments, at least 2.
        rate: as for ``draw_bowl``.
        name: of the weight.

    Raises:
        ValueError: fewer than 2 moments.
    """
    chosen = moments(len(bowl.stops), check_count("most", most, least=2))
    columns = int(np.clip(figure.get_figwidth() // 2.2, 1, len(chosen)))
    rows = -(-len(chosen) // columns)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, at in zip(panels, chosen, strict=False):
        draw_bowl(axes, bowl, at=at, rate=rate, name=name)
        title = axes.get_title("left")
        if max(map(len, title.split("\n"))) > _TITLE:
            title = title.replace(", slope", "\nslope")
        axes.set_title(title, loc="left", fontsize=8)
        axes.label_outer()
    for axes in panels[len(chosen) :]:
        axes.remove()


def animate(path: str | Path, bowl: Bowl, *, most: int = 60, rate: float | None = None, name: str = "weight w") -> None:
    """Write the descent as a GIF, a frame a stop, or every so many stops where there are more than ``most``.

    Args:
        path: the file, ``.gif``.
        bowl: the curve and the stops.
        most: frames, at least 2; the last one stays for a second.
        rate: as for ``draw_bowl``.
        name: of the weight.

    Raises:
        ValueError: another suffix, fewer than 2 frames.
    """
    if Path(path).suffix != ".gif":
        raise ValueError(f"path: got {str(path)!r}; expected one that ends in .gif")
    check_count("most", most, least=2)
    stops = len(bowl.stops)
    frames = np.unique(np.rint(np.linspace(0, stops - 1, min(stops, most))).astype(int)).tolist()
    with styled():
        drawn = figure()
        axes = drawn.subplots()
        from matplotlib.animation import PillowWriter

        writer = PillowWriter(fps=_FRAMES_S)
        with writer.saving(drawn, str(path), dpi=110):
            for at in frames + frames[-1:] * _LAST_FRAMES:
                axes.clear()
                draw_bowl(axes, bowl, at=at, rate=rate, name=name)
                writer.grab_frame()


def _index(bowl: Bowl, at: int) -> int:
    stops = len(bowl.stops)
    if not -stops <= at < stops:
        raise ValueError(f"at: got {at}; expected one of {stops} stops")
    return at % stops


def limits(values: np.ndarray, margin: float) -> tuple[float, float]:
    """The range of some values with a margin; of width 2 where they are all the same, from 0 to 1 if there are none."""
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    wide = margin * (high - low) or max(abs(low) * 0.1, 1.0)
    return low - wide, high + wide
