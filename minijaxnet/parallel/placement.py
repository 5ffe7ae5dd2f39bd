"""Placement of arrays on several devices, in one process or in several. The step itself does not change.

A batch is divided over the devices of a mesh, parameters are on each of them, and the compiler does the rest: each
device computes the gradient on its points, one all-reduce sums the gradients, and each takes the same step. ::

    mesh = data_mesh()
    state, trace = descend(descent, replicate(mesh, descent.init(params)), shard_batch(mesh, batch), steps=1_000)

The mean over the points is summed in another order than on one device, so losses agree to rounding, not to the bit.

Weights that do not fit on one device are divided by ``shard_state(mesh, state)``, on ``data_mesh(shards=4)``. Many
descents at once are divided by replicas: ``sweep(run, axes, mesh=mesh)``.

Axes are ``Auto``: the compiler chooses the placement of intermediate results. With ``Explicit`` axes, as from
``jax.make_mesh``, each product over the batch in the user's functions would have to state the placement of its result.
"""

import atexit
import contextlib
import math
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from minijaxnet._checks import check_count
from minijaxnet._trees import is_keys, named_leaves
from minijaxnet._types import PyTree
from minijaxnet.descent import Descent, DescentState, Step, StepInfo, is_ready
from minijaxnet.parallel.mesh import DATA, MODEL, check_divides, check_mesh
from minijaxnet.parallel.processes import all_gather, leave

# How long a finished process waits for the others; a dead one is found by its heartbeat.
_DAY_S = 86_400


