"""The section on predictions: what the experiment's ``predict`` returns for its data."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from minijaxnet._checks import is_pair
from minijaxnet._trees import number_of
from minijaxnet.report.decisions import confusion, draw_confusion, draw_mistakes, draw_regions
from minijaxnet.report.graph import MOST_EDGES, MOST_NODES, draw_network
from minijaxnet.report.page import Picture, Section, Table
from minijaxnet.report.record import RunRecord, Trained

_MOST_ERRORS, _LEAST_SIDE = 20, 8


@np.errstate(all="ignore")  # after a divergence
def predictions(record: RunRecord) -> Section | None:
    """Predictions on the experiment's data; None if it has no ``predict``."""
    trained = record.trained
    if trained is None or trained.experiment.predict is None or not (is_pair(trained.train) and is_pair(trained.test)):
        return None
    x, actual = (np.asarray(array) for array in trained.test)
    predicted = _predicted(trained, x)
    classes = _classes(predicted, actual)
    pictures, tables = _pictures_of_the_network(trained, None if classes is None else _threshold(predicted)), []
    if classes is not None:
        counts = confusion(*classes)
        pictures += _pictures_of_classes(x, predicted, classes, counts)
        rows = [(i, *row) for i, row in enumerate(counts.tolist())]
        tables = [Table("Confusion on test data", ("actual", *map(str, range(len(counts)))), rows)]
    elif predicted.size == actual.size:
        tables = [_largest_errors(predicted, actual)]
    return Section("Predictions", pictures=pictures, tables=tables) if pictures or tables else None


def _predicted(trained: Trained, x: Any) -> np.ndarray:
    predict: Any = trained.experiment.predict
    try:
        return np.asarray(jax.jit(predict)(trained.params, x), float)
    except TypeError:  # it calls NumPy, which cannot be traced
        return np.asarray(predict(trained.params, x), float)


def _pictures_of_the_network(trained: Trained, threshold: float | None) -> list[Picture]:
    """The plane of two inputs, and a small network as a graph."""
    (x, y), pictures = trained.train, []
    if np.ndim(x) == 2 and np.shape(x)[1] == 2:
        predict: Any = trained.experiment.predict
        alt = "What is predicted at each point of the plane, and the training data."

        def regions(axes: Any) -> None:
            draw_regions(axes, functools.partial(predict, trained.params), x, y, threshold=threshold)

        pictures.append(Picture("Predictions in the plane", alt, regions, 3.6))
    if (graph := _graph(trained)) is not None:
        alt = "The weights of the network, and the values of its nodes for one point."
        pictures.append(Picture("The network at a point", alt, graph, 3.4))
    return pictures


def _pictures_of_classes(x: np.ndarray, predicted: np.ndarray, classes: Any, counts: np.ndarray) -> list[Picture]:
    """The confusion of classes and, where the inputs can be square images, the worst mistakes."""
    alt = "How often a class was predicted for each actual class."
    pictures = [Picture("Confusion on test data", alt, lambda axes: draw_confusion(axes, counts), 4.2)]
    side = math.isqrt(x.shape[-1])
    if x.ndim == 2 and side**2 == x.shape[1] and side >= _LEAST_SIDE:
        most_likely, actual, _ = classes
        scores = predicted if predicted.shape[1] > 1 else np.concatenate([0 * predicted, predicted], axis=1)
        scores = scores - scores.max(axis=1, keepdims=True)
        losses = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(actual)), actual]
        low, high = np.nanpercentile(x.astype(float), (2, 98))  # a few standardised pixels are far out
        images = np.clip(x.astype(float), low, high).reshape(-1, side, side)
        alt = "Images of test data whose class was mistaken."

        def mistakes(figure: Any) -> None:
            draw_mistakes(figure, images, most_likely, actual, losses)

        pictures.append(Picture("The worst mistakes", alt, mistakes, 3.6, True))
    return pictures


def _largest_errors(predicted: np.ndarray, actual: np.ndarray) -> Table:
    """The largest errors, with the point and, where there are several, the output."""
    shape = (len(actual), actual.size // len(actual))
    predicted, actual = predicted.reshape(shape), actual.reshape(shape).astype(float)
    errors = predicted - actual
    worst = np.argsort(-np.abs(errors), axis=None)[:_MOST_ERRORS]
    which = ("point", "output") if shape[1] > 1 else ("point",)
    rows = [
        (*place[: len(which)], *(float(array[place]) for array in (predicted, actual, errors)))
        for place in zip(*(index.tolist() for index in np.unravel_index(worst, shape)), strict=True)
    ]
    return Table("Largest errors on test data", (*which, "predicted", "actual", "error"), rows)


def _classes(predicted: np.ndarray, actual: np.ndarray) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Predicted and actual classes, and how many there are; None where numbers are predicted."""
    several = predicted.ndim == 2 and predicted.shape[1] > 1
    if several and actual.shape == predicted.shape[:1] and actual.dtype.kind in "iu":
        return predicted.argmax(1), actual.astype(int), predicted.shape[1]
    if predicted.shape == actual.shape == (len(actual), 1) and set(np.unique(actual.astype(float))) <= {0.0, 1.0}:
        return (predicted[:, 0] > _threshold(predicted)).astype(int), actual[:, 0].astype(int), 2
    return None


def _threshold(predicted: np.ndarray) -> float:
    """Above what a single output means class 1: 0.5 if all of them are probabilities, 0 if they are logits.

    >>> _threshold(np.array([0.2, 0.9])), _threshold(np.array([-0.2, 0.9]))
    (0.5, 0.0)
    """
    return 0.5 if ((predicted >= 0) & (predicted <= 1)).all() else 0.0


def relu(x: Any) -> Any:
    """``max(x, 0)``, without JAX."""
    return np.maximum(x, 0)


def sigmoid(x: Any) -> Any:
    """``1 / (1 + exp(-x))``, without JAX."""
    return 0.5 * (1 + np.tanh(x / 2))


def _graph(trained: Trained) -> Callable[[Any], None] | None:
    """Draws the network, if it is a small one of dense layers and known activations explain its predictions."""
    layers = trained.params
    dense = isinstance(layers, list | tuple) and all(isinstance(layer, dict) and "weights" in layer for layer in layers)
    if not dense or number_of(layers) > MOST_EDGES or max(max(layer["weights"].shape) for layer in layers) > MOST_NODES:
        return None
    layers = [{name: np.asarray(leaf, float) for name, leaf in layer.items()} for layer in layers]
    x, y = (np.asarray(array) for array in trained.train)
    predicted = _predicted(trained, x)
    for hidden, last in itertools.product((relu, np.tanh, sigmoid, None), (None, relu, np.tanh, sigmoid)):
        values = x.astype(float)
        for layer, activation in zip(layers, [hidden] * (len(layers) - 1) + [last], strict=True):
            values = values @ layer["weights"] + layer.get("bias", 0)
            values = values if activation is None else activation(values)
        if np.allclose(values, predicted, rtol=1e-5, atol=1e-6):
            actual = np.ravel(y[0]) if y.size == predicted.size else None
            return lambda axes: draw_network(axes, layers, x[0], hidden, last, actual=actual)
    return None
