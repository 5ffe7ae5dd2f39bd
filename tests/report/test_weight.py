"""The bowl of a single weight: its numbers, and what is drawn of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from minijaxnet.report.style import figure, styled
from minijaxnet.report.weight import Bowl, animate, bowl_of, draw_bowl, draw_strip, moments


def loss(weight, batch):
    x, actual = batch
    return jnp.mean((weight * x - actual) ** 2)


def loss_of_tree(params, batch):
    return loss(params["unit"][0, 0], batch)


BATCH = (jnp.array([3.0]), jnp.array([10.0]))
STOPS = [2.0, 2.24, 2.4368]


def by_label(axes):
    return {line.get_label(): line for line in axes.lines}


def test_the_bowl_holds_the_lessons_losses_and_slopes():
    bowl = bowl_of(loss, jnp.array(STOPS), BATCH)
    np.testing.assert_allclose(bowl.stop_losses[:2], [16.0, 3.28**2], rtol=1e-5)
    np.testing.assert_allclose(bowl.slopes[:2], [-24.0, -19.68], rtol=1e-5)
    np.testing.assert_allclose(bowl.losses, (3 * bowl.weights - 10) ** 2, rtol=1e-3, atol=1e-4)


def test_the_curve_covers_all_stops_and_as_much_beyond_the_lowest():
    bowl = bowl_of(loss, jnp.array(STOPS), BATCH)
    assert bowl.weights[0] < min(STOPS) < max(STOPS) < bowl.weights[-1]
    np.testing.assert_allclose((bowl.weights[0] + bowl.weights[-1]) / 2, STOPS[-1], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_bowl_has_the_weights_dtype(dtype: str):
    with jax.enable_x64(dtype == "float64"):
        bowl = bowl_of(loss, jnp.array(STOPS, dtype), jax.tree.map(lambda leaf: leaf.astype(dtype), BATCH))
    assert {column.dtype for column in bowl} == {np.dtype(dtype)}
    if dtype == "float64":
        np.testing.assert_allclose(bowl.slopes, 6 * (3 * np.array(STOPS) - 10), rtol=1e-14)


def test_the_weight_may_be_an_element_of_a_tree():
    path = {"unit": jnp.array(STOPS).reshape(3, 1, 1)}
    for column, expected in zip(
        bowl_of(loss_of_tree, path, BATCH), bowl_of(loss, jnp.array(STOPS), BATCH), strict=True
    ):
        np.testing.assert_allclose(column, expected, rtol=1e-5)


def test_steps_that_were_not_taken_are_left_out():
    assert bowl_of(loss, jnp.array([*STOPS, np.nan, np.nan]), BATCH).stops.tolist() == np.float32(STOPS).tolist()


def test_a_single_stop_has_a_bowl():
    bowl = bowl_of(loss, jnp.array([10 / 3]), BATCH)
    assert np.ptp(bowl.weights) > 1


def test_more_than_one_weight_is_refused():
    with pytest.raises(ValueError, match=r"path: got leaves of shapes \[\(3, 2\)\]; expected a single one"):
        bowl_of(loss, jnp.ones((3, 2)), BATCH)
    with pytest.raises(ValueError, match="none of them finite"):
        bowl_of(loss, jnp.array([np.nan]), BATCH)


def test_the_tangent_has_the_slope_and_touches_the_stop(axes):
    draw_bowl(axes, bowl_of(loss, jnp.array(STOPS), BATCH), at=0)
    x, y = by_label(axes)["tangent"].get_data()
    assert np.diff(y)[0] / np.diff(x)[0] == pytest.approx(-24)
    assert (x.mean(), y.mean()) == (pytest.approx(2), pytest.approx(16))
    assert by_label(axes)["stop"].get_xydata().tolist() == [[2, 16]]
    assert axes.get_title("left") == "stop 0\nw 2, loss 16, slope -24"


@pytest.mark.parametrize(("rate", "expected"), [(None, 2.24), (0.05, 3.2)])
def test_the_arrow_goes_to_the_next_stop_or_as_far_as_the_rate_says(axes, rate, expected):
    draw_bowl(axes, bowl_of(loss, jnp.array(STOPS), BATCH), at=0, rate=rate)
    [arrow] = [text for text in axes.texts if text.arrow_patch is not None]
    assert arrow.xy == pytest.approx((expected, 16))


def test_earlier_stops_are_drawn_and_later_ones_are_not(axes):
    draw_bowl(axes, bowl_of(loss, jnp.array(STOPS), BATCH), at=1)
    assert axes.collections[0].get_offsets().tolist() == [[2.0, 16.0]]


def test_stops_that_are_not_finite_are_counted(axes):
    bowl = bowl_of(loss, jnp.array([2.0, 1e30, jnp.inf]), BATCH)
    draw_bowl(axes, bowl, at=-1)
    assert "not finite" in axes.get_title("left")
    assert any("2 not finite" in text.get_text() for text in axes.texts)
    axes.figure.canvas.draw()


def test_a_stop_that_is_not_there_is_refused(axes):
    with pytest.raises(ValueError, match="at: got 3; expected one of 3 stops"):
        draw_bowl(axes, bowl_of(loss, jnp.array(STOPS), BATCH), at=3)


def test_a_flat_or_unknown_curve_is_drawn(axes):
    for height in (0.0, np.nan, np.inf):
        flat = Bowl(np.arange(3.0), np.full(3, height), np.ones(1), np.zeros(1), np.full(1, height))
        draw_bowl(axes, flat, name="$w_<b>$")
        axes.figure.canvas.draw()
    assert axes.get_xlabel() == "$w_<b>$"


def test_a_strip_shows_the_first_the_second_and_the_last():
    bowl = bowl_of(loss, jnp.linspace(2, 3, 40), BATCH)
    with styled():
        drawn = figure()
        draw_strip(drawn, bowl)
    titles = [axes.get_title("left").split("\n")[0] for axes in drawn.axes]
    assert titles == [f"stop {at}" for at in moments(40, 4)]
    assert (titles[:2], titles[-1]) == (["stop 0", "stop 1"], "stop 39")


def test_long_numbers_above_a_panel_take_a_line_more():
    bowl = bowl_of(loss, jnp.array([-1.71234e10, 2.0]), BATCH)
    with styled():
        drawn = figure()
        draw_strip(drawn, bowl)
    lines = [axes.get_title("left").split("\n") for axes in drawn.axes]
    assert [len(each) for each in lines] == [3, 2] and lines[0][2].startswith("slope")


def test_a_long_descent_is_thinned_to_few_frames(tmp_path):
    bowl = bowl_of(loss, jnp.linspace(2, 3, 500), BATCH)
    animate(tmp_path / "bowl.gif", bowl, most=4)
    with Image.open(tmp_path / "bowl.gif") as image:
        assert 2 <= image.n_frames <= 5
    with pytest.raises(ValueError, match=r"expected one that ends in \.gif"):
        animate(tmp_path / "bowl.png", bowl)
