"""Pictures of a run: the numbers are those of the rows, and what is not finite is seen."""

import numpy as np
import pytest
from kits.marks import slow
from kits.pictures import axes_with, lines

from minijaxnet.report.curves import draw_curves
from minijaxnet.report.style import COLOURS

ROWS = [
    {"step": 10 * i, "loss": 1.0, "train_loss": 10.0 ** (1 - i), "test_loss": 2.0 * 10.0 ** (1 - i)} for i in range(5)
]


@pytest.mark.parametrize("name", ["train_loss", "loss"], ids=["by its prefix", "by a test metric of its name"])
def test_training_and_test_are_drawn_as_such(axes, name):
    draw_curves(axes, ROWS, [name, "test_loss"])
    train, test = lines(axes)[name.replace("_", " ")], lines(axes)["test loss"]
    assert train.get_xdata().tolist() == [0, 10, 20, 30, 40]
    assert test.get_ydata().tolist() == [row["test_loss"] for row in ROWS]
    assert train.get_color() == COLOURS["train"] and test.get_color() == COLOURS["test"]
    assert train.get_linestyle() != test.get_linestyle()
    assert axes.get_yscale() == "log" and axes.get_ylabel() == "loss" and axes.get_xlabel() == "step"


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
    assert ("nothing was logged" in [text.get_text() for text in axes.texts]) == (not losses)


def test_what_is_not_finite_is_a_gap_and_a_cross(axes):
    rows = [{"step": i, "loss": 1.0 + i} for i in range(5)]
    rows[2]["loss"], rows[4]["loss"] = float("nan"), float("inf")
    draw_curves(axes, rows, ["loss"])
    assert np.isnan(lines(axes)["loss"].get_ydata()).tolist() == [False, False, True, False, True]
    assert lines(axes)["not finite"].get_xdata().tolist() == [2, 4]


def test_ends_are_marked(axes):
    draw_curves(axes, ROWS, ["loss"], flat_at=35, diverged_at=44)
    assert axes.get_legend_handles_labels()[1] == ["loss", "flat at step 35", "diverged at step 44"]
    assert list(lines(axes)["flat at step 35"].get_xdata()) == [35, 35]


def test_names_are_drawn_as_they_are(tmp_path):
    rows = [{"step": 0, "$x_1$ <b>": 1.0, "_hidden": 2.0}]
    axes_with(lambda axes: draw_curves(axes, rows, ["$x_1$ <b>", "_hidden"]), tmp_path)
    svg = (tmp_path / "picture.svg").read_text()
    assert "$x 1$ &lt;b&gt;" in svg and "hidden" in svg


def test_a_name_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"names: got 'lost'; expected one of loss, test_loss, train_loss"):
        draw_curves(None, ROWS, ["lost"])


def test_a_long_line_is_thinned_and_its_spike_stays(axes):
    draw_curves(axes, [{"step": i, "loss": 1e6 if i == 7_777 else 1.0} for i in range(10_000)], ["loss"])
    steps = lines(axes)["loss"].get_xdata()
    assert len(steps) <= 2_000 and 7_777 in steps
