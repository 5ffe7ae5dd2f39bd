"""What a step is made of: bytes and memory, and whether XLA made its loop one function."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from kits.marks import slow
from kits.steps import mlp_step

import minijaxnet as mjn
from minijaxnet.bench.cost import StepCost, _peaks, folded_loop, step_cost


@pytest.fixture
def on_cpu():
    if jax.default_backend() != "cpu":
        pytest.skip("the small-loop pass is the CPU's")


def ones(*shape):
    return np.ones(shape, np.float32)


def test_a_dense_layer_forward_is_2bnm():
    layer = mjn.dense(7, 5)
    cost = step_cost(layer.apply, jax.eval_shape(layer.init, jax.random.key(0)), ones(3, 7))
    assert cost.matrix_flops == {"float32": 2 * 3 * 7 * 5}
    assert cost.other_flops == {"float32": 3 * 5}  # the bias
    assert cost.flops == 2 * 3 * 7 * 5 + 3 * 5
    assert cost.exact and not cost.notes


# --- Bytes ------------------------------------------------------------------------------------------------------------


def test_least_and_unfused_bytes():
    cost = step_cost(lambda state, x: jnp.sin(state * 2) + x, ones(10), ones(10))
    assert cost.least_bytes == 4 * (10 + 10 + 10)
    assert cost.unfused_bytes == 4 * ((10 + 10) + (10 + 10) + (10 + 10 + 10))  # the product, the sine, the sum


def test_what_a_loop_moves_counts_each_round():
    def loop(state, x):
        return lax.fori_loop(0, 7, lambda _, s: s * x, state)

    assert step_cost(loop, ones(10), ones(10)).unfused_bytes == 7 * 4 * 30


@pytest.mark.parametrize("wrapped", [lambda step: step, jax.jit])
def test_what_is_not_used_or_handed_on_as_it_is_need_not_move(wrapped):
    step = wrapped(lambda state, x: ((state[0], state[1] + 1), ()))
    cost = step_cost(step, (ones(1000), ones(10)), ones(500))
    assert cost.least_bytes == 4 * (10 + 10)


def test_a_jitted_step_costs_the_same():
    step, state, batch = mlp_step((3, 4, 2), 5)
    assert step_cost(step, state, batch) == step_cost(jax.jit(step), state, batch)


def test_the_planned_peak_holds_the_arguments_and_the_state_survives():
    step, state, batch = mlp_step((64, 128, 10), 128)
    state, batch = jax.device_put(jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), (state, batch)))
    cost = step_cost(step, state, batch)
    arguments = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, batch)))
    activations = 4 * 128 * (128 + 10)
    assert arguments + activations < cost.planned_peak_bytes < arguments + 4 * activations
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_a_donated_state_is_planned_once():
    state = ones(10_000)
    donated = step_cost(lambda state, x: (state + x, ()), state, np.float32(1))
    kept = step_cost(lambda state, x: state + x, state, np.float32(1))  # no next state: there is nothing to donate to
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


# --- The loop that XLA folds ------------------------------------------------------------------------------------------


def loop_of(step, state, batch, steps=None):
    def repeat(state, batch, n):
        return lax.fori_loop(0, n if steps is None else steps, lambda _, s: step(s, batch)[0], state)

    return jax.jit(repeat).lower(state, batch, 5).compile()


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("steps", [None, *slow(1000)])
def test_the_loop_of_a_small_network_is_folded_and_of_a_larger_one_is_not(steps):
    assert folded_loop(loop_of(*mlp_step((2, 2, 1), 4), steps)) is True
    assert folded_loop(loop_of(*mlp_step((64, 128, 10), 128), steps)) is False


@pytest.mark.usefixtures("on_cpu")
def test_a_folded_loop_in_one_that_is_not_is_none():
    def inner(x):
        return lax.fori_loop(0, 50, lambda _, x: jnp.sin(x), x)

    def outer(x, m):
        return lax.fori_loop(0, 99, lambda _, c: (inner(c[0]), jnp.tanh(c[1] @ c[1])), (x, m))

    compiled = jax.jit(outer).lower(1.0, ones(200, 200)).compile()
    assert "xla_cpu_small_call" in compiled.as_text()
    assert folded_loop(compiled) is False


@pytest.mark.usefixtures("on_cpu")
def test_a_loop_in_a_branch_is_seen():
    def loop(x):
        return lax.fori_loop(0, 99, lambda _, x: jnp.tanh(x @ x), x)

    def function(x, m):
        return lax.fori_loop(0, 99, lambda _, x: jnp.sin(x), x), lax.cond(x > 0, loop, jnp.cos, m)

    compiled = jax.jit(function).lower(1.0, ones(200, 200)).compile()
    assert "xla_cpu_small_call" in compiled.as_text()
    assert folded_loop(compiled) is False


@pytest.mark.usefixtures("on_cpu")
def test_without_a_loop_nothing_is_folded():
    assert folded_loop(jax.jit(jnp.sin).lower(1.0).compile()) is False


def test_elsewhere_it_cannot_be_told():
    sharding = SimpleNamespace(device_set={_Hashable(SimpleNamespace(platform="gpu"))})
    assert folded_loop(SimpleNamespace(input_shardings=(sharding,), output_shardings=(sharding,))) is None
