"""What the devices of a step say to one another, counted by hand and in the program; and their times.

Nothing here asserts on a time: that there is one, and that nothing else was compiled or moved meanwhile, is enough.
"""

import os
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
from kits.eight import FLAGS
from kits.processes import LINE

from minijaxnet.bench.communication import Collective, Communication, communication
from minijaxnet.bench.cost import StepCost
from minijaxnet.bench.roofline import Roofline, limits


def counted(body):
    """What is counted in a compiled program for four devices, of which only the text is asked for."""
    text = f"HloModule made, num_partitions=4\n\n{textwrap.dedent(body)}"
    return communication(SimpleNamespace(as_text=lambda: text))


def test_operands_that_are_reduced_together_are_one_collective_with_all_their_bytes():
    found = counted("""
    ENTRY %main (a: f32[3,5], b: bf16[7]) -> (f32[3,5], bf16[7]) {
      %a = f32[3,5]{1,0} parameter(0)
      %b = bf16[7]{0} parameter(1)
      ROOT %sum = (f32[3,5]{1,0}, /*index=1*/bf16[7]{0}) all-reduce(%a, %b), replica_groups={{0,1,2,3}}, to_apply=%add
    }
    """)
    assert found == Communication((Collective("all-reduce", 1, 4 * 15 + 2 * 7, ((0, 1, 2, 3),)),))
    assert str(found) == "1 all-reduce over 4 devices, 74 bytes"


def test_what_is_started_and_waited_for_counts_once_and_its_operands_once():
    found = counted("""
    %scatter (p: f32[8]) -> f32[2] {
      %p = f32[8]{0} parameter(0)
      ROOT %rs = f32[2]{0} reduce-scatter(%p), replica_groups=[1,4]<=[4], dimensions={0}, to_apply=%add
    }

    ENTRY %main (a: f32[8]) -> f32[8] {
      %a = f32[8]{0:T(8,128)} parameter(0)
      %r = f32[8]{0:T(8,128)} all-reduce-start(%a), replica_groups={}, to_apply=%add
      %rd = f32[8]{0} all-reduce-done(%r)
      %g = (f32[8]{0}, f32[32]{0}) all-gather-start(%rd), replica_groups={{0,1,2,3}}, dimensions={0}
      %gd = f32[32]{0} all-gather-done(%g)
      %p = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%rd), source_target_pairs={{0,1},{1,0}}
      %pd = f32[8]{0} collective-permute-done(%p)
      %s = ((f32[8]{0}), f32[2]{0}, s32[]) async-start(%pd), calls=%scatter
      %u = ((f32[8]{0}), f32[2]{0}, s32[]) async-update(%s), calls=%scatter
      ROOT %sd = f32[2]{0} async-done(%u), calls=%scatter
    }
    """)
    all_four = ((0, 1, 2, 3),)
    assert found.collectives == (
        Collective("all-gather", 1, 4 * 32, all_four),
        Collective("all-reduce", 1, 4 * 8, all_four),
        Collective("collective-permute", 1, 4 * 8, ((0, 1), (1, 0))),
        Collective("reduce-scatter", 1, 4 * 8, all_four),
    )
    assert not found.notes and found.number == 4 and found.total_bytes == 4 * (32 + 8 + 8 + 8)


