"""Where a data-parallel step stops scaling: a model from 1 to 4,096 devices, checked against compiled programs.

    python experiments/studies/scaling.py

Each device computes the gradient on its part of the batch, one all-reduce sums the gradients, and each takes the same
step::

    time(n) = compute / n + 2 * bytes * (n - 1) / n / bandwidth + start + 2 * (n - 1) * latency

for a batch that is divided (strong scaling); for as many points on each device (weak scaling) compute is not divided.
What was measured, what is published and what is a model only: ``scaling.md``.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import minijaxnet as mjn
from minijaxnet._tables import percent, significant, text_table
from minijaxnet.bench import step_cost, time_step
from minijaxnet.parallel import data_mesh, divide_cpu, replicate, shard_batch

DEVICES = tuple(2**k for k in range(13))
COUNTED = (1, 2, 4, 8)


class Workload(NamedTuple):
    """A network, how many points a step of one device sees, and a loss."""

    sizes: tuple[int, ...]
    points: int
    loss: Callable[..., Any]

    def parts(self, points: int) -> tuple[mjn.Descent, Any, mjn.Batch]:
        """The descent, its params, and so many random points."""
        network, draw = mjn.mlp(self.sizes), np.random.default_rng(0)
        x = draw.normal(size=(points, self.sizes[0])).astype(np.float32)
        if self.loss is mjn.softmax_cross_entropy:
            y: Any = draw.integers(0, self.sizes[-1], points).astype(np.int32)
        else:
            y = draw.normal(size=(points, self.sizes[-1])).astype(np.float32)
        descent = mjn.gradient_descent(mjn.objective(network, self.loss), 1e-4)
        return descent, network.init(jax.random.key(0)), mjn.Batch(x, y)

    @property
    def payload_bytes(self) -> int:
        """What the one all-reduce of a step sums: the gradient of each weight and bias, and the loss."""
        weights = sum((n_in + 1) * n_out for n_in, n_out in zip(self.sizes[:-1], self.sizes[1:], strict=True))
        return 4 * (weights + 1)


WORKLOADS = {
    "2-2-1, 4 points": Workload((2, 2, 1), 4, mjn.mean_squared_error),
    "64-128-10, 128 points": Workload((64, 128, 10), 128, mjn.softmax_cross_entropy),
    "1024-1024-1024-10, 256 points": Workload((1024, 1024, 1024, 10), 256, mjn.softmax_cross_entropy),
}


class Way(NamedTuple):
    """One way to sum over devices.

    Attributes:
        shape: "ring" or "tree".
        bandwidth: bytes a second that a device sends while it receives as many.
        latency_s: of each message.
        start_s: of the whole.
    """

    shape: str
    bandwidth: float
    latency_s: float
    start_s: float = 0.0

    def seconds(self, payload_bytes: int, devices: int) -> tuple[float, float]:
        """Seconds of an all-reduce by what limits them: bandwidth and latency.

        In a ring each device sends 1/n of the bytes to its neighbour, n - 1 times to sum and n - 1 times to distribute
        the sum. In a tree all bytes go up and down again, in pieces, by log2(n) messages each way.

        >>> Way("ring", 1e9, 1e-6).seconds(1_000_000, 4), Way("tree", 1e9, 1e-6).seconds(1_000_000, 4)
        ((0.0015, 6e-06), (0.002, 4e-06))
        """
        sent, ring = 2 * payload_bytes / self.bandwidth, self.shape == "ring"
        messages = 2 * (devices - 1) if ring else 2 * math.ceil(math.log2(devices))
        return sent * (devices - 1) / devices if ring else sent, self.start_s + messages * self.latency_s


class Link(NamedTuple):
    """What connects devices: the ways to sum over it, the most devices (0 for any), where the numbers are from."""

    ways: tuple[Way, ...]
    most: int
    source: str


_NCCL = "latencies and shares: NVIDIA/nccl at 01afd20, src/graph/tuning.cc"


def _by_nccl(bandwidth: float) -> tuple[Way, ...]:
    """The ways in which NCCL sums over a network of so many bytes a second.

    It sends with low latency and a quarter of the bandwidth ("LL"), or with all of it and more latency ("Simple").
    """
    tree = 0.9 * bandwidth
    return (
        Way("ring", bandwidth, 9.6e-6, 8.4e-6),
        Way("ring", bandwidth / 4, 2.7e-6, 3.6e-6),
        Way("tree", tree, 50e-6),
        Way("tree", tree / 3.8, 5.0e-6, 4.4e-6),
    )


LINKS = {  # published by their makers, not measured here
    "NVLink 4": Link(
        (Way("ring", 450e9, 3.4e-6, 8.4e-6), Way("ring", 450e9 / 4, 0.47e-6, 3.6e-6)),
        8,
        f"H100, 900 GB/s, half of it each way, in one server: NVIDIA, H100 data sheet; {_NCCL}",
    ),
    "InfiniBand NDR": Link(_by_nccl(50e9), 0, f"400 Gb/s: NVIDIA, ConnectX-7 user manual; {_NCCL}"),
    "100 GbE": Link(_by_nccl(12.5e9), 0, f"100 Gb/s: IEEE 802.3ba; {_NCCL}"),
    "TPU v5e ICI": Link(
        (Way("ring", 90e9, 1e-6),), 256, "one axis, both ways round, 1 us a hop: Austin et al., How to scale your model"
    ),
}


class Step(NamedTuple):
    """Seconds of a step by what limits them."""

    compute: float
    bandwidth: float
    latency: float

    @property
    def efficiency(self) -> float:
        """The share of n devices' time in which one device alone would work, too.

        >>> link = Link((Way("ring", 1.0, 0.0),), 0, "made up")
        >>> step_s(2.0, link, 1, 2, strong=True).efficiency  # 1 s of computing each, and 1 s of exchange
        0.5
        """
        return self.compute / sum(self)


def all_reduce_s(link: Link, payload_bytes: int, devices: int) -> tuple[float, float]:
    """Seconds of an all-reduce by bandwidth and by latency, in the fastest way."""
    return min((way.seconds(payload_bytes, devices) for way in link.ways), key=sum) if devices > 1 else (0.0, 0.0)


def step_s(compute_s: float, link: Link, payload_bytes: int, devices: int, *, strong: bool) -> Step:
    """The model of a step on so many devices: see the module."""
    return Step(compute_s / devices if strong else compute_s, *all_reduce_s(link, payload_bytes, devices))


def stops_at(compute_s: float, link: Link, payload_bytes: int, *, strong: bool) -> tuple[int, str] | None:
    """The first number of devices with an efficiency below a half, and what limits it there; or None."""
    for devices in DEVICES:
        if link.most and devices > link.most:
            return None
        step = step_s(compute_s, link, payload_bytes, devices, strong=strong)
        if step.efficiency < 0.5:
            return devices, "bandwidth" if step.bandwidth > step.latency else "latency"
    return None


def count(name: str, work: Workload, numbers: Sequence[int]) -> list[tuple[str, ...]]:
    """Rows of the collectives in the compiled steps, each as the model has them.

    Raises:
        ValueError: a program has other collectives or bytes than the model.
    """
    descent, params, batch = work.parts(max(work.points, max(numbers)))
    rows = []
    for devices in numbers:
        mesh = data_mesh(devices)
        cost = step_cost(descent.step, descent.init(replicate(mesh, params)), shard_batch(mesh, batch))
        found = [(one.kind, one.times, one.payload_bytes, one.groups) for one in cost.communication.collectives]
        model = [("all-reduce", 1, work.payload_bytes, (tuple(range(devices)),))] if devices > 1 else []
        if found != model:
            raise ValueError(f"{name} on {devices} devices: the program has {found}, the model {model}")
        rows.append((name, str(devices), str(len(found)), f"{cost.communication.total_bytes:,}", "as the model"))
    return rows


def efficiencies(work: Workload, compute_s: float, *, strong: bool) -> str:
    """A table of the efficiency over numbers of devices."""

    def cell(link: Link, devices: int) -> str:
        if link.most and devices > link.most:
            return "-"
        return percent(step_s(compute_s, link, work.payload_bytes, devices, strong=strong).efficiency)

    rows = [(f"{devices:,}", *(cell(link, devices) for link in LINKS.values())) for devices in DEVICES]
    what = "one batch, divided (strong)" if strong else "as many points on each device (weak)"
    return text_table(("devices", *LINKS), rows, title=f"efficiency, {what}")


def stops(computes: dict[str, float]) -> str:
    """A table of where each workload stops scaling, and what limits it there."""

    def cell(name: str, link: Link, strong: bool) -> str:
        found = stops_at(computes[name], link, WORKLOADS[name].payload_bytes, strong=strong)
        return f"not to {link.most or DEVICES[-1]:,}" if found is None else f"{found[0]:,}: {found[1]}"

    rows = [
        (f"{name}, {'strong' if strong else 'weak'}", *(cell(name, link, strong) for link in LINKS.values()))
        for name in computes
        for strong in (True, False)
    ]
    return text_table(("below 50 % from", *LINKS), rows)


def exchanges() -> str:
    """A table of the all-reduce alone."""

    def cell(link: Link, work: Workload, devices: int) -> str:
        if link.most and devices > link.most:
            return "-"
        return significant(1e6 * sum(all_reduce_s(link, work.payload_bytes, devices)), 3)

    rows = [
        (f"{name}, {devices:,} devices", *(cell(link, work, devices) for link in LINKS.values()))
        for name, work in WORKLOADS.items()
        for devices in (8, 256, 4096)
    ]
    title = "the all-reduce, us: with less to compute on a device than this, more than half of a step is waiting"
    return text_table(("", *LINKS), rows, title=title)


def main() -> None:
    """Count, measure, and print the model's tables; exits with 1 if programs are not as the model has them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each step is timed")
    options = parser.parse_args()
    divide_cpu(max(COUNTED))
    try:
        rows = [row for name, work in WORKLOADS.items() for row in count(name, work, COUNTED)]
    except ValueError as error:
        sys.exit(f"scaling: the model is wrong: {error}")
    print(text_table(("compiled step", "devices", "collectives", "bytes", ""), rows) + "\n", flush=True)
    rows = [
        (
            name,
            way.shape,
            *map(significant, (way.bandwidth / 1e9, 1e6 * way.latency_s, 1e6 * way.start_s)),
            link.most or "any",
        )
        for name, link in LINKS.items()
        for way in link.ways
    ]
    print(text_table(("published, not measured", "way", "GB/s", "us a message", "us once", "devices"), rows))
    print("\n".join(f"{name}: {link.source}" for name, link in LINKS.items()) + "\n", flush=True)
    computes = {}
    for name, work in WORKLOADS.items():
        computes[name] = time_step(*work.parts(work.points), seconds=options.seconds).fused_s.median
        took = significant(1e6 * computes[name])
        print(f"{name}: {work.payload_bytes:,} bytes, {took} us on one device, measured here\n")
        for strong in (True, False):
            print(efficiencies(work, computes[name], strong=strong) + "\n", flush=True)
    print(f"{stops(computes)}\n\n{exchanges()}")


if __name__ == "__main__":
    main()
