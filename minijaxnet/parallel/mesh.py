"""Meshes: devices in an array with named axes, over which data is divided."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from minijaxnet._checks import check_count

DATA, REPLICA, MODEL = "data", "replica", "model"


def data_mesh(devices: int | Sequence[Any] | None = None, *, replicas: int = 1, shards: int = 1) -> Mesh:
    """Make a mesh over whose axis ``"data"`` batches are divided, with further axes for replicas and shards of weights.

    Args:
        devices: the number of devices, the same from each process, or a list of devices; all if None.
        replicas: groups of devices, each with its own batches.
        shards: parts into which ``shard_state`` divides weights; replicas times shards divides the number of devices.

    Returns:
        A mesh with the axes ``"replica"`` (if there are several replicas), ``"data"``, and ``"model"`` (if there are
        several shards).

    Raises:
        ValueError: there are no devices, fewer than ``devices``, or a number that replicas or shards do not divide.
        TypeError: a number is not an int.

    Example:
        >>> dict(data_mesh(1).shape)
        {'data': 1}
    """
    available = jax.devices()
    if devices is None:
        chosen = available
    elif isinstance(devices, Sequence):
        chosen = list(devices)
    else:
        count = check_count("devices", devices, least=1)
        if count > len(available):
            hint = f"XLA_FLAGS=--xla_force_host_platform_device_count={count}"
            more = f"; {hint} divides a CPU into as many" if available[0].platform == "cpu" else ""
            raise ValueError(f"devices: got {count}; expected at most {len(available)}, the devices there are{more}")
        check_divides("devices", count, jax.process_count(), "the processes")
        per_process = count // jax.process_count()
        chosen = [d for process in range(jax.process_count()) for d in jax.local_devices(process)[:per_process]]
    if not chosen:
        raise ValueError("devices: got none; expected at least one")
    groups = 1
    for name, number in (("replicas", replicas), ("shards", shards)):
        groups *= check_count(name, number, least=1)
        if len(chosen) % groups:
            whole = len(chosen) * number // groups
            among = " in each replica" if name == "shards" and replicas > 1 else ""
            raise ValueError(f"{name}: got {number}; expected a divisor of {whole}, the devices of the mesh{among}")
    sides = {REPLICA: replicas, DATA: len(chosen) // groups, MODEL: shards}
    names = tuple(name for name, side in sides.items() if name == DATA or side > 1)
    table = np.array(chosen).reshape([sides[name] for name in names])
    return Mesh(table, names, axis_types=(AxisType.Auto,) * len(names))


def check_mesh(mesh: Mesh, axis: str | None = None) -> Mesh:
    """Return the mesh if it has the axis, and the compiler may choose placements on all its axes.

    Raises:
        ValueError: it has no such axis; some of its axes are Explicit or Manual; ``jax.set_mesh`` has set another mesh.
    """
    if axis is not None and axis not in mesh.shape:
        raise ValueError(f"axis: got {axis!r}; expected one of the mesh, {', '.join(map(repr, mesh.shape))}")
    if set(mesh.axis_types) != {AxisType.Auto}:
        way = "as from data_mesh, or by axis_types=(AxisType.Auto, ...)"
        raise ValueError(f"mesh: got the axes {_axes_of(mesh)}; expected Auto ones, {way}")
    present = jax.sharding.get_abstract_mesh()  # within a sweep the replica axis is Manual
    if not present.empty and (present.shape != mesh.shape or AxisType.Explicit in present.axis_types):
        raise ValueError(
            f"mesh: got one that differs from that of jax.set_mesh, {_axes_of(present)}; expected that one, or none set"
        )
    return mesh


def _axes_of(mesh: Mesh | AbstractMesh) -> str:
    kinds = zip(mesh.shape.items(), mesh.axis_types, strict=True)
    return ", ".join(f"{name!r} {length}, {kind.name}" for (name, length), kind in kinds)


def check_divides(name: str, count: int, by: int, what: str = "the devices", unit: str = "") -> None:
    """Check that ``count`` is a positive multiple of ``by``; the error has the nearest multiples.

    >>> check_divides("batch_size", 10, 4)
    Traceback (most recent call last):
    ValueError: batch_size: got 10; expected a multiple of 4, the devices, such as 8 or 12
    """
    if count % by or not count:
        below, above = count // by * by, (count // by + 1) * by
        nearest = f"{below:,} or {above:,}" if below else f"{above:,}"
        raise ValueError(f"{name}: got {count:,}{unit}; expected a multiple of {by}, {what}, such as {nearest}")
