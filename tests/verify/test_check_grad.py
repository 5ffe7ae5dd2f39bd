"""The gradient checker: what is wrong it finds and names, what is right it never accuses."""

import functools
import itertools
import json
import math
import re
from concurrent.futures import ThreadPoolExecutor

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minijaxnet as mjn
from minijaxnet import check_grad
from minijaxnet.verify import GradReport, LeafReport, Verdict
from minijaxnet.verify.check import check_grad_at
from minijaxnet.verify.hints import Wrong, explain
from minijaxnet.verify.interpret import Moves, interpret
from minijaxnet.verify.oracle import derivative

# --- A two-layer network whose matrices are all square, so that a slip need not show in a shape ----------------------

WIDTH = 3
DECAY = 0.25


def loss_of(params, batch):
    hidden = jnp.tanh(batch[0] @ params["into"] + params["bias"])
    return jnp.mean((hidden @ params["out"] - batch[1]) ** 2) + DECAY * jnp.sum(params["into"] ** 2)


def gradient_of(params, batch, slip=None):
    """The gradient by hand, with one slip of the pen if one is asked for; a number is its place in ``SLIPS``."""
    x, y = batch
    hidden = jnp.tanh(x @ params["into"] + params["bias"])
    slope = 2 * (hidden @ params["out"] - y) / y.size
    forgetful = slope @ params["out"].T
    delta = forgetful * (1 - hidden) * (1 + hidden)
    decay = 2 * DECAY * params["into"]
    gradient = {"into": x.T @ delta + decay, "bias": jnp.sum(delta, axis=0), "out": hidden.T @ slope}
    slipped = functools.partial(with_slip, gradient, x, delta, forgetful, decay)
    if isinstance(slip, str | None):
        return slipped(slip)
    return jax.lax.switch(slip, [functools.partial(slipped, name) for name in SLIPS])


def with_slip(gradient, x, delta, forgetful, decay, slip):
    gradient = dict(gradient)
    match slip:
        case "one element by a millionth":
            gradient["out"] = gradient["out"].at[1, 2].multiply(1 + 1e-6)
        case "sign of a bias":
            gradient["bias"] = -gradient["bias"]
        case "transposed weights":
            gradient["out"] = gradient["out"].T
        case "mean for sum":
            gradient["bias"] = jnp.mean(delta, axis=0)
        case "no weight decay":
            gradient["into"] = x.T @ delta
        case "a row of zeros":
            gradient["into"] = gradient["into"].at[2].set(0)
        case "bias over the wrong axis":
            gradient["bias"] = jnp.sum(delta, axis=1)
        case "layers swapped":
            gradient["into"], gradient["out"] = gradient["out"], gradient["into"]
        case "a factor of two":
            gradient = jax.tree.map(lambda leaf: 2 * leaf, gradient)
        case "an activation's slope forgotten":
            gradient["into"], gradient["bias"] = x.T @ forgetful + decay, jnp.sum(forgetful, axis=0)
        case _:
            assert slip is None
    return gradient


SLIPS = {
    "one element by a millionth": {"out"},
    "sign of a bias": {"bias"},
    "transposed weights": {"out"},
    "mean for sum": {"bias"},
    "no weight decay": {"into"},
    "a row of zeros": {"into"},
    "bias over the wrong axis": {"bias"},
    "layers swapped": {"into", "out"},
    "a factor of two": {"into", "bias", "out"},
    "an activation's slope forgotten": {"into", "bias"},
}
HINTS = {
    "one element by a millionth": r"one element is wrong, \(1, 2\)",
    "sign of a bias": "the sign is wrong: a factor -1",
    "transposed weights": "transposed",
    "mean for sum": "mean .* sum",
    "no weight decay": "missing.* 0.5 times",
    "a row of zeros": "one slice is wrong, index 2 of axis 0",
    "bias over the wrong axis": "axis 1 .* axis 0",
    "layers swapped": r"it is the gradient of \['out'\]: the two are swapped",
    "a factor of two": "twice what it should be: a factor 2",
}


@functools.cache
def report_of_slips():
    """A report for each slip. Which one it is, is an argument: one compiled program serves all."""
    points = {slip: (*point(), jnp.int32(number)) for number, slip in enumerate(SLIPS)}
    return check_grad_at(lambda params, batch, slip: loss_of(params, batch), gradient_of, points)


def point(dtype=jnp.float32, seed=0):
    draw = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(draw.normal(size=shape), dtype)

    params = {"into": normal(WIDTH, WIDTH), "bias": normal(WIDTH), "out": normal(WIDTH, WIDTH)}
    return params, (normal(WIDTH, WIDTH), normal(WIDTH, WIDTH))


def states(report, *names):
    """The states of the verdicts concerned; of all without names."""
    return {name: report.verdicts[name].state for name in names or report.verdicts}


def passes(*names):
    return dict.fromkeys(names, "pass")


def wrong_leaves(report):
    assert all(leaf.ok == (leaf.error <= leaf.tolerance) for leaf in report.leaves.values())
    return {path for path, leaf in report.leaves.items() if not leaf.ok}


def cubes(w):
    return jnp.sum(w**3)


def cubes_gradient(w):
    return 3 * w**2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64], ids=["float32", "bfloat16", "float64"])
def test_a_right_rule_passes_in_every_dtype(dtype):
    with jax.enable_x64(dtype is jnp.float64):
        report = check_grad(loss_of, gradient_of, point(dtype))
    assert states(report) == passes("structure", "algebra", "precision", "oracle", "transforms"), str(report)
    assert report.ok and report.hints == ()
    assert all(leaf.ok and leaf.precision_ratio > 0 for leaf in report.leaves.values())


def test_a_right_rule_for_a_real_network_passes_with_its_loss():
    sizes, classes = (3, 4, 2), jnp.array([0, 1, 1, 0])  # relu: where it has its kink, below
    network = mjn.mlp(sizes, activation=jnp.tanh)
    params, x = network.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (4, 3))
    objective = mjn.objective(network, mjn.softmax_cross_entropy)
    by_hand = mjn.mlp_gradient(sizes, activation=jnp.tanh, loss=mjn.softmax_cross_entropy)
    report = check_grad(objective, by_hand, (params, mjn.Batch(x, classes)), has_value=True)
    assert report.ok, str(report)
    assert states(report)["primal"] == "pass"


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_found_and_its_leaves_are_named(slip):
    report = report_of_slips()[slip]
    expected = {f"['{leaf}']" for leaf in SLIPS[slip]}
    assert not report.ok
    assert states(report, "structure", "algebra") == {"structure": "pass", "algebra": "fail"}
    assert states(report, "precision", "transforms") == {"precision": "unchecked", "transforms": "unchecked"}
    assert states(report, "oracle") == passes("oracle")
    assert wrong_leaves(report) == expected
    assert all(leaf.precision_ratio is None for leaf in report.leaves.values())
    assert all(path in report.verdicts["algebra"].reason for path in expected)
    worst = report.worst
    assert worst is not None and worst.path in expected
    assert worst.finite_difference == pytest.approx(worst.reference, rel=1e-6)
    assert {hint.split(": ")[0] for hint in report.hints} <= expected
    assert slip not in HINTS or any(re.search(HINTS[slip], hint) for hint in report.hints), report.hints


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64], ids=["bfloat16", "float64"])
def test_a_millionth_in_one_element_is_found_in_every_dtype_and_the_element_is_named(dtype):
    slip = "one element by a millionth"
    with jax.enable_x64(dtype is jnp.float64):
        report = check_grad(loss_of, functools.partial(gradient_of, slip=slip), point(dtype))
    worst = report.worst
    assert worst is not None and (worst.path, worst.index) == ("['out']", (1, 2))
    assert worst.share_wrong == pytest.approx(1 / 9)
    assert worst.hand / worst.reference == pytest.approx(1 + 1e-6, rel=1e-9)
    assert "worst: ['out'][1, 2]: by hand" in str(report)


