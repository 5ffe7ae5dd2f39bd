"""The devices of a sweep, the size of its blocks, and the program that runs them."""

import contextlib
import functools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from minijaxnet._checks import check_count
from minijaxnet._jaxpr import non_threefry_keys
from minijaxnet._programs import JitOf
from minijaxnet._trees import named_leaves, side_effects
from minijaxnet.parallel.mesh import REPLICA, check_mesh

# The share of the free memory for the calls; the rest is for results that are copied to the host.
_SHARE = 0.4

# The most replicas of a block on a CPU. More of the smallest networks overflow its caches (2-2-1: 13 ns per step with
# 1,000, 17 ns with 2,000). For larger networks blocks of a hundred and of a thousand take the same time per replica.
_MOST_ON_CPU = 1_000


class Workers(NamedTuple):
    """The devices that run blocks.

    Attributes:
        mesh: of the devices; None for the default device.
        axis: of the mesh, over which replicas are divided.
        rows: blocks that one call runs, one on each device or row of devices.
        calls: how many calls run at once.
        most: the most replicas in a block.
        sharing: how many devices share one memory.
        device: one of the devices.
    """

    mesh: Mesh | None
    axis: str
    rows: int
    calls: int
    most: float
    sharing: int
    device: Any

    def put(self, values: dict[str, Any]) -> dict[str, Any]:
        """Put the values of a call's replicas on the devices that run them."""
        if self.mesh is None:
            return values
        return jax.device_put(values, NamedSharding(self.mesh, PartitionSpec(self.axis)))


def workers_of(mesh: Mesh | None) -> Workers:
    """The workers on the devices of a mesh, or on the default device."""
    if mesh is None:
        device, *others = jnp.zeros(()).devices()  # there are others if jax.set_mesh has set a mesh; each runs the same
        calls, most = _workers(device)
        return Workers(None, "", 1, calls, most, 1 + len(others) if device.platform == "cpu" else 1, device)
    own = jax.process_index()
    if others := sum(device.process_index != own for device in check_mesh(mesh).devices.flat):
        raise ValueError(f"mesh: got {others} of {mesh.size} devices of other processes; expected only this one's")
    axis, device = REPLICA if REPLICA in mesh.shape else mesh.axis_names[0], mesh.devices.flat[0]
    cores, most = _workers(device)
    rows = mesh.shape[axis]
    # Two calls whose devices communicate could wait for each other forever, so then only one call runs at once.
    calls = max(1, cores // rows) if mesh.size == rows else 1
    sharing = mesh.size if device.platform == "cpu" else 1
    return Workers(mesh, axis, rows, calls, max(1, most * cores / max(cores, rows)), sharing, device)


def _workers(device: Any) -> tuple[int, float]:
    """How many calls run at once on a device, and the most replicas in a block.

    A CPU runs one call per core, since most swept networks are too small to use two cores.
    """
    if device.platform != "cpu":
        return 1, math.inf
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores, _MOST_ON_CPU


@functools.partial(JitOf, static_argnums=(1, 2))
def replicas(run: Callable[..., Any], values: dict[str, Any], mesh: Mesh | None = None, axis: str = "") -> Any:
    """The outputs of the run for all values; on a mesh, the replicas are divided over the devices along an axis."""

    def one(values: dict[str, Any]) -> Any:
        output = run(**values)
        for name, leaf in named_leaves(output).items():
            if not isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float):
                raise TypeError(f"run: it returns {name}, {type(leaf).__name__}; expected arrays, which can be stacked")
        return output

    block = jax.vmap(one)
    if mesh is None:
        return block(values)
    # Without shard_map, the loop's flag whether any replica still runs would be shared by all devices, which is an
    # all-reduce per step. No output is replicated over the devices, so check_vma has nothing to check.
    over = PartitionSpec(axis)
    divided = jax.shard_map(block, mesh=mesh, in_specs=over, out_specs=over, axis_names={axis}, check_vma=False)
    return divided(values)


def program_of(
    run: Callable[..., Any],
    count: int,
    block: int | None,
    workers: Workers,
    values_of: Callable[[Sequence[int], int], dict[str, Any]],
) -> tuple[int, Callable[[dict[str, Any]], Any]]:
    """The size of a block and the compiled program of a call.

    By default each worker gets an equal share of the replicas, in as few blocks as cache and memory allow.
    """

    def compiled(size: int) -> tuple[Any, int]:
        values = workers.put(values_of([0] * workers.rows, size))
        traced = replicas.trace(run, values, workers.mesh, workers.axis)
        if effects := side_effects(traced):
            raise ValueError(f"run: it has side effects ({effects}); expected a pure function")
        if keys := non_threefry_keys(traced.jaxpr):
            kinds = ", ".join(sorted(str(key).removeprefix("key<").rstrip(">") for key in keys))
            raise ValueError(
                f"run: got keys of {kinds}, which draw other numbers under vmap than alone; "
                "expected jax.random.key(seed, impl='threefry2x32'), JAX_DEFAULT_PRNG_IMPL=threefry2x32"
            )
        program = traced.lower().compile()
        plan = program.memory_analysis()  # of one device
        if plan is None:
            return program, 0
        one = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
        return program, one * workers.sharing * min(workers.calls, -(-count // (size * workers.rows)))

    at_once = workers.rows * workers.calls
    shares = at_once * max(1, math.ceil(count / (at_once * workers.most)))  # the same number for each worker
    size = -(-count // shares) if block is None else min(count, check_count("block", block, least=1))
    program, needed = compiled(size)
    free = _free_bytes(workers.device)
    if block is None and needed > _SHARE * free:
        size = max(1, int(size * _SHARE * free / needed))
        program, needed = compiled(size)
    if needed > free:
        what = "replicas one by one need" if size == 1 else f"blocks of {size} replicas need"
        raise ValueError(f"block: {what} {needed:,} bytes; expected at most {free:,}, the memory that is free")
    return size, program


def _free_bytes(device: Any) -> float:
    """The free memory of a device, for a CPU that of the machine; infinite if unknown."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return math.inf