def test_a_loop_counts_as_one_round_a_conditional_as_its_dearest_branch_a_call_as_often_as_it_is_made():
    found = counted("""
    %small (p: f32[2]) -> f32[2] {
      %p = f32[2]{0} parameter(0)
      ROOT %r = f32[2]{0} all-reduce(%p), replica_groups={{0,1},{2,3}}, to_apply=%add
    }

    %large (p: f32[2]) -> f32[2] {
      %p = f32[2]{0} parameter(0)
      %one = f32[2]{0} call(%p), to_apply=%small
      %two = f32[2]{0} call(%one), to_apply=%small
      ROOT %three = f32[2]{0} fusion(%two), kind=kLoop, calls=%small
    }

    %condition (p: f32[2]) -> pred[] {
      ROOT %go = pred[] constant(true)
    }

    ENTRY %main (a: f32[2], k: pred[]) -> f32[2] {
      %a = f32[2]{0} parameter(0)
      %k = pred[] parameter(1)
      %w = f32[2]{0} while(%a), condition=%condition, body=%small, backend_config={"known_trip_count":{"n":"5"}}
      ROOT %c = f32[2]{0} conditional(%k, %w, %w), branch_computations={%small, %large}
    }
    """)
    assert found.collectives == (Collective("all-reduce", 1 + 3, 8, ((0, 1), (2, 3))),)
    assert sorted(found.notes) == [
        "conditional: communication counted as its dearest branch",
        "while: communication counted as a single round",
    ]
    assert str(found).splitlines()[0] == "4 all-reduces over 2 groups of 2 devices, 8 bytes each"


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("{{0,2},{1,3}}", ((0, 2), (1, 3))),
        ("{}", ((0, 1, 2, 3),)),
        ("[2,2]<=[4]", ((0, 1), (2, 3))),
        ("[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("mesh['a'=2,'b'=2] {'b'}", ((0, 1), (2, 3))),
        ("mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
        ("mesh['axis_0'=4,'axis_1'=1] {'axis_0'}", ((0, 1, 2, 3),)),
        ("mesh['a'=4] {'a':(1)2}", ((0, 2), (1, 3))),
        ("mesh['a'=4] {'a':(2)2}", ((0, 1), (2, 3))),
        ("mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}", ()),
    ],
)
def test_groups_of_devices_in_each_form_that_xla_writes(written, groups):
    found = counted(f"""
    ENTRY %main (a: pred[3]) -> pred[3] {{
      %a = pred[3]{{0}} parameter(0)
      ROOT %r = pred[3]{{0}} all-reduce(%a), channel_id=1, replica_groups={written}, to_apply=%or
    }}
    """)
    assert found.collectives == (Collective("all-reduce", 1, 3, groups),)


def test_the_cost_of_several_devices_says_so_and_is_no_matter_for_the_roofline_of_one():
    said = Communication((Collective("all-reduce", 1, 56, ((0, 1),)),))
    cost = StepCost({"float32": 10}, {}, 0, 8, 8, None, None, True, (), 2, said)
    assert "a step on 2 devices is made of" in str(cost)
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
from minijaxnet.bench.blocks import placed, start_state
from minijaxnet.cli import main
from minijaxnet.parallel import data_mesh, on_mesh, replicate, shard_batch

# A slope of two blocks of a machine that is busy for a moment may be no time at all.
fused_s, roofline._ARRAYS, roofline._SIDES = Interval(1e-6, 1e-6, 1e-6), (2**10,), (4,)
verb.time_step = lambda *args, **options: dataclasses.replace(mjn.time_step(*args, **options), fused_s=fused_s)

# The verb: a row a number, the smallest number in it whether asked for or not. It divides the CPU itself.
def bench(*flags):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["bench", sys.argv[1], "--seconds", "0.001", *flags])
    return code, out.getvalue(), err.getvalue()

code, out, err = bench("--devices", "4,2")
assert code == 0, err
lines = out.splitlines()
[heading] = [k for k, line in enumerate(lines) if line.startswith("devices")]
rows = [line.split() for line in lines[heading + 2 : heading + 5]]
assert [row[0] for row in rows] == ["1", "2", "4"], rows
assert [row[-2:] for row in rows] == [["0", "0"], ["1", "12"], ["1", "12"]], rows  # slopes of two weights, and a loss
assert "no speedup is to be expected here, and none is claimed" in out
for text, words in {
    "3": "batch: got 64 points; expected a multiple of 3, the devices, such as 63 or 66",
    "8": "devices: got 8; expected at most 4",
}.items():
    code, out, err = bench("--devices", text)
    assert code == 2 and words in err and "latency" not in out, (text, err)
