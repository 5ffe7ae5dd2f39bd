"""Players of recorded descents: the record of one weight or of two, as the page's script takes it.

A player steps through the stops of a descent: of one weight in its bowl, of two on their loss surface. The page shows
the record as it is, and computes only the descent at another learning rate, which it calls live.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minijaxnet.report.style import HEIGHTS, styled
from minijaxnet.report.weight import Bowl

MOST_STOPS = 1_000  # more than a slider has places
_MOST_POINTS = 400  # of a curve
_MOST_ROWS = 120  # of a surface, which is drawn interpolated
_BANDS = 24  # colours of a surface: so few that the edges between them look like contours


class OneWeight(NamedTuple):
    """A player of one weight: the record in the bowl, and beside it the bowl at any learning rate.

    Attributes:
        title: above the player.
        weight: the weight's name.
        bowl: the curve and the stops of the record; NaN where it diverged.
        steps: ``(stops,)``, the step that was taken from each stop; NaN where it is not known.
        learning_rate: that of the record, positive.
        curvature: the second derivative of the loss at its lowest point, to mark where a rate overshoots and diverges.
        at: ``(stops,)``, the number of each stop's step; 0, 1, 2, ... if None.
    """

    title: str
    weight: str
    bowl: Bowl
    steps: Any
    learning_rate: float
    curvature: float | None = None
    at: Any = None


class TwoWeights(NamedTuple):
    """A player of two weights: the record on the loss surface.

    Attributes:
        title: above the player.
        weights: the names of the two.
        axes: their values ``(n,)`` and ``(m,)``, rising in even steps.
        surface: ``(n, m)``, the losses there, the first weight along the first axis.
        path: ``(stops, 2)``, the record.
        losses: ``(stops,)``, the loss at each stop.
        steps: ``(stops, 2)``, the step that was taken from each stop; NaN where it is not known.
        learning_rate: that of the record.
        at: ``(stops,)``, the number of each stop's step; 0, 1, 2, ... if None.
    """

    title: str
    weights: tuple[str, str]
    axes: tuple[Any, Any]
    surface: Any
    path: Any
    losses: Any
    steps: Any
    learning_rate: float
    at: Any = None


def player_data(player: OneWeight | TwoWeights) -> dict[str, Any]:
    """What the page's script needs for a player, and what its template says about it.

    Returns:
        ``kind``, ``"one"`` or ``"two"`` weights; ``data`` for JSON; ``keys``, the numbers of a stop with their labels;
        ``stops``, how many the player has, ``of`` how many.

    Raises:
        NoMatplotlib: the library that has the colours of a surface is not installed.
        ValueError: a learning rate, a curve or axes that cannot be drawn.
    """
    return _one_weight(player) if isinstance(player, OneWeight) else _two_weights(player)


def _one_weight(player: OneWeight) -> dict[str, Any]:
    if not (math.isfinite(player.learning_rate) and player.learning_rate > 0):
        raise ValueError(f"learning_rate: got {player.learning_rate}; expected a positive number")
    weights, losses, stops, stop_losses, gradients = player.bowl
    curve = np.asarray([weights, losses], float)
    curve = curve[:, np.isfinite(curve).all(axis=0)]
    if curve.shape[1] < 2 or not (np.diff(curve[0]) > 0).all():
        raise ValueError(f"curve: got {curve.shape[1]} finite points; expected 2 or more, at rising weights")
    curve = np.stack([*curve, np.gradient(curve[1], curve[0], edge_order=1 if curve.shape[1] == 2 else 2)])
    keys = {"w0": player.weight, "loss": "loss", "gradient": "gradient", "step0": "step taken"}
    more = {
        "curve": [_plain(values) for values in curve[:, _spread(curve.shape[1], _MOST_POINTS)]],
        "names": [player.weight, "loss"],
        "rate": float(player.learning_rate),
        "curvature": player.curvature,
    }
    return _data("one", keys, player.at, (stops, stop_losses, gradients, player.steps), more)


def _two_weights(player: TwoWeights) -> dict[str, Any]:
    axes, surface = [np.asarray(axis, float) for axis in player.axes], np.asarray(player.surface)
    if not all((np.diff(axis) > 0).all() for axis in axes):
        raise ValueError("axes: got values that do not rise; expected weights that differ in their dtype")
    first, second = player.weights
    keys = {"w0": first, "w1": second, "loss": "loss", "step0": f"step in {first}", "step1": f"step in {second}"}
    rows, columns = (_spread(len(axis), _MOST_ROWS) for axis in axes)
    more = {
        "axes": [_plain(axis[[0, -1]]) for axis in axes],
        "surface": [_plain(row.astype(np.float32)) for row in surface[np.ix_(rows, columns)]],
        "names": list(player.weights),
        "colours": _height_colours(),
    }
    return _data("two", keys, player.at, (*np.transpose(player.path), player.losses, *np.transpose(player.steps)), more)


def _data(kind: str, keys: dict[str, str], at: Any, record: Sequence[Any], more: dict[str, Any]) -> dict[str, Any]:
    stops = len(record[0])
    kept = most_telling(stops)
    at = np.arange(stops) if at is None else np.asarray(at)
    data = {"stops": [_plain(np.asarray(values)[kept]) for values in record], "at": at[kept].tolist()} | more
    return {"kind": kind, "data": data, "keys": list(keys.items()), "stops": len(kept), "of": stops}


def most_telling(n: int) -> np.ndarray:
    """Which of n stops are kept: all if they are few; else the first, the last, and more of the early ones.

    >>> len(most_telling(10)), len(most_telling(1_000_000)) <= MOST_STOPS
    (10, True)
    """
    if n <= MOST_STOPS:
        return np.arange(n)
    ranks = np.concatenate([np.linspace(1, n, MOST_STOPS // 2), np.geomspace(1, n, MOST_STOPS // 2)])
    return np.unique(np.rint(ranks).astype(int)) - 1


def _spread(n: int, most: int) -> np.ndarray:
    """At most so many of the first n indices, evenly spaced, both ends included.

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
    with styled():
        from matplotlib import colormaps

    return colormaps[HEIGHTS](np.linspace(0, 1, _BANDS), bytes=True)[:, :3].tolist()
