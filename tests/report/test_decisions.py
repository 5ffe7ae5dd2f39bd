"""What a network decides: regions where the predictions say so, counts, and the worst mistakes first."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from kits.marks import slow

from minijaxnet.report import decisions
from minijaxnet.report.decisions import confusion, draw_confusion, draw_mistakes, draw_regions
from minijaxnet.report.style import figure, styled

X = np.array([[-1.0, 0.0], [-0.5, 1.0], [0.5, 0.0], [1.0, 1.0]])
Y = np.array([0, 0, 1, 1])


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    monkeypatch.setattr(decisions, "_POINTS", 30)


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


@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_one_output_decides_at_the_threshold(axes, threshold):
    draw_regions(axes, lambda x: x[:, :1], X, Y[:, None], threshold=threshold)
    x, _, classes = region(axes)
    np.testing.assert_array_equal(classes, np.broadcast_to(x > threshold, classes.shape))
    [contour] = [collection for collection in axes.collections if hasattr(collection, "levels")]
    np.testing.assert_allclose(contour.get_paths()[0].vertices[:, 0], threshold, atol=1e-6)


def test_the_highest_of_several_outputs_decides(axes):
    draw_regions(axes, lambda x: jnp.stack([x[:, 0], x[:, 1] - 0.017, 0.3 - x.sum(1)], 1), X, [0, 1, 2, 1])
    x, y, classes = region(axes)
    scores = np.stack([*np.meshgrid(x, y - 0.017), 0.3 - np.add.outer(y, x)])
    np.testing.assert_array_equal(classes, np.argmax(scores, axis=0))


@pytest.mark.parametrize("y", [Y, np.eye(2)[Y]], ids=["integers", "one-hot"])
def test_classes_differ_in_their_marks_too(axes, y):
    draw_regions(axes, lambda x: x, X, y)
    by_class = [collection for collection in axes.collections if collection.get_label() in ("0", "1")]
    for i, points in enumerate(by_class):
        np.testing.assert_array_equal(points.get_offsets(), X[i == Y])
    first, second = (points.get_paths()[0].vertices for points in by_class)
    assert first.shape != second.shape


@pytest.mark.parametrize("threshold", [None, 0.0])
def test_a_regression_is_drawn_in_the_colours_of_its_points(axes, threshold):
    draw_regions(axes, lambda x: 2 * x[:, :1], X, [[-1.0], [2.0], [np.nan], [5.0]], threshold=threshold)
    bands, points = axes.collections
    assert bands.get_clim() == points.get_clim() and points.get_clim()[1] == 5
    assert points.get_array().filled(-9).tolist() == [-1, 2, -9, 5]
    axes.figure.draw_without_rendering()


FEW = [(0.0, 3, np.nan), (None, 1, np.inf)]
MORE = [case for case in itertools.product((0.0, None), (1, 3), (0.0, np.nan, np.inf)) if case not in FEW]


@pytest.mark.parametrize(("threshold", "outputs", "value"), [*FEW, *slow(*MORE)])
@pytest.mark.parametrize("points", [4, *slow(1)])
def test_constant_or_broken_predictions_are_drawn(axes, value, outputs, threshold, points):
    draw_regions(axes, lambda x: jnp.full((len(x), outputs), value), X[:points], Y[:points], threshold=threshold)
    axes.figure.draw_without_rendering()


def test_counts_stand_in_their_cells_and_shares_are_colours(axes, drawn):
    draw_confusion(axes, [[3, 1], [0, 4]])
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0, 1]]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "3", (1, 0): "1", (1, 1): "4"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "actual class")
    assert axes.get_title("left") == "87.5% correct of 8"
    many = drawn.subplots()
    draw_confusion(many, np.full((10, 10), 180))
    drawn.draw_without_rendering()
    cell = many.transData.transform([(0, 0), (1, 0)])
    assert max(text.get_window_extent().width for text in many.texts) < cell[1, 0] - cell[0, 0]


def test_the_worst_mistakes_come_first(drawn, monkeypatch):
    monkeypatch.setattr(decisions, "_MOST_MISTAKES", 3)
    images = np.arange(5)[:, None, None] * np.ones((4, 4))
    draw_mistakes(drawn, images, [1, 2, 3, 4, 4], [0, 2, 2, 3, 5], [0.5, 9.0, 2.0, np.nan, 1.0])
    assert [axes.get_title() for axes in drawn.axes] == ["3, predicted 4", "2, predicted 3", "5, predicted 4"]
    assert [axes.get_xlabel() for axes in drawn.axes] == ["loss nan", "loss 2", "loss 1"]
    assert [axes.images[0].get_array().max() for axes in drawn.axes] == [3, 2, 4]
    assert drawn.get_suptitle() == "the worst 3 of 4 mistakes among 5"
    drawn.draw_without_rendering()


def test_without_a_mistake_a_sentence_says_so(drawn):
    draw_mistakes(drawn, np.zeros((3, 2, 2)), Y[:3], Y[:3], np.zeros(3))
    assert [text.get_text() for text in drawn.texts] == ["no mistake among 3"]


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda axes: draw_regions(axes, lambda x: x, np.ones((4, 3)), Y), r"x: got shape \(4, 3\); expected \(batch"),
        (lambda axes: draw_regions(axes, lambda x: x.sum(), X, Y), "predict: got shape"),
        (lambda axes: confusion([3], [1], 3), "predicted: got classes 3 to 3; expected 0 to 2"),
    ],
)
def test_what_does_not_fit_is_refused(axes, draw, words):
    with pytest.raises(ValueError, match=words):
        draw(axes)
