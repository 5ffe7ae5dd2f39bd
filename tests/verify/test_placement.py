"""Gradients of programs over several devices: each way to forget the others is found, and named; right rules pass."""

import os
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest
from kits.eight import FLAGS

import minijaxnet as mjn
from minijaxnet.verify.placement import _Copy, _how, _worst

SETTING = """
import jax, jax.numpy as jnp, numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec as P
import minijaxnet as mjn
from minijaxnet.parallel import data_mesh, replicate, shard_batch

mesh, draw = data_mesh(4), np.random.default_rng(0)
x, y = (draw.normal(size=shape).astype(np.float32) for shape in ((8, 2), (8,)))
params = {"w": jnp.asarray([0.5, -1.5])}
there, batch = replicate(mesh, params), shard_batch(mesh, (x, y))

def loss(p, b):
    return jnp.mean((b[0] @ p["w"] - b[1]) ** 2)

def check_text(report, state, *words):
    verdict = report.verdicts["placement"]
    assert verdict.state == state, report
    text = " ".join(str(report).split())
    for word in words:
        assert word in text, (word, text)

def inside(factor):
    '''A loss whose custom rule is inside what each device does.'''
    @jax.custom_vjp
    def f(p, b):
        return loss(p, b)
    def backward(kept, c):
        p, b = kept
        return {"w": factor * b[0].T @ (b[0] @ p["w"] - b[1]) * c}, jax.tree.map(jnp.zeros_like, b)
    f.defvjp(lambda p, b: (f(p, b), (p, b)), backward)
    return jax.shard_map(
        lambda p, b: lax.pmean(f(lax.pcast(p, "data", to="varying"), b), "data"),
        mesh=mesh, in_specs=(P(), P("data")), out_specs=P(),
    )
"""

USUAL = """
from minijaxnet.verify import grad_checker, placement

programs, compiled = [], placement.compile_all
placement.compile_all = lambda lowered: programs.append(compiled(lowered)) or programs[-1]

def each_device(p, b, which):
    own = jax.grad(loss)(p, b)["w"]
    averaged, added = lax.pmean(own, "data"), lax.psum(own, "data")
    first = jnp.where(lax.axis_index("data") == 0, averaged, own)
    return {"w": jnp.stack([averaged, own, first, added])[which]}

rule = jax.shard_map(each_device, mesh=mesh, in_specs=(P(), P("data"), P()), out_specs=P(), check_vma=False)
points = {i: (there, batch, replicate(mesh, jnp.int32(i))) for i in range(4)}
check = grad_checker(lambda p, b, which: loss(p, b), rule, points[0])
right, forgotten, unequal, added = map(check, points.values())
# The rule and autodiff on divided arguments, and autodiff on one device.
places = [jax.tree.leaves(program.input_shardings)[-2] for program in programs[0]]
assert [len(place.device_set) for place in places] == [4, 4, 1] and not places[1].is_fully_replicated, places
assert ["all-reduce" in program.as_text() for program in programs[0]] == [True, True, False]
assert right.ok and right.to_dict()["verdicts"]["placement"]["state"] == "pass", right
check_text(right, "pass", "over 4 devices both equal autodiff on one device")

# The sum of a device's own points, and nobody else's: not even the copies agree.
assert not forgotten.ok
check_text(forgotten, "fail", "over 4 devices the gradient by hand is wrong in ['w'][", "a pmean was forgotten")
assert forgotten.worst.path == "['w']" and forgotten.verdicts["algebra"].state == "fail"

# Right on the first device, which is the one that is looked at: nothing but the placement tells.
assert not unequal.ok and unequal.verdicts["algebra"].state == "pass"
check_text(unequal, "fail", "the devices' copies differ", "is wrong in ['w'][", "with the arguments on one device")
assert "on device 0" not in unequal.verdicts["placement"].reason
check_text(added, "fail", "summed over 4 devices (psum) where a mean is meant")
print("done")
"""

