"""What a step costs: its operations, bytes and memory."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from kits.steps import mlp_step

import minijaxnet as mjn
from minijaxnet.bench.cost import StepCost, _peaks, step_cost


def ones(*shape):
    return np.ones(shape, np.float32)


def test_a_dense_layer_forward_is_2bnm_and_reads_and_writes_each_array_once():
    layer = mjn.dense(7, 5)
    cost = step_cost(layer.apply, jax.eval_shape(layer.init, jax.random.key(0)), ones(3, 7))
    assert cost.matrix_flops == {"float32": 2 * 3 * 7 * 5} and cost.other_flops == {"float32": 3 * 5}  # the bias
    assert cost.flops == 2 * 3 * 7 * 5 + 3 * 5
    assert cost.least_bytes == 4 * (7 * 5 + 5 + 3 * 7 + 3 * 5)
    assert not cost.notes


@pytest.mark.parametrize("wrapped", [lambda step: step, jax.jit])
def test_what_is_not_used_or_returned_unchanged_need_not_move(wrapped):
    step = wrapped(lambda state, x: ((state[0], state[1] + 1), ()))
    assert step_cost(step, (ones(1000), ones(10)), ones(500)).least_bytes == 4 * (10 + 10)


def test_the_planned_peak_holds_the_arguments_and_the_state_survives():
    step, state, batch = mlp_step((64, 128, 10), 128)
    state, batch = jax.device_put(jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), (state, batch)))
    cost = step_cost(step, state, batch)
    arguments = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, batch)))
    activations = 4 * 128 * (128 + 10)
    assert arguments + activations < cost.planned_peak_bytes < arguments + 4 * activations
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert step_cost(jax.jit(step), state, batch) == cost


def test_a_donated_state_is_planned_once():
    state = ones(10_000)
    donated = step_cost(lambda state, x: (state + x, ()), state, np.float32(1))
    kept = step_cost(lambda state, x: state + x, state, np.float32(1))  # no next state to donate to
    assert donated.least_bytes == kept.least_bytes
    assert kept.planned_peak_bytes - donated.planned_peak_bytes == pytest.approx(state.nbytes, abs=100)


@dataclasses.dataclass(frozen=True)
class Device:
    peak: int | None
    process_index = 0

    def memory_stats(self):
        return None if self.peak is None else {"peak_bytes_in_use": self.peak}


def test_peaks_where_the_device_measures_them_and_where_nothing_does():
    def compiled(plan, *peaks):
        shardings = [SimpleNamespace(device_set={Device(peak)}) for peak in peaks]
        return SimpleNamespace(memory_analysis=lambda: plan, input_shardings=shardings, output_shardings=())

    sizes = {"argument_size_in_bytes": 10, "output_size_in_bytes": 7, "alias_size_in_bytes": 5, "temp_size_in_bytes": 3}
    assert _peaks(compiled(SimpleNamespace(**sizes), 8, 9)) == (15, 9)
    assert _peaks(compiled(None, None)) == (None, None)


def test_a_cost_prints_its_counts_and_a_loop_of_unknown_length_is_noted():
    text = str(StepCost({"bfloat16": 2_000}, {"float32": 30}, 50, None, 70, ("why",), launches=6))
    assert [line.split()[-1] for line in text.splitlines()[2:]] == ["2,000", "30", "50", "-", "70", "6", "why"]
    step, state, batch = mlp_step((2, 2, 1), 4)
    cost = step_cost(lambda s, b: (mjn.descend(mjn.Descent(None, step), s, b, steps=7)[0], ()), state, batch)
    assert cost.notes and "note: while" in str(cost)
