"""The single weight: the loss as a bowl, the stops of a descent in it, and the gradient at each of them."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._programs import JitOf
from minijaxnet._trees import floating_arrays
from minijaxnet._types import Objective, PyTree
from minijaxnet.report.axes import limits
from minijaxnet.report.style import COLOURS, INK, figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARGIN = 1.15  # how far the curve goes on either side of the lowest stop, in distances to the farthest stop
_POINTS = 201  # of the curve
_MOMENTS, _PANEL = 4, 2.2  # of a strip: how many, and how wide, in inches
_TITLE = 36  # letters above a panel of a strip
_FRAMES, _FRAMES_S, _LAST_FRAMES = 60, 8, 8  # of a GIF: at most, a second, and copies of the last one


class Bowl(NamedTuple):
    """The loss over a single weight, and the stops of a descent in it.

    Attributes:
        weights: ``(points,)``, rising: where the curve is known.
        losses: ``(points,)``, the curve.
        stops: ``(stops,)``, the weight at each stop, the last included.
        stop_losses: ``(stops,)``, the loss there.
        gradients: ``(stops,)``, the derivative of the loss there.
    """

    weights: np.ndarray
    losses: np.ndarray
    stops: np.ndarray
    stop_losses: np.ndarray
    gradients: np.ndarray


def bowl_of(objective: Objective, path: Any, batch: PyTree) -> Bowl:
    """The bowl of an objective with one weight, around the stops of a descent.

    The curve reaches as far on one side of the lowest stop as on the other, so that both sides of the bowl are seen.
    Losses and gradients are computed in the weight's dtype, in one compiled program.

    Args:
        objective: ``f(params, batch)``, a scalar, of params with a single number in them.
        path: the params at each stop: a tree with one leaf, whose first axis is that of the stops. Stops that are NaN
            are left out.
        batch: the data for the objective.

    Raises:
        ValueError: more than one weight; no finite stop.

    Example:
        >>> squared_error = lambda weight, batch: (weight * batch[0] - batch[1]) ** 2
        >>> bowl = bowl_of(squared_error, jnp.array([2.0, 2.24]), (3.0, 10.0))
        >>> print(bowl.stop_losses[0], bowl.gradients[0])
        16.0 -24.0
    """
    leaves, structure = jax.tree.flatten(floating_arrays(path, "path"))
    shapes = [leaf.shape for leaf in leaves]
    if len(leaves) != 1 or not shapes[0] or np.prod(shapes[0][1:]) != 1:
        raise ValueError(f"path: got leaves of shapes {shapes}; expected one, (stops,), with one weight a stop")
    stops = np.asarray(leaves[0], np.float64).reshape(-1)
    if not np.isfinite(stops).any():
        raise ValueError(f"path: got {len(stops)} stops, none of them finite; expected at least one")
    taken = np.asarray(leaves[0])[~np.isnan(stops)]
    curve, at_stops = _evaluate(objective, structure, taken, batch)
    (weights, losses), (stop_losses, gradients) = jax.tree.map(np.asarray, (curve, at_stops))
    return Bowl(weights, losses, taken.reshape(-1), stop_losses, gradients)


@functools.partial(JitOf, static_argnums=(0,))
def _evaluate(objective: Objective, structure: Any, path: jax.Array, batch: PyTree) -> Any:
    """Weights and losses of the curve; losses and gradients at the stops."""
    stops, shape = path.reshape(-1), path.shape[1:]

    def loss(weight: jax.Array) -> jax.Array:
        return objective(jax.tree.unflatten(structure, [weight.reshape(shape)]), batch).reshape(())

    losses, gradients = jax.vmap(jax.value_and_grad(loss))(stops)
    usable = jnp.isfinite(stops) & jnp.isfinite(losses)
    usable = jnp.where(jnp.any(usable), usable, jnp.isfinite(stops))
    lowest = stops[jnp.argmin(jnp.where(usable & jnp.isfinite(losses), losses, jnp.inf))]
    lowest = jnp.where(jnp.isfinite(lowest), lowest, stops[jnp.argmax(usable)])
    reach = jnp.max(jnp.where(usable, jnp.abs(stops - lowest), 0))
    reach = jnp.where(reach > 0, reach, jnp.maximum(1, jnp.abs(lowest)))
    weights = lowest + _MARGIN * reach * jnp.linspace(-1, 1, _POINTS, dtype=stops.dtype)
    return (weights, jax.vmap(loss)(weights)), (losses, gradients)


def draw_bowl(axes: "Axes", bowl: Bowl, *, at: int = -1, name: str = "weight w") -> None:
    """Draw the bowl with the stops up to one of them, the tangent there, and the step to the next stop.

    Args:
        axes: to draw on.
        bowl: the curve and the stops; a note says how many stops are not finite and so not drawn.
        at: which stop; negative ones count from the last.
        name: of the weight.
    """
    at = range(len(bowl.stops))[at]
    weight, loss, gradient = (float(column[at]) for column in (bowl.stops, bowl.stop_losses, bowl.gradients))
    curve = np.isfinite(bowl.weights) & np.isfinite(bowl.losses)
    axes.plot(bowl.weights[curve], bowl.losses[curve], color=COLOURS["train"], label="loss")
    (left, right), (low, high) = limits(bowl.weights[curve], 0.02), limits(bowl.losses[curve], 0.08)
    axes.set(xlim=(left, right), ylim=(low, high), ylabel="loss")
    axes.set_xlabel(name, parse_math=False)

    finite = np.isfinite(bowl.stops) & np.isfinite(bowl.stop_losses)
    past = finite & (np.arange(len(finite)) < at)
    axes.scatter(bowl.stops[past], bowl.stop_losses[past], s=16, color=COLOURS["past"], alpha=0.6, zorder=3)
    if hidden := int(np.sum(~finite[: at + 1])):
        place: Any = {"ha": "right", "va": "top", "fontsize": 8, "transform": axes.transAxes}
        axes.text(0.98, 0.98, f"{hidden} not finite: not drawn", **place)
    if not finite[at]:
        axes.set_title(f"stop {at}\nnot finite", fontsize=9)
        return
    axes.set_title(f"stop {at}\nw {weight:.3g}, loss {loss:.3g}, gradient {gradient:.3g}", fontsize=9)
    axes.plot([weight], [loss], "o", color=COLOURS["path"], markersize=7, zorder=5, label="stop")
    if not np.isfinite(gradient):
        return
    half = 0.25 / np.hypot(
        1 / (right - left), gradient / (high - low)
    )  # with both halves it is half as long as the picture
    ends = weight + half * np.array([-1, 1])
    tangent: Any = {"color": COLOURS["path"], "linewidth": 1.3, "zorder": 4, "label": "tangent"}
    axes.plot(ends, loss + gradient * (ends - weight), "--", **tangent)
    if at + 1 < len(bowl.stops) and np.isfinite(to := bowl.stops[at + 1]) and to != weight:
        arrow = {"arrowstyle": "-|>", "color": INK, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.2}
        axes.annotate("", (float(to), loss), (weight, loss), arrowprops=arrow, annotation_clip=False, zorder=4)
        if left <= to <= right and curve.sum() > 1:
            below = np.interp(to, bowl.weights[curve], bowl.losses[curve])
            axes.plot([to, to], [loss, below], ":", color=COLOURS["past"], linewidth=1, zorder=2, label="next")


def moments(stops: int, most: int = _MOMENTS) -> list[int]:
    """Which stops to show: the first, the second, the last, and some between, farther apart the later they are.

    >>> moments(100), moments(2)
    ([0, 1, 10, 99], [0, 1])
    """
    if stops <= most:
        return list(range(stops))
    return sorted({0, *np.rint(np.geomspace(1, stops - 1, most - 1)).astype(int).tolist()})


def draw_strip(figure: "Figure", bowl: Bowl, *, name: str = "weight w") -> None:
    """Draw a few moments of the descent side by side, on shared axes: the first, the second, ..., the last.

    Args:
        figure: an empty one.
        bowl: the curve and the stops.
        name: of the weight.
    """
    chosen = moments(len(bowl.stops))
    columns = int(np.clip(figure.get_figwidth() // _PANEL, 1, len(chosen)))
    panels = figure.subplots(-(-len(chosen) // columns), columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, at in zip(panels, chosen, strict=False):
        draw_bowl(axes, bowl, at=at, name=name)
        title = axes.get_title("left")
        if max(map(len, title.split("\n"))) > _TITLE:
            title = title.replace(", gradient", "\ngradient")
        axes.set_title(title, loc="left", fontsize=8)
        axes.label_outer()
    for axes in panels[len(chosen) :]:
        axes.remove()


def animate(path: str | Path, bowl: Bowl, *, name: str = "weight w") -> None:
    """Write the descent as a GIF: one frame for each stop, at most 60; the last one stays for a second.

    Args:
        path: the file, ``.gif``.
        bowl: the curve and the stops.
        name: of the weight.

    Raises:
        ValueError: another suffix.
    """
    if Path(path).suffix != ".gif":
        raise ValueError(f"path: got {str(path)!r}; expected one that ends in .gif")
    stops = len(bowl.stops)
    frames = np.unique(np.rint(np.linspace(0, stops - 1, min(stops, _FRAMES))).astype(int)).tolist()
    with styled():
        drawn = figure()
        axes = drawn.subplots()
        from matplotlib.animation import PillowWriter

        writer = PillowWriter(fps=_FRAMES_S)
        with writer.saving(drawn, str(path), dpi=110):
            for at in frames + frames[-1:] * _LAST_FRAMES:
                axes.clear()
                draw_bowl(axes, bowl, at=at, name=name)
                writer.grab_frame(facecolor="white")
