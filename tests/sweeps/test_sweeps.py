"""Sweeps: each replica is the run by itself, the grid is in order, and blocks change nothing."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kits.descents import squared_distance

import minijaxnet as mjn
from minijaxnet.sweeps import grid as sweep_grid
from minijaxnet.sweeps import program as sweep_program

RATES = np.array([1e-3, 1e-2, 1e6])


def distance(params, target):
    return squared_distance(params["w"], target)


def run(key, learning_rate):
    start = {"w": (1.0 + jax.random.key_data(key)[-1]) * np.float32([1, -2])}
    descent = mjn.gradient_descent(distance, learning_rate)
    return mjn.descend(descent, descent.init(start), 0.5, steps=20, until_flat=1e-3)


def bowl(start, learning_rate):
    descent = mjn.gradient_descent(squared_distance, learning_rate)
    return mjn.descend(descent, descent.init(start), 1.0, steps=30)[1]


def keys():
    return jax.random.wrap_key_data(np.stack([np.zeros(5, np.uint32), np.arange(5, dtype=np.uint32)], axis=1))


@pytest.fixture(scope="module")
def grid():
    return mjn.sweep(run, {"key": keys(), "learning_rate": RATES})


def test_each_replica_is_the_run_by_itself_to_rounding_and_a_diverged_one_leaves_the_others_alone(grid):
    state, trace = grid.output
    assert trace.loss.shape == (5, 3, 20) and state.params["w"].shape == (5, 3, 2)
    for i, j in itertools.product(range(5), range(3)):
        alone = run(keys()[i], RATES[j])
        mine = jax.tree.map(lambda leaf, i=i, j=j: leaf[i, j], grid.output)
        assert mine[1].status == alone[1].status and mine[1].steps_taken == alone[1].steps_taken
        chex.assert_trees_all_close(mine, jax.tree.map(np.asarray, alone), rtol=2e-5, atol=1e-6)
    assert set(trace.status[:, 2]) == {mjn.DIVERGED} and set(trace.status[:, 0]) == {mjn.OUT_OF_STEPS}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_blocks_change_nothing_but_rounding(grid):
    done = []
    found = mjn.sweep(
        run, {"key": keys(), "learning_rate": RATES}, block=4, on_progress=lambda *counts: done.append(counts)
    )
    chex.assert_trees_all_close(found.output, grid.output, rtol=2e-5, atol=1e-6)
    assert found.block == 4 and found.finished.all() and not found.interrupted
    assert len(done) == -(-15 // found.block) and done[-1] == (15, 15) and done == sorted(done)


def test_axes_come_in_the_order_given_or_go_together():
    def place(a, b, c):
        return {"sum": 100 * a + 10 * b + c, "parts": jnp.stack([a, b, c])}

    a, b, c = np.arange(2), np.arange(3), np.arange(4)
    found = mjn.sweep(place, {"a": a, "b": b, "c": c})
    np.testing.assert_array_equal(found.output["sum"], 100 * a[:, None, None] + 10 * b[:, None] + c)
    assert found.output["parts"].shape == (2, 3, 4, 3)
    assert mjn.sweep(place, {"c": c, "b": b, "a": a}).output["sum"].shape == (4, 3, 2)
    pairs = mjn.sweep(place, {"a": c, "b": c, "c": c}, zipped=True, block=3)
    np.testing.assert_array_equal(pairs.output["sum"], 111 * c)


def test_the_best_is_the_lowest_that_did_not_diverge(grid):
    best = grid.best()
    last = grid.output[1].loss[..., -1]
    assert grid.losses[best.place] == best.loss == np.nanmin(last)
    assert best.values["learning_rate"] == RATES[best.place[1]]
    assert np.isinf(grid.losses[:, 2]).all()
    zipped = mjn.sweep(bowl, {"start": np.ones(3) * 9, "learning_rate": np.array([0.1, 0.4, 9.0])}, zipped=True)
    assert zipped.best().place == (1,) and zipped.best().values["learning_rate"] == 0.4
    with pytest.raises(ValueError, match="best: got 3 replicas, none with a finite loss"):
        mjn.sweep(bowl, {"start": np.ones(3) * 9, "learning_rate": np.array([1e6, 1e7, 1e8])}, zipped=True).best()


def test_a_run_may_say_where_it_ended():
    def run(start, learning_rate):
        return {"trace": bowl(start, learning_rate), "loss": -start}

    found = mjn.sweep(run, {"start": np.array([2.0, 3.0, 4.0]), "learning_rate": np.array([0.1, 1e6])})
    np.testing.assert_array_equal(found.losses, [[-2, np.inf], [-3, np.inf], [-4, np.inf]])
    assert found.best().place == (2, 0)


def test_the_table_has_a_row_a_value_with_quantiles_over_all_others(grid):
    rows = [line.split("  ") for line in str(grid).splitlines()]
    assert rows[0][0] == "learning_rate" and len(rows) == 5
    assert [row[0] for row in rows[2:]] == ["0.001", "0.01", "1e+06"]
    assert "100.0 %" in str(grid).splitlines()[-1] and "inf" in str(grid).splitlines()[-1]
    assert all(line.endswith("-") for line in str(grid).splitlines()[2:]), "none of them became flat"
    assert [line.split()[0] for line in grid.table("key").splitlines()[2:]] == [f"#{i}" for i in range(5)]
    starts = {"start": np.array([1.0, 2.0, 3.0]), "learning_rate": np.array([0.5])}
    flat = mjn.sweep(bowl, starts).table("start").splitlines()
    assert [line.split()[-1] for line in flat[2:]] == ["-", "1", "1"], "one starts where it is flat, and has no loss"
    with pytest.raises(ValueError, match="axis: got 'seed'; expected one of key, learning_rate"):
        grid.table("seed")
    with pytest.raises(TypeError, match="output: holds no Trace"):
        mjn.sweep(lambda a: a, {"a": np.ones(2)}).table()


def hundredfold(a):
    return a + np.zeros(100, np.float32)  # so that a block of 64 needs 25,856 bytes


@pytest.mark.parametrize(
    ("count", "most", "block"), [(10, 100, 5), (400, 100, 100), (402, 100, 67), (401, np.inf, 201)]
)
def test_no_block_is_larger_than_the_caches_bear_and_all_are_alike(monkeypatch, count, most, block):
    monkeypatch.setattr(sweep_program, "_workers", lambda _: (2, most))
    found = mjn.sweep(lambda a: 2 * a, {"a": np.arange(float(count))})
    assert found.block == block
    np.testing.assert_array_equal(found.output, 2 * np.arange(count))


def test_where_memory_is_short_blocks_are_smaller_and_one_that_is_too_large_is_refused(monkeypatch):
    axes = {"a": np.arange(64.0)}
    monkeypatch.setattr(sweep_program, "_workers", lambda _: (2, np.inf))
    assert mjn.sweep(hundredfold, axes).block == 32
    monkeypatch.setattr(sweep_program, "_free_bytes", lambda _: 30_000)
    found = mjn.sweep(hundredfold, axes)
    assert 1 < found.block < 32
    np.testing.assert_array_equal(found.output, np.tile(np.arange(64.0)[:, None], 100))
    monkeypatch.setattr(sweep_program, "_free_bytes", lambda _: 100)
    with pytest.raises(ValueError, match=r"block: replicas one by one need [\d,]+ bytes; expected at most 100, "):
        mjn.sweep(hundredfold, axes)
    with pytest.raises(ValueError, match=r"block: blocks of 64 replicas need"):
        mjn.sweep(hundredfold, axes, block=64)


@pytest.mark.parametrize(
    ("axes", "options", "error", "words"),
    [
        ({}, {}, ValueError, "axes: got none"),
        ({"a": []}, {}, ValueError, r"axes\['a'\]: got no values"),
        ({"a": 3.0}, {}, TypeError, r"axes\['a'\]: got a single value, 3.0"),
        ({"a": ["x"]}, {}, TypeError, r"axes\['a'\]: got <U1 values"),
        ({3: [1.0]}, {}, TypeError, "axes: got the name 3"),
        ({"a": [1.0, 2.0], "b": [1.0]}, {"zipped": True}, ValueError, r"axes: got lengths {'a': 2, 'b': 1}"),
        ({"a": [1.0]}, {"block": 0}, ValueError, "block: got 0; expected at least 1"),
        ({"a": [2**40, 3]}, {}, ValueError, r"axes\['a'\]\[0\]: got 1099511627776; expected what"),
        ({"a": np.array([0.1, 1e300])}, {}, ValueError, r"axes\['a'\]\[1\]: got 1e\+300; expected what"),
    ],
)
def test_what_is_no_grid_is_refused(axes, options, error, words):
    with pytest.raises(error, match=words):
        mjn.sweep(lambda **values: values, axes, **options)


def test_a_run_that_cannot_be_stacked_or_has_effects_is_refused():
    with pytest.raises(TypeError, match=r"run: it returns \['name'\], str; expected arrays"):
        mjn.sweep(lambda a: {"name": "x", "value": a}, {"a": np.ones(2)})

    def printing(a):
        jax.debug.print("{}", a)
        return a

    with pytest.raises(ValueError, match=r"run: it has side effects"):
        mjn.sweep(printing, {"a": np.ones(2)})


def test_each_replica_rests_at_its_own_flatness():
    def run(until_flat):
        descent = mjn.gradient_descent(lambda weight, batch: weight**2, 0.25)  # which halves the weight
        return mjn.descend(descent, descent.init(1.0), None, steps=20, until_flat=until_flat)[1]

    trace = mjn.sweep(run, {"until_flat": np.array([1.0, 0.25, 1e-9])}).trace
    np.testing.assert_array_equal(trace.steps_taken, [1, 3, 20])
    np.testing.assert_array_equal(trace.status, [mjn.FLAT, mjn.FLAT, mjn.OUT_OF_STEPS])


def test_blocks_that_are_kept_are_not_run_again():
    axes = {"start": np.arange(10.0), "learning_rate": np.array([0.1, 0.2])}
    kept, loaded = {}, []

    def load(first, like):
        loaded.append(first)
        chex.assert_trees_all_equal_shapes_and_dtypes(like, next(iter(kept.values()), like))
        return kept.get(first)

    blocks = sweep_grid.Blocks(4, load, kept.__setitem__)
    whole = mjn.sweep(bowl, axes, blocks=blocks)
    assert whole.block == 4 and sorted(kept) == loaded == [0, 4, 8, 12, 16]
    kept[8] = jax.tree.map(np.zeros_like, kept[8])  # to be seen again, if it is not run
    gone, done = kept.pop(12), []
    again = mjn.sweep(bowl, axes, blocks=blocks, on_progress=lambda *counts: done.append(counts))
    assert done == [(20, 20)] and again.finished.all()
    chex.assert_trees_all_equal(kept[12], gone)
    flat = again.output.loss.reshape(20, -1)
    np.testing.assert_array_equal(
        np.delete(flat, np.s_[8:12], 0), np.delete(whole.output.loss.reshape(20, -1), np.s_[8:12], 0)
    )
    assert (flat[8:12] == 0).all()


@pytest.mark.parametrize(
    "draw",
    [
        lambda key: jax.random.normal(key, (3,)),
        lambda key: jax.lax.fori_loop(0, 2, lambda k, x: x + jax.random.uniform(jax.random.fold_in(key, k)), 0.0),
    ],
)
def test_keys_that_draw_other_numbers_for_many_at_once_are_refused(draw):
    with pytest.raises(ValueError, match=r"run: got keys of rbg, which draw other numbers .* impl='threefry2x32'"):
        mjn.sweep(draw, {"key": jax.random.split(jax.random.key(0, impl="rbg"), 3)})
    with pytest.raises(ValueError, match="run: got keys of urbg"):
        mjn.sweep(lambda seed: draw(jax.random.key(seed, impl="unsafe_rbg")), {"seed": np.arange(3)})
