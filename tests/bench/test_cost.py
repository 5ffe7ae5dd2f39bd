"""What a step is made of, and which limit binds it: counts by formula, XLA's own count where there is no loop.

Nothing here looks at a clock: the rates are only asked to be rates, and what is concluded from them is arithmetic.
"""

import functools
import itertools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

import minijaxnet as mjn
from minijaxnet.bench import roofline as roofline_module
from minijaxnet.bench.cost import StepCost, _peaks, folded_loop, step_cost
from minijaxnet.bench.flops import count
from minijaxnet.bench.roofline import Roofline, limits, measure_roofline

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the small-loop pass is the CPU's")


def counted(function, *arguments):
    """What a function of any arguments sums up to."""
    return count(jax.make_jaxpr(function)(*arguments))


def step_of(network, n_in, n_out, batch_size, *, dtype=jnp.float32, objective=None, descent=mjn.gradient_descent):
    """A step, and the shapes of its state and batch: nothing here needs numbers to run on."""
    objective = objective or mjn.objective(network, mjn.mean_squared_error)
    made = descent(objective, 0.1)
    state = jax.eval_shape(lambda key: made.init(network.init(key)), jax.random.key(0))
    return made.step, state, tuple(jax.ShapeDtypeStruct((batch_size, n), dtype) for n in (n_in, n_out))


def mlp_step(sizes, batch_size, *, by_hand=False, dtype=jnp.float32, **options):
    network = mjn.mlp(sizes, dtype=dtype)
    objective = mjn.objective(network, mjn.mean_squared_error)
    if by_hand:
        rule = mjn.mlp_gradient(sizes, activation=jax.nn.relu, loss=mjn.mean_squared_error)
        objective = mjn.with_gradient(objective, rule)
    return step_of(network, sizes[0], sizes[-1], batch_size, dtype=dtype, objective=objective, **options)


# --- Matrix products ------------------------------------------------------------------------------------------------


def test_a_dense_layer_forward_is_2bnm():
    layer = mjn.dense(7, 5)
    cost = step_cost(layer.apply, layer.init(jax.random.key(0)), jnp.ones((3, 7)))
    assert cost.matrix_flops == {"float32": 2 * 3 * 7 * 5}
    assert cost.other_flops == {"float32": 3 * 5}  # the bias
    assert cost.flops == 2 * 3 * 7 * 5 + 3 * 5
    assert cost.exact and not cost.notes


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
    narrow = jnp.ones((5, 5), jnp.bfloat16)
    accumulated = counted(lambda a: lax.dot(a, a, preferred_element_type=jnp.float32) + 1, narrow)
    assert accumulated.matrix == {"bfloat16": 250}
    assert accumulated.other == {"float32": 25}
    mixed = counted(lambda a, b: lax.dot(a, b, preferred_element_type=jnp.float32), narrow, jnp.ones((5, 5)))
    assert mixed.matrix == {"float32": 250}


