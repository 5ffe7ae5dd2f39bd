"""The loss as a surface: what is drawn of the losses, and where the paths lie."""

import numpy as np
import pytest
from kits.marks import slow
from kits.pictures import lines

from minijaxnet.landscape import LossSurface
from minijaxnet.report.style import figure, styled
from minijaxnet.report.surface import draw_contour, draw_surface

OFFSETS = np.linspace(-1, 1, 5)
# Loss 2 * first + second + 4: a plane, so that heights between the points are known, and the axes cannot be swapped.
PLANE = LossSurface(OFFSETS, 2 * OFFSETS[:, None] + OFFSETS[None, :] + 4)
PATH = np.array([[0.9, -0.3], [0.4, 0.1], [0.0, 0.0]])


@pytest.fixture
def space():
    with styled():
        yield figure().add_subplot(projection="3d")


def texts(axes):
    return [axes.get_title("left"), *(text.get_text() for text in axes.texts)]


def test_the_path_lies_on_the_surface(space):
    draw_surface(space, PLANE, PATH)
    x, y, z = lines(space)["path"].get_data_3d()
    np.testing.assert_array_equal(np.stack([x, y], axis=1), PATH)
    np.testing.assert_allclose(z, 2 * PATH[:, 0] + PATH[:, 1] + 4)
    space.figure.canvas.draw()


def test_the_path_lies_at_its_own_losses_where_they_are_given(space):
    draw_surface(space, PLANE, PATH, path_losses=[5, 4, 3])
    assert lines(space)["path"].get_data_3d()[2].tolist() == [5, 4, 3]
    with pytest.raises(ValueError, match="path_losses: got 2; expected one for each of 3 stops"):
        draw_surface(space, PLANE, PATH, path_losses=[5, 4])


def test_losses_over_many_decades_are_drawn_as_logarithms(space):
    decades = LossSurface(OFFSETS, 10.0 ** (2 * OFFSETS[:, None] + 0 * OFFSETS))
    draw_surface(space, decades, [[1.0, 0.0], [-1.0, 0.0]])
    np.testing.assert_allclose(lines(space)["path"].get_data_3d()[2], [2, -2])
    assert [text.get_text() for text in space.get_zticklabels()] == ["0.01", "0.1", "1", "10", "100"]


def test_logarithms_can_be_asked_for_where_a_loss_is_zero(space):
    losses = PLANE.losses - PLANE.losses.min()
    draw_surface(space, LossSurface(OFFSETS, losses), PATH, log=True)
    assert "1 losses not positive" in texts(space)
    space.figure.canvas.draw()


def test_stops_beyond_the_picture_are_counted_and_nan_left_out(space):
    draw_surface(space, PLANE, [[5.0, 0.0], [0.5, 0.0], [np.nan, np.nan]])
    assert lines(space)["path"].get_data_3d()[0].tolist() == [0.5]
    assert "1 stops beyond the picture" in texts(space)


@pytest.mark.parametrize("broken", [np.inf, *slow(np.nan)])
def test_losses_that_are_not_finite_are_told(space, axes, broken):
    losses = PLANE.losses.copy()
    losses[0, 0] = broken
    for draw, on in ((draw_surface, space), (draw_contour, axes)):
        draw(on, LossSurface(OFFSETS, losses))
        on.figure.canvas.draw()
        assert "1 of 25 losses not finite" in texts(on)
        draw(on, LossSurface(OFFSETS, np.full((5, 5), broken)))
        on.figure.canvas.draw()
        assert "no loss is finite" in texts(on)


@pytest.mark.parametrize("height", [0.0, *slow(3.0)])
def test_a_flat_surface_is_drawn(space, axes, height):
    for draw, on in ((draw_surface, space), (draw_contour, axes)):
        draw(on, LossSurface(OFFSETS, np.full((5, 5), height)))
        on.figure.canvas.draw()


def test_the_first_direction_goes_to_the_right(axes):
    draw_contour(axes, PLANE, levels=6)
    bands = axes.collections[0]
    np.testing.assert_allclose(bands.levels, np.linspace(1, 7, 7))
    lowest, highest = (bands.get_paths()[i].get_extents() for i in (0, -1))
    # The lowest band is the corner where both offsets are least, half as wide as high: the loss rises twice as fast.
    np.testing.assert_allclose(lowest.bounds, [-1, -1, 0.5, 1])
    np.testing.assert_allclose(highest.bounds, [0.5, 0, 0.5, 1])


def test_bands_are_equal_steps_of_the_logarithm_where_losses_span_decades(axes):
    draw_contour(axes, LossSurface(OFFSETS, 10.0 ** (2 * OFFSETS[:, None] + 0 * OFFSETS)), levels=4)
    np.testing.assert_allclose(axes.collections[0].levels, [0.01, 0.1, 1, 10, 100])


def test_each_path_has_its_letter_start_and_end(axes):
    draw_contour(axes, PLANE, [PATH, -PATH])
    assert texts(axes) == ["", "A", "B"]
    np.testing.assert_array_equal(lines(axes)["path 1"].get_xydata(), -PATH)
    starts_and_ends = [marks.get_offsets()[0].tolist() for marks in axes.collections[1:]]
    assert starts_and_ends == [[0.9, -0.3], [0, 0], [-0.9, 0.3], [0, 0]]


def test_paths_that_leave_the_picture_are_counted(axes):
    draw_contour(axes, PLANE, [PATH, PATH[::-1] * 9, np.full((2, 2), np.nan)])
    axes.figure.canvas.draw()
    assert axes.get_title("left") == "2 of 3 paths end beyond the picture"
    assert axes.get_xlim() == (-1, 1)


def test_names_are_drawn_as_they_are(space, axes):
    for draw, on in ((draw_surface, space), (draw_contour, axes)):
        draw(on, PLANE, names=("$w_0$", "<b>"))
        on.figure.canvas.draw()
        assert (on.get_xlabel(), on.get_ylabel()) == ("$w_0$", "<b>")
        assert not on.xaxis.label.get_parse_math()


def test_a_path_of_another_shape_is_refused(space, axes):
    with pytest.raises(ValueError, match=r"path: got shape \(3,\); expected \(stops, 2\)"):
        draw_surface(space, PLANE, np.zeros(3))
    with pytest.raises(ValueError, match=r"paths\[0\]: got shape \(2, 3\)"):
        draw_contour(axes, PLANE, [np.zeros((2, 3))])
