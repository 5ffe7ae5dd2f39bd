"""Several devices in one process: the same descent, to rounding, with one all-reduce a step."""

import contextlib
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from kits.command import rows_in
from kits.eight import called, exchanged, weights
from kits.processes import LINE

import minijaxnet as mjn
from minijaxnet.batches import OneBatch, minibatches_of
from minijaxnet.parallel import data_mesh, on_mesh, replicate, shard_batch
from minijaxnet.run import load_checkpoint, save_checkpoint

SIZES = (64, 16, 10)
PLAIN = mjn.objective(mjn.mlp(SIZES), mjn.softmax_cross_entropy)
BY_HAND = mjn.with_gradient(PLAIN, mjn.mlp_gradient(SIZES, activation=jax.nn.relu, loss=mjn.softmax_cross_entropy))


def points(count):
    draw = np.random.default_rng(0)
    return mjn.Batch(draw.normal(size=(count, 64)).astype(np.float32), draw.integers(10, size=count))


def check_that_a_batch_over_four_devices_gives_the_losses_of_one_with_one_all_reduce_a_step():
    same_as_alone(BY_HAND, 30, (4,))


def long_check_that_any_number_of_devices_gives_the_losses_of_one():
    same_as_alone(PLAIN, 30, (1, 2, 8))


def same_as_alone(objective, steps, numbers):
    train, descent = points(1024), mjn.gradient_descent(objective, 0.2)
    start = descent.init(weights(*SIZES))
    alone = mjn.descend(descent, start, train, steps=steps)[1]
    for devices in numbers:
        mesh = data_mesh(devices)
        placed, batch = replicate(mesh, start), shard_batch(mesh, train)
        end, trace = mjn.descend(descent, placed, batch, steps=steps)
        # A mean of 1,024 terms is summed in other halves: an ulp or so a step, which a descent that contracts forgets.
        np.testing.assert_allclose(trace.loss, alone.loss, rtol=2e-5)
        found = exchanged(descent, OneBatch(), placed, batch)
        assert found == (["all-reduce"] if devices > 1 else []), (devices, found)
        assert end.params[0]["weights"].sharding.is_fully_replicated


def check_that_minibatches_are_picked_on_each_device_and_only_slopes_are_exchanged():
    train, key, mesh = points(704), jax.random.key(1), data_mesh(4)
    descent = mjn.gradient_descent(PLAIN, 0.2)
    start = descent.init(weights(*SIZES))
    _, alone = mjn.descend_epochs(descent, start, train, key, batch_size=32, epochs=1)
    divided, data = on_mesh(mesh, descent), replicate(mesh, train)
    _, trace = mjn.descend_epochs(divided, replicate(mesh, start), data, key, batch_size=32, epochs=1)
    np.testing.assert_allclose(trace.loss, alone.loss, rtol=2e-5)
    assert exchanged(divided, minibatches_of(train, 32), replicate(mesh, start), (data, key)) == ["all-reduce"]


def check_that_what_cannot_be_divided_is_refused_with_the_nearest_sizes():
    mesh = data_mesh(8, replicas=2)
    assert dict(mesh.shape) == {"replica": 2, "data": 4}
    for count, got, near in ((0, "0", "4"), (3, "3", "4"), (1438, "1,438", "1,436 or 1,440")):
        words = f"^batch: got {got} points; expected a multiple of 4, the devices, such as {near}$"
        with pytest.raises(ValueError, match=words):
            shard_batch(mesh, np.ones((count, 2)))