def test_batched_and_complex_products():
    a, b = jnp.ones((6, 2, 3)), jnp.ones((6, 3, 4))
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
    image, kernel = jnp.ones((2, 4, 9, 8)), jnp.ones((6, 4 // groups, 3, 2))
    convolve = functools.partial(lax.conv_general_dilated, **CONVOLUTIONS[how])
    if of == "value":
        function, arguments = convolve, (image, kernel)
    else:
        cotangent = jax.eval_shape(convolve, image, kernel)
        one = (lambda x: convolve(x, kernel), image) if of == "image" else (lambda x: convolve(image, x), kernel)
        function, arguments = jax.linear_transpose(*one), (jnp.ones(cotangent.shape),)
    found = counted(function, *arguments)
    assert not found.other
    assert found.matrix["float32"] == jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def test_a_plain_convolution_by_formula():
    found = counted(lambda x, k: lax.conv(x, k, (1, 1), "VALID"), jnp.ones((2, 3, 9, 8)), jnp.ones((5, 3, 4, 2)))
    assert found.matrix == {"float32": 2 * (2 * 5 * 6 * 7) * (4 * 2) * 3}


# --- Everything else ------------------------------------------------------------------------------------------------


def test_elementwise_operations_count_as_xla_counts_them():
    def function(x, y):
        return jnp.exp(x) * y - jnp.tanh(x + y) / jnp.maximum(x, y) + lax.rsqrt(y) + lax.clamp(-1.0, x, 1.0)

    arguments = (jnp.ones((5, 7)), jnp.ones((5, 7)))
    found, xla = counted(function, *arguments), jax.jit(function).lower(*arguments).cost_analysis()
    assert found.transcendentals == xla["transcendentals"] == 3 * 35
    assert found.flops - found.transcendentals == xla["flops"] == 8 * 35


x8 = jnp.ones((3, 8))


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
        (lambda x: x.at[jnp.array([0, 2])].add(jnp.ones((2, 8))), 16),
        (lambda x: x.at[0].set(2.0).T.reshape(-1)[::2].astype(jnp.bfloat16), 0),
        (lambda x: jnp.tile(jnp.stack([*jnp.stack([x, x])]), 2), 0),
        (lambda x: x.astype(int) * 2 + 1, 0),
        (lambda x: jnp.where(x.astype(bool), x, -x), 24),  # the negation; to choose is no arithmetic
    ],
)
def test_by_formula(function, flops):
    found = counted(function, x8)
    assert found.flops == round(flops)
    assert not found.notes


def test_what_has_no_rule_is_named():
    found = counted(lambda x: jnp.linalg.cholesky(x @ x.T, symmetrize_input=False), x8)
    assert found.matrix == {"float32": 2 * 3 * 3 * 8}
    assert found.notes == ("cholesky: not counted",)
    made = counted(lambda k: jax.pure_callback(np.float32, jax.ShapeDtypeStruct((), jnp.float32), k), 3)
    assert made.notes == ("pure_callback: not counted",)


def test_what_returns_nothing_is_named():
    def printing(x):
        jax.debug.callback(print, x)
        return -x

    found = counted(printing, x8)
    assert found.other == {"float32": 24}
    assert found.notes == ("debug_callback: not counted",)


def test_what_nobody_needs_is_not_counted():
    found = counted(lambda x: (jnp.sin(x) @ x.T, jax.jit(lambda y: (y @ y.T, -y))(x)[1])[1], x8)
    assert (found.matrix, found.other) == ({}, {"float32": 24})


# --- Programs in programs -------------------------------------------------------------------------------------------


def body(x):
    return jnp.tanh(x @ x)


square = jnp.ones((4, 4))
ONE = counted(body, square)


def test_a_scan_is_its_body_so_many_times():
    found = counted(lambda x: lax.scan(lambda x, _: (body(x), None), x, length=13)[0], square)
    assert (found.matrix, found.other, found.transcendentals) == ({"float32": 13 * 128}, {"float32": 13 * 16}, 13 * 16)
    assert found.moved == 13 * ONE.moved
    assert not found.notes


def test_nested_scans_multiply():
    def inner(x, _):
        return lax.fori_loop(0, 3, lambda _, x: body(x), x), None

    found = counted(lambda x: lax.scan(inner, x, length=5)[0], square)
    assert found.matrix == {"float32": 15 * 128}


def test_a_while_is_one_round_and_marked():
    found = counted(lambda x: lax.while_loop(lambda x: jnp.sum(x) < 3, body, x), square)
    assert found.matrix == {"float32": 128}
    assert found.other == {"float32": 16 + 16 + 1}  # the tanh; the sum and the comparison that end it
    assert found.notes == ("while: counted as a single round",)


