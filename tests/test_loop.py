"""The loop: what it computes, how often it is traced and compiled, and how it ends."""

import functools
import tracemalloc

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kits.descents import (
    OBJECTIVE,
    PARAMS,
    POINTS,
    Traced,
    as_in,
    compilations,
    descend_from,
    halving,
    squared_distance,
)
from kits.marks import SLOW

import minijaxnet as mjn
from minijaxnet import batches, loop
from minijaxnet.bench.hlo import folded_loop

RELU_OBJECTIVE = mjn.objective(mjn.mlp((2, 2, 1), bias=False), mjn.mean_squared_error)
RELU_PARAMS = ({"weights": np.float32([[2, 1], [1, 2]])}, {"weights": np.float32([[1], [1]])})


@pytest.fixture
def chunk_steps(monkeypatch):
    """Sets how many steps a chunk has at most."""
    return functools.partial(monkeypatch.setattr, batches, "CHUNK_STEPS")


# --- One trace, one compilation ---------------------------------------------------------------------------------------


def test_one_trace_and_one_compilation_serve_any_number_of_steps_any_rate_and_any_flat_norm():
    descend = functools.partial(descend_from, 2.0, batch=1.0)
    descend(1e-3, squared_distance, steps=10)  # compiles the helpers that other objectives share
    objective = Traced(squared_distance)
    with compilations() as names:
        descend(1e-3, objective, steps=10)
        assert len(names) == 1
        for steps, rate, until_flat in (
            (1_000, 1e-3, 0.0),
            (40_000, 1e-4, 0.0),
            (1, 0.3, 0.5),
            (0, 0.3, 1),
            (7, np.float64(0.01), np.float32(0.1)),
            (2, jnp.float32(0.1), jnp.float32(0)),
        ):
            descend(rate, objective, steps=steps, until_flat=until_flat)
        state, _ = descend(1e-3, objective, steps=5)
        mjn.descend(mjn.gradient_descent(objective, 0.2), state, 1.0, steps=5)
    assert len(names) == 1
    assert objective.times == 1


def test_a_jitted_descent_is_traced_once_for_any_rate():
    objective = Traced(squared_distance)
    run = jax.jit(lambda rate: descend_from(2.0, rate, objective, 1.0, steps=8)[1].loss)
    assert len({float(run(rate)[-1]) for rate in (0.01, 0.1, 0.2)}) == 3
    assert objective.times == 1


# --- The same numbers, however they are asked for ---------------------------------------------------------------------


def keyed(params, batch, key):
    return OBJECTIVE(params, batch) * (1 + jax.random.key_data(key)[-1] % 8) / 8


ADAM = optax.adam(0.02)
DESCENTS = {
    "gradient descent": lambda: mjn.gradient_descent(OBJECTIVE, 0.02),
    "adam with a key": lambda: mjn.optax_descent(keyed, ADAM),
}


def start_of(name, params=PARAMS):
    return DESCENTS[name]().init(params, jax.random.key(11) if "key" in name else None)


def key_data(state):
    return state if state.key is None else state._replace(key=jax.random.key_data(state.key))


@pytest.mark.parametrize("name", ["gradient descent", SLOW("adam with a key")])
def test_137_and_then_863_steps_are_1_000_bit_for_bit_and_the_caller_s_state_is_left_alone(name):
    descent, start, points = DESCENTS[name](), start_of(name), jax.tree.map(jnp.asarray, POINTS)
    before = jax.device_get(key_data(start))
    whole, trace = mjn.descend(descent, start, points, steps=1_000)
    between, first = mjn.descend(descent, start, points, steps=137)
    state, second = mjn.descend(descent, between, points, steps=863)
    chex.assert_trees_all_equal(key_data(state), key_data(whole), strict=True)
    for field in ("loss", "gradient_norm"):
        parts = np.concatenate([getattr(first, field), getattr(second, field)])
        np.testing.assert_array_equal(parts, getattr(trace, field), strict=True)
    assert whole.step == 1_000
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((start, between, points)))
    chex.assert_trees_all_equal(key_data(start), before)


