"""Every hand-derived derivative against autodiff."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kits.marks import SLOW

import minijaxnet as mjn
from minijaxnet import backprop, columns

ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid, "identity": jax.nn.identity}
LOSSES = {
    "mean_squared_error": mjn.mean_squared_error,
    "softmax, classes": mjn.softmax_cross_entropy,
    "softmax, one-hot": mjn.softmax_cross_entropy,
    "binary": mjn.binary_cross_entropy,
}
LAYOUTS = {"rows": columns.BATCH_FIRST, "columns": columns.FEATURES_FIRST}
WIDTHS = (3, 4)  # unequal, so that a transposed product fails; only two, with 4 the last, so that little is compiled
POINTS = 5
# An element passes through a handful of roundings a layer, each relative to the largest terms summed there. Measured on
# these networks: at most 6.1 * depth of them in any of the three dtypes.
ROUNDINGS_A_LAYER = 16


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


def both(sizes, loss, *, activation=jax.nn.relu, **options):
    """Of one network the loss and gradient by hand, and by autodiff."""
    by_hand = mjn.mlp_gradient(sizes, loss=loss, activation=activation, **options)
    by_autodiff = jax.value_and_grad(mjn.objective(mjn.mlp(sizes, activation=activation, **options), loss))
    return lambda params, batch: (by_hand(params, batch), by_autodiff(params, batch))


def assert_equal_to_rounding(by_hand, by_autodiff, dtype, depth):
    bound = ROUNDINGS_A_LAYER * depth * float(jnp.finfo(dtype).eps)
    chex.assert_trees_all_equal_shapes_and_dtypes(by_hand, by_autodiff)
    for got, want in zip(jax.tree.leaves(by_hand), jax.tree.leaves(by_autodiff), strict=True):
        assert got.dtype == dtype
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        np.testing.assert_allclose(got, want, rtol=0, atol=bound * np.abs(want).max())


def check_gradients(networks, dtype, compiled=jax.jit):
    """Of networks (activation, output activation, loss, depth, bias), all in one program or operation by operation."""
    functions, problems, depths = [], [], []
    for activation, output, loss, depth, bias in networks:
        sizes = tuple(WIDTHS[(depth + 1 - i) % 2] for i in range(depth + 1))
        fns = {"activation": ACTIVATIONS[activation], "output_activation": output and ACTIVATIONS[output]}
        functions.append(both(sizes, LOSSES[loss], bias=bias, **fns))
        problems.append(problem(sizes, loss, bias, dtype))
        depths.append(depth)
    every = compiled(lambda problems: [f(*given) for f, given in zip(functions, problems, strict=True)])(problems)
    for (by_hand, by_autodiff), depth in zip(every, depths, strict=True):
        assert_equal_to_rounding(by_hand, by_autodiff, dtype, depth)
    alive = [all(np.any(leaf) for leaf in jax.tree.leaves(by_autodiff[1])) for _, by_autodiff in every]
    assert np.mean(alive) >= 0.5, "these networks have a gradient to be right about"


@pytest.mark.parametrize("layout", ["columns", SLOW("rows")])
def test_the_gradient_by_hand_is_autodiffs_in_either_layout(layout, monkeypatch):
    assert backprop.faster_layout(POINTS, WIDTHS) is columns.FEATURES_FIRST  # what the other tests run
    monkeypatch.setattr(backprop, "faster_layout", lambda points, sizes: LAYOUTS[layout])
    with jax.enable_x64(True):
        check_gradients([("tanh", "sigmoid", "softmax, classes", 2, True)], "float64")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "layout"), [("float64", "columns"), ("float64", "rows"), ("float32", "columns"), ("bfloat16", "columns")]
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_by_hand_is_autodiffs_operation_by_operation_too_at_depths_1_to_6_in_any_dtype(
    activation, loss, dtype, layout, monkeypatch
):
    monkeypatch.setattr(backprop, "faster_layout", lambda points, sizes: LAYOUTS[layout])
    # Every activation with every loss, and either of them at every depth, under every activation of the output.
    which = list(ACTIVATIONS).index(activation)
    turn = (which + list(LOSSES).index(loss)) % 3
    networks = [
        (activation, [None, *ACTIVATIONS][(which + 2 * bias + depth) % 5], loss, depth, bias)
        for depth in ([1 + turn, 4 + turn] if dtype == "float64" else [3])
        for bias in (True, False)
    ]
    with jax.enable_x64(dtype == "float64"):
        check_gradients(networks, dtype, compiled=lambda f: f)


@pytest.mark.parametrize("points", [SLOW(15, id="rows"), pytest.param(64, id="columns")])
def test_a_gradient_with_transposes_in_memory_passes_jit_vmap_and_another_derivative(points):
    sizes, loss, draw = (20, 16), mjn.softmax_cross_entropy, np.random.default_rng(0)
    params = ({"weights": np.float32(draw.normal(size=sizes) / 4), "bias": np.float32(draw.normal(size=16))},)
    batch = mjn.Batch(np.float32(draw.normal(size=(2, points, 20))), draw.integers(0, 16, (2, points)))
    objective = mjn.objective(mjn.mlp(sizes), loss)
    by_hand = mjn.mlp_gradient(sizes, activation=jax.nn.relu, loss=loss)

    def along_itself(f):
        return jax.vmap(lambda x, y: jax.jvp(lambda p: jax.grad(f)(p, (x, y)), (params,), (params,)))(*batch)

    assert "optimization_barrier" in str(jax.make_jaxpr(by_hand)(params, jax.tree.map(lambda leaf: leaf[0], batch)))
    got, want = jax.jit(lambda: (along_itself(mjn.with_gradient(objective, by_hand)), along_itself(objective)))()
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-5)


def test_targets_of_a_wider_dtype_leave_the_gradient_in_that_of_the_params():
    losses = ("mean_squared_error", "softmax, one-hot", "binary")
    params, (x, _) = problem((3, 4), losses[0], True, jnp.bfloat16)
    targets = {loss: problem((3, 4), loss, True, jnp.float32)[1].y for loss in losses}
    every = jax.jit(lambda targets: [both((3, 4), LOSSES[loss])(params, (x, y)) for loss, y in targets.items()])
    for by_hand, by_autodiff in every(targets):
        assert by_hand[0].dtype == by_autodiff[0].dtype
        assert_equal_to_rounding(by_hand[1], by_autodiff[1], jnp.bfloat16, 1)


def test_the_gradient_by_hand_on_the_lesson_points_is_what_the_equations_give():
    # Hidden values (3, 6), (4, 5), (0, 0), (8, 4); predictions 9, 9, 0, 12; errors 8, 6, -5, 5. The third point's nodes
    # are silent. Gradient of the output weights, sum_i 2 / 4 * error_i * hidden_i: 44 and 49. Of the hidden weights,
    # where the output weights are 1, sum_i 2 / 4 * error_i * input_i over the other points: 13 and 18 for either node.
    params = ({"weights": np.float32([[2, 1], [1, 2]])}, {"weights": np.ones((2, 1), np.float32)})
    fns = {"activation": jax.nn.relu, "output_activation": jax.nn.relu, "bias": False}
    by_hand = jax.jit(mjn.mlp_gradient((2, 2, 1), loss=mjn.mean_squared_error, **fns))
    loss, gradient = by_hand(params, mjn.lesson_points())
    assert loss == 37.5
    expected = {"weights": np.float32([[13, 13], [18, 18]])}, {"weights": np.float32([[44], [49]])}
    chex.assert_trees_all_equal(gradient, expected)


# --- Single rules -----------------------------------------------------------------------------------------------------

SATURATING = [0.0, -0.0, 1e-30, -1e-30, 0.5, -0.5, 3.0, -3.0, 50.0, -50.0, 1e4, -1e4]


@pytest.mark.parametrize("dtype", ["float64", SLOW("float32"), SLOW("bfloat16")])
def test_each_activation_gradient_is_autodiffs_also_where_it_saturates(dtype):
    def gradients(z):
        return {
            name: (getattr(backprop, f"{name}_derivative")(z, f(z)), jax.vmap(jax.grad(f))(z))
            for name, f in ACTIVATIONS.items()
        }

    with jax.enable_x64(dtype == "float64"):
        found = (jax.jit(gradients) if dtype == "float64" else gradients)(jnp.array(SATURATING, dtype))
    for name, (got, want) in found.items():
        assert got.dtype == dtype, name
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        assert np.isfinite(got).all(), name
        np.testing.assert_allclose(got, want, rtol=0, atol=2 * float(jnp.finfo(dtype).eps), err_msg=name)


def loss_problem(loss, n, classes):
    draw = np.random.default_rng(0)
    return {
        "mean_squared_error": draw.normal(size=(n, classes)),
        "softmax, classes": draw.integers(0, classes, n),
        # A target that sums to 2 is no probability: the rule must not take it for one.
        "softmax, one-hot": np.eye(classes)[draw.integers(0, classes, n)] * np.arange(1, n + 1)[:, None],
        "binary": draw.uniform(size=(n, classes)),
    }[loss]


@pytest.mark.parametrize("dtype", ["float32", SLOW("float64")])
def test_each_loss_gradient_is_autodiffs_also_where_it_saturates(dtype):
    def gradients(logits, targets):
        return {
            name: (
                getattr(backprop, f"{loss.__name__}_derivative")(logits, targets[name]),
                jax.grad(loss)(logits, targets[name]),
            )
            for name, loss in LOSSES.items()
        }

    with jax.enable_x64(dtype == "float64"):
        gradients = jax.jit(gradients)
        targets = {name: loss_problem(name, POINTS, 4) for name in LOSSES}
        targets = {name: y if y.dtype.kind == "i" else y.astype(dtype) for name, y in targets.items()}
        for scale in (1.0, 50.0, 1e4):
            logits = (np.random.default_rng(1).uniform(-1, 1, (POINTS, 4)) * scale).astype(dtype)
            for name, (got, want) in gradients(logits, targets).items():
                assert np.isfinite(got).all(), name
                largest = max(1.0, float(np.abs(want).max()))
                atol = 4 * float(jnp.finfo(dtype).eps) * largest
                chex.assert_trees_all_close(got, want, rtol=0, atol=atol, custom_message=f"{name} at {scale}")


def test_saturated_classes_have_gradients_of_exactly_0_and_1():
    logits, one_hot = np.float32([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0]]), np.eye(3, dtype=np.float32)[:2]
    gradient = jax.jit(backprop.softmax_cross_entropy_derivative)
    by_class, by_one_hot = gradient(logits, np.array([0, 1])), gradient(logits, one_hot)
    chex.assert_trees_all_equal(by_class, by_one_hot, np.float32([[0.0, 0.0, 0.0], [0.5, -0.5, 0.0]]))
    binary = jax.jit(backprop.binary_cross_entropy_derivative)(np.float32([[1e4, -1e4]]), np.float32([[1, 1]]))
    chex.assert_trees_all_equal(binary, np.float32([[0.0, -0.5]]))


TINY, TRANSPOSED_IN_MEMORY = (3, 4), (60, 5)


@pytest.mark.parametrize(
    ("bias", "layout", "sizes"),
    [(True, "rows", TINY), (False, "columns", TINY), (True, "columns", TRANSPOSED_IN_MEMORY)],
)
def test_the_gradients_of_a_dense_layer_are_its_jacobians_contracted_with_delta(bias, layout, sizes):
    layout, layer = LAYOUTS[layout], mjn.dense(*sizes, bias=bias)

    def forward_and_back(params, x, delta):
        gradients = layout.backward(params, layout.rearrange(x), layout.rearrange(delta))
        by_hand = (
            layout.rearrange(layout.forward(params, layout.rearrange(x))),
            (gradients.params, layout.rearrange(gradients.x)),
        )
        y, pull_back = jax.vjp(layer.apply, params, x)
        return by_hand, (y, pull_back(delta))

    with jax.enable_x64(True):
        (params,), (x, _) = jax.tree.map(np.asarray, problem(sizes, "binary", bias, jnp.float64))
        delta = np.random.default_rng(1).normal(size=(POINTS, sizes[1]))
        (z, gradients), (y, pulled_back) = jax.jit(forward_and_back)(params, x, delta)
    chex.assert_trees_all_close(z, y)
    chex.assert_trees_all_close(gradients, pulled_back, rtol=0, atol=1e-14)
    want = {"weights": x.T @ delta} | ({"bias": delta.sum(axis=0)} if bias else {}), delta @ params["weights"].T
    chex.assert_trees_all_close(gradients, want, rtol=0, atol=1e-14)


# --- What mlp_gradient refuses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"sizes": (3,)}, r"mlp_gradient: sizes: got \(3,\); expected at least an input and an output"),
        ({"activation": jax.nn.gelu}, "mlp_gradient: activation: got .*gelu.*; expected one of .*relu, sigmoid, tanh"),
        ({"output_activation": jax.nn.softmax}, "mlp_gradient: output_activation: got"),
        ({"loss": mjn.accuracy}, "mlp_gradient: loss: got .*accuracy.*; expected one of binary_cross_entropy, mean_"),
    ],
)
def test_what_no_rule_is_written_for_is_refused_by_name(changed, complaint):
    given = {"sizes": (3, 4), "activation": jax.nn.relu, "loss": mjn.mean_squared_error} | changed
    with pytest.raises(ValueError, match=complaint):
        mjn.mlp_gradient(given.pop("sizes"), **given)


def layer(*shape, bias=None):
    return {"weights": np.ones(shape)} | ({} if bias is None else {"bias": np.ones(bias)})


@pytest.mark.parametrize(
    ("params", "bias"),
    [
        ((), True),
        ((layer(4, 3, bias=4),), True),
        ((layer(3, 4, bias=(1, 4)),), True),
        ((layer(3, 4, bias=4), layer(4, 3, bias=3)), True),
        ((layer(3, 4, bias=4),), False),
    ],
    ids=["no layer", "transposed", "bias as a row", "a layer too many", "a bias too many"],
)
def test_params_of_another_network_are_refused_with_both_shapes(params, bias):
    by_hand = mjn.mlp_gradient((3, 4), activation=jax.nn.relu, loss=mjn.mean_squared_error, bias=bias)
    with pytest.raises(ValueError, match=r"params: got shapes .*; expected .*\(3, 4\).*as for mlp\(\(3, 4\)\)"):
        by_hand(params, (np.ones((2, 3)), np.ones((2, 4))))


@pytest.mark.parametrize(
    ("batch", "kind", "complaint"),
    [
        (np.ones((2, 3)), TypeError, r"batch: got .*; expected a pair \(x, y\)"),
        ((np.ones((2, 3)), np.ones((2, 3))), ValueError, r"targets: got shape \(2, 3\); expected \(2, 4\)"),
        ((np.ones((2, 5)), np.ones((2, 4))), ValueError, r"x: got shape \(2, 5\); expected \(n, 3\)"),
        ((np.ones(3), np.ones(4)), ValueError, r"x: got shape \(3,\); expected \(n, 3\)"),
        ((np.ones((2, 3), complex), np.ones((2, 4))), TypeError, r"x: got dtype complex128; expected real numbers"),
    ],
    ids=["no pair", "targets", "width of x", "a single point", "complex"],
)
def test_a_batch_that_does_not_fit_is_refused_by_name(batch, kind, complaint):
    params, _ = problem((3, 4), "mean_squared_error", True, jnp.float32)
    with pytest.raises(kind, match=complaint):
        mjn.mlp_gradient((3, 4), activation=jax.nn.relu, loss=mjn.mean_squared_error)(params, batch)


def test_a_silent_unit_stays_silent_under_a_gradient_that_overflows():
    params = {"weights": np.float32([[-1]])}, {"weights": np.float32([[1e38]])}
    batch = np.ones((1, 1), np.float32), np.full((1, 1), -1e38, np.float32)
    by_hand, by_autodiff = jax.jit(both((1, 1, 1), mjn.mean_squared_error, bias=False))(params, batch)
    chex.assert_trees_all_equal(by_hand[1], by_autodiff[1])


def test_a_large_batch_in_float16_has_a_gradient():
    batch = np.ones((70_000, 1), np.float16), np.zeros((70_000, 1), np.float16)
    params = ({"weights": np.ones((1, 1), np.float16)},)
    by_hand, by_autodiff = jax.jit(both((1, 1), mjn.mean_squared_error, bias=False))(params, batch)
    chex.assert_trees_all_close(by_hand[1], by_autodiff[1], rtol=0.01)