def test_a_descent_of_unknown_length_is_marked():
    step, state, batch = mlp_step((2, 2, 1), 4)
    cost = step_cost(lambda s, b: (mjn.descend(mjn.Descent(None, step), s, b, steps=7)[0], ()), state, batch)
    assert not cost.exact
    assert "note: while" in str(cost)


def test_a_cond_is_its_dearest_branch():
    found = counted(lambda x: lax.cond(x[0, 0] > 0, body, jnp.sin, x), square)
    assert found.matrix == {"float32": 128}
    assert found.notes == ("cond: counted as its dearest branch",)
    alike = counted(lambda x: lax.cond(x[0, 0] > 0, body, lambda x: jnp.sin(x @ x), x), square)
    assert alike.matrix == {"float32": 128} and not alike.notes
    unknown = counted(lambda x: lax.cond(x[0, 0] > 0, body, lambda x: lax.linalg.cholesky(x), x), square)
    assert unknown.matrix == {"float32": 128} and unknown.notes == ("cholesky: not counted", *found.notes)
    # A branch that lacks what the other saves for the gradient makes it up, from no operand at all.
    gradient = counted(jax.grad(lambda x: jnp.sum(lax.cond(x[0, 0] > 0, lambda x: x @ x, jnp.sin, x))), square)
    assert gradient.matrix == {"float32": 2 * 128} and gradient.notes == found.notes


def test_vmap_of_n_is_n_times_one():
    def function(x):
        return jnp.sum(jnp.sin(x @ x) ** 2)

    one, many = counted(function, square), counted(jax.vmap(function), jnp.ones((6, 4, 4)))
    assert many.matrix == {"float32": 6 * one.matrix["float32"]}
    assert many.other == {"float32": 6 * one.other["float32"]}
    assert many.transcendentals == 6 * one.transcendentals


def test_remat_computes_forward_again():
    def gradient(f):
        return counted(jax.grad(lambda x: jnp.sum(f(x) ** 2)), square).matrix.total()

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
    assert counted(own, square).matrix == counted(jax.jit(jax.jit(body)), square).matrix == {"float32": 128}
    # By autodiff it would be three products; the rule has one, and that of its loss is needed by nobody.
    assert counted(jax.grad(_sum_of_body), square, 0.0).matrix == {"float32": 3 * 128}
    assert counted(jax.grad(mjn.with_gradient(_sum_of_body, _one_product)), square, 0.0).matrix == {"float32": 128}


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


# --- Bytes ----------------------------------------------------------------------------------------------------------


def test_least_and_unfused_bytes():
    cost = step_cost(lambda state, x: jnp.sin(state * 2) + x, jnp.ones(10), jnp.ones(10))
    assert cost.least_bytes == 4 * (10 + 10 + 10)
    assert cost.unfused_bytes == 4 * ((10 + 10) + (10 + 10) + (10 + 10 + 10))  # the product, the sine, the sum


def test_what_a_loop_moves_counts_each_round():
    def loop(state, x):
        return lax.fori_loop(0, 7, lambda _, s: s * x, state)

    assert step_cost(loop, jnp.ones(10), jnp.ones(10)).unfused_bytes == 7 * 4 * 30


@pytest.mark.parametrize("wrapped", [lambda step: step, jax.jit])
def test_what_is_not_used_or_handed_on_as_it_is_need_not_move(wrapped):
    step = wrapped(lambda state, x: ((state[0], state[1] + 1), ()))
    cost = step_cost(step, (jnp.ones(1000), jnp.ones(10)), jnp.ones(500))
    assert cost.least_bytes == 4 * (10 + 10)


def test_a_jitted_step_costs_the_same():
    step, state, batch = mlp_step((3, 4, 2), 5)
    assert step_cost(step, state, batch) == step_cost(jax.jit(step), state, batch)


