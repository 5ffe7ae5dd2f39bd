"""The gradient checker: what is wrong it finds and names, what is right it never accuses."""

import functools
import itertools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kits.reports import check_grad_at, passes, states, wrong_leaves

import minijaxnet as mjn
from minijaxnet import check_grad

# --- A two-layer network whose matrices are all square, so that a slip need not show in a shape ----------------------

WIDTH = 3
DECAY = 0.25


def loss_of(params, batch, slip):
    hidden = batch[0] @ params["into"] + params["bias"]
    return jnp.mean((hidden @ params["out"] - batch[1]) ** 2) + DECAY * jnp.sum(params["into"] ** 2)


def gradient_of(params, batch, slip):
    """The gradient by hand, with a slip of the pen in a leaf: which of those in ``SLIPS``, counted in its leaf."""
    x, y = batch
    hidden = x @ params["into"] + params["bias"]
    slope = 2 * (hidden @ params["out"] - y) / y.size
    delta = slope @ params["out"].T
    no_decay = x.T @ delta
    into, bias, out = no_decay + 2 * DECAY * params["into"], jnp.sum(delta, axis=0), hidden.T @ slope
    slips = {
        "into": [into, 2 * into, out, no_decay, into.at[2].set(0)],
        "bias": [bias, 2 * bias, -bias, jnp.mean(delta, axis=0), jnp.sum(delta, axis=1)],
        "out": [out, 2 * out, into, out.at[1, 2].multiply(1 + 1e-6), out.T],
    }
    return {leaf: jnp.stack(slips[leaf])[slip[leaf]] for leaf in params}


# Which slip is in which leaf, and what the hint says.
SLIPS = {
    "none": ({}, ""),
    "a factor of two": ({"into": 1, "bias": 1, "out": 1}, "twice what it should be: a factor 2"),
    "layers swapped": ({"into": 2, "out": 2}, r"it is the gradient of \['out'\]: are the two swapped"),
    "no weight decay": ({"into": 3}, "missing.* 0.5 times"),
    "a row of zeros": ({"into": 4}, "one slice is wrong, index 2 of axis 0"),
    "sign of a bias": ({"bias": 2}, "the sign is wrong: a factor -1"),
    "mean for sum": ({"bias": 3}, "mean .* sum"),
    "bias over the wrong axis": ({"bias": 4}, "axis 1 .* axis 0"),
    "one element by a millionth": ({"out": 3}, r"one element is wrong, \(1, 2\)"),
    "transposed weights": ({"out": 4}, "transposed"),
}


@functools.cache
def report_on_slips(dtype="float32"):
    """A report for each slip. Which one it is, is an argument: one compiled program serves all, in every dtype."""
    draw, leaves = np.random.default_rng(0), ("into", "bias", "out")
    names = SLIPS if dtype == "float32" else ["none", "one element by a millionth"]
    with jax.enable_x64(dtype == "float64"):

        def normal(*shape):
            return jnp.asarray(draw.normal(size=shape), dtype)

        params = {"into": normal(WIDTH, WIDTH), "bias": normal(WIDTH), "out": normal(WIDTH, WIDTH)}
        batch = normal(WIDTH, WIDTH), normal(WIDTH, WIDTH)
        slips = {name: {leaf: np.int32(SLIPS[name][0].get(leaf, 0)) for leaf in leaves} for name in names}
        return check_grad_at(loss_of, gradient_of, {name: (params, batch, slip) for name, slip in slips.items()})


DTYPES = ["float32", *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in ("bfloat16", "float64"))]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_right_rule_passes_in_every_dtype(dtype):
    report = report_on_slips(dtype)["none"]
    assert states(report) == passes("structure", "algebra", "precision", "oracle", "transforms"), str(report)
    assert report.ok and report.hints == ()
    assert all(leaf.ok and leaf.precision_ratio > 0 for leaf in report.leaves.values())


@pytest.mark.parametrize("slip", [*SLIPS][1:])
def test_a_slip_is_found_and_its_leaves_are_named(slip):
    report, (leaves, words) = report_on_slips()[slip], SLIPS[slip]
    expected = {f"['{leaf}']" for leaf in leaves}
    assert not report.ok
    assert states(report) == {
        **passes("structure", "oracle"),
        "algebra": "fail",
        "precision": "unchecked",
        "transforms": "unchecked",
    }
    assert wrong_leaves(report) == expected
    assert all(leaf.ok == (leaf.error <= leaf.tolerance) for leaf in report.leaves.values())
    assert all(leaf.precision_ratio is None for leaf in report.leaves.values())
    assert all(path in report.verdicts["algebra"].reason for path in expected)
    worst = report.worst
    assert worst is not None and worst.path in expected
    assert worst.finite_difference == pytest.approx(worst.reference, rel=1e-6)
    assert {path for hint in report.hints for path in hint.split(": ")[0].split(", ")} <= expected
    assert any(re.search(words, hint) for hint in report.hints), report.hints


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_millionth_in_one_element_is_found_in_every_dtype_and_the_element_is_named(dtype):
    report = report_on_slips(dtype)["one element by a millionth"]
    worst = report.worst
    assert worst is not None and (worst.path, worst.index) == ("['out']", (1, 2))
    assert worst.share_wrong == pytest.approx(1 / 9)
    assert worst.hand / worst.reference == pytest.approx(1 + 1e-6, rel=1e-9)
    assert "worst: ['out'][1, 2]: " in str(report)


