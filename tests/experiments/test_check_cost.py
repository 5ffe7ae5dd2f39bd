"""The study of what a check costs: its models' gradients by hand are right, the slip is not, a case is a row."""

import check_cost
import jax
import numpy as np
import pytest
from checked import case_of
from kits.marks import slow


def differences(name):
    """For each leaf the largest difference of both rules in float64, over the largest element."""
    with jax.enable_x64(True):
        case = case_of(name, "float64")
        found, expected = (jax.jit(rule)(*case.args) for rule in (case.by_hand, case.autodiff))
    jax.tree.map(lambda x: np.testing.assert_equal(x.dtype, np.float64), (found, expected))
    return jax.tree.map(lambda f, e: float(np.abs(f - e).max() / np.abs(e).max()), found, expected)


@pytest.mark.parametrize("name", ["rmsnorm", *slow("attention", "digits", "lstm")])
def test_a_models_gradient_by_hand_is_autodiffs(name):
    assert max(jax.tree.leaves(differences(name))) < 1e-12


@pytest.mark.slow
def test_the_slip_is_wrong_in_the_keys_and_in_what_is_before_them():
    value, gradient = differences("attention, a slip")
    assert value < 1e-12
    assert {leaf for leaf, difference in gradient.items() if difference > 1e-3} == {"w_in", "wk"}
    assert max(difference for leaf, difference in gradient.items() if leaf not in ("w_in", "wk")) < 1e-12


@pytest.mark.slow
def test_a_case_is_a_row():
    name, jitted, check, ratio, wall, verdict = check_cost.row("rmsnorm")
    assert (name, verdict) == ("rmsnorm", "right")
    assert min(map(float, (jitted, check, ratio, wall))) > 0