def test_the_planned_peak_holds_the_arguments_and_the_state_survives():
    step, state, batch = mlp_step((64, 128, 10), 128)
    state, batch = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), (state, batch))
    cost = step_cost(step, state, batch)
    arguments = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, batch)))
    activations = 4 * 128 * (128 + 10)
    assert arguments + activations < cost.planned_peak_bytes < arguments + 4 * activations
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_a_donated_state_is_planned_once():
    state = jnp.ones(10_000)
    donated = step_cost(lambda state, x: (state + x, ()), state, jnp.ones(()))
    kept = step_cost(lambda state, x: state + x, state, jnp.ones(()))  # no next state: there is nothing to donate to
    assert donated.least_bytes == kept.least_bytes
    assert kept.planned_peak_bytes - donated.planned_peak_bytes == pytest.approx(state.nbytes, abs=100)


def test_peaks_where_the_device_tells_and_where_nothing_does():
    def compiled(plan, *stats):
        devices = [SimpleNamespace(process_index=0, memory_stats=lambda s=s: s) for s in stats]
        shardings = [SimpleNamespace(device_set={device}) for device in map(_Hashable, devices)]
        return SimpleNamespace(memory_analysis=lambda: plan, input_shardings=shardings, output_shardings=())

    sizes = {"argument_size_in_bytes": 10, "output_size_in_bytes": 7, "alias_size_in_bytes": 5, "temp_size_in_bytes": 3}
    assert _peaks(compiled(SimpleNamespace(**sizes), {"peak_bytes_in_use": 8}, {"peak_bytes_in_use": 9})) == (15, 9)
    assert _peaks(compiled(None, None)) == (None, None)


class _Hashable:
    def __init__(self, device):
        self.__dict__.update(vars(device))


def test_a_cost_prints_its_counts():
    text = str(StepCost({"bfloat16": 2_000}, {"float32": 30}, 4, 50, 60, None, 70, False, ("why",)))
    for part in ("matrix FLOPs, bfloat16", "2,000", "other FLOPs, float32", "30", "50", "60", " -", "70", "note: why"):
        assert part in text


# --- The loop that XLA folds ----------------------------------------------------------------------------------------


def loop_of(step, state, batch, steps=None):
    def repeat(state, batch, n):
        return lax.fori_loop(0, n if steps is None else steps, lambda _, s: step(s, batch)[0], state)

    return jax.jit(repeat).lower(state, batch, 5).compile()


@on_cpu
@pytest.mark.parametrize("steps", [None, 1000])
def test_the_loop_of_a_small_network_is_folded_and_of_a_larger_one_is_not(steps):
    assert folded_loop(loop_of(*mlp_step((2, 2, 1), 4), steps)) is True
    assert folded_loop(loop_of(*mlp_step((64, 128, 10), 128), steps)) is False


@on_cpu
def test_a_folded_loop_in_one_that_is_not_is_none():
    def inner(x):
        return lax.fori_loop(0, 50, lambda _, x: jnp.sin(x), x)

    def outer(x, m):
        return lax.fori_loop(0, 99, lambda _, c: (inner(c[0]), jnp.tanh(c[1] @ c[1])), (x, m))

    compiled = jax.jit(outer).lower(1.0, jnp.ones((200, 200))).compile()
    assert "xla_cpu_small_call" in compiled.as_text()
    assert folded_loop(compiled) is False


@on_cpu
def test_a_loop_in_a_branch_is_seen():
    def loop(x):
        return lax.fori_loop(0, 99, lambda _, x: jnp.tanh(x @ x), x)

    def function(x, m):
        return lax.fori_loop(0, 99, lambda _, x: jnp.sin(x), x), lax.cond(x > 0, loop, jnp.cos, m)

    compiled = jax.jit(function).lower(1.0, jnp.ones((200, 200))).compile()
    assert "xla_cpu_small_call" in compiled.as_text()
    assert folded_loop(compiled) is False


@on_cpu
def test_without_a_loop_nothing_is_folded():
    assert folded_loop(jax.jit(jnp.sin).lower(1.0).compile()) is False


