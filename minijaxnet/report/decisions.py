"""What a network decides: regions of a plane, which class is taken for which, and the worst mistakes."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._checks import check_count
from minijaxnet.report.style import COLOURS, HEIGHTS, INK, SERIES
from minijaxnet.report.weight import limits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKS = "os^DvPX<>*"
_PANEL = 1.15  # inches: how wide an image of a mistake is


def draw_regions(
    axes: "Axes",
    predict: Callable[[Any], Any],
    x: Any,
    y: Any,
    *,
    threshold: float | None = 0.0,
    names: tuple[str, str] = ("input 0", "input 1"),
    classes: Sequence[str] | None = None,
    points: int = 151,
) -> None:
    """Draw what a network predicts over the plane of its two inputs, and the points it is to learn.

    Several outputs are scores, and the highest one decides. One output decides between class 0 and class 1 by a
    threshold or, without one or where y is not all 0 and 1, is a number, drawn as a height. All of the plane is
    evaluated in one compiled program; where a prediction is not a number the plane stays blank.

    Args:
        axes: to draw on.
        predict: ``predict(x)``, of JAX operations: ``(batch, n_out)`` from ``(batch, 2)``.
        x: ``(batch, 2)``, the points.
        y: their classes, as integers, 0 and 1 or one-hot; or their numbers, where there is no threshold.
        threshold: above which a single output says class 1: 0 for logits, 0.5 for probabilities; None for a regression.
        names: of the two inputs.
        classes: names of the classes; their numbers where left out.
        points: how finely to look, along either input, at least 2.

    Raises:
        ValueError: ``x`` of another shape, no point in it, ``y`` of another length, no prediction for each point; too
            few names.
    """
    x, y = np.asarray(x, float), np.asarray(y)
    if x.ndim != 2 or x.shape[1] != 2 or not np.isfinite(x).all(axis=-1).any():
        raise ValueError(f"x: got shape {x.shape}; expected (batch, 2), with a finite point at least")
    if y.shape[:1] != x.shape[:1]:
        raise ValueError(f"y: got {len(np.atleast_1d(y))} for {len(x)} points; expected one for each")
    check_count("points", points, least=2)
    sides = [np.linspace(*limits(column[np.isfinite(column)], 0.08), num=points) for column in x.T]
    plane = np.stack(np.meshgrid(*sides), axis=-1)
    scores = np.asarray(jax.jit(predict)(jnp.asarray(plane.reshape(-1, 2))), float)
    if scores.shape[:1] != (points**2,) or scores.ndim > 2:
        raise ValueError(f"predict: got shape {scores.shape} for {points**2} points; expected (batch, n_out)")
    scores = scores.reshape(points, points, -1)
    if scores.shape[-1] == 1 and (threshold is None or not np.isin(y, (0, 1)).all()):
        _draw_heights(axes, sides, scores[..., 0], x, y)
    else:
        actual = (np.argmax(y, axis=1) if y.ndim == 2 and y.shape[1] > 1 else y.reshape(-1)).astype(int)
        _draw_classes(axes, sides, scores, threshold or 0.0, x, actual, classes)
    axes.set(xlim=(sides[0][0], sides[0][-1]), ylim=(sides[1][0], sides[1][-1]))
    axes.set_xlabel(names[0], parse_math=False)
    axes.set_ylabel(names[1], parse_math=False)


def _draw_classes(
    axes: "Axes",
    sides: list[np.ndarray],
    scores: np.ndarray,
    threshold: float,
    x: np.ndarray,
    actual: np.ndarray,
    classes: Sequence[str] | None,
) -> None:
    """Each class's region in its colour, the border between them, and the points, a colour and a mark a class."""
    from matplotlib.colors import ListedColormap

    if scores.shape[-1] == 1:
        scores = np.concatenate([threshold - scores, scores - threshold], axis=-1)
    count = max(scores.shape[-1], int(actual.max()) + 1)
    named = list(map(str, range(count) if classes is None else classes))
    if len(named) < count:
        raise ValueError(f"classes: got {len(named)} names; expected {count}")
    unknown = np.isnan(scores).any(axis=-1)
    decided = np.ma.masked_where(unknown, np.argmax(scores, axis=-1))
    colours = [SERIES[i % len(SERIES)] for i in range(count)]
    axes.pcolormesh(
        *sides, decided, cmap=ListedColormap(colours), vmin=-0.5, vmax=count - 0.5, alpha=0.2, rasterized=True, zorder=0
    )
    for i in range(scores.shape[-1]):
        # Ahead of all others: the border is where that is 0. Infinite scores have no place in between.
        others = np.max(np.delete(scores, i, axis=-1), axis=-1)
        with np.errstate(invalid="ignore"):
            ahead = np.ma.masked_invalid(scores[..., i] - others)
        if ahead.count() and ahead.min() < 0 < ahead.max() and (scores.shape[-1] > 2 or i == 0):
            axes.contour(*sides, ahead, levels=[0], colors=INK, linewidths=0.8, linestyles="-", zorder=1)
    for i in np.unique(actual):
        own = actual == i
        marks: Any = {
            "marker": _MARKS[i % len(_MARKS)],
            "color": colours[i],
            "edgecolors": "#ffffff",
            "linewidths": 0.4,
        }
        axes.scatter(*x[own].T, s=20, label=named[i], zorder=2, **marks)
    legend = axes.legend(title="class", loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0, handletextpad=0.2)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _draw_heights(axes: "Axes", sides: list[np.ndarray], heights: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    """Predicted numbers as bands, and the actual ones as points in the same colours."""
    y = y.reshape(-1).astype(float)
    known = np.ma.masked_invalid(heights)
    all_values = np.concatenate([known.compressed(), y[np.isfinite(y)]])
    low, high = (all_values.min(), all_values.max()) if all_values.size else (0.0, 1.0)
    levels = np.linspace(low, high, 13) if low < high else np.linspace(low - 1, high + 1, 13)
    same: Any = {"cmap": HEIGHTS, "vmin": levels[0], "vmax": levels[-1]}
    if known.count():
        axes.contourf(*sides, known, levels=levels, **same).set_rasterized(True)
    points = axes.scatter(*x.T, c=y, s=26, edgecolors="#ffffff", linewidths=0.9, zorder=2, plotnonfinite=False, **same)
    bar = axes.figure.colorbar(points, ax=axes, label="predicted; in a point: actual", pad=0.02)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]