@pytest.mark.parametrize("rows", [5, SLOW(0)])
def test_a_step_that_records_much_makes_small_chunks_and_the_same_trace(rows, monkeypatch):
    def recording(w, batch):  # at a rate of 1 / 4 each step halves the weights
        return jnp.sum(w**2), {"path": w, "square": w[None] ** 2}

    descent, start = mjn.gradient_descent(recording, 0.25, has_aux=True), np.ones(8, np.float32)
    row_bytes = 4 * (1 + 1 + 8 + 8)
    monkeypatch.setattr(loop, "CHUNK_BYTES", rows * row_bytes + 1)
    state = descent.init(start)
    assert loop.chunk_capacity(descent.step, state, batches.InMemory(batches.OneBatch(), ())) == max(2, rows)
    _, trace = mjn.descend(descent, state, (), steps=50)
    path = 0.5 ** np.arange(50, dtype=np.float32)[:, None] * start
    chex.assert_trees_all_equal(trace.aux, {"path": path, "square": path[:, None] ** 2}, strict=True)
    np.testing.assert_array_equal(trace.loss, np.sum(path**2, axis=1))


def test_on_a_cpu_the_smallest_networks_with_bias_are_one_native_function():
    if jax.default_backend() != "cpu":
        pytest.skip("XLA does so on the CPU only")
    network = mjn.mlp((2, 2, 1))
    descent = mjn.gradient_descent(mjn.objective(network, mjn.mean_squared_error), 0.01)
    state = jax.eval_shape(descent.init, jax.eval_shape(network.init, jax.random.key(0)))
    flat, status = np.float32(0), np.int32(mjn.OUT_OF_STEPS)
    arguments = (descent.step, batches.OneBatch(), 512, 1, state, POINTS, 9, flat, status)
    assert folded_loop(loop.run_chunk.trace(*arguments).lower().compile())


@pytest.mark.parametrize(("name", "dtype"), [("gradient descent", "float32"), SLOW("adam with a key", "float64")])
def test_the_loop_is_a_python_loop_of_jitted_steps_to_rounding(name, dtype):
    # The same operations in the same order; a compiler may fuse them otherwise inside the loop. A descent contracts, so
    # that what one step rounds differently does not grow.
    with jax.enable_x64(dtype == "float64"):
        descent = DESCENTS[name]()
        state, step = start_of(name, as_in(dtype, PARAMS)), jax.jit(descent.step)
        looped, trace = mjn.descend(descent, state, POINTS, steps=60)
        infos = []
        for _ in range(60):
            state, info = step(state, POINTS)
            infos.append(jax.tree.map(np.asarray, info))
        eps = float(jnp.finfo(dtype).eps)
        assert looped.params[0]["weights"].dtype == dtype
        chex.assert_trees_all_close(looped.params, state.params, rtol=64 * eps, atol=64 * eps)
        assert looped.step == state.step == 60
        for field in ("loss", "gradient_norm"):
            expected = np.array([getattr(info, field) for info in infos])
            np.testing.assert_allclose(getattr(trace, field), expected, rtol=256 * eps)
            assert getattr(trace, field).dtype == expected.dtype


# --- How it ends ------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(exponent=st.integers(0, 12), steps=st.integers(0, 12), between=st.floats(1, 1.9))
def test_a_descent_stops_before_the_first_step_whose_gradient_is_at_most_until_flat(exponent, steps, between):
    # The norms are 2, 1, 1/2, 1/4, ...: at most between * 2^(1 - exponent) from step `exponent` on.
    until_flat = between * 2.0 ** (1 - exponent)
    state, trace = mjn.descend(halving(), halving().init(1.0), 0.0, steps=steps, until_flat=until_flat)
    taken = min(steps, exponent)
    assert trace.steps_taken == state.step == taken
    assert trace.status == (mjn.FLAT if exponent < steps else mjn.OUT_OF_STEPS)
    assert state.params == 2.0**-taken
    expected = np.where(np.arange(steps) < taken, 0.5 ** np.arange(steps), np.nan)
    np.testing.assert_array_equal(trace.aux, expected)
    np.testing.assert_array_equal(trace.gradient_norm, 2 * expected)
    np.testing.assert_array_equal(trace.loss, expected**2)