def test_elsewhere_it_cannot_be_told():
    sharding = SimpleNamespace(device_set={_Hashable(SimpleNamespace(platform="gpu"))})
    assert folded_loop(SimpleNamespace(input_shardings=(sharding,), output_shardings=(sharding,))) is None


# --- The limits -----------------------------------------------------------------------------------------------------

MACHINE = Roofline("made up", {"float32": 1e11, "bfloat16": 4e11}, {1_000: 1e11, 10**6: 5e10, 10**9: 1e10}, 5e-6)


def cost_of(matrix, least_bytes):
    return StepCost(matrix, {}, 0, least_bytes, 10 * least_bytes, None, None, True, ())


@pytest.mark.parametrize(
    ("matrix", "least_bytes", "called", "binds", "bound_s"),
    [
        ({"float32": 10**9}, 10**6, False, "compute", 0.01),
        ({"float32": 10**9}, 10**6, True, "compute", 0.01),
        ({"float32": 10**5}, 10**9, False, "bandwidth", 0.1),
        ({"float32": 10**5}, 10**4, True, "dispatch", 5e-6),
        ({"float32": 10**5}, 10**4, False, "compute", 1e-6),
        ({"float32": 10**9, "bfloat16": 4 * 10**9}, 10**6, False, "compute", 0.02),
        ({}, 10**6, False, "bandwidth", 2e-5),
    ],
)
def test_the_largest_bound_binds(matrix, least_bytes, called, binds, bound_s):
    found = limits(cost_of(matrix, least_bytes), 0.2, MACHINE, called=called)
    assert found.binds == binds
    assert found.bound_s == pytest.approx(bound_s)
    assert found.dispatch_s == (5e-6 if called else 0)
    assert found.attained == pytest.approx(found.compute_s / 0.2)
    assert found.intensity == sum(matrix.values()) / least_bytes
    assert binds in str(found)


def test_intensity_meets_the_ridge_where_moving_takes_as_long_as_computing():
    found = limits(cost_of({"float32": 2 * 10**9}, 10**9), 1.0, MACHINE)
    assert found.ridge == pytest.approx(10)  # 1e11 FLOP/s over 1e10 bytes/s
    assert (found.intensity < found.ridge) == (found.bandwidth_s > found.compute_s)
    balanced = limits(cost_of({"float32": 10**10}, 10**9), 1.0, MACHINE)
    assert balanced.intensity == pytest.approx(balanced.ridge)
    assert balanced.bandwidth_s == pytest.approx(balanced.compute_s) == pytest.approx(0.1)
    assert math.isnan(limits(cost_of({}, 10**9), 1.0, MACHINE).ridge)


def test_few_bytes_move_at_the_rate_of_a_cache():
    assert MACHINE.bandwidth(10) == MACHINE.bandwidth(1_000) == MACHINE.bandwidth(999_999) == 1e11
    assert MACHINE.bandwidth(10**6) == 5e10
    assert MACHINE.bandwidth(10**12) == MACHINE.bandwidth() == 1e10
    # A dip among small arrays is the machine's noise: what a larger one reached, a smaller one can.
    assert MACHINE._replace(bandwidths={1_000: 1e9, 10**6: 5e10}).bandwidth(5_000) == 5e10


def test_a_step_faster_than_its_limit_is_said_to_be():
    assert "faster than its limit" in str(limits(cost_of({"float32": 10**9}, 1), 0.005, MACHINE))
    assert "faster than its limit" not in str(limits(cost_of({"float32": 10**9}, 1), 0.02, MACHINE))


def test_the_notes_of_a_cost_go_along():
    cost = cost_of({"float32": 1}, 1)._replace(notes=("while: of unknown length",))
    assert "note: while: of unknown length" in str(limits(cost, 1.0, MACHINE))


def test_a_dtype_without_a_peak_is_refused():
    with pytest.raises(ValueError, match=r"roofline: got the peaks of float32, bfloat16; expected float64 too"):
        limits(cost_of({"float64": 1}, 1), 1.0, MACHINE)


