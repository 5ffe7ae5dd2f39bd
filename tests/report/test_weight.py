"""The bowl of a single weight: its numbers, and what is drawn of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kits.marks import slow
from kits.pictures import lines
from PIL import Image

from minijaxnet.report import weight
from minijaxnet.report.style import figure, styled
from minijaxnet.report.weight import Bowl, animate, bowl_of, draw_bowl, draw_strip


def loss(weight, batch):
    x, actual = batch
    return jnp.mean((weight * x - actual) ** 2)


BATCH = (np.float32([3]), np.float32([10]))
STOPS = np.float32([2.0, 2.24, 2.4368])


@pytest.fixture(scope="module")
def lesson():
    return bowl_of(loss, STOPS, BATCH)


def bowl_at(stops):
    """The lesson's bowl with other stops."""
    weights, stops = np.linspace(1, 6, 51), np.asarray(stops, float)
    return Bowl(weights, (3 * weights - 10) ** 2, stops, (3 * stops - 10) ** 2, 6 * (3 * stops - 10))


def test_the_bowl_holds_the_lessons_losses_and_gradients_on_both_sides_of_the_lowest_stop(lesson):
    np.testing.assert_allclose(lesson.stop_losses[:2], [16.0, 3.28**2], rtol=1e-5)
    np.testing.assert_allclose(lesson.gradients[:2], [-24.0, -19.68], rtol=1e-5)
    np.testing.assert_allclose(lesson.losses, (3 * lesson.weights - 10) ** 2, rtol=1e-3, atol=1e-4)
    assert {column.dtype for column in lesson} == {np.dtype("float32")}
    assert lesson.weights[0] < min(STOPS) < max(STOPS) < lesson.weights[-1]
    np.testing.assert_allclose((lesson.weights[0] + lesson.weights[-1]) / 2, STOPS[-1], rtol=1e-6)


@pytest.mark.slow
def test_the_bowl_has_the_weights_dtype_and_the_weight_may_be_in_a_tree():
    with jax.enable_x64(True):
        path = {"unit": STOPS.astype(float).reshape(3, 1, 1)}
        bowl = bowl_of(
            lambda params, batch: loss(params["unit"][0, 0], batch), path, (np.array([3.0]), np.array([10.0]))
        )
    assert {column.dtype for column in bowl} == {np.dtype("float64")}
    np.testing.assert_allclose(bowl.gradients, 6 * (3 * STOPS.astype(float) - 10), rtol=1e-14)


def test_steps_that_were_not_taken_are_left_out():
    assert bowl_of(loss, np.float32([*STOPS, np.nan, np.nan]), BATCH).stops.tolist() == STOPS.tolist()


@pytest.mark.parametrize("stops", [3, *slow(1)])
def test_a_descent_that_stood_still_has_a_bowl(stops):
    bowl = bowl_of(loss, np.full(stops, 10 / 3, np.float32), BATCH)
    assert np.ptp(bowl.weights) > 1


def test_more_than_one_weight_is_refused():
    with pytest.raises(ValueError, match=r"path: got leaves of shapes \[\(3, 2\)\]; expected one, "):
        bowl_of(loss, np.ones((3, 2), np.float32), BATCH)
    with pytest.raises(ValueError, match="none of them finite"):
        bowl_of(loss, np.float32([np.nan]), BATCH)


def test_a_stop_has_its_tangent_the_stops_before_it_and_an_arrow_to_the_next(axes, lesson):
    draw_bowl(axes, lesson, at=1)
    x, y = lines(axes)["tangent"].get_data()
    assert np.diff(y)[0] / np.diff(x)[0] == pytest.approx(-19.68)
    assert (x.mean(), y.mean()) == (pytest.approx(2.24), pytest.approx(3.28**2))
    np.testing.assert_allclose(lines(axes)["stop"].get_xydata(), [[2.24, 3.28**2]], rtol=1e-6)
    assert axes.collections[0].get_offsets().tolist() == [[2.0, 16.0]]
    [arrow] = [text for text in axes.texts if text.arrow_patch is not None]
    assert arrow.xy == pytest.approx((STOPS[2], 3.28**2))
    assert axes.get_title("left") == "stop 1\nw 2.24, loss 10.8, gradient -19.7"


def test_stops_that_are_not_finite_are_counted(axes):
    bowl = bowl_of(loss, np.float32([2.0, 1e30, np.inf]), BATCH)
    draw_bowl(axes, bowl, at=-1)
    assert "not finite" in axes.get_title("left")
    assert any("2 not finite" in text.get_text() for text in axes.texts)
    axes.figure.draw_without_rendering()


def test_a_flat_or_unknown_curve_is_drawn(axes):
    for height in (0.0, np.nan, np.inf):
        flat = Bowl(np.arange(3.0), np.full(3, height), np.ones(1), np.zeros(1), np.full(1, height))
        draw_bowl(axes, flat, name="$w_<b>$")
        axes.figure.draw_without_rendering()
    assert axes.get_xlabel() == "$w_<b>$"


@pytest.mark.parametrize(
    ("stops", "first", "last"),
    [
        (np.linspace(2, 3, 40), ["stop 0", "w 2, loss 16, gradient -24"], "stop 39"),
        ([-1.71234e10, 2.0], ["stop 0", "w -1.71e+10, loss 2.64e+21", "gradient -3.08e+11"], "stop 1"),
    ],
    ids=["many stops", "long numbers"],
)
def test_a_strip_shows_the_first_and_the_last_stop(stops, first, last):
    with styled():
        drawn = figure()
        draw_strip(drawn, bowl_at(stops))
    titles = [axes.get_title("left").split("\n") for axes in drawn.axes]
    assert len(titles) == min(4, len(stops)) and (titles[0], titles[-1][0]) == (first, last)


def test_a_long_descent_is_thinned_to_few_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(weight, "_LAST_FRAMES", 1)
    monkeypatch.setattr(weight, "_FRAMES", 4)
    bowl = bowl_at(np.linspace(2, 3, 500))
    animate(tmp_path / "bowl.gif", bowl)
    with Image.open(tmp_path / "bowl.gif") as image:
        assert 2 <= image.n_frames <= 5
    with pytest.raises(ValueError, match=r"expected one that ends in \.gif"):
        animate(tmp_path / "bowl.png", bowl)