def test_a_row_of_zeros_is_named_by_its_row():
    report = report_of_slips()["a row of zeros"]
    worst = report.worst
    assert worst is not None and (worst.index[0], worst.hand) == (2, 0)
    assert worst.share_wrong == pytest.approx(1 / 3)


def test_a_rule_with_a_slip_that_mlp_gradient_could_have_is_found():
    sizes = (3, 4, 2)
    network = mjn.mlp(sizes, activation=jnp.tanh, bias=False)
    params = network.init(jax.random.key(0))
    batch = jax.random.normal(jax.random.key(1), (4, 3)), jax.random.normal(jax.random.key(2), (4, 2))
    # The rule for another activation has the right structure everywhere.
    wrong = mjn.mlp_gradient(sizes, activation=jax.nn.sigmoid, loss=mjn.mean_squared_error, bias=False)
    objective = mjn.objective(network, mjn.mean_squared_error)
    report = check_grad(objective, wrong, (params, batch), has_value=True)
    assert not report.ok
    assert (states(report)["primal"], states(report)["algebra"]) == ("fail", "fail")


# --- The loss beside the gradient -----------------------------------------------------------------------------------


def test_a_wrong_loss_beside_a_right_gradient_fails_primal_alone():
    def by_hand(w, number):
        loss = cubes(w)
        return jnp.stack([loss * (1 + 1e-9), loss + 1, -loss, loss * jnp.nan])[number], cubes_gradient(w)

    wrong = ("a billionth", "one too many", "negated", "NaN")
    points = {name: (jnp.arange(4.0), jnp.int32(number)) for number, name in enumerate(wrong)}
    for name, report in check_grad_at(lambda w, number: cubes(w), by_hand, points, has_value=True).items():
        assert not report.ok, name
        assert states(report) == {
            **passes("structure", "primal", "algebra", "precision", "oracle", "transforms"),
            "primal": "fail",
        }, f"{name}\n{report}"
        assert "forward pass" in report.hints[0], name
        assert "36" in report.verdicts["primal"].reason, name


def test_without_has_value_there_is_no_verdict_on_the_loss():
    assert "primal" not in check_grad(cubes, cubes_gradient, (jnp.arange(4.0),)).verdicts


def test_a_loss_with_aux_is_checked_as_well():
    def loss(w):
        return cubes(w), {"hidden": w, "count": 3}

    assert check_grad(loss, cubes_gradient, (jnp.arange(4.0),), has_aux=True).ok
    assert not check_grad(loss, lambda w: w, (jnp.arange(4.0),), has_aux=True).ok


@pytest.mark.parametrize("kind", [lambda loss: loss[None], lambda loss: None], ids=["shape (1,)", "None"])
def test_a_loss_that_is_no_scalar_fails(kind):
    report = check_grad(cubes, lambda w: (kind(cubes(w)), cubes_gradient(w)), (jnp.arange(4.0),), has_value=True)
    assert not report.ok
    assert states(report, "structure") == {"structure": "fail"}
    assert "the value is not like the loss" in report.verdicts["structure"].reason


def test_a_loss_that_is_infinite_on_both_sides_is_the_functions_own():
    report = check_grad(
        lambda w: cubes(w) + jnp.inf, lambda w: (jnp.inf, cubes_gradient(w)), (jnp.arange(4.0),), has_value=True
    )
    assert states(report)["primal"] == "pass"


# --- Structure and arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gradient", "complaint"),
    [
        (lambda w: {"a": w["a"]}, "missing"),
        (lambda w: {**w, "c": w["a"]}, "too many"),
        (lambda w: w["a"], "expected"),
        (lambda w: {"a": w["a"][:1], "b": w["b"]}, r"\['a'\]: got float32\[1\]; expected float32\[2\]"),
        (lambda w: {"a": w["a"], "b": w["b"].astype(jnp.bfloat16)}, r"\['b'\]: got bfloat16\[3\]; expected float32"),
        (lambda w: (1.0, w), "expected"),
    ],
    ids=["missing", "too many", "bare", "shape", "dtype", "value_and_grad without has_value"],
)
def test_a_gradient_of_another_structure_fails_structure_and_is_not_compared(gradient, complaint):
    args = ({"a": jnp.ones(2), "b": jnp.ones(3)},)
    report = check_grad(lambda w: jnp.sum(w["a"]) + jnp.sum(w["b"] ** 2), gradient, args)
    assert not report.ok
    assert states(report) == {"structure": "fail", "algebra": "unchecked", "precision": "unchecked"}
    assert (report.leaves, report.worst) == ({}, None)
    with pytest.raises(AssertionError, match=complaint):
        raise AssertionError(report.verdicts["structure"].reason)


@pytest.mark.parametrize(
    ("leaf", "complaint"),
    [
        (jnp.arange(3), "got dtype int32; expected a real floating dtype"),
        (jnp.ones(3, bool), "got dtype bool; expected a real floating dtype"),
        (jnp.ones(3, complex), "got dtype complex64; complex numbers are not supported"),
    ],
)
def test_a_leaf_that_cannot_be_descended_on_is_refused_with_its_path(leaf, complaint):
    with pytest.raises(TypeError, match=rf"args\[0\]\['n'\]: {complaint}"):
        check_grad(lambda w: jnp.sum(w["w"]), lambda w: w, ({"w": jnp.ones(2), "n": leaf},))


def test_a_key_among_the_params_is_refused():
    with pytest.raises(TypeError, match=r"args\[1\].*: got dtype key<fry>"):
        check_grad(lambda w, key: jnp.sum(w), lambda w, key: w, (jnp.ones(2), jax.random.key(0)), argnums=1)


PRODUCT = jnp.array([1.0, 2.0]), jnp.array([3.0, 5.0])


def product(a, b):
    return jnp.sum(a * b**2)


def test_argnums_chooses_the_argument():
    assert check_grad(product, lambda a, b: b**2, PRODUCT).ok
    assert check_grad(product, lambda a, b: 2 * a * b, PRODUCT, argnums=1).ok
    assert not check_grad(product, lambda a, b: 2 * a * b, PRODUCT, argnums=0).ok


@pytest.mark.parametrize("argnums", [(0, 1), [0, 1]])
def test_several_argnums_take_a_tuple_of_gradients(argnums):
    assert check_grad(product, lambda a, b: (b**2, 2 * a * b), PRODUCT, argnums=argnums).ok
    report = check_grad(product, lambda a, b: (b**2, 3 * a * b), PRODUCT, argnums=argnums)
    assert wrong_leaves(report) == {"[1]"}
    report = check_grad(product, lambda a, b: b**2, PRODUCT, argnums=argnums)
    assert states(report, "structure") == {"structure": "fail"}


