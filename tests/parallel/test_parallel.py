"""Several devices and several processes: the same descent, to rounding, with one all-reduce a step."""

import json

import jax
import numpy as np
import pytest
from kits.processes import LINE, ended, python

from minijaxnet.parallel import data_mesh, replicate, shard_batch

EIGHT = """
import re, sys
import jax, numpy as np
import minijaxnet as mjn
from minijaxnet.parallel import data_mesh, replicate, shard_batch

steps, numbers = int(sys.argv[1]), [int(number) for number in sys.argv[2:]]
collectives = r"(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\\("
if steps == 1_000:
    train, _ = mjn.digits()
    train = jax.tree.map(lambda leaf: leaf[:1024], train)
else:
    draw = np.random.default_rng(0)
    train = mjn.Batch(draw.normal(size=(1024, 64)).astype(np.float32), draw.integers(10, size=1024))
network = mjn.mlp((64, 32, 10))
by_hand = mjn.mlp_gradient((64, 32, 10), activation=jax.nn.relu, loss=mjn.softmax_cross_entropy)
plain = mjn.objective(network, mjn.softmax_cross_entropy)
objectives = {"by hand": mjn.with_gradient(plain, by_hand)} | ({"autodiff": plain} if steps > 100 else {})
for name, objective in objectives.items():
    descent = mjn.gradient_descent(objective, 0.2)
    start = descent.init(network.init(jax.random.key(0)))
    state, alone = mjn.descend(descent, start, train, steps=steps)
    for devices in numbers:
        mesh = data_mesh(devices)
        placed, batch = replicate(mesh, start), shard_batch(mesh, train)
        end, trace = mjn.descend(descent, placed, batch, steps=steps)
        # A mean of 1,024 terms is summed in other halves: an ulp or so a step, which a descent that contracts forgets.
        np.testing.assert_allclose(trace.loss, alone.loss, rtol=2e-5)
        program = jax.jit(descent.step).lower(placed, batch).compile().as_text()
        found = re.findall(collectives, program)
        assert found == (["all-reduce"] if devices > 1 else []), (name, devices, found)
        assert end.params[0]["weights"].sharding.is_fully_replicated
print("the same")
"""

MINIBATCHES = """
import re
import jax, numpy as np
import minijaxnet as mjn
from minijaxnet.feeds import minibatches_of
from minijaxnet.parallel import data_mesh, on_mesh, replicate, shard_batch

draw = np.random.default_rng(0)
train = mjn.Batch(draw.normal(size=(704, 64)).astype(np.float32), draw.integers(10, size=704))
network = mjn.mlp((64, 16, 10))
descent = mjn.gradient_descent(mjn.objective(network, mjn.softmax_cross_entropy), 0.2)
start, key, mesh = descent.init(network.init(jax.random.key(0))), jax.random.key(1), data_mesh(4)
alone, expected = mjn.descend_epochs(descent, start, train, key, batch_size=32, epochs=1)
divided, data = on_mesh(mesh, descent), replicate(mesh, train)
end, trace = mjn.descend_epochs(divided, replicate(mesh, start), data, key, batch_size=32, epochs=1)
np.testing.assert_allclose(trace.loss, expected.loss, rtol=2e-5)
feed = minibatches_of(train, 32)
step = jax.jit(lambda state, data, key: divided.step(state, feed.at(feed.draw((data, key), 0, 1, 1), 0)))
program = step.lower(replicate(mesh, start), data, key).compile().as_text()
collectives = r"(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\\("
assert re.findall(collectives, program) == ["all-reduce"], re.findall(collectives, program)
print("the same")
"""


@pytest.mark.parametrize(
    ("steps", "numbers"),
    [(30, (4,)), pytest.param(1_000, (1, 2, 4, 8), marks=pytest.mark.slow)],
    ids=["short", "long"],
)
def test_several_devices_give_the_losses_of_one_with_one_all_reduce_a_step(steps, numbers):
    code, out, err = ended([python(EIGHT, steps, *numbers, XLA_FLAGS="--xla_force_host_platform_device_count=8")])[0]
    assert (code, out) == (0, "the same\n"), err


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


