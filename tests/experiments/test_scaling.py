"""The model of scaling: its numbers by hand, and that it is checked against compiled programs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import scaling
from kits.eight import FLAGS

Way, Link = scaling.Way, scaling.Link
RING = Link((Way("ring", 1e9, 1e-6, 5e-6),), 0, "made up")
BOTH = Link((Way("ring", 1e9, 1e-6), Way("tree", 0.5e9, 1e-6)), 0, "made up")


def test_a_ring_sends_nearly_twice_the_bytes_and_its_messages_grow_with_the_devices():
    assert scaling.all_reduce_s(RING, 1_000, 1) == (0, 0)
    for devices in (2, 3, 8, 4096):
        bandwidth, latency = scaling.all_reduce_s(RING, 1_000_000, devices)
        assert bandwidth == pytest.approx(2e-3 * (devices - 1) / devices)
        assert latency == pytest.approx(5e-6 + 2e-6 * (devices - 1))


def test_the_fastest_way_is_taken_a_tree_where_latency_counts_a_ring_where_bytes_do():
    assert scaling.all_reduce_s(BOTH, 4, 1024) == pytest.approx((16e-9, 20e-6))
    assert scaling.all_reduce_s(BOTH, 10**9, 1024) == pytest.approx((2 * 1023 / 1024, 2 * 1023e-6))


def test_a_divided_batch_stops_scaling_before_one_that_grows():
    step = scaling.step_s(1e-3, RING, 0, 4, strong=True)
    assert step == pytest.approx((0.25e-3, 0, 11e-6))
    assert step.efficiency == pytest.approx(250 / 261)
    assert scaling.step_s(1e-3, RING, 0, 4, strong=False)[0] == 1e-3
    # Strong: 1000 / n us against 3 + 2 n: level between 16 and 32. Weak: 1000 us against 3 + 2 n, at 512.
    assert scaling.stops_at(1e-3, RING, 0, strong=True) == (32, "latency")
    assert scaling.stops_at(1e-3, RING, 0, strong=False) == (512, "latency")
    assert scaling.stops_at(1e-3, RING, 10**6, strong=False) == (2, "bandwidth")
    assert scaling.stops_at(1.0, RING, 0, strong=False) is None
    assert scaling.stops_at(1e-3, RING._replace(most=16), 0, strong=True) is None, "there are not so many"


def test_the_tables_of_the_page_are_the_models():
    computes = dict(zip(scaling.WORKLOADS, (0.06973e-6, 157.5e-6, 2.721e-2), strict=True))
    name, work = list(scaling.WORKLOADS.items())[-1]
    page = Path(scaling.__file__).with_suffix(".md").read_text(encoding="utf-8")
    for strong in (True, False):
        assert scaling.efficiencies(work, computes[name], strong=strong) in page
    assert scaling.stops(computes) in page
    assert scaling.exchanges() in page


COUNTED = """
import scaling

small = scaling.WORKLOADS["2-2-1, 4 points"]
print(scaling.count("small", small, (1, 2)))
# A mean over the batch within the loss is summed over devices by itself.
centred = small._replace(loss=lambda p, y: small.loss(p - p.mean(), y))
try:
    scaling.count("wrong", centred, (2,))
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_programs_on_two_devices_have_the_models_collectives_and_another_model_is_refused():
    flags = FLAGS | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    call = [sys.executable, "-c", COUNTED]
    folder = Path(scaling.__file__).parent
    done = subprocess.run(call, cwd=folder, env=os.environ | flags, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows, refused = done.stdout.splitlines()
    assert rows == str([("small", "1", "0", "0", "as the model"), ("small", "2", "1", "40", "as the model")])
    assert "wrong on 2 devices: the program has [('all-reduce', " in refused
    assert refused.endswith("], the model [('all-reduce', 1, 40, ((0, 1),))]") and refused.count("all-r") > 2