def shard_batch(mesh: Mesh, batch: PyTree, *, axis: str = DATA) -> Any:
    """Divide a batch over the devices of a mesh, in order, with the same number of points on each.

    A number of points that cannot be divided is an error. It is not padded, since a padded mean is another loss.

    Args:
        mesh: from ``data_mesh``, or any mesh with the axis.
        batch: any tree of arrays with the batch axis first. With several processes, the points of this process; all
            processes have the same number.
        axis: of the mesh.

    Returns:
        The batch, on the devices.

    Raises:
        ValueError: the mesh has no such axis, or axes that are not Auto; leaves have no batch axis, or different
            lengths of it; the number of points is not a multiple of the devices (the text has the nearest multiples);
            processes have different numbers of points.

    Example:
        >>> from minijaxnet.parallel.mesh import data_mesh
        >>> placed = shard_batch(data_mesh(1), np.ones((4, 2)))
        >>> placed.shape, tuple(placed.sharding.spec)
        ((4, 2), ('data',))
    """
    check_mesh(mesh, axis)
    lengths = {name: np.shape(leaf)[:1] for name, leaf in named_leaves(batch).items()}
    if len(set(lengths.values())) != 1 or () in lengths.values():
        got = ", ".join(f"{name} {length[0] if length else 'none'}" for name, length in lengths.items())
        raise ValueError(f"batch: got batch axes {got or 'of no leaves'}; expected one of the same length in each leaf")
    [(points,)] = set(lengths.values())
    per_process = max(1, mesh.shape[axis] // math.gcd(mesh.shape[axis], jax.process_count()))
    whose = " of this process" if jax.process_count() > 1 else ""
    check_divides("batch", points, per_process, f"the devices{whose}", f" points{whose}")
    if len(set(each := all_gather([points])[:, 0].tolist())) > 1:
        raise ValueError(f"batch: got {', '.join(map(str, each))} points in the processes; expected as many in each")
    sharding = NamedSharding(mesh, PartitionSpec(axis))
    return jax.tree.map(lambda leaf: _placed(leaf, sharding), batch)


def replicate(mesh: Mesh, tree: PyTree) -> Any:
    """Copy a tree of arrays, such as a descent's state, to each device of a mesh.

    Args:
        mesh: of the devices.
        tree: any tree of arrays and random keys; with several processes the same in each.

    Returns:
        The tree, on the devices; always a copy.

    Example:
        >>> from minijaxnet.parallel.mesh import data_mesh
        >>> replicate(data_mesh(1), {"w": np.ones(2)})["w"].sharding.is_fully_replicated
        True
    """
    everywhere = NamedSharding(check_mesh(mesh), PartitionSpec())
    return jax.tree.map(lambda leaf: _placed(leaf, everywhere), tree)


def shard_state(mesh: Mesh, state: Any, *, axis: str = MODEL, least: int = 512) -> Any:
    """Divide the wide weights of a descent's state, and the optimizer's state of them, over the devices of a mesh.

    In each leaf the last axis is divided that is long enough and a multiple of the shards: the outputs of a wide layer
    and its bias, the inputs of a narrow layer after it. All other leaves are copied to each device. The compiler would
    choose the same placement, so the state after a step is placed like the state before it.

    This needs communication within the step. An ``mlp`` with n wide hidden layers has an all-gather or all-reduce of
    activations, (batch, width), between every two layers, forward and backward. With (1024, 1024, 1024, 10) on
    ``data_mesh(4, shards=4)`` these are three all-reduces and one all-gather per step. Dividing only the batch needs
    one all-reduce of all gradients; dividing both needs five all-reduces and one all-gather. It helps if the weights
    and the optimizer's state do not fit on one device, or if there are many weights and few points per step, so that
    activations are smaller than gradients. If a layer fits on one device and batches are large, divide the batch.

    Args:
        mesh: from ``data_mesh(shards=...)``, or any mesh with the axis.
        state: any tree of arrays; with several processes the same in each.
        axis: of the mesh.
        least: the shortest axis of a leaf that is divided.

    Returns:
        The state, on the devices; steps on it equal those on one device up to rounding.

    Raises:
        ValueError: the mesh has no such axis, or one that is not Auto.

    Example:
        >>> mesh = Mesh(np.array(jax.devices()[:1]), (MODEL,))
        >>> placed = shard_state(mesh, {"weights": np.ones((8, 512)), "last": np.ones((512, 10)), "rate": 0.1})
        >>> {name: tuple(leaf.sharding.spec) for name, leaf in placed.items()}
        {'last': ('model',), 'rate': (), 'weights': (None, 'model')}

    Source: Shoeybi et al., "Megatron-LM: training multi-billion parameter language models using model parallelism",
        2019, section 3; Xu et al., "GSPMD: general and scalable parallelization for ML computation graphs", 2021.
    """
    check_mesh(mesh, axis)
    check_count("least", least, least=1)

    def place(leaf: Any) -> jax.Array:
        lengths = np.shape(leaf)
        wide = [at for at, length in enumerate(lengths) if length >= least and length % mesh.shape[axis] == 0]
        spec = PartitionSpec(*[None] * wide[-1], axis) if wide else PartitionSpec()
        return _placed(leaf, NamedSharding(mesh, spec), whole=True)

    return jax.tree.map(place, state)


def on_mesh(mesh: Mesh, descent: Descent, *, axis: str = DATA) -> Descent:
    """Return the same descent with steps that divide their batch over the devices of a mesh.

    This is for minibatches. All data is on each device, ``replicate(mesh, data)``; each device takes its share of the
    minibatch, and only gradients are exchanged.

    Args:
        mesh: from ``data_mesh``, or any mesh with the axis.
        descent: its batches have a number of points that is a multiple of the devices.
        axis: of the mesh.

    Example:
        >>> from minijaxnet.descent import gradient_descent
        >>> from minijaxnet.parallel.mesh import data_mesh
        >>> descent = on_mesh(data_mesh(1), gradient_descent(lambda w, batch: ((w - batch) ** 2).mean(), 0.5))
        >>> state, info = jax.jit(descent.step)(descent.init(3.0), np.ones(4, np.float32))
        >>> print(state.params)
        1.0
    """
    return Descent(descent.init, _OnMesh(descent.step, NamedSharding(check_mesh(mesh, axis), PartitionSpec(axis))))


@dataclass(frozen=True)
class _OnMesh:
    """A step on a divided batch; equal for equal steps on equal meshes, so that compiled programs are reused."""

    step: Step
    sharding: NamedSharding

    @property
    def objective(self) -> Any:
        return getattr(self.step, "objective", None)

    def is_ready(self, state: DescentState) -> Any:
        return is_ready(self.step, state)

    def __call__(self, state: DescentState, batch: PyTree) -> tuple[DescentState, StepInfo]:
        return self.step(state, jax.lax.with_sharding_constraint(batch, self.sharding))


def initialize(
    coordinator: str | None = None, *, num_processes: int | None = None, process_id: int | None = None,
    timeout_s: float = 60, heartbeat_s: int = 30,
) -> None:  # fmt: skip
    """Join the processes of a computation; to be called before JAX uses any device.

    If a process dies, JAX ends the others: at once if they wait for its numbers, else after ``heartbeat_s`` without a
    sign of it. An uncaught exception ends a process at once. Everybody who can reach the coordinator can join, so use a
    private network.

    Args:
        coordinator: ``"host:port"`` of process 0; if None, JAX finds it on SLURM and some other clusters.
        num_processes: the number of processes.
        process_id: the number of this process, from 0.
        timeout_s: seconds to wait for the coordinator, and then for the other processes. If these do not join, this
            process ends with exit code 2.
        heartbeat_s: seconds without a sign of a process after which it counts as dead.

    Raises:
        ValueError: some but not all of the first three arguments are given; or one is invalid.
        ConnectionError: the coordinator does not answer in time, or its port is taken.
        RuntimeError: JAX has used a device already.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    if 0 < len(missing := [name for name, value in given.items() if value is None]) < 3:
        raise ValueError(f"{missing[0]}: got None; expected a value, as for {', '.join(set(given) - set(missing))}")
    local = None
    if coordinator is not None and num_processes is not None and process_id is not None:
        if not 0 <= process_id < num_processes:
            raise ValueError(f"process_id: got {process_id}; expected 0 to {num_processes - 1}")
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ValueError(f"coordinator: got {coordinator!r}; expected host:port")
        # With a local address only processes of this machine can join.
        local = coordinator if host in ("localhost", "127.0.0.1") else None
        if process_id > 0:
            _wait_for(host, int(port), timeout_s)
        else:
            _check_free(host if local else "", int(port))

    def give_up() -> None:  # otherwise JAX would wait twice as long and then abort
        who = f"all {num_processes} processes" if num_processes else "all processes"
        print(f"coordinator: not {who} joined {coordinator or 'it'} within {timeout_s:g} s", file=sys.stderr)
        leave(2)

    jax.config.update("jax_enable_preemption_service", False)  # it would replace our handler of SIGTERM
    waiting = threading.Timer(timeout_s, give_up)
    waiting.start()
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, coordinator_bind_address=local,
            initialization_timeout=2 * math.ceil(timeout_s), heartbeat_timeout_seconds=heartbeat_s,
            shutdown_timeout_seconds=_DAY_S,
        )  # fmt: skip
    except jax.errors.JaxRuntimeError as error:
        where = coordinator or "the coordinator of this cluster"
        raise ConnectionError(f"coordinator: could not join {where}: {error}") from error
    finally:
        waiting.cancel()
    atexit.register(_leave_after_an_error)  # runs before JAX's own exit handler, which would wait for the others


def _leave_after_an_error() -> None:
    if getattr(sys, "last_value", None) is not None and not hasattr(sys, "ps1"):  # an uncaught exception
        leave(1)


def divide_cpu(devices: int) -> None:
    """Divide a CPU into several devices, if JAX has not used any device yet.

    They share the cores, so this is for trials and does not speed anything up. It has no effect on other devices.
    """
    if devices > 1 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX has its devices already
            jax.config.update("jax_num_cpu_devices", devices)


def _check_free(host: str, port: int) -> None:
    """Check that a port is free; JAX may end in a segmentation fault if it is taken."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            raise ConnectionError(f"coordinator: got port {port}, in use ({error}); expected a free one") from None


def _wait_for(host: str, port: int, timeout_s: float) -> None:
    """Wait until a process listens at a port."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with socket.create_connection((host, port), timeout=timeout_s):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConnectionError(
                    f"coordinator: got {host}:{port}, which did not answer within {timeout_s:g} s ({error}); expected "
                    "the address of process 0"
                ) from None
        time.sleep(0.1)


def _placed(leaf: Any, sharding: NamedSharding, *, whole: bool = False) -> jax.Array:
    """Place an array, given this process's part of it, or all of it if ``whole``."""
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding, may_alias=False)
    if isinstance(leaf, jax.Array) and is_keys(leaf):
        data = _placed(jax.random.key_data(leaf), sharding, whole=whole)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    local = np.asarray(leaf)
    return jax.make_array_from_process_local_data(sharding, local, local.shape if whole else None)
