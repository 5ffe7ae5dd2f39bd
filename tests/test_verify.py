"""The gradient checker: what is wrong it finds and names, what is right it never accuses."""

import functools
import itertools
import json

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

# --- A two-layer network whose matrices are all square, so that a slip need not show in a shape ----------------------

WIDTH = 3
DECAY = 0.25


def loss_of(params, batch):
    hidden = jnp.tanh(batch[0] @ params["into"] + params["bias"])
    return jnp.mean((hidden @ params["out"] - batch[1]) ** 2) + DECAY * jnp.sum(params["into"] ** 2)


def gradient_of(params, batch, slip=None):
    """The gradient by hand, with one slip of the pen if one is asked for."""
    x, y = batch
    hidden = jnp.tanh(x @ params["into"] + params["bias"])
    slope = 2 * (hidden @ params["out"] - y) / y.size
    delta = (slope @ params["out"].T) * (1 - hidden) * (1 + hidden)
    decay = 2 * DECAY * params["into"]
    gradient = {"into": x.T @ delta + decay, "bias": jnp.sum(delta, axis=0), "out": hidden.T @ slope}
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
            forgetful = slope @ params["out"].T
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


def point(dtype=jnp.float32, seed=0):
    draw = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(draw.normal(size=shape), dtype)

    params = {"into": normal(WIDTH, WIDTH), "bias": normal(WIDTH), "out": normal(WIDTH, WIDTH)}
    return params, (normal(WIDTH, WIDTH), normal(WIDTH, WIDTH))


def check_eagerly(*args, **kwargs):
    """``check_grad`` operation by operation: many checks at the same shapes then compile next to nothing."""
    with jax.disable_jit():
        return check_grad(*args, **kwargs)


def states(report):
    return {name: verdict.state for name, verdict in report.verdicts.items()}


def wrong_leaves(report):
    return {path for path, leaf in report.leaves.items() if not leaf.error <= leaf.tolerance}


def cubes(w):
    return jnp.sum(w**3)


def cubes_gradient(w):
    return 3 * w**2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64], ids=["float32", "bfloat16", "float64"])
def test_a_right_rule_passes_in_every_dtype(dtype):
    with jax.enable_x64(dtype is jnp.float64):
        report = check_grad(loss_of, gradient_of, point(dtype))
    exact = dtype is jnp.float64
    precision = "unchecked" if exact else "pass"
    assert states(report) == {"structure": "pass", "algebra": "pass", "precision": precision}, str(report)
    assert report.ok
    assert all((leaf.precision_ratio is None) == exact for leaf in report.leaves.values())


def test_a_right_rule_for_a_real_network_passes_with_its_loss():
    sizes, classes = (3, 4, 2), jnp.array([0, 1, 1, 0])
    for activation in (jax.nn.relu, jnp.tanh):
        network = mjn.mlp(sizes, activation=activation)
        params, x = network.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (4, 3))
        objective = mjn.objective(network, mjn.softmax_cross_entropy)
        by_hand = mjn.mlp_gradient(sizes, activation=activation, loss=mjn.softmax_cross_entropy)
        report = check_grad(objective, by_hand, (params, mjn.Batch(x, classes)), has_value=True)
        assert report.ok, str(report)
        assert states(report)["primal"] == "pass"


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_found_and_its_leaves_are_named(slip):
    report = check_eagerly(loss_of, functools.partial(gradient_of, slip=slip), point())
    expected = {f"['{leaf}']" for leaf in SLIPS[slip]}
    assert not report.ok
    assert states(report) == {"structure": "pass", "algebra": "fail", "precision": "unchecked"}
    assert wrong_leaves(report) == expected
    assert all(path in report.verdicts["algebra"].reason for path in expected)
    assert report.worst is not None and report.worst.path in expected


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
    report = check_eagerly(loss_of, functools.partial(gradient_of, slip="a row of zeros"), point())
    worst = report.worst
    assert worst is not None and (worst.index[0], worst.hand) == (2, 0)
    assert worst.share_wrong == pytest.approx(1 / 3)


