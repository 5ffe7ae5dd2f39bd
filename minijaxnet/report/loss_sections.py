"""Sections on the loss: along a recorded descent of one weight or two, and around where a network ended."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._trees import cast_floats, number_of
from minijaxnet._types import Params
from minijaxnet.landscape import LossSurface, loss_surface
from minijaxnet.report.page import Picture, Section
from minijaxnet.report.player import OneWeight, TwoWeights, most_telling
from minijaxnet.report.record import RunRecord, Trained
from minijaxnet.report.surface import draw_contour, draw_surface, random_directions
from minijaxnet.report.weight import bowl_of, draw_strip
from minijaxnet.run.log import MOST_WATCHED, weights_of

_POINTS, _MARGIN = 61, 1.4  # of the surface over two weights: along each, and how far beyond the descent
_GRID, _MOST_POINTS = 25, 512  # of the surface around a network's weights, and of the data that it is computed on
_MOST_WORK = 3e10  # operations, which take about a second


def played(record: RunRecord) -> Section | None:
    """A player of the recorded descent; None for more than two weights, or without a finite stop."""
    trained = record.trained
    if trained is None or number_of(trained.params) > MOST_WATCHED:
        return None
    path = _recorded(record.rows, trained.params)
    if not np.isfinite(path.weights.astype(float)).all(-1).any():
        return None
    player, pictures = (_one_weight if path.weights.shape[1] == 1 else _two_weights)(record, trained, path)
    logged, kept = len(record.rows), len(path.at)
    words = f"Of {logged:,} logged stops {kept:,} are kept, more of the early ones." if kept < logged else ""
    return Section("Stop by stop", words, players=[player], pictures=pictures)


def loss_around(record: RunRecord) -> Section | None:
    """The loss over two random directions around where a network ended; None where it takes long to compute."""
    trained = record.trained
    if trained is None or (weights := number_of(trained.params)) <= MOST_WATCHED:
        return None
    all_points = len(jax.tree.leaves(trained.train)[0])
    points = min(all_points, _MOST_POINTS)
    if 2.0 * weights * points * _GRID**2 > _MOST_WORK:
        return None
    directions = random_directions(trained.params)
    batch = jax.tree.map(lambda leaf: np.asarray(leaf)[:points], trained.train)
    surface = loss_surface(trained.loss, trained.params, batch, directions=directions, points=_GRID)
    part = "" if points == all_points else f", of {points:,} of {all_points:,} points"
    words = (
        f"The training loss{part}, along two random directions, in which each filter is as long as the filter of the "
        "weights. The run ended in the middle."
    )
    middle = float(np.asarray(surface.losses)[_GRID // 2, _GRID // 2])
    names = ("random direction 1", "random direction 2")
    return Section("The loss around the end", words, pictures=_views(surface, np.zeros((1, 2)), [middle], names))


class _Recorded(NamedTuple):
    """The stops of a descent in its log, at most as many as a player has.

    Attributes:
        at: ``(stops,)``, the step of each.
        weights: ``(stops, weights)``, in the dtype of the params.
        steps: ``(stops, weights)``, the step taken from there; NaN where the log does not have the next stop.
        losses: ``(stops,)``.
    """

    at: np.ndarray
    weights: np.ndarray
    steps: np.ndarray
    losses: np.ndarray


@np.errstate(all="ignore")  # after a divergence
def _recorded(rows: list[dict[str, Any]], params: Params) -> _Recorded:
    names, dtype = list(weights_of(params)), jnp.result_type(*jax.tree.leaves(params))
    rows = [row for row in rows if all(name in row for name in names)]
    kept = most_telling(len(rows))
    at = np.array([row["step"] for row in rows], int)
    weights = np.array([[row[name] for name in names] for row in rows], dtype).reshape(len(rows), len(names))
    losses = np.array([row.get("train_loss", row["loss"]) for row in rows], float)
    steps = np.diff(weights, axis=0, append=np.nan).astype(dtype)
    steps[:-1][np.diff(at) != 1] = np.nan
    return _Recorded(*(column[kept] for column in (at, weights, steps, losses)))


def _one_weight(record: RunRecord, trained: Trained, path: _Recorded) -> tuple[OneWeight, list[Picture]]:
    """The player of one weight, and pictures of some stops in its bowl."""
    dtype = jnp.promote_types(path.weights.dtype, jnp.float32)  # in a narrower one the curve would be a staircase
    params, train = (cast_floats(tree, dtype) for tree in (trained.params, trained.train))
    bowl = bowl_of(trained.loss, _as_params(params, path.weights), train)
    _, rising = np.unique(bowl.weights, return_index=True)  # after small steps points can be equal

    def loss(weight: jax.Array) -> jax.Array:
        return trained.loss(_as_params(params, weight), train)

    lowest = jnp.asarray(bowl.weights[[np.nanargmin(bowl.losses)]])
    curvature = float(jax.jit(jax.hessian(loss))(lowest).reshape(()))
    [name] = weights_of(trained.params)
    player = OneWeight(
        "The descent, stop by stop",
        name,
        bowl._replace(weights=bowl.weights[rising], losses=bowl.losses[rising], stop_losses=path.losses),
        path.steps[:, 0],
        record.config["flags"]["learning_rate"],
        curvature if math.isfinite(curvature) and curvature > 0 else None,
        path.at,
    )
    alt = f"The loss over {name}, with the stops of the descent, and the tangent and the step at some of them."
    strip = Picture("Moments of the descent", alt, lambda figure: draw_strip(figure, bowl, name=name), 4.6, True)
    return player, [strip]


def _two_weights(record: RunRecord, trained: Trained, path: _Recorded) -> tuple[TwoWeights, list[Picture]]:
    """The player of two weights, and pictures of their loss surface."""
    finite = path.weights[np.isfinite(path.weights.astype(float)).all(-1)]
    low, high = finite.min(0), finite.max(0)
    centre, span = (low + high) / 2, float(_MARGIN * np.max(high - low) / 2) or 1.0
    directions = [_as_params(trained.params, direction) for direction in np.eye(2)]
    surface = loss_surface(
        trained.loss,
        _as_params(trained.params, centre),
        trained.train,
        directions=directions,
        span=span,
        points=_POINTS,
    )
    first, second = weights_of(trained.params)
    offsets = np.asarray(surface.offsets, float)
    player = TwoWeights(
        "The descent, stop by stop",
        (first, second),
        (float(centre[0]) + offsets, float(centre[1]) + offsets),  # in float64, so that they rise in even steps
        surface.losses,
        path.weights,
        path.losses,
        path.steps,
        record.config["flags"]["learning_rate"],
        path.at,
    )
    names = (f"{first} - {centre[0]:.3g}", f"{second} - {centre[1]:.3g}")
    return player, _views(surface, path.weights - centre, path.losses, names)


def _as_params(params: Params, values: Any) -> Any:
    """Weights ``(..., weights)`` as a tree like the params, with the leading axes in front."""
    leaves, structure = jax.tree.flatten(params)
    ends = np.cumsum([np.size(leaf) for leaf in leaves])[:-1].tolist()
    split = np.split if isinstance(values, np.ndarray) else jnp.split
    parts = zip(split(values, ends, axis=-1), leaves, strict=True)
    shaped = [part.reshape((*values.shape[:-1], *np.shape(leaf))).astype(leaf.dtype) for part, leaf in parts]
    return jax.tree.unflatten(structure, shaped)


def _views(surface: LossSurface, path: Any, losses: Any, names: tuple[str, str]) -> list[Picture]:
    """A loss surface from above and from the side, with the path of a descent on it."""

    def from_the_side(figure: Any) -> None:
        draw_surface(figure.add_subplot(projection="3d"), surface, path, losses, names=names)

    def from_above(axes: Any) -> None:
        draw_contour(axes, surface, path, names=names)

    alt = f"The training loss over {names[0]} and {names[1]}"
    return [
        Picture("From above", f"{alt}, in bands.", from_above, 3.4),
        Picture("From the side", f"{alt}, as hills.", from_the_side, 3.8, True),
    ]