def test_several_argnums_may_come_in_any_order():
    assert check_grad(product, lambda a, b: (2 * a * b, b**2), PRODUCT, argnums=(1, 0)).ok


def test_a_negative_argnum_counts_from_the_end_as_in_jax_grad():
    assert check_grad(product, lambda a, b: 2 * a * b, PRODUCT, argnums=-1).ok


@pytest.mark.parametrize("argnums", [2, (0, 2), -3, True, (0, True), "a", (0, 1.0)])
def test_argnums_that_name_no_argument_are_refused_by_name(argnums):
    with pytest.raises((TypeError, ValueError), match="argnums: "):
        check_grad(product, lambda a, b: (b, a), PRODUCT, argnums=argnums)


@pytest.mark.parametrize("argnums", [1.0, None, (0, 0)], ids=str)
def test_argnums_of_another_kind_are_refused_by_name(argnums):
    with pytest.raises((TypeError, ValueError), match="argnums: "):
        check_grad(product, lambda a, b: (b, b), PRODUCT, argnums=argnums)


@pytest.mark.parametrize("order", [0, 3, True, "2"])
def test_an_order_that_is_not_1_or_2_is_refused_by_name(order):
    with pytest.raises(ValueError, match="order: got"):
        check_grad(cubes, cubes_gradient, (jnp.ones(2),), order=order)


def test_args_that_are_not_a_tuple_are_refused_by_name():
    with pytest.raises(TypeError, match=r"args: got a .*; expected a tuple"):
        check_grad(cubes, cubes_gradient, jnp.ones(2))


@pytest.mark.parametrize("loss", [lambda w: w**3, lambda w: 3, lambda w: (cubes(w), w), lambda w: None])
def test_a_function_that_is_no_scalar_loss_is_refused_by_name(loss):
    with pytest.raises(TypeError, match=r"loss: got .*; expected a real floating scalar"):
        check_grad(loss, cubes_gradient, (jnp.ones(2),))


@pytest.mark.parametrize("bad", [lambda w: cubes_gradient(w), lambda w: (1.0, 2.0, w), lambda w: None])
def test_has_value_without_a_pair_is_refused_by_name(bad):
    with pytest.raises(TypeError, match=r"gradient: got a .*; expected \(value, gradient\)"):
        check_grad(cubes, bad, (jnp.ones(2),), has_value=True)


def test_integers_booleans_and_keys_in_the_other_arguments_are_carried_along():
    def loss(w, batch, key):
        kept = jax.random.bernoulli(key, 0.5, w.shape)
        return jnp.sum(jnp.where(batch["mask"], (w * kept) ** 2, 0)[batch["index"]])

    def gradient(w, batch, key):
        kept = jax.random.bernoulli(key, 0.5, w.shape)
        counts = jnp.zeros(w.shape, w.dtype).at[batch["index"]].add(1)
        return jnp.where(batch["mask"], 2 * w * kept, 0) * counts * batch["factor"]

    batch = {"mask": jnp.array([True, False] * 4), "index": jnp.array([0, 0, 2, 3, 4, 5, 6])}
    points = {
        name: (jnp.linspace(0.1, 1, 8), {**batch, "factor": jnp.float32(factor)}, jax.random.key(3))
        for name, factor in {"right": 1, "a millionth too much": 1 + 1e-6}.items()
    }
    reports = check_grad_at(loss, gradient, points)
    assert reports["right"].ok, str(reports["right"])
    assert not reports["a millionth too much"].ok


@pytest.mark.parametrize("number", [2.0, np.float32(2), np.array([2.0, 0.1]), [2.0, 0.1]])
def test_python_and_numpy_numbers_are_arguments_as_well(number):
    def loss(w):
        return sum(cubes(leaf) for leaf in jax.tree.leaves(w))

    assert check_grad(loss, lambda w: jax.tree.map(cubes_gradient, w), (number,)).ok
    assert not check_grad(loss, lambda w: jax.tree.map(lambda leaf: 3 * leaf, w), (number,)).ok


def test_leaves_without_elements_are_passed_over():
    args = ({"none": jnp.ones((0, 3)), "some": jnp.ones(2)},)

    def loss(w):
        return jnp.sum(w["none"]) + jnp.sum(w["some"] ** 2)

    assert check_grad(loss, lambda w: {"none": w["none"], "some": 2 * w["some"]}, args).ok
    report = check_grad(loss, lambda w: {"none": w["none"], "some": 3 * w["some"]}, args)
    assert wrong_leaves(report) == {"['some']"}
    assert str(report)


def test_a_tree_without_leaves_is_refused():
    with pytest.raises(ValueError, match=r"args\[0\]: got a tree without leaves; expected something to differentiate"):
        check_grad(lambda w: jnp.float32(1), lambda w: (), ((),))


# --- Zeros, kinks, and numbers that are not finite ------------------------------------------------------------------


def test_a_gradient_that_is_exactly_zero_has_no_room_for_error():
    args = (jnp.array([1.0, 2.0]),)
    assert check_grad(lambda w: 0 * jnp.sum(w), jnp.zeros_like, args).ok
    report = check_grad(lambda w: 0 * jnp.sum(w), lambda w: jnp.full_like(w, 1e-30), args)
    assert not report.ok
    worst = report.worst
    assert worst is not None and (worst.reference, worst.share_wrong) == (0, 1)


def test_relu_raises_no_false_alarm_at_its_kink_or_beside_it():
    network = mjn.mlp((2, 3, 1), bias=False)
    params, x = network.init(jax.random.key(0)), jnp.array([[1.0, 2.0], [0.0, 3.0], [-1.0, 0.5]])
    zeros, no_x = jax.tree.map(jnp.zeros_like, params), jnp.zeros_like(x)
    one_hidden_node = {"weights": params[0]["weights"].at[:, 1].set(0)}, params[1]
    points = {
        "nothing is zero": (params, x + 0.25),
        "inputs": (params, no_x),
        "weights": (zeros, x),
        "both": (zeros, no_x),
        "one hidden node": (one_hidden_node, x),
    }
    points = {zero: (params, (x, jnp.array([[1.0], [2.0], [3.0]]))) for zero, (params, x) in points.items()}
    objective = mjn.objective(network, mjn.mean_squared_error)
    by_hand = mjn.mlp_gradient((2, 3, 1), activation=jax.nn.relu, loss=mjn.mean_squared_error, bias=False)
    for zero, report in check_grad_at(objective, by_hand, points, has_value=True).items():
        assert report.ok, f"{zero}\n{report}"
        assert states(report, "primal") == passes("primal"), zero


def test_the_lessons_network_is_right_at_the_lessons_points():
    network = mjn.mlp((2, 2, 1), output_activation=jax.nn.relu, bias=False)
    params = ({"weights": jnp.array([[2.0, 1.0], [1.0, 2.0]])}, {"weights": jnp.ones((2, 1))})
    fns = {"activation": jax.nn.relu, "output_activation": jax.nn.relu, "bias": False}
    by_hand = mjn.mlp_gradient((2, 2, 1), loss=mjn.mean_squared_error, **fns)
    objective = mjn.objective(network, mjn.mean_squared_error)
    assert check_grad(objective, by_hand, (params, mjn.lesson_points()), has_value=True).ok


def kinked(w):
    return jax.nn.relu(w[0] - w[1]) + jnp.sum(w**2)


