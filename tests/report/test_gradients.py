"""Pictures of a gradient check: each leaf's error, and the two branches of finite differences."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kits.marks import slow
from kits.pictures import axes_with, lines

from minijaxnet.report.gradients import (
    DifferenceErrors,
    branches,
    difference_errors,
    draw_difference_errors,
    draw_errors,
    draw_precision,
    verdict_line,
    worst_element,
)
from minijaxnet.report.style import COLOURS
from minijaxnet.verify import GradReport, LeafReport, Verdict


def leaf(path="['w']", error=1e-17, tolerance=1e-15, **more):
    return LeafReport(path, (2,), error, tolerance, tolerance, (1,), 1.0, 1.0, **more)


def report(*leaves):
    state = "fail" if any(each.share_wrong for each in leaves) else "pass"
    return GradReport({"algebra": Verdict(state, "so it is")}, {each.path: each for each in leaves})


WRONG = report(leaf("['slope']", 0.25, share_wrong=0.5), leaf("['offset']"))


def test_each_leaf_has_its_error_and_what_rounding_explains(axes):
    told = report(leaf("a", 1e-17), leaf("b", 3e-16, 2e-15))
    draw_errors(axes, told)
    dots = lines(axes)["difference from autodiff"]
    assert (dots.get_xdata().tolist(), dots.get_ydata().tolist()) == ([1e-17, 3e-16], [0, 1])
    assert np.allclose([bar.get_x() + bar.get_width() for bar in axes.patches], [1e-15, 2e-15], rtol=1e-9)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b"]
    assert axes.get_title(loc="left") == "gradient by hand: right"


def test_a_wrong_leaf_is_a_cross_beyond_its_bar_and_its_worst_element_is_named(axes):
    draw_errors(axes, WRONG)
    crosses = lines(axes)["difference, too large"]
    assert crosses.get_xdata().tolist() == [0.25]
    assert crosses.get_color() == COLOURS["diverged"]
    assert axes.get_title(loc="left") == "gradient by hand: NOT RIGHT"
    assert worst_element(WRONG).startswith("['slope'][") and "by autodiff" in worst_element(WRONG)
    assert "worst: ['slope'][" in axes.get_xlabel()


def test_json_draws_the_same(axes):
    kept = json.loads(json.dumps(WRONG.to_dict()))
    drawn = []
    for told in (WRONG, kept):
        axes.clear()
        draw_errors(axes, told)
        drawn.append({name: line.get_xdata().tolist() for name, line in lines(axes).items()})
    assert drawn[0] == drawn[1]
    assert verdict_line(WRONG) == verdict_line(kept) and worst_element(WRONG) == worst_element(kept)


def test_no_error_and_an_endless_one_are_seen_as_such(axes):
    told = report(leaf("none", 0.0), leaf("some"), leaf("endless", np.inf, share_wrong=0.5))
    draw_errors(axes, told)
    low, high = axes.get_xlim()
    zero, endless = lines(axes)["no difference"], lines(axes)["not finite"]
    assert (zero.get_xdata().tolist(), zero.get_ydata().tolist()) == ([low], [0])
    assert zero.get_markerfacecolor() == "none"
    assert (endless.get_xdata().tolist(), endless.get_ydata().tolist()) == ([high], [2])
    assert low < 1e-17 and high > 1e-15


@pytest.mark.parametrize(
    "leaves",
    [
        [leaf(error=np.nan, tolerance=np.inf, share_wrong=1.0)],
        *slow(
            [],
            [leaf(error=0.0, tolerance=0.0)],
            [leaf(error=1e-300), leaf("$x_1$ <b>" * 20, error=1e300, share_wrong=1.0)],
            [leaf("none", 0.0), leaf("some", precision_ratio=3.0), leaf("endless", np.inf, share_wrong=0.5)],
        ),
    ],
)
def test_any_report_can_be_drawn(leaves, tmp_path):
    axes_with(lambda axes: draw_errors(axes, report(*leaves)), tmp_path)
    axes_with(lambda axes: draw_precision(axes, report(*leaves).to_dict()), tmp_path)


def test_precision_is_drawn_against_autodiffs(axes):
    told = report(leaf("a", precision_ratio=0.5), leaf("b"), leaf("c", precision_ratio=3.0))
    draw_precision(axes, told)
    assert lines(axes)["by hand"].get_xdata().tolist() == [0.5, 3.0]
    assert lines(axes)["autodiff"].get_xdata() == [1, 1]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "c"]


def test_the_verdicts_fit_into_a_line():
    right = report(leaf())
    assert verdict_line(right).startswith("right: ") and "algebra pass" in verdict_line(right)
    assert worst_element(right) == ""


def test_differences_have_two_branches_with_the_slopes_of_theory():
    def cubic(w, batch):
        return jnp.sum(jnp.sin(3 * w) * batch)

    found = difference_errors(cubic, np.array([0.3, 0.7]), np.array([1.0, 2.0]), np.ones(2))
    assert np.all(np.diff(found.steps) < 0)
    (truncation, _, _), (rounding, _, _) = branches(found.steps, found.errors["float64"] + 1e-300)
    assert abs(truncation - 2) < 0.05 and abs(rounding + 1) < 0.15
    assert found.errors["float64"].min() < 1e-9 < found.errors["float32"].min()


def test_an_error_is_that_of_the_central_difference_and_dtypes_stay_as_they_were():
    found = difference_errors(lambda w, batch: w**3, 2.0, None, 1.0)
    # ((2 + h)^3 - (2 - h)^3) / 2h = 12 + h^2
    assert np.allclose(found.errors["float64"][:8], found.steps[:8] ** 2 / 12, rtol=1e-9)
    assert found.errors["float32"].dtype == np.float64
    assert jnp.asarray(1.0).dtype == jnp.float32 and not jax.config.jax_enable_x64


def test_a_direction_of_another_structure_is_named():
    with pytest.raises(TypeError, match=r"direction: .*expected"):
        difference_errors(lambda w, batch: w["slope"], {"slope": np.float32(1)}, None, {"offset": np.float32(1)})


@pytest.mark.parametrize(
    "errors", [np.full(40, np.nan), *slow(np.zeros(40), np.full(40, np.inf), np.ones(40), 0.5 ** np.arange(40))]
)
def test_any_errors_can_be_drawn(errors, tmp_path):
    found = DifferenceErrors(0.5 ** np.arange(40), {"float32": errors, "float64": errors})
    axes_with(lambda axes: draw_difference_errors(axes, found), tmp_path)


def test_slopes_are_written_beside_their_branches(axes):
    steps = 0.5 ** np.arange(40)
    found = DifferenceErrors(steps, {"float64": steps**2 + 1e-16 / steps})
    draw_difference_errors(axes, found)
    assert [text.get_text() for text in axes.texts] == ["slope 2.00", "slope −1.00"]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert lines(axes)["float64"].get_xdata().tolist() == steps.tolist()
