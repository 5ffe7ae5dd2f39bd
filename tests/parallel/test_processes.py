"""Several processes: what they tell one another, one descent in all of them, and one who writes."""

import socket

import jax
import pytest
from kits.processes import ended, processes, python

from minijaxnet.cli.launcher import free_port
from minijaxnet.parallel import initialize
from minijaxnet.parallel.processes import is_lost

GATHERED = """
import sys
import jax, jax.numpy as jnp, ml_dtypes, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from minijaxnet.parallel import data_mesh, initialize, replicate, shard_batch
from minijaxnet.parallel.processes import (
    all_gather, all_gather_texts, broadcast, broadcast_arrays, is_first, local_share, to_host
)

address, count, rank = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
initialize(address, num_processes=count, process_id=rank, timeout_s=60)
assert all_gather([rank, 7]).tolist() == [[0, 7], [1, 7]]
assert all_gather_texts("é" * rank) == ["", "é"]
assert broadcast({"rank": rank}) == {"rank": 0} and is_first() == (rank == 0)

mesh = data_mesh()
tree = {
    "key": jax.random.key(rank), "wide": np.array([2**40 + rank]), "nan": np.float32([np.nan, -0.0, rank]),
    "narrow": jnp.full(3, rank + 0.5, jnp.bfloat16), "empty": np.zeros((0, 2)), "number": np.int8(rank),
}
zeros = np.zeros(2, np.float32)
like = tree | {"placed": replicate(mesh, zeros), "divided": shard_batch(mesh, zeros)}
tree |= {"placed": np.float32([1, rank]), "divided": np.float32([0, 1, 2, 3])}
got = broadcast_arrays(tree if rank == 0 else None, like)
assert (jax.random.key_data(got["key"]) == jax.random.key_data(jax.random.key(0))).all()
assert got["wide"].tolist() == [2**40] and got["wide"].dtype == np.int64 and got["number"] == 0
assert got["nan"].tobytes() == np.float32([np.nan, -0.0, 0]).tobytes()
assert got["narrow"].dtype == jnp.bfloat16 and got["narrow"].tolist() == [0.5] * 3 and got["empty"].shape == (0, 2)
assert got["placed"].sharding == like["placed"].sharding and got["placed"].addressable_data(0).tolist() == [1, 0]
assert got["divided"].sharding == like["divided"].sharding
assert local_share(got)["divided"].tolist() == [2 * rank, 2 * rank + 1.0]
assert to_host(got)["divided"].tolist() == [0, 1, 2, 3]

try:
    shard_batch(mesh, np.zeros(3 + rank))
    raise AssertionError
except ValueError as error:
    assert str(error) == "batch: got 3, 4 points in the processes; expected as many in each", error
print("gathered", flush=True)
all_gather([1])
if rank == 1:
    raise FileExistsError("mine alone")
while True:
    all_gather([1])
"""

FITTED = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
import minijaxnet as mjn
from minijaxnet.parallel import data_mesh, initialize, on_mesh, replicate, shard_batch
from minijaxnet.parallel.processes import to_host

address, folder = sys.argv[1], Path(sys.argv[4])
count, rank, steps = map(int, (*sys.argv[2:4], sys.argv[5]))
initialize(address, num_processes=count, process_id=rank, timeout_s=60)
train = jax.tree.map(lambda leaf: np.asarray(leaf[:1024]), mjn.digits()[0])
network = mjn.mlp((64, 32, 10))
objective = mjn.objective(network, mjn.softmax_cross_entropy)
share = 1024 // count
mine = jax.tree.map(lambda leaf: leaf[share * rank : share * (rank + 1)], train)
mesh, key = data_mesh(), jax.random.key(1)
batch, start_at = shard_batch(mesh, mine), network.init(jax.random.key(0))

def same(trace, expected, rows=slice(None)):
    if rank > 0:
        return
    # A mean of 1,024 terms is summed in other halves: an ulp or so a step, which a descent that contracts forgets.
    np.testing.assert_allclose(np.asarray(trace.loss), np.asarray(expected.loss)[rows], rtol=2e-5)

