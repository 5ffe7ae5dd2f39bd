"""What the devices of a step exchange, counted by hand and in the program; and steps on several devices are timed."""

import os
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
from kits.eight import FLAGS
from kits.processes import LINE

from minijaxnet.bench import Collective, Communication, Roofline, StepCost, communication, limits

ALL_FOUR = ((0, 1, 2, 3),)


def counted(body):
    """The communication of a compiled program for four devices, by its text."""
    text = f"HloModule made, num_partitions=4\n\n{textwrap.dedent(body)}"
    return communication(SimpleNamespace(as_text=lambda: text))


def test_collectives_are_counted_as_often_as_they_are_called_and_once_where_they_are_started_first():
    found = counted("""
    %scatter (p: f32[8]) -> f32[2] {
      %p = f32[8]{0} parameter(0)
      ROOT %rs = f32[2]{0} reduce-scatter(%p), replica_groups=[1,4]<=[4], dimensions={0}, to_apply=%add
    }

    %small (p: f32[2]) -> f32[2] {
      %p = f32[2]{0} parameter(0)
      ROOT %r = f32[2]{0} all-reduce(%p), replica_groups={{0,1},{2,3}}, to_apply=%add
    }

    %large (p: f32[2]) -> f32[2] {
      %one = f32[2]{0} call(%p), to_apply=%small
      ROOT %two = f32[2]{0} fusion(%one), kind=kLoop, calls=%small
    }

    %condition (p: f32[2]) -> pred[] {
      ROOT %go = pred[] constant(true)
    }

    ENTRY %main (a: f32[8], b: bf16[7]) -> f32[2] {
      %a = f32[8]{0:T(8,128)} parameter(0)
      %b = bf16[7]{0} parameter(1)
      %sum = (f32[8]{0}, /*index=1*/bf16[7]{0}) all-reduce(%a, %b), replica_groups={{0,1,2,3}}, to_apply=%add
      %r = f32[8]{0:T(8,128)} all-reduce-start(%a), replica_groups={}, to_apply=%add
      %rd = f32[8]{0} all-reduce-done(%r)
      %g = (f32[8]{0}, f32[32]{0}) all-gather-start(%rd), replica_groups={{0,1,2,3}}, dimensions={0}
      %gd = f32[32]{0} all-gather-done(%g)
      %p = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%rd), source_target_pairs={{0,1},{1,0}}
      %pd = f32[8]{0} collective-permute-done(%p)
      %s = ((f32[8]{0}), f32[2]{0}, s32[]) async-start(%pd), calls=%scatter
      %u = ((f32[8]{0}), f32[2]{0}, s32[]) async-update(%s), calls=%scatter
      %sd = f32[2]{0} async-done(%u), calls=%scatter
      %w = f32[2]{0} while(%sd), condition=%condition, body=%small, backend_config={"known_trip_count":{"n":"5"}}
      ROOT %c = f32[2]{0} conditional(%k, %w, %w), branch_computations={%small, %large}
    }
    """)
    assert found.collectives == (
        Collective("all-gather", 1, 4 * 32, ALL_FOUR),
        Collective("all-reduce", 1, 4 * 8 + 2 * 7, ALL_FOUR),
        Collective("all-reduce", 1, 4 * 8, ALL_FOUR),
        Collective("all-reduce", 1 + 2, 4 * 2, ((0, 1), (2, 3))),  # one round of the loop, and the larger branch
        Collective("collective-permute", 1, 4 * 8, ((0, 1), (1, 0))),
        Collective("reduce-scatter", 1, 4 * 8, ALL_FOUR),
    )
    assert found.number == 8 and found.total_bytes == 4 * (32 + 8 + 8 + 6 + 8 + 8) + 14
    assert str(found).splitlines()[1] == "1 all-reduce over 4 devices, 46 bytes"
    assert str(found).splitlines()[3] == "3 all-reduces over 2 groups of 2 devices, 8 bytes each"
    assert sorted(note.split(":")[0] for note in found.notes) == ["conditional", "while"]


def test_the_cost_of_several_devices_says_so_and_is_refused_beside_the_roofline_of_one():
    exchanged = Communication((Collective("all-reduce", 1, 56, ((0, 1),)),))
    cost = StepCost({"float32": 10}, {}, 8, devices=2, communication=exchanged)
    assert "a step on 2 devices" in str(cost)
    assert str(cost).splitlines()[-1].split() == "1 all-reduce over 2 devices, bytes 56".split()
    with pytest.raises(ValueError, match="cost: got that of 2 devices; expected one"):
        limits(cost, 1e-3, Roofline("cpu", {"float32": 1e9}, {8: 1e9}, 1e-6))


