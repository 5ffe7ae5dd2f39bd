"""What a network decides: regions of a plane, how often classes are confused, and the worst mistakes."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet.report.axes import limits
from minijaxnet.report.style import COLOURS, HEIGHTS, INK, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKS = "os^DvPX<>*"
_POINTS = 151  # of the plane, along either input
_PANEL = 1.15  # inches: the width of an image of a mistake
_MOST_MISTAKES = 12


def draw_regions(axes: "Axes", predict: Callable[[Any], Any], x: Any, y: Any, *, threshold: float | None = 0.0) -> None:
    """Draw what a network predicts over the plane of its two inputs, and the data on it.

    Several outputs are scores, and the highest one decides. One output is compared with a threshold, if there is one
    and y is all 0 and 1; else it is a number, drawn as a height. The whole plane is evaluated in one compiled program;
    where a prediction is not a number the plane stays blank.

    Args:
        axes: to draw on.
        predict: ``predict(x)``, of JAX operations: ``(batch, n_out)`` from ``(batch, 2)``.
        x: ``(batch, 2)``, the points.
        y: their classes, as integers, 0 and 1 or one-hot; or their numbers, where there is no threshold.
        threshold: above which a single output means class 1: 0 for logits, 0.5 for probabilities; None for numbers.

    Raises:
        ValueError: ``x`` of another shape or without a finite point; no prediction for each point.
    """
    x, y = np.asarray(x, float), np.asarray(y)
    if x.ndim != 2 or x.shape[1] != 2 or not np.isfinite(x).all(axis=-1).any():
        raise ValueError(f"x: got shape {x.shape}; expected (batch, 2), with a finite point at least")
    sides = [np.linspace(*limits(column[np.isfinite(column)], 0.08), num=_POINTS) for column in x.T]
    plane = np.stack(np.meshgrid(*sides), axis=-1)
    scores = np.asarray(jax.jit(predict)(jnp.asarray(plane.reshape(-1, 2))), float)
    if scores.shape[:1] != (_POINTS**2,) or scores.ndim > 2:
        raise ValueError(f"predict: got shape {scores.shape} for {_POINTS**2} points; expected (batch, n_out)")
    scores = scores.reshape(_POINTS, _POINTS, -1)
    if scores.shape[-1] == 1 and (threshold is None or not np.isin(y, (0, 1)).all()):
        _draw_heights(axes, sides, scores[..., 0], x, y)
    else:
        if scores.shape[-1] == 1:
            scores = np.concatenate([(threshold or 0) - scores, scores - (threshold or 0)], axis=-1)
        actual = (np.argmax(y, axis=1) if y.ndim == 2 and y.shape[1] > 1 else y.reshape(-1)).astype(int)
        _draw_classes(axes, sides, scores, x, actual)
    axes.set(xlim=(sides[0][0], sides[0][-1]), ylim=(sides[1][0], sides[1][-1]), xlabel="input 0", ylabel="input 1")


def _draw_classes(axes: "Axes", sides: list[np.ndarray], scores: np.ndarray, x: np.ndarray, actual: np.ndarray) -> None:
    """Each class's region in its colour, the border between them, and the points, a colour and a mark a class."""
    from matplotlib.colors import ListedColormap

    count = max(scores.shape[-1], int(actual.max()) + 1)
    unknown = np.isnan(scores).any(axis=-1)
    decided = np.ma.masked_where(unknown, np.argmax(scores, axis=-1))
    colours = [SERIES[i % len(SERIES)] for i in range(count)]
    look: Any = {"cmap": ListedColormap(colours), "vmin": -0.5, "vmax": count - 0.5, "alpha": 0.2}
    axes.pcolormesh(*sides, decided, rasterized=True, zorder=0, **look)
    for i in range(scores.shape[-1]):
        # How far a class is ahead of all others: the border is where that is 0. An infinite score has no border.
        others = np.max(np.delete(scores, i, axis=-1), axis=-1)
        with np.errstate(invalid="ignore"):
            ahead = np.ma.masked_invalid(scores[..., i] - others)
        if ahead.count() and ahead.min() < 0 < ahead.max() and (scores.shape[-1] > 2 or i == 0):
            axes.contour(*sides, ahead, levels=[0], colors=INK, linewidths=0.8, linestyles="-", zorder=1)
    for i in np.unique(actual):
        marks: Any = {"marker": _MARKS[i % len(_MARKS)], "color": colours[i], "edgecolors": "#ffffff"}
        axes.scatter(*x[actual == i].T, s=20, linewidths=0.4, label=str(i), zorder=2, **marks)
    axes.legend(title="class", loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0, handletextpad=0.2)


