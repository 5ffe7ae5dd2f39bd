"""Data that is read as it is needed: the same descent as with data in memory, and what is refused."""

import itertools
import threading
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kits.fits import DATA, OBJECTIVE, PARAMS

import minijaxnet as mjn
from minijaxnet import streams

DESCENT = mjn.gradient_descent(OBJECTIVE, 0.05)
START = DESCENT.init(PARAMS)
BATCHES = [mjn.Batch(DATA.x[k : k + 3], DATA.y[k : k + 3]) for k in range(10)]


def batches(first_step):
    for step in itertools.count(first_step):
        yield BATCHES[step % len(BATCHES)]


def expected(steps, start=START):
    """Step by step, and what each saw."""
    step, losses, state = jax.jit(lambda state, batch: DESCENT.step(state, batch)), [], start
    for k in range(steps):
        state, info = step(state, BATCHES[k % len(BATCHES)])
        losses.append(float(info.loss))
    return state, losses


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.active_count()
    yield
    deadline = time.monotonic() + 60
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


@pytest.mark.parametrize(("stacked", "log_every"), [(1, 1), (2, 5), (7, 1000), (64, 5)])
def test_each_step_sees_its_batch_however_many_are_stacked(stacked, log_every, monkeypatch):
    monkeypatch.setattr(streams, "_STACKED", stacked)
    result = mjn.fit(DESCENT, START, batches, steps=43, log_every=log_every)
    state, losses = expected(43)
    np.testing.assert_allclose(result.trace.loss, losses, rtol=2e-6)
    chex.assert_trees_all_close(result.state.params, state.params, rtol=2e-6, atol=1e-7)
    assert result.steps_taken == 43 and not result.notes


def test_data_that_end_end_the_run_and_that_is_said():
    result = mjn.fit(DESCENT, START, lambda first: itertools.islice(batches(first), 30), steps=100)
    assert result.steps_taken == 30 and result.notes == ["the data ended after 30 of 100 steps"]
    np.testing.assert_allclose(result.trace.loss[:30], expected(30)[1], rtol=2e-6)


def ragged(first_step):
    points = [slice(k, k + 5) for k in range(0, 12, 5)]  # 5, 5 and 2 points
    for step in range(first_step, 9):
        yield mjn.Batch(DATA.x[points[step % 3]], DATA.y[points[step % 3]])


def test_batches_of_fewer_points_are_left_out_or_filled_up():
    result = mjn.fit(DESCENT, START, ragged, steps=50)
    assert result.steps_taken == 6
    assert "3 batches with fewer points were left out (minijaxnet.padded pads them)" in result.notes

    def weighted(params, batch):
        x, y, weight = batch
        errors = jnp.sum((mjn.mlp((3, 4, 1), activation=jnp.tanh).apply(params, x) - y) ** 2, axis=1)
        return jnp.sum(weight * errors) / jnp.sum(weight)

    descent = mjn.gradient_descent(weighted, 0.05)
    result = mjn.fit(descent, descent.init(PARAMS), mjn.padded(ragged), steps=50)
    assert result.steps_taken == 9
    state, step = START, jax.jit(DESCENT.step)
    for batch in ragged(0):
        state, _ = step(state, batch)
    chex.assert_trees_all_close(result.state.params, state.params, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("stop_at", "fill"), [(1, True), (2, False), (3, True), (4, False)])
def test_with_batches_left_out_or_filled_up_it_goes_on_to_the_same_bits_from_anywhere(stop_at, fill, tmp_path):
    """Also where the next batch is one of fewer points, whose place in the iterator is not its step."""

    def weighted(params, batch):
        return OBJECTIVE(params, batch[:2]) + (0 * jnp.sum(batch[2]) if len(batch) > 2 else 0)

    descent = mjn.gradient_descent(weighted, 0.05)
    start, data = descent.init(PARAMS), mjn.padded(ragged) if fill else ragged
    whole = mjn.fit(descent, start, data, steps=6)
    for first, end in itertools.pairwise(sorted({0, stop_at, stop_at + 1, 6})):
        again = mjn.fit(descent, start, data, steps=end, run_dir=tmp_path, resume=first > 0)
        assert again.first_step == first
    chex.assert_trees_all_equal(again.state, whole.state, strict=True)


def test_a_batch_that_is_to_blame_for_a_divergence_is_named():
    def read(first_step):
        for step, batch in enumerate(batches(first_step)):
            yield batch._replace(x=batch.x * np.nan) if step == 7 else batch

    result = mjn.fit(DESCENT, START, read, steps=50)
    assert result.status == mjn.DIVERGED and result.steps_taken == 7
    assert any("the batch of step 7 is the cause: batch.x" in note for note in result.notes)


def broken_at(where):
    def read(first_step):
        for step, batch in enumerate(batches(first_step)):
            if step == where:
                raise OSError("the disk is gone")
            yield batch

    return read


@pytest.mark.parametrize("where", [0, 150])
def test_what_reading_raises_is_raised_and_what_was_learnt_is_kept(where, tmp_path):
    with pytest.raises(OSError, match="the disk is gone"):
        mjn.fit(DESCENT, START, broken_at(where), steps=1_000, run_dir=tmp_path, checkpoint_every=10)
    if where > 100:
        assert list((tmp_path / "checkpoints").iterdir())


def other(batch):
    return lambda first_step: iter([BATCHES[0], batch])


@pytest.mark.parametrize(
    ("data", "options", "error", "words"),
    [
        (lambda: iter([]), {}, TypeError, "data: got a function with other arguments .*expected batches"),
        (lambda first: 3, {}, TypeError, "data: it returns a int; expected an iterator of batches"),
        (lambda first: iter(()), {}, ValueError, "data: got no batch from step 0 on; expected some"),
        (lambda first: iter(["a"]), {}, TypeError, "batch"),
        (batches, {"batch_size": 3}, ValueError, "data: got a function that reads batches, and batch_size, too"),
        (other({"x": 1}), {}, ValueError, "data: batch 1 is not like the first one"),
        (other(mjn.Batch(DATA.x[:5], DATA.y[:5])), {}, ValueError, "data: batch 1 is not like the first one"),
        (lambda first: iter([mjn.Batch(DATA.x * np.nan, DATA.y)]), {}, ValueError, r"batch\.x.*got nan"),
    ],
)
def test_what_is_no_stream_is_said(data, options, error, words):
    with pytest.raises(error, match=words):
        mjn.fit(DESCENT, START, data, steps=9, **options)


def test_a_fit_that_goes_on_where_only_a_batch_of_fewer_points_is_left_says_so(tmp_path):
    def few_whole(first_step):
        whole = mjn.Batch(DATA.x[:5], DATA.y[:5])
        yield from [whole, whole, mjn.Batch(DATA.x[:2], DATA.y[:2])][first_step:]

    assert mjn.fit(DESCENT, START, few_whole, steps=2, run_dir=tmp_path).steps_taken == 2
    with pytest.raises(ValueError, match="data: got no whole batch from step 2 on; expected some"):
        mjn.fit(DESCENT, START, few_whole, steps=3, run_dir=tmp_path, resume=True)


def test_a_generator_is_closed_when_a_run_ends_early():
    closed = []

    def read(first_step):
        try:
            yield from batches(first_step)
        finally:
            closed.append(first_step)

    mjn.fit(DESCENT, START, read, steps=3)
    deadline = time.monotonic() + 60
    while not closed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert closed == [0]
