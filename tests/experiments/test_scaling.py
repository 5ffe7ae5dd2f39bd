"""The plan past this machine: the model by hand-computed numbers, and that it is held against compiled programs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import scaling
from kits.eight import FLAGS

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
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
    tree = Way("tree", 1e9, 1e-6)
    assert [round(1e6 * tree.seconds(0, n)[1]) for n in (2, 3, 4, 5, 1024)] == [2, 4, 4, 6, 20]


def test_a_divided_batch_stops_scaling_before_one_that_grows():
    step = scaling.step_s(1e-3, RING, 0, 4, strong=True)
    assert step == pytest.approx((0.25e-3, 0, 11e-6))
    assert scaling.efficiency(step) == pytest.approx(250 / 261)
    assert scaling.step_s(1e-3, RING, 0, 4, strong=False)[0] == 1e-3
    # Strong: 1000 / n us against 3 + 2 n: level between 16 and 32. Weak: 1000 us against 3 + 2 n, at 512.
    assert scaling.stops_at(1e-3, RING, 0, strong=True) == (32, "latency")
    assert scaling.stops_at(1e-3, RING, 0, strong=False) == (512, "latency")
    assert scaling.stops_at(1e-3, RING, 10**6, strong=False) == (2, "bandwidth")
    assert scaling.stops_at(1.0, RING, 0, strong=False) is None
    assert scaling.stops_at(1e-3, RING._replace(most=16), 0, strong=True) is None, "there are not so many"


def test_the_workloads_bytes_are_a_slope_for_each_weight_and_the_loss():
    found = {work.sizes: work.payload_bytes for work in scaling.WORKLOADS.values()}
    assert found[2, 2, 1] == 4 * (2 * 2 + 2 + 2 + 1 + 1)
    assert found[64, 128, 10] == 4 * (64 * 128 + 128 + 128 * 10 + 10 + 1)


def test_every_link_says_where_its_figures_are_from():
    assert all(link.source and link.ways for link in scaling.PUBLISHED.values())


COUNTED = """
import scaling

small = scaling.WORKLOADS["2-2-1, 4 points"]
print(scaling.count("small", small, (1, 2)))

class Other(scaling.Workload):
    payload_bytes = 40

# A mean over the batch within the loss is summed over devices by itself.
centred = small._replace(loss=lambda p, y: small.loss(p - p.mean(), y))

for wrong in WRONG:
    try:
        scaling.count("wrong", wrong, (2,))
        raise AssertionError
    except ValueError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["[Other((2, 3, 1), 4, small.loss)]", "[centred]"])
def test_programs_on_two_devices_say_what_the_model_has_them_say_and_another_model_is_refused(wrong):
    flags = FLAGS | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    call = [sys.executable, "-c", COUNTED.replace("WRONG", wrong)]
    environment = os.environ | flags
    done = subprocess.run(call, cwd=EXPERIMENTS, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows, refused = done.stdout.splitlines()
    assert rows == str([("small", "1", "0", "0", "as the model"), ("small", "2", "1", "40", "as the model")])
    if wrong == "[centred]":
        assert "wrong on 2 devices: the program has [('all-reduce', " in refused
        assert refused.endswith("], the model [('all-reduce', 1, 40, ((0, 1),))]") and refused.count("all-r") > 2
    else:
        assert "wrong: the model has 40 bytes" in refused