def test_a_descent_may_end_anywhere_in_a_chunk(chunk_steps):
    chunk_steps(4)
    for exponent in range(14):
        state, trace = mjn.descend(halving(), halving().init(1.0), 0.0, steps=13, until_flat=2.0 ** (1 - exponent))
        assert trace.steps_taken == state.step == min(exponent, 13)
        assert trace.status == (mjn.FLAT if exponent < 13 else mjn.OUT_OF_STEPS)
        assert np.isfinite(trace.loss).sum() == min(exponent, 13)
        assert state.params == 2.0 ** -min(exponent, 13)


@pytest.mark.parametrize("chunk", [SLOW(1), 4, SLOW(2**15)])
def test_a_descent_may_diverge_anywhere_in_a_chunk(chunk, chunk_steps):
    chunk_steps(chunk)

    def cliff(weight, batch):
        return weight + jnp.where(weight < -2.5, jnp.nan, 0)

    state, trace = descend_from(2.0, 1.0, cliff, (), steps=9)  # 2, 1, 0, -1, -2, then over the cliff at -3
    assert (trace.steps_taken, state.step, state.params, trace.status) == (5, 5, -3, mjn.DIVERGED)
    np.testing.assert_array_equal(trace.loss, [2, 1, 0, -1, -2, *[np.nan] * 4])


DTYPES = ("bool", "uint8", "int32", "bfloat16", "float16", "float32", "complex64")


@pytest.mark.parametrize(
    "run", [mjn.descend, SLOW(jax.jit(mjn.descend, static_argnames=("descent", "steps")))], ids=["host", "jit"]
)
def test_past_the_last_step_rows_are_nan_and_counts_0_and_aux_of_any_dtype_is_recorded_in_it(run):
    def with_aux(weight, batch):
        return weight**2, {"pair": (weight, jnp.ones(3))} | {t: jnp.asarray(1, t) for t in DTYPES}

    descent = mjn.gradient_descent(with_aux, 0.5, has_aux=True)  # one step to the minimum
    _, trace = run(descent, descent.init(3.0), (), steps=3)
    assert (trace.steps_taken, trace.status) == (1, mjn.FLAT)
    one, three = trace.aux.pop("pair")
    for dtype, leaf in trace.aux.items():
        assert leaf.dtype == dtype
        rest = np.nan if jnp.issubdtype(dtype, jnp.inexact) else 0
        np.testing.assert_array_equal(np.asarray(leaf).astype("complex64"), np.array([1, rest, rest], "complex64"))
    np.testing.assert_array_equal(one, [3, np.nan, np.nan])
    np.testing.assert_array_equal(three, np.repeat([[1], [np.nan], [np.nan]], 3, axis=1))
    np.testing.assert_array_equal(trace.loss, [9, np.nan, np.nan])
    np.testing.assert_array_equal(trace.gradient_norm, [6, np.nan, np.nan])


@pytest.mark.parametrize("rate", [1e3, 1e30])
@pytest.mark.parametrize(
    "objective_and_params", [(OBJECTIVE, PARAMS), (RELU_OBJECTIVE, RELU_PARAMS)], ids=["tanh", "relu"]
)
def test_a_descent_that_diverges_keeps_finite_params_and_says_so(rate, objective_and_params):
    objective, params = objective_and_params
    state, trace = descend_from(params, rate, objective, steps=100)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    taken = int(trace.steps_taken)
    assert trace.status in (mjn.DIVERGED, mjn.FLAT)  # relu may fall asleep on its way, and then all is flat
    assert (trace.status == mjn.DIVERGED) or objective is RELU_OBJECTIVE
    assert np.isfinite(trace.loss[:taken]).all()
    assert np.isnan(trace.loss[taken:]).all()
    assert state.step == taken < 100


def test_memory_goes_by_the_steps_that_are_taken():
    descent = mjn.gradient_descent(lambda weight, batch: (weight - batch) ** 2, 0.5)
    tracemalloc.start()
    _, trace = mjn.descend(descent, descent.init(3.0), 1.0, steps=10**13)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert trace.loss.tolist() == [4.0] and trace.steps_taken == 1 and peak < 2**25
    with pytest.raises(ValueError, match=f"steps: got {10**13}; expected fewer: within jit"):
        jax.jit(lambda: mjn.descend(descent, descent.init(3.0), 1.0, steps=10**13))()
