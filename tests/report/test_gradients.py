"""Pictures of a gradient check: each leaf's error, and the two branches of finite differences."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kits.pictures import axes_with, lines

from minijaxnet import check_grad
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

PARAMS = {"slope": jnp.array([1.0, -2.0]), "offset": jnp.array(0.5)}
BATCH = (jnp.array([[1.0, 2.0], [3.0, -1.0]]), jnp.array([1.0, 2.0]))


def loss(params, batch):
    x, y = batch
    return jnp.mean((x @ params["slope"] + params["offset"] - y) ** 2)


def gradient(params, batch, wrong=1.0):
    x, y = batch
    errors = x @ params["slope"] + params["offset"] - y
    return {"slope": wrong * 2 * x.T @ errors / len(y), "offset": 2 * jnp.mean(errors)}


@pytest.fixture(scope="module")
def right():
    return check_grad(loss, gradient, (PARAMS, BATCH))


@pytest.fixture(scope="module")
def wrong():
    return check_grad(loss, lambda params, batch: gradient(params, batch, 1.01), (PARAMS, BATCH))


def leaf(path="['w']", error=1e-17, tolerance=1e-15, **more):
    return LeafReport(path, (2,), error, tolerance, tolerance, (1,), 1.0, 1.0, **more)


def report(*leaves):
    state = "fail" if any(each.share_wrong for each in leaves) else "pass"
    return GradReport({"algebra": Verdict(state, "so it is")}, {each.path: each for each in leaves})


def test_each_leaf_has_its_error_and_what_rounding_explains(tmp_path):
    told = report(leaf("a", 1e-17), leaf("b", 3e-16, 2e-15))
    axes = axes_with(lambda axes: draw_errors(axes, told), tmp_path)
    dots = lines(axes)["difference from autodiff"]
    assert (dots.get_xdata().tolist(), dots.get_ydata().tolist()) == ([1e-17, 3e-16], [0, 1])
    assert np.allclose([bar.get_x() + bar.get_width() for bar in axes.patches], [1e-15, 2e-15], rtol=1e-9)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b"]
    assert axes.get_title(loc="left") == "gradient by hand: right"


def test_a_wrong_leaf_is_a_cross_beyond_its_bar_and_its_worst_element_is_named(wrong, tmp_path):
    axes = axes_with(lambda axes: draw_errors(axes, wrong), tmp_path)
    crosses = lines(axes)["difference, too large"]
    assert crosses.get_xdata().tolist() == [wrong.leaves["['slope']"].error]
    assert crosses.get_color() == COLOURS["diverged"]
    assert axes.get_title(loc="left") == "gradient by hand: NOT RIGHT"
    assert worst_element(wrong).startswith("['slope'][") and "by autodiff" in worst_element(wrong)
    assert "worst: ['slope'][" in axes.get_xlabel()


def test_json_draws_the_same(wrong, tmp_path):
    kept = json.loads(json.dumps(wrong.to_dict()))
    axes = [axes_with(lambda axes, told=told: draw_errors(axes, told), tmp_path) for told in (wrong, kept)]
    first, second = ({name: line.get_xdata().tolist() for name, line in lines(each).items()} for each in axes)
    assert first == second and verdict_line(wrong) == verdict_line(kept) and worst_element(wrong) == worst_element(kept)


def test_no_error_and_an_endless_one_are_seen_as_such(tmp_path):
    told = report(leaf("none", 0.0), leaf("some"), leaf("endless", np.inf, share_wrong=0.5))
    axes = axes_with(lambda axes: draw_errors(axes, told), tmp_path)
    low, high = axes.get_xlim()
    zero, endless = lines(axes)["no difference"], lines(axes)["not finite"]
    assert (zero.get_xdata().tolist(), zero.get_ydata().tolist()) == ([low], [0])
    assert zero.get_markerfacecolor() == "none"
    assert (endless.get_xdata().tolist(), endless.get_ydata().tolist()) == ([high], [2])
    assert low < 1e-17 and high > 1e-15


@pytest.mark.parametrize(
    "leaves",
    [
        [],
        [leaf(error=0.0, tolerance=0.0)],
        [leaf(error=np.nan, tolerance=np.inf, share_wrong=1.0)],
        [leaf(error=1e-300), leaf("$x_1$ <b>" * 20, error=1e300, share_wrong=1.0)],
    ],
)
def test_any_report_can_be_drawn(leaves, tmp_path):
    axes_with(lambda axes: draw_errors(axes, report(*leaves)), tmp_path)
    axes_with(lambda axes: draw_precision(axes, report(*leaves).to_dict()), tmp_path)


def test_precision_is_drawn_against_autodiffs(tmp_path):
    told = report(leaf("a", precision_ratio=0.5), leaf("b"), leaf("c", precision_ratio=3.0))
    axes = axes_with(lambda axes: draw_precision(axes, told), tmp_path)
    assert lines(axes)["by hand"].get_xdata().tolist() == [0.5, 3.0]
    assert lines(axes)["autodiff"].get_xdata() == [1, 1]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "c"]


def test_the_verdicts_fit_into_a_line(right):
    assert verdict_line(right).startswith("right: ") and "algebra pass" in verdict_line(right)
    assert worst_element(right) == ""


def test_differences_have_two_branches_with_the_slopes_of_theory():
    def cubic(w, batch):
        return jnp.sum(jnp.sin(3 * w) * batch)

    found = difference_errors(cubic, jnp.array([0.3, 0.7]), jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0]))
    assert np.all(np.diff(found.steps) < 0)
    (truncation, _, _), (rounding, _, _) = branches(found.steps, found.errors["float64"] + 1e-300)
    assert abs(truncation - 2) < 0.05 and abs(rounding + 1) < 0.15
    assert found.errors["float64"].min() < 1e-9 < found.errors["float32"].min()


def test_an_error_is_that_of_the_central_difference():
    found = difference_errors(lambda w, batch: w**3, 2.0, None, 1.0)
    # ((2 + h)^3 - (2 - h)^3) / 2h = 12 + h^2
    assert np.allclose(found.errors["float64"][:8], found.steps[:8] ** 2 / 12, rtol=1e-9)
    assert found.errors["float32"].dtype == np.float64


def test_differences_leave_the_dtypes_as_they_were():
    difference_errors(lambda w, batch: w**2, 2.0, None, 1.0)
    assert jnp.ones(()).dtype == jnp.float32 and not jax.config.jax_enable_x64


def test_a_direction_of_another_structure_is_named():
    with pytest.raises(TypeError, match=r"direction: .*expected"):
        difference_errors(loss, PARAMS, BATCH, {"slope": jnp.ones(2)})


@pytest.mark.parametrize(
    "errors", [np.zeros(40), np.full(40, np.nan), np.full(40, np.inf), np.ones(40), 0.5 ** np.arange(40)]
)
def test_any_errors_can_be_drawn(errors, tmp_path):
    found = DifferenceErrors(0.5 ** np.arange(40), {"float32": errors, "float64": errors})
    axes_with(lambda axes: draw_difference_errors(axes, found), tmp_path)


def test_slopes_are_written_beside_their_branches(tmp_path):
    steps = 0.5 ** np.arange(40)
    found = DifferenceErrors(steps, {"float64": steps**2 + 1e-16 / steps})
    axes = axes_with(lambda axes: draw_difference_errors(axes, found), tmp_path)
    assert [text.get_text() for text in axes.texts] == ["slope 2.00", "slope −1.00"]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert lines(axes)["float64"].get_xdata().tolist() == steps.tolist()