# --- The loss beside the gradient -----------------------------------------------------------------------------------


def cubes(w):
    return jnp.sum(w**3)


def cubes_gradient(w):
    return 3 * w**2


W = np.arange(4, dtype=np.float32)


def test_a_wrong_loss_beside_a_right_gradient_fails_primal_alone():
    def by_hand(w, number):
        loss = cubes(w)
        return jnp.stack([loss * (1 + 1e-9), loss + 1, -loss, loss * jnp.nan])[number], cubes_gradient(w)

    wrong = ("a billionth", "one too many", "negated", "NaN")
    points = {name: (W, jnp.int32(number)) for number, name in enumerate(wrong)}
    for name, report in check_grad_at(lambda w, number: cubes(w), by_hand, points, has_value=True).items():
        assert not report.ok, name
        assert states(report) == {
            **passes("structure", "primal", "algebra", "precision", "oracle", "transforms"),
            "primal": "fail",
        }, f"{name}\n{report}"
        assert "value by hand is not the loss's" in report.hints[0], name
        assert "36" in report.verdicts["primal"].reason, name


def test_a_loss_with_aux_is_checked_as_well():
    def loss(w, factor):
        return cubes(w), {"hidden": w, "count": 3}

    points = {factor: (W, np.float32(factor)) for factor in (1, 2)}
    reports = check_grad_at(loss, lambda w, factor: factor * cubes_gradient(w), points, has_aux=True)
    assert {factor: report.ok for factor, report in reports.items()} == {1: True, 2: False}


# --- Several points ---------------------------------------------------------------------------------------------------


def test_several_points_have_the_reports_they_have_one_by_one():
    def gradient(w):
        return cubes_gradient(w) * jnp.where(w > 5, 2, 1)

    points = {"small": (W[:3],), "large": (W[:3] + 5,)}
    reports = check_grad_at(cubes, gradient, points)
    assert {name: wrong_leaves(report) for name, report in reports.items()} == {"small": set(), "large": {"w"}}
    for name, args in points.items():
        assert check_grad(cubes, gradient, args).to_dict() == reports[name].to_dict()


# --- The process is left as it was ------------------------------------------------------------------------------------


@pytest.mark.parametrize("x64", [False, True])
def test_no_flag_is_changed_whether_the_check_returns_or_raises(x64):
    calls = itertools.count()

    def raising(w):
        if next(calls):  # the first call is by shape alone
            raise RuntimeError("in the middle")
        return cubes_gradient(w)

    before = dict(jax.config.values)
    with jax.enable_x64(x64):
        check_grad(cubes, cubes_gradient, (jnp.arange(4.0),))
        with pytest.raises(RuntimeError, match="in the middle"):
            check_grad(cubes, raising, (W,))
        assert jax.config.jax_enable_x64 is x64
        assert jnp.ones(1).dtype == (jnp.float64 if x64 else jnp.float32)
    assert not jax.config.jax_enable_x64
    assert dict(jax.config.values) == before


def test_a_check_works_where_jit_is_disabled():
    with jax.disable_jit():
        assert check_grad(cubes, cubes_gradient, (W,)).ok


def test_the_arguments_are_left_as_they_were_and_the_same_seed_gives_the_same_report():
    args = ({"a": jnp.arange(1.0, 3), "b": jnp.array([[0.1, -2.0]])},)
    before = jax.tree.map(np.array, args)

    def bowls(w):
        return jnp.sum(w["a"] ** 2) + jnp.sum(w["b"] ** 2)

    def gradient(w):
        return jax.tree.map(lambda leaf: 2 * leaf, w)

    first, again = (check_grad(bowls, gradient, args, seed=5).to_dict() for _ in range(2))
    assert first == again
    chex.assert_trees_all_equal(args, before, strict=True)


def test_assert_grad_is_silent_on_a_right_rule_and_raises_the_whole_report_of_a_wrong_one():
    mjn.assert_grad(cubes, cubes_gradient, (W,))
    with pytest.raises(mjn.GradientMismatch, match="NOT RIGHT") as raised:
        mjn.assert_grad(cubes, lambda w: 2 * cubes_gradient(w), (W,))
    assert isinstance(raised.value, AssertionError)
    first, rest = str(raised.value).split("\n\n", 1)
    assert first == "w[1]: 6 by hand, 3 by autodiff: twice what it should be: a factor 2"
    assert rest == str(raised.value.report)
    assert raised.value.report.hints == ("w: twice what it should be: a factor 2",)