def test_a_rule_with_a_slip_that_mlp_gradient_could_have_is_found():
    sizes = (3, 4, 2)
    network = mjn.mlp(sizes, activation=jnp.tanh)
    params = network.init(jax.random.key(0))
    batch = jax.random.normal(jax.random.key(1), (4, 3)), jax.random.normal(jax.random.key(2), (4, 2))
    # The rule for another activation has the right structure everywhere.
    wrong = mjn.mlp_gradient(sizes, activation=jax.nn.sigmoid, loss=mjn.mean_squared_error)
    objective = mjn.objective(network, mjn.mean_squared_error)
    report = check_grad(objective, wrong, (params, batch), has_value=True)
    assert not report.ok
    assert (states(report)["primal"], states(report)["algebra"]) == ("fail", "fail")


# --- The loss beside the gradient -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [lambda loss: loss * (1 + 1e-9), lambda loss: loss + 1, jnp.negative, jnp.isnan])
def test_a_wrong_loss_beside_a_right_gradient_fails_primal_alone(wrong):
    args = (jnp.arange(4.0),)
    report = check_eagerly(cubes, lambda w: (wrong(cubes(w)), cubes_gradient(w)), args, has_value=True)
    assert not report.ok
    assert states(report) == {"structure": "pass", "primal": "fail", "algebra": "pass", "precision": "pass"}
    assert "36" in report.verdicts["primal"].reason


def test_without_has_value_there_is_no_verdict_on_the_loss():
    assert "primal" not in check_grad(cubes, cubes_gradient, (jnp.arange(4.0),)).verdicts


def test_a_loss_with_aux_is_checked_as_well():
    def loss(w):
        return cubes(w), {"hidden": w, "count": 3}

    assert check_grad(loss, cubes_gradient, (jnp.arange(4.0),), has_aux=True).ok
    assert not check_grad(loss, lambda w: w, (jnp.arange(4.0),), has_aux=True).ok


@pytest.mark.xfail(strict=True, reason="a loss of shape (1,), or None, is not told from a scalar until it breaks")
@pytest.mark.parametrize("kind", [lambda loss: loss[None], lambda loss: None], ids=["shape (1,)", "None"])
def test_a_loss_that_is_no_scalar_fails(kind):
    report = check_grad(cubes, lambda w: (kind(cubes(w)), cubes_gradient(w)), (jnp.arange(4.0),), has_value=True)
    assert not report.ok


@pytest.mark.xfail(strict=True, reason="inf - inf is NaN: the loss is said to be inf, not inf")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
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
    ("leaf", "dtype"), [(jnp.arange(3), "int32"), (jnp.ones(3, bool), "bool"), (jnp.ones(3, complex), "complex64")]
)
def test_a_leaf_that_cannot_be_descended_on_is_refused_with_its_path(leaf, dtype):
    with pytest.raises(TypeError, match=rf"args\[0\]\['n'\]: got dtype {dtype}; expected a real floating dtype"):
        check_grad(lambda w: jnp.sum(w["w"]), lambda w: w, ({"w": jnp.ones(2), "n": leaf},))


def test_a_key_among_the_params_is_refused():
    with pytest.raises(TypeError, match=r"args\[1\].*: got dtype key<fry>"):
        check_grad(lambda w, key: jnp.sum(w), lambda w, key: w, (jnp.ones(2), jax.random.key(0)), argnums=1)


def test_argnums_chooses_the_argument():
    args = jnp.array([1.0, 2.0]), jnp.array([3.0, 5.0])

    def loss(a, b):
        return jnp.sum(a * b**2)

    assert check_grad(loss, lambda a, b: b**2, args).ok
    assert check_grad(loss, lambda a, b: 2 * a * b, args, argnums=1).ok
    assert check_grad(loss, lambda a, b: 2 * a * b, args, argnums=-1).ok
    assert not check_grad(loss, lambda a, b: 2 * a * b, args, argnums=0).ok