FOUR = """
import contextlib, dataclasses, io, sys
import jax, jax.numpy as jnp, numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P
import minijaxnet as mjn
import minijaxnet.cli.bench as verb
from minijaxnet.bench import Interval, communication, roofline, step_cost
from minijaxnet.cli import main
from minijaxnet.parallel import data_mesh, on_mesh, replicate, shard_batch

# The difference of two blocks of a machine that is busy for a moment may not be positive.
fused_s, roofline._ARRAYS, roofline._SIDES = Interval(1e-6, 1e-6, 1e-6), (2**10,), (4,)
verb.time_step = lambda *args, **options: dataclasses.replace(mjn.time_step(*args, **options), fused_s=fused_s)

# The verb: a row for each number of devices, and one device among them. It divides the CPU itself.
with contextlib.redirect_stdout(io.StringIO()) as out:
    assert main(["bench", sys.argv[1], "--seconds", "0.001", "--devices", "4,2"]) == 0
rows = [line.split() for line in out.getvalue().partition("their bytes")[2].splitlines()[2:5]]
assert [(row[0], *row[-2:]) for row in rows] == [("1", "0", "0"), ("2", "1", "12"), ("4", "1", "12")], rows

# A step of an MLP: one all-reduce, of the gradient of each weight and of the loss.
mesh, sizes, everyone = data_mesh(4), (2, 3, 1), ((0, 1, 2, 3),)
network = mjn.mlp(sizes)
plain = mjn.objective(network, mjn.mean_squared_error)
hand = mjn.with_gradient(plain, mjn.mlp_gradient(sizes, activation=jax.nn.relu, loss=mjn.mean_squared_error))
params, batch = network.init(jax.random.key(0)), mjn.Batch(np.ones((8, 2), np.float32), np.ones((8, 1), np.float32))
there, divided = replicate(mesh, params), shard_batch(mesh, batch)
for objective in (plain, hand):
    descent = mjn.gradient_descent(objective, 0.1)
    cost, alone = (step_cost(descent.step, descent.init(p), b) for p, b in ((there, divided), (params, batch)))
    assert cost.communication.collectives == (("all-reduce", 1, 4 * (2 * 3 + 3 + 3 + 1) + 4, everyone),)
    assert cost.devices == 4 and alone.devices == 1 and not cost.notes and not alone.communication.collectives
    assert alone.matrix_flops == cost.matrix_flops, "the work of all of them together"

# Each kind, by the bytes of its operands, or for a gather of its result, on one device: a row of 8 floats.
def of(function, kind, payload, groups=everyone, out=P("data"), mesh=mesh, over="data"):
    mapped = jax.shard_map(function, mesh=mesh, in_specs=P(over), out_specs=out, check_vma=False)
    found = communication(jax.jit(mapped).lower(jnp.ones((4, 8))).compile())
    assert found.collectives == ((kind, 1, payload, groups),), found

of(lambda x: lax.all_gather(x, "data", tiled=True), "all-gather", 4 * 32, out=P())
of(lambda x: lax.psum_scatter(x, "data", scatter_dimension=1, tiled=True), "reduce-scatter", 4 * 8)
of(lambda x: lax.ppermute(x, "data", [(0, 1), (1, 2)]), "collective-permute", 4 * 8, ((0, 1), (1, 2)))
of(lambda x: lax.all_to_all(x, "data", 1, 1, tiled=True), "all-to-all", 4 * 8)
two = {"mesh": data_mesh(4, replicas=2), "over": ("replica", "data")}
of(lambda x: lax.psum(x, "data"), "all-reduce", 4 * 8, ((0, 1), (2, 3)), P("replica"), **two)
of(lambda x: lax.psum(x, "replica"), "all-reduce", 4 * 8, ((0, 2), (1, 3)), **two)

# Arrays that were placed, and a step that places for itself: nothing is compiled or moved while they are timed.
own = on_mesh(mesh, descent)
arms = {"one": descent, "four": mjn.Descent(lambda p, key=None: replicate(mesh, descent.init(p, key)), own.step)}
with jax.transfer_guard_device_to_device("disallow"):
    for arm, start, points in ((descent, there, divided), (own, params, batch)):
        assert mjn.time_step(arm, start, points, seconds=0.01).sound
    assert mjn.compare_steps(arms, params, batch, baseline="one", seconds=0.001).rounds >= 7
print("done")
"""


@pytest.mark.slow
def test_four_devices_are_counted_timed_and_compared(tmp_path):
    (tmp_path / "line.py").write_text(LINE)
    call = [sys.executable, "-c", FOUR, str(tmp_path / "line.py")]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": FLAGS["PYTHONWARNINGS"]}
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