@pytest.mark.parametrize("step_s", [0.0, -1.0, math.nan, math.inf])
def test_a_time_that_is_none_is_refused(step_s):
    with pytest.raises(ValueError, match="step_s: got"):
        limits(cost_of({}, 1), step_s, MACHINE)


# --- The measurement ------------------------------------------------------------------------------------------------


def test_measured_rates_are_rates(monkeypatch):
    monkeypatch.setattr(roofline_module, "_SIDES", (4, 16))
    monkeypatch.setattr(roofline_module, "_ARRAYS", (2**10, 2**12))
    roofline = measure_roofline((jnp.float32, "bfloat16"), seconds=0.01)
    assert list(roofline.peaks) == ["float32", "bfloat16"]
    assert list(roofline.bandwidths) == [2**11, 2**13]
    rates = [*roofline.peaks.values(), *roofline.bandwidths.values(), roofline.dispatch_s]
    assert all(0 < rate < math.inf for rate in rates)
    assert "bfloat16" in str(roofline) and "an empty call" in str(roofline)


@pytest.mark.parametrize(("first_s", "side"), [(1e-9, 4096), (1e-4, 1024), (1.0, 256)])
def test_a_rate_is_work_over_the_least_time(monkeypatch, first_s, side):
    def block(first_s, least_s):
        """Seconds of a round; by the first it is known whether larger matrices would take too long."""
        times = iter([first_s, 3 * least_s, least_s])
        return lambda: next(times, 2 * least_s)

    monkeypatch.setattr(roofline_module, "_products", lambda side, kind: block(first_s * side / 256, side * 1e-3))
    monkeypatch.setattr(roofline_module, "_passes", lambda size: block(3.0, size * 1e-9))
    monkeypatch.setattr(roofline_module, "_calls", lambda: block(3.0, 5e-6))
    roofline = measure_roofline(("float32", "complex64"), seconds=0.1)
    assert roofline.peaks == pytest.approx({"float32": 2 * side**2 / 1e-3, "complex64": 8 * side**2 / 1e-3})
    assert list(roofline.bandwidths.values()) == pytest.approx([2e9] * len(roofline.bandwidths))
    assert roofline.dispatch_s == pytest.approx(5e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_timed_neither_vanishes_nor_grows(monkeypatch, dtype):
    kept = []
    monkeypatch.setattr(roofline_module, "_block", lambda *arguments: kept.append(arguments))
    roofline_module._products(64, dtype)
    ((function, x, w),) = kept
    later = lax.fori_loop(0, 1000, lambda _, x: function(x, w), x).astype(jnp.float32)
    assert float(jnp.std(later)) == pytest.approx(1, abs=0.1)
    assert not np.any(np.asarray(w) == 0)


@pytest.mark.parametrize(
    ("dtypes", "seconds", "error", "text"),
    [
        (("int32",), 1.0, TypeError, "dtypes: got int32; expected floating or complex ones"),
        ("float32", 1.0, TypeError, "dtypes: got 'float32'; expected a sequence"),
        (("float64",), 1.0, TypeError, "dtypes: got float64; expected one that is enabled"),
        (("float32",), 0.0, ValueError, "seconds: got 0.0"),
        (("float32",), "1", TypeError, "seconds: got '1'"),
    ],
)
def test_what_cannot_be_measured_is_refused(dtypes, seconds, error, text):
    with pytest.raises(error, match=text):
        measure_roofline(dtypes, seconds=seconds)


def test_the_bytes_of_a_stream_are_those_its_cost_says():
    # The rates are kept under what a step of them would be said to move at least: the same measure on both sides.
    array = np.ones(2**12, np.float32)
    assert step_cost(lambda x, scale: x * scale, array, np.float32(1)).least_bytes == 2 * array.nbytes + 4
