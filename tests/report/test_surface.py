"""The loss as a surface: what is drawn of the losses, and where the paths lie."""

import jax.numpy as jnp
import numpy as np
import pytest
from kits.marks import slow
from kits.pictures import lines

from minijaxnet.landscape import LossSurface
from minijaxnet.report.style import figure, styled
from minijaxnet.report.surface import draw_contour, draw_surface, random_directions

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


def draw_both(space, axes, surface, **options):
    """From the side and from above."""
    draw_surface(space, surface, PATH, [5, 4, 3], **options)
    draw_contour(axes, surface, PATH, **options)
    for on in (space, axes):
        on.figure.draw_without_rendering()


def test_the_path_lies_at_its_own_losses(space):
    draw_surface(space, PLANE, PATH, [5, 4, 3])
    x, y, z = lines(space)["path"].get_data_3d()
    np.testing.assert_array_equal(np.stack([x, y], axis=1), PATH)
    assert z.tolist() == [5, 4, 3]


def test_losses_over_many_decades_are_drawn_as_logarithms(space, axes):
    decades = LossSurface(OFFSETS, 10.0 ** (2 * OFFSETS[:, None] + 0 * OFFSETS))
    draw_surface(space, decades, [[1.0, 0.0], [-1.0, 0.0]], [100.0, 0.01])
    np.testing.assert_allclose(lines(space)["path"].get_data_3d()[2], [2, -2])
    assert [text.get_text() for text in space.get_zticklabels()] == ["0.01", "0.1", "1", "10", "100"]
    draw_contour(axes, decades, PATH)
    np.testing.assert_allclose(axes.collections[0].levels, np.geomspace(0.01, 100, 15))


def test_stops_beyond_the_picture_are_counted_and_nan_left_out(space, axes):
    path = [[0.5, 0.0], [np.nan, np.nan], [5.0, 0.0]]
    draw_surface(space, PLANE, path, [5, 5, 5])
    assert lines(space)["path"].get_data_3d()[0].tolist() == [0.5]
    assert "1 stops beyond the picture" in texts(space)
    draw_contour(axes, PLANE, path)
    assert axes.get_title("left") == "the path ends beyond the picture" and axes.get_xlim() == (-1, 1)


@pytest.mark.parametrize("broken", [np.inf, *slow(np.nan)])
def test_a_note_says_that_losses_are_not_finite(space, axes, broken):
    losses = PLANE.losses.copy()
    losses[0, 0] = broken
    draw_both(space, axes, LossSurface(OFFSETS, losses))
    assert "1 of 25 losses not finite" in texts(space) and "1 of 25 losses not finite" in texts(axes)
    axes.clear()
    draw_both(space, axes, LossSurface(OFFSETS, np.full((5, 5), broken)))
    assert "no loss is finite" in texts(space) and "no loss is finite" in texts(axes)


@pytest.mark.parametrize("height", [0.0, *slow(3.0)])
def test_a_flat_surface_is_drawn(space, axes, height):
    draw_both(space, axes, LossSurface(OFFSETS, np.full((5, 5), height)))


def test_the_first_direction_goes_to_the_right(axes):
    draw_contour(axes, PLANE, PATH)
    bands = axes.collections[0]
    np.testing.assert_allclose(bands.levels, np.linspace(1, 7, 15))
    # The lowest band is the corner where both offsets are least, half as wide as high: the loss rises twice as fast.
    left, low, width, height = bands.get_paths()[0].get_extents().bounds
    assert (left, low, height) == (-1, -1, pytest.approx(2 * width))
    starts_and_ends = [marks.get_offsets()[0].tolist() for marks in axes.collections[1:]]
    assert starts_and_ends == [[0.9, -0.3], [0, 0]]


def test_names_are_drawn_as_they_are(space, axes):
    draw_both(space, axes, PLANE, names=("$w_0$", "<b>"))
    for on in (space, axes):
        assert (on.get_xlabel(), on.get_ylabel()) == ("$w_0$", "<b>") and not on.xaxis.label.get_parse_math()


def test_a_path_that_does_not_fit_is_refused(space, axes):
    with pytest.raises(ValueError, match=r"path: got shape \(3,\); expected \(stops, 2\)"):
        draw_surface(space, PLANE, np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="path_losses: got 2; expected one for each of 3 stops"):
        draw_surface(space, PLANE, PATH, [5, 4])
    with pytest.raises(ValueError, match=r"path: got shape \(2, 3\)"):
        draw_contour(axes, PLANE, np.zeros((2, 3)))


@pytest.mark.parametrize("dtype", [np.float32, *slow(jnp.bfloat16)])
def test_each_filter_of_a_random_direction_is_as_long_as_that_of_the_params(dtype):
    weights = np.random.default_rng(1).normal(size=(3, 9)) * (np.arange(9) > 0)  # the first filter is dead
    params = {"weights": weights.astype(dtype), "bias": np.ones(9, dtype)}
    directions = random_directions(params)
    for direction in directions:
        norms = np.linalg.norm(direction["weights"].astype(float), axis=0)
        np.testing.assert_allclose(norms, np.linalg.norm(weights, axis=0), rtol=1e-5 if dtype == np.float32 else 1e-2)
        assert direction["weights"].dtype == dtype and not direction["bias"].any()
    first, second = (np.ravel(direction["weights"]).astype(float) for direction in directions)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.9
    np.testing.assert_array_equal(first, np.ravel(random_directions(params)[0]["weights"]).astype(float))
    with pytest.raises(ValueError, match=r"params: got leaves of shapes \[\(3,\)\]"):
        random_directions(np.ones(3, dtype))
