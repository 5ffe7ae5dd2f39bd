"""Networks: shapes, dtypes, how weights start, and that a serial network is the composition of its parts."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minijaxnet as mjn
from minijaxnet import network

KEY = jax.random.key(7)
HALF_SILENT = [jax.nn.relu, jax.nn.leaky_relu, jax.nn.elu, jax.nn.gelu, jax.nn.silu, jax.nn.softplus]
OTHERS = [jnp.tanh, jax.nn.sigmoid, lambda x: x, None]


def relu_mlp(sizes, **options):
    return mjn.mlp(sizes, activation=jax.nn.relu, **options)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    bias=st.booleans(),
    batch=st.lists(st.integers(0, 3), min_size=0, max_size=2),
)
def test_params_and_predictions_have_the_shapes_that_the_sizes_say(sizes, bias, batch):
    network = mjn.mlp(sizes, bias=bias)
    params = jax.eval_shape(network.init, KEY)
    shapes = [jax.tree.map(lambda leaf: leaf.shape, layer) for layer in params]
    assert shapes == [
        {"weights": (n_in, n_out)} | ({"bias": (n_out,)} if bias else {}) for n_in, n_out in itertools.pairwise(sizes)
    ]
    x = jax.ShapeDtypeStruct((*batch, sizes[0]), jnp.float32)
    assert jax.eval_shape(network.apply, params, x).shape == (*batch, sizes[-1])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_a_network_starts_and_computes_in_its_dtype_whatever_the_input(dtype, bias):
    with jax.enable_x64(dtype is jnp.float64):
        network = mjn.mlp((3, 5, 2), bias=bias, dtype=dtype)
        params = jax.jit(network.init)(KEY)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
        for x in (np.ones((4, 3)), np.ones((4, 3), np.float32), np.ones((4, 3), np.int32), [[1, 2, 3]]):
            assert jax.eval_shape(lambda x=x: network.apply(params, x)).dtype == dtype
        predictions = network.apply(params, [[1, 2, 3]])
        assert predictions.dtype == dtype
        chex.assert_tree_all_finite(predictions)


def test_without_a_dtype_a_network_takes_the_default_of_jax():
    assert mjn.dense(2, 1).init(KEY)["weights"].dtype == jnp.float32
    with jax.enable_x64(True):
        assert mjn.dense(2, 1).init(KEY)["weights"].dtype == jnp.float64


def test_a_dense_layer_is_x_times_weights_plus_bias():
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(5, 3))
        layer = mjn.dense(3, 4)
        params = layer.init(KEY) | {"bias": jnp.arange(4.0)}
        expected = np.einsum("bi,io->bo", x, params["weights"]) + np.arange(4.0)
        chex.assert_trees_all_close(layer.apply(params, x), expected, rtol=1e-14, atol=1e-14)
        without = mjn.dense(3, 4, bias=False)
        chex.assert_trees_all_close(without.apply(params, x), expected - np.arange(4.0), rtol=1e-14, atol=1e-14)


def test_an_mlp_is_its_equation():
    with jax.enable_x64(True):
        x = np.random.default_rng(1).normal(size=(5, 3))
        network = mjn.mlp((3, 6, 4, 2), activation=jnp.tanh, output_activation=jax.nn.sigmoid)
        params = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.1, jax.jit(network.init)(KEY))
        h = x
        for layer in params[:-1]:
            h = np.tanh(h @ np.asarray(layer["weights"]) + np.asarray(layer["bias"]))
        z = h @ np.asarray(params[-1]["weights"]) + np.asarray(params[-1]["bias"])
        chex.assert_trees_all_close(jax.jit(network.apply)(params, x), 1 / (1 + np.exp(-z)), rtol=1e-13)


@pytest.mark.parametrize(
    ("activation", "variance", "dtype"),
    [(fn, 2 / 256, jnp.float32) for fn in HALF_SILENT]
    + [(fn, 2 / (256 + 1024), jnp.float32) for fn in OTHERS]
    + [(jax.nn.relu, 2 / 256, jnp.float64), (jnp.tanh, 2 / (256 + 1024), jnp.float64)],
)
def test_weights_start_with_the_variance_of_he_before_a_half_silent_activation_else_of_glorot(
    activation, variance, dtype
):
    with jax.enable_x64(dtype is jnp.float64):
        [layer] = mjn.mlp((256, 1024), output_activation=activation, dtype=dtype).init(KEY)
        weights, bias = np.asarray(layer["weights"], np.float64).ravel(), np.asarray(layer["bias"])
    # The variance of n draws lies within sqrt(2 / n) of the true one (less for a truncated normal): five of those.
    assert abs(weights.var() / variance - 1) < 5 * np.sqrt(2 / weights.size)
    assert abs(weights.mean()) < 5 * np.sqrt(variance / weights.size)
    assert (bias == 0).all()


def test_the_hidden_activation_decides_how_hidden_layers_start_and_the_output_activation_how_the_last_does():
    hidden, last = mjn.mlp((256, 1024, 256), activation=jax.nn.relu).init(KEY)
    assert np.var(hidden["weights"]) == pytest.approx(2 / 256, rel=0.02)
    assert np.var(last["weights"]) == pytest.approx(2 / (1024 + 256), rel=0.02)
    hidden, last = mjn.mlp((256, 1024, 256), activation=jnp.tanh, output_activation=jax.nn.relu).init(KEY)
    assert np.var(hidden["weights"]) == pytest.approx(2 / (256 + 1024), rel=0.02)
    assert np.var(last["weights"]) == pytest.approx(2 / 1024, rel=0.02)


def test_a_dense_layer_starts_by_glorot_or_as_it_is_told():
    assert np.var(mjn.dense(256, 1024).init(KEY)["weights"]) == pytest.approx(2 / (256 + 1024), rel=0.02)
    params = mjn.dense(2, 3, weight_init=jax.nn.initializers.ones, dtype=jnp.bfloat16).init(KEY)
    chex.assert_trees_all_equal(params["weights"], jnp.ones((2, 3), jnp.bfloat16))


def test_the_key_decides_the_start_and_each_layer_draws_its_own():
    network = mjn.mlp((4, 4, 4, 4))
    chex.assert_trees_all_equal(network.init(KEY), network.init(jax.random.key(7)))
    layers = [np.asarray(layer["weights"]) for layer in network.init(KEY) + network.init(jax.random.key(8))]
    for i, one in enumerate(layers):
        for other in layers[:i]:
            assert not (one == other).any()


@settings(max_examples=12, deadline=None)
@given(
    widths=st.lists(st.sampled_from([1, 3]), min_size=1, max_size=4), cut=st.integers(0, 3), seed=st.integers(0, 2**31)
)
def test_serial_composes_and_does_not_mind_how_it_is_bracketed(widths, cut, seed):
    layers = [mjn.dense(n_in, n_out) for n_in, n_out in itertools.pairwise(widths)]
    layers.insert(cut, mjn.elementwise(jnp.tanh))
    params = mjn.serial(*layers).init(jax.random.key(seed))
    x = expected = jnp.linspace(-1, 1, 3 * widths[0]).reshape(3, widths[0])
    for layer, layer_params in zip(layers, params, strict=True):
        expected = layer.apply(layer_params, expected)
    chex.assert_trees_all_equal(mjn.serial(*layers).apply(params, x), expected)
    bracketed = mjn.serial(mjn.serial(*layers[:cut]), mjn.serial(*layers[cut:]))
    chex.assert_trees_all_equal(bracketed.apply((params[:cut], params[cut:]), x), expected)


def test_serial_of_nothing_is_the_identity():
    network = mjn.serial()
    assert network.init(KEY) == ()
    chex.assert_trees_all_equal(network.apply((), jnp.arange(3.0)), jnp.arange(3.0))


def test_elementwise_has_no_params():
    network = mjn.elementwise(jnp.square)
    assert network.init(KEY) == ()
    chex.assert_trees_all_equal(network.apply((), jnp.array([-3.0, 2.0])), jnp.array([9.0, 4.0]))


def test_each_point_is_predicted_as_if_it_were_alone():
    network = relu_mlp((3, 7, 2))
    params = jax.jit(network.init)(KEY)
    x = jax.random.normal(KEY, (6, 3))
    alone = jax.jit(jax.vmap(functools.partial(network.apply, params)))(x)
    # Sums of at most 7 products, in another order.
    chex.assert_trees_all_close(network.apply(params, x), alone, rtol=8 * 2**-23, atol=8 * 2**-23)


def test_init_and_apply_work_under_jit_and_vmap():
    network = relu_mlp((3, 4, 2))
    keys = jax.random.split(KEY, 5)
    params = jax.jit(jax.vmap(network.init))(keys)
    predictions = jax.jit(jax.vmap(network.apply, in_axes=(0, None)))(params, jnp.ones((2, 3)))
    assert predictions.shape == (5, 2, 2)
    one = jax.tree.map(lambda leaf: leaf[3], params)
    chex.assert_trees_all_close(one, network.init(keys[3]), rtol=1e-6)


@pytest.mark.parametrize(("width", "kind"), [(0, ValueError), (-3, ValueError), (2.0, TypeError), ("2", TypeError)])
def test_a_dense_layer_refuses_a_bad_width_and_names_it(width, kind):
    with pytest.raises(kind, match=r"dense: n_in: got"):
        mjn.dense(width, 1)
    with pytest.raises(kind, match=r"dense: n_out: got"):
        mjn.dense(1, width)


@pytest.mark.parametrize("width", [True, None, 1j, np.float32(2)])
def test_a_width_that_is_no_int_is_refused(width):
    with pytest.raises(TypeError, match=r"dense: n_in: got .*; expected an int"):
        mjn.dense(width, 1)


@pytest.mark.parametrize("sizes", [(), (2,), []])
def test_an_mlp_refuses_fewer_than_two_sizes(sizes):
    with pytest.raises(ValueError, match=r"mlp: sizes: got .*; expected at least an input and an output width"):
        mjn.mlp(sizes)


@pytest.mark.parametrize(
    ("sizes", "kind", "got"),
    [
        ((2, 0, 1), ValueError, "0"),
        ((2, 3, -1), ValueError, "-1"),
        ((0, 1), ValueError, "0"),
        ((2, 2.5, 1), TypeError, "2.5"),
        ("21", TypeError, "'2'"),
    ],
)
def test_an_mlp_refuses_a_bad_size_and_says_which_it_got(sizes, kind, got):
    with pytest.raises(kind, match=rf"got {got}; expected"):
        mjn.mlp(sizes)


def test_an_mlp_that_refuses_a_size_names_its_own_argument():
    with pytest.raises(ValueError, match=r"mlp: sizes"):
        mjn.mlp((2, 0, 1))


@pytest.mark.parametrize("dtype", [int, jnp.int32, bool, jnp.complex64, "uint8"])
def test_a_dtype_that_is_not_real_and_floating_is_refused(dtype):
    with pytest.raises(TypeError, match=r"dtype: got \w+; expected a real floating dtype"):
        mjn.mlp((2, 1), dtype=dtype)


@pytest.mark.parametrize("x", [np.ones((4, 2)), np.ones((3, 1)), np.float32(1), np.ones((4, 0)), np.ones(2)])
def test_an_input_of_the_wrong_width_is_refused_with_both_shapes(x):
    network = mjn.mlp((3, 2))
    with pytest.raises(ValueError, match=r"dense: x: got shape \(.*\); expected a last axis of 3"):
        network.apply(network.init(KEY), x)


def test_params_of_another_number_of_layers_are_refused():
    network = mjn.mlp((3, 2, 1))
    with pytest.raises(ValueError, match="zip"):
        network.apply(network.init(KEY)[:1], np.ones((4, 3)))


@pytest.mark.parametrize(("sizes", "dtype"), [((64, 10), jnp.float32), ((5, 3), jnp.bfloat16)])
def test_weights_start_as_jaxs_initializers_draw_them(sizes, dtype):
    starts = {
        jax.nn.initializers.glorot_normal(): mjn.dense(*sizes, dtype=dtype).init(KEY)["weights"],
        jax.nn.initializers.he_normal(): network._he_normal(KEY, sizes, dtype),
    }
    for start, got in starts.items():
        want = start(KEY, sizes, dtype)
        assert got.dtype == want.dtype
        chex.assert_trees_all_close(got, want, rtol=2 * float(jnp.finfo(dtype).eps))
