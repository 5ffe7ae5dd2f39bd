"""Sweeps divided over devices, to the bit; batches divided within replicas; wide weights divided over devices."""

import contextlib
import os
import re
import signal
import tempfile
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from kits.eight import called, collectives, exchanged, weights
from kits.processes import LINE

import minijaxnet as mjn
from minijaxnet.batches import OneBatch
from minijaxnet.cli import sweep as cli_sweep
from minijaxnet.loop import run_chunk
from minijaxnet.parallel import data_mesh, on_mesh, replicate, shard_batch, shard_state
from minijaxnet.sweeps import Blocks, grid, program

# Some are flat early, some diverge, the others take all of their steps.
RATES = np.array([0.1, 1.0, 1e9], np.float32)
SCALES = np.array([0.5, 1.0, 2.0], np.float32)


def points(count, n_in, classes):
    drawn = np.random.default_rng(0).normal(size=(count, n_in)).astype(np.float32)
    return mjn.Batch(drawn, np.abs(drawn[:, :classes]).argmax(axis=1).astype(np.int32))


DATA = points(32, 64, 10)
CLASSIFIER, LINES = weights(64, 16, 10), weights(2, 2, 1)
CLASSIFIES = mjn.objective(mjn.mlp((64, 16, 10)), mjn.softmax_cross_entropy)
FITS = mjn.objective(mjn.mlp((2, 2, 1)), mjn.mean_squared_error)


def drops_out(params, batch, key):
    return CLASSIFIES(params, mjn.Batch(batch.x * jax.random.bernoulli(key, 0.8, batch.x.shape), batch.y))


def scaled(params, scale):
    return jax.tree.map(lambda leaf: scale * leaf, params)


def digits_full_batch(scale, learning_rate, mesh=None):
    descent = mjn.gradient_descent(CLASSIFIES, learning_rate)
    descent = descent if mesh is None else on_mesh(mesh, descent)
    return mjn.descend(descent, descent.init(scaled(CLASSIFIER, scale)), DATA, steps=20, until_flat=0.3)


def digits_in_minibatches_with_dropout(scale, learning_rate, mesh=None):
    key = jax.random.key(jnp.int32(scale))
    descent = mjn.gradient_descent(drops_out, learning_rate)
    descent = descent if mesh is None else on_mesh(mesh, descent)
    start = descent.init(scaled(CLASSIFIER, scale), key)
    return mjn.descend_epochs(descent, start, DATA, key, batch_size=8, epochs=3)


def lesson(scale, learning_rate):
    descent = mjn.gradient_descent(FITS, learning_rate / 50)
    return mjn.descend(descent, descent.init(scaled(LINES, scale)), mjn.lesson_points(), steps=30, until_flat=3.0)


def axes():
    return {"scale": SCALES, "learning_rate": RATES}


def compiled(run, mesh, block):
    """The program of a call, as text."""
    workers = program.workers_of(mesh)
    values = dict.fromkeys(("scale", "learning_rate"), np.ones(workers.rows * block, np.float32))
    traced = program.replicas.trace(run, workers.put(values), mesh, workers.axis)
    return traced.lower().compile().as_text()


def same_bits(run, block, *numbers):
    alone = mjn.sweep(run, axes(), block=block)
    for devices in numbers:
        found = mjn.sweep(run, axes(), block=block, mesh=data_mesh(devices))
        chex.assert_trees_all_equal(found.output, alone.output)
        assert found.block == alone.block and found.finished.all()
    return set(alone.trace.status.ravel().tolist())


def check_bits_of_the_lesson():
    assert same_bits(lesson, 2, 4) == {mjn.FLAT, mjn.DIVERGED, mjn.OUT_OF_STEPS}


def check_that_devices_say_nothing_to_one_another():
    assert not collectives(compiled(lesson, data_mesh(4), 2))


def check_that_batches_divided_within_a_replica_are_summed_within_it():
    """Of two rows of four devices each divides the batches of its replicas."""
    mesh = data_mesh(8, replicas=2)

    def divided(scale, learning_rate):
        return digits_full_batch(scale, learning_rate, mesh)

    text = compiled(divided, mesh, 5)
    assert collectives(text) == ["all-reduce"], collectives(text)
    [groups] = re.findall(r"replica_groups=([^ ]*[\]}])", text)
    assert groups in ("[2,4]<=[8]", "{{0,1,2,3},{4,5,6,7}}"), groups
    found, alone = mjn.sweep(divided, axes(), mesh=mesh), mjn.sweep(digits_full_batch, axes(), block=2)
    assert found.block == 5
    np.testing.assert_array_equal(found.trace.status, alone.trace.status)
    np.testing.assert_allclose(found.trace.loss, alone.trace.loss, rtol=1e-4, atol=1e-6)


