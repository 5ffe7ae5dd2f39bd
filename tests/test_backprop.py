"""Every hand-derived derivative against autodiff, and autodiff's machinery around a hand-derived gradient."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import minijaxnet as mjn
from minijaxnet import backprop

ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid, "identity": jax.nn.identity}
LOSSES = {
    "mean_squared_error": mjn.mean_squared_error,
    "softmax, classes": mjn.softmax_cross_entropy,
    "softmax, one-hot": mjn.softmax_cross_entropy,
    "binary": mjn.binary_cross_entropy,
}
WIDTHS = (3, 4)  # unequal, so that a transposed product fails; only two, with 4 the last, so that little is compiled
POINTS = 5
# An element passes through a handful of roundings a layer, each relative to the largest terms summed there. Measured on
# these networks: at most 6.1 * depth of them in any of the three dtypes.
ROUNDINGS_A_LAYER = 16

EVERY_ACTIVATION = pytest.mark.parametrize("activation", ACTIVATIONS)
EVERY_LOSS = pytest.mark.parametrize("loss", LOSSES)


def problem(sizes, loss, bias, dtype):
    """Params and a batch, the same numbers in every dtype."""
    draw = np.random.default_rng(len(sizes))
    n_out = sizes[-1]
    params = tuple(
        {"weights": draw.normal(size=(i, o)) / np.sqrt(i)} | ({"bias": draw.uniform(0, 1, o)} if bias else {})
        for i, o in itertools.pairwise(sizes)
    )
    x = draw.normal(size=(POINTS, sizes[0]))
    classes = draw.integers(0, n_out, POINTS)
    y = {
        "mean_squared_error": draw.normal(size=(POINTS, n_out)),
        "softmax, classes": classes,
        "softmax, one-hot": np.eye(n_out)[classes],
        "binary": draw.integers(0, 2, (POINTS, n_out)).astype(float),
    }[loss]
    params, x = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (params, x))
    return params, mjn.Batch(x, jnp.asarray(y, None if y.dtype.kind == "i" else dtype))


def assert_equal_to_rounding(by_hand, by_autodiff, dtype, depth):
    bound = ROUNDINGS_A_LAYER * depth * float(jnp.finfo(dtype).eps)
    chex.assert_trees_all_equal_shapes_and_dtypes(by_hand, by_autodiff)
    for got, want in zip(jax.tree.leaves(by_hand), jax.tree.leaves(by_autodiff), strict=True):
        assert got.dtype == dtype
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        np.testing.assert_allclose(got, want, rtol=0, atol=bound * np.abs(want).max())


def check_gradient(activation, loss, dtype, depths):
    alive = []
    for depth, bias in itertools.product(depths, (True, False)):
        output = jax.nn.relu if bias == (depth % 2 == 1) else None  # each goes with each as the depth goes on
        sizes = tuple(WIDTHS[(depth + 1 - i) % 2] for i in range(depth + 1))
        params, batch = problem(sizes, loss, bias, dtype)
        fns = {"activation": ACTIVATIONS[activation], "output_activation": output, "bias": bias}
        objective = mjn.objective(mjn.mlp(sizes, **fns), LOSSES[loss])
        value, by_autodiff = jax.value_and_grad(objective)(params, batch)
        value_by_hand, by_hand = mjn.mlp_gradient(sizes, loss=LOSSES[loss], **fns)(params, batch)
        assert_equal_to_rounding(value_by_hand, value, dtype, depth)
        assert_equal_to_rounding(by_hand, by_autodiff, dtype, depth)
        alive.append(all(np.any(leaf) for leaf in jax.tree.leaves(by_autodiff)))
    assert np.mean(alive) >= 0.5, "these networks have a slope to be right about"


@EVERY_ACTIVATION
@EVERY_LOSS
def test_the_gradient_by_hand_is_autodiffs_in_float64_at_depths_1_to_6(activation, loss):
    # Every activation with every loss, and either of them at every depth.
    turn = (list(ACTIVATIONS).index(activation) + list(LOSSES).index(loss)) % 3
    with jax.enable_x64(True):
        check_gradient(activation, loss, jnp.float64, [1 + turn, 4 + turn])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("activation", "loss"), list(zip(ACTIVATIONS, LOSSES, strict=True)))
def test_the_gradient_by_hand_is_autodiffs_to_the_rounding_of_narrower_dtypes(activation, loss, dtype):
    check_gradient(activation, loss, dtype, [3])


@EVERY_LOSS
def test_the_gradient_by_hand_is_autodiffs_in_the_layout_of_few_points_too(loss, monkeypatch):
    assert backprop.faster_layout(POINTS, WIDTHS) is backprop.FEATURES_FIRST  # what the other tests run
    monkeypatch.setattr(backprop, "faster_layout", lambda points, sizes: backprop.BATCH_FIRST)
    with jax.enable_x64(True):
        check_gradient("sigmoid", loss, jnp.float64, [1, 3])


@pytest.mark.parametrize("points", [15, 64], ids=["rows", "columns"])
def test_a_gradient_with_transposes_in_memory_passes_jit_vmap_and_another_derivative(points):
    sizes, draw = (20, 16, 2), np.random.default_rng(0)
    params = mjn.mlp(sizes).init(jax.random.key(0))
    batch = mjn.Batch(jnp.asarray(draw.normal(size=(2, points, 20))), jnp.asarray(draw.integers(0, 2, (2, points))))
    objective = mjn.objective(mjn.mlp(sizes), mjn.softmax_cross_entropy)
    by_hand = mjn.mlp_gradient(sizes, activation=jax.nn.relu, loss=mjn.softmax_cross_entropy)

    def along_itself(f):
        return jax.jit(jax.vmap(lambda x, y: jax.jvp(lambda p: jax.grad(f)(p, (x, y)), (params,), (params,))))(*batch)

    assert "optimization_barrier" in str(jax.make_jaxpr(by_hand)(params, jax.tree.map(lambda leaf: leaf[0], batch)))
    got, want = along_itself(mjn.with_gradient(objective, by_hand)), along_itself(objective)
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-5)


def test_points_are_rows_where_they_are_few_beside_the_layers():
    chosen = [backprop.faster_layout(points, sizes) for points, sizes in ((4, (2, 2, 1)), (63, (9, 64)), (64, (9, 64)))]
    assert chosen == [backprop.FEATURES_FIRST, backprop.BATCH_FIRST, backprop.FEATURES_FIRST]


@pytest.mark.parametrize("output", ["tanh", "sigmoid", "identity"])
@EVERY_LOSS
def test_the_gradient_by_hand_is_autodiffs_under_every_output_activation(output, loss):
    with jax.enable_x64(True):
        params, batch = problem((4, 3, 4), loss, True, jnp.float64)
        fns = {"activation": jax.nn.relu, "output_activation": ACTIVATIONS[output]}
        by_autodiff = jax.grad(mjn.objective(mjn.mlp((4, 3, 4), **fns), LOSSES[loss]))(params, batch)
        by_hand = mjn.mlp_gradient((4, 3, 4), loss=LOSSES[loss], **fns)(params, batch)[1]
        assert_equal_to_rounding(by_hand, by_autodiff, jnp.float64, 2)


def test_integer_inputs_and_targets_and_a_list_for_a_batch_serve_as_well():
    params, _ = problem((3, 4), "mean_squared_error", True, jnp.float32)
    batch = [jnp.arange(6).reshape(2, 3), jnp.arange(8).reshape(2, 4)]
    by_hand = mjn.mlp_gradient([3, 4], activation=jax.nn.relu, loss=mjn.mean_squared_error)
    by_autodiff = jax.value_and_grad(mjn.objective(mjn.mlp((3, 4)), mjn.mean_squared_error))
    chex.assert_trees_all_close(by_hand(params, batch), by_autodiff(params, batch), rtol=1e-6)


@pytest.mark.parametrize("loss", ["mean_squared_error", "softmax, one-hot", "binary"])
def test_targets_of_a_wider_dtype_leave_the_gradient_in_that_of_the_params(loss):
    params, (x, _) = problem((3, 4), loss, True, jnp.bfloat16)
    _, (_, y) = problem((3, 4), loss, True, jnp.float32)
    by_autodiff = jax.value_and_grad(mjn.objective(mjn.mlp((3, 4)), LOSSES[loss]))(params, (x, y))
    by_hand = mjn.mlp_gradient((3, 4), activation=jax.nn.relu, loss=LOSSES[loss])(params, (x, y))
    assert by_hand[0].dtype == by_autodiff[0].dtype
    assert_equal_to_rounding(by_hand[1], by_autodiff[1], jnp.bfloat16, 1)


def test_the_slope_by_hand_of_the_lesson_is_30_40():
    by_hand = mjn.mlp_gradient((2, 1), activation=jax.nn.relu, loss=mjn.mean_squared_error, bias=False)
    params, batch = ({"weights": jnp.array([[1.0], [2.0]])},), (jnp.array([[3.0, 4.0]]), jnp.array([[6.0]]))
    loss, gradient = by_hand(params, batch)
    assert loss == 25
    chex.assert_trees_all_equal(gradient, ({"weights": jnp.array([[30.0], [40.0]])},))


def test_the_slope_by_hand_on_the_lesson_points_is_what_the_equations_give():
    # Weights A: hidden values (3, 6), (4, 5), (0, 0), (8, 4); predictions 9, 9, 0, 12; errors 8, 6, -5, 5. The third
    # point's nodes are silent. Output slopes sum_i 2 / 4 * error_i * hidden_i: 44 and 49. Hidden slopes, output weights
    # being 1: sum_i 2 / 4 * error_i * input_i over the other three points: 13 and 18 for either node.
    params = ({"weights": jnp.array([[2.0, 1.0], [1.0, 2.0]])}, {"weights": jnp.ones((2, 1))})
    fns = {"activation": jax.nn.relu, "output_activation": jax.nn.relu, "bias": False}
    loss, gradient = mjn.mlp_gradient((2, 2, 1), loss=mjn.mean_squared_error, **fns)(params, mjn.lesson_points())
    assert loss == 37.5
    expected = {"weights": jnp.array([[13.0, 13.0], [18.0, 18.0]])}, {"weights": jnp.array([[44.0], [49.0]])}
    chex.assert_trees_all_equal(gradient, expected)


# --- Single rules --------------------------------------------------------------------------------------------------

SATURATING = [0.0, -0.0, 1e-30, -1e-30, 0.5, -0.5, 3.0, -3.0, 50.0, -50.0, 1e4, -1e4]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16], ids=["float32", "float64", "bfloat16"])
@EVERY_ACTIVATION
def test_each_activation_slope_is_autodiffs_also_where_it_saturates(activation, dtype):
    f, rule = ACTIVATIONS[activation], getattr(backprop, f"{activation}_slope")
    with jax.enable_x64(dtype is jnp.float64):
        z = jnp.array(SATURATING, dtype)
        got, want = rule(z, f(z)), jax.vmap(jax.grad(f))(z)
        assert got.dtype == dtype
        chex.assert_tree_all_finite(got)
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        np.testing.assert_allclose(got, want, rtol=0, atol=2 * float(jnp.finfo(dtype).eps))


def test_the_slope_of_a_saturated_sigmoid_loses_no_digits_on_either_side():
    with jax.enable_x64(True):
        z = jnp.array([-700.0, -50.0, -1.0, 0.0, 1.0, 50.0, 700.0])
        got = np.asarray(backprop.sigmoid_slope(z, jax.nn.sigmoid(z)))
        np.testing.assert_allclose(got, 1 / (2 + 2 * np.cosh(np.asarray(z))), rtol=1e-13)


def test_the_slope_of_a_saturating_tanh_cancels_no_more_than_tanh_itself():
    with jax.enable_x64(True):
        z = jnp.linspace(-18, 18, 73)
        got = np.asarray(backprop.tanh_slope(z, jnp.tanh(z)))
        # h is known to an epsilon, so 1 - h is; 1 + h is near 2.
        np.testing.assert_allclose(got, 1 / np.cosh(np.asarray(z)) ** 2, rtol=0, atol=4 * np.finfo(np.float64).eps)


def test_at_its_kink_relu_has_slope_0():
    z = jnp.array([0.0, -0.0])
    chex.assert_trees_all_equal(backprop.relu_slope(z, jax.nn.relu(z)), jnp.zeros(2))


def loss_problem(loss, logits):
    n, classes = logits.shape
    draw = np.random.default_rng(0)
    return {
        "mean_squared_error": draw.normal(size=(n, classes)),
        "softmax, classes": draw.integers(0, classes, n),
        # A target that sums to 2 is no probability: the rule must not take it for one.
        "softmax, one-hot": np.eye(classes)[draw.integers(0, classes, n)] * np.arange(1, n + 1)[:, None],
        "binary": draw.uniform(size=(n, classes)),
    }[loss]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("scale", [1.0, 50.0, 1e4])
@EVERY_LOSS
def test_each_loss_slope_is_autodiffs_also_where_it_saturates(loss, scale, dtype):
    rule = getattr(backprop, f"{LOSSES[loss].__name__}_slope")
    with jax.enable_x64(dtype is jnp.float64):
        logits = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (POINTS, 4)), dtype) * scale
        targets = jnp.asarray(loss_problem(loss, logits))
        targets = targets if targets.dtype.kind == "i" else targets.astype(dtype)
        got, want = rule(logits, targets), jax.grad(LOSSES[loss])(logits, targets)
        chex.assert_tree_all_finite(got)
        largest = max(1.0, float(jnp.abs(want).max()))
        chex.assert_trees_all_close(got, want, rtol=0, atol=4 * float(jnp.finfo(dtype).eps) * largest)


def test_saturated_classes_have_slopes_of_exactly_0_and_1():
    logits = jnp.array([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0]])
    by_class = backprop.softmax_cross_entropy_slope(logits, jnp.array([0, 1]))
    by_one_hot = backprop.softmax_cross_entropy_slope(logits, jnp.eye(3)[:2])
    chex.assert_trees_all_equal(by_class, by_one_hot, jnp.array([[0.0, 0.0, 0.0], [0.5, -0.5, 0.0]]))
    binary = backprop.binary_cross_entropy_slope(jnp.array([[1e4, -1e4]]), jnp.array([[1.0, 1.0]]))
    chex.assert_trees_all_equal(binary, jnp.array([[0.0, -0.5]]))


def test_a_saturated_network_has_a_finite_gradient_equal_to_autodiffs():
    params, batch = problem((4, 3, 4), "softmax, classes", True, jnp.float32)
    for activation, scale in itertools.product((jnp.tanh, jax.nn.sigmoid, jax.nn.relu), (50.0, 1e4)):
        huge = jax.tree.map(lambda leaf, scale=scale: leaf * scale, params)
        objective = mjn.objective(mjn.mlp((4, 3, 4), activation=activation), mjn.softmax_cross_entropy)
        by_hand = mjn.mlp_gradient((4, 3, 4), activation=activation, loss=mjn.softmax_cross_entropy)
        got, want = by_hand(huge, batch), jax.value_and_grad(objective)(huge, batch)
        chex.assert_tree_all_finite(got)
        chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6 * scale)


def test_the_binary_slope_of_a_sure_right_answer_loses_no_digits():
    logits, labels = jnp.array([[20.0, -20.0]]), jnp.array([[1.0, 0.0]])
    want = jax.grad(mjn.binary_cross_entropy)(logits, labels)
    chex.assert_trees_all_close(want, jnp.array([[-1.0, 1.0]]) * np.exp(-20) / 2, rtol=1e-5)
    chex.assert_trees_all_close(backprop.binary_cross_entropy_slope(logits, labels), want, rtol=1e-5)


LAYOUTS = {"rows": backprop.BATCH_FIRST, "columns": backprop.FEATURES_FIRST}


TINY, TRANSPOSED_IN_MEMORY = (3, 4), (60, 5)


@pytest.mark.parametrize(
    ("bias", "layout", "sizes"),
    [
        (True, "rows", TINY),
        (False, "columns", TINY),
        (True, "columns", TRANSPOSED_IN_MEMORY),
        (False, "rows", TRANSPOSED_IN_MEMORY),
    ],
)
def test_the_slopes_of_a_dense_layer_are_its_jacobians_contracted_with_delta(bias, layout, sizes):
    layout = LAYOUTS[layout]
    with jax.enable_x64(True):
        (params,), (x, _) = problem(sizes, "binary", bias, jnp.float64)
        delta = jnp.asarray(np.random.default_rng(1).normal(size=(POINTS, sizes[1])))
        layer = mjn.dense(*sizes, bias=bias)
        chex.assert_trees_all_close(layout.turn(layout.forward(params, layout.turn(x))), layer.apply(params, x))
        slopes = layout.backward(params, layout.turn(x), layout.turn(delta))
        got = backprop.DenseSlopes(slopes.params, layout.turn(slopes.x))
        jacobians = jax.jacobian(layer.apply, argnums=(0, 1))(params, x)
        want = jax.tree.map(lambda jacobian: jnp.tensordot(delta, jacobian, 2), jacobians)
        chex.assert_trees_all_close(tuple(got), want, rtol=0, atol=1e-14)
        pulled_back = jax.vjp(layer.apply, params, x)[1](delta)
        chex.assert_trees_all_close(tuple(got), pulled_back, rtol=0, atol=1e-14)


# --- What mlp_gradient refuses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"sizes": (3,)}, r"mlp_gradient: sizes: got \(3,\); expected at least an input and an output"),
        ({"activation": jax.nn.gelu}, "mlp_gradient: activation: got .*gelu.*; expected one of .*relu, sigmoid, tanh"),
        ({"activation": "relu"}, "mlp_gradient: activation: got 'relu'; expected"),
        ({"output_activation": jax.nn.softmax}, "mlp_gradient: output_activation: got"),
        ({"loss": mjn.accuracy}, "mlp_gradient: loss: got .*accuracy.*; expected one of binary_cross_entropy, mean_"),
        ({"loss": None}, "mlp_gradient: loss: got None; expected"),
    ],
    ids=["sizes", "activation", "a name for one", "output_activation", "loss", "no loss"],
)
def test_what_no_rule_is_written_for_is_refused_by_name(changed, complaint):
    given = {"sizes": (3, 4), "activation": jax.nn.relu, "loss": mjn.mean_squared_error} | changed
    with pytest.raises(ValueError, match=complaint):
        mjn.mlp_gradient(given.pop("sizes"), **given)


@pytest.mark.parametrize(
    "params",
    [
        (),
        ({"weights": jnp.ones((4, 3)), "bias": jnp.ones(4)},),
        ({"weights": jnp.ones((3, 4))},),
        ({"weights": jnp.ones((3, 4)), "bias": jnp.ones((1, 4))},),
        ({"weights": jnp.ones((3, 4)), "bias": jnp.ones(4)}, {"weights": jnp.ones((4, 3)), "bias": jnp.ones(3)}),
        {"weights": jnp.ones((3, 4)), "bias": jnp.ones(4)},
    ],
    ids=["no layer", "transposed", "no bias", "bias as a row", "a layer too many", "a bare layer"],
)
def test_params_of_another_network_are_refused_with_both_shapes(params):
    by_hand = mjn.mlp_gradient((3, 4), activation=jax.nn.relu, loss=mjn.mean_squared_error)
    with pytest.raises(ValueError, match=r"params: got shapes .*; expected .*\(3, 4\).*those of mlp\(\(3, 4\)\)"):
        by_hand(params, (jnp.ones((2, 3)), jnp.ones((2, 4))))


def test_params_with_a_bias_too_many_are_refused():
    by_hand = mjn.mlp_gradient((3, 4), activation=jax.nn.relu, loss=mjn.mean_squared_error, bias=False)
    with pytest.raises(ValueError, match=r"params: got shapes .*bias"):
        by_hand(problem((3, 4), "binary", True, jnp.float32)[0], (jnp.ones((2, 3)), jnp.ones((2, 4))))


@pytest.mark.parametrize(
    ("batch", "kind", "complaint"),
    [
        (jnp.ones((2, 3)), TypeError, r"batch: got .*; expected a pair \(x, y\)"),
        ((jnp.ones((2, 3)), jnp.ones((2, 3))), ValueError, r"targets: got shape \(2, 3\); expected \(2, 4\)"),
        ((jnp.ones((2, 5)), jnp.ones((2, 4))), ValueError, r"x: got shape \(2, 5\); expected \(n, 3\)"),
        ((jnp.ones(3), jnp.ones(4)), ValueError, r"x: got shape \(3,\); expected \(n, 3\)"),
        ((jnp.ones((2, 2, 3)), jnp.ones((2, 2, 4))), ValueError, r"x: got shape \(2, 2, 3\); expected \(n, 3\)"),
    ],
    ids=["no pair", "targets", "width of x", "a single point", "two batch axes"],
)
def test_a_batch_that_does_not_fit_is_refused_by_name(batch, kind, complaint):
    params, _ = problem((3, 4), "mean_squared_error", True, jnp.float32)
    with pytest.raises(kind, match=complaint):
        mjn.mlp_gradient((3, 4), activation=jax.nn.relu, loss=mjn.mean_squared_error)(params, batch)


@pytest.mark.parametrize(
    "narrow",
    [
        "second layer",
        "weights",
    ],
)
def test_layers_of_different_dtypes_have_gradients_in_their_own(narrow):
    params, batch = problem((4, 3, 4), "mean_squared_error", True, jnp.float32)
    half = functools.partial(jax.tree.map, lambda leaf: leaf.astype(jnp.bfloat16))
    if narrow == "weights":
        params = tuple(layer | {"weights": half(layer["weights"])} for layer in params)
    else:
        params = params[0], half(params[1])
    objective = mjn.objective(mjn.mlp((4, 3, 4)), mjn.mean_squared_error)
    by_hand = mjn.mlp_gradient((4, 3, 4), activation=jax.nn.relu, loss=mjn.mean_squared_error)
    got, want = by_hand(params, batch), jax.value_and_grad(objective)(params, batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, want)
    chex.assert_trees_all_close(got, want, rtol=0.05, atol=0.05)


def test_a_silent_unit_stays_silent_under_a_slope_that_overflows():
    params = {"weights": jnp.array([[-1.0]])}, {"weights": jnp.array([[1e38]])}
    batch = jnp.ones((1, 1)), jnp.full((1, 1), -1e38)
    by_hand = mjn.mlp_gradient((1, 1, 1), activation=jax.nn.relu, loss=mjn.mean_squared_error, bias=False)
    objective = mjn.objective(mjn.mlp((1, 1, 1), bias=False), mjn.mean_squared_error)
    chex.assert_trees_all_equal(by_hand(params, batch)[1], jax.grad(objective)(params, batch))


def test_a_large_batch_in_float16_has_a_gradient():
    batch = jnp.ones((70_000, 1), jnp.float16), jnp.zeros((70_000, 1), jnp.float16)
    params = ({"weights": jnp.ones((1, 1), jnp.float16)},)
    by_hand = mjn.mlp_gradient((1, 1), activation=jax.nn.relu, loss=mjn.mean_squared_error, bias=False)
    objective = mjn.objective(mjn.mlp((1, 1), bias=False), mjn.mean_squared_error)
    chex.assert_trees_all_close(by_hand(params, batch)[1], jax.grad(objective)(params, batch), rtol=0.01)


# --- with_gradient --------------------------------------------------------------------------------------------------
# The objective is sum((w x)^2), whose gradient is 2 w x^2. The rule says 7 w x^2: whose number it is can be seen.

W, X = jnp.array([1.0, 2.0, 3.0]), jnp.array([2.0, 3.0, 4.0])
PARAMS, BATCH = {"w": W}, {"x": X, "label": jnp.arange(3)}


def plain(params, batch):
    return jnp.sum((params["w"] * batch["x"]) ** 2)


def sevenfold(params, batch):
    return plain(params, batch), {"w": 7 * params["w"] * batch["x"] ** 2}


RULED = mjn.with_gradient(plain, sevenfold)


def of_x(x):
    return {"x": x, "label": BATCH["label"]}


def counted(function):
    def wrapper(*args):
        wrapper.calls += 1
        return function(*args)

    wrapper.calls = 0
    return wrapper


@pytest.mark.parametrize("compiled", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_grad_with_respect_to_the_params_runs_the_rule(compiled):
    value, gradient = compiled(jax.value_and_grad(RULED))(PARAMS, BATCH)
    assert value == plain(PARAMS, BATCH)
    chex.assert_trees_all_equal(gradient, {"w": 7 * W * X**2})
    chex.assert_trees_all_equal(compiled(jax.grad(compiled(RULED)))(PARAMS, BATCH), {"w": 7 * W * X**2})


def test_the_rule_is_scaled_by_what_comes_after_the_loss():
    gradient = jax.grad(lambda params: jnp.sin(3 * RULED(params, BATCH)))(PARAMS)
    scale = 3 * np.cos(3 * 184)
    chex.assert_trees_all_close(gradient, {"w": 7 * W * X**2 * scale}, rtol=1e-4)


@pytest.mark.parametrize("compiled", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_the_batch_keeps_autodiffs_gradient(compiled):
    by_autodiff = 2 * W**2 * X
    chex.assert_trees_all_equal(compiled(jax.grad(lambda x: RULED(PARAMS, of_x(x))))(X), by_autodiff)
    both = compiled(jax.grad(lambda params, x: RULED(params, of_x(x)), argnums=(0, 1)))(PARAMS, X)
    chex.assert_trees_all_equal(both, ({"w": 7 * W * X**2}, by_autodiff))


def test_integer_labels_get_the_empty_tangents_that_jax_gives_them():
    got = jax.grad(RULED, argnums=(0, 1), allow_int=True)(PARAMS, BATCH)
    assert got[1]["label"].dtype == jax.dtypes.float0
    chex.assert_trees_all_equal((got[0]["w"], got[1]["x"]), (7 * W * X**2, 2 * W**2 * X))


def test_a_key_in_the_batch_is_carried_along():
    batch = {**BATCH, "key": jax.random.key(0)}
    chex.assert_trees_all_equal(jax.grad(RULED)(PARAMS, batch), {"w": 7 * W * X**2})
    chex.assert_trees_all_equal(jax.grad(lambda x: RULED(PARAMS, {**batch, "x": x}))(X), 2 * W**2 * X)


def test_an_outer_grad_over_the_batch_goes_through_the_rule():
    # d/dx sum(7 w x^2) = 14 w x: the rule's own derivative, as an inner step's batch needs it.
    def inner(x):
        return jnp.sum(jax.grad(RULED)(PARAMS, of_x(x))["w"])

    chex.assert_trees_all_equal(jax.grad(inner)(X), 14 * W * X)

    # One inner step, then the plain loss after it: by the chain rule with the rule's numbers for the step.
    def after_a_step(x, gradient):
        stepped = {"w": W - 0.001 * gradient(x)}
        return RULED(stepped, of_x(x))

    got = jax.grad(lambda x: after_a_step(x, lambda x: jax.grad(RULED)(PARAMS, of_x(x))["w"]))(X)
    stepped = W - 0.001 * 7 * W * X**2
    # through the params: the rule at the stepped ones times their derivative; through the batch: autodiff's.
    want = 7 * stepped * X**2 * (-0.001 * 14 * W * X) + 2 * stepped**2 * X
    chex.assert_trees_all_close(got, want, rtol=1e-6)


def test_hessians_and_their_products_differentiate_the_rule():
    def gradient(params):
        return jax.grad(RULED)(params, BATCH)

    direction = {"w": jnp.array([1.0, -1.0, 0.5])}
    products = {"w": 7 * X**2 * direction["w"]}
    forward_over_reverse = jax.jvp(gradient, (PARAMS,), (direction,))[1]
    reverse_over_reverse = jax.grad(lambda p: jnp.vdot(gradient(p)["w"], direction["w"]))(PARAMS)
    linear = jax.linearize(gradient, PARAMS)[1](direction)
    chex.assert_trees_all_equal(forward_over_reverse, products)
    chex.assert_trees_all_equal(reverse_over_reverse, products)
    chex.assert_trees_all_equal(linear, products)
    chex.assert_trees_all_equal(jax.hessian(RULED)(PARAMS, BATCH), {"w": {"w": jnp.diag(7 * X**2)}})


def test_a_right_rule_has_the_second_derivatives_of_the_plain_objective():
    objective = mjn.objective(mjn.mlp((4, 3, 4), activation=jnp.tanh), mjn.softmax_cross_entropy)
    by_hand = mjn.mlp_gradient((4, 3, 4), activation=jnp.tanh, loss=mjn.softmax_cross_entropy)
    with jax.enable_x64(True):
        params, batch = problem((4, 3, 4), "softmax, classes", True, jnp.float64)
        move = jax.tree.map(jnp.cos, (params, batch.x))

        def product(f):
            def gradient(params, x):
                return jax.grad(f)(params, (x, batch.y))

            return jax.jit(lambda at, move: jax.jvp(gradient, at, move)[1])((params, batch.x), move)

        got, want = product(mjn.with_gradient(objective, by_hand)), product(objective)
        chex.assert_trees_all_close(got, want, rtol=0, atol=1e-14)


@pytest.mark.parametrize("compiled", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_vmap_runs_the_rule_for_each_example_and_each_replica(compiled):
    xs, ws = jnp.stack([X, 2 * X]), jnp.stack([W, -W])
    gradients = jax.grad(lambda w, x: RULED({"w": w}, of_x(x)), argnums=(0, 1))
    for axes in ((None, 0), (0, None), (0, 0)):
        got = compiled(jax.vmap(gradients, in_axes=axes))(ws if axes[0] == 0 else W, xs if axes[1] == 0 else X)
        w, x = (ws if axes[0] == 0 else W[None]), (xs if axes[1] == 0 else X[None])
        chex.assert_trees_all_close(got, (7 * w * x**2, 2 * w**2 * x), rtol=1e-6)


def test_a_differentiated_scan_and_a_checkpoint_run_the_rule():
    def total(params):
        return jax.lax.scan(lambda sum_, x: (sum_ + RULED(params, of_x(x)), None), 0.0, jnp.stack([X, 2 * X]))[0]

    chex.assert_trees_all_equal(jax.grad(total)(PARAMS), {"w": 7 * W * (X**2 + 4 * X**2)})
    chex.assert_trees_all_equal(jax.grad(jax.checkpoint(RULED))(PARAMS, BATCH), {"w": 7 * W * X**2})


def test_a_descent_runs_the_rule():
    # w <- w - 0.001 * 7 w x^2, twenty times.
    descent = mjn.gradient_descent(RULED, 0.001)
    state, trace = mjn.descend(descent, descent.init(PARAMS), BATCH, steps=20)
    shrink = 1 - 0.007 * np.asarray(X, np.float64) ** 2
    np.testing.assert_allclose(state.params["w"], W * shrink**20, rtol=1e-5)
    np.testing.assert_allclose(trace.loss[:2], [184, np.sum((W * shrink * X) ** 2)], rtol=1e-6)

    def run(w):
        return mjn.descend(descent, descent.init({"w": w}), BATCH, steps=20)[0].params["w"]

    chex.assert_trees_all_close(jax.vmap(run)(jnp.stack([W, 2 * W]))[1], 2 * state.params["w"], rtol=1e-6)


def test_undifferentiated_the_value_is_the_plain_objectives():
    rule = counted(sevenfold)
    objective = mjn.with_gradient(plain, rule)
    assert objective(PARAMS, BATCH) == jax.jit(objective)(PARAMS, BATCH) == plain(PARAMS, BATCH) == 184
    assert rule.calls == 0


def test_with_respect_to_the_params_the_rule_is_called_once_and_the_plain_objective_never():
    objective = counted(lambda params, batch: jnp.sum((params["w"] * batch["x"]) ** 2))
    rule = counted(lambda params, batch: (jnp.float32(184), {"w": 7 * params["w"] * batch["x"] ** 2}))
    ruled = mjn.with_gradient(objective, rule)
    for calls, transform in enumerate((jax.grad, jax.value_and_grad, lambda f: jax.jit(jax.value_and_grad(f))), 1):
        transform(ruled)(PARAMS, BATCH)
        assert (rule.calls, objective.calls) == (calls, 0)
    descent = mjn.gradient_descent(ruled, 0.001)
    mjn.descend(descent, descent.init(PARAMS), BATCH, steps=2)
    assert objective.calls == 0


def test_with_respect_to_the_batch_the_plain_objective_is_traced_once():
    objective, rule = counted(plain), counted(lambda params, batch: (jnp.float32(184), params))
    jax.grad(lambda params, x: mjn.with_gradient(objective, rule)(params, of_x(x)), argnums=(0, 1))(PARAMS, X)
    assert (rule.calls, objective.calls) == (1, 1)


@pytest.mark.parametrize(
    ("gradient", "complaint"),
    [
        ({"w": jnp.ones(2)}, r"\['w'\]: got float32\[2\]; expected float32\[3\]"),
        ({"w": 1.0}, r"\['w'\]: got float32\[\]; expected float32\[3\]"),
        ({"w": jnp.ones(3, jnp.bfloat16)}, r"\['w'\]: got bfloat16\[3\]; expected float32\[3\]"),
        ({"w": jnp.ones(3, int)}, r"\['w'\]: got int32\[3\]; expected float32\[3\]"),
        ({"v": jnp.ones(3)}, r"leaves .*\['v'\].*expected .*\['w'\]"),
        ({"w": jnp.ones(3), "v": jnp.ones(3)}, r"too many: .*\['v'\]"),
        ({}, r"missing: .*\['w'\]"),
        ({"w": None}, r"missing: .*\['w'\]"),
        (jnp.ones(3), r"expected .*\['w'\]"),
    ],
    ids=["shape", "scalar", "dtype", "integer", "another leaf", "one too many", "none", "None", "bare"],
)
def test_a_gradient_unlike_the_params_is_refused_with_the_leafs_path(gradient, complaint):
    objective = mjn.with_gradient(plain, lambda params, batch: (plain(params, batch), gradient))
    for transform in (jax.grad, lambda f: jax.jit(jax.grad(f))):
        with pytest.raises(TypeError, match=f"value_and_gradient: the gradient is not like params: .*{complaint}"):
            transform(objective)(PARAMS, BATCH)


@pytest.mark.parametrize(
    "returned",
    [
        lambda loss, g: g,
        lambda loss, g: (loss, g, g),
        lambda loss, g: (loss[None], g),
        lambda loss, g: (None, g),
    ],
    ids=["the gradient alone", "a triple", "a loss of shape (1,)", "None for a loss"],
)
def test_a_rule_that_returns_no_scalar_loss_beside_the_gradient_is_refused_by_name(returned):
    objective = mjn.with_gradient(plain, lambda params, batch: returned(*sevenfold(params, batch)))
    with pytest.raises(TypeError, match="value_and_gradient: "):
        jax.grad(objective)(PARAMS, BATCH)


def test_forward_mode_straight_through_the_rule_is_refused():
    with pytest.raises(TypeError, match=r"forward-mode .* custom_vjp"):
        jax.jvp(lambda params: RULED(params, BATCH), (PARAMS,), (PARAMS,))


SIZES = (4, 3, 4)
NETWORK = mjn.mlp(SIZES, activation=jnp.tanh)


def rebuilt():
    """The objective and its rule anew, as a user's function makes them on each call."""
    by_hand = mjn.mlp_gradient(SIZES, activation=jnp.tanh, loss=mjn.mean_squared_error)
    return mjn.with_gradient(mjn.objective(NETWORK, mjn.mean_squared_error), by_hand)


