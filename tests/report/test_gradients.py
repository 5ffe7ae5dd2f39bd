"""Pictures of a gradient check: each leaf's error and precision."""

import json

import numpy as np
import pytest
from kits.marks import slow
from kits.pictures import axes_with, lines

from minijaxnet.report.gradients import draw_errors, draw_precision, worst_element
from minijaxnet.report.style import COLOURS
from minijaxnet.verify import GradReport, LeafReport, Verdict


def leaf(path="['w']", error=1e-17, tolerance=1e-15, **more):
    return LeafReport(path, (2,), error, tolerance, tolerance, (1,), 1.0, 1.0, **more)


def report(*leaves):
    state = "fail" if any(each.share_wrong for each in leaves) else "pass"
    return GradReport({"algebra": Verdict(state, "the reason")}, {each.path: each for each in leaves})


WRONG = report(leaf("['weight']", 0.25, share_wrong=0.5), leaf("['bias']"))


def test_each_leaf_has_its_error_and_what_rounding_explains(axes):
    draw_errors(axes, report(leaf("a", 1e-17), leaf("b", 3e-16, 2e-15)))
    dots = lines(axes)["difference from autodiff"]
    assert (dots.get_xdata().tolist(), dots.get_ydata().tolist()) == ([1e-17, 3e-16], [0, 1])
    assert np.allclose([bar.get_x() + bar.get_width() for bar in axes.patches], [1e-15, 2e-15], rtol=1e-9)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b"]
    assert axes.get_title(loc="left") == "gradient by hand: right"
    assert worst_element(report(leaf())) == ""


@pytest.mark.parametrize("found", [WRONG, json.loads(json.dumps(WRONG.to_dict()))], ids=["report", "JSON"])
def test_a_wrong_leaf_is_a_cross_beyond_its_bar_and_its_worst_element_is_named(axes, found):
    draw_errors(axes, found)
    crosses = lines(axes)["difference, too large"]
    assert crosses.get_xdata().tolist() == [0.25] and crosses.get_color() == COLOURS["diverged"]
    assert axes.get_title(loc="left") == "gradient by hand: NOT RIGHT"
    assert worst_element(found).startswith("['weight'][") and "by autodiff" in worst_element(found)
    assert "worst: ['weight'][" in axes.get_xlabel()


def test_an_error_of_zero_and_an_infinite_one_are_drawn_as_such(axes):
    draw_errors(axes, report(leaf("none", 0.0), leaf("some"), leaf("infinite", np.inf, share_wrong=0.5)))
    low, high = axes.get_xlim()
    zero, infinite = lines(axes)["no difference"], lines(axes)["not finite"]
    assert (zero.get_xdata().tolist(), zero.get_ydata().tolist()) == ([low], [0])
    assert zero.get_markerfacecolor() == "none"
    assert (infinite.get_xdata().tolist(), infinite.get_ydata().tolist()) == ([high], [2])
    assert low < 1e-17 and high > 1e-15


@pytest.mark.parametrize(
    "leaves",
    [
        [leaf(error=np.nan, tolerance=np.inf, share_wrong=1.0)],
        *slow(
            [],
            [leaf(error=0.0, tolerance=0.0)],
            [leaf(error=1e-300), leaf("$x_1$ <b>" * 20, error=1e300, share_wrong=1.0)],
            [leaf("none", 0.0), leaf("some", precision_ratio=3.0), leaf("infinite", np.inf, share_wrong=0.5)],
        ),
    ],
)
def test_any_report_can_be_drawn(leaves, tmp_path):
    axes_with(lambda axes: draw_errors(axes, report(*leaves)), tmp_path)
    axes_with(lambda axes: draw_precision(axes, report(*leaves).to_dict()), tmp_path)


def test_precision_is_drawn_against_autodiffs(axes):
    draw_precision(axes, report(leaf("a", precision_ratio=0.5), leaf("b"), leaf("c", precision_ratio=3.0)))
    assert lines(axes)["by hand"].get_xdata().tolist() == [0.5, 3.0]
    assert lines(axes)["autodiff"].get_xdata() == [1, 1]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "c"]
