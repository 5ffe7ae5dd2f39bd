"""A small network as a graph: its weights on the edges, the values of a forward pass in the nodes."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minijaxnet.report.style import COLOURS, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NODES = 8  # in a layer
MOST_EDGES = 60
_LABEL_ROOM = 0.16  # square inches that a label needs between two layers, not to lie on another
_LETTER = 0.07, 0.15  # inches: how wide and high a letter of an edge's label is
_USUAL_SHARE = 0.775, 0.77  # of a figure's width and height, that axes have before they are laid out
_DASHES: Any = {"positive": "-", "negative": (0, (5, 2)), "past": ":"}


def draw_network(
    axes: "Axes",
    params: Sequence[Any],
    inputs: Any,
    activation: Callable[[Any], Any],
    output_activation: Callable[[Any], Any] | None = None,
    *,
    actual: Any = None,
) -> None:
    """Draw a network of dense layers with one point passing through it, and what it makes of it.

    Edges of negative weight are dashed, of weight 0 dotted, and the thicker the larger. Their weights are written on
    them, unless there are too many between two layers. Each column names the activation that its values have been
    through.

    Args:
        axes: to draw on; its scales and frame are taken away.
        params: a ``{"weights": (n_in, n_out), "bias": (n_out,)}`` a layer, with or without biases, as ``mlp`` has it.
        inputs: the point, ``(n_in,)``.
        activation: of every hidden layer.
        output_activation: of the last layer; none when left out.
        actual: what should have been predicted, a number an output; when left out no error is drawn.

    Raises:
        TypeError: params that are no list of dense layers.
        ValueError: shapes that do not fit, or a network that is too large to be read.

    Example:
        >>> from minijaxnet.report.style import figure, styled
        >>> layers = [{"weights": [[1.0, -1.0], [1.0, 1.0]]}, {"weights": [[2.0], [-1.0]]}]
        >>> with styled():
        ...     axes = figure().subplots()
        ...     draw_network(axes, layers, (2, 3), lambda x: np.maximum(x, 0), actual=13)
        >>> [text.get_text() for text in axes.texts if "error" in text.get_text()]
        ['prediction 9\\nactual 13\\nerror -4']
    """
    layers = _layers(params)
    values = _forward(layers, inputs, activation, output_activation)
    wanted = None if actual is None else np.ravel(np.asarray(actual, float))
    if wanted is not None and wanted.shape != values[-1].shape:
        raise ValueError(f"actual: got {wanted.size} numbers; expected {values[-1].size}, one for each output")

    figure: Any = axes.get_figure(root=True)
    # A layout gives axes without a frame all their room; one unit is then about an inch, and a label's size is known.
    width, height = np.array(axes.get_position().size) / _USUAL_SHARE * figure.get_size_inches()
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    widest = max(map(len, values))
    up, right = (height - 1.0) / max(1, widest - 1), (width - 1.4) / (len(values) - 1)
    node = float(np.clip(72 * min(0.5 * up, 0.32 * right), 12, 26))
    places = [
        np.stack([np.full(n, 0.25 + right * i), (height - 0.3) / 2 + up * ((n - 1) / 2 - np.arange(n))], axis=1)
        for i, n in enumerate(map(len, values))
    ]
    fns = [None, *[activation] * (len(layers) - 1), output_activation]
    titles = ["inputs", *["hidden"] * (len(layers) - 1), "output"]
    for column, at, fn, title in zip(values, places, fns, titles, strict=True):
        name = getattr(fn, "__name__", "<lambda>").replace("<lambda>", "")
        axes.text(at[0, 0], height, f"{title}\n{name}", ha="center", va="top", fontsize=8, parse_math=False)
        axes.scatter(*at.T, s=node**2, facecolors="none", edgecolors=INK, linewidths=1.1, zorder=3)
        for value, (x, y) in zip(column, at, strict=True):
            text = _short(value)
            size = min(9.0, 1.4 * node / len(text))
            axes.text(x, y, text, ha="center", va="center_baseline", fontsize=size, zorder=4)
    labelled = int((right - node / 72) * height / _LABEL_ROOM)
    for (weights, bias), start, end in zip(layers, places, places[1:], strict=False):
        _draw_edges(axes, weights, start, end, radius=node / 144, labels=weights.size <= labelled)
        for value, (x, y) in zip([] if bias is None else bias, end, strict=False):
            axes.text(x, y - node / 144 - 0.03, f"bias {_short(value, 2)}", ha="center", va="top", fontsize=6)
    if any(weights.size > labelled for weights, _ in layers):
        axes.text(width, 0, "edges: thicker is larger, dashed is negative", ha="right", va="bottom", fontsize=7)
    for i, (value, (x, y)) in enumerate(zip(values[-1], places[-1], strict=True)):
        lines = [f"prediction {_short(value)}"]
        if wanted is not None:
            lines += [f"actual {_short(wanted[i])}", f"error {_short(value - wanted[i])}"]
        size = 9 if up > 0.5 or len(values[-1]) == 1 else 72 * up / 4.2
        axes.text(x + node / 144 + 0.08, y, "\n".join(lines), ha="left", va="center", fontsize=size)


def _draw_edges(
    axes: "Axes", weights: np.ndarray, start: np.ndarray, end: np.ndarray, *, radius: float, labels: bool
) -> None:
    """The edges from one column of nodes to the next, each open where its label stands."""
    ends = [(start[i], end[j], float(weights[i, j])) for i in range(len(start)) for j in range(len(end))]
    lines = np.array([(a, b) for a, b, _ in ends])
    largest = max([abs(weight) for *_, weight in ends if np.isfinite(weight)], default=0.0) or 1.0
    taken = np.empty((0, 2))
    for own, (a, b, weight) in enumerate(ends):
        way = b - a
        gaps = [radius / float(np.hypot(*way)), 1 - radius / float(np.hypot(*way))]
        if labels:
            label = _short(weight, 3 if len(ends) <= 6 else 2)
            sides = zip((_LETTER[0] * len(label) + 0.06, _LETTER[1]), way, strict=True)
            half = min(side / 2 / max(abs(float(part)), 1e-9) for side, part in sides)
            free = np.linspace(min(gaps[0] + half, 0.5), max(gaps[1] - half, 0.5), 15)
            at = _freest(free, a, b, taken, np.delete(lines, own, axis=0))
            middle = a + at * way
            taken = np.vstack([taken, middle])
            gaps[1:1] = [at - half, at + half]
            axes.text(middle[0], middle[1], label, ha="center", va="center_baseline", fontsize=8, zorder=2)
        sign = "past" if not abs(weight) > 0 else "positive" if weight > 0 else "negative"
        thick = 0.8 + 1.4 * abs(weight) / largest if np.isfinite(weight) else 0.8
        for low, high in zip(gaps[::2], gaps[1::2], strict=True):
            if low < high:
                part = np.stack([a + low * way, a + high * way]).T
                axes.plot(*part, color=COLOURS[sign], linestyle=_DASHES[sign], linewidth=thick, zorder=1)


def _freest(free: np.ndarray, a: np.ndarray, b: np.ndarray, taken: np.ndarray, others: np.ndarray) -> float:
    """Where along an edge there is most room: far from other labels and other edges, and rather near the start."""
    points = a + free[:, None] * (b - a)
    room = np.full(len(points), 0.4)
    # Labels are wide: sideways they need twice the room.
    if len(taken):
        room = np.minimum(room, np.min(np.hypot(*((points[:, None] - taken) * (0.5, 1)).T), axis=0))
    if len(others):
        start, way = others[:, 0], others[:, 1] - others[:, 0]
        x = np.clip((points[:, None, 0] - start[:, 0]) / way[:, 0], 0, 1)
        heights = start[:, 1] + x * way[:, 1]
        room = np.minimum(room, 1.5 * np.min(np.abs(points[:, None, 1] - heights), axis=1))
    return float(free[np.argmax(room - 0.1 * np.abs(free - 0.35))])


def _layers(params: Sequence[Any]) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Weights and biases of each layer, checked."""
    if not isinstance(params, list | tuple) or not params:
        raise TypeError(f"params: got {type(params).__name__}; expected a list of layers, each with its weights")
    layers: list[tuple[np.ndarray, np.ndarray | None]] = []
    for i, layer in enumerate(params):
        if not isinstance(layer, dict) or not {"weights"} <= set(layer) <= {"weights", "bias"}:
            got = sorted(layer) if isinstance(layer, dict) else type(layer).__name__
            raise TypeError(f'params[{i}]: got {got}; expected {{"weights": ..., "bias": ...}}')
        weights = np.asarray(layer["weights"], float)
        bias = np.asarray(layer["bias"], float) if "bias" in layer else None
        if weights.ndim != 2 or (bias is not None and bias.shape != weights.shape[1:]):
            shapes = {name: np.shape(leaf) for name, leaf in layer.items()}
            raise ValueError(f"params[{i}]: got shapes {shapes}; expected (n_in, n_out) and (n_out,)")
        if layers and len(weights) != layers[-1][0].shape[1]:
            raise ValueError(f"params[{i}]: got {len(weights)} inputs; expected {layers[-1][0].shape[1]}")
        layers.append((weights, bias))
    nodes = [len(layers[0][0]), *(weights.shape[1] for weights, _ in layers)]
    edges = sum(weights.size for weights, _ in layers)
    if max(nodes) > MOST_NODES or edges > MOST_EDGES:
        raise ValueError(
            f"params: got layers of {nodes} nodes with {edges} edges; expected at most {MOST_NODES} nodes a layer and "
            f"{MOST_EDGES} edges, more cannot be read"
        )
    return layers


def _forward(
    layers: list[tuple[np.ndarray, np.ndarray | None]], inputs: Any, activation: Any, output_activation: Any
) -> list[np.ndarray]:
    """The values of each column of nodes."""
    values = [np.ravel(np.asarray(inputs, float))]
    if len(values[0]) != len(layers[0][0]):
        raise ValueError(f"inputs: got {len(values[0])} numbers; expected {len(layers[0][0])}, one for each input")
    for i, (weights, bias) in enumerate(layers):
        value = values[-1] @ weights + (0 if bias is None else bias)
        fn = activation if i + 1 < len(layers) else output_activation
        values.append(np.asarray(value if fn is None else fn(value), float))
    return values


def _short(number: Any, digits: int = 3) -> str:
    """A few digits: what has room in a node.

    >>> _short(-4.0), _short(0.12345), _short(-0.0)
    ('-4', '0.123', '0')
    """
    return f"{float(number) + 0.0:.{digits}g}"