def kinked_gradient(w):
    return jnp.where(w[0] > w[1], jnp.array([1.0, -1.0]), 0) + 2 * w


def test_a_kink_by_cancellation_raises_no_false_alarm():
    assert check_grad(kinked, kinked_gradient, (jnp.array([1.0, 1.0]),)).ok


def test_at_a_kink_by_cancellation_a_wrong_rule_is_not_called_right():
    report = check_grad(kinked, lambda w: kinked_gradient(w) * (1 + 1e-5), (jnp.array([1.0, 1.0]),))
    assert not report.ok


def test_where_a_smooth_gradient_all_but_cancels_nothing_is_taken_for_a_kink():
    def loss(w, x, off):
        return jnp.sum(x[:, None] * jnp.tanh(w))

    def gradient(w, x, off):
        return (1 + off) * jnp.sum(x[:, None] * (1 - jnp.tanh(w) ** 2), axis=0)

    args = jnp.array([0.5, 1.0, -2.0]), jnp.array([1.0, -0.9999])
    points = {"right": (*args, jnp.float32(0)), "off by a hundred-millionth": (*args, jnp.float32(1e-8))}
    reports = check_grad_at(loss, gradient, points)
    assert {name: states(report, "algebra") for name, report in reports.items()} == {
        "right": passes("algebra"),
        "off by a hundred-millionth": {"algebra": "fail"},
    }
    for report in reports.values():
        assert [leaf.note for leaf in report.leaves.values()] == [""]


def roots(w):
    return jnp.sum(jnp.sqrt(w))


def roots_gradient(w):
    return 0.5 / jnp.sqrt(w)


def test_a_nan_by_hand_where_autodiff_is_finite_is_infinitely_wrong():
    def gradient(w):
        return cubes_gradient(w) + jnp.where(w > 1, jnp.nan, 0)

    report = check_grad(cubes, gradient, (jnp.array([0.5, 2.0]),))
    assert not report.ok
    worst = report.worst
    assert worst is not None
    assert (worst.error, worst.index, worst.share_wrong) == (float("inf"), (1,), 0.5)
    assert str(report)


EDGES = pytest.mark.parametrize("w", [[0.0, 1.0, 4.0], [1.0, 4.0, 0.0], [1.0, 4.0, -1.0]], ids=["first", "last", "NaN"])


@EDGES
def test_where_autodiff_is_not_finite_a_right_rule_is_not_accused(w):
    report = check_grad(roots, roots_gradient, (jnp.array(w),))
    assert states(report, "algebra") != {"algebra": "fail"}
    assert states(report, "oracle") == {"oracle": "unchecked"}


def test_where_autodiff_is_nan_nothing_is_called_right():
    report = check_grad(roots, roots_gradient, (jnp.array([1.0, 4.0, -1.0]),))
    assert not report.ok
    assert states(report, "algebra") == {"algebra": "unchecked"}
    assert str(report)


@pytest.mark.parametrize("factor", [1, 3])
def test_where_autodiff_is_infinite_nothing_is_called_right(factor):
    assert not check_grad(roots, lambda w: factor * roots_gradient(w), (jnp.zeros(3),)).ok


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@EDGES
def test_beside_elements_that_are_not_finite_a_wrong_rule_is_not_called_right(w):
    report = check_grad(roots, lambda w: roots_gradient(w) * jnp.array([1, 3, 1]), (jnp.array(w),))
    worst = report.worst
    assert not report.ok
    if min(w) == 0:  # where the loss itself is NaN there is nothing to accuse anybody of
        assert worst is not None and (worst.index, worst.share_wrong) == ((1,), pytest.approx(1 / 3))


def test_a_wrong_rule_beside_an_infinite_slope_warns_of_nothing():
    check_grad(roots, lambda w: roots_gradient(w) * jnp.array([1, 3, 1]), (jnp.array([0.0, 1.0, 4.0]),))


@pytest.mark.parametrize(
    ("args", "place"),
    [
        ((jnp.ones(3), jnp.array([1.0, jnp.nan, 2.0])), r"args\[1\]: got NaN at \[1\]"),
        ((jnp.nan, jnp.ones(3)), r"args\[0\]: got NaN; expected"),
        (
            (jnp.ones(3), {"a": [jnp.ones((2, 2)), np.diag([1.0, np.nan])]}),
            r"args\[1\]\['a'\]\[1\]: got NaN at \[1, 1\]",
        ),
    ],
    ids=["vector", "scalar", "in a tree"],
)
def test_nan_in_the_arguments_is_refused_with_its_place(args, place):
    with pytest.raises(ValueError, match=place):
        check_grad(lambda w, b: jnp.sum(w), lambda w, b: jnp.ones_like(w), args)


def test_an_infinite_argument_leaves_something_unchecked():
    args = jnp.ones(3), jnp.array([1.0, jnp.inf, 2.0])
    report = check_grad(lambda w, b: jnp.sum(w * b), lambda w, b: b, args)
    assert "unchecked" in states(report).values()
    assert states(report, "algebra") != {"algebra": "fail"}
    report = check_grad(lambda w, b: jnp.sum(w * b), lambda w, b: b.at[1].set(3), args)
    assert not report.ok
    assert str(report)


def test_at_the_edge_of_the_domain_a_right_rule_is_not_accused():
    def loss(w):
        return jnp.sum((1 - w) ** 1.5)

    report = check_grad(loss, lambda w: -1.5 * (1 - w) ** 0.5, (jnp.array([1.0, 0.5]),))
    assert states(report)["algebra"] != "fail"


# --- Rounding is no slip --------------------------------------------------------------------------------------------


def test_a_softmax_regression_that_starts_at_zero_is_right():
    # Balanced classes: each bias's slope is a sum of thirds that cancel.
    network = mjn.mlp((4, 3))
    params = jax.tree.map(jnp.zeros_like, network.init(jax.random.key(0)))
    batch = jax.random.normal(jax.random.key(1), (30, 4)), jnp.arange(30) % 3
    objective = mjn.objective(network, mjn.softmax_cross_entropy)
    by_hand = mjn.mlp_gradient((4, 3), activation=jax.nn.relu, loss=mjn.softmax_cross_entropy)
    report = check_grad(objective, by_hand, (params, batch), has_value=True)
    assert report.ok, str(report)


SURE = (10.0, 20.0, 30.0)


def test_a_classifier_that_is_sure_and_right_has_a_right_gradient():
    reports = check_grad_at(
        lambda z: mjn.softmax_cross_entropy(z, jnp.arange(3)),
        lambda z: (jax.nn.softmax(z) - jnp.eye(3)) / 3,
        {logit: (jnp.array([[logit, 0.0, -1.0], [0.0, logit, 1.0], [-1.0, 0.5, logit]]),) for logit in SURE},
    )
    for logit, report in reports.items():
        assert report.ok, f"{logit}\n{report}"


def test_a_rule_more_precise_than_autodiff_is_right():
    # The surprise at a yes as books write it, which cancels where the answer is sure.
    reports = check_grad_at(
        lambda z: jnp.mean(jnp.logaddexp(z, 0) - z),
        lambda z: -jax.nn.sigmoid(-z) / 2,
        {logit: (jnp.array([logit, logit + 1]),) for logit in SURE},
    )
    for logit, report in reports.items():
        assert report.ok, f"{logit}\n{report}"