def test_equal_arguments_make_equal_objects_and_unequal_ones_unequal():
    assert rebuilt() == rebuilt() and hash(rebuilt()) == hash(rebuilt())
    given = {"sizes": SIZES, "activation": jnp.tanh, "loss": mjn.mean_squared_error}
    others = (
        {},
        {"sizes": (4, 3, 3)},
        {"activation": jax.nn.relu},
        {"loss": mjn.binary_cross_entropy},
        {"output_activation": jnp.tanh},
        {"bias": False},
    )
    rules = [mjn.mlp_gradient(**(given | changed)) for changed in others]
    assert len(set(rules)) == len(rules)
    assert mjn.mlp_gradient(list(SIZES), activation=jnp.tanh, loss=mjn.mean_squared_error) == rules[0]
    assert mjn.with_gradient(plain, sevenfold) != mjn.with_gradient(plain, rules[0])


def test_an_objective_that_is_made_anew_is_not_traced_anew():
    params, batch = problem(SIZES, "mean_squared_error", True, jnp.float32)

    @functools.partial(jax.jit, static_argnums=0)
    @chex.assert_max_traces(n=1)
    def step(objective, params, batch):
        return jax.grad(objective)(params, batch)

    for _ in range(3):
        step(rebuilt(), params, batch)


