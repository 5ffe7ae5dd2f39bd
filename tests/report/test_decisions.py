"""What a network decides: regions where the predictions say so, counts, and the worst mistakes first."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from kits.marks import slow

from minijaxnet.report.decisions import confusion, draw_confusion, draw_mistakes, draw_regions
from minijaxnet.report.style import figure, styled

X = np.array([[-1.0, 0.0], [-0.5, 1.0], [0.5, 0.0], [1.0, 1.0]])
Y = np.array([0, 0, 1, 1])


@pytest.fixture
def drawn():
    with styled():
        yield figure(4.8, 4)


def region(axes):
    """Sides and classes of the plane."""
    mesh = axes.collections[0]
    x, y = np.moveaxis(mesh.get_coordinates(), -1, 0)
    middles = [(side[1:] + side[:-1]) / 2 for side in (x[0], y[:, 0])]
    return *middles, mesh.get_array().reshape(len(middles[1]), len(middles[0]))


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts] + [text.get_text() for text in figure.texts]


@pytest.mark.parametrize(("threshold", "border"), [(0.0, 0.0), (0.4, 0.4)])
def test_one_output_decides_at_the_threshold(axes, threshold, border):
    draw_regions(axes, lambda x: x[:, :1], X, Y[:, None], threshold=threshold, points=40)
    x, _, classes = region(axes)
    np.testing.assert_array_equal(classes, np.broadcast_to(x > border, classes.shape))
    [contour] = [collection for collection in axes.collections if hasattr(collection, "levels")]
    np.testing.assert_allclose(contour.get_paths()[0].vertices[:, 0], border, atol=1e-6)


def test_the_highest_of_several_outputs_decides(axes):
    draw_regions(axes, lambda x: jnp.stack([x[:, 0], x[:, 1] - 0.017, 0.3 - x.sum(1)], 1), X, [0, 1, 2, 1], points=30)
    x, y, classes = region(axes)
    scores = np.stack([*np.meshgrid(x, y - 0.017), 0.3 - np.add.outer(y, x)])
    np.testing.assert_array_equal(classes, np.argmax(scores, axis=0))


def test_points_are_told_apart_by_their_marks_as_well(axes):
    draw_regions(axes, lambda x: x, X, Y, classes=["$a_<b>$", "other"])
    by_class = [collection for collection in axes.collections if collection.get_label() in ("$a_<b>$", "other")]
    for i, points in enumerate(by_class):
        np.testing.assert_array_equal(points.get_offsets(), X[i == Y])
    first, second = (points.get_paths()[0].vertices for points in by_class)
    assert first.shape != second.shape
    axes.figure.canvas.draw()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["$a_<b>$", "other"]


def test_one_hot_labels_are_classes(axes):
    draw_regions(axes, lambda x: x, X, np.eye(2)[Y])
    np.testing.assert_array_equal(axes.collections[-1].get_offsets(), X[Y == 1])


@pytest.mark.parametrize("threshold", [None, 0.0])
def test_a_regression_is_drawn_in_the_colours_of_its_points(axes, threshold):
    draw_regions(axes, lambda x: 2 * x[:, :1], X, [[-1.0], [2.0], [np.nan], [5.0]], threshold=threshold)
    bands, points = axes.collections
    assert bands.get_clim() == points.get_clim()
    assert points.get_clim()[1] == 5
    assert points.get_array().filled(-9).tolist() == [-1, 2, -9, 5]
    axes.figure.canvas.draw()


FEW = [(0.0, 3, np.nan), (None, 1, np.inf)]
MORE = [case for case in itertools.product((0.0, None), (1, 3), (0.0, np.nan, np.inf)) if case not in FEW]


@pytest.mark.parametrize(("threshold", "outputs", "value"), [*FEW, *slow(*MORE)])
def test_constant_or_broken_predictions_are_drawn(axes, value, outputs, threshold):
    draw_regions(axes, lambda x: jnp.full((len(x), outputs), value), X, Y, threshold=threshold, points=5)
    axes.figure.canvas.draw()


def test_a_single_point_is_drawn(axes):
    draw_regions(axes, lambda x: x, X[:1], Y[:1], points=5)
    axes.figure.canvas.draw()


def test_a_row_is_an_actual_class():
    counts = confusion(np.array([0, 2, 2, 1]), np.array([0, 1, 1, 1]), 3)
    assert counts.tolist() == [[1, 0, 0], [0, 1, 2], [0, 0, 0]]
    assert confusion([], [], 2).tolist() == [[0, 0], [0, 0]]


def test_counts_stand_in_their_cells_and_shares_are_colours(axes):
    draw_confusion(axes, [[3, 1], [0, 4]], ["$a$", "<b>"])
    axes.figure.canvas.draw()
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0, 1]]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "3", (1, 0): "1", (1, 1): "4"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "actual class")
    assert axes.get_title("left") == "87.5% correct of 8"
    assert [text.get_text() for text in axes.get_yticklabels()] == ["$a$", "<b>"]


def test_no_counts_are_no_points(axes):
    draw_confusion(axes, np.zeros((3, 3), int))
    axes.figure.canvas.draw()
    assert axes.get_title("left") == "no points"


def test_ten_classes_stay_within_their_cells(axes):
    draw_confusion(axes, np.full((10, 10), 180))
    axes.figure.canvas.draw()
    cell = axes.transData.transform([(0, 0), (1, 0)])
    assert max(text.get_window_extent().width for text in axes.texts) < cell[1, 0] - cell[0, 0]


def test_the_worst_mistakes_come_first(drawn):
    images = np.arange(5)[:, None] * np.ones(16)
    draw_mistakes(drawn, images, [1, 2, 3, 4, 4], [0, 2, 2, 3, 5], [0.5, 9.0, 2.0, np.nan, 1.0], most=3)
    assert [axes.get_title() for axes in drawn.axes] == ["3, taken for 4", "2, taken for 3", "5, taken for 4"]
    assert [axes.get_xlabel() for axes in drawn.axes] == ["loss nan", "loss 2", "loss 1"]
    assert [axes.images[0].get_array().max() for axes in drawn.axes] == [3, 2, 4]
    assert drawn.axes[0].images[0].get_array().shape == (4, 4)
    assert drawn.get_suptitle() == "the worst 3 of 4 mistakes among 5"
    drawn.canvas.draw()


def test_mistakes_without_losses_come_in_the_order_of_the_batch(drawn):
    draw_mistakes(drawn, np.zeros((3, 4)), [1, 0, 0], [0, 0, 1], None, most=1)
    assert [(axes.get_title(), axes.get_xlabel()) for axes in drawn.axes] == [("0, taken for 1", "")]
    assert drawn.get_suptitle() == "the first 1 of 2 mistakes among 3"


def test_no_mistake_is_said(drawn):
    draw_mistakes(drawn, np.zeros((3, 4)), Y[:3], Y[:3], np.zeros(3))
    assert texts(drawn) == ["no mistake among 3"]


def test_an_image_of_nan_is_drawn(drawn):
    draw_mistakes(drawn, np.full((1, 2, 3), np.nan), ["$b$"], ["a_"], [np.inf])
    drawn.canvas.draw()
    assert drawn.axes[0].get_title() == "a_, taken for $b$"


@pytest.mark.parametrize(
    ("draw", "arguments", "words"),
    [
        (draw_regions, (lambda x: x, np.ones((4, 3)), Y), r"x: got shape \(4, 3\); expected \(batch, 2\)"),
        (draw_regions, (lambda x: x, X, Y[:2]), "y: got 2 for 4 points"),
        (draw_regions, (lambda x: x.sum(), X, Y), "predict: got shape"),
        (functools.partial(draw_regions, classes=["a"]), (lambda x: x, X, Y), "classes: got 1 names; expected 2"),
        (draw_confusion, (np.zeros((2, 3)),), r"counts: got shape \(2, 3\); expected \(classes, classes\)"),
        (draw_confusion, (np.zeros((2, 2)), ["a"]), "names: got 1; expected 2"),
        (draw_mistakes, (np.zeros((2, 5)), [0, 1], [1, 1], [0, 0]), "got 5 pixels; expected the square of a whole"),
        (draw_mistakes, (np.zeros((2, 4)), [0, 1], [1, 1], [0]), "'losses': 1"),
        (confusion, ([3], [1], 3), "predicted: got classes 3 to 3; expected 0 to 2"),
        (confusion, ([1], [0.0], 3), "actual: got dtype float64; expected integers"),
        (confusion, ([1, 1], [0], 3), "actual: got 1 classes; expected 2"),
        (confusion, ([[0], [1]], [0, 1], 3), r"predicted: got shape \(2, 1\)"),
    ],
)
def test_what_does_not_fit_is_refused(axes, drawn, draw, arguments, words):
    on = [] if draw is confusion else [drawn if draw is draw_mistakes else axes]
    with pytest.raises(TypeError if "dtype" in words else ValueError, match=words):
        draw(*on, *arguments)