def test_a_rule_more_precise_than_autodiff_has_a_ratio_below_1():
    def gradient(z):
        return jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)

    report = check_grad(lambda z: jnp.sum(jax.nn.sigmoid(z)), gradient, (jnp.array([4.5, 5.3]),))
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
        (lambda z: jnp.sum(jnp.logaddexp(z, 0)), overflowing, jnp.array([1.0, 95.0])),
        # The first element's own slope, 4 w, is by hand as detour gives it; the others' is 2 w.
        (lambda w: jnp.sum(w[1:] ** 2), lambda w: detour(w).at[0].set(0), jnp.array([512.0, 1.1, 1.3, -0.7])),
    ],
    ids=["overflow", "cancellation"],
)
def test_a_rule_that_is_right_but_unstable_fails_precision_and_not_algebra(loss, gradient, args):
    report = check_grad(loss, gradient, (args,))
    assert not report.ok
    assert states(report, "structure", "algebra", "precision") == {
        **passes("structure", "algebra"),
        "precision": "fail",
    }, str(report)
    assert "far less precise than autodiff in (leaf)" in report.verdicts["precision"].reason


def test_an_unstable_rule_fails_precision_beside_a_key_too():
    def loss(w, key):
        return jnp.sum((w[1:] + jax.random.normal(key, (3,))) ** 2)

    def gradient(w, key):
        return (detour(w)[1:] + 2 * jax.random.normal(key, (3,))), w[0]

    def by_hand(w, key):
        slope, _ = gradient(w, key)
        return jnp.concatenate([jnp.zeros(1, w.dtype), slope])

    report = check_grad(loss, by_hand, (jnp.array([4096.0, 1.1, 1.3, -0.7]), jax.random.key(0)))
    assert states(report)["precision"] == "fail", str(report)


# --- Properties -----------------------------------------------------------------------------------------------------

# Few and small: every check compiles its own program, for a second or two.
SIZES = (2, 2, 2)
POINTS = 2
FNS = [jax.nn.relu, jnp.tanh, jax.nn.sigmoid]
moderate = st.floats(-2, 2, width=32).map(lambda value: round(value, 3))


def of_shape(*shape):
    count = int(np.prod(shape))
    values = st.lists(moderate, min_size=count, max_size=count)
    return values.map(lambda numbers: np.array(numbers, np.float32).reshape(shape))


layers = st.tuples(
    *(
        st.fixed_dictionaries({"weights": of_shape(n_in, n_out), "bias": of_shape(n_out)})
        for n_in, n_out in itertools.pairwise(SIZES)
    )
)
batches = st.tuples(of_shape(POINTS, SIZES[0]), of_shape(POINTS, SIZES[-1]))
PROPERTY = settings(max_examples=3, deadline=None, derandomize=True, database=None)


@PROPERTY
@given(points=st.lists(st.tuples(layers, batches), min_size=4, max_size=4), fn=st.sampled_from(FNS))
def test_no_right_rule_is_accused(points, fn):
    objective = mjn.objective(mjn.mlp(SIZES, activation=fn), mjn.mean_squared_error)
    by_hand = mjn.mlp_gradient(SIZES, activation=fn, loss=mjn.mean_squared_error)
    reports = check_grad_at(objective, by_hand, dict(enumerate(points)), has_value=True)
    assert all(report.ok for report in reports.values()), str(reports)


@PROPERTY
@given(
    params=layers,
    batch=batches,
    fn=st.sampled_from(FNS[1:]),  # at a kink's neighbour the checker itself says that it sees less
    layer=st.integers(0, 1),
    name=st.sampled_from(["weights", "bias"]),
    place=st.integers(0, 3),
    exponent=st.floats(-9, 1),
    sign=st.sampled_from([-1, 1]),
)
def test_a_slip_of_a_billionth_in_one_element_is_found_and_named(params, batch, fn, layer, name, place, exponent, sign):
    objective = mjn.objective(mjn.mlp(SIZES, activation=fn), mjn.mean_squared_error)
    right = mjn.mlp_gradient(SIZES, activation=fn, loss=mjn.mean_squared_error)
    leaf = np.asarray(right(params, batch)[1][layer][name])
    # An element that is not tiny: the largest of its leaf, or one not a hundred times smaller.
    eligible = np.argwhere(np.abs(leaf) >= 0.01 * max(np.abs(leaf).max(), 0.01))
    if not len(eligible):
        return
    index = tuple(int(i) for i in eligible[place % len(eligible)])

    def by_hand(params, batch):
        loss, gradient = right(params, batch)
        slipped = gradient[layer][name].at[index].multiply(1 + sign * 10.0**exponent)
        return loss, tuple({**g, name: slipped} if i == layer else g for i, g in enumerate(gradient))

    report = check_grad(objective, by_hand, (params, batch), has_value=True)
    assert wrong_leaves(report) == {f"[{layer}]['{name}']"}, str(report)
    worst = report.worst
    assert worst is not None and worst.index == index
    assert not report.ok


# --- The process is left as it was, and the report tells what it knows ----------------------------------------------


@pytest.mark.parametrize("x64", [False, True])
def test_no_flag_is_changed_whether_the_check_returns_or_raises(x64):
    calls = itertools.count()

    def raising(w):
        if next(calls):  # the first call is by shape alone
            raise RuntimeError("in the middle")
        return cubes_gradient(w)

    before = dict(jax.config.values)
    with jax.enable_x64(x64):
        check_grad(cubes, cubes_gradient, (jnp.ones(2),))
        with pytest.raises(RuntimeError, match="in the middle"):
            check_grad(cubes, raising, (jnp.ones(2, jnp.float32),))
        assert jax.config.jax_enable_x64 is x64
        assert jnp.ones(1).dtype == (jnp.float64 if x64 else jnp.float32)
    assert not jax.config.jax_enable_x64
    assert dict(jax.config.values) == before


def test_a_gradient_that_refuses_float64_is_compared_all_the_same_and_the_report_says_so():
    def only_float32(w):
        if w.dtype == jnp.float64:
            raise RuntimeError("float32 only")
        return cubes_gradient(w)

    report = check_grad(cubes, only_float32, (jnp.arange(3.0),))
    assert report.ok
    assert "float32 only" in report.verdicts["algebra"].reason
    assert not check_grad(cubes, lambda w: only_float32(w) * (1 + 1e-5), (jnp.arange(3.0),)).ok


def test_a_gradient_in_numpy_is_called_as_it_is_and_the_report_says_so():
    report = check_grad(cubes, lambda w: 3 * np.asarray(w) ** 2, (jnp.arange(3.0),))
    assert states(report, "algebra", "precision", "transforms") == {
        "algebra": "pass",
        "precision": "unchecked",
        "transforms": "unchecked",
    }
    assert "can't be traced" in report.verdicts["algebra"].reason
    assert not check_grad(cubes, lambda w: 3.001 * np.asarray(w) ** 2, (jnp.arange(3.0),)).ok