def test_bfloat16_params_have_bfloat16_gradients_and_any_cotangent():
    params, batch = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (PARAMS, {"x": X}))
    got = jax.grad(RULED)(params, batch)
    chex.assert_trees_all_equal(got, {"w": (7 * W * X**2).astype(jnp.bfloat16)}, strict=True)
    # A float32 loss over bfloat16 params: the cotangent is wider than the slope.
    wide = mjn.with_gradient(
        lambda params, batch: plain(params, batch).astype(jnp.float32),
        lambda params, batch: (plain(params, batch).astype(jnp.float32), sevenfold(params, batch)[1]),
    )
    value, gradient = jax.value_and_grad(lambda params: 0.5 * wide(params, batch))(params)
    assert (value.dtype, gradient["w"].dtype) == (jnp.float32, jnp.bfloat16)
    chex.assert_trees_all_equal(gradient, {"w": (3.5 * W * X**2).astype(jnp.bfloat16)})


def test_a_cotangent_of_zero_makes_a_gradient_of_zero():
    zeros, ones = {"w": jnp.zeros(3)}, {"w": jnp.ones(3)}
    _, pull_back = jax.vjp(lambda params: RULED(params, BATCH), PARAMS)
    chex.assert_trees_all_equal(pull_back(jnp.float32(0))[0], zeros)

    def sum_of(params):
        return jnp.sum(params["w"])

    got = {
        "as aux": jax.grad(lambda p: (sum_of(p), RULED(p, BATCH)), has_aux=True)(PARAMS)[0],
        "stopped": jax.grad(lambda p: sum_of(p) + jax.lax.stop_gradient(RULED(p, BATCH)))(PARAMS),
        "stopped inside jit": jax.grad(lambda p: sum_of(p) + jax.lax.stop_gradient(jax.jit(RULED)(p, BATCH)))(PARAMS),
        "an output unused": jax.grad(lambda p: jax.jit(lambda p: (sum_of(p), RULED(p, BATCH)))(p)[0])(PARAMS),
        "a scan's output unused": jax.grad(
            lambda p: jax.lax.scan(lambda c, x: (c + sum_of(p), RULED(p, of_x(x))), 0.0, X[None])[0]
        )(PARAMS),
    }
    for how, gradient in got.items():
        chex.assert_trees_all_equal(gradient, ones, custom_message=how)


