"""What the checker has to say beside right and wrong, on code as people write it."""

import re

import jax
import jax.numpy as jnp
import pytest
from corpora import CODE
from corpora.forms import AN_INTEGER, X, activation, back_of_activation, back_of_power, power, rule_of
from corpora.host import NO_REFERENCE, TABLE
from corpora.kit import custom, f32
from kits.marks import SLOW
from kits.reports import failures

import minijaxnet as mjn
from minijaxnet import check_grad, check_vjp


def report_on(kind, name):
    (case,) = [case for case in CODE[kind].cases if case.name == name]
    return case.report()


@pytest.mark.parametrize(
    ("kind", "name", "words", "least", "most"),
    [
        ("computed beforehand", "shares normalised outside", "constant", 1e-12, 1e-5),
        SLOW("computed beforehand", "rotary embedding by a table", "constant", 1e-12, 1e-5),
        ("host callbacks", "error function and its slope by SciPy", "float32|digits", 1e-9, 1e-4),
    ],
)
def test_the_report_says_what_was_rounded_before_and_what_that_hides(kind, name, words, least, most):
    report = report_on(kind, name)
    assert re.search(words, report.verdicts["algebra"].reason), str(report)
    (leaf,) = report.leaves.values()
    assert least < leaf.blind < most  # the digits of float32, not of float64


def test_a_factor_beside_rounded_constants_has_its_hint():
    hints = report_on("computed beforehand", "shares normalised outside, twice as large").hints
    assert any(re.search("2 times|twice", hint) for hint in hints)


# --- Static arguments -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["NumPy", SLOW("array"), SLOW("JAX")])
def test_an_array_where_a_number_has_to_be_known_is_taken_or_the_lambda_is_shown(kind):
    try:
        report = check_vjp(rule_of(power, back_of_power), (X, AN_INTEGER[kind]))
    except (TypeError, ValueError) as error:
        assert "lambda" in str(error), str(error)
        assert not re.search("Computation compiled for|LinearizeTracer|not a valid JAX type", str(error)), str(error)
    else:
        assert report.ok and len(report.leaves) == 1, str(report)


def test_an_error_of_the_function_itself_comes_through():
    with pytest.raises(ValueError, match="name: got 'swish'; expected one of"):
        check_vjp(rule_of(activation, back_of_activation), (X, "swish"))


# --- Without a reference ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["interpreted", SLOW("as it is")])
def test_a_kernel_without_a_reference_is_judged_by_differences_or_asks_for_one(how):
    try:
        report = check_vjp(NO_REFERENCE[how], (TABLE,))
    except ValueError as error:
        assert "reference=" in str(error)
    else:
        assert report.ok and "finite differences" in report.verdicts["algebra"].reason, str(report)


def test_finite_differences_say_how_exact_they_are_and_that_a_reference_is_sharper():
    report = check_vjp(jnp.sort, (X,))
    assert re.search(r"finite differences.*\de-\d.*reference=", report.verdicts["algebra"].reason), str(report)
    (leaf,) = report.leaves.values()
    assert 0 < leaf.blind < 1e-5


# --- How it reads -----------------------------------------------------------------------------------------------------


def test_arguments_go_by_their_names_and_a_hint_for_several_is_given_once():
    def sloped(x, scale):
        return jnp.tanh(x) * scale

    ruled = custom(
        sloped,
        lambda x, scale: (sloped(x, scale), (x, scale)),
        lambda s, c: (2 * c * s[1] * (1 - jnp.tanh(s[0]) ** 2), 2 * jnp.sum(c * jnp.tanh(s[0]))),
    )
    with pytest.raises(mjn.GradientMismatch) as raised:
        mjn.assert_vjp(lambda x, scale: ruled(x, scale), (X, f32(0.7)[0]))
    report, first = raised.value.report, str(raised.value).splitlines()[0]
    assert failures(report) == {"algebra"} and [*report.leaves] == ["x", "scale"]
    assert report.hints == ("scale, x: twice what it should be: a factor 2",)
    assert re.match(r"scale: .* by hand, .* by autodiff: twice", first), first


# --- What rounding hides ----------------------------------------------------------------------------------------------