MORE = """
# A custom rule within what each device does is taken out and found wrong.
wrong = mjn.check_vjp(inside(2.0), (there, batch), argnums=0)
assert not wrong.ok and wrong.verdicts["algebra"].state == "fail"
check_text(wrong, "fail", "the gradient by hand is wrong in ", "twice what it should be")

def row_by_row(p, b):
    def rule(p, b):
        def add(total, row):
            return total + 2 * (row[0] @ p["w"] - row[1]) * row[0], None
        total, _ = lax.scan(add, lax.pcast(jnp.zeros(2), "data", to="varying"), b)
        return {"w": lax.psum(total, "data") / 8}
    return jax.shard_map(rule, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())(p, b)

report = mjn.check_grad(loss, row_by_row, (there, batch))
assert report.ok, report
check_text(report, "pass")

report = mjn.check_vjp(inside(1.0), (there, batch), argnums=0)
assert report.ok, report
check_text(report, "pass")

# Arguments that are divided themselves, integers and keys among them.
parts = {"w": jax.device_put(jnp.arange(8.0), NamedSharding(mesh, P("data")))}
report = mjn.check_grad(lambda p: jnp.sum(p["w"] ** 3), lambda p: {"w": 3 * p["w"] ** 2}, (parts,))
assert report.ok, report
check_text(report, "pass")
classes = shard_batch(mesh, (x, np.arange(8) % 2))

def drawn(p, b, key):
    return jnp.mean((b[0] @ p["w"] - b[1]) ** 2) + jnp.sum(jax.random.normal(key, (2,)) * p["w"])

report = mjn.check_grad(drawn, jax.grad(drawn), (there, classes, replicate(mesh, jax.random.key(1))))
assert report.ok, report
check_text(report, "pass")
print("done")
"""


@pytest.mark.parametrize("code", [USUAL, pytest.param(MORE, marks=pytest.mark.slow)], ids=["usual", "more"])
def test_each_slip_over_devices_is_found_and_right_rules_pass(code):
    flags = FLAGS | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    call = [sys.executable, "-c", textwrap.dedent(SETTING + code)]
    done = subprocess.run(call, env=os.environ | flags, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_arguments_on_one_device_have_no_verdict_on_placement():
    report = mjn.check_grad(lambda w: jnp.sum(w**2), lambda w: 2 * w, (jnp.arange(3.0),))
    assert report.ok and "placement" not in report.verdicts and "placement" not in str(report)


TRUTH, TOLERANCE = np.array([1.0, -2.0, 4.0, 0.0]), np.full(4, 1e-12)
WHOLE = (slice(None),)


def copies(*parts):
    return [_Copy(device, WHOLE, np.asarray(part, np.float64)) for device, part in enumerate(parts)]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([4 * TRUTH] * 4, "summed over 4 devices (psum) where a mean is meant"),
        ([2 * TRUTH] * 4, "summed over 2 devices (psum) where a mean is meant"),
        ([TRUTH / 4] * 4, "a mean over 4 devices (pmean) where a sum is meant"),
        ([TRUTH + shift for shift in (-1, 0, 0.5, 0.5)], "a pmean was forgotten"),
        ([TRUTH * share for share in (0.1, 0.2, 0.3, 0.4)], "the sum over 4 devices is right: a psum was forgotten"),
        ([TRUTH * share for share in (0.1, 0.9, 0.1, 0.9)], "the sum over 2 devices is right: a psum was forgotten"),
        ([TRUTH, TRUTH, TRUTH, 3 + TRUTH], "the devices' copies differ"),
        ([TRUTH + 1] * 4, ""),
        ([TRUTH * np.nan] * 4, ""),
    ],
)
def test_what_was_done_with_the_parts_is_said(parts, words):
    found = _how(copies(*parts), TRUTH, TOLERANCE)
    assert words in found and bool(words) == bool(found)


def test_the_worst_element_is_that_of_the_whole_on_the_device_that_has_it():
    halves = [_Copy(k, (slice(2 * k, 2 * k + 2),), TRUTH[2 * k : 2 * k + 2].copy()) for k in (0, 1)]
    assert _worst(halves, TRUTH, TOLERANCE) is None
    halves[1].values[1] = 5e-12
    assert _worst(halves, TRUTH, TOLERANCE) == (1, (3,), 5e-12, 0.0)
    # Where autodiff itself is not finite there is nothing to be held against.
    unknown = np.where(np.arange(4) == 0, np.nan, TRUTH)
    fault = _worst(halves, unknown, TOLERANCE)
    assert fault is not None and fault.place == (3,)