def test_python_numbers_serve_as_params():
    square = mjn.with_gradient(lambda w, batch: (w - batch) ** 2, lambda w, batch: ((w - batch) ** 2, 7 * (w - batch)))
    assert jax.grad(square)(3.0, 1.0) == jax.jit(jax.grad(square))(3.0, 1.0) == 14
    assert jax.grad(square, argnums=1)(3.0, 1.0) == -4


def test_integers_among_the_params_may_stand_beside_what_is_differentiated():
    objective = mjn.with_gradient(
        lambda params, batch: params["n"] * jnp.sum(params["w"] ** 2),
        lambda params, batch: (params["n"] * jnp.sum(params["w"] ** 2), {"w": 7 * params["w"], "n": params["n"]}),
    )
    chex.assert_trees_all_equal(jax.grad(lambda w: objective({"w": w, "n": jnp.int32(3)}, ()))(W), 7 * W)


def keyed(params, batch, key):
    return plain(params, batch) + jnp.sum(params["w"] * jax.random.normal(key, (3,)))


def sevenfold_keyed(params, batch, key):
    gradient = 7 * params["w"] * batch["x"] ** 2 + jax.random.normal(key, (3,))
    return keyed(params, batch, key), {"w": gradient}


def test_a_key_goes_to_the_objective_and_to_the_rule():
    objective, key = mjn.with_gradient(keyed, sevenfold_keyed), jax.random.key(5)
    noise = jax.random.normal(key, (3,))
    assert objective(PARAMS, BATCH, key) == keyed(PARAMS, BATCH, key)
    chex.assert_trees_all_close(jax.grad(objective)(PARAMS, BATCH, key), {"w": 7 * W * X**2 + noise}, rtol=1e-6)
    chex.assert_trees_all_close(jax.grad(lambda x: objective(PARAMS, of_x(x), key))(X), 2 * W**2 * X, rtol=1e-6)
    # A descent's k-th step gets the key folded with k.
    descent = mjn.gradient_descent(objective, 0.001)
    state, _ = mjn.descend(descent, descent.init(PARAMS, key), BATCH, steps=2)
    params = PARAMS
    for step in range(2):
        gradient = sevenfold_keyed(params, BATCH, jax.random.fold_in(key, step))[1]
        params = {"w": params["w"] - 0.001 * gradient["w"]}
    chex.assert_trees_all_close(state.params, params, rtol=1e-6)


def test_the_batch_may_be_given_by_name_as_to_the_plain_objective():
    chex.assert_trees_all_equal(jax.grad(RULED)(PARAMS, batch=BATCH), {"w": 7 * W * X**2})


def test_a_rule_may_close_over_what_is_mapped():
    def gradient_with(strength):
        def loss(w, batch):
            return jnp.sum((w - batch) ** 2) + strength * jnp.sum(w**2)

        return jax.grad(mjn.with_gradient(loss, lambda w, b: (loss(w, b), 7 * (w - b) + 2 * strength * w)))(W, 1.0)

    strengths = jnp.array([0.0, 2.0])
    chex.assert_trees_all_equal(jax.vmap(gradient_with)(strengths), 7 * (W - 1) + 2 * strengths[:, None] * W)