def test_a_right_gradient_that_hides_a_dependence_fails_second_order_alone():
    def hiding(w):
        return 3 * jax.lax.stop_gradient(w) * w

    args = (jnp.arange(1.0, 4.0),)
    assert "second order" not in check_grad(cubes, hiding, args).verdicts
    assert states(check_grad(cubes, cubes_gradient, args, order=2), "second order") == passes("second order")
    report = check_grad(cubes, hiding, args, order=2)
    assert not report.ok
    assert [name for name, state in states(report).items() if state != "pass"] == ["second order"]
    assert len(report.hints) == 1 and "hides a dependence" in report.hints[0]


def test_a_rule_that_is_another_one_without_jit_fails_transforms_alone():
    def undecided(w):
        return cubes_gradient(w) * (1 if isinstance(w, jax.core.Tracer) else 2)

    report = check_grad(cubes, undecided, (jnp.arange(1.0, 4.0),))
    assert not report.ok
    assert [name for name, state in states(report).items() if state != "pass"] == ["transforms"]


def test_a_generator_that_draws_otherwise_under_vmap_is_not_held_against_a_rule():
    """https://github.com/jax-ml/jax/pull/20094: of a batch of keys, ``rbg`` takes the first for all."""

    def kept(key, w):
        key = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key, impl="rbg")
        return jax.random.bits(key, w.shape) % 2

    def loss(w, key):
        return jnp.sum(w**3 * kept(key, w))

    @jax.custom_batching.custom_vmap
    def doubled_by_vmap(slope):
        return slope

    @doubled_by_vmap.def_vmap
    def _(axis_size, in_batched, slope):
        return 2 * slope, in_batched[0]

    w, key = jnp.arange(1.0, 9.0), jax.random.key(0, impl="rbg")
    for carried in (key, jax.random.key_data(key)):
        report = check_grad(loss, lambda w, key: 3 * w**2 * kept(key, w), (w, carried))
        assert states(report, "algebra", "transforms") == passes("algebra", "transforms"), str(report)
        assert "vmap over floats alone: its keys draw other numbers there" in report.verdicts["transforms"].reason
    report = check_grad(loss, lambda w, key: doubled_by_vmap(3 * w**2 * kept(key, w)), (w, key))
    assert states(report, "algebra", "transforms") == {"algebra": "pass", "transforms": "fail"}


@pytest.mark.parametrize(
    ("there", "slope"),
    [
        (lambda w: -3 * w, -3.0),
        (jnp.zeros_like, 0.0),
    ],
    ids=["a slope", "flat"],
)
def test_where_autodiff_is_nan_finite_differences_side_with_a_right_rule(there, slope):
    def loss(w):  # the NaN of the branch that is not taken comes through jnp.where
        return jnp.sum(jnp.where(w > 0, jnp.sqrt(w), there(w)))

    def gradient(w):
        return jnp.where(w > 0, 0.5 / jnp.sqrt(jnp.where(w > 0, w, 1)), slope)

    args = (jnp.array([-1.0, 2.0, -3.0]),)
    assert not check_grad(loss, lambda w: gradient(w) - jnp.where(w < 0, 0.5, 0), args).ok
    report = check_grad(loss, gradient, args)
    assert report.ok, str(report)
    (leaf,) = report.leaves.values()
    assert "autodiff" in leaf.note and "2 of 3" in leaf.note


def test_a_surrogate_gradient_is_compared_with_autodiff_and_the_oracle_says_that_it_is_one():
    def loss(w):
        return jnp.sum((w + jax.lax.stop_gradient(jnp.round(w) - w)) ** 2)

    report = check_grad(loss, lambda w: 2 * jnp.round(w), (jnp.array([0.8, -2.3]),))
    assert report.ok
    assert states(report, "oracle") == {"oracle": "unchecked"}
    assert "surrogate" in report.verdicts["oracle"].reason


def test_a_check_works_where_jit_is_disabled():
    with jax.disable_jit():
        assert check_grad(cubes, cubes_gradient, (jnp.ones(2),)).ok


def test_checks_in_several_threads_do_not_meet():
    def right(i):
        return check_grad(cubes, cubes_gradient, (jnp.arange(i + 2.0),)).ok

    def wrong(i):
        report = check_grad(cubes, lambda w: cubes_gradient(w).at[i].add(1), (jnp.arange(i + 2.0),))
        return report.worst.index, jnp.ones(1).dtype

    with ThreadPoolExecutor(4) as pool:
        rights, wrongs = pool.map(right, range(2)), pool.map(wrong, range(2))
        assert list(rights) == [True] * 2
        assert list(wrongs) == [((i,), jnp.float32) for i in range(2)]


def bowls(w):
    return jnp.sum(w["a"] ** 2) + jnp.sum(w["b"] ** 2)


def bowls_gradient(w):
    return jax.tree.map(lambda leaf: 2 * leaf, w)


BOWLS = ({"a": jnp.arange(1.0, 3), "b": jnp.array([[0.1, -2.0]])},)


def test_the_arguments_are_left_as_they_were():
    args = jax.tree.map(jnp.array, BOWLS)
    before = jax.tree.map(np.array, args)
    check_grad(bowls, bowls_gradient, args)
    chex.assert_trees_all_equal(args, before, strict=True)


def test_the_same_seed_gives_the_same_report():
    first, again = (check_grad(bowls, bowls_gradient, BOWLS, seed=5).to_dict() for _ in range(2))
    assert first == again


def test_assert_grad_is_silent_on_a_right_rule_and_raises_the_whole_report_of_a_wrong_one():
    mjn.assert_grad(cubes, cubes_gradient, (jnp.ones(2),))
    with pytest.raises(mjn.GradientMismatch, match="NOT RIGHT") as raised:
        mjn.assert_grad(cubes, lambda w: 2 * cubes_gradient(w), (jnp.ones(2),))
    assert isinstance(raised.value, AssertionError)
    assert str(raised.value).strip() == str(raised.value.report)
    assert raised.value.report.hints == ("(leaf): twice what it should be: a factor 2",)


def test_several_points_have_the_reports_they_have_one_by_one():
    def gradient(w):
        return cubes_gradient(w) * jnp.where(w > 5, 2, 1)

    points = {"small": (jnp.arange(3.0),), "large": (jnp.arange(3.0) + 5,)}
    reports = check_grad_at(cubes, gradient, points)
    assert {name: wrong_leaves(report) for name, report in reports.items()} == {"small": set(), "large": {"(leaf)"}}
    for name, args in points.items():
        alone = check_grad(cubes, gradient, args)
        assert states(alone) == states(reports[name])
        assert (alone.hints, alone.worst) == (reports[name].hints, reports[name].worst)


def test_points_of_another_shape_are_refused_by_name():
    with pytest.raises(ValueError, match=r"points\['b'\]: not like the first"):
        check_grad_at(cubes, cubes_gradient, {"a": (jnp.ones(2),), "b": (jnp.ones(3),)})


def test_a_report_is_neither_true_nor_false():
    report = check_grad(cubes, cubes_gradient, (jnp.ones(2),))
    with pytest.raises(TypeError, match=r"neither true nor false: use its \.ok"):
        bool(report)
    with pytest.raises(TypeError):
        assert report


def report_with(path, state="fail", reason="wrong beyond rounding in {path}"):
    leaf = LeafReport(
        path=path,
        shape=(3, 3),
        error=1.0,
        tolerance=1e-13,
        blind=1e-12,
        index=(0, 2),
        hand=2.0,
        reference=1.0,
        finite_difference=0.999,
        ulps=8388608.0,
        share_wrong=1 / 9,
        note="a remark as long as it takes to say something of weight about a comparison at a kink, and a little more",
    )
    verdicts = {"structure": Verdict("pass", ""), "algebra": Verdict(state, reason.format(path=path))}
    return GradReport(verdicts, {path: leaf}, (f"{path}: " + "a sentence that goes on for quite some time " * 4,))


