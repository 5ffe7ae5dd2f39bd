"""Several devices, in one process or in many: where arrays are placed. The step stays as it is.

A batch is divided over the devices of a mesh, parameters are on each of them, and the compiler does the rest: each
device finds the gradient on its points, one all-reduce sums them, and each takes the same step. ::

    mesh = data_mesh()
    state, trace = descend(descent, replicate(mesh, descent.init(params)), shard_batch(mesh, batch), steps=1_000)

The mean over the points is summed in another order than on one device, so losses agree to rounding, not to the bit.

Weights that one device does not hold are divided, too: ``shard_state(mesh, state)``, on ``data_mesh(shards=4)``. Many
descents at once are divided by replicas: ``sweep(run, axes, mesh=mesh)``.

Axes are ``Auto``: the compiler chooses the placement of what lies between. ``Explicit`` ones, as of ``jax.make_mesh``,
would ask each product over the batch, which is in the user's own functions, for the placement of its result.
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
from minijaxnet.descent import Descent, DescentState, Step, StepInfo, is_ready
from minijaxnet.parallel.mesh import DATA, MODEL, check_divides, check_mesh
from minijaxnet.parallel.processes import all_gather, leave

# A process that is done waits for the others; one that has died is found by its heartbeat.
_DAY_S = 86_400


def shard_batch(mesh: Mesh, batch: Any, *, axis: str = DATA) -> Any:
    """Divide a batch over the devices of a mesh: as many points on each, in their order.

    Points that do not divide are refused, and not padded: a padded mean is another loss.

    Args:
        mesh: from ``data_mesh``, or any with the axis.
        batch: any pytree of arrays with the batch axis first. With several processes, the points of this one, as many
            as each other has.
        axis: of the mesh.

    Returns:
        The batch, on the devices.

    Raises:
        ValueError: an axis that the mesh does not have, or axes that are not Auto; leaves without a batch axis or with
            different ones; points that the devices do not divide, with the nearest numbers that they do; another number
            of points in each process.

    Example:
        >>> from minijaxnet.parallel.mesh import data_mesh
        >>> placed = shard_batch(data_mesh(1), np.ones((4, 2)))
        >>> placed.shape, tuple(placed.sharding.spec)
        ((4, 2), ('data',))
    """
    check_mesh(mesh, axis)
    lengths = {name: np.shape(leaf)[:1] for name, leaf in named_leaves(batch).items()}
    if len(set(lengths.values())) != 1 or () in lengths.values():
        said = ", ".join(f"{name} {length[0] if length else 'none'}" for name, length in lengths.items())
        raise ValueError(
            f"batch: got batch axes {said or 'of no leaves'}; expected one of the same length in each leaf"
        )
    [(points,)] = set(lengths.values())
    here = max(1, mesh.shape[axis] // math.gcd(mesh.shape[axis], jax.process_count()))
    whose = " of this process" if jax.process_count() > 1 else ""
    check_divides("batch", points, here, f"the devices{whose}", f" points{whose}")
    if len(set(each := all_gather([points])[:, 0].tolist())) > 1:
        raise ValueError(f"batch: got {', '.join(map(str, each))} points in the processes; expected as many in each")
    sharding = NamedSharding(mesh, PartitionSpec(axis))
    return jax.tree.map(lambda leaf: _placed(leaf, sharding), batch)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Put a tree of arrays, such as a descent's state, on each device of a mesh.

    Args:
        mesh: where to.
        tree: any pytree of arrays, keys among them; with several processes the same in each.

    Returns:
        The tree, on the devices; a copy, where there is only one, too.

    Example:
        >>> from minijaxnet.parallel.mesh import data_mesh
        >>> replicate(data_mesh(1), {"w": np.ones(2)})["w"].sharding.is_fully_replicated
        True
    """
    everywhere = NamedSharding(check_mesh(mesh), PartitionSpec())
    return jax.tree.map(lambda leaf: _placed(leaf, everywhere), tree)


