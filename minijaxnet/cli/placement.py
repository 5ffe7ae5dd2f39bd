"""Over how many devices and in how many processes a run goes, and where its arrays lie."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from minijaxnet._machine import choose_deterministic
from minijaxnet.cli.errors import UsageError
from minijaxnet.cli.flags import EACH_START, PlaceFlags
from minijaxnet.cli.launcher import launch
from minijaxnet.cli.request import Request
from minijaxnet.descent import Descent, DescentState
from minijaxnet.experiment import loads_its_share
from minijaxnet.parallel import divide_cpu, initialize, on_mesh, replicate, shard_batch
from minijaxnet.parallel.mesh import DATA, check_divides, data_mesh
from minijaxnet.parallel.processes import all_gather, all_gather_texts, broadcast, broadcast_arrays
from minijaxnet.run import code
from minijaxnet.run.folder import environment
from minijaxnet.streams import is_read

# What may be another in each process.
_OWN = {"runs", "processes", *EACH_START}


def launched(verb: str, arguments: Sequence[str], flags: PlaceFlags) -> int | None:
    """Run a verb in processes of its own, if the flags say so: the exit code; None if this process is to run it."""
    for name in ("processes", "heartbeat_seconds"):
        if (value := getattr(flags, name)) < 1:
            raise UsageError(f"{name}: got {value}; expected at least 1")
    if flags.processes in (1, flags.num_processes):  # this process is one of them
        return None
    if flags.coordinator is not None:
        raise UsageError(f"processes: got {flags.processes}, and a coordinator; expected one of the two")
    return launch([verb, *arguments], flags.processes)


def join(flags: PlaceFlags) -> None:
    """Take this process's place among the others, before anything asks JAX for a device.

    Raises:
        UsageError: devices that the processes do not divide, or another number of them in each.
    """
    if flags.deterministic:
        choose_deterministic()
    count = flags.num_processes or 1
    if isinstance(flags.devices, int):
        if flags.devices % count:
            raise UsageError(f"devices: got {flags.devices}; expected a multiple of {count}, the processes")
        divide_cpu(flags.devices // count)
    if flags.coordinator is None:
        return
    address = None if flags.coordinator == "auto" else flags.coordinator
    initialize(
        address,
        num_processes=flags.num_processes,
        process_id=flags.process_id,
        timeout_s=max(60, 2 * flags.heartbeat_seconds),  # who is started again may have noticed sooner than the others
        heartbeat_s=flags.heartbeat_seconds,
    )
    each = [len(jax.local_devices(process)) for process in range(jax.process_count())]
    if len(set(each)) > 1:
        raise UsageError(f"devices: got {', '.join(map(str, each))} in the processes; expected as many in each")
    all_gather([0])  # the first time they wait for one another but for half a minute: now, not when each has its data


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


def divided(mesh: Mesh | None, descent: Descent) -> Descent:
    """The descent, with each batch divided over the devices."""
    return descent if mesh is None else on_mesh(mesh, descent)


def everywhere(mesh: Mesh | None, tree: Any) -> Any:
    """Arrays of which each process has the same, on each device."""
    return tree if mesh is None else replicate(mesh, tree)


def placed_start(mesh: Mesh | None, start: DescentState) -> DescentState:
    """Where all processes start: the first one's start, for others may have rounded otherwise."""
    return start if mesh is None else replicate(mesh, broadcast_arrays(start, start))


def placed_data(
    mesh: Mesh | None, request: Request, train: Any, held_out: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The data where the descent runs: the points divided, or for minibatches all of them on each device.

    A process that loads its own share of the points has no others: then these are divided for minibatches, too.

    Raises:
        ValueError: points or a batch size that the devices do not divide; a batch size of batches that are read.
    """
    if is_read(train) and request.flags.batch_size is not None:
        got = "got a function that reads batches, and batch_size, too"
        raise ValueError(f"data: {got}; expected an array or a tree of them")
    if mesh is None or is_read(train):
        return train, held_out if mesh is None else replicate(mesh, held_out)
    size = request.flags.batch_size
    if size is not None:
        check_divides("batch_size", size, mesh.size)
    if loads_its_share(request.experiment):
        return shard_batch(mesh, train), {name: shard_batch(mesh, batch) for name, batch in held_out.items()}
    if size is not None:
        return replicate(mesh, train), replicate(mesh, held_out)
    points = len(jax.tree.leaves(train)[0])
    check_divides("batch", points, mesh.size, unit=" points")
    share = points // jax.process_count()
    first = share * jax.process_index()
    return shard_batch(mesh, jax.tree.map(lambda leaf: leaf[first : first + share], train)), replicate(mesh, held_out)