def check_that_kept_blocks_serve_another_number_of_devices():
    whole, kept, progress = mjn.sweep(lesson, axes(), block=2), {}, []

    def stop(done, count):
        progress.append((done, count))
        raise KeyboardInterrupt

    def sweep(devices, size, **options):
        blocks = Blocks(size, lambda first, like: kept.get(first), kept.__setitem__)
        mesh = None if devices is None else data_mesh(devices)
        return mjn.sweep(lesson, axes(), blocks=blocks, mesh=mesh, **options)

    half = sweep(4, None, block=2, on_progress=stop)
    assert progress == [(8, 9)] and half.finished.sum() in (8, 9) and set(kept) >= {0, 2, 4, 6}
    assert {len(leaf) for output in kept.values() for leaf in jax.tree.leaves(output)} == {2}
    for gone in (8, 2, 4):
        kept.pop(gone, None)
    kept[0] = jax.tree.map(np.zeros_like, kept[0])  # to be seen again, if it is not run
    found = sweep(None, 2)
    assert sorted(kept) == [0, 2, 4, 6, 8] and found.block == 2
    for mine, expected in zip(jax.tree.leaves(found.output), jax.tree.leaves(whole.output), strict=True):
        mine, expected = (leaf.reshape(9, *leaf.shape[2:]) for leaf in (mine, expected))
        np.testing.assert_array_equal(mine[2:], expected[2:])
        assert not mine[:2].any()


def mesh_of_four(axis_type):
    return jax.make_mesh((4,), ("data",), devices=jax.devices()[:4], axis_types=(axis_type,))


def check_that_explicit_axes_are_refused():
    descent, explicit = mjn.gradient_descent(CLASSIFIES, 0.1), mesh_of_four(AxisType.Explicit)
    start = descent.init(CLASSIFIER)
    words = "mesh: got the axes 'data' 4, Explicit; expected Auto ones, as from data_mesh, or by axis_types="
    for refused in (
        lambda: shard_batch(explicit, DATA),
        lambda: replicate(explicit, start),
        lambda: shard_state(explicit, start, axis="data"),
        lambda: on_mesh(explicit, descent),
        lambda: mjn.sweep(lesson, axes(), mesh=explicit),
    ):
        with pytest.raises(ValueError, match=words):
            refused()
    for other, text in ((explicit, "'data' 4, Explicit"), (data_mesh(8), "'data' 8, Auto")):
        with (
            jax.set_mesh(other),
            pytest.raises(ValueError, match=f"mesh: got one that differs from that of jax.set_mesh, {text}"),
        ):
            replicate(data_mesh(4), start)