def shard_state(mesh: Mesh, state: Any, *, axis: str = MODEL, least: int = 512) -> Any:
    """Divide the wide weights of a descent's state, and what its optimizer keeps of them, over the devices of a mesh.

    Of each leaf the last axis that is long enough, and that the shards divide, is divided: the outputs of a wide layer
    with its bias, the inputs of a narrow one that comes after it. Anything else is on each device. These are the places
    that the compiler itself would choose, so a state that comes out of a step lies where the one that went in did.

    It costs communication within the step: of an ``mlp`` with n wide hidden layers an all-gather or all-reduce of
    activations, (batch, width), between each two layers forward and backward. (1024, 1024, 1024, 10) on
    ``data_mesh(4, shards=4)`` has three all-reduces and one all-gather a step, against one all-reduce of all gradients
    where the batch is divided instead, and with both divided five and one. It helps where weights with what the
    optimizer keeps of them do not fit on one device, or are many beside few points a step, so that activations are
    less to exchange than gradients. It does not where a layer fits and batches are large: divide those.

    Args:
        mesh: from ``data_mesh(shards=...)``, or any with the axis.
        state: any pytree of arrays; with several processes the same in each.
        axis: of the mesh.
        least: how long an axis of a leaf has to be to be worth it.

    Returns:
        The state, on the devices; steps on it are those of one device, to rounding.

    Raises:
        ValueError: an axis that the mesh does not have, or that is not Auto.

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
    """The same descent, each of whose steps divides its batch over the devices of a mesh.

    For minibatches: the data is on each device, ``replicate(mesh, data)``, each picks its own points of the minibatch,
    and nothing but gradients is exchanged.

    Args:
        mesh: from ``data_mesh``, or any with the axis.
        descent: whose batches have as many points as divide.
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
    """A step on a divided batch; equal for equal steps on equal meshes, so that compiled programs are found again."""

    step: Step
    sharding: NamedSharding

    @property
    def objective(self) -> Any:
        return getattr(self.step, "objective", None)

    def is_ready(self, state: DescentState) -> Any:
        return is_ready(self.step, state)

    def __call__(self, state: DescentState, batch: Any) -> tuple[DescentState, StepInfo]:
        return self.step(state, jax.lax.with_sharding_constraint(batch, self.sharding))


def initialize(
    coordinator: str | None = None, *, num_processes: int | None = None, process_id: int | None = None,
    timeout_s: float = 60, heartbeat_s: int = 30,
) -> None:  # fmt: skip
    """Join the processes of a computation; to be called before anything else asks JAX for a device.

    From then on a process that dies takes the others with it: at once where they wait for its numbers, else when it has
    not been heard from for ``heartbeat_s``. JAX ends them, for without it their numbers mean nothing. So an exception
    that nobody catches ends the process at once. Who can reach the coordinator can join: a network of your own it is.

    Args:
        coordinator: ``"host:port"`` of process 0; found by JAX on SLURM and other clusters that it knows if None.
        num_processes: how many there are.
        process_id: which one this is, from 0.
        timeout_s: seconds to wait for the coordinator, and then for the others. If these do not come, this process
            ends, with exit code 2.
        heartbeat_s: seconds.

    Raises:
        ValueError: a part of what is needed.
        ConnectionError: the coordinator is not there in time; its port is taken.
        RuntimeError: JAX has been asked for a device already.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    if 0 < len(missing := [name for name, value in given.items() if value is None]) < 3:
        raise ValueError(f"{missing[0]}: got None; expected a value, as of {', '.join(set(given) - set(missing))}")
    local = None
    if coordinator is not None and num_processes is not None and process_id is not None:
        if not 0 <= process_id < num_processes:
            raise ValueError(f"process_id: got {process_id}; expected 0 to {num_processes - 1}")
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ValueError(f"coordinator: got {coordinator!r}; expected host:port")
        local = coordinator if host in ("localhost", "127.0.0.1") else None  # then nobody from outside may join
        if process_id > 0:
            _wait_for(host, int(port), timeout_s)
        else:
            _check_free(host if local else "", int(port))

    def give_up() -> None:  # JAX would wait twice as long, and abort
        who = f"all {num_processes} processes" if num_processes else "all processes"
        print(f"coordinator: not {who} came within {timeout_s:g} s to {coordinator or 'it'}", file=sys.stderr)
        leave(2)

    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from us
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
    atexit.register(_leave_after_an_error)  # before JAX's own, which would wait for the others


def _leave_after_an_error() -> None:
    if getattr(sys, "last_value", None) is not None and not hasattr(sys, "ps1"):  # an error that nobody caught
        leave(1)


def divide_cpu(devices: int) -> None:
    """Have a CPU count as so many devices, if JAX has not been asked for any yet.

    They share its cores: this is to try things out, not to be faster. It changes nothing where there are others.
    """
    if devices > 1 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # it has its devices already
            jax.config.update("jax_num_cpu_devices", devices)


def _check_free(host: str, port: int) -> None:
    """Say that a port is taken: where JAX cannot have it, the process may end in a segmentation fault."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            raise ConnectionError(f"coordinator: got port {port}, taken ({error}); expected a free one") from None


def _wait_for(host: str, port: int, timeout_s: float) -> None:
    """Wait until somebody listens at a port."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with socket.create_connection((host, port), timeout=timeout_s):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConnectionError(
                    f"coordinator: got {host}:{port}, where nobody listens after {timeout_s:g} s ({error}); expected "
                    "process 0 there"
                ) from None
        time.sleep(0.1)


def _placed(leaf: Any, sharding: NamedSharding, *, whole: bool = False) -> jax.Array:
    """An array by its placement, from the part of it that this process has, or from the whole."""
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding, may_alias=False)
    if isinstance(leaf, jax.Array) and is_keys(leaf):
        data = _placed(jax.random.key_data(leaf), sharding, whole=whole)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    here = np.asarray(leaf)
    return jax.make_array_from_process_local_data(sharding, here, here.shape if whole else None)
