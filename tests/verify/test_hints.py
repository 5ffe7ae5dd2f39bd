"""How is a wrong gradient wrong? The usual slips, and those that only a change of autodiff's own program explains."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minijaxnet import check_grad, check_vjp
from minijaxnet.verify.hints.slips import Wrong, explain, guess

# --- The usual slips --------------------------------------------------------------------------------------------------

TRUTH = np.random.default_rng(3).normal(size=(4, 4))
OTHER = np.random.default_rng(4).normal(size=(4, 4))
PARAMS = np.random.default_rng(5).normal(size=(4, 4))
INDEX = np.array([0, 2, 2, 1])


def hint_for(hand, reference=TRUTH, *, params=PARAMS):
    wrong = ~(np.abs(hand - reference) <= 1e-12) if hand.shape == reference.shape else np.ones(hand.shape, bool)
    others = {"['other']": OTHER}
    arguments = {"args[0]": params, "x": OTHER + 1, "index": INDEX, "batch": np.ones((7, 4))}
    slip = Wrong("[0]", hand, reference, np.full(reference.shape, 1e-14), wrong, params, others, arguments)
    return explain(slip) or guess(slip)


def changed_at(index, by=1.0):
    hand = TRUTH.copy()
    hand[index] += by
    return hand


@pytest.mark.parametrize(
    ("hand", "words"),
    [
        (-TRUTH, "sign is wrong"),
        (2 * TRUTH, "factor 2"),
        (TRUTH / 2, "factor 1/2"),
        (7 * TRUTH, "n = 7.*batch"),
        (TRUTH / 7, "1/7.*batch"),
        (1.2345 * TRUTH, r"1\.2345 times"),
        (0 * TRUTH, "zero everywhere"),
        (TRUTH.T, "transposed"),
        (OTHER, r"\['other'\].*swapped"),
        (changed_at((1, 2)), r"one element is wrong, \(1, 2\)"),
        (changed_at(3), "one slice is wrong, index 3 of axis 0"),
        (changed_at((slice(None), 1)), "one slice is wrong, index 1 of axis 1"),
        (changed_at((0, 0), np.nan), "not finite in 1 of 16"),
        (np.where(PARAMS > 0, TRUTH, 3 * TRUTH), "right only where x > 0"),
        (np.where(np.abs(PARAMS) > 0.5, TRUTH + 1, TRUTH), "wrong from .* on: a branch for large"),
        (TRUTH - 0.25 * PARAMS, "missing: 0.25 times the argument itself"),
        (TRUTH + 0.25 * np.sign(PARAMS), "too many: 0.25 times the sign"),
        (TRUTH + 3 * OTHER, r"too many: 3 times the gradient of \['other'\]"),
        (TRUTH * (OTHER + 1), "a factor x too many"),
        (np.abs(TRUTH), "absolute value"),
    ],
)
def test_a_slip_is_named(hand, words):
    assert re.search(words, hint_for(hand)), hint_for(hand)


def test_a_slip_that_is_none_of_the_usual_ones_has_no_name():
    assert hint_for(np.random.default_rng(9).normal(size=(4, 4))) == ""


# --- A change of autodiff's own program -------------------------------------------------------------------------------

X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
MATRIX = np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32)
WEIGHTS = np.random.default_rng(2).normal(size=(5, 3)).astype(np.float32)


def centred(x, axis=0):
    return jnp.sum(WEIGHTS * (x - jnp.mean(x, axis, keepdims=True)) ** 2)


def quadratic(x, a):
    return x @ a @ x


def along_the_other_axis(x):
    return jax.grad(lambda x: centred(x, axis=1))(x)


@functools.cache
def report_on(loss, gradient, *args):
    return check_grad(loss, gradient, tuple(ARGS[name] for name in args))


ARGS = {"x": X, "row": X[0], "matrix": MATRIX}


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("loss", "gradient", "args", "words"),
    [
        (centred, along_the_other_axis, ["x"], "wrong axis: .* axis 1 where .* over axis 0"),
        (quadratic, lambda x, a: 2 * a @ x, ["row", "matrix"], "a term is missing.*as if they were equal"),
    ],
    ids=["another axis", "as if symmetric"],
)
def test_the_change_that_makes_autodiff_the_rule_is_named(loss, gradient, args, words):
    report = report_on(loss, gradient, *args)
    assert not report.ok
    assert any(re.search(words, hint) for hint in report.hints), report.hints


def test_the_line_of_the_loss_is_named():
    report = report_on(centred, along_the_other_axis, "x")
    assert "test_hints.py:" in report.hints[0] and "centred" in report.hints[0]


def test_a_cotangent_that_is_ignored_is_named_by_its_output():
    @jax.custom_vjp
    def both(x):
        return jnp.sin(x), jnp.sum(jnp.exp(x))

    both.defvjp(lambda x: (both(x), x), lambda x, c: (c[0] * jnp.cos(x),))
    assert check_vjp(both, (X[0],)).hints == ("x: the cotangent of output 1 is ignored",)


@SLOW
def test_a_rule_that_is_wrong_everywhere_and_in_no_usual_way_has_no_hint():
    assert check_grad(centred, lambda x: jnp.cos(17 * x) - x**3, (X,)).hints == ()


FIVE = np.array([-0.0635, 1.2492, 1.988, -0.0534, -0.2392])


def hint_for_five(difference):
    reference = np.array([0.9, -1.3, 2.1, 0.4, -0.7])
    wrong = difference != 0
    slip = Wrong("x", reference + difference, reference, np.full(5, 1e-16), wrong, FIVE, {}, {})
    return explain(slip) or guess(slip)


@pytest.mark.parametrize("signs", [(1.0, 2.0, -1.5, 0.5, 3.0), (-1.0, 2.0, 1.5, 0.5, -3.0)])
def test_what_is_named_is_the_whole_of_the_difference_however_small_that_is(signs):
    """A slip of less than a billionth is within a billionth of any factor and any constant: no evidence for one."""
    assert hint_for_five(1e-10 * np.array(signs)) == ""
    assert "1e-10 times the argument itself, as in weight decay" in hint_for_five(1e-10 * FIVE)


@pytest.mark.parametrize(
    ("order", "words"),
    [((slice(None), [1, 0, 2]), "along axis 1"), (np.array([0, 2, 1, 3]), "along axis 0.* 0, 2, 1, 3$")],
)
def test_slices_in_another_order_are_named(order, words):
    weights = np.arange(12.0).reshape(4, 3) ** 2 + 1
    wrong = lambda w: (weights * jnp.cos(w))[order]  # noqa: E731
    (hint,) = check_grad(lambda w: jnp.sum(weights * jnp.sin(w)), wrong, (jnp.float32(np.sqrt(weights)),)).hints
    assert re.search("in another order " + words, hint)
