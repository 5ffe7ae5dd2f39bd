"""Pictures of a sweep: medians, and where descents diverge."""

import jax
import numpy as np
import pytest
from kits.marks import slow
from kits.pictures import axes_with, lines, swept

from minijaxnet.report.rates import draw_ends, draw_heat, draw_rates, draw_sweep

RATES = np.array([0.01, 0.1, 1.0, 10.0])
LOSSES = np.array([[4.0, 5.0, 6.0], [1.0, 2.0, 300.0], [0.5, np.inf, np.inf], [np.inf, np.inf, np.inf]])


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)], ids=["rising", "falling"])
def test_medians_count_diverged_seeds_as_infinite(axes, order):
    draw_rates(axes, RATES[order], LOSSES[order])
    median = lines(axes)["median of 3"]
    assert median.get_xdata().tolist() == RATES.tolist()
    assert median.get_ydata()[:2].tolist() == [5.0, 2.0] and np.isnan(median.get_ydata()[2:]).all()
    assert lines(axes)["lowest, at 0.1"].get_ydata() == [2.0]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert lines(axes)["some diverged"].get_xdata().tolist() == [1.0]
    assert lines(axes)["all diverged"].get_xdata().tolist() == [10.0]
    assert [text.get_text() for text in axes.texts] == ["2/3", "3/3"]


def test_the_median_and_the_band_are_quantiles_of_the_seeds(axes):
    losses = np.array([np.arange(1.0, 12.0), 10 * np.arange(1.0, 12.0)])
    draw_rates(axes, [0.1, 1.0], losses)
    assert lines(axes)["median of 11"].get_ydata().tolist() == [6.0, 60.0]
    (band,) = (found for found in axes.collections if found.get_label() == "10 % to 90 %")
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    assert corners == {(0.1, 2.0), (1.0, 20.0), (1.0, 100.0), (0.1, 10.0)}


@pytest.mark.parametrize(
    "rates, losses",
    [
        ([0.1, 0.2], [[np.nan, 1.0], [np.nan, np.inf]]),
        *slow(
            (RATES, LOSSES),
            ([0.1], [[1.0]]),
            ([0.1], [[np.inf]]),
            ([0.1, 0.2], [[np.nan], [np.nan]]),
            ([0.0, 1.0], [[0.0, 0.0], [0.0, 0.0]]),
            ([-1.0, 100.0], [[-5.0, 1.0], [0.0, 1e30]]),
            (np.geomspace(1e-3, 1, 64), np.full((64, 4), np.inf)),
        ),
    ],
)
def test_any_losses_can_be_drawn(rates, losses, tmp_path):
    axes_with(lambda axes: draw_rates(axes, rates, losses, name="$rate_0$"), tmp_path)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: draw_rates(None, RATES, np.ones(3)), r"got shape \(3,\); expected \(rates, seeds\), with 4 rates"),
        (lambda: draw_heat(None, [1, 2], [1, 2, 3], np.ones((3, 2)), "ab"), r"got shape \(3, 2\); expected \(2, 3\)"),
    ],
)
def test_losses_of_another_shape_are_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_a_heat_map_shows_medians_and_crosses(axes):
    losses = np.array([[[1.0, 1.0, 1.0], [9.0, 90.0, np.inf]], [[np.inf, np.inf, 1.0], [np.nan] * 3]])
    draw_heat(axes, [0.1, 1.0], [3, 4], losses, ("rate", "scale"))
    (image,) = axes.get_images()
    assert image.get_array().filled(-1).tolist() == [[1.0, -1.0], [90.0, -1.0]]
    crosses, dots = lines(axes)["diverged"], lines(axes)["some diverged"]
    assert (crosses.get_xdata().tolist(), crosses.get_ydata().tolist()) == ([1], [0])
    assert (dots.get_xdata().tolist(), dots.get_ydata().tolist()) == ([0], [1])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.1", "1"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("rate", "scale")


@pytest.mark.parametrize("value", [np.inf, *slow(np.nan, 0.0, -3.0, 2.0)])
def test_a_heat_map_of_one_value_is_drawn(value, tmp_path):
    axes_with(lambda axes: draw_heat(axes, [1.0], np.arange(3), np.full((1, 3), value), ("a", "b")), tmp_path)


def test_a_sweep_is_drawn_over_its_rates_with_medians_over_keys(axes):
    keys = jax.random.wrap_key_data(np.zeros((3, 2), np.uint32))
    draw_sweep(axes, swept(LOSSES.T, key=keys, learning_rate=RATES))
    median = lines(axes)["median of 3"]
    assert median.get_xdata().tolist() == RATES.tolist() and median.get_ydata()[:2].tolist() == [5.0, 2.0]
    assert axes.get_xlabel() == "learning rate"


@pytest.mark.parametrize(
    ("values", "losses", "x", "marker"),
    [
        ({"seed": np.arange(4)}, np.array([1.0, 2.0, np.inf, 3.0]), [0, 1, 2, 3], "None"),
        ({"a": RATES, "b": RATES}, LOSSES[:, 0], RATES.tolist(), "-"),
    ],
    ids=["seeds alone", "zipped"],
)
def test_one_axis_is_drawn_as_a_line_and_seeds_as_points(axes, values, losses, x, marker):
    draw_ends(axes, values, losses)
    assert lines(axes)["a descent"].get_xdata().tolist() == x
    assert lines(axes)["a descent"].get_linestyle() == marker
    assert lines(axes)["diverged"].get_xdata().tolist() == [x[i] for i in np.flatnonzero(np.isinf(losses))]


def test_two_settings_are_a_heat_map_with_medians_over_a_third_one(axes):
    values = {"learning_rate": np.arange(2), "start": np.arange(3), "momentum": np.arange(4)}
    draw_ends(axes, values, np.ones((2, 3, 4)))
    assert axes.get_images()[0].get_array().shape == (3, 2)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("learning rate", "start")
