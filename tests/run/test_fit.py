"""fit: the same numbers as descend, however its chunks are cut; signals, dtypes and the caller's state."""

import os
import signal
import threading

import chex
import jax
import jax.numpy as jnp
import kits.fits
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kits.fits import DATA, OBJECTIVE, PARAMS, adam_in_minibatches, bowl, full_batch, in_a_bowl, with_draws

import minijaxnet as mjn
from minijaxnet.loop import descend_minibatches
from minijaxnet.run import fit


def assert_same_descent(result, expected):
    """Bit for bit the state and the trace of ``descend``, and rows that are of this trace."""
    state, trace = expected
    chex.assert_trees_all_equal(result.state._replace(key=None), state._replace(key=None), strict=True)
    assert (result.state.key is None) == (state.key is None)
    chex.assert_trees_all_equal(result.trace, jax.tree.map(np.asarray, trace), strict=True)
    for row in result.rows[:-1]:
        seen = result.trace.loss[row["step"]], result.trace.gradient_norm[row["step"]]
        assert (row["loss"], row["gradient_norm"]) == tuple(map(float, seen))


def descended(kind, steps):
    descent, start, options = kind
    rest = {name: value for name, value in options.items() if name != "measure"}
    if rest:
        return descend_minibatches(descent, start, DATA, rest.pop("key"), steps=steps, **rest)
    return mjn.descend(descent, start, DATA, steps=steps)


def fitted(kind, steps, **options):
    return kits.fits.fitted(kind, steps=steps, **options)


# --- The same descent -------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(steps=st.integers(0, 60), log_every=st.integers(1, 70))
def test_chunks_cut_anywhere_are_the_same_full_batch_descent(steps, log_every):
    assert_same_descent(fitted(full_batch(), steps, log_every=log_every), descended(full_batch(), steps))


def with_more_than_a_loss():
    descent = mjn.gradient_descent(lambda p, b: (bowl(p, b), {"first": p[0]}), 0.1, has_aux=True)
    return descent, descent.init(np.zeros(3, np.float32)), {}


def a_step_of_ones_own():
    def step(state, batch):
        loss = jnp.mean((state.params - batch.x) ** 2)
        return state._replace(params=state.params - 0.5, step=state.step + 1), mjn.StepInfo(loss, jnp.float32(1))

    descent = mjn.Descent(lambda params, key=None: mjn.DescentState(params, (), jnp.int32(0), key), step)
    return descent, descent.init(jnp.float32(10)), {}


@pytest.mark.parametrize("kind", [adam_in_minibatches, with_draws, with_more_than_a_loss, a_step_of_ones_own])
def test_chunks_cut_anywhere_are_the_same_descent_of_any_kind(kind):
    found = kind()
    expected = descended(found, 22)
    for log_every in (1, 7, 20):
        result = fitted(found, 22, log_every=log_every)
        assert_same_descent(result, expected)
    if kind is with_draws:
        assert jnp.array_equal(jax.random.key_data(result.state.key), jax.random.key_data(found[1].key))
        # Another draw each step: the plain objective's loss times a factor that changes.
        plain = fitted(full_batch(), 1).trace.loss[0]
        assert abs(result.trace.loss[0] / plain - result.trace.loss[1] / plain) > 0.01
    if kind is with_more_than_a_loss:
        assert result.trace.aux["first"].shape == (22,)
    if kind is a_step_of_ones_own:
        assert float(result.state.params) == -1


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float64", marks=pytest.mark.slow)])
def test_the_dtype_of_the_parameters_stays(dtype):
    with jax.enable_x64(dtype == "float64"):
        params, data = jax.tree.map(lambda leaf: leaf.astype(dtype), (PARAMS, DATA))
        descent = full_batch()[0]
        start = descent.init(params)
        result = fit(descent, start, data, steps=22, log_every=7)
        assert {leaf.dtype for leaf in jax.tree.leaves(result.state.params)} == {jnp.dtype(dtype)}
        assert_same_descent(result, mjn.descend(descent, start, data, steps=22))
        assert result.rows[-1]["loss"] < result.rows[0]["loss"]


def test_any_rate_and_any_number_of_steps_share_one_compilation():
    traces = []

    def counted(params, batch):
        traces.append(1)
        return OBJECTIVE(params, batch)

    def run(rate, steps, log_every):
        descent = mjn.gradient_descent(counted, rate)
        fit(descent, descent.init(PARAMS), DATA, steps=steps, log_every=log_every)

    run(0.1, 5, 2)
    first = len(traces)
    assert first > 0
    run(0.2, 50, 7)
    run(0.01, 0, 1)
    assert len(traces) == first


# --- What the caller keeps, and what the caller is told ---------------------------------------------------------------


def test_the_callers_state_and_data_survive():
    descent, start, _ = full_batch()
    data = jax.tree.map(jax.device_put, DATA)
    first = fit(descent, start, data, steps=10, log_every=3)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((start, data)))
    chex.assert_trees_all_equal(start.params, PARAMS)
    chex.assert_trees_all_equal(first.state, fit(descent, start, data, steps=10, log_every=3).state)
    # A result is a state like any other: it may be used twice, too.
    fit(descent, first.state, data, steps=3)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(first.state))
    # And NumPy's arrays are as good, in any pair.
    chex.assert_trees_all_equal(first.state, fit(descent, start, tuple(DATA), steps=10).state)