def test_ok_is_false_for_any_failure_and_where_the_algebra_is_unchecked():
    def ok(**states):
        return GradReport({name: Verdict(state, "") for name, state in states.items()}, {}).ok

    assert ok(structure="pass", algebra="pass", precision="pass")
    assert ok(structure="pass", algebra="pass", precision="unchecked")
    assert not ok(structure="pass", algebra="unchecked", precision="unchecked")
    assert not ok(structure="pass", algebra="pass", precision="fail")
    assert not ok(structure="pass", primal="fail", algebra="pass")
    assert not ok(structure="pass", algebra="fail")
    assert not ok(structure="pass")


def lines_too_long(report):
    return [line for line in str(report).splitlines() if len(line) > 100]


def test_a_printed_report_says_the_verdict_first_and_keeps_to_100_columns():
    right = check_grad(bowls, bowls_gradient, BOWLS)
    wrong = check_grad(bowls, lambda w: {**w, "a": 2 * w["a"]}, BOWLS)
    assert str(right).splitlines()[0].endswith(": right")
    assert str(wrong).splitlines()[0].endswith(": NOT RIGHT")
    for report in (right, wrong):
        assert lines_too_long(report) == []
        assert all(path in str(report) for path in report.leaves)


@pytest.mark.parametrize("case", ["long path", "structure"])
def test_long_paths_keep_to_100_columns(case):
    if case == "structure":
        args = ({"encoder": {"weights": jnp.ones(2), "bias": jnp.ones(2)}},)
        report = check_grad(lambda w: jnp.sum(w["encoder"]["bias"]), lambda w: w["encoder"], args)
    else:
        report = report_with("['params']['encoder_block_0']['multi_head_attention']['query_projection']['kernel']")
    assert lines_too_long(report) == []


def test_a_report_as_a_dict_survives_json():
    report = report_of_slips()["one element by a millionth"]
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert found["ok"] is False
    assert found["verdicts"]["algebra"]["state"] == "fail"
    assert set(found["leaves"]) == {"['into']", "['bias']", "['out']"}
    leaf = found["leaves"]["['out']"]
    assert (leaf["index"], leaf["shape"]) == ([1, 2], [3, 3])
    assert leaf["blind"] >= leaf["tolerance"] > 0
    assert leaf["error"] > leaf["tolerance"]
    assert found["hints"] == list(report.hints) and report.hints


def test_a_report_with_infinite_errors_as_a_dict_survives_json():
    report = check_grad(cubes, lambda w: cubes_gradient(w) * jnp.nan, (jnp.ones(2),))
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert found["leaves"]["(leaf)"]["error"] is None
    assert found["ok"] is False


# --- The oracle: derivatives by differences, and how far off they may be ----------------------------------------------


@pytest.mark.parametrize(
    ("function", "slope"),
    [
        (math.exp, 1.0),
        (lambda x: math.sin(5 * x), 5.0),
        (lambda x: 3 * x, 3.0),
        (lambda x: (1 + x) ** 7, 7.0),
        (lambda x: math.log1p(x / 2), 0.5),
        (lambda x: 1e6 + x, 1.0),
        (lambda x: 1e-30 * math.exp(x), 1e-30),
        (lambda x: 1e30 * math.exp(x), 1e30),
    ],
)
def test_differences_agree_with_the_slope_and_with_nothing_beside_it(function, slope):
    estimate = derivative(function)
    size = abs(slope)
    assert estimate.settles(size, 1e-5)
    assert estimate.agrees(slope, size)
    assert abs(estimate.value - slope) <= 10 * estimate.error + 1e-7 * size
    assert not estimate.agrees(slope * 1.001, size)
    assert not estimate.agrees(-slope, size)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(rate=st.floats(-4, 4), phase=st.floats(-3, 3), size=st.floats(-1e3, 1e3), offset=st.floats(-1e3, 1e3))
def test_differences_of_a_smooth_function_never_disagree_with_its_slope(rate, phase, size, offset):
    estimate = derivative(lambda x: size * math.sin(rate * x + phase) + offset)
    slope = size * rate * math.cos(phase)
    assert estimate.agrees(slope, abs(slope))


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(exponent=st.floats(-6, -1), side=st.sampled_from([-1, 1]), slope=st.floats(1.5, 10))
def test_differences_beside_a_kink_settle_on_the_slope_that_is_there_or_not_at_all(exponent, side, slope):
    kink = side * 10.0**exponent  # nearer than the smallest difference is wide, a kink cannot be seen
    estimate = derivative(lambda x: max(x - kink, slope * (x - kink)))
    here = 1.0 if kink > 0 else slope
    assert not estimate.settles(slope, 1e-5) or estimate.agrees(here, slope)


@pytest.mark.parametrize("function", [lambda x: math.nan, lambda x: math.inf, lambda x: math.inf if x > 0 else 0.0])
@pytest.mark.filterwarnings("error")
def test_differences_that_are_not_finite_settle_nothing(function):
    estimate = derivative(function)
    assert estimate.error == math.inf
    assert not estimate.settles(1e300, 1.0)
    assert math.isnan(estimate.value)


def test_differences_of_a_noisy_function_own_up_to_it():
    draw = np.random.default_rng(0)
    estimate = derivative(lambda x: math.exp(x) + 1e-7 * draw.normal())
    assert estimate.agrees(1.0, 1.0)
    assert estimate.error > 1e-9


# --- Hints ------------------------------------------------------------------------------------------------------------

TRUTH = np.random.default_rng(3).normal(size=(4, 4))
OTHER = np.random.default_rng(4).normal(size=(4, 4))
PARAMS = np.random.default_rng(5).normal(size=(4, 4))
INDEX = np.array([0, 2, 2, 1])


def hint_for(hand, reference=TRUTH, *, params=PARAMS):
    wrong = ~(np.abs(hand - reference) <= 1e-12) if hand.shape == reference.shape else np.ones(hand.shape, bool)
    others = {"['other']": OTHER}
    arguments = {"args[0]": params, "x": OTHER + 1, "index": INDEX, "batch": np.ones((7, 4))}
    return explain(Wrong("[0]", hand, reference, np.full(reference.shape, 1e-14), wrong, params, others, arguments))


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
        (7 * TRUTH, "n = 7 .*batch"),
        (TRUTH / 7, "1/7 .*batch"),
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
    assert re.match(rf"\[0\]: .*{words}", hint_for(hand)), hint_for(hand)


def test_a_slip_that_is_none_of_the_usual_ones_has_no_name():
    assert hint_for(np.random.default_rng(9).normal(size=(4, 4))) == ""


def test_a_set_for_an_add_is_named_by_its_index():
    hand = TRUTH.copy()
    hand[2] += np.array([1.0, 2.0, 3.0, 4.0])
    hand[3] += np.array([4.0, 1.0, -3.0, 2.0])
    arguments = {"index": np.array([2, 3, 1, 2, 3])}
    slip = Wrong("[0]", hand, TRUTH, np.full((4, 4), 1e-14), hand != TRUTH, PARAMS, {}, arguments)
    assert "repeated in index: set where add is meant" in explain(slip)


