"""Where the checker has to say that it does not know, and where it may not: from rules that were tried from outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from kits.marks import SLOW, slow
from kits.reports import failures
from kits.rules import custom

from minijaxnet import check_grad, check_vjp

POINT = jnp.float32(0.3)
HILBERT = jnp.float32(1 / (np.arange(6)[:, None] + np.arange(6) + 1.0))
RANDOM = jnp.float32(np.random.default_rng(0).normal(size=6))


def logistic_map(x, slope=lambda x: x * (1 - x)):
    return lax.scan(lambda x, _: (3.9 * slope(x), x), x, None, length=60)[0]


@pytest.mark.parametrize(
    ("loss", "gradient", "x"),
    [
        pytest.param(lambda x: jnp.sin(1e10 * x), lambda x: 0 * x, POINT, id="rounding as large as the gradient"),
        SLOW(lambda x: jnp.sin(1e14 * x), lambda x: 0 * x, POINT, id="a fast function is no kink"),
        SLOW(logistic_map, lambda x: 0 * x, POINT, id="chaos"),
        SLOW(
            logistic_map,
            jax.grad(lambda x: logistic_map(x, lambda x: x - x * x)),
            POINT,
            id="chaos, a right rule that rounds otherwise",
        ),
        SLOW(
            lambda y: jnp.sum(jnp.linalg.solve(HILBERT.astype(y.dtype), y) ** 2),
            lambda y: 0 * y,
            RANDOM,
            id="constants in float32 of an ill-conditioned system",
        ),
    ],
)
def test_what_rounding_hides_is_unchecked(loss, gradient, x):
    report = check_grad(loss, gradient, (x,))
    assert report.headline == "unchecked", str(report)
    assert "rounding errors may be as large" in report.verdicts["algebra"].reason


SCALES = jnp.float32([1e-3, 1, 1e3])


@pytest.mark.parametrize(
    ("loss", "gradient", "x"),
    [
        pytest.param(
            lambda x: jnp.sum(SCALES * x**2),
            lambda x: 2 * SCALES * x * jnp.array([-1.0, 1, 1]),
            jnp.float32([0.3, -0.2, 0.6]),
            id="the small one of constants in float32",
        ),
        SLOW(lambda x: jnp.sqrt(x**2) ** 3, lambda x: 1 + x, jnp.float32(0), id="autodiff NaN, a scalar"),
        SLOW(lambda x: jnp.linalg.norm(x) ** 2, lambda x: 2 * x + 1, jnp.zeros(3), id="autodiff NaN throughout"),
    ],
)
def test_a_wrong_rule_is_found_there(loss, gradient, x):
    assert "algebra" in failures(check_grad(loss, gradient, (x,)))


RISING = jnp.arange(3.0)
LIGHT = jnp.array([299792458.0])


def gelu(x):
    return 0.5 * x * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_slope(x, root=0.7978845608):
    t = jnp.tanh(root * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * root * (1 + 3 * 0.044715 * x**2)


@pytest.mark.parametrize(
    ("loss", "gradient", "x"),
    [
        pytest.param(
            lambda x: jnp.sum(RISING * jnp.sort(x)),
            lambda x: jnp.zeros(3).at[jnp.argsort(-x)[::-1]].set(RISING),
            jnp.ones(3),
            id="three equals, put in another order",
        ),
        pytest.param(
            lambda x: jnp.linalg.norm(x) ** 2, lambda x: 2 * x, jnp.zeros(3), id="autodiff NaN, a gradient of zeros"
        ),
        SLOW(lambda x: jnp.sum(LIGHT * x**2), lambda x: 2 * 299792458.0 * x, POINT[None], id="a large constant"),
        SLOW(lambda x: jnp.sum(gelu(x)), gelu_slope, RISING - 1, id="a constant of ten digits"),
    ],
)
def test_a_right_rule_passes_there(loss, gradient, x):
    report = check_grad(loss, gradient, (x,))
    assert report.ok, str(report)


@pytest.mark.slow
def test_a_constant_of_five_digits_too_few_is_found():
    assert not check_grad(lambda x: jnp.sum(gelu(x)), lambda x: gelu_slope(x, 0.79788), (RISING - 1,)).ok


@jax.custom_jvp
def picked(x, index):
    return 2 * x[index]


picked.defjvp(lambda at, along: (picked(*at), 2 * along[0][at[1]]))


@pytest.mark.parametrize(
    ("fun", "args"),
    [
        (picked, (jnp.ones(4), jnp.array([0, 2, 2]))),
        *slow(
            (lambda x: jnp.ldexp(x, 2), (jnp.ones(2),)),
            (jax.scipy.special.log_ndtr, (jnp.array([-20.0]),)),  # autodiff of the plain function is half of it there
        ),
    ],
)
def test_rules_of_jax_and_rules_with_integers_pass(fun, args):
    report = check_vjp(fun, args)
    assert report.ok and "fail" not in {verdict.state for verdict in report.verdicts.values()}, str(report)


@pytest.mark.slow
def test_a_slope_of_a_distribution_is_not_held_against_the_numbers_it_draws():
    report = check_vjp(lambda a: jax.random.gamma(jax.random.key(0), a), (jnp.array([1.5, 2.5]),))
    assert report.headline == "unchecked"


def test_a_forward_rule_that_is_not_linear_is_named():
    @jax.custom_jvp
    def rule(x):
        return jnp.sin(x)

    rule.defjvp(lambda at, along: (rule(*at), jnp.cos(at[0]) * along[0] * jnp.abs(along[0])))
    report = check_vjp(rule, (RISING,))
    assert failures(report) == {"structure"} and "linear in its tangents" in report.verdicts["structure"].reason
    assert not check_vjp(custom(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, c: (c * jnp.sin(x),)), (RISING,)).ok