def _draw_heights(axes: "Axes", sides: list[np.ndarray], heights: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    """Predicted numbers as bands, and the actual ones as points in the same colours."""
    y = y.reshape(-1).astype(float)
    finite = np.ma.masked_invalid(heights)
    all_values = np.concatenate([finite.compressed(), y[np.isfinite(y)]])
    low, high = (all_values.min(), all_values.max()) if all_values.size else (0.0, 1.0)
    levels = np.linspace(low, high, 13) if low < high else np.linspace(low - 1, high + 1, 13)
    same: Any = {"cmap": HEIGHTS, "vmin": levels[0], "vmax": levels[-1]}
    if finite.count():
        axes.contourf(*sides, finite, levels=levels, **same).set_rasterized(True)
    points = axes.scatter(*x.T, c=y, s=26, edgecolors="#ffffff", linewidths=0.9, zorder=2, plotnonfinite=False, **same)
    bar = axes.figure.colorbar(points, ax=axes, label="predicted; in a point: actual", pad=0.02)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]


def confusion(predicted: Any, actual: Any, classes: int) -> np.ndarray:
    """How often each class was predicted for each actual class.

    Args:
        predicted: ``(batch,)`` integers.
        actual: the same.
        classes: how many there are.

    Returns:
        ``(classes, classes)`` counts, a row an actual class, a column a predicted one.

    Raises:
        ValueError: a class that is not there.

    Example:
        >>> print(confusion([0, 1, 1], [0, 1, 0], classes=2))
        [[1 1]
         [0 1]]
    """
    predicted, actual = np.asarray(predicted, int), np.asarray(actual, int)
    for name, values in (("predicted", predicted), ("actual", actual)):
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise ValueError(f"{name}: got classes {values.min()} to {values.max()}; expected 0 to {classes - 1}")
    return np.bincount(actual * classes + predicted, minlength=classes**2).reshape(classes, classes)


def draw_confusion(axes: "Axes", counts: Any) -> None:
    """Draw how often each class was predicted for each actual class: counts as numbers, shares of a row as colours.

    Colours are stretched where shares are small, so that few mistakes are visible; a cell without a number is 0.

    Args:
        axes: to draw on.
        counts: ``(classes, classes)``, a row an actual class, as from ``confusion``.
    """
    from matplotlib.colors import PowerNorm

    counts = np.asarray(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, norm=PowerNorm(0.4, vmin=0, vmax=1), cmap=HEIGHTS)
    letters = max([len(str(count)) for count in counts.ravel()], default=1)
    fontsize = float(np.clip(9 * 24 / (max(len(counts), 1) * max(letters, 2)), 3, 10))
    for i, j in np.argwhere(counts):
        colour = "#101010" if shares[i, j] > 0.2 else "#ffffff"  # fixed, as the cell behind it is
        axes.text(j, i, str(counts[i, j]), ha="center", va="center_baseline", color=colour, fontsize=fontsize)
    axes.set(xticks=range(len(counts)), yticks=range(len(counts)), xlabel="predicted class", ylabel="actual class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    total = int(counts.sum())
    axes.set_title(f"{np.trace(counts) / total:.1%} correct of {total}" if total else "no points")


def draw_mistakes(figure: "Figure", images: Any, predicted: Any, actual: Any, losses: Any) -> None:
    """Draw the images whose class was mistaken, those with the largest loss first.

    Args:
        figure: an empty one.
        images: ``(batch, height, width)``; higher is darker.
        predicted: ``(batch,)``, classes.
        actual: the same.
        losses: ``(batch,)``; one that is NaN counts as the largest.
    """
    images, losses = np.asarray(images, float), np.asarray(losses, float)
    wrong = np.flatnonzero(np.asarray(predicted) != np.asarray(actual))
    if not wrong.size:
        figure.text(0.5, 0.5, f"no mistake among {len(images)}", ha="center", va="center")
        return
    worst = wrong[np.argsort(-np.nan_to_num(losses[wrong], nan=np.inf), kind="stable")][:_MOST_MISTAKES]
    columns = int(np.clip(figure.get_figwidth() // _PANEL, 1, len(worst)))
    panels = figure.subplots(-(-len(worst) // columns), columns, squeeze=False).ravel()
    for axes, i in zip(panels, worst, strict=False):
        axes.imshow(np.ma.masked_invalid(images[i]), cmap="gray_r")
        axes.set_title(f"{actual[i]}, predicted {predicted[i]}", fontsize=8, loc="center")
        axes.set_xlabel(f"loss {losses[i]:.3g}", fontsize=8, labelpad=2)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color=COLOURS["past"])
    for axes in panels[len(worst) :]:
        axes.remove()
    which = f"the worst {len(worst)} of " if len(worst) < len(wrong) else ""
    plural = "mistake" if len(wrong) == 1 else "mistakes"
    figure.suptitle(f"{which}{len(wrong)} {plural} among {len(images)}", fontsize=10)