@pytest.mark.xfail(strict=True, reason="the tuple is left to complain about its indices")
@pytest.mark.parametrize("argnums", [(0, 1), 2], ids=["two", "out of range"])
def test_argnums_that_name_no_argument_are_refused_by_name(argnums):
    with pytest.raises((TypeError, ValueError), match="argnums: "):
        check_grad(lambda a, b: jnp.sum(a * b), lambda a, b: (b, a), (jnp.ones(2), jnp.ones(2)), argnums=argnums)


def test_integers_booleans_and_keys_in_the_other_arguments_are_carried_along():
    def loss(w, batch, key):
        kept = jax.random.bernoulli(key, 0.5, w.shape)
        return jnp.sum(jnp.where(batch["mask"], (w * kept) ** 2, 0)[batch["index"]])

    def gradient(w, batch, key):
        kept = jax.random.bernoulli(key, 0.5, w.shape)
        counts = jnp.zeros(w.shape, w.dtype).at[batch["index"]].add(1)
        return jnp.where(batch["mask"], 2 * w * kept, 0) * counts

    batch = {"mask": jnp.array([True, False] * 4), "index": jnp.array([0, 0, 2, 3, 4, 5, 6])}
    args = jnp.linspace(0.1, 1, 8), batch, jax.random.key(3)
    assert check_grad(loss, gradient, args).ok
    assert not check_grad(loss, lambda *args: gradient(*args) * (1 + 1e-6), args).ok


@pytest.mark.parametrize("number", [2.0, np.float32(2), np.array([2.0, 0.1]), [2.0, 0.1]])
def test_python_and_numpy_numbers_are_arguments_as_well(number):
    def loss(w):
        return sum(cubes(leaf) for leaf in jax.tree.leaves(w))

    assert check_eagerly(loss, lambda w: jax.tree.map(cubes_gradient, w), (number,)).ok
    assert not check_eagerly(loss, lambda w: jax.tree.map(lambda leaf: 3 * leaf, w), (number,)).ok


def test_leaves_without_elements_are_passed_over():
    args = ({"none": jnp.ones((0, 3)), "some": jnp.ones(2)},)

    def loss(w):
        return jnp.sum(w["none"]) + jnp.sum(w["some"] ** 2)

    assert check_grad(loss, lambda w: {"none": w["none"], "some": 2 * w["some"]}, args).ok
    report = check_grad(loss, lambda w: {"none": w["none"], "some": 3 * w["some"]}, args)
    assert wrong_leaves(report) == {"['some']"}
    assert str(report)


@pytest.mark.xfail(strict=True, reason="with no leaf at all, every element of every leaf is said to be equal")
def test_a_tree_without_leaves_is_refused_or_unchecked():
    try:
        report = check_grad(lambda w: jnp.float32(1), lambda w: (), ((),))
    except TypeError:
        return
    assert not report.ok


# --- Zeros, kinks, and numbers that are not finite ------------------------------------------------------------------


def test_a_gradient_that_is_exactly_zero_has_no_room_for_error():
    args = (jnp.array([1.0, 2.0]),)
    assert check_grad(lambda w: 0 * jnp.sum(w), jnp.zeros_like, args).ok
    report = check_grad(lambda w: 0 * jnp.sum(w), lambda w: jnp.full_like(w, 1e-30), args)
    assert not report.ok
    worst = report.worst
    assert worst is not None and (worst.reference, worst.share_wrong) == (0, 1)


