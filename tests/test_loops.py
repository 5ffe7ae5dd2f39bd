"""Loops by blocks, as on an accelerator, here forced on a CPU: the same bits as the plain loop's."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from kits.descents import OBJECTIVE, PARAMS, POINTS

import minijaxnet as mjn
from minijaxnet import _loops, batches, loop
from minijaxnet.bench.blocks import checked, fused

KEY = jax.random.key(5)


@pytest.fixture
def by_blocks(monkeypatch):
    """Call a function with the plain loop and with blocks of so many steps; what both return."""

    def both(function, block):
        plain = function()
        with monkeypatch.context() as patched:
            patched.setattr(_loops, "_BLOCK", block)
            patched.setattr(_loops, "platform_of", lambda tree: "gpu")
            return plain, function()

    return both


def distance(weight, batch):
    return jnp.sum((weight - batch) ** 2)


def noisy(params, batch, key):
    return OBJECTIVE(params, batch) * jax.random.uniform(key, minval=0.5)


def falling(weight, batch):
    """At a rate of 1 the weight grows by 2 each step, and from 90 on the loss is infinite."""
    return jnp.where(weight < 90, -2 * weight, jnp.inf)


PLAIN, ADAM = mjn.gradient_descent(OBJECTIVE, 0.02), mjn.optax_descent(noisy, optax.adam(0.02))
FALLING = mjn.gradient_descent(falling, 1.0)
HALVING = mjn.gradient_descent(distance, 0.25)  # the gradient is halved at each step: 2 * 2^-k
RUNS = {
    "blocks and a rest": lambda: mjn.descend(PLAIN, PLAIN.init(PARAMS), POINTS, steps=43),
    "only a rest": lambda: mjn.descend(PLAIN, PLAIN.init(PARAMS), POINTS, steps=7),
    "no step": lambda: mjn.descend(PLAIN, PLAIN.init(PARAMS), POINTS, steps=0),
    "flat within a block": lambda: mjn.descend(HALVING, HALVING.init(2.0), 1.0, steps=64, until_flat=0.1),
    "flat at the start": lambda: mjn.descend(HALVING, HALVING.init(2.0), 1.0, steps=64, until_flat=9.0),
    "diverged within a block": lambda: mjn.descend(FALLING, FALLING.init(70.0), (), steps=64),
    "minibatches": lambda: mjn.descend_epochs(PLAIN, PLAIN.init(PARAMS), POINTS, KEY, batch_size=2, epochs=11),
    "a key": lambda: mjn.descend(ADAM, ADAM.init(PARAMS, KEY), POINTS, steps=43),
    "several chunks": lambda: mjn.descend(PLAIN, PLAIN.init(PARAMS), POINTS, steps=batches.CHUNK_STEPS + 21),
}
ENDS = {"flat within a block": (mjn.FLAT, 5), "flat at the start": (mjn.FLAT, 0)}
ENDS |= {"diverged within a block": (mjn.DIVERGED, 10), "no step": (mjn.OUT_OF_STEPS, 0)}


def plain_keys(tree):
    is_key = lambda leaf: jnp.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)


@pytest.mark.parametrize("name", RUNS)
def test_by_blocks_a_descent_has_the_same_bits(name, by_blocks):
    plain, blocked = by_blocks(RUNS[name], 16)
    chex.assert_trees_all_equal(plain_keys(blocked), plain_keys(plain), strict=True)
    if name in ENDS:
        assert (blocked[1].status, blocked[1].steps_taken) == ENDS[name]


def test_replicas_that_end_at_different_steps_have_the_same_bits(by_blocks):
    rates = jnp.array([0.25, 0.01, 3.0, 0.5])  # flat in a while, not at all, diverging, flat after a step

    def run(rate):
        descent = mjn.gradient_descent(distance, rate)
        return mjn.descend(descent, descent.init(2.0), 1.0, steps=77, until_flat=0.1)

    plain, blocked = by_blocks(lambda: jax.jit(jax.vmap(run))(rates), 16)
    chex.assert_trees_all_equal(blocked, plain, strict=True)
    assert blocked[1].status.tolist() == [mjn.FLAT, mjn.OUT_OF_STEPS, mjn.DIVERGED, mjn.FLAT]
    assert blocked[1].steps_taken.tolist() == [5, 77, 28, 1]  # 25^28 is beyond float32


def test_a_fit_cut_anywhere_has_the_same_bits(by_blocks, tmp_path):
    def run():
        folder = tmp_path / str(len([*tmp_path.iterdir()]))
        folder.mkdir()
        options = {"batch_size": 2, "key": KEY, "run_dir": folder, "log_every": 5}
        mjn.fit(PLAIN, PLAIN.init(PARAMS), POINTS, steps=37, **options)
        return mjn.fit(PLAIN, PLAIN.init(PARAMS), POINTS, steps=90, resume=True, **options)

    plain, blocked = by_blocks(run, 16)
    assert blocked.first_step == 37
    chex.assert_trees_all_equal(blocked.state, plain.state, strict=True)
    chex.assert_trees_all_equal(blocked.trace, plain.trace, strict=True)
    assert blocked.rows == plain.rows


def trip_counts(text):
    return [int(count) for count in re.findall(r'known_trip_count[^}]*"n":"(\d+)"', text)]


def test_the_compiled_program_knows_how_many_rounds_a_block_has():
    state = PLAIN.init(PARAMS)
    rest = (state, POINTS, 9, np.float32(0), np.int32(mjn.OUT_OF_STEPS))
    for block, counts in ((1, []), (48, [48])):
        program = loop.run_chunk.trace(PLAIN.step, batches.OneBatch(), 512, block, *rest).lower().compile()
        assert trip_counts(program.as_text()) == counts
        traced = checked(jax.jit(PLAIN.step).trace(state, POINTS), state, "descent")
        assert trip_counts(jax.jit(fused(traced, block)).lower(state, POINTS, 1).compile().as_text()) == counts


def test_a_timed_loop_by_blocks_takes_as_many_steps(by_blocks):
    state = jax.device_put(PLAIN.init(PARAMS))
    traced = checked(jax.jit(PLAIN.step).trace(state, POINTS), state, "descent")
    plain, blocked = by_blocks(lambda: jax.jit(fused(traced, _loops.block_on(state)))(state, POINTS, 43), 16)
    assert blocked[0].step == 43
    chex.assert_trees_all_equal(blocked, plain, strict=True)


def test_within_a_descent_nothing_is_moved_between_host_and_device(tmp_path):
    state, points = jax.device_put((PLAIN.init(PARAMS), POINTS))
    with jax.transfer_guard("disallow"):
        mjn.descend(PLAIN, state, points, steps=30)
        mjn.descend_epochs(PLAIN, state, points, KEY, batch_size=2, epochs=3)
        mjn.fit(PLAIN, state, points, steps=30, batch_size=2, key=KEY, run_dir=tmp_path)


def test_blocks_are_for_the_device_that_the_arrays_are_on():
    assert _loops.platform_of(()) == jax.default_backend()
    assert _loops.platform_of((3, jax.device_put(1.0, jax.devices("cpu")[0]))) == "cpu"
    with jax.default_device("cpu"):
        assert _loops.block_on(()) == 1
