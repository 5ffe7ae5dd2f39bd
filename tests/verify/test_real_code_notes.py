"""What the checker has to say beside right and wrong, on code as people write it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from corpora.real_callbacks import KIND as CALLBACKS
from corpora.real_callbacks import NOISE, SHAKEN
from corpora.real_constants import BEFOREHAND
from corpora.real_kit import f32, ruled
from corpora.real_pallas import NO_REFERENCE, NO_REFERENCE_AS_IT_IS, X
from corpora.real_static import activation, back_of_activation, power, rule_of
from kits.marks import SLOW
from kits.reports import failures, states

import minijaxnet as mjn


def named(kind, *names):
    cases = {case.name: case for case in kind.cases}
    return [pytest.param(cases[name], id=name, marks=[pytest.mark.slow] if cases[name].slow else []) for name in names]


def those(kind, right=True):
    return named(kind, *(case.name for case in kind.cases if case.right == right))


# --- Rules that do not repeat themselves ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", those(NOISE))
def test_little_noise_counts_as_rounding_and_is_told(case):
    report = case.report()
    assert failures(report) <= {"repeatable"}, str(report)
    assert states(report, "algebra") == {"algebra": "pass"}, str(report)
    assert report.verdicts["repeatable"].state != "pass"
    assert re.search(r"\de-\d", report.verdicts["repeatable"].reason), str(report)


@pytest.mark.parametrize("case", those(NOISE, right=False))
def test_a_slip_beside_little_noise_is_found(case):
    report = case.report()
    assert "repeatable" in report.verdicts
    assert "algebra" in failures(report), str(report)


@pytest.mark.parametrize("case", those(SHAKEN))
def test_much_noise_is_told(case):
    report = case.report()
    assert report.verdicts["repeatable"].state != "pass"


def test_what_repeats_itself_is_not_called_otherwise():
    report = mjn.check_grad(lambda w: jnp.sum(w**3), lambda w: 3 * w**2, (f32(0.3, -1.2),))
    assert "repeatable" not in report.verdicts or report.verdicts["repeatable"].state == "pass"


# --- Constants and callbacks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", named(BEFOREHAND, "shares normalised outside", "rotary embedding by a table"))
def test_the_report_says_that_constants_have_been_rounded_before(case):
    report = case.report()
    assert re.search("constant", str(report)), str(report)
    (leaf,) = report.leaves.values()
    assert 1e-12 < leaf.blind < 1e-5  # the floor is that of float32 constants, not of float64


def test_a_factor_beside_rounded_constants_has_its_hint():
    (case,) = [case for case in BEFOREHAND.cases if case.name == "shares normalised outside, twice as large"]
    assert any(re.search("2 times|twice", hint) for hint in case.report().hints)


@pytest.mark.parametrize("case", named(CALLBACKS, "error function and its slope by SciPy"))
def test_the_report_says_to_how_many_digits_a_callback_is_judged(case):
    report = case.report()
    assert re.search("float32|digits", report.verdicts["algebra"].reason), str(report)
    (leaf,) = report.leaves.values()
    assert 1e-9 < leaf.blind < 1e-4


# --- Static arguments -------------------------------------------------------------------------------------------------

RULE_OF_POWER = rule_of(power, lambda n, x, c: n * x ** (n - 1) * c)
HIDDEN = "Computation compiled for|LinearizeTracer|not a valid JAX type"


def checked_or_told(fun, args):
    """Right, or an error that shows the lambda to write and hides nothing."""
    try:
        report = mjn.check_vjp(fun, args)
    except (TypeError, ValueError) as error:
        assert "lambda" in str(error), str(error)
        assert not re.search(HIDDEN, str(error)), str(error)
    else:
        assert report.ok, str(report)


@pytest.mark.parametrize("number", [np.int32(3), SLOW(np.array(3)), SLOW(jnp.int32(3))], ids=["NumPy", "array", "JAX"])
def test_an_array_where_a_number_has_to_be_known_is_taken_or_the_lambda_is_shown(number):
    checked_or_told(RULE_OF_POWER, (f32(0.5, -1.2), number))


def branching(x, slope):
    if slope < 0:
        raise ValueError("slope: got a negative number")
    return jax.nn.relu(x) - slope * jax.nn.relu(-x)


@pytest.mark.slow
def test_a_number_that_plain_python_branches_on_is_taken_or_the_lambda_is_shown():
    checked_or_told(branching, (f32(0.5, -1.2), 0.1))


def test_an_error_of_the_function_itself_comes_through():
    rule = rule_of(activation, back_of_activation)
    with pytest.raises(ValueError, match="name: got 'swish'; expected one of"):
        mjn.check_vjp(rule, (f32(0.5, -1.2), "swish"))


@pytest.mark.slow
def test_an_error_of_the_rule_itself_comes_through():
    def backward(n, x, c):
        raise RuntimeError(f"no slope for {n}")

    with pytest.raises(RuntimeError, match="no slope for 3"):
        mjn.check_vjp(rule_of(power, backward), (f32(0.5, -1.2), 3))


def test_only_arrays_have_a_leaf():
    report = mjn.check_vjp(RULE_OF_POWER, (f32(0.5, -1.2), 3))
    assert len(report.leaves) == 1


# --- Kernels without a reference --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fun", [NO_REFERENCE, SLOW(NO_REFERENCE_AS_IT_IS)], ids=["interpreted", "as it is"])
def test_a_kernel_without_a_reference_is_judged_by_differences_or_asks_for_one(fun):
    try:
        report = mjn.check_vjp(fun, (X,))
    except ValueError as error:
        assert "reference=" in str(error)
    else:
        assert report.ok, str(report)
        assert "finite differences" in report.verdicts["algebra"].reason


# --- No reference at all ----------------------------------------------------------------------------------------------


def test_finite_differences_say_how_exact_they_are_and_that_a_reference_is_sharper():
    report = mjn.check_vjp(jnp.sort, (f32(0.5, -1.2, 2.0),))
    assert re.search(r"finite differences.*\de-\d", report.verdicts["algebra"].reason), str(report)
    assert "reference=" in str(report)
    (leaf,) = report.leaves.values()
    assert 0 < leaf.blind < 1e-5


# --- How it reads -----------------------------------------------------------------------------------------------------


def sloped(x, scale):
    return jnp.tanh(x) * scale


def rule_of_sloped(factor):
    return ruled(
        sloped,
        lambda x, scale: (sloped(x, scale), (x, scale)),
        lambda s, c: (factor * c * s[1] * (1 - jnp.tanh(s[0]) ** 2), factor * jnp.sum(c * jnp.tanh(s[0]))),
    )


def twice_as_large(x, scale):
    return rule_of_sloped(2.0)(x, scale)


ARGS = (f32(0.5, -1.2, 2.0), f32(0.7)[0])


def test_arguments_go_by_their_names_and_a_hint_for_several_is_given_once():
    report = mjn.check_vjp(twice_as_large, ARGS)
    assert {"algebra"} == failures(report)
    assert re.search(r"\bscale\b", str(report)) and re.search(r"\bx\b", str(report))
    assert sum("2 times" in hint or "twice" in hint for hint in report.hints) == 1, str(report)


def test_the_first_line_of_the_error_has_leaf_size_and_hint():
    with pytest.raises(mjn.GradientMismatch) as raised:
        mjn.assert_vjp(twice_as_large, ARGS)
    first = str(raised.value).splitlines()[0]
    assert re.search(r"\bx\b|\bscale\b", first), first
    assert re.search(r"\d", first) and re.search("2 times|twice", first), first


@pytest.mark.slow
def test_sizes_in_last_places_that_say_nothing_are_left_out():
    report = mjn.check_grad(lambda w: jnp.sum(w**3), lambda w: 3 * w**2 + 1, (f32(0, 0),))
    assert "algebra" in failures(report)
    assert not re.search(r"e[+]?[2-9]\d ulps", str(report)), str(report)
