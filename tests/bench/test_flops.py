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
    # Forward, gradient of the weights and of the input: 2 B n m each, but the gradient of the batch is not needed.
    # The rule by hand computes it, too: dead code, which XLA drops.
    pairs = list(itertools.pairwise(sizes))
    expected = 6 * batch * sum(n * m for n, m in pairs) - 2 * batch * sizes[0] * sizes[1]
    found = counted(*mlp_step(sizes, batch, by_hand=by_hand))
    assert found.matrix == {"float32": expected}
    assert not found.notes


def test_a_tanh_network_counts_exactly():
    network = mjn.serial(mjn.dense(3, 4), mjn.elementwise(jnp.tanh), mjn.dense(4, 2))
    found = counted(*step_of(network, 3, 2, 5))
    assert found.matrix == {"float32": 5 * (4 * 3 * 4 + 6 * 4 * 2)} and not found.notes


def test_every_operation_of_adam_has_a_rule():
    optax = pytest.importorskip("optax")
    assert not counted(*mlp_step((9, 1), 5, descent=lambda f, rate: mjn.optax_descent(f, optax.adam(rate)))).notes


def test_a_product_goes_under_the_dtype_of_its_operands():
    assert counted(*mlp_step((4, 3), 8, dtype=jnp.bfloat16)).matrix == {"bfloat16": 4 * 8 * 4 * 3}
    narrow = ones(5, 5).astype(jnp.bfloat16)
    accumulated = counted(lambda a: lax.dot(a, a, preferred_element_type=jnp.float32) + 1, narrow)
    assert (accumulated.matrix, accumulated.other) == ({"bfloat16": 250}, {"float32": 25})
    mixed = counted(lambda a, b: lax.dot(a, b, preferred_element_type=jnp.float32), narrow, ones(5, 5))
    assert mixed.matrix == {"float32": 250}
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
def test_a_convolution_and_its_gradients_count_as_xla_counts_them(how):
    groups = CONVOLUTIONS[how].get("feature_group_count", 1)
    arguments = image, kernel = ones(2, 4, 9, 8), ones(6, 4 // groups, 3, 2)
    convolve = functools.partial(lax.conv_general_dilated, **CONVOLUTIONS[how])
    cotangent = np.ones(jax.eval_shape(convolve, image, kernel).shape, np.float32)
    for function in (convolve, lambda image, kernel: jax.vjp(convolve, image, kernel)[1](cotangent)):
        found = counted(function, *arguments)
        assert found.matrix["float32"] == jax.jit(function).lower(*arguments).cost_analysis()["flops"]
        assert not found.other


# --- Everything else --------------------------------------------------------------------------------------------------


def test_elementwise_operations_count_as_xla_counts_them():
    def function(x, y):
        return jnp.exp(x) * y - jnp.tanh(x + y) / jnp.maximum(x, y) + lax.rsqrt(y) + lax.clamp(-1.0, x, 1.0)

    arguments = (ones(5, 7), ones(5, 7))
    xla = jax.jit(function).lower(*arguments).cost_analysis()
    assert counted(function, *arguments).flops == xla["flops"] + xla["transcendentals"] == 11 * 35


X8 = ones(3, 8)


@pytest.mark.parametrize(
    ("function", "flops"),
    [
        (lambda x: jnp.sum(x, axis=1), 24),
        (lambda x: jnp.argmax(x, axis=0), 24),
        (lambda x: lax.cumsum(x, axis=1), 24),
        (lambda x: lax.reduce(x, 0.0, lambda a, b: a + b * b, (0,)), 24),
        (lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2), (1, 2), "VALID"), 12 * 2),
        (lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 3), (1, 1), "VALID"), 2 * 6 * 6),
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


