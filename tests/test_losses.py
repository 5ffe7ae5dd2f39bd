"""Losses against NumPy with more digits, against optax, and at the edges of what floats can hold."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kits.marks import SLOW

import minijaxnet as mjn

N, C = 6, 4  # one shape, so that hypothesis compiles nothing anew
EXACT = np.longdouble  # never fewer digits than the loss under test
LOSSES = [mjn.mean_squared_error, mjn.softmax_cross_entropy, mjn.binary_cross_entropy]
VALUE_AND_GRADIENT = {loss: jax.jit(jax.value_and_grad(loss)) for loss in LOSSES}  # compiled once for all examples
ACCURACY = jax.jit(mjn.accuracy)


def arrays(*shape, largest):
    # XLA takes a subnormal number for 0, NumPy does not.
    elements = st.floats(-largest, largest, width=32, allow_subnormal=False)
    return hnp.arrays(np.float32, shape, elements=elements)


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


# --- The values, and autodiff's gradient of them ----------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(predictions=arrays(N, 1, largest=1e3), targets=arrays(N, 1, largest=1e3))
def test_mean_squared_error_is_the_mean_of_squared_errors(predictions, targets):
    loss, gradient = VALUE_AND_GRADIENT[mjn.mean_squared_error](predictions, targets)
    expected, expected_gradient = exact_mean_squared_error(predictions, targets)
    eps = np.finfo(np.float32).eps
    # An error rounds at the size of its larger term; a square doubles that, and N sums add N roundings.
    size = float(np.abs(predictions).max() + np.abs(targets).max())
    assert_close(loss, expected, (N + 4) * eps * size**2 + 1e-37)
    assert_close(gradient, expected_gradient, 4 * eps * size + 1e-37)


@settings(max_examples=60, deadline=None)
@given(logits=arrays(N, C, largest=1e4), labels=labels_int)
def test_softmax_cross_entropy_is_the_mean_surprise(logits, labels):
    loss, gradient = VALUE_AND_GRADIENT[mjn.softmax_cross_entropy](logits, labels)
    expected, expected_gradient = exact_softmax_cross_entropy(logits, one_hot(labels))
    eps = np.finfo(np.float32).eps
    size = float(np.abs(logits).max()) + np.log(C)  # both sides of the difference are this large and round so
    assert_close(loss, expected, (N + 4) * eps * size)
    # exp turns the rounding of its argument into a relative error of the probability, which is at most 1.
    assert_close(gradient, expected_gradient, 4 * eps * (size + 1))


@settings(max_examples=60, deadline=None)
@given(logits=arrays(N, 2, largest=1e4), labels=hnp.arrays(np.float32, (N, 2), elements=st.floats(0, 1, width=32)))
def test_binary_cross_entropy_is_the_mean_surprise(logits, labels):
    loss, gradient = VALUE_AND_GRADIENT[mjn.binary_cross_entropy](logits, labels)
    expected, expected_gradient = exact_binary_cross_entropy(logits, labels)
    eps = np.finfo(np.float32).eps
    assert_close(loss, expected, (2 * N + 4) * eps * (float(np.abs(logits).max()) + 1))
    assert_close(gradient, expected_gradient, 4 * eps)


@settings(max_examples=25, deadline=None)
@given(logits=arrays(N, C, largest=1e4), labels=labels_int)
def test_int_and_one_hot_labels_agree(logits, labels):
    value_and_gradient = VALUE_AND_GRADIENT[mjn.softmax_cross_entropy]
    by_class = value_and_gradient(logits, labels)
    for dtype in (np.float32, np.int32, np.bool_):
        by_one_hot = value_and_gradient(logits, one_hot(labels, dtype))
        # Summing zeros around the right logit rounds nothing, so this is an equality.
        chex.assert_trees_all_equal(by_class[0], by_one_hot[0], strict=True)
        assert_close(by_class[1], by_one_hot[1], 2**-23)
    assert ACCURACY(logits, labels) == ACCURACY(logits, one_hot(labels))


@pytest.mark.parametrize("dtype", ["bfloat16", SLOW("float16"), SLOW("float32"), SLOW("float64")])
def test_a_loss_keeps_its_dtype_and_is_right_to_its_rounding(dtype):
    rng = np.random.default_rng(3)
    cases = {
        "mean_squared_error": (mjn.mean_squared_error, exact_mean_squared_error, rng.normal(size=(N, C))),
        "binary": (mjn.binary_cross_entropy, exact_binary_cross_entropy, rng.integers(0, 2, (N, C))),
        "one-hot": (mjn.softmax_cross_entropy, exact_softmax_cross_entropy, one_hot(rng.integers(0, C, N))),
        "probabilities": (mjn.softmax_cross_entropy, exact_softmax_cross_entropy, rng.dirichlet(np.ones(C), N)),
    }
    predictions, targets = (
        (3 * rng.normal(size=(N, C))).astype(dtype),
        {k: y.astype(dtype) for k, (_, _, y) in cases.items()},
    )
    with jax.enable_x64(dtype == "float64"):
        # All at once: one program to compile.
        every = jax.jit(lambda z, y: {name: jax.value_and_grad(case[0])(z, y[name]) for name, case in cases.items()})
        found = jax.device_get(every(predictions, targets))
    for name, (value, gradient) in found.items():
        assert (value.dtype, value.shape, gradient.dtype) == (dtype, (), dtype), name
        expected, expected_gradient = cases[name][1](predictions, targets[name])
        eps, size = float(jnp.finfo(dtype).eps), float(np.abs(predictions).max()) + 2
        assert_close(value, expected, 4 * eps * size)
        assert_close(gradient, expected_gradient, 4 * eps * size / N)


# --- Large logits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", SLOW("float32"), SLOW("float64"), SLOW("bfloat16")])
def test_cross_entropies_are_finite_and_right_at_logits_of_10_000(dtype):
    logits = np.array([[1e4, -1e4], [1e4, -1e4], [-1e4, -1e4], [0, 1e4]], dtype)
    largest, rel = float(logits[0, 0]), 2 * float(jnp.finfo(dtype).eps)
    with jax.enable_x64(dtype == "float64"):
        for labels in (np.array([0, 1, 1, 1]), np.eye(2)[[0, 1, 1, 1]].astype(dtype)):
            loss, gradient = VALUE_AND_GRADIENT[mjn.softmax_cross_entropy](logits, labels)
            assert np.isfinite(gradient).all()
            assert float(loss) == pytest.approx((0 + 2 * largest + np.log(2) + 0) / 4, rel=rel)
            expected = np.array([[0, 0], [1, -1], [0.5, -0.5], [0, 0]]) / 4
            # In bfloat16 and float16 log(2) is lost beside 10,000 and softmax gives 1 and 1 for the third point.
            assert_close(np.asarray(gradient)[[0, 1, 3]], expected[[0, 1, 3]], 0)
        yes_or_no, labels = np.array([1e4, 1e4, -1e4, -1e4], dtype), np.array([1, 0, 1, 0], dtype)
        loss, gradient = VALUE_AND_GRADIENT[mjn.binary_cross_entropy](yes_or_no, labels)
        assert float(loss) == pytest.approx(2 * largest / 4, rel=rel)
        assert_close(gradient, np.array([0, 1, -1, 0]) / 4, 0)


# --- What does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", [*LOSSES, mjn.prediction_errors, mjn.accuracy])
@pytest.mark.parametrize(("predictions", "targets"), [((3, 1), (3,)), ((3,), (3, 1)), ((3, 1), ()), ((1, 2), (3, 2))])
def test_shapes_that_differ_are_refused_and_never_broadcast(f, predictions, targets):
    with pytest.raises(ValueError, match=r"got (shape \(.*\)|float32\[.*\]); expected .*\(.*\)"):
        f(np.ones(predictions), np.ones(targets))


@pytest.mark.parametrize("f", [mjn.softmax_cross_entropy, mjn.accuracy])
@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ((3,), np.zeros(3, int), r"logits: got shape \(3,\); expected"),
        ((3, 2), np.zeros(2, int), r"labels: got int32\[2\]; expected classes, integers of shape \(3,\), or"),
        ((3, 2), np.zeros((3, 1), int), r"labels: got int32\[3,1\]; expected .*\(3,\): labels\[:, 0\], or"),
        ((3, 2), np.zeros(3), r"labels: got float32\[3\]; expected .*\(3,\): labels.astype\(int\), or"),
        ((3, 1), np.array([1, 1, 0]), "(labels: got int32|logits: got shape .*binary_cross_entropy)"),
    ],
)
def test_labels_that_do_not_fit_the_logits_are_refused(f, logits, labels, message):
    with pytest.raises(ValueError, match=message):
        f(np.ones(logits), labels)


def test_probabilities_have_to_sum_to_one_and_the_first_row_that_does_not_is_named():
    objective = mjn.objective(mjn.dense(2, C), mjn.softmax_cross_entropy)
    params, x = objective.network.init(jax.random.key(0)), np.ones((3, 2), np.float32)
    for labels in (np.eye(C), np.full((3, C), 1 / C), jnp.full((3, C), 1 / C, jnp.bfloat16), np.eye(C, dtype=int)):
        objective.check_values(params, (x, labels[:3]))
    for labels, words in (
        (jax.nn.one_hot(np.array([1, 2, C]), C), r"labels\[2\]: got \[0.*\], which sums to 0; .*\(1 of 3 rows"),
        (np.eye(C)[:3] + np.eye(C)[[0, 2, 1]], r"labels"),
    ):
        with pytest.raises(ValueError, match=words):
            objective.check_values(params, (x, labels))


@pytest.mark.parametrize("label", [-1, C])
def test_a_class_that_does_not_exist_makes_nan_in_the_program(label):
    loss, gradient = VALUE_AND_GRADIENT[mjn.softmax_cross_entropy](np.zeros((2, C), np.float32), np.array([0, label]))
    assert np.isnan(loss)
    assert gradient.shape == (2, C)


# --- Accuracy ---------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(logits=arrays(N, C, largest=1e4), labels=labels_int, order=st.permutations(range(N)))
def test_accuracy_is_the_share_of_right_classes_in_any_order(logits, labels, order):
    expected = np.float32(np.mean(logits.argmax(axis=-1) == labels))
    got = ACCURACY(logits, labels)
    assert got.dtype == jnp.float32
    assert abs(got - expected) <= np.spacing(expected)  # a compiler may divide by N with a product of 1 / N
    assert ACCURACY(logits[order], labels[order]) == got


# --- Objectives -------------------------------------------------------------------------------------------------------

NETWORK = mjn.mlp((2, C))
PARAMS = ({"weights": np.linspace(-1, 1, 2 * C, dtype=np.float32).reshape(2, C), "bias": np.zeros(C, np.float32)},)
X = np.ones((3, 2), np.float32)


def test_an_objective_is_the_loss_of_the_predictions_for_any_pair():
    y = np.array([0, 1, 2])
    f = mjn.objective(NETWORK, mjn.softmax_cross_entropy)
    expected = jax.jit(lambda params: mjn.softmax_cross_entropy(NETWORK.apply(params, X), y))(PARAMS)
    for batch in (mjn.Batch(X, y), (X, y), [X, y]):
        chex.assert_trees_all_equal(jax.jit(f)(PARAMS, batch), expected)
    for batch in ((X,), {"x": X, "y": X}):
        with pytest.raises(TypeError, match=r"batch: got \w+( of \d)?; expected a pair \(x, y\)"):
            f(PARAMS, batch)


@pytest.mark.parametrize(
    ("loss", "y", "message"),
    [
        (mjn.softmax_cross_entropy, np.array([0, C, 1]), r"labels\[1\]: got 4; expected a class of 4, from 0 to 3"),
        (mjn.accuracy, np.array([9, 1, 1]), r"labels\[0\]: got 9; expected a class of 4"),
        (mjn.softmax_cross_entropy, 1.5 * np.eye(3, C), r"labels\[0, 0\]: got 1.5; expected a probability"),
        (mjn.binary_cross_entropy, -np.eye(3, C), r"labels\[0, 0\]: got -1.0; expected a probability"),
        (mjn.binary_cross_entropy, np.full((3, C), 2), r"labels\[0, 0\]: got 2; expected a probability"),
        *((loss, np.full((3, C), np.nan), "labels") for loss in (mjn.softmax_cross_entropy, mjn.binary_cross_entropy)),
        (mjn.mean_squared_error, np.ones(3), r"targets: got shape \(3,\); expected \(3, 4\)"),
    ],
)
def test_check_values_says_which_label_is_out_of_range(loss, y, message):
    for batch in ((X, y), (jnp.asarray(X), jnp.asarray(y))):
        with pytest.raises(ValueError, match=message):
            mjn.objective(NETWORK, loss).check_values(PARAMS, batch)


def test_a_descent_that_can_take_no_step_says_which_label_is_no_class():
    descent = mjn.gradient_descent(mjn.objective(mjn.dense(2, 3), mjn.softmax_cross_entropy), 0.1)
    state = descent.init({"weights": np.ones((2, 3), np.float32), "bias": np.zeros(3, np.float32)})
    data = np.ones((4, 2), np.float32), np.array([1, 2, 3, 1])
    with pytest.raises(ValueError, match=r"labels\[2\]: got 3; expected a class of 3, from 0 to 2"):
        mjn.descend(descent, state, data, steps=3)
    with pytest.raises(ValueError, match=r"labels\[2\]: got 3"):
        mjn.descend_epochs(descent, state, data, jax.random.key(0), batch_size=4, epochs=1)
