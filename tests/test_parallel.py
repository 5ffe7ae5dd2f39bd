"""Several devices and several processes: the same descent, to rounding, with one all-reduce a step."""

import os
import socket
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from minijaxnet.parallel import data_mesh, initialize, replicate, shard_batch

EIGHT = """
import re, sys
import jax, numpy as np
import minijaxnet as mjn
from minijaxnet.parallel import data_mesh, replicate, shard_batch

steps, numbers = int(sys.argv[1]), [int(number) for number in sys.argv[2:]]
collectives = r"(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\\("
train, _ = mjn.digits()
train = jax.tree.map(lambda leaf: leaf[:1024], train)
network = mjn.mlp((64, 32, 10))
by_hand = mjn.mlp_gradient((64, 32, 10), activation=jax.nn.relu, loss=mjn.softmax_cross_entropy)
plain = mjn.objective(network, mjn.softmax_cross_entropy)
for name, objective in {"autodiff": plain, "by hand": mjn.with_gradient(plain, by_hand)}.items():
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

TWO = """
import sys
import jax, numpy as np
import minijaxnet as mjn
from minijaxnet.parallel import data_mesh, initialize, replicate, shard_batch

rank, address = int(sys.argv[1]), sys.argv[2]
initialize(address, num_processes=2, process_id=rank, timeout_s=30)
points = mjn.Batch(np.linspace(-1, 1, 64).astype(np.float32), np.linspace(-2, 4, 64).astype(np.float32))
objective = lambda p, b: ((p["slope"] * b.x + p["offset"] - b.y) ** 2).mean()
descent = mjn.gradient_descent(objective, 0.1)
start = descent.init({"slope": np.float32(0), "offset": np.float32(0)})
mesh = data_mesh()
mine = jax.tree.map(lambda leaf: leaf[32 * rank : 32 * rank + 32], points)
run = jax.jit(lambda state, batch: mjn.descend(descent, state, batch, steps=100))
end, trace = run(replicate(mesh, start), shard_batch(mesh, mine))
alone, expected = mjn.descend(descent, start, points, steps=100)
np.testing.assert_allclose(np.asarray(trace.loss), expected.loss, rtol=1e-5, atol=1e-7)
print("the same", jax.process_count(), len(mesh.devices))
"""


def start(code, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ends(process):
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, err


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.parametrize(
    ("steps", "numbers"),
    [(30, (4,)), pytest.param(1_000, (1, 2, 4, 8), marks=pytest.mark.sweep)],
    ids=["short", "long"],
)
def test_several_devices_give_the_losses_of_one_with_one_all_reduce_a_step(steps, numbers):
    code, out, err = ends(start(EIGHT, steps, *numbers, XLA_FLAGS="--xla_force_host_platform_device_count=8"))
    assert (code, out) == (0, "the same\n"), err


def test_two_processes_each_with_half_of_the_data_descend_as_one():
    address = f"127.0.0.1:{free_port()}"
    both = [start(TWO, rank, address) for rank in (0, 1)]
    for code, out, err in map(ends, both):
        assert (code, out.splitlines()[-1:]) == (0, ["the same 2 2"]), err


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
    code, out, err = ends(start(code, XLA_FLAGS="--xla_force_host_platform_device_count=8"))
    assert code == 0, err
    assert out.splitlines() == [
        "batch: got 0 points; expected a multiple of 4, such as 4",
        "batch: got 3 points; expected a multiple of 4, such as 4",
        "batch: got 1,438 points; expected a multiple of 4, such as 1,436 or 1,440",
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


def test_an_absent_coordinator_is_told_in_time():
    code = f"""
    from minijaxnet.parallel import initialize
    initialize("127.0.0.1:{free_port()}", num_processes=2, process_id=1, timeout_s=2)
    """
    code, _, err = ends(start(code))
    assert code != 0 and ("could not join 127.0.0.1" in err or "DEADLINE_EXCEEDED" in err)


def test_a_part_of_a_computations_address_is_refused():
    with pytest.raises(ValueError, match="process_id: got None"):
        initialize("127.0.0.1:1", num_processes=2)
    with pytest.raises(ValueError, match="process_id: got 2; expected 0 to 1"):
        initialize("127.0.0.1:1", num_processes=2, process_id=2)
