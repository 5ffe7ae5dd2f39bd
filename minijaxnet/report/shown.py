"""What an experiment shows of where a run ended: its descent stop by stop, its loss around it, its predictions."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from minijaxnet._checks import is_pair
from minijaxnet._trees import cast_floats, number_of
from minijaxnet.landscape import LossSurface, loss_surface
from minijaxnet.report.decisions import confusion, draw_confusion, draw_mistakes, draw_regions
from minijaxnet.report.directions import random_directions
from minijaxnet.report.graph import draw_network
from minijaxnet.report.page import Section, Table
from minijaxnet.report.player import Curve, OneWeight, Stops, TwoWeights, most_telling
from minijaxnet.report.sections import Seen, Wanted, illustrated
from minijaxnet.report.surface import draw_contour, draw_surface
from minijaxnet.report.told import Known, Told
from minijaxnet.report.weight import Bowl, bowl_of, draw_strip
from minijaxnet.run.log import MOST_WATCHED, weights_of

_POINTS, _MARGIN = 61, 1.4  # of the surface over two weights: along each, and how far beyond the descent
_GRID, _MOST_POINTS = 25, 512  # of the surface around a network's weights, and of the data that it is seen on
_MOST_WORK = 3e10  # operations: about a second
_ACTIVATIONS = (jax.nn.relu, jnp.tanh, jax.nn.sigmoid, lambda x: x)
_MOST_EDGES, _MOST_SHOWN, _LEAST_SIDE = 40, 20, 8


def shown(told: Told, known: Known) -> list[Section]:
    """Sections on a run's descent, loss and predictions; what cannot be shown is left out, or said.

    Args:
        told: by its folder.
        known: of where it ended.
    """
    sections = []
    for title, see in (("Stop by stop", stops), ("The loss around the end", around), ("Predictions", predictions)):
        try:
            seen = see(told, known)
        except Exception as error:  # of the experiment's own functions, too: what fails costs its section alone
            seen = Seen(f"This could not be shown: {type(error).__name__}: {error}")
        sections += [illustrated(title, seen)] if seen is not None else []
    return sections


def _loss(known: Known) -> Callable[[Any, Any], Any]:
    extra = () if known.key is None else (known.key,)
    return lambda params, batch: known.experiment.objective(params, batch, *extra)


class _Path(NamedTuple):
    """The stops of a descent by its log, of a long one the most telling; none if the log does not say.

    Attributes:
        at: ``(stops,)``, the step of each.
        weights: ``(stops, weights)``, in the dtype of the params.
        moves: ``(stops, weights)``, the step taken from there; NaN where the log does not have the next.
        losses: ``(stops,)``.
    """

    at: np.ndarray
    weights: np.ndarray
    moves: np.ndarray
    losses: np.ndarray


def _path(told: Told, known: Known) -> _Path:
    names = list(weights_of(known.params)) if number_of(known.params) <= MOST_WATCHED else []
    rows = [row for row in told.rows if names and all(name in row for name in names)]
    dtype = jax.flatten_util.ravel_pytree(known.params)[0].dtype
    kept = most_telling(len(rows))
    here, after = ([rows[i] for i in np.minimum(kept + k, len(rows) - 1)] for k in (0, 1))
    at, then = (np.array([row["step"] for row in of], int) for of in (here, after))
    weights, to = (
        np.array([[row[name] for name in names] for row in of], dtype).reshape(len(kept), len(names))
        for of in (here, after)
    )
    losses = np.array([row.get("train_loss", row["loss"]) for row in here], float)
    return _Path(at, weights, np.where((then == at + 1)[:, None], to - weights, np.nan), losses)


def stops(told: Told, known: Known) -> Seen | None:
    """A player of the recorded descent, where one weight or two are all there are."""
    path = _path(told, known)
    if not path.weights.size or not np.isfinite(path.weights.astype(float)).all(-1).any():
        return None
    return (_one_weight if path.weights.shape[1] == 1 else _two_weights)(told, known, path)


def _widened(tree: Any) -> Any:
    """A tree with its floats in float32 at least."""
    return jax.tree.map(lambda leaf: cast_floats(leaf, jnp.promote_types(leaf.dtype, jnp.float32))
                        if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)  # fmt: skip


def _left_out(told: Told, path: _Path) -> str:
    logged, kept = len(told.rows), len(path.at)
    return "" if kept == logged else f"Of {logged:,} logged stops {kept:,} are here, the early ones most closely."


def bowl(told: Told, known: Known) -> Bowl:
    """The bowl of an experiment with one weight, with the stops of its descent.

    Raises:
        ValueError: it has more weights.
    """
    if number_of(known.params) != 1:
        raise ValueError(f"params: got {number_of(known.params)} weights; expected one")
    [leaf], structure = jax.tree.flatten(known.params)
    path = _path(told, known).weights.reshape(-1, *np.shape(leaf))
    return bowl_of(_loss(known), jax.tree.unflatten(structure, [path]), known.train)


def _one_weight(told: Told, known: Known, path: _Path) -> Seen:
    [leaf], structure = jax.tree.flatten(known.params)
    rate = told.config["flags"]["learning_rate"]
    loss, found = _loss(known), bowl(told, known)
    wide = known._replace(params=_widened(known.params), train=_widened(known.train))
    curve = bowl(told, wide)  # a narrow dtype would make stairs of it
    [name] = weights_of(known.params)

    def flat_loss(weight: jax.Array) -> jax.Array:
        return loss(jax.tree.unflatten(structure, [weight.reshape(np.shape(leaf))]), wide.train)

    lowest = jnp.asarray(curve.weights[np.nanargmin(curve.losses)])
    apart = np.unique(curve.weights, return_index=True)[1]  # after small steps points fall together
    curvature = float(jax.grad(jax.grad(flat_loss))(lowest))
    player = OneWeight(
        "The descent, stop by stop",
        name,
        Curve(curve.weights[apart], curve.losses[apart]),
        Stops(found.stops, path.losses, found.slopes, path.moves[:, 0]),
        rate,
        curvature if math.isfinite(curvature) and curvature > 0 else None,
        path.at,
    )
    alt = f"The loss over {name}, with the stops of the descent, the slope and the step at some of them."
    strip = Wanted("Moments of the descent", alt, lambda figure: draw_strip(figure, found, name=name), 4.6, True)
    return Seen(_left_out(told, path), [strip], players=[player])


def _two_weights(told: Told, known: Known, path: _Path) -> Seen:
    flat, unravel = jax.flatten_util.ravel_pytree(known.params)
    finite = path.weights[np.isfinite(path.weights.astype(float)).all(-1)]
    low, high = finite.min(0), finite.max(0)
    centre, span = (low + high) / 2, float(_MARGIN * np.max(high - low) / 2) or 1.0
    directions = [unravel(direction) for direction in jnp.eye(2, dtype=flat.dtype)]
    surface = loss_surface(
        _loss(known), unravel(jnp.asarray(centre)), known.train, directions=directions, span=span, points=_POINTS
    )
    first, second = weights_of(known.params)
    offsets = np.asarray(surface.offsets)
    axes = tuple(middle + offsets.astype(float) for middle in centre.astype(float))  # in even steps, however fine
    rate = told.config["flags"]["learning_rate"]
    names = (f"{first} - {centre[0]:.3g}", f"{second} - {centre[1]:.3g}")
    player = TwoWeights(
        "The descent, stop by stop",
        (first, second),
        (axes[0], axes[1]),
        surface.losses,
        path.weights,
        path.losses,
        rate,
        path.at,
    )
    return Seen(_left_out(told, path), views(surface, path.weights - centre, names, path.losses), players=[player])


def views(surface: LossSurface, path: Any, names: tuple[str, str], losses: Any = None) -> list[Wanted]:
    """A loss surface from above and from the side, with the path of a descent on it."""
    alt = f"The training loss over {names[0]} and {names[1]}"
    from_above = Wanted(
        "From above", f"{alt}, in bands.", lambda axes: draw_contour(axes, surface, [path], names=names), 3.4
    )

    def from_the_side(figure: Any) -> None:
        axes = figure.add_subplot(projection="3d")
        draw_surface(axes, surface, path, path_losses=losses, names=names)

    return [from_above, Wanted("From the side", f"{alt}, as hills.", from_the_side, 3.8, True)]


def around(told: Told, known: Known) -> Seen | None:
    """The loss over two random directions around where a network ended, if that is soon computed."""
    numbers, all_points = number_of(known.params), len(jax.tree.leaves(known.train)[0])
    points = min(all_points, _MOST_POINTS)
    if numbers <= MOST_WATCHED or 2.0 * numbers * points * _GRID**2 > _MOST_WORK:
        return None
    directions = random_directions(jax.random.key(0), known.params)
    batch = jax.tree.map(lambda leaf: leaf[:points], known.train)
    surface = loss_surface(_loss(known), known.params, batch, directions=directions, points=_GRID)
    seen = "" if points == all_points else f", of {points:,} of {all_points:,} points"
    words = (
        f"The training loss{seen}, along two random directions, each scaled to the weights filter by filter; "
        "the run ended in the middle."
    )
    return Seen(words, views(surface, np.zeros((1, 2)), ("random direction 1", "random direction 2")))


def predictions(told: Told, known: Known) -> Seen | None:
    """What the experiment's ``predict`` makes of its data; None if it has none."""
    predict = known.experiment.predict
    if predict is None or not (is_pair(known.train) and is_pair(known.test)):
        return None
    (train_x, train_y), (x, y) = known.train, known.test
    predicted, actual = np.asarray(predict(known.params, x), float), np.asarray(y)
    wanted: list[Wanted] = []
    classes = _classes(predicted, actual)
    if np.ndim(x) == 2 and np.shape(x)[1] == 2:
        threshold = None if classes is None else _threshold(predicted)

        def regions(axes: Any) -> None:
            draw_regions(axes, functools.partial(predict, known.params), train_x, train_y, threshold=threshold)

        alt = "What is predicted at each point of the plane, and the training data."
        wanted.append(Wanted("Predictions in the plane", alt, regions, 3.6))
    if (graph := _graph(known)) is not None:
        wanted.append(Wanted("The network at a point", "Its weights and the values of its nodes.", graph, 3.4))
    tables = []
    if classes is None:
        if predicted.size == actual.size:
            errors = predicted.reshape(-1) - actual.reshape(-1)
            worst = np.argsort(-np.abs(errors))[:_MOST_SHOWN]
            outputs = actual.size // len(actual)
            rows = [
                (
                    *((int(i),) if outputs == 1 else (int(i // outputs), int(i % outputs))),
                    *(float(of.reshape(-1)[i]) for of in (predicted, actual, errors)),
                )
                for i in worst
            ]
            which = ("point", "output") if outputs > 1 else ("point",)
            tables = [Table("Largest errors on test data", (*which, "predicted", "actual", "error"), rows)]
        return Seen("", wanted, tables=tables) if wanted or tables else None
    said, true, count = classes
    counts = confusion(said, true, count)
    wanted.append(Wanted("Confusion on test data", "How often a class was taken for another.",
                         lambda axes: draw_confusion(axes, counts), 4.2))  # fmt: skip
    side = math.isqrt(np.shape(x)[-1])
    if np.ndim(x) == 2 and side**2 == np.shape(x)[1] and side >= _LEAST_SIDE:
        scores = predicted if predicted.shape[1] > 1 else np.concatenate([0 * predicted, predicted], axis=1)
        losses = -np.asarray(jax.nn.log_softmax(scores))[np.arange(len(true)), true]
        darkest = np.nanpercentile(np.asarray(x, float), (2, 98))  # of standardised pixels a few are far out
        images = np.clip(np.asarray(x, float), *darkest).reshape(-1, side, side)
        wanted.append(Wanted("The worst mistakes", "Images of test data that were taken for another class.",
                             lambda figure: draw_mistakes(figure, images, said, true, losses), 3.6, True))  # fmt: skip
    table = Table(
        "Confusion on test data",
        ("actual", *map(str, range(count))),
        [(i, *row) for i, row in enumerate(counts.tolist())],
    )
    return Seen("", wanted, tables=[table])


def _classes(predicted: np.ndarray, actual: np.ndarray) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Predicted and actual classes, and how many there are; None where numbers are predicted."""
    if (
        predicted.ndim == 2
        and predicted.shape[1] > 1
        and actual.shape == predicted.shape[:1]
        and actual.dtype.kind in "iu"
    ):
        return predicted.argmax(1), actual.astype(int), predicted.shape[1]
    if predicted.shape == actual.shape == (len(actual), 1) and set(np.unique(actual.astype(float))) <= {0.0, 1.0}:
        return (predicted[:, 0] > _threshold(predicted)).astype(int), actual[:, 0].astype(int), 2
    return None


def _threshold(predicted: np.ndarray) -> float:
    """Above what a single output says class 1: 0.5 if all of them are probabilities, 0 if they are logits.

    >>> _threshold(np.array([0.2, 0.9])), _threshold(np.array([-0.2, 0.9]))
    (0.5, 0.0)
    """
    return 0.5 if ((predicted >= 0) & (predicted <= 1)).all() else 0.0


def _graph(known: Known) -> Callable[[Any], None] | None:
    """Draws the network, if it is a small one of dense layers whose predictions known activations give."""
    layers, predict, (x, y) = known.params, known.experiment.predict, known.train
    dense = isinstance(layers, list | tuple) and all(isinstance(layer, dict) and "weights" in layer for layer in layers)
    if not dense or number_of(layers) > _MOST_EDGES or predict is None:
        return None
    predicted = np.asarray(predict(layers, x), float)
    for hidden, last in itertools.product(_ACTIVATIONS, (None, *_ACTIVATIONS[:-1])):
        values = x
        for layer in layers[:-1]:
            values = hidden(values @ layer["weights"] + layer.get("bias", 0))
        values = values @ layers[-1]["weights"] + layers[-1].get("bias", 0)
        if np.allclose(values if last is None else last(values), predicted, rtol=1e-5, atol=1e-6):
            break
    else:
        return None
    actual = np.ravel(np.asarray(y)[0]) if np.size(y) == predicted.size else None
    return lambda axes: draw_network(axes, layers, np.asarray(x)[0], hidden, last, actual=actual)