@pytest.mark.parametrize("zero", ["inputs", "weights", "both", "one hidden node"])
def test_relu_at_its_kink_raises_no_false_alarm(zero):
    network = mjn.mlp((2, 3, 1), bias=False)
    params, x = network.init(jax.random.key(0)), jnp.array([[1.0, 2.0], [0.0, 3.0], [-1.0, 0.5]])
    if zero in ("weights", "both"):
        params = jax.tree.map(jnp.zeros_like, params)
    if zero in ("inputs", "both"):
        x = jnp.zeros_like(x)
    if zero == "one hidden node":
        params = {"weights": params[0]["weights"].at[:, 1].set(0)}, params[1]
    objective = mjn.objective(network, mjn.mean_squared_error)
    by_hand = mjn.mlp_gradient((2, 3, 1), activation=jax.nn.relu, loss=mjn.mean_squared_error, bias=False)
    report = check_eagerly(objective, by_hand, (params, (x, jnp.array([[1.0], [2.0], [3.0]]))), has_value=True)
    assert report.ok, str(report)


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


@pytest.mark.xfail(strict=True, reason="moved inputs jump over the kink: an error of 1e-5 passes as equal to rounding")
def test_at_a_kink_by_cancellation_a_wrong_rule_is_not_called_right():
    report = check_grad(kinked, lambda w: kinked_gradient(w) * (1 + 1e-5), (jnp.array([1.0, 1.0]),))
    assert not report.ok


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


@pytest.mark.xfail(strict=True, reason="a subtraction warns, and a tolerance of NaN accuses wherever the index points")
@pytest.mark.parametrize("w", [[0.0, 1.0, 4.0], [1.0, 4.0, 0.0], [1.0, 4.0, -1.0]], ids=["first", "last", "NaN"])
def test_where_autodiff_is_not_finite_a_right_rule_is_unchecked_and_not_accused(w):
    report = check_grad(roots, roots_gradient, (jnp.array(w),))
    assert not report.ok
    assert states(report)["algebra"] == "unchecked"


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("w", [[0.0, 1.0, 4.0], [1.0, 4.0, 0.0], [1.0, 4.0, -1.0]], ids=["first", "last", "NaN"])
def test_where_autodiff_is_not_finite_nothing_is_called_right(w):
    assert not check_eagerly(roots, roots_gradient, (jnp.array(w),)).ok
    assert not check_eagerly(roots, lambda w: roots_gradient(w) * jnp.array([1, 3, 1]), (jnp.array(w),)).ok


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_inputs_that_are_not_finite_call_nothing_right():
    for bad in (jnp.nan, jnp.inf):
        report = check_grad(lambda w, b: jnp.sum(w * b), lambda w, b: b, (jnp.ones(3), jnp.array([1.0, bad, 2.0])))
        assert not report.ok
        assert str(report)


@pytest.mark.xfail(strict=True, reason="moved over the edge of the domain the gradient is NaN, and so is the tolerance")
def test_at_the_edge_of_the_domain_a_right_rule_is_not_accused():
    def loss(w):
        return jnp.sum((1 - w) ** 1.5)

    report = check_grad(loss, lambda w: -1.5 * (1 - w) ** 0.5, (jnp.array([1.0, 0.5]),))
    assert states(report)["algebra"] != "fail"


# --- Rounding is no slip --------------------------------------------------------------------------------------------


@pytest.mark.xfail(strict=True, reason="zeros do not move, so a slope that rounds to 1e-17 is allowed no error")
def test_a_softmax_regression_that_starts_at_zero_is_right():
    # Balanced classes: each bias's slope is a sum of thirds that cancel.
    network = mjn.mlp((4, 3))
    params = jax.tree.map(jnp.zeros_like, network.init(jax.random.key(0)))
    batch = jax.random.normal(jax.random.key(1), (30, 4)), jnp.arange(30) % 3
    objective = mjn.objective(network, mjn.softmax_cross_entropy)
    by_hand = mjn.mlp_gradient((4, 3), activation=jax.nn.relu, loss=mjn.softmax_cross_entropy)
    report = check_grad(objective, by_hand, (params, batch), has_value=True)
    assert report.ok, str(report)


