"""Meshes: the devices that arrays are divided over, in rows and tables of which each side has a name."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from minijaxnet._checks import check_count

DATA, REPLICA, MODEL = "data", "replica", "model"


def data_mesh(devices: int | Sequence[Any] | None = None, *, replicas: int = 1, shards: int = 1) -> Mesh:
    """Devices in a row, over which batches are divided; or in a table, with replicas or shards of weights beside it.

    Args:
        devices: how many of those there are, as many of each process, or which; all if None.
        replicas: groups of devices, each of which has batches of its own.
        shards: parts into which ``shard_state`` divides weights; replicas times shards divides the number of devices.

    Returns:
        A mesh with the axis ``"data"``, before it ``"replica"`` if there are several groups, after it ``"model"`` if
        there are several shards.

    Raises:
        ValueError: more devices than there are, none, or a number that the replicas or shards do not divide.
        TypeError: a number that is no int.

    Example:
        >>> dict(data_mesh(1).shape)
        {'data': 1}
    """
    there = jax.devices()
    if devices is None:
        chosen = there
    elif isinstance(devices, Sequence):
        chosen = list(devices)
    else:
        count = check_count("devices", devices, least=1)
        if count > len(there):
            hint = f"XLA_FLAGS=--xla_force_host_platform_device_count={count}"
            more = f"; {hint} divides a CPU into as many" if there[0].platform == "cpu" else ""
            raise ValueError(f"devices: got {count}; expected at most {len(there)}, the devices there are{more}")
        check_divides("devices", count, jax.process_count(), "the processes")
        of_each = count // jax.process_count()
        chosen = [device for process in range(jax.process_count()) for device in jax.local_devices(process)[:of_each]]
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
    """The mesh, seen to have the axis, and none on which the compiler may not choose placements.

    Raises:
        ValueError: it lacks the axis, or some of its axes are Explicit or Manual; ``jax.set_mesh`` has set another one.
    """
    if axis is not None and axis not in mesh.shape:
        raise ValueError(f"axis: got {axis!r}; expected one of the mesh, {', '.join(map(repr, mesh.shape))}")
    if set(mesh.axis_types) != {AxisType.Auto}:
        way = "as of data_mesh or by axis_types=(AxisType.Auto, ...)"
        raise ValueError(f"mesh: got the axes {_axes_of(mesh)}; expected Auto ones, {way}")
    present = jax.sharding.get_abstract_mesh()  # within a sweep its axis of replicas is Manual
    if not present.empty and (present.shape != mesh.shape or AxisType.Explicit in present.axis_types):
        raise ValueError(
            f"mesh: got another than jax.set_mesh set, {_axes_of(present)}; expected that one, or none set"
        )
    return mesh


def _axes_of(mesh: Mesh | AbstractMesh) -> str:
    kinds = zip(mesh.shape.items(), mesh.axis_types, strict=True)
    return ", ".join(f"{name!r} {length}, {kind.name}" for (name, length), kind in kinds)


def check_divides(name: str, count: int, by: int, what: str = "the devices", unit: str = "") -> None:
    """Say that so many are not divided by so many, and which numbers next to it are.

    >>> check_divides("batch_size", 10, 4)
    Traceback (most recent call last):
    ValueError: batch_size: got 10; expected a multiple of 4, the devices, such as 8 or 12
    """
    if count % by or not count:
        below, above = count // by * by, (count // by + 1) * by
        nearest = f"{below:,} or {above:,}" if below else f"{above:,}"
        raise ValueError(f"{name}: got {count:,}{unit}; expected a multiple of {by}, {what}, such as {nearest}")