def check_that_a_mesh_has_the_sides_that_were_asked_for():
    assert [*data_mesh(8, replicas=2, shards=2).shape.items()] == [("replica", 2), ("data", 2), ("model", 2)]
    assert [*data_mesh(4, shards=4).shape.items()] == [("data", 1), ("model", 4)]
    assert data_mesh(8, shards=4).devices[1].tolist() == jax.devices()[4:8]
    for options, words in (
        ({"shards": 3}, "shards: got 3; expected a divisor of 8, the devices of the mesh$"),
        (
            {"replicas": 2, "shards": 8},
            "shards: got 8; expected a divisor of 4, the devices of the mesh in each replica",
        ),
        ({"replicas": 3}, "replicas: got 3; expected a divisor of 8"),
        ({"shards": 0}, "shards: got 0; expected at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            data_mesh(8, **options)
    with pytest.raises(ValueError, match="axis: got 'model'; expected one of the mesh, 'data'"):
        shard_state(data_mesh(8), {})


def adam(objective):
    return mjn.optax_descent(objective, optax.adam(1e-3))


def with_momentum(objective):
    return mjn.optax_descent(objective, optax.sgd(0.01, momentum=0.9))


def plain(objective):
    return mjn.gradient_descent(objective, 0.01)


def check_that_wide_weights_divided_learn_the_same_and_go_on_from_the_same_checkpoint():
    wide_weights(with_momentum, data_mesh(4, shards=4), (16, 512, 10), 4, exchanged, ["all-reduce"] * 2)


def long_check_that_wider_weights_and_batches_divided_learn_the_same():
    def in_one_step(descent, _, state, batch):
        return collectives(jax.jit(descent.step).lower(state, batch).compile().as_text())

    sizes = (1024, 1024, 1024, 10)
    wide_weights(adam, data_mesh(4, shards=4), sizes, 9, in_one_step, ["all-gather", *["all-reduce"] * 3])
    wide_weights(plain, data_mesh(8, shards=4), sizes, 3, in_one_step, ["all-gather", *["all-reduce"] * 5])


def wide_weights(descent_of, mesh, sizes, matrices, look, expected):
    batch, steps = jax.tree.map(jax.device_put, points(16, sizes[0], 10)), 6
    descent = descent_of(mjn.objective(mjn.mlp(sizes), mjn.softmax_cross_entropy))
    start = descent.init(weights(*sizes))
    _, alone = mjn.descend(descent, start, batch, steps=steps)
    state, seen = shard_state(mesh, start), batch if mesh.shape["data"] == 1 else shard_batch(mesh, batch)
    wide = [leaf for leaf in jax.tree.leaves(state) if np.ndim(leaf) == 2]
    assert len(wide) == matrices
    assert all(4 * leaf.addressable_shards[0].data.nbytes == leaf.nbytes for leaf in wide)
    found = sorted(look(descent, OneBatch(), state, seen))
    assert found == expected, found
    np.testing.assert_allclose(mjn.descend(descent, state, seen, steps=steps)[1].loss, alone.loss, rtol=1e-4)
    for before, after in ((state, start), (start, state)):
        options, programs = {"log_every": 1, "checkpoint_every": 3}, compiled_chunks()
        with tempfile.TemporaryDirectory() as folder:
            mjn.fit(descent, before, batch, steps=3, run_dir=folder, **options)
            result = mjn.fit(descent, after, batch, steps=steps, run_dir=folder, resume=True, **options)
        np.testing.assert_allclose([row["loss"] for row in result.rows[:steps]], alone.loss, rtol=1e-4)
        assert result.first_step == 3
        assert jax.tree.map(shards_of, result.state) == jax.tree.map(shards_of, after)
        assert compiled_chunks() <= programs + 2, "compiled again, for what came out lay elsewhere"


def compiled_chunks():
    return sum(program._cache_size() for program in run_chunk._programs.values())


def shards_of(leaf):
    """The shape of what a device has of an array."""
    return leaf.sharding.shard_shape(leaf.shape)


def long_check_bits_over_many_numbers_of_devices():
    for run, blocks, flat in (
        (lesson, (1, 2, 3, 9), {mjn.FLAT}),
        (digits_full_batch, (1, 3), {mjn.FLAT}),
        (digits_in_minibatches_with_dropout, (2,), set()),
    ):
        for block in blocks:
            assert same_bits(run, block, 1, 2, 3, 4, 8) == {mjn.DIVERGED, mjn.OUT_OF_STEPS} | flat


def check_that_the_command_line_divides_a_sweep_and_goes_on_with_it_on_one_device():
    progress, on_host = [], grid._on_host

    def stop(done, count):
        progress.append(done)
        os.kill(os.getpid(), signal.SIGINT)

    def slowly(leaf):
        time.sleep(0.02)
        return np.asarray(leaf)

    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        here = Path(name)
        (here / "line.py").write_text(LINE)
        sweep = ("sweep", "line.py", "--learning-rate", "0.1,0.5,1e30", "--seeds", 5, "--steps", 9, "--block", 1)
        code, out = called(*sweep, "--runs", "one")
        assert code == 0 and "9 steps, float32 on cpu\n" in out, out
        cli_sweep._on_progress, grid._on_host = (lambda: stop), slowly
        code, out = called(*sweep, "--runs", "four", "--devices", 4)
        assert code == 130 and "float32 on 4 devices (cpu, which share its cores)\n" in out, out
        cli_sweep._on_progress = lambda: None
        (one,), (four,) = here.glob("one/*"), here.glob("four/*")
        assert progress == [4] and 4 <= len([*four.glob("blocks/*/from-*-size-1.safetensors")]) < 15
        grid._on_host = on_host
        code, out = called("resume", four, "--devices", 1)
        assert code == 0 and "float32 on cpu\n" in out, out
        for file in ("sweep.npz", "result.json"):
            assert (one / file).read_bytes() == (four / file).read_bytes()