def test_what_has_no_rule_is_named_and_what_no_result_needs_is_not_counted():
    found = counted(lambda x: jnp.linalg.cholesky(x @ x.T, symmetrize_input=False), X8)
    assert found.matrix == {"float32": 2 * 3 * 3 * 8} and found.notes == ("cholesky: not counted",)
    printed = counted(lambda x: jax.debug.callback(print, x) or -x, X8)
    assert printed.other == {"float32": 24} and printed.notes == ("debug_callback: not counted",)
    found = counted(lambda x: (jnp.sin(x) @ x.T, jax.jit(lambda y: (y @ y.T, -y))(x)[1])[1], X8)
    assert (found.matrix, found.other) == ({}, {"float32": 24})


# --- Programs in programs ---------------------------------------------------------------------------------------------

SQUARE = ones(4, 4)


def body(x):
    return jnp.tanh(x @ x)


def nested(x, _):
    return lax.fori_loop(0, 3, lambda _, x: body(x), x), None


def sum_of_body(x, batch):
    return jnp.sum(body(x)) + batch


def gradient_of(function):
    return jax.grad(lambda x: jnp.sum(function(x) ** 2))


@jax.custom_jvp
def own_rule(x):
    return body(x)


own_rule.defjvp(lambda primals, tangents: (own_rule(*primals), body(tangents[0])))
by_hand = mjn.with_gradient(sum_of_body, lambda x, batch: (sum_of_body(x, batch), body(x)))


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (lambda x: lax.scan(lambda x, _: (body(x), None), x, length=13)[0], 13),
        (lambda x: lax.scan(nested, x, length=5)[0], 15),
        (jax.jit(jax.jit(body)), 1),
        (own_rule, 1),
        (jax.vmap(lambda row: body(row * jnp.eye(4))), 4),
        (gradient_of(lambda x: body(body(x))), 6),  # each product forward, and two backward
        (gradient_of(jax.checkpoint(lambda x: body(body(x)))), 8),  # and forward once more
        (jax.grad(lambda x: sum_of_body(x, 0.0)), 3),
        (jax.grad(lambda x: by_hand(x, 0.0)), 1),  # the rule has one; the one of its loss is not needed
        (lambda x: lax.cond(x[0, 0] > 0, body, lambda x: jnp.sin(x @ x), x), 1),  # which is the same in both
    ],
)
def test_matrix_products_of_4_by_4_are_counted_as_often_as_they_run(function, products):
    found = counted(function, SQUARE)
    assert found.matrix == {"float32": products * 128} and not found.notes


def test_a_while_is_one_round_and_noted():
    found = counted(lambda x: lax.while_loop(lambda x: jnp.sum(x) < 3, body, x), SQUARE)
    assert found.matrix == {"float32": 128}
    assert found.other == {"float32": 16 + 16 + 1}  # the tanh; the sum and the comparison that end it
    assert found.notes == ("while: counted as one round",)


def test_a_cond_is_its_largest_branch_and_noted():
    found = counted(lambda x: lax.cond(x[0, 0] > 0, body, jnp.sin, x), SQUARE)
    assert found.matrix == {"float32": 128} and found.notes == ("cond: counted as its branch with the most FLOPs",)
    unknown = counted(lambda x: lax.cond(x[0, 0] > 0, body, lambda x: lax.linalg.cholesky(x), x), SQUARE)
    assert unknown.matrix == {"float32": 128} and unknown.notes == ("cholesky: not counted", *found.notes)
    # A branch that lacks what the other saves for the gradient makes it up, from no operand at all.
    gradient = counted(jax.grad(lambda x: jnp.sum(lax.cond(x[0, 0] > 0, lambda x: x @ x, jnp.sin, x))), SQUARE)
    assert gradient.matrix == {"float32": 2 * 128} and gradient.notes == found.notes


def test_inside_a_shard_map_one_device_counts():
    mesh = AbstractMesh((4,), ("data",), axis_types=(AxisType.Auto,))
    function = jax.shard_map(lambda x: lax.psum(jnp.sum(x @ x.T), "data"), mesh=mesh, in_specs=P("data"), out_specs=P())
    found = count(jax.jit(function).trace(jax.ShapeDtypeStruct((8, 3), jnp.float32)).jaxpr)
    assert found.matrix == {"float32": 2 * 2 * 2 * 3}
    assert found.notes == ("shard_map: counted as the share of one device",)
