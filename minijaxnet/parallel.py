"""Several devices, in one process or in many: where arrays are placed. The step stays as it is.

A batch is divided over the devices of a mesh, parameters are on each of them, and the compiler does the rest: each
device finds the slope on its points, one all-reduce sums the slopes of all leaves, and each takes the same step. ::

    mesh = data_mesh()
    state, trace = descend(descent, replicate(mesh, descent.init(params)), shard_batch(mesh, batch), steps=1_000)

The mean over the points is summed in another order than on one device, so losses agree to rounding, not to the bit.

Weights that one device does not hold are divided, too: ``shard_state(mesh, state)``, on ``data_mesh(shards=4)``. Many
descents at once are divided by replicas: ``sweep(run, axes, mesh=mesh)``.

Axes are ``Auto``: the compiler chooses the placement of what lies between. ``Explicit`` ones, as of ``jax.make_mesh``,
would ask each product over the batch, which is in the user's own functions, for the placement of its result.
"""

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from minijaxnet.descent import Descent, DescentState, StepInfo
from minijaxnet.pytrees import check_count, is_keys, named_leaves

DATA, REPLICA, MODEL = "data", "replica", "model"


def data_mesh(devices: int | Sequence[Any] | None = None, *, replicas: int = 1, shards: int = 1) -> Mesh:
    """Devices in a row, over which batches are divided; or in a table, with replicas or shards of weights beside it.

    Args:
        devices: how many of those there are, or which; all if None, those of other processes included.
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
        chosen = there[:count]
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
            different ones; points that the devices do not divide, with the nearest numbers that they do.

    Example:
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
    if points % here or not points:
        below, above = points // here * here, (points // here + 1) * here
        nearest = f"{below:,} or {above:,}" if below else f"{above:,}"
        whose = " in each process" if jax.process_count() > 1 else ""
        raise ValueError(f"batch: got {points:,} points{whose}; expected a multiple of {here}, such as {nearest}")
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
    ``data_mesh(4, shards=4)`` has three all-reduces and one all-gather a step, against one all-reduce of all slopes
    where the batch is divided instead, and with both divided five and one. It helps where weights with what the
    optimizer keeps of them do not fit on one device, or are many beside few points a step, so that activations are
    less to exchange than slopes. It does not where a layer fits and batches are large: divide those.

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
    and nothing but slopes is exchanged.

    Args:
        mesh: from ``data_mesh``, or any with the axis.
        descent: whose batches have as many points as divide.
        axis: of the mesh.

    Example:
        >>> from minijaxnet.descent import gradient_descent
        >>> descent = on_mesh(data_mesh(1), gradient_descent(lambda w, batch: ((w - batch) ** 2).mean(), 0.5))
        >>> state, info = jax.jit(descent.step)(descent.init(3.0), np.ones(4, np.float32))
        >>> print(state.params)
        1.0
    """
    return Descent(descent.init, _OnMesh(descent.step, NamedSharding(check_mesh(mesh, axis), PartitionSpec(axis))))


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


@dataclass(frozen=True)
class _OnMesh:
    """A step on a divided batch; equal for equal steps on equal meshes, so that compiled programs are found again."""

    step: Callable[[DescentState, Any], tuple[DescentState, StepInfo]]
    sharding: NamedSharding

    @property
    def objective(self) -> Any:
        return getattr(self.step, "objective", None)

    def __call__(self, state: DescentState, batch: Any) -> tuple[DescentState, StepInfo]:
        return self.step(state, jax.lax.with_sharding_constraint(batch, self.sharding))


def initialize(
    coordinator: str | None = None, *, num_processes: int | None = None, process_id: int | None = None,
    timeout_s: int = 60,
) -> None:  # fmt: skip
    """Join the processes of a computation; to be called before anything else asks JAX for a device.

    Args:
        coordinator: ``"host:port"`` of process 0; found by JAX on SLURM and other clusters that it knows if None.
        num_processes: how many there are.
        process_id: which one this is, from 0.
        timeout_s: seconds to wait for the others.

    Raises:
        ValueError: a part of what is needed.
        RuntimeError: the coordinator or another process is not there in time.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    if 0 < len(missing := [name for name, value in given.items() if value is None]) < 3:
        raise ValueError(f"{missing[0]}: got None; expected a value, as of {', '.join(set(given) - set(missing))}")
    if num_processes is not None and process_id is not None and not 0 <= process_id < num_processes:
        raise ValueError(f"process_id: got {process_id}; expected 0 to {num_processes - 1}")
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, initialization_timeout=timeout_s)
    except Exception as error:
        where = coordinator or "the coordinator of this cluster"
        raise RuntimeError(f"coordinator: could not join {where} within {timeout_s} s: {error}") from error


def divide_cpu(devices: int) -> None:
    """Have a CPU count as so many devices, if JAX has not been asked for any yet.

    They share its cores: this is to try things out, not to be faster. It changes nothing where there are others.
    """
    if devices > 1 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # it has its devices already
            jax.config.update("jax_num_cpu_devices", devices)


def _placed(leaf: Any, sharding: NamedSharding, *, whole: bool = False) -> jax.Array:
    """An array by its placement, from the part of it that this process has, or from the whole."""
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding, may_alias=False)
    if isinstance(leaf, jax.Array) and is_keys(leaf):
        data = _placed(jax.random.key_data(leaf), sharding, whole=whole)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    here = np.asarray(leaf)
    return jax.make_array_from_process_local_data(sharding, here, here.shape if whole else None)
