"""Pictures of a run: the numbers are those of the rows, and what is not finite is seen."""

import numpy as np
import pytest
from kits.marks import slow
from kits.pictures import axes_with, lines

from minijaxnet.history import DIVERGED, FLAT, OUT_OF_STEPS, Trace
from minijaxnet.report.axes import as_written
from minijaxnet.report.curves import draw_curves, draw_trace
from minijaxnet.report.style import COLOURS
from minijaxnet.report.thin import thin

ROWS = [
    {"step": 10 * i, "loss": 1.0, "train_loss": 10.0 ** (1 - i), "test_loss": 2.0 * 10.0 ** (1 - i)} for i in range(5)
]


def labels(axes):
    return axes.get_legend_handles_labels()[1]


def test_a_line_that_is_short_enough_stays_as_it_is():
    steps, values = thin(np.arange(7), np.arange(7.0), most=7)
    assert steps.tolist() == list(range(7)) and values.tolist() == list(range(7))


@pytest.mark.parametrize("count", [2_001, 2_002, 10_007, *slow(1_000_000)])
def test_thinning_keeps_ends_and_extremes_and_the_order(count):
    values = np.random.default_rng(0).normal(size=count)
    values[count // 3], values[count // 2] = 50.0, -50.0
    steps, few = thin(np.arange(count), values)
    assert len(few) <= 2_000
    assert np.all(np.diff(steps) > 0) and steps[0] == 0 and steps[-1] == count - 1
    assert np.array_equal(few, values[steps])
    assert {50.0, -50.0} <= set(few)


def test_thinning_keeps_extremes_of_every_stretch():
    values = np.tile([0.0, 1.0, -1.0, 0.5], 2_500)
    steps, few = thin(np.arange(10_000), values, most=200)
    assert np.max(np.diff(steps[few == 1.0])) <= 2 * 101 and np.max(np.diff(steps[few == -1.0])) <= 2 * 101


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_thinning_keeps_gaps(broken):
    values = np.ones(100_000)
    values[4_321], values[70_000:80_000] = broken, broken
    steps, few = thin(np.arange(100_000), values, most=500)
    assert len(few) <= 500
    assert 4_321 in steps[~np.isfinite(few)]
    assert not np.isfinite(few[(steps >= 70_000) & (steps < 80_000)]).any()
    assert np.sum((steps >= 70_000) & (steps < 80_000)) > 10


def test_a_line_of_nan_alone_is_thinned():
    steps, few = thin(np.arange(10_000), np.full(10_000, np.nan), most=100)
    assert np.isnan(few).all() and steps[-1] == 9_999


@pytest.mark.parametrize(
    "arguments", [(np.arange(3), np.arange(4.0)), (np.ones((2, 2)), np.ones((2, 2))), (np.arange(9), np.ones(9), 4)]
)
def test_thin_says_what_it_cannot_use(arguments):
    with pytest.raises(ValueError, match=r"^(steps, values|most): got .*; expected"):
        thin(*arguments)


def test_train_and_test_are_drawn_as_such(axes):
    draw_curves(axes, ROWS, ["train_loss", "test_loss"])
    train, test = lines(axes)["train loss"], lines(axes)["test loss"]
    assert train.get_xdata().tolist() == [0, 10, 20, 30, 40]
    assert test.get_ydata().tolist() == [row["test_loss"] for row in ROWS]
    assert train.get_color() == COLOURS["train"] and test.get_color() == COLOURS["test"]
    assert train.get_linestyle() != test.get_linestyle()
    assert axes.get_yscale() == "log" and axes.get_ylabel() == "loss" and axes.get_xlabel() == "step"


def test_a_metric_and_its_test_twin_are_train_and_test(axes):
    rows = [{"step": i, "accuracy": 0.1 * i, "test_accuracy": 0.05 * i} for i in range(4)]
    draw_curves(axes, rows, ["accuracy", "test_accuracy"])
    assert lines(axes)["accuracy"].get_color() == COLOURS["train"]
    assert lines(axes)["test accuracy"].get_color() == COLOURS["test"]


LINEAR = ([1.0, 2.0, 3.0], [-1.0, 100.0, 1.0], [5.0] * 3, [np.nan] * 3, [7.0])


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([1.0, 100.0, 3.0], "log"),
        ([0.0, 100.0, 1.0], "symlog"),
        ([np.nan, np.inf, 1.0], "linear"),
        ([], "linear"),
        *slow(([1.0, 1e-300, 1.7e308], "log"), *((losses, "linear") for losses in LINEAR)),
    ],
)
def test_the_scale_suits_the_numbers(losses, expected, tmp_path):
    rows = [{"step": i, "loss": loss} for i, loss in enumerate(losses)]
    axes = axes_with(lambda axes: draw_curves(axes, rows, ["loss"], flat_at=1, diverged_at=2), tmp_path)
    assert axes.get_yscale() == expected
    assert ("linear below" in axes.get_ylabel()) == (expected == "symlog")