def test_no_steps_are_a_result():
    result = fitted(full_batch(), 0)
    chex.assert_trees_all_equal(result.state, full_batch()[1])
    assert (int(result.trace.steps_taken), result.status) == (0, mjn.OUT_OF_STEPS)
    assert result.trace.loss.shape == (0,)
    [row] = result.rows
    assert (row["step"], row["loss"]) == (0, float(fitted(full_batch(), 1).trace.loss[0]))
    assert result.compile_s > 0
    assert result.run_s == 0


# --- How it ends ------------------------------------------------------------------------------------------------------


def test_it_stops_where_it_is_flat_and_says_so_once():
    descent, start, _ = in_a_bowl(0.05)
    expected = mjn.descend(descent, start, DATA, steps=500, until_flat=0.1)
    for log_every in (1, 7, 20):
        result = fit(descent, start, DATA, steps=500, until_flat=0.1, log_every=log_every)
        assert_same_descent(result, expected)
        taken = int(result.trace.steps_taken)
        assert result.status == mjn.FLAT
        assert 0 < taken < 500
        logged = [row["step"] for row in result.rows]
        assert logged == sorted(set(logged))
        assert logged[-1] == taken
        assert result.rows[-1]["gradient_norm"] <= 0.1 < result.trace.gradient_norm[taken - 1]
        assert np.isnan(result.trace.loss[taken:]).all()


def test_a_sampled_gradient_of_zero_is_no_end_but_a_small_one_asked_for_is():
    nothing_to_learn = jax.tree.map(np.zeros_like, DATA)
    descent, start, _ = full_batch()
    assert fit(descent, start, nothing_to_learn, steps=9).status == mjn.FLAT
    descent, start, options = adam_in_minibatches()
    sampled = fit(descent, start, nothing_to_learn, steps=9, **options)
    assert (sampled.status, int(sampled.trace.steps_taken)) == (mjn.OUT_OF_STEPS, 9)
    small = fit(descent, start, nothing_to_learn, steps=9, until_flat=1e-6, **options)
    assert (small.status, int(small.trace.steps_taken)) == (mjn.FLAT, 0)


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_handler():
    """A handler of the caller's own, so that a restored one can be told from Python's."""

    def handler(signum, frame):
        raise KeyboardInterrupt("the caller's handler")

    before = signal.signal(signal.SIGINT, handler)
    yield handler
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_it_with_what_was_learnt_so_far(own_handler, step_by_step, tmp_path):
    def interrupt(progress):
        if progress.step >= 25:
            os.kill(os.getpid(), signal.SIGINT)

    result = fitted(full_batch(), 1_000, log_every=10, on_progress=interrupt, run_dir=tmp_path)
    assert result.interrupted and (result.status, result.steps_taken) == (mjn.OUT_OF_STEPS, 25)
    chex.assert_trees_all_equal(result.state, descended(full_batch(), 25)[0])
    np.testing.assert_array_equal(np.isfinite(result.trace.loss), np.arange(1_000) < 25)
    assert [row["step"] for row in result.rows] == [0, 10, 20, 25]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    assert signal.getsignal(signal.SIGINT) is own_handler


def test_a_second_ctrl_c_raises_as_ever(own_handler):
    def twice(progress):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="the caller's handler"):
        fitted(full_batch(), 1_000, on_progress=twice)
    assert signal.getsignal(signal.SIGINT) is own_handler


def test_the_handler_is_restored_however_it_ends(own_handler):
    fitted(full_batch(), 5)
    assert signal.getsignal(signal.SIGINT) is own_handler

    def on_progress(progress):
        assert signal.getsignal(signal.SIGINT) is not own_handler
        raise ArithmeticError("no progress")

    with pytest.raises(ArithmeticError):
        fitted(full_batch(), 5, on_progress=on_progress)
    assert signal.getsignal(signal.SIGINT) is own_handler
    assert not fitted(full_batch(), 5).interrupted


def test_another_thread_can_fit_and_touches_no_handler(own_handler):
    results, handlers = [], []

    def look(progress):
        handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=lambda: results.append(fitted(full_batch(), 20, on_progress=look)))
    thread.start()
    thread.join(120)
    [result] = results
    assert not result.interrupted
    assert set(handlers) == {own_handler}
    assert_same_descent(result, descended(full_batch(), 20))


@pytest.mark.parametrize(
    ("dtype", "rate", "noted"), [("bfloat16", 1e-4, True), ("bfloat16", 0.5, False), ("float32", 1e-4, False)]
)
def test_updates_that_are_all_lost_to_rounding_are_noted(dtype, rate, noted):
    descent = mjn.gradient_descent(lambda weights, batch: jnp.mean((weights * batch[0] - batch[1]) ** 2), rate)
    ones = np.ones(4, dtype)
    result = mjn.fit(descent, descent.init(jnp.asarray(ones)), (ones, 2 * ones), steps=20)
    assert ["0 of 4 weights have changed" in note and "bfloat16" in note for note in result.notes] == [True] * noted
