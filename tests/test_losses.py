"""Losses against NumPy with more digits, against optax, and at the edges of what floats can hold."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minijaxnet as mjn

N, C = 6, 4  # one shape, so that hypothesis compiles nothing anew
EXACT = np.longdouble  # never fewer digits than the loss under test
LOSSES = [mjn.mean_squared_error, mjn.softmax_cross_entropy, mjn.binary_cross_entropy]
VALUE_AND_SLOPE = {loss: jax.jit(jax.value_and_grad(loss)) for loss in LOSSES}  # compiled once for all examples


def arrays(*shape, largest):
    return hnp.arrays(np.float32, shape, elements=st.floats(-largest, largest, width=32))


labels_int = hnp.arrays(np.int32, (N,), elements=st.integers(0, C - 1))


def one_hot(labels, dtype=np.float32):
    return np.eye(C, dtype=dtype)[labels]


def exact_softmax_cross_entropy(logits, one_hot_labels):
    z = np.asarray(logits).astype(EXACT)
    shifted = z - z.max(axis=-1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    y = np.asarray(one_hot_labels).astype(EXACT)
    return -(y * log_softmax).sum(axis=-1).mean(), (np.exp(log_softmax) - y) / len(z)


def exact_binary_cross_entropy(logits, labels):
    z, y = np.asarray(logits).astype(EXACT), np.asarray(labels).astype(EXACT)
    small = np.exp(-np.abs(z))
    loss = np.maximum(z, 0) + np.log1p(small) - y * z
    return loss.mean(), (np.where(z >= 0, 1 / (1 + small), small / (1 + small)) - y) / z.size


def exact_mean_squared_error(predictions, targets):
    errors = np.asarray(predictions).astype(EXACT) - np.asarray(targets).astype(EXACT)
    return (errors**2).mean(), 2 * errors / errors.size


def assert_close(got, expected, atol):
    np.testing.assert_allclose(np.asarray(got).astype(np.float64), np.asarray(expected, np.float64), rtol=0, atol=atol)


# --- The values, and autodiff's slope of them ------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(predictions=arrays(N, 1, largest=1e3), targets=arrays(N, 1, largest=1e3))
def test_mean_squared_error_is_the_mean_of_squared_errors(predictions, targets):
    loss, slope = VALUE_AND_SLOPE[mjn.mean_squared_error](predictions, targets)
    expected, expected_slope = exact_mean_squared_error(predictions, targets)
    eps = np.finfo(np.float32).eps
    # An error rounds at the size of its larger term; a square doubles that, and N sums add N roundings.
    size = float(np.abs(predictions).max() + np.abs(targets).max())
    assert_close(loss, expected, (N + 4) * eps * size**2 + 1e-37)
    assert_close(slope, expected_slope, 4 * eps * size + 1e-37)


@settings(max_examples=60, deadline=None)
@given(logits=arrays(N, C, largest=1e4), labels=labels_int)
def test_softmax_cross_entropy_is_the_mean_surprise(logits, labels):
    loss, slope = VALUE_AND_SLOPE[mjn.softmax_cross_entropy](logits, labels)
    expected, expected_slope = exact_softmax_cross_entropy(logits, one_hot(labels))
    eps = np.finfo(np.float32).eps
    size = float(np.abs(logits).max()) + np.log(C)  # both sides of the difference are this large and round so
    assert_close(loss, expected, (N + 4) * eps * size)
    # exp turns the rounding of its argument into a relative error of the probability, which is at most 1.
    assert_close(slope, expected_slope, 4 * eps * (size + 1))


@settings(max_examples=60, deadline=None)
@given(logits=arrays(N, 2, largest=1e4), labels=hnp.arrays(np.float32, (N, 2), elements=st.floats(0, 1, width=32)))
def test_binary_cross_entropy_is_the_mean_surprise(logits, labels):
    loss, slope = VALUE_AND_SLOPE[mjn.binary_cross_entropy](logits, labels)
    expected, expected_slope = exact_binary_cross_entropy(logits, labels)
    eps = np.finfo(np.float32).eps
    assert_close(loss, expected, (2 * N + 4) * eps * (float(np.abs(logits).max()) + 1))
    assert_close(slope, expected_slope, 4 * eps)


@settings(max_examples=25, deadline=None)
@given(logits=arrays(N, C, largest=1e4), labels=labels_int)
def test_int_and_one_hot_labels_agree(logits, labels):
    by_class = jax.value_and_grad(mjn.softmax_cross_entropy)(logits, labels)
    # Summing zeros around the right logit rounds nothing, so this is an equality.
    for dtype in (np.float32, np.int32, np.bool_):
        chex.assert_trees_all_equal(
            by_class[0], mjn.softmax_cross_entropy(jnp.asarray(logits), one_hot(labels, dtype)), strict=True
        )
    slope = jax.grad(mjn.softmax_cross_entropy)(logits, one_hot(labels))
    assert_close(by_class[1], np.asarray(slope), 2**-23)
    assert mjn.accuracy(logits, labels) == mjn.accuracy(logits, one_hot(labels))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
@pytest.mark.parametrize(
    ("loss", "exact", "labels"),
    [
        (mjn.mean_squared_error, exact_mean_squared_error, lambda rng: rng.normal(size=(N, C))),
        (mjn.binary_cross_entropy, exact_binary_cross_entropy, lambda rng: rng.integers(0, 2, (N, C))),
        (mjn.softmax_cross_entropy, exact_softmax_cross_entropy, lambda rng: one_hot(rng.integers(0, C, N))),
        (mjn.softmax_cross_entropy, exact_softmax_cross_entropy, lambda rng: rng.dirichlet(np.ones(C), N)),
    ],
    ids=["mean_squared_error", "binary_cross_entropy", "softmax one-hot", "softmax probabilities"],
)
def test_a_loss_keeps_its_dtype_and_is_right_to_its_rounding(loss, exact, labels, dtype):
    rng = np.random.default_rng(3)
    with jax.enable_x64(dtype is jnp.float64):
        predictions = jnp.asarray(3 * rng.normal(size=(N, C)), dtype)
        targets = jnp.asarray(labels(rng), dtype)
        value, slope = jax.jit(jax.value_and_grad(loss))(predictions, targets)
        assert (value.dtype, value.shape, slope.dtype) == (dtype, (), dtype)
        expected, expected_slope = exact(predictions, targets)
        eps, size = float(jnp.finfo(dtype).eps), float(jnp.abs(predictions).max()) + 2
        assert_close(value, expected, 4 * eps * size)
        assert_close(slope, expected_slope, 4 * eps * size / N)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_losses_agree_with_optax(dtype):
    rng = np.random.default_rng(5)
    with jax.enable_x64(dtype is jnp.float64):
        logits = jnp.asarray(4 * rng.normal(size=(N, C)), dtype)
        classes = jnp.asarray(rng.integers(0, C, N))
        hot = jax.nn.one_hot(classes, C, dtype=dtype)
        pairs = {
            "mean_squared_error": (
                lambda z: mjn.mean_squared_error(z, hot),
                lambda z: optax.squared_error(z, hot).mean(),
            ),
            "classes": (
                lambda z: mjn.softmax_cross_entropy(z, classes),
                lambda z: optax.softmax_cross_entropy_with_integer_labels(z, classes).mean(),
            ),
            "one-hot": (
                lambda z: mjn.softmax_cross_entropy(z, hot),
                lambda z: optax.softmax_cross_entropy(z, hot).mean(),
            ),
            "binary": (
                lambda z: mjn.binary_cross_entropy(z, hot),
                lambda z: optax.sigmoid_binary_cross_entropy(z, hot).mean(),
            ),
        }
        tolerance = 8 * float(jnp.finfo(dtype).eps) * float(jnp.abs(logits).max())
        # All at once: one program to compile.
        found = jax.jit(lambda z: jax.tree.map(lambda f: jax.value_and_grad(f)(z), pairs))(logits)
        for name, (got, expected) in found.items():
            chex.assert_trees_all_close(got, expected, rtol=0, atol=tolerance, custom_message=name)


# --- Large logits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16])
def test_softmax_cross_entropy_is_finite_and_right_at_logits_of_10_000(dtype):
    with jax.enable_x64(dtype is jnp.float64):
        logits = jnp.array([[1e4, -1e4], [1e4, -1e4], [-1e4, -1e4], [0, 1e4]], dtype)
        for labels in (jnp.array([0, 1, 1, 1]), jnp.eye(2, dtype=dtype)[jnp.array([0, 1, 1, 1])]):
            loss, slope = VALUE_AND_SLOPE[mjn.softmax_cross_entropy](logits, labels)
            chex.assert_tree_all_finite((loss, slope))
            largest = float(logits[0, 0])
            assert float(loss) == pytest.approx(
                (0 + 2 * largest + np.log(2) + 0) / 4, rel=2 * float(jnp.finfo(dtype).eps)
            )
            expected = np.array([[0, 0], [1, -1], [0.5, -0.5], [0, 0]]) / 4
            # In bfloat16 and float16 log(2) is lost beside 10,000 and softmax gives 1 and 1 for the third point.
            assert_close(np.asarray(slope)[[0, 1, 3]], expected[[0, 1, 3]], 0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16])
def test_binary_cross_entropy_is_finite_and_right_at_logits_of_10_000(dtype):
    with jax.enable_x64(dtype is jnp.float64):
        logits, labels = jnp.array([1e4, 1e4, -1e4, -1e4], dtype), jnp.array([1, 0, 1, 0], dtype)
        loss, slope = VALUE_AND_SLOPE[mjn.binary_cross_entropy](logits, labels)
        chex.assert_tree_all_finite((loss, slope))
        assert float(loss) == pytest.approx(2 * float(logits[0]) / 4, rel=2 * float(jnp.finfo(dtype).eps))
        assert_close(slope, np.array([0, 1, -1, 0]) / 4, 0)


def test_a_confident_yes_is_as_precise_as_a_confident_no():
    yes = VALUE_AND_SLOPE[mjn.binary_cross_entropy](jnp.array([20.0]), jnp.array([1.0]))
    no = VALUE_AND_SLOPE[mjn.binary_cross_entropy](jnp.array([-20.0]), jnp.array([0.0]))
    chex.assert_trees_all_close((yes[0], -yes[1]), no, rtol=1e-5)


def test_a_common_shift_of_the_logits_costs_softmax_cross_entropy_no_digits():
    logits = jnp.array([[0.0, 0.0]])
    plain = mjn.softmax_cross_entropy(logits, jnp.array([0]))
    chex.assert_trees_all_close(mjn.softmax_cross_entropy(logits + 1e4, jnp.array([0])), plain, rtol=1e-6)


@pytest.mark.parametrize("masked", [jnp.array([[1.0, 2.0, -jnp.inf]]), jnp.array([[0, 4e4, -4e4]], jnp.float16)])
def test_int_and_one_hot_labels_agree_where_a_class_is_impossible(masked):
    by_class = mjn.softmax_cross_entropy(masked, jnp.array([1]))
    assert jnp.isfinite(by_class)
    assert mjn.softmax_cross_entropy(masked, jnp.array([[0, 1, 0]], masked.dtype)) == by_class


# --- What does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", [*LOSSES, mjn.prediction_errors, mjn.accuracy])
@pytest.mark.parametrize(
    ("predictions", "targets"),
    [
        ((3, 1), (3,)),
        ((3,), (3, 1)),
        ((3, 2), (2, 2)),
        ((3, 2), (3,)),
        ((3, 1), (1, 3)),
        ((3, 1), ()),
        ((1, 2), (3, 2)),
    ],
)
def test_shapes_that_differ_are_refused_and_never_broadcast(f, predictions, targets):
    with pytest.raises(ValueError, match=r"got shape \(.*\); expected \(.*\)"):
        f(jnp.ones(predictions), jnp.ones(targets))


@pytest.mark.parametrize("f", [mjn.softmax_cross_entropy, mjn.accuracy])
@pytest.mark.parametrize(("logits", "labels"), [((3,), (3,)), ((3, 2), (2,)), ((3, 2, 2), (3,)), ((3, 2), (1,))])
def test_classes_that_do_not_fit_the_logits_are_refused(f, logits, labels):
    with pytest.raises(ValueError, match=r"(labels: got classes of|logits: got) shape \(.*\).*; expected"):
        f(jnp.ones(logits), jnp.zeros(labels, int))


@pytest.mark.parametrize("f", [mjn.softmax_cross_entropy, mjn.accuracy])
def test_integer_labels_of_shape_n_1_are_refused_for_logits_of_several_classes(f):
    with pytest.raises(ValueError, match=r"labels: got shape \(3, 1\); expected \(3, 2\)"):
        f(jnp.ones((3, 2)), jnp.zeros((3, 1), int))


@pytest.mark.parametrize("f", [mjn.softmax_cross_entropy, mjn.accuracy])
def test_a_single_logit_is_no_choice_between_classes(f):
    with pytest.raises(ValueError, match="labels"):
        f(jnp.array([[5.0], [5.0], [-5.0]]), jnp.array([1, 1, 0]))


@pytest.mark.parametrize("f", [mjn.softmax_cross_entropy, mjn.accuracy])
def test_logits_without_an_axis_of_classes_are_refused(f):
    with pytest.raises(ValueError, match=r"labels|logits"):
        f(jnp.array([5.0, -5.0, 2.0]), jnp.array([1.0, 0.0, 0.0]))


@pytest.mark.parametrize("label", [-1, C, 10**6, -(10**6)])
def test_a_class_that_does_not_exist_makes_nan_in_the_program(label):
    loss, slope = VALUE_AND_SLOPE[mjn.softmax_cross_entropy](jnp.zeros((2, C)), jnp.array([0, label]))
    assert jnp.isnan(loss)
    assert slope.shape == (2, C)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32])
def test_any_integer_dtype_serves_for_classes(dtype):
    logits = jnp.linspace(-1, 1, 3 * C).reshape(3, C)
    chex.assert_trees_all_equal(
        mjn.softmax_cross_entropy(logits, np.array([0, 3, 1], dtype)), mjn.softmax_cross_entropy(logits, [0, 3, 1])
    )


@pytest.mark.parametrize(("dtype", "classes"), [(np.uint8, 256), (np.int8, 128), (np.uint8, 300)])
def test_labels_in_a_small_dtype_may_count_all_their_classes(dtype, classes):
    assert jnp.isfinite(mjn.softmax_cross_entropy(jnp.zeros((2, classes)), np.array([0, 127], dtype)))


# --- Accuracy --------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(logits=arrays(N, C, largest=1e4), labels=labels_int, order=st.permutations(range(N)))
def test_accuracy_is_the_share_of_right_classes_in_any_order(logits, labels, order):
    expected = np.float32(np.mean(logits.argmax(axis=-1) == labels))
    got = mjn.accuracy(logits, labels)
    assert got.dtype == jnp.float32
    assert abs(got - expected) <= np.spacing(expected)  # a compiler may divide by N with a product of 1 / N
    assert mjn.accuracy(logits[order], labels[order]) == got


@pytest.mark.parametrize("dtype", [np.float32, np.int32, jnp.bfloat16])
def test_accuracy_of_yes_or_no_counts_the_signs(dtype):
    logits, labels = jnp.array([[3.0], [-1.0], [0.1], [-0.1], [0.0]]), np.array([[1], [1], [0], [0], [0]], dtype)
    assert mjn.accuracy(logits, labels) == np.float32(3 / 5)


# --- Objectives ------------------------------------------------------------------------------------------------------

NETWORK = mjn.mlp((2, C))
PARAMS = NETWORK.init(jax.random.key(0))
X = np.ones((3, 2), np.float32)


def test_an_objective_is_the_loss_of_the_predictions_for_any_pair():
    y = np.array([0, 1, 2])
    f = mjn.objective(NETWORK, mjn.softmax_cross_entropy)
    expected = mjn.softmax_cross_entropy(NETWORK.apply(PARAMS, X), y)
    for batch in (mjn.Batch(X, y), (X, y), [X, y]):
        chex.assert_trees_all_equal(f(PARAMS, batch), expected)


@pytest.mark.parametrize("batch", [(X,), (X, X, X), {"x": X, "y": X}, X, None])
def test_an_objective_refuses_what_is_no_pair(batch):
    with pytest.raises(TypeError, match=r"batch: got \w+( of \d)?; expected a pair \(x, y\)"):
        mjn.objective(NETWORK, mjn.mean_squared_error)(PARAMS, batch)


def test_objectives_of_an_equal_network_and_loss_are_equal():
    one, other = (mjn.objective(NETWORK, mjn.softmax_cross_entropy) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != mjn.objective(NETWORK, mjn.mean_squared_error)
    assert one != mjn.objective(mjn.mlp((2, C)), mjn.softmax_cross_entropy)


@pytest.mark.parametrize(
    ("loss", "y", "message"),
    [
        (mjn.softmax_cross_entropy, np.array([0, C, 1]), r"labels\[1\]: got 4; expected a class of 4, from 0 to 3"),
        (mjn.softmax_cross_entropy, np.array([0, 1, -1]), r"labels\[2\]: got -1; expected a class of 4"),
        (mjn.accuracy, np.array([9, 1, 1]), r"labels\[0\]: got 9; expected a class of 4"),
        (mjn.softmax_cross_entropy, 1.5 * np.eye(3, C), r"labels\[\(0, 0\)\]: got 1.5; expected a probability"),
        (mjn.binary_cross_entropy, -np.eye(3, C), r"labels\[\(0, 0\)\]: got -1.0; expected a probability"),
        (mjn.binary_cross_entropy, np.full((3, C), 2), r"labels\[\(0, 0\)\]: got 2; expected a probability"),
        (mjn.mean_squared_error, np.ones(3), r"targets: got shape \(3,\); expected \(3, 4\)"),
    ],
)
def test_check_values_says_which_label_is_out_of_range(loss, y, message):
    for batch in ((X, y), (jnp.asarray(X), jnp.asarray(y))):
        with pytest.raises(ValueError, match=message):
            mjn.objective(NETWORK, loss).check_values(PARAMS, batch)


@pytest.mark.parametrize("loss", [mjn.softmax_cross_entropy, mjn.binary_cross_entropy])
def test_check_values_refuses_a_probability_of_nan(loss):
    with pytest.raises(ValueError, match="labels"):
        mjn.objective(NETWORK, loss).check_values(PARAMS, (X, np.full((3, C), np.nan)))


@pytest.mark.parametrize(
    ("loss", "y"),
    [
        (mjn.softmax_cross_entropy, np.array([0, 1, C - 1])),
        (mjn.softmax_cross_entropy, np.full((3, C), 0.25)),
        (mjn.binary_cross_entropy, np.eye(3, C)),
        (mjn.mean_squared_error, np.full((3, C), -7.0)),
        (mjn.accuracy, np.array([0, 1, 2])),
        (lambda predictions, y: jnp.sum(predictions) * y, np.float32(99)),
    ],
)
def test_check_values_is_silent_where_all_is_well(loss, y):
    assert mjn.objective(NETWORK, loss).check_values(PARAMS, (X, y)) is None
