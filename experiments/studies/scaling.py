"""Where a data-parallel step stops scaling: a model from 1 to 4,096 devices, checked against compiled programs.

    python experiments/studies/scaling.py

Each device finds the slope on its part of the batch, one all-reduce sums the slopes, and each takes the same step::

    time(n) = compute / n + 2 * bytes * (n - 1) / n / bandwidth + start + 2 * (n - 1) * latency

for a batch that is divided (strong scaling); for as many points on each device (weak scaling) compute is not divided.
What was measured, what is published and what is only on paper: ``scaling.md``.
"""

import argparse
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import minijaxnet as mjn
from minijaxnet._tables import percent, significant, text_table
from minijaxnet._trees import number_of
from minijaxnet.bench import step_cost, time_step
from minijaxnet.parallel import divide_cpu, initialize, replicate, shard_batch
from minijaxnet.parallel.mesh import data_mesh

DEVICES = tuple(2**k for k in range(13))
COUNTED = (1, 2, 4, 8)
SIZES = tuple(4**k for k in range(3, 12))  # bytes of the all-reduces that are measured, 64 to 4 Mi


class Workload(NamedTuple):
    """A network and how many points a step of one device sees; a loss of its outputs."""

    sizes: tuple[int, ...]
    points: int
    loss: Callable[..., Any]

    def parts(self, points: int) -> tuple[mjn.Descent, Any, mjn.Batch]:
        """The descent, its params, and so many points, drawn."""
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
        """What the model says a step's one all-reduce sums: a slope for each weight and bias, and the loss."""
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
        """Seconds of an all-reduce that go to bandwidth, and to latency.

        In a ring each device sends 1/n of the bytes to its neighbour, n - 1 times to sum and n - 1 times to hand on.
        In a tree all bytes go up and down again, in pieces, by log2(n) messages each way.

        >>> Way("ring", 1e9, 1e-6).seconds(1_000_000, 4), Way("tree", 1e9, 1e-6).seconds(1_000_000, 4)
        ((0.0015, 6e-06), (0.002, 4e-06))
        """
        sent, ring = 2 * payload_bytes / self.bandwidth, self.shape == "ring"
        messages = 2 * (devices - 1) if ring else 2 * math.ceil(math.log2(devices))
        return sent * (devices - 1) / devices if ring else sent, self.start_s + messages * self.latency_s


class Link(NamedTuple):
    """What lies between devices: ways to sum over it, the most devices (0 for any), where the figures are from."""

    ways: tuple[Way, ...]
    most: int
    source: str


_NCCL = "latencies and shares: NVIDIA/nccl at 01afd20, src/graph/tuning.cc"


# Published by those who make them, not measured here. NCCL sends with little latency and a quarter of the bandwidth
# ("LL"), or with all of it and more latency ("Simple").
def _by_nccl(bandwidth: float) -> tuple[Way, ...]:
    """The ways in which NCCL sums over a network of so many bytes a second."""
    tree = 0.9 * bandwidth
    return (
        Way("ring", bandwidth, 9.6e-6, 8.4e-6),
        Way("ring", bandwidth / 4, 2.7e-6, 3.6e-6),
        Way("tree", tree, 50e-6),
        Way("tree", tree / 3.8, 5.0e-6, 4.4e-6),
    )