descent = mjn.gradient_descent(objective, 0.2)
run_dir = folder / "run"
if rank == 0:
    run_dir.mkdir()
placed = replicate(mesh, descent.init(start_at))
received = []
sink = mjn.Sink(received.append, received.append)
half = mjn.fit(descent, placed, batch, steps=steps // 2, run_dir=run_dir, log_every=10, sink=sink)
assert received == ([0, *half.rows] if rank == 0 else []), received
whole = mjn.fit(descent, placed, batch, steps=steps, run_dir=run_dir, log_every=10, resume=True)
assert half.first_step == 0 and whole.first_step == steps // 2
alone = mjn.descend(descent, descent.init(start_at), train, steps=steps)[1] if rank == 0 else None
same(half.trace, alone, slice(None, steps // 2))
same(whole.trace, alone, slice(steps // 2, None))
assert len(list(run_dir.rglob("*.safetensors"))) == 2 or rank > 0

# Minibatches of data that each process has whole.
size = {"batch_size": 32}
alone = mjn.descend_epochs(descent, descent.init(start_at), train, key, epochs=1, **size)[1] if rank == 0 else None
divided = on_mesh(mesh, descent)
same(mjn.fit(divided, placed, replicate(mesh, train), key=replicate(mesh, key), steps=32, **size).trace, alone)
# And of data of which each has its own share: the same points, which are exchanged.
same(mjn.fit(divided, placed, batch, key=replicate(mesh, key), steps=32, **size).trace, alone)
print("the same")
"""


def test_what_one_process_tells_all_of_them_know_and_an_exception_in_one_ends_all():
    (other, out, first), (raised, out_too, err) = ended(processes(GATHERED, 2))
    assert out.splitlines()[-1:] == out_too.splitlines()[-1:] == ["gathered"], first + err
    assert raised == 1 and "FileExistsError: mine alone" in err and other != 0


@pytest.mark.slow
def test_a_fit_over_processes_is_that_of_one_with_one_who_writes(tmp_path):
    for code, out, err in ended(processes(FITTED, 2, tmp_path, 300), timeout=600):
        assert (code, out.splitlines()[-1:]) == (0, ["the same"]), err


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer"), True),
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), True),
        (jax.errors.JaxRuntimeError("INTERNAL: during compilation"), False),
        (ValueError("empirical risk: got nan"), False),
        (ConnectionRefusedError("Gloo: Connection refused"), False),
    ],
)
def test_what_a_lost_process_leaves_is_told_from_ones_own_errors(error, lost, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert is_lost(error) == lost
    monkeypatch.setattr(jax, "process_count", lambda: 1)
    assert not is_lost(error)


@pytest.mark.slow
def test_the_first_that_waits_in_vain_for_the_others_ends():
    lines = """
    import sys
    from minijaxnet.parallel import initialize
    initialize(sys.argv[1], num_processes=2, process_id=0, timeout_s=2)
    """
    [(code, _, err)] = ended([python(lines, f"127.0.0.1:{free_port()}")])
    assert code == 2 and "not all 2 processes joined 127.0.0.1" in err


def test_who_waits_in_vain_for_the_first_is_told_in_time():
    port = free_port()
    words = f"coordinator: got 127.0.0.1:{port}, which did not answer within 0.2 s"
    with pytest.raises(ConnectionError, match=words):
        initialize(f"127.0.0.1:{port}", num_processes=2, process_id=1, timeout_s=0.2)


def test_a_port_that_is_taken_is_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConnectionError, match=f"coordinator: got port {port}, in use"):
            initialize(f"127.0.0.1:{port}", num_processes=2, process_id=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coordinator": "here:1"}, "process_id: got None"),
        ({"coordinator": "here:1", "process_id": 2}, "process_id: got 2; expected 0 to 1"),
        ({"coordinator": "here", "process_id": 0}, "coordinator: got 'here'; expected host:port"),
        ({"coordinator": "here:0", "process_id": 0}, "coordinator: got 'here:0'; expected host:port"),
    ],
)
def test_an_address_that_is_none_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        initialize(num_processes=2, **options)
