"""Networks: shapes, dtypes, how weights start, and that a serial network is the composition of its parts."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kits.marks import SLOW

import minijaxnet as mjn


@pytest.fixture(scope="module")
def key():
    return jax.random.key(7)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    bias=st.booleans(),
    batch=st.lists(st.integers(0, 3), min_size=0, max_size=2),
)
def test_params_and_predictions_have_the_shapes_that_the_sizes_say(key, sizes, bias, batch):
    network = mjn.mlp(sizes, bias=bias)
    params = jax.eval_shape(network.init, key)
    shapes = [jax.tree.map(lambda leaf: leaf.shape, layer) for layer in params]
    assert shapes == [
        {"weights": (n_in, n_out)} | ({"bias": (n_out,)} if bias else {}) for n_in, n_out in itertools.pairwise(sizes)
    ]
    x = jax.ShapeDtypeStruct((*batch, sizes[0]), jnp.float32)
    assert jax.eval_shape(network.apply, params, x).shape == (*batch, sizes[-1])


DTYPES = ("float16", "bfloat16", "float32", "float64")
IN_EVERY_DTYPE = pytest.mark.parametrize(("dtype", "bias"), list(itertools.product(DTYPES, (True, False))))


@IN_EVERY_DTYPE
def test_a_network_starts_and_computes_in_its_dtype_whatever_the_input(key, dtype, bias):
    with jax.enable_x64(dtype == "float64"):
        network = mjn.mlp((3, 5, 2), bias=bias, dtype=dtype)
        params = jax.eval_shape(network.init, key)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
        for x in (np.ones((4, 3)), np.ones((4, 3), np.float32), np.ones((4, 3), np.int32), [[1, 2, 3]]):
            assert jax.eval_shape(lambda params, x=x: network.apply(params, x), params).dtype == dtype


def some_params(*sizes, dtype=np.float64):
    draw = np.random.default_rng(0)
    params = ({"weights": draw.normal(size=s), "bias": draw.normal(size=s[1])} for s in itertools.pairwise(sizes))
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tuple(params))


def test_an_mlp_is_its_equation():
    x, params = np.random.default_rng(1).normal(size=(5, 3)), some_params(3, 6, 4, 2)
    network = mjn.mlp((3, 6, 4, 2), activation=jnp.tanh, output_activation=jax.nn.sigmoid)
    h = x
    for layer in params[:-1]:
        h = np.tanh(h @ layer["weights"] + layer["bias"])
    z = h @ params[-1]["weights"] + params[-1]["bias"]
    with jax.enable_x64(True):
        chex.assert_trees_all_close(jax.jit(network.apply)(params, x), 1 / (1 + np.exp(-z)), rtol=1e-13)


HE, GLOROT = (2 / 256, 2 / 1024), (2 / (256 + 1024), 2 / (1024 + 256))


@pytest.mark.parametrize(
    ("hidden", "output", "variances"),
    [
        (jax.nn.relu, None, (HE[0], GLOROT[1])),
        (jnp.tanh, jax.nn.relu, (GLOROT[0], HE[1])),
        *(SLOW(fn, fn, HE) for fn in (jax.nn.leaky_relu, jax.nn.elu, jax.nn.gelu, jax.nn.silu, jax.nn.softplus)),
    ],
)
def test_weights_start_with_the_variance_of_he_before_a_half_silent_activation_else_of_glorot(
    key, hidden, output, variances
):
    layers = mjn.mlp((256, 1024, 256), activation=hidden, output_activation=output).init(key)
    for layer, variance in zip(layers, variances, strict=True):
        weights = np.asarray(layer["weights"], np.float64).ravel()
        # The variance of n draws lies within sqrt(2 / n) of the true one (less for a truncated normal): five of those.
        assert abs(weights.var() / variance - 1) < 5 * np.sqrt(2 / weights.size)
        assert abs(weights.mean()) < 5 * np.sqrt(variance / weights.size)
        assert (np.asarray(layer["bias"]) == 0).all()


SQUARE = mjn.mlp((4, 4, 4))
init = jax.jit(SQUARE.init)


def test_the_key_decides_the_start_and_each_layer_draws_its_own(key):
    chex.assert_trees_all_equal(init(key), init(jax.random.key(7)))
    layers = [np.asarray(layer["weights"]) for layer in init(key) + init(jax.random.key(8))]
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
    draw = np.random.default_rng(seed)
    shapes = jax.eval_shape(mjn.serial(*layers).init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape), leaf.dtype), shapes)
    x = expected = np.linspace(-1, 1, 3 * widths[0], dtype=np.float32).reshape(3, widths[0])
    for layer, layer_params in zip(layers, params, strict=True):
        expected = layer.apply(layer_params, expected)
    chex.assert_trees_all_equal(mjn.serial(*layers).apply(params, x), expected)
    bracketed = mjn.serial(mjn.serial(*layers[:cut]), mjn.serial(*layers[cut:]))
    chex.assert_trees_all_equal(bracketed.apply((params[:cut], params[cut:]), x), expected)


@pytest.mark.parametrize(
    ("width", "kind"), [(0, ValueError), (-3, ValueError), *((width, TypeError) for width in (2.0, "2", True))]
)
def test_a_dense_layer_refuses_a_bad_width_and_names_it(width, kind):
    expected = "an int" if kind is TypeError else "at least 1"
    for name, widths in (("n_in", (width, 1)), ("n_out", (1, width))):
        with pytest.raises(kind, match=rf"dense: {name}: got .*; expected {expected}"):
            mjn.dense(*widths)


@pytest.mark.parametrize(
    ("sizes", "kind", "message"),
    [
        ((2,), ValueError, "sizes: got .*; expected at least an input and an output width"),
        ((2, 0, 1), ValueError, r"sizes\[1\]: got 0; expected"),
        ((2, 2.5, 1), TypeError, r"sizes\[1\]: got 2.5; expected"),
        ("21", TypeError, r"sizes\[0\]: got '2'; expected"),
    ],
)
def test_an_mlp_refuses_bad_sizes_and_says_which_it_got(sizes, kind, message):
    with pytest.raises(kind, match=f"mlp: {message}"):
        mjn.mlp(sizes)


@pytest.mark.parametrize("dtype", [int, bool, jnp.complex64])
def test_a_dtype_that_is_not_real_and_floating_is_refused(dtype):
    with pytest.raises(TypeError, match=r"dtype: got \w+; expected a real floating dtype"):
        mjn.mlp((2, 1), dtype=dtype)


@pytest.mark.parametrize("x", [np.ones((4, 2)), np.float32(1), np.ones((4, 0))])
def test_an_input_of_the_wrong_width_is_refused_with_both_shapes(x):
    with pytest.raises(ValueError, match=r"dense: x: got shape \(.*\); expected a last axis of 3"):
        mjn.mlp((3, 2)).apply(some_params(3, 2, dtype=np.float32), x)