# --- Programs carried out our own way ---------------------------------------------------------------------------------


@functools.cache
def way_of(function, shape, dtype, moved):
    """One compiled program serves all moves; it was traced in a dtype."""
    closed = jax.make_jaxpr(function)(np.ones(shape, dtype))
    return jax.jit(lambda x, settings: interpret(closed.jaxpr, closed.consts, [x], settings if moved else None))


def carried_out(function, x, dtype=np.float64, **moves):
    """The function of a float64 argument by ``interpret``."""
    with jax.enable_x64(True):
        settings = Moves(**moves)._asdict().items()
        settings = Moves(**{k: np.asarray(v, np.uint32 if k == "seed" else np.float64) for k, v in settings})
        run = way_of(function, np.shape(x), np.dtype(dtype), bool(moves))
        return [np.asarray(x) for x in run(np.float64(x), settings)]


def by_jax(function, *args):
    with jax.enable_x64(True):
        return [np.asarray(x) for x in jax.tree.leaves(jax.jit(function)(*(np.float64(x) for x in args)))]


def newton(x):
    """Roots, in as many rounds as it takes."""
    return jax.lax.while_loop(lambda s: jnp.max(jnp.abs(s * s - x)) > 1e-9, lambda s: (s + x / s) / 2, jnp.ones_like(x))


MATRIX = np.random.default_rng(6).normal(size=(3, 3)) + 3 * np.eye(3)
VECTOR = np.array([0.3, 1.2, 2.0])
PROGRAMS = {
    "sums and products": lambda x: jnp.sum(jnp.tanh(jnp.asarray(MATRIX, x.dtype) @ x) / 3),
    "scan": lambda x: jax.lax.scan(lambda c, r: (c * r + 1, jnp.sin(c)), x, x),
    "reversed scan": lambda x: jax.lax.scan(lambda c, r: (c * r + 1, jnp.sin(c)), 0 * x[0], x, reverse=True),
    "fori_loop": lambda x: jax.lax.fori_loop(0, 4, lambda i, c: jnp.cos(c) + i, x),
    "while": newton,
    "cond": lambda x: jax.lax.cond(x[0] > 1, jnp.sin, jnp.cos, x),
    "switch": lambda x: jax.lax.switch(2, [jnp.sin, jnp.cos, jnp.exp], x),
    "jit": jax.jit(lambda x: jax.jit(jnp.exp)(x) + 1),
    "vmap": lambda x: jax.vmap(lambda r: jax.lax.cond(r > 1, jnp.sin, jnp.cos, r))(x),
    "checkpoint": jax.checkpoint(jnp.exp),
    "gradient": jax.grad(lambda x: jnp.sum(jax.nn.softmax(x) ** 2)),
    "linear solve": lambda x: jnp.linalg.solve(jnp.asarray(MATRIX, x.dtype), x),
    "sort and index": lambda x: jnp.sort(-x)[jnp.argmax(x)] + jnp.cumsum(x)[::-1],
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_carried_out_our_own_way_has_the_same_results(name):
    expected = by_jax(PROGRAMS[name], VECTOR)
    chex.assert_trees_all_close(carried_out(PROGRAMS[name], VECTOR), expected, rtol=1e-13)
    # Moves of size 0 change nothing, not a bit of it, whatever else they say.
    still = carried_out(PROGRAMS[name], VECTOR, size=0.0, shift=1.0, ramp=1.0, turn=1.0)
    chex.assert_trees_all_close(still, expected, rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ["scan", "while", "jit", "sort and index"])
def test_a_program_traced_with_few_digits_is_carried_out_with_all_of_them(name, dtype):
    chex.assert_trees_all_close(
        carried_out(PROGRAMS[name], VECTOR, dtype=dtype), by_jax(PROGRAMS[name], VECTOR), rtol=1e-9
    )


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.vmap], ids=["bare", "jit", "vmap"])
@pytest.mark.parametrize("kind", ["custom_vjp", "custom_jvp"])
def test_custom_rules_are_taken_out(kind, wrap):
    if kind == "custom_vjp":
        lying = jax.custom_vjp(lambda x: jnp.sin(x))
        lying.defvjp(lambda x: (x, None), lambda _, c: (100 * c,))
    else:
        lying = jax.custom_jvp(lambda x: jnp.sin(x))
        lying.defjvp(lambda x, t: (jnp.sin(x[0]), 100 * t[0]))
    x = jnp.array(VECTOR)
    closed = jax.make_jaxpr(wrap(lying))(x)
    gradient = jax.grad(lambda x: jnp.sum(interpret(closed.jaxpr, closed.consts, [x], wide=False)[0]))
    chex.assert_trees_all_close(gradient(x), jnp.cos(x), rtol=1e-6)
    assert gradient(x).dtype == jnp.float32


@pytest.mark.parametrize("name", PROGRAMS)
def test_how_far_the_end_moves_is_in_proportion_to_the_moves(name):
    still = carried_out(PROGRAMS[name], VECTOR)
    small, large = (carried_out(PROGRAMS[name], VECTOR, size=2.0**-k, random=0.0, shift=1.0) for k in (30, 20))
    for before, a, b in zip(still, small, large, strict=True):
        assert np.any(a != before), name
        chex.assert_trees_all_close((b - before) * 2.0**-10, a - before, rtol=1e-3, atol=1e-14)


def test_random_moves_are_of_their_size_and_hang_on_the_seed_alone():
    many = np.linspace(0.1, 3, 1000)
    moved = [carried_out(jnp.exp, many, size=2.0**-30, seed=seed)[0] for seed in (1, 1, 2)]
    chex.assert_trees_all_equal(moved[0], moved[1])
    signs = [np.round((x / np.exp(many) - 1) * 2.0**30) for x in moved]
    assert all(set(np.unique(s)) == {-1, 1} for s in signs)
    assert all(abs(np.mean(s)) < 0.15 for s in signs)
    assert abs(np.mean(signs[0] * signs[2])) < 0.15


def test_operations_that_round_nothing_are_not_moved():
    def exact(x):
        return jnp.maximum(-x, jnp.abs(x)).reshape(3, 1).T, jnp.argsort(x), jnp.where(x > 1, x, -x)

    chex.assert_trees_all_equal(carried_out(exact, VECTOR, size=2.0**-10, lift=1.0), by_jax(exact, VECTOR))


def test_zeros_are_lifted_off_their_kink_only_where_that_is_asked_for():
    def difference(x):
        return x - x

    assert not carried_out(difference, VECTOR, size=2.0**-10)[0].any()
    (lifted,) = carried_out(difference, VECTOR, size=2.0**-10, lift=1e-100, random=0.0, shift=1.0)
    chex.assert_trees_all_equal(lifted, np.full(3, 1e-100))


def test_a_moved_loop_makes_the_rounds_of_the_still_one():
    def rounds(x):
        return jax.lax.while_loop(lambda s: jnp.sum(s[1]) < 100, lambda s: (s[0] + 1, 2 * s[1]), (0, x))

    still, moved = carried_out(rounds, VECTOR), carried_out(rounds, VECTOR, size=0.4, random=0.0, shift=-1.0)
    assert still[0] == moved[0]
    assert np.sum(moved[1]) < 100
