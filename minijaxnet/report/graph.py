"""A small network as a graph: its weights on the edges, the values of a forward pass in the nodes."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minijaxnet.report.style import COLOURS, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NODES = 8  # in a layer
MOST_EDGES = 60
_LABEL_ROOM = 0.16  # square inches between two layers for each label, so that they do not overlap
_LETTER = 0.07, 0.15  # inches: width and height of a letter of an edge's label
_USUAL_SHARE = 0.775, 0.77  # of a figure's width and height, that axes have before the layout
_DASHES: Any = {"positive": "-", "negative": (0, (5, 2)), "past": ":"}

Activation = Callable[[Any], Any] | None


def draw_network(
    axes: "Axes",
    params: Sequence[Any],
    inputs: Any,
    activation: Activation,
    output_activation: Activation = None,
    *,
    actual: Any = None,
) -> None:
    """Draw a network of dense layers with one point passing through it, and its prediction.

    Edges of negative weight are dashed, of weight 0 dotted, and the thicker the larger. Their weights are written on
    them, unless there are too many between two layers. Each column is labelled with the activation of its values.

    Args:
        axes: to draw on; its scales and frame are taken away.
        params: a ``{"weights": (n_in, n_out), "bias": (n_out,)}`` a layer, with or without biases, as ``mlp`` has it.
        inputs: the point, ``(n_in,)``.
        activation: of every hidden layer.
        output_activation: of the last layer.
        actual: the right prediction, a number for each output; without it no error is drawn.

    Raises:
        ValueError: more nodes or edges than can be read.

    Example:
        >>> from minijaxnet.report.style import figure, styled
        >>> layers = [{"weights": [[1.0, -1.0], [1.0, 1.0]]}, {"weights": [[2.0], [-1.0]]}]
        >>> with styled():
        ...     axes = figure().subplots()
        ...     draw_network(axes, layers, (2, 3), lambda x: np.maximum(x, 0), actual=13)
        >>> [text.get_text() for text in axes.texts if "error" in text.get_text()]
        ['prediction 9\\nactual 13\\nerror -4']
    """
    layers = [{name: np.asarray(leaf, float) for name, leaf in layer.items()} for layer in params]
    nodes = [len(layers[0]["weights"]), *(layer["weights"].shape[1] for layer in layers)]
    edges = sum(layer["weights"].size for layer in layers)
    if max(nodes) > MOST_NODES or edges > MOST_EDGES:
        expected = f"expected at most {MOST_NODES} nodes a layer and {MOST_EDGES} edges, so that they can be read"
        raise ValueError(f"params: got layers of {nodes} nodes with {edges} edges; {expected}")
    activations = [*[activation] * (len(layers) - 1), output_activation]
    columns = _forward(layers, inputs, activations)

    figure: Any = axes.get_figure(root=True)
    # A layout gives axes without a frame all their room. One unit is then about an inch, and a label's size is known.
    width, height = np.array(axes.get_position().size) / _USUAL_SHARE * figure.get_size_inches()
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    up, right = (height - 1.0) / max(1, max(map(len, columns)) - 1), (width - 1.4) / (len(columns) - 1)
    node = float(np.clip(72 * min(0.5 * up, 0.32 * right), 12, 26))  # points: the width of a node
    places = [
        np.stack([np.full(n, 0.25 + right * i), (height - 0.3) / 2 + up * ((n - 1) / 2 - np.arange(n))], axis=1)
        for i, n in enumerate(map(len, columns))
    ]
    titles = ["inputs", *["hidden"] * (len(layers) - 1), "output"]
    for values, at, fn, title in zip(columns, places, [None, *activations], titles, strict=True):
        name = getattr(fn, "__name__", "").replace("<lambda>", "")
        axes.text(at[0, 0], height, f"{title}\n{name}", ha="center", va="top", fontsize=8, parse_math=False)
        _draw_nodes(axes, values, at, node)
    labelled = int((right - node / 72) * height / _LABEL_ROOM)
    for layer, start, end in zip(layers, places, places[1:], strict=False):
        _draw_edges(axes, layer["weights"], start, end, radius=node / 144, labels=layer["weights"].size <= labelled)
        for value, (x, y) in zip(layer.get("bias", ()), end, strict=False):
            axes.text(x, y - node / 144 - 0.03, f"bias {_short(value, 2)}", ha="center", va="top", fontsize=6)
    if any(layer["weights"].size > labelled for layer in layers):
        axes.text(width, 0, "edges: thicker is larger, dashed is negative", ha="right", va="bottom", fontsize=7)
    size = 9 if up > 0.5 or len(columns[-1]) == 1 else 72 * up / 4.2
    for i, (value, (x, y)) in enumerate(zip(columns[-1], places[-1], strict=True)):
        lines = [f"prediction {_short(value)}"]
        if actual is not None:
            right_one = float(np.ravel(actual)[i])
            lines += [f"actual {_short(right_one)}", f"error {_short(value - right_one)}"]
        axes.text(x + node / 144 + 0.08, y, "\n".join(lines), ha="left", va="center", fontsize=size)


def _forward(layers: list[dict[str, np.ndarray]], inputs: Any, activations: Sequence[Activation]) -> list[np.ndarray]:
    """The values of each column of nodes."""
    columns = [np.ravel(np.asarray(inputs, float))]
    for layer, fn in zip(layers, activations, strict=True):
        value = columns[-1] @ layer["weights"] + layer.get("bias", 0)
        columns.append(np.asarray(value if fn is None else fn(value), float))
    return columns


def _draw_nodes(axes: "Axes", values: np.ndarray, at: np.ndarray, node: float) -> None:
    axes.scatter(*at.T, s=node**2, facecolors="none", edgecolors=INK, linewidths=1.1, zorder=3)
    for value, (x, y) in zip(values, at, strict=True):
        text = _short(value)
        size = min(9.0, 1.4 * node / len(text))
        axes.text(x, y, text, ha="center", va="center_baseline", fontsize=size, zorder=4)


def _draw_edges(
    axes: "Axes", weights: np.ndarray, start: np.ndarray, end: np.ndarray, *, radius: float, labels: bool
) -> None:
    """The edges from one column of nodes to the next, each with a gap for its label."""
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
    if len(taken):  # labels are wide: sideways they need twice the room
        room = np.minimum(room, np.min(np.hypot(*((points[:, None] - taken) * (0.5, 1)).T), axis=0))
    if len(others):
        start, way = others[:, 0], others[:, 1] - others[:, 0]
        x = np.clip((points[:, None, 0] - start[:, 0]) / way[:, 0], 0, 1)
        heights = start[:, 1] + x * way[:, 1]
        room = np.minimum(room, 1.5 * np.min(np.abs(points[:, None, 1] - heights), axis=1))
    return float(free[np.argmax(room - 0.1 * np.abs(free - 0.35))])


def _short(number: Any, digits: int = 3) -> str:
    """A few digits: what has room in a node.

    >>> _short(-4.0), _short(0.12345), _short(-0.0)
    ('-4', '0.123', '0')
    """
    return f"{float(number) + 0.0:.{digits}g}"
