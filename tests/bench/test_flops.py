"""How many operations a program asks for: counts by formula, and XLA's own count where there is no loop."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from kits.steps import mlp_step, step_of

import minijaxnet as mjn
from minijaxnet.bench.cost import step_cost
from minijaxnet.bench.flops import count


def ones(*shape):
    return np.ones(shape, np.float32)


def counted(function, *arguments):
    """What a function of any arguments sums up to."""
    return count(jax.make_jaxpr(function)(*arguments))


# --- Matrix products --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize(("sizes", "batch"), [((2, 2, 1), 4), ((64, 128, 10), 128), ((3, 5, 7, 2), 11), ((6, 4), 9)])
def test_a_gradient_step_of_an_mlp_is_6bnm_a_layer_less_the_first_input_gradient(sizes, batch, by_hand):
    # Forward, slope of the weights, slope of the input: 2 B n m each, but nobody asks for the slope of the batch.
    # The rule by hand writes that one, too: dead code, which XLA drops.
    pairs = list(itertools.pairwise(sizes))
    expected = 6 * batch * sum(n * m for n, m in pairs) - 2 * batch * sizes[0] * sizes[1]
    found = counted(*mlp_step(sizes, batch, by_hand=by_hand))
    assert found.matrix == {"float32": expected}
    assert not found.notes


def test_a_tanh_network_counts_exactly():
    # JAX 0.12 has an operation of its own for the slope of tanh.
    network = mjn.serial(mjn.dense(3, 4), mjn.elementwise(jnp.tanh), mjn.dense(4, 2))
    found = counted(*step_of(network, 3, 2, 5))
    assert found.matrix == {"float32": 5 * (4 * 3 * 4 + 6 * 4 * 2)}
    assert found.transcendentals == 5 * 4 + 1 and not found.notes  # and the root of the gradient's norm


def test_adam_adds_the_same_for_each_weight():
    optax = pytest.importorskip("optax")

    def flops(n, descent):
        found = counted(*mlp_step((n, 1), 5, descent=descent))
        assert not found.notes
        return found.flops

    def more(n):
        adam = flops(n, lambda objective, rate: mjn.optax_descent(objective, optax.adam(rate)))
        return adam - flops(n, mjn.gradient_descent)

    assert more(9) - more(8) == more(100) - more(99) == (more(100) - more(8)) / 92 > 10


def test_a_product_goes_under_the_dtype_of_its_operands():
    assert counted(*mlp_step((4, 3), 8, dtype=jnp.bfloat16)).matrix == {"bfloat16": 4 * 8 * 4 * 3}
    narrow = ones(5, 5).astype(jnp.bfloat16)
    accumulated = counted(lambda a: lax.dot(a, a, preferred_element_type=jnp.float32) + 1, narrow)
    assert accumulated.matrix == {"bfloat16": 250}
    assert accumulated.other == {"float32": 25}
    mixed = counted(lambda a, b: lax.dot(a, b, preferred_element_type=jnp.float32), narrow, ones(5, 5))
    assert mixed.matrix == {"float32": 250}


def test_batched_and_complex_products():
    a, b = ones(6, 2, 3), ones(6, 3, 4)
    assert counted(jnp.matmul, a, b).matrix == {"float32": 6 * 2 * 2 * 3 * 4}
    assert counted(jnp.matmul, a + 0j, b + 0j).matrix == {"complex64": 6 * 8 * 2 * 3 * 4}


CONVOLUTIONS = {
    "valid": dict(window_strides=(1, 1), padding="VALID"),
    "same, strided": dict(window_strides=(2, 3), padding="SAME"),
    "dilated": dict(window_strides=(1, 2), padding=((3, 1), (0, 2)), lhs_dilation=(2, 1), rhs_dilation=(1, 2)),
    "grouped": dict(window_strides=(1, 1), padding="SAME", feature_group_count=2),
}


@pytest.mark.parametrize("how", CONVOLUTIONS)
@pytest.mark.parametrize("of", ["value", "image", "kernel"])
def test_a_convolution_and_its_gradients_count_as_xla_counts_them(how, of):
    groups = CONVOLUTIONS[how].get("feature_group_count", 1)
    image, kernel = ones(2, 4, 9, 8), ones(6, 4 // groups, 3, 2)
    convolve = functools.partial(lax.conv_general_dilated, **CONVOLUTIONS[how])
    if of == "value":
        function, arguments = convolve, (image, kernel)
    else:
        cotangent = jax.eval_shape(convolve, image, kernel)
        one = (lambda x: convolve(x, kernel), image) if of == "image" else (lambda x: convolve(image, x), kernel)
        function, arguments = jax.linear_transpose(*one), (ones(*cotangent.shape),)
    found = counted(function, *arguments)
    assert not found.other
    assert found.matrix["float32"] == jax.jit(function).lower(*arguments).cost_analysis()["flops"]
    assert how != "valid" or found.matrix["float32"] == 2 * (2 * 6 * 7 * 7) * (3 * 2) * 4, "by formula"


def test_a_convolution_along_one_axis_counts_by_the_formula():
    convolve = functools.partial(lax.conv_general_dilated, window_strides=(1,), padding="VALID")
    assert counted(convolve, ones(2, 3, 9), ones(5, 3, 4)).matrix == {"float32": 2 * (2 * 5 * 6) * 4 * 3}


# --- Everything else --------------------------------------------------------------------------------------------------


def test_elementwise_operations_count_as_xla_counts_them():
    def function(x, y):
        return jnp.exp(x) * y - jnp.tanh(x + y) / jnp.maximum(x, y) + lax.rsqrt(y) + lax.clamp(-1.0, x, 1.0)

    arguments = (ones(5, 7), ones(5, 7))
    found, xla = counted(function, *arguments), jax.jit(function).lower(*arguments).cost_analysis()
    assert found.transcendentals == xla["transcendentals"] == 3 * 35
    assert found.flops - found.transcendentals == xla["flops"] == 8 * 35


X8 = ones(3, 8)


@pytest.mark.parametrize(
    ("function", "flops"),
    [
        (lambda x: jnp.sum(x, axis=1), 24),
        (lambda x: jnp.max(x), 24),
        (lambda x: jnp.argmax(x, axis=0), 24),
        (lambda x: lax.cumsum(x, axis=1), 24),
        (lambda x: lax.reduce(x, 0.0, lambda a, b: a + b * b, (0,)), 24),
        (lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2), (1, 2), "VALID"), 12 * 2),
        (lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 3), (1, 1), "VALID"), 2 * 6 * 6),
        (lambda x: lax.sort(x, dimension=1), 24 * 3),
        (lambda x: lax.sort(x, dimension=0), 24 * math.log2(3)),
        (jax.grad(lambda x: jnp.sum(lax.reduce_window(x, -jnp.inf, lax.max, (1, 2), (1, 2), "VALID"))), 12 * 2),
        (lambda x: x.at[jnp.array([0, 2])].add(ones(2, 8)), 16),
        (lambda x: x.at[0].set(2.0).T.reshape(-1)[::2].astype(jnp.bfloat16), 0),
        (lambda x: jnp.tile(jnp.stack([*jnp.stack([x, x])]), 2), 0),
        (lambda x: x.astype(int) * 2 + 1, 0),
        (lambda x: jnp.where(x.astype(bool), x, -x), 24),  # the negation; to choose is no arithmetic
    ],
)
def test_by_formula(function, flops):
    found = counted(function, X8)
    assert found.flops == round(flops)
    assert not found.notes


def test_what_has_no_rule_is_named():
    found = counted(lambda x: jnp.linalg.cholesky(x @ x.T, symmetrize_input=False), X8)
    assert found.matrix == {"float32": 2 * 3 * 3 * 8}
    assert found.notes == ("cholesky: not counted",)
    made = counted(lambda k: jax.pure_callback(np.float32, jax.ShapeDtypeStruct((), jnp.float32), k), 3)
    assert made.notes == ("pure_callback: not counted",)


def test_what_returns_nothing_is_named():
    def printing(x):
        jax.debug.callback(print, x)
        return -x

    found = counted(printing, X8)
    assert found.other == {"float32": 24}
    assert found.notes == ("debug_callback: not counted",)


def test_what_nobody_needs_is_not_counted():
    found = counted(lambda x: (jnp.sin(x) @ x.T, jax.jit(lambda y: (y @ y.T, -y))(x)[1])[1], X8)
    assert (found.matrix, found.other) == ({}, {"float32": 24})


# --- Programs in programs ---------------------------------------------------------------------------------------------


def body(x):
    return jnp.tanh(x @ x)


SQUARE = ones(4, 4)


def test_a_scan_is_its_body_so_many_times():
    found = counted(lambda x: lax.scan(lambda x, _: (body(x), None), x, length=13)[0], SQUARE)
    assert (found.matrix, found.other, found.transcendentals) == ({"float32": 13 * 128}, {"float32": 13 * 16}, 13 * 16)
    assert found.moved == 13 * counted(body, SQUARE).moved
    assert not found.notes


def test_nested_scans_multiply():
    def inner(x, _):
        return lax.fori_loop(0, 3, lambda _, x: body(x), x), None

    found = counted(lambda x: lax.scan(inner, x, length=5)[0], SQUARE)
    assert found.matrix == {"float32": 15 * 128}


def test_a_while_is_one_round_and_marked():
    found = counted(lambda x: lax.while_loop(lambda x: jnp.sum(x) < 3, body, x), SQUARE)
    assert found.matrix == {"float32": 128}
    assert found.other == {"float32": 16 + 16 + 1}  # the tanh; the sum and the comparison that end it
    assert found.notes == ("while: counted as a single round",)


def test_a_descent_of_unknown_length_is_marked():
    step, state, batch = mlp_step((2, 2, 1), 4)
    cost = step_cost(lambda s, b: (mjn.descend(mjn.Descent(None, step), s, b, steps=7)[0], ()), state, batch)
    assert not cost.exact
    assert "note: while" in str(cost)


def test_a_cond_is_its_dearest_branch():
    found = counted(lambda x: lax.cond(x[0, 0] > 0, body, jnp.sin, x), SQUARE)
    assert found.matrix == {"float32": 128}
    assert found.notes == ("cond: counted as its dearest branch",)
    alike = counted(lambda x: lax.cond(x[0, 0] > 0, body, lambda x: jnp.sin(x @ x), x), SQUARE)
    assert alike.matrix == {"float32": 128} and not alike.notes
    unknown = counted(lambda x: lax.cond(x[0, 0] > 0, body, lambda x: lax.linalg.cholesky(x), x), SQUARE)
    assert unknown.matrix == {"float32": 128} and unknown.notes == ("cholesky: not counted", *found.notes)
    # A branch that lacks what the other saves for the gradient makes it up, from no operand at all.
    gradient = counted(jax.grad(lambda x: jnp.sum(lax.cond(x[0, 0] > 0, lambda x: x @ x, jnp.sin, x))), SQUARE)
    assert gradient.matrix == {"float32": 2 * 128} and gradient.notes == found.notes


def test_vmap_of_n_is_n_times_one():
    def function(x):
        return jnp.sum(jnp.sin(x @ x) ** 2)

    one, many = counted(function, SQUARE), counted(jax.vmap(function), ones(6, 4, 4))
    assert many.matrix == {"float32": 6 * one.matrix["float32"]}
    assert many.other == {"float32": 6 * one.other["float32"]}
    assert many.transcendentals == 6 * one.transcendentals


def test_remat_computes_forward_again():
    def gradient(f):
        return counted(jax.grad(lambda x: jnp.sum(f(x) ** 2)), SQUARE).matrix.total()

    def twice(x):
        return body(body(x))

    # Each product forward and two backward; then forward once more.
    assert gradient(twice) == 6 * 128
    assert gradient(jax.checkpoint(twice)) == 8 * 128


def test_jit_and_custom_rules_are_looked_into():
    @jax.custom_jvp
    def own(x):
        return body(x)

    own.defjvp(lambda primals, tangents: (own(*primals), body(tangents[0])))
    assert counted(own, SQUARE).matrix == counted(jax.jit(jax.jit(body)), SQUARE).matrix == {"float32": 128}
    # By autodiff it would be three products; the rule has one, and that of its loss is needed by nobody.
    assert counted(jax.grad(_sum_of_body), SQUARE, 0.0).matrix == {"float32": 3 * 128}
    assert counted(jax.grad(mjn.with_gradient(_sum_of_body, _one_product)), SQUARE, 0.0).matrix == {"float32": 128}


def _sum_of_body(x, batch):
    return jnp.sum(body(x)) + batch


def _one_product(x, batch):
    return _sum_of_body(x, batch), body(x)


def test_inside_a_shard_map_one_device_counts():
    mesh = AbstractMesh((4,), ("data",), axis_types=(AxisType.Auto,))
    function = jax.shard_map(lambda x: lax.psum(jnp.sum(x @ x.T), "data"), mesh=mesh, in_specs=P("data"), out_specs=P())
    found = count(jax.jit(function).trace(jax.ShapeDtypeStruct((8, 3), jnp.float32)).jaxpr)
    assert found.matrix == {"float32": 2 * 2 * 2 * 3}
    assert found.notes == ("shard_map: counted as one device's share",)