POINT, SCALES = jnp.float32(0.3), jnp.float32([1e-3, 1, 1e3])


def logistic_map(x, slope=lambda x: x * (1 - x)):
    return jax.lax.scan(lambda x, _: (3.9 * slope(x), x), x, None, length=60)[0]


@pytest.mark.parametrize(
    ("loss", "gradient"),
    [
        pytest.param(lambda x: jnp.sin(1e10 * x), lambda x: 0 * x, id="rounding as large as the gradient"),
        SLOW(logistic_map, jax.grad(lambda x: logistic_map(x, lambda x: x - x * x)), id="chaos"),
    ],
)
def test_what_rounding_hides_is_unchecked(loss, gradient):
    report = check_grad(loss, gradient, (POINT,))
    assert report.headline == "unchecked", str(report)
    assert "rounding errors may be as large" in report.verdicts["algebra"].reason


def test_the_small_one_of_constants_in_float32_is_found_wrong():
    wrong = lambda x: 2 * SCALES * x * jnp.array([-1.0, 1, 1])  # noqa: E731
    assert "algebra" in failures(check_grad(lambda x: jnp.sum(SCALES * x**2), wrong, (f32(0.3, -0.2, 0.6),)))


RISING = jnp.arange(3.0)


@pytest.mark.parametrize(
    ("loss", "gradient", "x"),
    [
        (
            lambda x: jnp.sum(RISING * jnp.sort(x)),
            lambda x: jnp.zeros(3).at[jnp.argsort(-x)[::-1]].set(RISING),
            jnp.ones(3),
        ),
        (lambda x: jnp.linalg.norm(x) ** 2, lambda x: 2 * x, jnp.zeros(3)),
        SLOW(lambda x: jnp.sum(jnp.array([299792458.0]) * x**2), lambda x: 2 * 299792458.0 * x, POINT[None]),
    ],
    ids=["three equals, put in another order", "autodiff NaN, a gradient of zeros", "a large constant"],
)
def test_a_right_rule_passes_at_an_awkward_point(loss, gradient, x):
    report = check_grad(loss, gradient, (x,))
    assert report.ok, str(report)


@pytest.mark.parametrize("root", [0.7978845608, SLOW(0.79788)])
def test_a_constant_of_ten_digits_is_taken_for_rounded_and_one_of_five_for_wrong(root):
    def gelu(x):
        return 0.5 * x * (1 + jnp.tanh(jnp.sqrt(2 / jnp.pi) * (x + 0.044715 * x**3)))

    def by_hand(x):
        t = jnp.tanh(root * (x + 0.044715 * x**3))
        return 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * root * (1 + 3 * 0.044715 * x**2)

    assert check_grad(lambda x: jnp.sum(gelu(x)), by_hand, (RISING - 1,)).ok == (root > 0.79788)


@pytest.mark.slow
def test_a_gradient_of_a_distribution_is_not_compared_with_the_numbers_it_draws():
    report = check_vjp(lambda a: jax.random.gamma(jax.random.key(0), a), (jnp.array([1.5, 2.5]),))
    assert report.headline == "unchecked"


@jax.custom_jvp
def picked(x, index):
    return 2 * x[index]


picked.defjvp(lambda at, along: (picked(*at), 2 * along[0][at[1]]))


@pytest.mark.parametrize(
    ("fun", "args"),
    [(picked, (jnp.ones(4), jnp.array([0, 2, 2]))), SLOW(jax.scipy.special.log_ndtr, (jnp.array([-20.0]),))],
)
def test_rules_with_integers_and_rules_of_jax_pass(fun, args):
    report = check_vjp(fun, args)
    assert report.ok and failures(report) == set(), str(report)


def test_a_forward_rule_that_is_not_linear_is_named():
    rule = jax.custom_jvp(lambda x: jnp.sin(x))
    rule.defjvp(lambda at, along: (rule(*at), jnp.cos(at[0]) * along[0] * jnp.abs(along[0])))
    report = check_vjp(rule, (RISING,))
    assert failures(report) == {"structure"} and "linear in its tangents" in report.verdicts["structure"].reason
