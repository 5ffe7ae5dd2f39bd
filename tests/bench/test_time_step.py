"""How long a step takes: each known error of timing JAX is provoked, and does not happen."""

import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import minijaxnet as mjn
from minijaxnet import time_step
from minijaxnet.bench import blocks
from minijaxnet.bench.blocks import checked, compilations, fused, start_state, weak_leaves
from minijaxnet.bench.hlo import computations

SHORT = 1e-9  # seconds: a single round


def bowl(weights, batch):
    return jnp.sum((weights - batch) ** 2)


WEIGHTS = np.arange(9, dtype=np.float32)
PLAIN = mjn.gradient_descent(bowl, 0.1)


def own(step, init=None):
    """A descent of one's own around a step of the params alone."""

    def whole(state, batch):
        params, report = step(state.params, batch)
        return state._replace(params=params, step=state.step + 1), mjn.StepInfo(report, jnp.float32(0))

    def start(params, key=None):
        return mjn.DescentState(params if init is None else init(params), (), jnp.int32(0), key)

    return mjn.Descent(start, whole)


def loop_of(descent, params=WEIGHTS, batch=0.0):
    """The compiled loop that is timed, and what it is called with."""
    batch = jax.device_put(batch)
    start = start_state(descent, params, None)
    traced = checked(jax.jit(descent.step).trace(start, batch), start, "descent")
    return jax.jit(fused(traced)).lower(start, batch, 1), start, batch


def test_a_timing_is_complete_and_can_be_printed_and_the_users_arrays_stay_as_they_were():
    params, batch = jnp.arange(9.0), jnp.ones(9)
    timing = time_step(PLAIN, params, batch, seconds=SHORT)
    for part in (timing.trace_s, timing.lower_s, timing.compile_s, timing.first_call_s, timing.fused_compile_s):
        assert part > 0
    for steady in (timing.latency_s, timing.pipelined_s, timing.fused_s):
        assert np.isfinite(steady.median)
    assert timing.compilations == 0 and timing.sound and timing.weak == timing.kernels == ()
    assert timing.rounds == len(timing.samples_s["fused"]) == 1
    assert np.isnan(timing.fused_s.low) and "too few rounds" in str(timing)
    assert all(len(line) <= 100 for line in str(timing).splitlines())
    np.testing.assert_array_equal(params, np.arange(9.0))
    assert not batch.is_deleted()


# --- Errors of timing ------------------------------------------------------------------------------------------------


def test_asynchronous_dispatch_the_clock_stops_after_a_wait(monkeypatch):
    events, wait, clock = [], jax.block_until_ready, time.perf_counter
    monkeypatch.setattr(jax, "block_until_ready", lambda tree: events.append("wait") or wait(tree))
    monkeypatch.setattr(blocks.time, "perf_counter", lambda: events.append("clock") or clock())
    assert blocks.seconds_of(lambda: jnp.ones(3)) > 0
    assert events == ["clock", "wait", "clock"]


def test_a_compilation_meanwhile_is_counted_by_its_name():
    with compilations() as names:
        jax.jit(lambda x: x + 17)(jnp.ones(3)).block_until_ready()
    jax.jit(lambda x: x + 18)(jnp.ones(3)).block_until_ready()
    assert len([name for name in names if "lambda" in name]) == 1


def test_weak_types_do_not_make_the_steady_step_compile_and_are_named():
    descent = own(lambda weight, batch: (weight - 0.1 * (weight - batch), weight), init=lambda params: 2.0)
    assert weak_leaves(descent.init(None)) == [".params"]
    assert weak_leaves(start_state(descent, None, None)) == []
    timing = time_step(descent, None, np.float32(1), seconds=0.05)
    assert timing.sound and timing.rounds == len(timing.samples_s["fused"]) >= 1
    assert timing.weak == (".params",)
    assert "compiles twice: .params" in str(timing)


def test_constant_folding_the_batch_is_an_argument_of_the_program():
    lowered, start, batch = loop_of(own(lambda weights, batch: (weights @ batch, weights[0])), WEIGHTS, np.eye(9))
    (signature,) = re.findall(r"func.func public @main\((.*?)\) ->", lowered.as_text(), re.DOTALL)
    assert signature.count("tensor<9x9xf32>") == 1
    assert signature.count("%arg") == len(jax.tree.leaves((start, batch))) + 1


def test_dead_code_what_a_step_only_reports_is_computed():
    def costly(weights, batch):
        return weights - 0.1 * weights, jnp.sum(jnp.cos(weights * batch))

    lowered, *_ = loop_of(own(costly))
    assert "cosine" in lowered.compile().as_text()


def done_once(program):
    """The operations of a compiled program before its loop and after it."""
    entry, found = computations(program.as_text())
    reached = [entry]
    for name in reached:
        reached += [inner for one in found[name] if one.operation != "while" for inner in one.called]
    return {one.operation for name in reached for one in found[name]}


def frozen_weights(params, batch):
    loss = jnp.sum(jnp.cos(params["frozen"]) * params["w"] - batch)
    return params | {"w": params["w"] * 0.9}, loss


def step_of(features):
    def step(w, x):
        return w - 0.1 * jax.grad(lambda w: jnp.mean((features(x) @ w - 1) ** 2))(w), jnp.sum(w)

    return step


@pytest.mark.parametrize(
    ("step", "params"),
    [
        (step_of(lambda x: jnp.cos(x @ jnp.ones((4, 4)))), np.ones(4, np.float32)),
        (step_of(lambda x: jnp.cos(jnp.sort(x, axis=0))), np.ones(4, np.float32)),
        (frozen_weights, {"frozen": np.ones(4, np.float32), "w": np.ones(4, np.float32)}),
    ],
    ids=["batch", "sorted batch", "weights that stay"],
)
def test_loop_invariants_are_computed_in_each_step(step, params):
    lowered, *_ = loop_of(own(step), params, np.ones((8, 4), np.float32))
    program = lowered.compile()
    assert "cosine" in program.as_text() and "cosine" not in done_once(program)


def test_the_state_goes_from_step_to_step_so_that_a_loop_of_n_is_n_steps():
    lowered, start, batch = loop_of(PLAIN)
    state, info = lowered.compile()(start, batch, 5)
    np.testing.assert_allclose(state.params, 0.8**5 * WEIGHTS, rtol=1e-5)
    np.testing.assert_allclose(info.loss, np.sum((0.8**4 * WEIGHTS) ** 2), rtol=1e-5)


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (lambda w, b: (w[:1], b), r"returns a state of another kind than it took: .*got float32\[1\]; .*float32\[9\]"),
        (lambda w, b: ({"w": w}, b), "returns a state of another kind than it took"),
        (lambda w, b: (jax.debug.print("{}", b) or w, b), "has side effects"),
    ],
    ids=["shape", "structure", "prints"],
)
def test_a_step_that_cannot_be_timed_is_refused(step, words):
    with pytest.raises(ValueError, match=f"descent: its step {words}"):
        time_step(own(step), WEIGHTS, np.float32(0), seconds=SHORT)
    with pytest.raises(ValueError, match=rf"arms\['b'\]: its step {words}"):
        mjn.compare_steps({"a": PLAIN, "b": own(step)}, WEIGHTS, np.float32(0), baseline="a")


def test_a_step_that_returns_no_pair_is_refused():
    descent = mjn.Descent(PLAIN.init, lambda state, batch: state.params)
    with pytest.raises(TypeError, match=r"descent: its step returns \w+; expected a pair \(state, info\)"):
        time_step(descent, WEIGHTS, 0.0, seconds=SHORT)
