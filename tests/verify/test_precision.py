"""Rounding is no slip, and a rule that rounds far worse than autodiff fails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from corpora.kit import sine
from kits.marks import SLOW
from kits.reports import failures, passes, states

from minijaxnet import check_grad, check_vjp


def test_a_rule_more_precise_than_autodiff_has_a_ratio_below_1():
    def gradient(z):
        return jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)

    report = check_grad(lambda z: jnp.sum(jax.nn.sigmoid(z)), gradient, (np.float32([4.5, 5.3]),))
    assert report.ok, str(report)
    assert states(report)["precision"] == "pass"
    (leaf,) = report.leaves.values()
    assert leaf.precision_ratio is not None and leaf.precision_ratio < 0.5


def overflowing(z):
    """The logistic function as written in books; ``exp`` leaves float32 at 89, float64 at 710."""
    return jnp.exp(z) / (1 + jnp.exp(z))


def detour(w):
    """``2 w`` by way of numbers hundreds of times as large."""
    return ((w + w[0]) ** 2 - w**2 - w[0] ** 2) / w[0]


@pytest.mark.parametrize(
    ("loss", "gradient", "args"),
    [
        # The first element's own slope, 4 w, is by hand as detour gives it; the others' is 2 w.
        (lambda w: jnp.sum(w[1:] ** 2), lambda w: detour(w).at[0].set(0), [512, 1.1, 1.3, -0.7]),
        pytest.param(lambda z: jnp.sum(jnp.logaddexp(z, 0)), overflowing, [1, 95], marks=pytest.mark.slow),
    ],
    ids=["cancellation", "overflow"],
)
def test_a_rule_that_is_right_but_unstable_fails_precision_and_not_algebra(loss, gradient, args):
    report = check_grad(loss, gradient, (np.float32(args),))
    assert not report.ok
    assert states(report, "structure", "algebra", "precision") == {
        **passes("structure", "algebra"),
        "precision": "fail",
    }, str(report)
    assert f"far less precise than autodiff in {'wz'[len(args) == 2]}" in report.verdicts["precision"].reason


def test_a_custom_rule_that_is_right_but_unstable_fails_precision_alone():
    def backward(x, c):
        return ((c + 1024 * x) ** 2 - c**2 - (1024 * x) ** 2) / (2 * 1024 * x) * jnp.cos(x)

    report = check_vjp(sine(backward), (np.float32([0.3, -1.2, 2.0]),))
    assert "precision" in failures(report)
    assert "algebra" not in failures(report)


def by_a_coarse_product(v):
    """``2 v`` by way of a matrix product that reads ten bits of its operands, as a GPU's does."""
    return 2 * jax.lax.reduce_precision(v, 8, 10) @ jnp.eye(v.shape[-1], dtype=v.dtype)


def test_what_a_product_does_is_no_fault_of_the_rule_s(monkeypatch):
    points = (np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32),)

    def check(gradient):
        return check_grad(lambda v: jnp.sum(v**2), gradient, points)

    assert states(check(by_a_coarse_product))["precision"] == "fail"
    monkeypatch.setattr("minijaxnet.verify.precision.platform_of", lambda leaves: "gpu")
    report = check(by_a_coarse_product)
    assert report.ok, str(report)
    assert "10 of 23 bits" in report.verdicts["precision"].reason
    assert states(check(lambda v: 2 * jax.lax.reduce_precision(v, 8, 4)))["precision"] == "fail"
    with jax.default_matmul_precision("highest"):
        assert states(check(by_a_coarse_product))["precision"] == "fail"


@pytest.mark.parametrize("precision", ["BF16_BF16_F32", SLOW("bfloat16"), SLOW("highest")])
def test_a_product_of_few_digits_is_compared_in_float64_all_the_same(precision):
    def by_product(v):
        return 2 * jnp.matmul(v, jnp.eye(v.shape[-1], dtype=v.dtype), precision=precision)

    points = (np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32),)
    report = check_grad(lambda v: jnp.sum(v**2), by_product, points)
    assert states(report)["algebra"] == "pass", str(report)
    with jax.default_matmul_precision(precision):
        report = check_grad(lambda v: jnp.sum(v @ v.T), lambda v: 2 * jnp.sum(v, 0) + 0 * v, points)
        assert report.ok, str(report)