def confusion(predicted: Any, actual: Any, classes: int) -> np.ndarray:
    """How often each class was taken for which.

    Args:
        predicted: ``(batch,)`` integers.
        actual: the same.
        classes: how many there are.

    Returns:
        ``(classes, classes)`` counts, a row an actual class, a column a predicted one.

    Raises:
        TypeError: classes that are not integers.
        ValueError: shapes that differ, a class that is none.

    Example:
        >>> print(confusion([0, 1, 1], [0, 1, 0], classes=2))
        [[1 1]
         [0 1]]
    """
    predicted, actual = _classes("predicted", predicted, classes), _classes("actual", actual, classes)
    if predicted.shape != actual.shape:
        raise ValueError(f"actual: got {len(actual)} classes; expected {len(predicted)}, one for each prediction")
    return np.bincount(actual * classes + predicted, minlength=classes**2).reshape(classes, classes)


def _classes(name: str, values: Any, classes: int) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1:
        raise ValueError(f"{name}: got shape {values.shape}; expected (batch,)")
    if values.size and not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"{name}: got dtype {values.dtype}; expected integers")
    if values.size and not 0 <= values.min() <= values.max() < classes:
        raise ValueError(f"{name}: got classes {values.min()} to {values.max()}; expected 0 to {classes - 1}")
    return values.astype(int)