# A step of an MLP: one all-reduce, of the slope of each weight and of the loss.
mesh, sizes = data_mesh(4), (2, 3, 1)
network = mjn.mlp(sizes)
plain = mjn.objective(network, mjn.mean_squared_error)
hand = mjn.with_gradient(plain, mjn.mlp_gradient(sizes, activation=jax.nn.relu, loss=mjn.mean_squared_error))
params, batch = network.init(jax.random.key(0)), mjn.Batch(np.ones((8, 2), np.float32), np.ones((8, 1), np.float32))
there, divided = replicate(mesh, params), shard_batch(mesh, batch)
everyone = ((0, 1, 2, 3),)
for objective in (plain, hand):
    descent = mjn.gradient_descent(objective, 0.1)
    cost = step_cost(descent.step, descent.init(there), divided)
    [one] = cost.communication.collectives
    assert one == ("all-reduce", 1, 4 * (2 * 3 + 3 + 3 + 1) + 4, everyone), one
    assert cost.devices == 4 and cost.exact, cost.notes
alone = step_cost(descent.step, descent.init(params), batch)
assert alone.devices == 1 and not alone.communication.collectives
assert alone.matrix_flops == cost.matrix_flops, "the work of all of them together"

# Each kind, by what goes into it, or for a gather comes out, on one device: a row of 8 floats.
def of(function, out=P("data"), mesh=mesh, over="data"):
    mapped = jax.shard_map(function, mesh=mesh, in_specs=P(over), out_specs=out, check_vma=False)
    return communication(jax.jit(mapped).lower(jnp.ones((4, 8))).compile()).collectives

assert of(lambda x: lax.all_gather(x, "data", tiled=True), P()) == (("all-gather", 1, 4 * 32, everyone),)
scatter = of(lambda x: lax.psum_scatter(x, "data", scatter_dimension=1, tiled=True))
assert scatter == (("reduce-scatter", 1, 4 * 8, everyone),), scatter
[permute] = of(lambda x: lax.ppermute(x, "data", [(0, 1), (1, 2)]))
assert permute == ("collective-permute", 1, 4 * 8, ((0, 1), (1, 2))), permute
[exchange] = of(lambda x: lax.all_to_all(x, "data", 1, 1, tiled=True))
assert exchange == ("all-to-all", 1, 4 * 8, everyone), exchange
table = data_mesh(4, replicas=2)
rows = of(lambda x: lax.psum(x, "data"), mesh=table, over=("replica", "data"), out=P("replica"))
assert rows == (("all-reduce", 1, 4 * 8, ((0, 1), (2, 3))),), rows
columns = of(lambda x: lax.psum(x, "replica"), mesh=table, over=("replica", "data"))
assert columns == (("all-reduce", 1, 4 * 8, ((0, 2), (1, 3))),), columns
loop = jax.shard_map(
    lambda x: lax.fori_loop(0, 5, lambda _, x: lax.psum(jnp.sin(x), "data") / 4, x),
    mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False,
)
found = communication(jax.jit(loop).lower(jnp.ones((4, 8))).compile())
assert found.number == 1 and found.notes == ("while: communication counted as a single round",), found

# Times: of what was placed, and of a step that places for itself. Nothing is compiled meanwhile, nothing moved.
own = on_mesh(mesh, descent)
with jax.transfer_guard_device_to_device("disallow"):
    for arm, start, points in ((descent, there, divided), (own, params, batch)):
        timing = mjn.time_step(arm, start, points, seconds=0.01)
        assert timing.sound and timing.rounds >= 1
state = start_state(own, params, None)
program = jax.jit(own.step).lower(state, batch).compile()
state, points = placed(program, state, batch)
assert points.x.sharding.is_equivalent_to(divided.x.sharding, 2) and len(state.step.sharding.device_set) == 4
with jax.transfer_guard("disallow"):
    jax.block_until_ready(program(state, points))
arms = {"one": descent, "four": mjn.Descent(lambda p, key=None: replicate(mesh, descent.init(p, key)), own.step)}
with jax.transfer_guard_device_to_device("disallow"):
    comparison = mjn.compare_steps(arms, params, batch, baseline="one", seconds=0.001)
assert comparison.rounds >= 7 and 0 < comparison.ratios["four"].low

print("all told")
"""


@pytest.mark.slow
def test_four_devices_are_counted_timed_and_compared(tmp_path):
    (tmp_path / "line.py").write_text(LINE)
    call = [sys.executable, "-c", FOUR, str(tmp_path / "line.py")]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": FLAGS["PYTHONWARNINGS"]}
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "all told\n"), done.stderr