def test_what_cannot_be_divided_is_refused_with_the_nearest_sizes():
    code = """
    import jax, numpy as np
    from minijaxnet.parallel import data_mesh, shard_batch
    mesh = data_mesh(8, replicas=2)
    assert dict(mesh.shape) == {"replica": 2, "data": 4}
    for points in (0, 3, 1438):
        try:
            shard_batch(mesh, np.ones((points, 2)))
        except ValueError as error:
            print(error)
    """
    code, out, err = ended([python(code, XLA_FLAGS="--xla_force_host_platform_device_count=8")])[0]
    assert code == 0, err
    assert out.splitlines() == [
        "batch: got 0 points; expected a multiple of 4, the devices, such as 4",
        "batch: got 3 points; expected a multiple of 4, the devices, such as 4",
        "batch: got 1,438 points; expected a multiple of 4, the devices, such as 1,436 or 1,440",
    ]


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


def test_what_is_replicated_is_a_copy_keys_included():
    tree = {"w": jax.numpy.ones(2), "key": jax.random.key(1)}
    placed = replicate(data_mesh(1), tree)
    jax.tree.map(lambda leaf: leaf.delete(), {"w": tree["w"]})
    assert placed["w"].tolist() == [1, 1]
    assert (jax.random.key_data(placed["key"]) == jax.random.key_data(jax.random.key(1))).all()


def test_minibatches_are_picked_on_each_device_and_only_slopes_are_exchanged():
    code, out, err = ended([python(MINIBATCHES, XLA_FLAGS="--xla_force_host_platform_device_count=4")])[0]
    assert (code, out) == (0, "the same\n"), err


def command(folder, *arguments):
    code = "import os, sys; os.chdir(sys.argv[1]); from minijaxnet.cli import main; sys.exit(main(sys.argv[2:]))"
    return ended([python(code, folder, *arguments)])[0]


def rows(folder):
    [run] = folder.glob("*")
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_on_four_devices_is_that_of_one_and_is_resumed_on_two(tmp_path):
    (tmp_path / "line.py").write_text(LINE)
    quick = ("--bench-seconds", "0", "--no-report", "--log-every", "10", "--checkpoint-every", "20", "--steps", "60")
    for devices, folder in ((1, "one"), (4, "four")):
        code, out, err = command(tmp_path, "run", "line.py", "--devices", devices, "--runs", folder, *quick)
        assert code == 0, err
        assert ("on 4 devices (cpu, which share its cores)" in out) == (devices == 4)
    one, four = rows(tmp_path / "one"), rows(tmp_path / "four")
    for here, there in zip(one, four, strict=True):
        assert here == pytest.approx(there, rel=1e-4, abs=1e-10)
    [run] = (tmp_path / "four").glob("*")
    (run / "result.json").unlink()
    (run / "checkpoints" / "step-00000060.safetensors").unlink()
    code, out, err = command(tmp_path, "resume", run, "--devices", 2)
    assert code == 0 and "went on from step 40" in out and "on 2 devices" in out, err
    for here, there in zip(one, rows(tmp_path / "four"), strict=True):
        assert here == pytest.approx(there, rel=1e-4, abs=1e-10)


REFUSED = """
import os, sys
from minijaxnet.cli import main
os.chdir(sys.argv[1])
flags = [("--devices", "3"), ("--devices", "4", "--batch-size", "6"), ("--devices", "0"), ("--devices", "5")]
print([main(["run", "line.py", *each]) for each in flags])
"""


def test_what_devices_do_not_divide_is_refused_and_leaves_no_folder(tmp_path):
    (tmp_path / "line.py").write_text(LINE)
    code, out, err = ended([python(REFUSED, tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=4")])[0]
    assert (code, out.strip()) == (0, "[2, 2, 2, 2]") and not (tmp_path / "runs").exists()
    assert [line.removeprefix("minijaxnet: error: ") for line in err.splitlines()] == [
        "batch: got 64 points; expected a multiple of 3, the devices, such as 63 or 66",
        "batch_size: got 6; expected a multiple of 4, the devices, such as 4 or 8",
        "devices: got 0; expected at least 1",
        "devices: got 5; expected at most 4, the devices there are; XLA_FLAGS=--xla_force_host_platform_device_count=5 "
        "divides a CPU into as many",
    ]