def draw_confusion(axes: "Axes", counts: Any, names: Sequence[str] | None = None) -> None:
    """Draw how often each class was taken for which: counts as numbers, shares of an actual class as colours.

    Colours are stretched where shares are small, so that few mistakes are seen; a cell without a number is 0.

    Args:
        axes: to draw on.
        counts: ``(classes, classes)``, a row an actual class, as from ``confusion``.
        names: of the classes; their numbers where left out.

    Raises:
        ValueError: counts that are not square, or not one name a class.
    """
    from matplotlib.colors import PowerNorm

    counts = np.asarray(counts)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"counts: got shape {counts.shape}; expected (classes, classes)")
    size = len(counts)
    named = list(map(str, range(size) if names is None else names))
    if len(named) != size:
        raise ValueError(f"names: got {len(named)}; expected {size}, one for each class")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, norm=PowerNorm(0.4, vmin=0, vmax=1), cmap=HEIGHTS)
    letters = max([len(str(count)) for count in counts.ravel()], default=1)
    fontsize = float(np.clip(9 * 24 / (max(size, 1) * max(letters, 2)), 3, 10))
    for i, j in np.argwhere(counts):
        # Not ink, which changes with the page: the cell behind it does not.
        colour = "#101010" if shares[i, j] > 0.2 else "#ffffff"
        axes.text(j, i, str(counts[i, j]), ha="center", va="center_baseline", color=colour, fontsize=fontsize)
    ticks = range(size)
    long = max(map(len, named), default=0) * size > 40
    axes.set_xticks(ticks, named, parse_math=False, rotation=90 if long else 0)
    axes.set_yticks(ticks, named, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted class", ylabel="actual class")
    total = int(counts.sum())
    axes.set_title(f"{np.trace(counts) / total:.1%} correct of {total}" if total else "no points")


def draw_mistakes(figure: "Figure", images: Any, predicted: Any, actual: Any, losses: Any, *, most: int = 12) -> None:
    """Draw the images whose class was mistaken, those with the largest loss first.

    Args:
        figure: an empty one; as many images stand in a row as its width has room for.
        images: ``(batch, pixels)`` of square images, or ``(batch, height, width)``; higher is darker. Images whose
            pixels were standardised one by one are hard to recognise: undo that first.
        predicted: ``(batch,)``, classes or their names.
        actual: the same.
        losses: ``(batch,)``; one that is NaN counts as the largest. None where they are not known: mistakes then come
            in the order of the batch.
        most: images, at least 1.

    Raises:
        ValueError: images that are not square, arrays that do not fit one another.
    """
    check_count("most", most, least=1)
    images, known = np.asarray(images, float), losses is not None
    losses = np.asarray(losses, float).ravel() if known else np.zeros(len(images))
    predicted, actual = np.asarray(predicted), np.asarray(actual)
    if images.ndim == 2:
        side = int(np.sqrt(images.shape[1]) + 0.5)
        if side**2 != images.shape[1]:
            raise ValueError(f"images: got {images.shape[1]} pixels; expected the square of a whole number")
        images = images.reshape(-1, side, side)
    lengths = {"images": len(images), "predicted": len(predicted), "actual": len(actual), "losses": len(losses)}
    if images.ndim != 3 or len(set(lengths.values())) > 1:
        raise ValueError(f"images: got shape {images.shape} with lengths {lengths}; expected one for each image")
    wrong = np.flatnonzero(predicted != actual)
    if not wrong.size:
        figure.text(0.5, 0.5, f"no mistake among {len(images)}", ha="center", va="center")
        return
    worst = wrong[np.argsort(-np.nan_to_num(losses[wrong], nan=np.inf), kind="stable")][:most]
    columns = int(np.clip(figure.get_figwidth() // _PANEL, 1, len(worst)))
    rows = -(-len(worst) // columns)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, i in zip(panels, worst, strict=False):
        shown = np.ma.masked_invalid(images[i])
        axes.imshow(shown, cmap="gray_r")
        axes.set_title(f"{actual[i]}, taken for {predicted[i]}", fontsize=8, loc="center", parse_math=False)
        if known:
            axes.set_xlabel(f"loss {losses[i]:.3g}", fontsize=8, labelpad=2)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color=COLOURS["past"])
    for axes in panels[len(worst) :]:
        axes.remove()
    shown = f"the {'worst' if known else 'first'} {len(worst)} of " if len(worst) < len(wrong) else ""
    plural = "mistake" if len(wrong) == 1 else "mistakes"
    figure.suptitle(f"{shown}{len(wrong)} {plural} among {len(images)}", fontsize=10)