SURE = pytest.mark.parametrize("logit", [10.0, 20.0, 30.0])


@pytest.mark.xfail(
    strict=True, reason="1 - probability cancels in autodiff's own rule; the moved inputs do not show it"
)
@SURE
def test_a_classifier_that_is_sure_and_right_has_a_right_gradient(logit):
    logits = jnp.array([[logit, 0.0, -1.0], [0.0, logit, 1.0], [-1.0, 0.5, logit]])
    report = check_grad(
        lambda z: mjn.softmax_cross_entropy(z, jnp.arange(3)),
        lambda z: (jax.nn.softmax(z) - jnp.eye(3)) / 3,
        (logits,),
    )
    assert report.ok, str(report)


@pytest.mark.xfail(strict=True, reason="the more precise rule is called wrong: autodiff's rounding counts as truth")
@SURE
def test_a_rule_more_precise_than_autodiff_is_right(logit):
    # The surprise at a yes as books write it, which cancels where the answer is sure.
    report = check_grad(
        lambda z: jnp.mean(jnp.logaddexp(z, 0) - z),
        lambda z: -jax.nn.sigmoid(-z) / 2,
        (jnp.array([logit, logit + 1]),),
    )
    assert report.ok, str(report)


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
    """``2 w`` by way of numbers 32 times as large."""
    return ((w + w[0]) ** 2 - w**2 - w[0] ** 2) / w[0]


@pytest.mark.parametrize(
    ("loss", "gradient", "args"),
    [
        (lambda z: jnp.sum(jnp.logaddexp(z, 0)), overflowing, jnp.array([1.0, 95.0])),
        # The first element's own slope, 4 w, is by hand as detour gives it; the others' is 2 w.
        (lambda w: jnp.sum(w[1:] ** 2), lambda w: detour(w).at[0].set(0), jnp.array([32.0, 1.1, 1.3, -0.7])),
    ],
    ids=["overflow", "cancellation"],
)
def test_a_rule_that_is_right_but_unstable_fails_precision_and_not_algebra(loss, gradient, args):
    report = check_grad(loss, gradient, (args,))
    assert not report.ok
    assert states(report) == {"structure": "pass", "algebra": "pass", "precision": "fail"}, str(report)
    assert "far less precise than autodiff in (leaf)" in report.verdicts["precision"].reason


@pytest.mark.xfail(strict=True, reason="under x64 a key draws other numbers: both rules then miss the truth by as much")
def test_an_unstable_rule_fails_precision_beside_a_key_too():
    def loss(w, key):
        return jnp.sum((w[1:] + jax.random.normal(key, (3,))) ** 2)

    def gradient(w, key):
        return (detour(w)[1:] + 2 * jax.random.normal(key, (3,))), w[0]

    def by_hand(w, key):
        slope, _ = gradient(w, key)
        return jnp.concatenate([jnp.zeros(1, w.dtype), slope])

    report = check_grad(loss, by_hand, (jnp.array([256.0, 1.1, 1.3, -0.7]), jax.random.key(0)))
    assert states(report)["precision"] == "fail", str(report)


# --- Properties -----------------------------------------------------------------------------------------------------

# Only these shapes, run operation by operation: hypothesis then compiles nothing anew.
SIZES = (2, 3, 3)
POINTS = 3
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
PROPERTY = settings(max_examples=25, deadline=None, derandomize=True, database=None)


@PROPERTY
@given(params=layers, batch=batches, fn=st.sampled_from(FNS))
def test_no_right_rule_is_accused(params, batch, fn):
    objective = mjn.objective(mjn.mlp(SIZES, activation=fn), mjn.mean_squared_error)
    by_hand = mjn.mlp_gradient(SIZES, activation=fn, loss=mjn.mean_squared_error)
    report = check_eagerly(objective, by_hand, (params, batch), has_value=True)
    assert report.ok, str(report)


