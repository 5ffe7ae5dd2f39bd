"""Players of recorded descents: what is recorded, checked and made ready for the page.

A player steps through the stops of a descent of one weight, in its bowl, or of two, on their loss surface. The page
computes nothing of the record; only what is called live is computed there.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minijaxnet.report.style import HEIGHTS

MOST_STOPS = 1_000  # more stops than a slider has places
_MOST_POINTS = 400  # of a curve: a pixel or two each
_MOST_ROWS = 120  # of a surface, which is drawn interpolated
_BANDS = 24  # colours of a loss surface: few enough that their edges read as contours
_MISSING = 'the colours of a surface need matplotlib: pip install "minijaxnet[plot]"'


class Curve(NamedTuple):
    """The loss over one weight.

    Attributes:
        weights: ``(points,)``, rising, at least 2 at which all is finite.
        losses: ``(points,)``.
        slopes: ``(points,)``; estimated from the losses where left out, exactly if they are a parabola.
    """

    weights: Any
    losses: Any
    slopes: Any = None


class Stops(NamedTuple):
    """A recorded descent of one weight, ``(stops,)`` each; the last step was not taken. NaN where it diverged."""

    weights: Any
    losses: Any
    slopes: Any
    steps: Any


class OneWeight(NamedTuple):
    """A player of one weight: the record in the bowl, and beside it the bowl at any learning rate.

    Attributes:
        title: above the player.
        weight: the weight's name.
        curve: the bowl.
        stops: the record; anything with the attributes of ``Stops``.
        learning_rate: that of the record, positive.
        curvature: the second derivative of the loss at its lowest point, to mark where a rate overshoots and diverges.
        at: ``(stops,)``, the step of each stop, rising; 0, 1, 2, ... where left out.
    """

    title: str
    weight: str
    curve: Curve
    stops: Any
    learning_rate: float
    curvature: float | None = None
    at: Any = None


class TwoWeights(NamedTuple):
    """A player of two weights: the record on the loss surface.

    Attributes:
        title: above the player.
        weights: the names of the two.
        axes: their values ``(n,)`` and ``(m,)``, rising in even steps, at least 2 each.
        surface: ``(n, m)``, the losses there, the first weight along the first axis.
        path: ``(stops, 2)``, the record.
        losses: ``(stops,)``, the loss at each stop.
        learning_rate: that of the record.
        at: ``(stops,)``, the step of each stop, rising; 0, 1, 2, ... where left out.
    """

    title: str
    weights: tuple[str, str]
    axes: tuple[Any, Any]
    surface: Any
    path: Any
    losses: Any
    learning_rate: float
    at: Any = None


def player_data(player: OneWeight | TwoWeights) -> dict[str, Any]:
    """What the page's script needs to know of a player, and what its template says of it.

    Returns:
        ``kind``, ``"one"`` or ``"two"`` weights; ``data`` for JSON; ``keys``, the numbers of a stop with their labels;
        ``stops``, how many can be seen, ``of`` how many.

    Raises:
        ImportError: matplotlib, which knows the colours of a surface, is not installed.
        ValueError: arrays that do not fit together.
    """
    return _one_weight(player) if isinstance(player, OneWeight) else _two_weights(player)


def _one_weight(player: OneWeight) -> dict[str, Any]:
    where, stops = f"player {player.title!r}", player.stops
    record = [np.atleast_1d(values) for values in (stops.weights, stops.losses, stops.slopes, stops.steps)]
    shown = _shown(where, record)
    if not (math.isfinite(player.learning_rate) and player.learning_rate > 0):
        raise ValueError(f"{where}: learning_rate: got {player.learning_rate}; expected a positive number")
    given = [np.asarray(values, float) for values in player.curve if values is not None]
    if len(shapes := {values.shape for values in given}) != 1 or given[0].ndim != 1:
        raise ValueError(f"{where}: curve: got shapes {sorted(shapes)}; expected rows of one length")
    curve = np.stack(given)[:, np.isfinite(given).all(axis=0)]
    if curve.shape[1] < 2 or not (np.diff(curve[0]) > 0).all():
        raise ValueError(
            f"{where}: curve: got {curve.shape[1]} finite points; expected 2 or more, their weights rising"
        )
    if len(curve) == 2:
        curve = np.stack([*curve, np.gradient(curve[1], curve[0], edge_order=1 if curve.shape[1] == 2 else 2)])
    curvature = player.curvature if player.curvature is not None and 0 < player.curvature < math.inf else None
    data = {
        "curve": [_plain(values) for values in curve[:, _spread(curve.shape[1], _MOST_POINTS)]],
        "stops": [_plain(values[shown]) for values in record],
        "at": _steps(where, player.at, record)[shown].tolist(),
        "names": [player.weight, "loss"],
        "rate": float(player.learning_rate),
        "curvature": curvature,
    }
    keys = [("w0", player.weight), ("loss", "loss"), ("slope", "slope"), ("step0", "step taken")]
    return {"kind": "one", "data": data, "keys": keys, "stops": len(shown), "of": len(record[0])}


def _two_weights(player: TwoWeights) -> dict[str, Any]:
    where, path = f"player {player.title!r}", np.asarray(player.path)
    axes, surface = [np.asarray(axis, float) for axis in player.axes], np.asarray(player.surface)
    for axis in axes:
        steps = np.diff(axis)
        if axis.ndim != 1 or len(axis) < 2 or not (steps > 0).all() or np.ptp(steps) > 1e-3 * steps.mean():
            raise ValueError(f"{where}: axes: got shape {axis.shape}; expected 2 values or more, rising in even steps")
    if surface.shape != tuple(map(len, axes)):
        raise ValueError(f"{where}: surface: got shape {surface.shape}; expected {tuple(map(len, axes))}, as the axes")
    if path.ndim != 2 or path.shape[1] != 2:
        raise ValueError(f"{where}: path: got shape {path.shape}; expected (stops, 2)")
    at = _steps(where, player.at, [path[:, 0]])
    steps = np.diff(path, axis=0, append=np.nan)
    steps[:-1][np.diff(at) != 1] = np.nan  # from there on the log leaves stops out
    record = [*path.T, np.atleast_1d(player.losses), *steps.T]
    shown = _shown(where, record)
    rows, columns = (_spread(len(axis), _MOST_ROWS) for axis in axes)
    data = {
        "axes": [_plain(axis[[0, -1]]) for axis in axes],
        "surface": [_plain(row.astype(np.float32)) for row in surface[np.ix_(rows, columns)]],
        "stops": [_plain(values[shown]) for values in record],
        "at": at[shown].tolist(),
        "names": list(player.weights),
        "colours": _height_colours(),
    }
    first, second = player.weights
    keys = [
        ("w0", first),
        ("w1", second),
        ("loss", "loss"),
        ("step0", f"step in {first}"),
        ("step1", f"step in {second}"),
    ]
    return {"kind": "two", "data": data, "keys": keys, "stops": len(shown), "of": len(path)}


def _shown(where: str, record: Sequence[np.ndarray]) -> np.ndarray:
    """Which stops the slider has."""
    sizes = {values.shape for values in record}
    if len(sizes) != 1 or record[0].ndim != 1 or not len(record[0]):
        raise ValueError(f"{where}: stops: got shapes {sorted(sizes)}; expected one or more stops, as many of each")
    return most_telling(len(record[0]))


def _steps(where: str, at: Any, record: Sequence[np.ndarray]) -> np.ndarray:
    steps = np.arange(len(record[0])) if at is None else np.asarray(at)
    if steps.shape != record[0].shape or steps.dtype.kind not in "iu" or not (np.diff(steps) > 0).all():
        raise ValueError(f"{where}: at: got {steps.dtype}{list(steps.shape)}; expected rising integers, one a stop")
    return steps


def most_telling(n: int) -> np.ndarray:
    """Which of n stops are shown: all if they are few; else the first, the last, and of the early ones the most.

    >>> len(most_telling(10)), len(most_telling(1_000_000)) <= MOST_STOPS
    (10, True)
    """
    if n <= MOST_STOPS:
        return np.arange(n)
    ranks = np.concatenate([np.linspace(1, n, MOST_STOPS // 2), np.geomspace(1, n, MOST_STOPS // 2)])
    return np.unique(np.rint(ranks).astype(int)) - 1


def _spread(n: int, most: int) -> np.ndarray:
    """At most so many of the first n indices, evenly, both ends included.

    >>> _spread(3, 9), _spread(9, 3)
    (array([0, 1, 2]), array([0, 4, 8]))
    """
    return np.rint(np.linspace(0, n - 1, min(n, most))).astype(int)


def _plain(values: np.ndarray) -> list[float | str]:
    """Numbers as JSON has them: the shortest that round to the same in their dtype; others as JavaScript names them.

    >>> _plain(np.array([0.1, np.nan, -np.inf], np.float32))
    [0.1, 'NaN', '-Infinity']
    """
    named = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    return [named.get(text) or float(text) for text in map(str, values)]


def _height_colours() -> list[list[int]]:
    try:
        from matplotlib import colormaps
    except ImportError as error:
        raise ImportError(_MISSING) from error
    return colormaps[HEIGHTS](np.linspace(0, 1, _BANDS), bytes=True)[:, :3].tolist()
