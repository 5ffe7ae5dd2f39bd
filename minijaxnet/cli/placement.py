"""The devices of a run, the placement of its arrays on them, and the agreement of its processes."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from minijaxnet._types import PyTree
from minijaxnet.cli.errors import UsageError
from minijaxnet.cli.flags import EACH_START, PlaceFlags
from minijaxnet.cli.request import Request
from minijaxnet.experiment import loads_its_share
from minijaxnet.parallel import replicate, shard_batch
from minijaxnet.parallel.mesh import DATA, check_divides, data_mesh
from minijaxnet.parallel.processes import all_gather_texts, broadcast
from minijaxnet.run import code
from minijaxnet.run.folder import environment
from minijaxnet.streams import is_read

# The settings that each process may have differently.
_OWN = {"runs", "processes", *EACH_START}


def agree(request: Request, data_sha256: str) -> str:
    """See that all processes have the same request; the SHA-256 of the data of all.

    Raises:
        UsageError: some of them have other settings, other code or other data than the first.
    """
    if jax.process_count() == 1:
        return data_sha256
    digests = all_gather_texts(data_sha256)
    settings = {name: value for name, value in dataclasses.asdict(request.flags).items() if name not in _OWN}
    settings |= request.init | request.optimizer | {f"data_{name}": value for name, value in request.data.items()}
    surroundings = environment()
    settings |= {f"{name}'s version": version for name, version in surroundings["versions"].items()}
    settings |= surroundings["settings"]
    settings |= {"verb": request.verb, "experiment": request.experiment.name}
    if not loads_its_share(request.experiment):
        settings["data_sha256"] = data_sha256
    own = {"settings": settings, "code": code.sources(request.file, request.experiment.files)}
    first = broadcast(own)
    lines = [
        f"{name}: got {settings.get(name)!r}; expected {first['settings'].get(name)!r}, as in process 0"
        for name in {**first["settings"], **settings}
        if settings.get(name) != first["settings"].get(name)
    ]
    titles = ("in process 0", f"in process {jax.process_index()}")
    lines += filter(None, [code.difference(first["code"], own["code"], titles)])
    differences = enumerate(all_gather_texts("\n".join(lines)))
    if found := [f"process {process}:\n{text}" for process, text in differences if text]:
        raise UsageError("\n".join(["the processes were not started alike; expected the same of each", *found]))
    return " ".join(digests) if loads_its_share(request.experiment) else data_sha256


def mesh_of(flags: PlaceFlags) -> Mesh | None:
    """The devices to run on; None for a single one."""
    one = (None, 1) if jax.device_count() > 1 else (None, 1, "all")
    if jax.process_count() == 1 and flags.devices in one:
        return None
    return data_mesh(None if flags.devices in (None, "all") else flags.devices)


def own_mesh(flags: PlaceFlags) -> Mesh | None:
    """This process's share of the devices that a sweep is divided over; None for a single one."""
    count, own = jax.process_count(), jax.local_devices()
    if count == 1:
        return mesh_of(flags)
    own = own if flags.devices == "all" else own[: int(flags.devices or 1) // count]
    return None if len(own) < 2 else Mesh(np.array(own), (DATA,))


def described(mesh: Mesh | None) -> str:
    """The devices in words.

    >>> described(None)
    'cpu'
    """
    kind = jax.devices()[0].device_kind
    if mesh is None:
        return kind
    shared = ", which share its cores" if jax.devices()[0].platform == "cpu" else ""
    count = jax.process_count()
    return f"{mesh.size} devices{f' in {count} processes' if count > 1 else ''} ({kind}{shared})"


def placed_data(
    mesh: Mesh | None, train: PyTree, held_out: dict[str, Any], batch_size: int | None, *, shares: bool
) -> tuple[Any, dict[str, Any]]:
    """The data on the devices: the points divided, or for minibatches all of them on each device.

    Args:
        mesh: the devices; None for a single one.
        train: the training data, or the function that reads its batches.
        held_out: the other batches, by their names.
        batch_size: points in a minibatch; None for all.
        shares: whether each process loads its own share of the points, which is divided for minibatches, too.

    Raises:
        ValueError: points or a batch size that the devices do not divide; a batch size of batches that are read.
    """
    if is_read(train) and batch_size is not None:
        got = "got a function that reads batches, and batch_size, too"
        raise ValueError(f"data: {got}; expected an array or a tree of them")
    if mesh is None or is_read(train):
        return train, held_out if mesh is None else replicate(mesh, held_out)
    if batch_size is not None:
        check_divides("batch_size", batch_size, mesh.size)
    if shares:
        return shard_batch(mesh, train), {name: shard_batch(mesh, batch) for name, batch in held_out.items()}
    if batch_size is not None:
        return replicate(mesh, train), replicate(mesh, held_out)
    points = len(jax.tree.leaves(train)[0])
    check_divides("batch", points, mesh.size, unit=" points")
    share = points // jax.process_count()
    first = share * jax.process_index()
    return shard_batch(mesh, jax.tree.map(lambda leaf: leaf[first : first + share], train)), replicate(mesh, held_out)