@PROPERTY
@given(
    params=layers,
    batch=batches,
    fn=st.sampled_from(FNS[1:]),  # at a kink's neighbour the checker itself says that it sees less
    layer=st.integers(0, 1),
    name=st.sampled_from(["weights", "bias"]),
    place=st.integers(0, 8),
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

    report = check_eagerly(objective, by_hand, (params, batch), has_value=True)
    assert wrong_leaves(report) == {f"[{layer}]['{name}']"}, str(report)
    worst = report.worst
    assert worst is not None and worst.index == index
    assert not report.ok


# --- The process is left as it was, and the report tells what it knows ----------------------------------------------


@pytest.mark.parametrize("x64", [False, True])
def test_no_flag_is_changed_whether_the_check_returns_or_raises(x64):
    def raising(w):
        if w.dtype == jnp.float64:
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


def test_the_arguments_are_left_as_they_were():
    args = point()
    before = jax.tree.map(np.array, args)
    check_grad(loss_of, gradient_of, args)
    chex.assert_trees_all_equal(args, before, strict=True)


def test_the_same_seed_gives_the_same_report():
    first, again = (check_eagerly(loss_of, gradient_of, point(), seed=5).to_dict() for _ in range(2))
    assert first == again


def test_a_report_is_neither_true_nor_false():
    report = check_grad(cubes, cubes_gradient, (jnp.ones(2),))
    with pytest.raises(TypeError, match=r"neither true nor false: use its \.ok"):
        bool(report)
    with pytest.raises(TypeError):
        assert report


def report_with(path, state="fail", reason="wrong beyond rounding in {path}"):
    leaf = LeafReport(path, (3, 3), 1.0, 1e-13, (0, 2), 2.0, 1.0, 0.5, None)
    verdicts = {"structure": Verdict("pass", ""), "algebra": Verdict(state, reason.format(path=path))}
    return GradReport(verdicts, {path: leaf})


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
    right = check_grad(loss_of, gradient_of, point())
    wrong = check_eagerly(loss_of, functools.partial(gradient_of, slip="a factor of two"), point())
    assert str(right).splitlines()[0].endswith(": right")
    assert str(wrong).splitlines()[0].endswith(": NOT RIGHT")
    for report in (right, wrong):
        assert lines_too_long(report) == []
        assert all(path in str(report) for path in report.leaves)


@pytest.mark.xfail(strict=True, reason="paths are neither wrapped nor shortened")
@pytest.mark.parametrize("case", ["long path", "structure"])
def test_long_paths_keep_to_100_columns(case):
    if case == "structure":
        args = ({"encoder": {"weights": jnp.ones(2), "bias": jnp.ones(2)}},)
        report = check_grad(lambda w: jnp.sum(w["encoder"]["bias"]), lambda w: w["encoder"], args)
    else:
        report = report_with("['params']['encoder_block_0']['multi_head_attention']['query_projection']['kernel']")
    assert lines_too_long(report) == []


def test_a_report_as_a_dict_survives_json():
    report = check_eagerly(loss_of, functools.partial(gradient_of, slip="one element by a millionth"), point())
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert found["ok"] is False
    assert found["verdicts"]["algebra"]["state"] == "fail"
    assert set(found["leaves"]) == {"['into']", "['bias']", "['out']"}
    leaf = found["leaves"]["['out']"]
    assert (leaf["index"], leaf["shape"]) == ([1, 2], [3, 3])
    assert leaf["error"] > leaf["tolerance"] > 0


@pytest.mark.xfail(strict=True, reason="NaN and Infinity are no JSON")
def test_a_report_with_infinite_errors_as_a_dict_survives_json():
    report = check_grad(cubes, lambda w: cubes_gradient(w) * jnp.nan, (jnp.ones(2),))
    json.dumps(report.to_dict(), allow_nan=False)
