"""Epochs of minibatches: what each step sees, how often they are compiled, and how they go on."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from kits.descents import POINTS, Traced, compilations
from kits.marks import SLOW

import minijaxnet as mjn
from minijaxnet import batches

KEY = jax.random.wrap_key_data(np.array([0, 11], np.uint32))
ADAM = optax.adam(0.02)
EPS = float(np.finfo(np.float32).eps)
POINTS_SEEN, BATCH_SIZE = 13, 4  # what is compiled, unless there is a reason for another size
shuffled = jax.jit(batches.shuffled, static_argnums=1)


def seen(weight, batch):
    """The points that a step saw are its aux."""
    return jnp.mean(jnp.square(weight - batch["x"])), batch["id"]


def descent():
    return mjn.gradient_descent(seen, 0.1, has_aux=True)


def data_of(points):
    return {"id": np.arange(points, dtype=np.int32), "x": np.sin(np.arange(points, dtype=np.float32))}


def run(epochs, key=KEY, *, points=POINTS_SEEN, batch_size=BATCH_SIZE, state=None, **changed):
    state = descent().init(0.0) if state is None else state
    data = data_of(points) | changed
    return mjn.descend_epochs(descent(), state, data, key, batch_size=batch_size, epochs=epochs)


def ids_by_epoch(epochs, key=KEY, *, points=POINTS_SEEN, batch_size=BATCH_SIZE, **options):
    state, trace = run(epochs, key, points=points, batch_size=batch_size, **options)
    return state, trace.aux.reshape(epochs, points // batch_size, batch_size)


@pytest.fixture
def chunk_steps(monkeypatch):
    """Sets how many steps a chunk has at most."""
    return functools.partial(monkeypatch.setattr, batches, "CHUNK_STEPS")


def test_one_trace_and_one_compilation_serve_any_number_of_epochs(chunk_steps):
    objective = Traced(seen)
    run(1)  # compiles the helpers that other objectives share
    chunk_steps(64)
    with compilations() as names:
        for epochs, rate in ((1, 0.1), (40, 1e-4), (3, 0.2)):  # 120 steps are more than a chunk
            traced = mjn.gradient_descent(objective, rate, has_aux=True)
            mjn.descend_epochs(traced, traced.init(0.0), data_of(13), KEY, batch_size=BATCH_SIZE, epochs=epochs)
    assert (len(names), objective.times) == (1, 1)


@pytest.mark.parametrize(("points", "batch_size", "chunk"), [(13, 4, 2**15), SLOW(5, 5, 4), SLOW(1, 1, 2**15)])
def test_an_epoch_sees_each_point_at_most_once(points, batch_size, chunk, chunk_steps):
    chunk_steps(chunk)
    state, ids = ids_by_epoch(6, points=points, batch_size=batch_size)
    per_epoch = points // batch_size
    assert state.step == 6 * per_epoch
    for epoch in ids:
        assert len(np.unique(epoch)) == per_epoch * batch_size
        assert set(epoch.ravel()) <= set(range(points))
    if points > 4:
        assert len({tuple(epoch.ravel()) for epoch in ids}) > 1, "orders differ by epoch"
    if points % batch_size:
        assert len({frozenset(epoch.ravel()) for epoch in ids}) > 1, "and so do the points that sit an epoch out"


def test_the_order_of_an_epoch_is_drawn_from_the_key_and_the_epoch():
    _, ids = ids_by_epoch(3)
    for epoch, seen_ids in enumerate(ids):
        np.testing.assert_array_equal(seen_ids.ravel(), shuffled(jax.random.fold_in(KEY, epoch), 13)[:12])
    _, again = ids_by_epoch(3)
    np.testing.assert_array_equal(ids, again)
    _, other = ids_by_epoch(3, jax.random.key(12))
    assert (ids != other).any()


def test_epochs_that_start_in_the_middle_of_one_go_on_where_it_stands():
    _, whole = ids_by_epoch(3)
    state, _ = ids_by_epoch(1)
    _, rest = ids_by_epoch(1, state=state._replace(step=jnp.int32(4)))
    np.testing.assert_array_equal(rest.ravel(), np.concatenate([whole[1, 1:], whole[2, :1]]).ravel())


@pytest.mark.parametrize(
    ("make", "chunk"), [(descent, 2**15), SLOW(lambda: mjn.optax_descent(seen, ADAM, has_aux=True), 4)]
)
def test_three_and_three_epochs_are_six_bit_for_bit(make, chunk, chunk_steps):
    epochs_of = functools.partial(mjn.descend_epochs, make(), data=data_of(13), key=KEY, batch_size=BATCH_SIZE)
    whole, trace = epochs_of(state=make().init(0.0), epochs=6)
    chunk_steps(chunk)
    state, first = epochs_of(state=make().init(0.0), epochs=3)
    state, second = epochs_of(state=state, epochs=3)
    chex.assert_trees_all_equal(state, whole, strict=True)
    for part in ("loss", "aux"):
        parts = np.concatenate([getattr(first, part), getattr(second, part)])
        np.testing.assert_array_equal(parts, getattr(trace, part))
    assert trace.loss.shape == (18,)


@pytest.mark.slow
def test_epochs_work_under_jit_and_vmap():
    keys = jax.random.wrap_key_data(np.array([[0, 11], [0, 12]], np.uint32))
    replicas = jax.jit(jax.vmap(lambda key: run(4, key)[1]))(keys)
    for i in range(2):
        alone = run(4, jax.random.key(11 + i))[1]
        np.testing.assert_array_equal(replicas.aux[i], alone.aux)
        np.testing.assert_allclose(replicas.loss[i], alone.loss, rtol=64 * EPS)
    assert (replicas.loss[0] != replicas.loss[1]).any()


def test_epochs_do_not_stop_where_one_minibatch_is_flat_but_where_one_diverges():
    x = np.zeros(POINTS_SEEN, np.float32)
    x[5] = 1  # at a weight of 0, a batch of zeros has no gradient
    state, trace = run(3, x=x)
    bad = int(np.argmax((trace.aux == 5).any(axis=1)))
    assert (state.step, trace.steps_taken, trace.status) == (9, 9, mjn.OUT_OF_STEPS)
    assert bad > 0
    np.testing.assert_array_equal(trace.gradient_norm > 0, np.arange(9) >= bad)
    x[5] = np.nan
    state, trace = run(3, x=x)
    assert (state.step, trace.steps_taken, trace.status, state.params) == (bad, bad, mjn.DIVERGED, 0)


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"batch_size": 0}, ValueError, r"batch_size: got 0; expected at least 1"),
        ({"batch_size": 5}, ValueError, r"batch_size: got 5; expected at most 4, the points there are"),
        ({"batch_size": 2.0}, TypeError, r"batch_size: got 2.0; expected an int"),
        ({"batch_size": True}, TypeError, r"batch_size: got True; expected an int"),
        ({"epochs": -1}, ValueError, r"epochs: got -1; expected"),
        ({"epochs": 1.0}, TypeError, r"epochs: got 1.0; expected"),
    ],
)
def test_a_number_of_points_or_epochs_that_is_none_is_refused(changed, kind, message):
    with pytest.raises(kind, match=message):
        mjn.descend_epochs(descent(), descent().init(1.0), POINTS, KEY, **{"batch_size": 2, "epochs": 1} | changed)


@pytest.mark.parametrize("data", [(np.ones((4, 2)), np.ones(3)), (np.ones(4), 1.0), (), np.ones((0, 2))])
def test_data_without_one_batch_axis_is_refused(data):
    with pytest.raises(ValueError, match=r"data: got batch axes of length \[.*\]; expected one length, above 0"):
        mjn.descend_epochs(descent(), descent().init(1.0), data, KEY, batch_size=1, epochs=1)