def test_what_is_not_finite_is_a_gap_and_a_cross(axes):
    rows = [{"step": i, "loss": 1.0 + i} for i in range(5)]
    rows[2]["loss"], rows[4]["loss"] = float("nan"), float("inf")
    draw_curves(axes, rows, ["loss"])
    assert np.isnan(lines(axes)["loss"].get_ydata()).tolist() == [False, False, True, False, True]
    assert lines(axes)["not finite"].get_xdata().tolist() == [2, 4]


def test_ends_are_marked(axes):
    draw_curves(axes, ROWS, ["loss"], flat_at=35, diverged_at=44)
    assert labels(axes) == ["loss", "flat at step 35", "diverged at step 44"]
    assert list(lines(axes)["flat at step 35"].get_xdata()) == [35, 35]


def test_names_are_drawn_as_they_are(tmp_path):
    rows = [{"step": 0, "$x_1$ <b>": 1.0, "_hidden": 2.0}]
    axes_with(lambda axes: draw_curves(axes, rows, ["$x_1$ <b>", "_hidden"]), tmp_path)
    svg = (tmp_path / "picture.svg").read_text()
    assert "$x 1$ &lt;b&gt;" in svg and "hidden" in svg
    assert as_written("$") == r"\$"


def test_a_name_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"names: got 'lost'; expected one of loss, test_loss, train_loss"):
        draw_curves(None, ROWS, ["lost"])


def trace(losses, taken, status):
    losses = np.array(losses)
    return Trace(losses, losses / 2, (), np.int32(taken), np.int32(status))


@pytest.mark.parametrize("status, word", [(OUT_OF_STEPS, ""), (FLAT, "flat at step 103"), (DIVERGED, "diverged at")])
def test_a_trace_is_drawn_as_far_as_it_went(status, word, axes):
    of = trace([8.0, 4.0, 2.0, np.nan], 3, status)
    draw_trace(axes, of, first_step=100)
    assert lines(axes)["loss"].get_xdata().tolist() == [100, 101, 102]
    assert lines(axes)["gradient norm"].get_ydata().tolist() == [4.0, 2.0, 1.0]
    assert any(label.startswith(word) for label in labels(axes)) and len(labels(axes)) == 2 + bool(word)


def test_a_trace_without_a_step_is_drawn(axes):
    draw_trace(axes, trace([], 0, OUT_OF_STEPS))
    assert "nothing was logged" in [text.get_text() for text in axes.texts]


def test_a_long_trace_is_thinned_with_its_spike(axes):
    losses = np.ones(100_000)
    losses[77_777] = 1e6
    draw_trace(axes, trace(losses, 100_000, OUT_OF_STEPS))
    assert len(lines(axes)["loss"].get_xdata()) <= 2_000
    assert 77_777 in lines(axes)["loss"].get_xdata()


def test_several_traces_are_refused():
    with pytest.raises(ValueError, match=r"trace: got those of descents of shape \(2,\); expected that of one"):
        draw_trace(None, Trace(np.ones((2, 3)), np.ones((2, 3)), (), np.ones(2), np.zeros(2)))