PUBLISHED = {
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
    """Seconds of a step by what they go to."""

    compute: float
    bandwidth: float
    latency: float


def all_reduce_s(link: Link, payload_bytes: int, devices: int) -> tuple[float, float]:
    """Seconds of an all-reduce that go to bandwidth and to latency, in whichever way is the fastest."""
    return min((way.seconds(payload_bytes, devices) for way in link.ways), key=sum) if devices > 1 else (0.0, 0.0)


def step_s(compute_s: float, link: Link, payload_bytes: int, devices: int, *, strong: bool) -> Step:
    """The model of a step on so many devices: see the module."""
    return Step(compute_s / devices if strong else compute_s, *all_reduce_s(link, payload_bytes, devices))


def efficiency(step: Step) -> float:
    """The share of n devices' time that is spent as one device alone would spend it.

    >>> link = Link((Way("ring", 1.0, 0.0),), 0, "made up")
    >>> efficiency(step_s(2.0, link, 1, 2, strong=True))  # 1 s of computing each, and 1 s of exchange
    0.5
    """
    return step.compute / sum(step)


def stops_at(compute_s: float, link: Link, payload_bytes: int, *, strong: bool) -> tuple[int, str] | None:
    """The first number of devices with an efficiency below a half, and what most of the rest goes to; or None."""
    for devices in DEVICES:
        if link.most and devices > link.most:
            return None
        step = step_s(compute_s, link, payload_bytes, devices, strong=strong)
        if efficiency(step) < 0.5:
            return devices, "bandwidth" if step.bandwidth > step.latency else "latency"
    return None


def count(name: str, work: Workload, numbers: Sequence[int]) -> list[tuple[str, ...]]:
    """Rows of what the compiled steps say to one another, each as the model has it.

    Raises:
        ValueError: a program has other collectives or bytes than the model.
    """
    descent, params, batch = work.parts(max(work.points, max(numbers)))
    if 4 * (number_of(params) + 1) != work.payload_bytes:
        raise ValueError(f"{name}: the model has {work.payload_bytes:,} bytes; expected those of the params and a loss")
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


def all_reduce_times(mesh: Mesh, sizes: Sequence[int], rounds: int) -> dict[int, float]:
    """``{bytes: seconds of an all-reduce}``, medians of slopes of two compiled loops; sizes in turn in each round."""
    everywhere = jax.sharding.NamedSharding(mesh, P())

    def repeat(x: jax.Array, times: jax.Array) -> jax.Array:
        return lax.fori_loop(0, times, lambda _, x: lax.pmean(x, "data"), x)

    loop = jax.jit(jax.shard_map(repeat, mesh=mesh, in_specs=(P(), P()), out_specs=P(), check_vma=False))

    def placed(value: Any) -> jax.Array:
        return jax.make_array_from_callback(value.shape, everywhere, lambda index: value[index])

    def seconds(x: jax.Array, times: int) -> float:
        number = placed(np.int32(times))
        start = time.perf_counter()
        jax.block_until_ready(loop(x, number))
        return time.perf_counter() - start

    inputs = {size: placed(np.ones(size // 4, np.float32)) for size in sizes}
    often = {}
    for size, x in inputs.items():
        seconds(x, 1)  # compiles
        # Every process has to take as many rounds: what each finds for itself may differ, so it is the bytes that say.
        often[size] = max(4, 100 // (1 + size // 4096))
    found: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size, x in inputs.items():
            few, many = seconds(x, often[size]), seconds(x, 3 * often[size])
            found[size].append((many - few) / (2 * often[size]))
    return {size: float(np.median(values)) for size, values in found.items()}


def fitted(times: dict[int, float], devices: int, source: str) -> Link:
    """The ring's latency and bandwidth that come nearest to measured all-reduces, in proportion to each.

    >>> ring = {size: 6e-6 + 1.5 * size / 1e9 for size in (4, 4_000, 4_000_000)}
    >>> [way] = fitted(ring, 4, "made up").ways
    >>> round(way.bandwidth), round(1e9 * way.latency_s)
    (1000000000, 1000)
    """
    sizes, seconds = np.array(list(times)), np.maximum(list(times.values()), 1e-9)
    columns = np.stack([np.full(len(sizes), 2.0 * (devices - 1)), 2 * (devices - 1) / devices * sizes], axis=1)
    scale = np.linalg.norm(columns / seconds[:, None], axis=0)
    (latency, per_byte), *_ = np.linalg.lstsq(columns / seconds[:, None] / scale, np.ones(len(sizes)), rcond=None)
    return Link((Way("ring", float(scale[1] / per_byte), float(latency / scale[0])),), 0, source)


def gloo_times(rounds: int) -> dict[int, float]:
    """The same between two processes of this machine."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    call = [sys.executable, __file__, "--rounds", str(rounds), "--address", address, "--rank"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    both = [subprocess.Popen([*call, str(rank)], env=environment, stdout=subprocess.PIPE, text=True) for rank in (0, 1)]
    out, *_ = (process.communicate(timeout=600)[0] for process in both)
    if any(process.returncode for process in both):
        raise RuntimeError("gloo: one of two processes failed; its words are above")
    return {int(size): seconds for size, seconds in json.loads(out.splitlines()[-1]).items()}


def show_measured(times: dict[str, dict[int, float]]) -> None:
    """A table of measured all-reduces."""
    sizes = next(iter(times.values()))
    rows = [(f"{size:,}", *(significant(1e6 * found[size]) for found in times.values())) for size in sizes]
    print(text_table(("bytes", *times), rows, title="all-reduce, measured here, us (medians)") + "\n", flush=True)


def show_links(links: dict[str, Link]) -> None:
    """A table of the constants, and whether they were measured or published."""
    rows = [
        (
            name,
            way.shape,
            significant(way.bandwidth / 1e9),
            significant(1e6 * way.latency_s),
            significant(1e6 * way.start_s),
            f"{link.most:,}" if link.most else "any",
            "published" if name in PUBLISHED else "measured",
        )
        for name, link in links.items()
        for way in link.ways
    ]
    print(text_table(("", "way", "GB/s", "us a message", "us once", "devices", ""), rows))
    print("\n".join(f"{name}: {link.source}" for name, link in links.items()) + "\n", flush=True)


def show_model(name: str, work: Workload, compute_s: float, links: dict[str, Link]) -> None:
    """Tables of the efficiency over numbers of devices, strong and weak."""
    print(f"{name}: {work.payload_bytes:,} bytes, {significant(1e6 * compute_s)} us on one device, measured here\n")
    for kind in ("strong", "weak"):
        rows = []
        for devices in DEVICES:
            cells = [
                "-"
                if link.most and devices > link.most
                else percent(efficiency(step_s(compute_s, link, work.payload_bytes, devices, strong=kind == "strong")))
                for link in links.values()
            ]
            rows.append((f"{devices:,}", *cells))
        what = "one batch, divided (strong)" if kind == "strong" else "as many points on each device (weak)"
        print(text_table(("devices", *links), rows, title=f"efficiency, {what}") + "\n", flush=True)


def show_stops(computes: dict[str, float], links: dict[str, Link]) -> None:
    """A table of where each stops scaling, and what binds it there."""

    def cell(name: str, link: Link, strong: bool) -> str:
        found = stops_at(computes[name], link, WORKLOADS[name].payload_bytes, strong=strong)
        return f"not to {link.most or DEVICES[-1]:,}" if found is None else f"{found[0]:,}: {found[1]}"

    rows = [
        (f"{name}, {kind}", *(cell(name, link, kind == "strong") for link in links.values()))
        for name in computes
        for kind in ("strong", "weak")
    ]
    print(text_table(("below 50 % from", *links), rows))
    exchange = [
        (f"{name}, {devices:,} devices", *(_exchange(link, WORKLOADS[name], devices) for link in links.values()))
        for name in computes
        for devices in (8, 256, 4096)
    ]
    title = "\nthe all-reduce, us: with less to compute on a device than this, more than half of a step is waiting"
    print(text_table(("", *links), exchange, title=title))


def _exchange(link: Link, work: Workload, devices: int) -> str:
    if link.most and devices > link.most:
        return "-"
    return significant(1e6 * sum(all_reduce_s(link, work.payload_bytes, devices)), 3)


def main() -> None:
    """Count, measure, and print the model's tables; exits with 1 if programs are not as the model has them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="how often each all-reduce is timed")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each step is timed")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.rank is not None:
        initialize(flags.address, num_processes=2, process_id=flags.rank)
        print(json.dumps(all_reduce_times(data_mesh(), SIZES, flags.rounds)))
        return

    divide_cpu(max(COUNTED))
    try:
        rows = [row for name, work in WORKLOADS.items() for row in count(name, work, COUNTED)]
    except ValueError as error:
        sys.exit(f"scaling: the model is wrong: {error}")
    print(text_table(("compiled step", "devices", "collectives", "bytes", ""), rows) + "\n", flush=True)

    times = {f"{n} devices, one process": all_reduce_times(data_mesh(n), SIZES, flags.rounds) for n in COUNTED[1:]}
    times["2 processes (gloo)"] = gloo_times(flags.rounds)
    show_measured(times)
    names = {"fake devices": (f"{max(COUNTED)} devices, one process", max(COUNTED)), "gloo": ("2 processes (gloo)", 2)}
    links = {name: fitted(times[arm], n, f"fitted to {arm}, above") for name, (arm, n) in names.items()} | PUBLISHED
    show_links(links)

    computes = {}
    for name, work in WORKLOADS.items():
        computes[name] = time_step(*work.parts(work.points), seconds=flags.seconds).fused_s.median
        show_model(name, work, computes[name], links)
    show_stops(computes, links)


if __name__ == "__main__":
    main()