def check_that_a_checkpoint_gathers_sharded_arrays_and_has_them_back_in_the_templates_sharding():
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
    placed = {spec: NamedSharding(mesh, spec) for spec in (P("a", "b"), P(None, "b"), P(("b", "a")), P())}
    values = np.arange(32.0, dtype=np.float32).reshape(8, 4)
    tree = {str(spec): jax.device_put(values, sharding) for spec, sharding in placed.items()}
    tree["third"] = jax.device_put(values, jax.devices()[2])
    keys = jax.random.wrap_key_data(np.arange(16, dtype=np.uint32).reshape(8, 2))
    tree["keys"] = jax.device_put(keys, NamedSharding(mesh, P("a")))
    tree["numpy"], tree["free"] = values, jnp.asarray(values)
    # In another sharding than it was saved from, and from a template without data.
    other = tree | {str(spec): jax.device_put(0 * values, placed[P(None, "b")]) for spec in placed}
    structs = {
        name: leaf
        if name in ("numpy", "free")
        else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in tree.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        save_checkpoint(path, tree, step=1)
        for like in (tree, other, structs):
            for name, leaf in load_checkpoint(path, like).items():
                if name == "keys":
                    assert (jax.random.key_data(leaf) == jax.random.key_data(tree["keys"])).all()
                else:
                    np.testing.assert_array_equal(np.asarray(leaf), values)
                if name != "numpy":
                    assert leaf.sharding == like[name].sharding, (name, leaf.sharding)
                    assert leaf.committed == (name != "free")


def same_as_by_hand(run):
    """The rows of a line that learns at a rate of 0.01, logged every 10 steps."""
    x = np.linspace(-1, 1, 64)
    rows = rows_in(run)
    slope, offset = rows[0]["params/slope"], rows[0]["params/offset"]
    assert [row["step"] for row in rows] == list(range(0, 61, 10))
    for row in rows:
        errors = slope * x + offset - (3 * x + 1)
        expected = {"params/slope": slope, "params/offset": offset, "loss": np.mean(errors**2)}
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-4)
        for _ in range(10):
            errors = slope * x + offset - (3 * x + 1)
            slope, offset = slope - 0.02 * np.mean(errors * x), offset - 0.02 * np.mean(errors)


def check_that_a_run_on_four_devices_is_the_descent_and_is_resumed_on_two():
    quick = ("--bench-seconds", 0, "--no-report", "--log-every", 10, "--checkpoint-every", 20, "--steps", 60)
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        Path("line.py").write_text(LINE)
        code, out = called("run", "line.py", "--devices", 4, *quick)
        assert code == 0 and "on 4 devices (cpu, which share its cores)" in out, out
        [run] = Path("runs").glob("*")
        same_as_by_hand(run)
        (run / "result.json").unlink()
        (run / "checkpoints" / "step-00000060.safetensors").unlink()
        code, out = called("resume", run, "--devices", 2)
        assert code == 0 and "went on from step 40" in out and "on 2 devices" in out, out
        same_as_by_hand(run)


def check_that_what_devices_do_not_divide_is_refused_and_leaves_no_folder():
    most = (
        "devices: got 9; expected at most 8, the devices there are; XLA_FLAGS=--xla_force_host_platform_device_count=9"
    )
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        Path("line.py").write_text(LINE)
        for flags, words in (
            (("3",), "batch: got 64 points; expected a multiple of 3, the devices, such as 63 or 66"),
            (("4", "--batch-size", "6"), "batch_size: got 6; expected a multiple of 4, the devices, such as 4 or 8"),
            (("0",), "devices: got 0; expected at least 1"),
            (("9",), f"{most} divides a CPU into as many"),
        ):
            assert called("run", "line.py", "--devices", *flags) == (2, f"minijaxnet: error: {words}\n")
        assert not Path("runs").exists()


# --- On one device ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"devices": 10**6}, "devices: got 1000000; expected at most"),
        ({"devices": 0}, "devices: got 0"),
        ({"devices": ()}, "devices: got none"),
        ({"devices": 1, "replicas": 2}, "replicas: got 2; expected a divisor of 1"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        data_mesh(**options)


@pytest.mark.parametrize(
    ("batch", "axis", "words"),
    [
        (np.ones(4), "model", "axis: got 'model'; expected one of the mesh, 'data'"),
        ((np.ones(4), np.ones(3)), "data", r"batch: got batch axes \[0\] 4, \[1\] 3; expected one of the same length"),
        (1.0, "data", "batch: got batch axes .leaf. none"),
    ],
)
def test_batches_that_are_none_are_refused(batch, axis, words):
    with pytest.raises(ValueError, match=words):
        shard_batch(data_mesh(1), batch, axis=axis)
