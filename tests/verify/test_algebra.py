"""Are the two rules one function? Zeros, kinks, numbers that are not finite, and where autodiff fails."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kits.reports import check_grad_at, states

from minijaxnet import check_grad


def test_a_gradient_that_is_exactly_zero_has_no_room_for_error():
    points = {off: (np.float32([1, 2]), np.float32(off)) for off in (0, 1e-30)}
    reports = check_grad_at(lambda w, off: 0 * jnp.sum(w), lambda w, off: jnp.full_like(w, off), points)
    assert reports[0].ok and not reports[1e-30].ok
    worst = reports[1e-30].worst
    assert worst is not None and (worst.reference, worst.share_wrong) == (0, 1)


# --- Kinks ------------------------------------------------------------------------------------------------------------


def test_a_kink_by_cancellation_raises_no_false_alarm_and_excuses_nothing_else():
    def loss(w, off):
        return jax.nn.relu(w[0] - w[1]) + jnp.sum(w**2)

    def gradient(w, off):
        return (1 + off) * (jnp.where(w[0] > w[1], jnp.array([1.0, -1.0]), 0) + 2 * w)

    points = {off: (np.ones(2, np.float32), np.float32(off)) for off in (0, 1e-5)}
    assert [report.ok for report in check_grad_at(loss, gradient, points).values()] == [True, False]


# --- Not finite -------------------------------------------------------------------------------------------------------


def test_a_nan_by_hand_where_autodiff_is_finite_is_infinitely_wrong():
    def gradient(w):
        return 3 * w**2 + jnp.where(w > 1, jnp.nan, 0)

    report = check_grad(lambda w: jnp.sum(w**3), gradient, (np.float32([0.5, 2]),))
    assert not report.ok
    worst = report.worst
    assert worst is not None
    assert (worst.error, worst.index, worst.share_wrong) == (float("inf"), (1,), 0.5)
    assert str(report)


ZERO_FIRST, ZERO_LAST, NEGATIVE, ZEROS = [0, 1, 4], [1, 4, 0], [1, 4, -1], [0, 0, 0]
RIGHT, WRONG, ALL_WRONG = [1, 1, 1], [1, 3, 1], [3, 3, 3]


def reports_on_roots(*points):
    """A report for each point and the factor on its gradient there: infinite at 0, NaN below."""

    def loss(w, factor):
        return jnp.sum(jnp.sqrt(w))

    def gradient(w, factor):
        return factor * 0.5 / jnp.sqrt(w)

    args = {str(i): (np.float32(w), np.float32(factor)) for i, (w, factor) in enumerate(points)}
    return check_grad_at(loss, gradient, args).values()


def test_where_autodiff_is_not_finite_a_right_rule_is_not_accused():
    for report in reports_on_roots((ZERO_FIRST, RIGHT), (ZERO_LAST, RIGHT), (NEGATIVE, RIGHT)):
        assert states(report, "algebra") != {"algebra": "fail"}
        assert states(report, "oracle") == {"oracle": "unchecked"}


def test_where_autodiff_is_not_finite_nothing_is_called_right():
    nan, right, wrong = reports_on_roots((NEGATIVE, RIGHT), (ZEROS, RIGHT), (ZEROS, ALL_WRONG))
    assert states(nan, "algebra") == {"algebra": "unchecked"}
    assert str(nan)
    assert not nan.ok and not right.ok and not wrong.ok


def test_beside_elements_that_are_not_finite_a_wrong_rule_is_not_called_right():
    """Beside an infinite slope without a warning."""
    with warnings.catch_warnings():
        # Where the loss itself is NaN there is nothing to accuse anybody of.
        warnings.filterwarnings("ignore", "invalid value", RuntimeWarning)
        assert not any(report.ok for report in reports_on_roots((NEGATIVE, WRONG)))
    for report in reports_on_roots((ZERO_FIRST, WRONG), (ZERO_LAST, WRONG)):
        worst = report.worst
        assert not report.ok
        assert worst is not None and (worst.index, worst.share_wrong) == ((1,), pytest.approx(1 / 3))


# --- The oracle's word ------------------------------------------------------------------------------------------------


def test_where_autodiff_is_nan_finite_differences_side_with_a_right_rule():
    def loss(w, slope, off):  # the NaN of the branch that is not taken comes through jnp.where
        return jnp.sum(jnp.where(w > 0, jnp.sqrt(w), slope * w))

    def gradient(w, slope, off):
        return jnp.where(w > 0, 0.5 / jnp.sqrt(jnp.where(w > 0, w, 1)), slope + off)

    cases = {"a slope": (-3, 0), "flat": (0, 0), "a slope, off": (-3, -0.5), "flat, off": (0, -0.5)}
    w = np.float32([-1, 2, -3])
    reports = check_grad_at(loss, gradient, {name: (w, *np.float32(case)) for name, case in cases.items()})
    assert {name: report.ok for name, report in reports.items()} == {name: "off" not in name for name in cases}
    for name in ("a slope", "flat"):
        (leaf,) = reports[name].leaves.values()
        assert "autodiff" in leaf.note and "2 of 3" in leaf.note


def test_a_surrogate_gradient_is_compared_with_autodiff_and_the_oracle_says_that_it_is_one():
    def loss(w):
        return jnp.sum((w + jax.lax.stop_gradient(jnp.round(w) - w)) ** 2)

    report = check_grad(loss, lambda w: 2 * jnp.round(w), (np.float32([0.8, -2.3]),))
    assert report.ok
    assert states(report, "oracle") == {"oracle": "unchecked"}
    assert "surrogate" in report.verdicts["oracle"].reason


@pytest.mark.parametrize("wrong", [0.0, 1e-3])
def test_a_start_that_is_forgotten_is_nothing(wrong):
    """By autodiff 1e-246 of it is left after 80 rounds, by the implicit rule nothing."""

    def found(a, start):
        return functools.reduce(lambda z, _: 0.001 * jnp.cos(z) + a, range(80), start)

    def by_hand(a, start):
        slope = 1 / (1 + 0.001 * jnp.sin(found(a, start)))
        return slope * (1 + wrong), 0.0 * start

    with jax.enable_x64(True):
        assert check_grad(found, by_hand, (0.3, 1.0), argnums=(0, 1)).ok == (not wrong)


@pytest.mark.parametrize("before", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_index_of_numpy_is_taken_as_it_is_whatever_was_jitted_before(before):
    """JAX keeps the dtype that it first gave to a NumPy array, be float64 enabled or not."""
    index, weights = np.array([0, 2, 2]), np.linspace(0.1, 1, 3)
    loss = jax.jit(lambda w: jnp.sum(weights * jnp.sin(w[index])))
    slope = jax.jit(lambda w: jnp.zeros_like(w).at[index].add(weights * jnp.cos(w[index])))
    w = jnp.float32([0.5, 1.0, 2.0])
    if before:
        loss(w), slope(w)
    report = check_grad(loss, slope, (w,))
    assert set(states(report).values()) == {"pass"} and report.leaves["w"].blind < 1e-13, str(report)
    assert not check_grad(loss, lambda w: slope(w) * 1.00001, (w,)).ok
    assert np.isfinite(jax.jit(lambda w: loss(w))(w))
