"""Sweeps: one run for each value of a seed, a learning rate or anything else, all in one compiled program.

A run is a pure function of its arguments, so a thousand runs are one ``vmap``. The grid is divided into blocks that fit
into memory. A CPU runs one block per core at a time. Each block is a call of the same program, and its output goes to
the host. On a mesh a call runs one block on each device, without communication between the devices.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from minijaxnet._checks import check_callable
from minijaxnet._trees import is_keys
from minijaxnet.data import numbers
from minijaxnet.history import missing_value
from minijaxnet.sweeps.program import program_of, replicas, workers_of
from minijaxnet.sweeps.result import SweepResult


class Blocks(NamedTuple):
    """A store of finished blocks of a sweep, so that a later call does not run them again.

    Attributes:
        size: replicas per block, if there are stored blocks; else None.
        load: ``load(first, like)``: the output of the block whose first replica is ``first``, as NumPy arrays like
            ``like``; None if it is not stored.
        save: ``save(first, output)``.
        mine: ``mine(first, size)``: whether this process runs the block; other blocks stay unfinished in its result.
    """

    size: int | None
    load: Callable[[int, Any], Any]
    save: Callable[[int, Any], None]
    mine: Callable[[int, int], bool] = lambda first, size: True


def sweep(
    run: Callable[..., Any],
    axes: Mapping[str, Any],
    *,
    zipped: bool = False,
    block: int | None = None,
    blocks: Blocks | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    mesh: Mesh | None = None,
) -> SweepResult:
    """Call ``run(**values)`` for every combination of the axes' values, in one compiled program.

    Args:
        run: a pure function of one value of each axis, by name, that returns a tree of arrays, such as the output of
            ``descend``.
        axes: ``{name: values}``, each an array or keys with a leading axis of at least one value.
        zipped: whether to combine the first values of all axes, then the second values, and so on; by default all
            combinations are run.
        block: replicas per block. A call runs one block, or one on each device of a mesh; on a CPU each core runs its
            own call. If None, a core's or a device's share of the replicas, or as many as fit into memory; on a CPU at
            most 1,000 per core, shared by the devices into which the CPU is divided.
        blocks: a store of finished blocks, which are not run again. It is valid for the same run and axes, with any
            mesh.
        on_progress: called after each call with the number of finished replicas and the number of all.
        mesh: replicas are divided over its axis ``"replica"``, or else its first one; the default device if None.
            Along the other axes ``run`` may divide its batches, by ``on_mesh(mesh, descent)``; then devices communicate
            only within their replica.

    Returns:
        The outputs of the runs. A run that diverges is a result, too, and does not affect the others. Each replica
        equals the same run alone up to rounding: XLA sums the terms of many small matrix products in another order than
        those of one. Blocks of equal size are the same program, so with the same ``block`` a replica has the same bits
        for any number of devices of one kind, unless ``run`` divides its batches. After Ctrl-C the result has the
        finished blocks; without any, KeyboardInterrupt is raised.

    Raises:
        ValueError: there is no axis; an axis has no values; zipped axes have different lengths; a replica does not fit
            into memory; the run has side effects; the mesh has axes that are not Auto, or devices of other processes.
        TypeError: the run is not a function; values have no leading axis; the run returns something other than arrays.

    Example:
        >>> from minijaxnet.descent import gradient_descent
        >>> from minijaxnet.loop import descend
        >>> def run(start, learning_rate):
        ...     descent = gradient_descent(lambda weight, batch: (weight - batch) ** 2, learning_rate)
        ...     return descend(descent, descent.init(start), 1.0, steps=20)[1]
        >>> result = sweep(run, {"start": jnp.array([2.0, 3.0]), "learning_rate": jnp.array([0.1, 2.0, 0.3])})
        >>> result.output.loss.shape, result.best().place
        ((2, 3, 20), (0, 2))

        Mean and spread of the predictions of networks from several seeds are one ``vmap`` over the params that ``run``
        returned, with the axes in front:

        >>> params = sweep(lambda weight: weight, {"weight": jnp.array([1.0, 2.0, 3.0])}).output
        >>> predictions = jax.vmap(lambda weight, x: weight * x, (0, None))(params, jnp.array([1.0, 10.0]))
        >>> jnp.mean(predictions, axis=0).tolist(), jnp.std(predictions, axis=0, ddof=1).tolist()
        ([2.0, 20.0], [1.0, 10.0])

    Source: Lakshminarayanan et al., "Simple and scalable predictive uncertainty estimation using deep ensembles", 2017
        (networks from several seeds).
    """
    check_callable("run", run)
    if not isinstance(axes, Mapping):
        raise TypeError(f"axes: got a {type(axes).__name__}; expected {{name: values}}, by the arguments of run")
    axes = {name: _values(name, values) for name, values in axes.items()}
    if not axes:
        raise ValueError("axes: got none; expected at least one, {name: values}")
    try:
        inspect.signature(run).bind(**axes)
    except TypeError as error:
        raise TypeError(f"axes: got {', '.join(axes)}; expected the arguments of run ({error})") from None
    except ValueError:
        pass  # a function without a signature, such as a builtin
    lengths = {name: len(values) for name, values in axes.items()}
    if zipped and len(set(lengths.values())) > 1:
        raise ValueError(f"axes: got lengths {lengths}; expected the same for all, since they are zipped")
    shape = (next(iter(lengths.values())),) if zipped else tuple(lengths.values())
    count = math.prod(shape)
    places = np.unravel_index(np.arange(count), shape)
    rows = dict.fromkeys(axes, places[0]) if zipped else dict(zip(axes, places, strict=True))

    def values_of(firsts: Sequence[int], size: int) -> dict[str, Any]:
        # The last blocks are padded with the last replica, so that all blocks share one program.
        at = np.minimum(np.add.outer(firsts, np.arange(size)).ravel(), count - 1)
        return {name: values[rows[name][at]] for name, values in axes.items()}

    if blocks is not None and blocks.size is not None:
        block = blocks.size
    workers = workers_of(mesh)
    size, program = program_of(run, count, block, workers, values_of)
    x64 = jnp.result_type(float) == jnp.float64

    def call(firsts: Sequence[int]) -> list[Any]:
        filled = [*firsts, *[count] * (workers.rows - len(firsts))]
        with jax.enable_x64(x64):  # the setting is separate for each thread
            output = jax.tree.map(_on_host, program(workers.put(values_of(filled, size))))
        parts = [slice(i * size, (i + 1) * size) for i in range(len(firsts))]
        return [jax.tree.map(lambda leaf, part=part: leaf[part], output) for part in parts]

    output, finished = None, np.zeros(count, bool)
    if blocks is not None:
        like = jax.tree.map(_like_on_host, jax.eval_shape(functools.partial(replicas, run), values_of([0], size)))
        output = jax.tree.map(lambda leaf: np.full((count, *leaf.shape[1:]), missing_value(leaf)), like)
        for first in range(0, count, size):
            if (kept := blocks.load(first, like)) is not None:
                output = _stored(output, kept, first, count)
                finished[first : first + size] = True

    def take(found: Future[Any]) -> None:
        nonlocal output
        for first, part in zip(calls.pop(found), found.result(), strict=True):
            if blocks is not None:
                blocks.save(first, part)
            output = _stored(output, part, first, count)
            finished[first : first + size] = True

    every = range(0, count, size)
    left = [first for first in every if (blocks is None or blocks.mine(first, size)) and not finished[first]]
    calls: dict[Future[Any], Sequence[int]] = {}
    with ThreadPoolExecutor(workers.calls) as pool:
        try:
            at_once = [left[i : i + workers.rows] for i in range(0, len(left), workers.rows)]
            calls |= {pool.submit(call, firsts): firsts for firsts in at_once}
            for found in as_completed([*calls]):
                take(found)
                if on_progress is not None:
                    on_progress(int(finished.sum()), count)
        except BaseException as error:
            pool.shutdown(cancel_futures=True)  # and wait for the running calls, whose results are kept
            if not isinstance(error, KeyboardInterrupt):
                raise
            for found in [found for found in calls if not found.cancelled() and found.exception() is None]:
                take(found)
            if not finished.any():
                raise
    output = jax.tree.map(lambda leaf: leaf.reshape(shape + leaf.shape[1:]), output)
    return SweepResult(axes, output, finished.reshape(shape), size)


def _values(name: str, values: Any) -> Any:
    """Convert the values of an axis to an array: of NumPy for numbers, of JAX for keys."""
    if not isinstance(name, str):
        raise TypeError(f"axes: got the name {name!r}; expected text, an argument of run")
    if isinstance(values, Iterator):
        raise TypeError(f"axes[{name!r}]: got a {type(values).__name__}; expected an array or a list of values")
    array = values if isinstance(values, jax.Array) else np.asarray(values)
    if isinstance(array, np.ndarray) and array.dtype.kind in "iuf":
        array = numbers(array, f"axes[{name!r}]")
    if not is_keys(array) and array.dtype.kind not in "biufcV":
        raise TypeError(f"axes[{name!r}]: got {array.dtype} values; expected numbers or keys")
    if array.ndim == 0:
        raise TypeError(f"axes[{name!r}]: got a single value, {values!r}; expected several, an array")
    if not len(array):
        raise ValueError(f"axes[{name!r}]: got no values; expected at least one")
    return array if is_keys(array) else np.asarray(array)


def _on_host(leaf: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if is_keys(leaf) else leaf)


def _like_on_host(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """An array with the shape and dtype of a block's output on the host; it takes no memory."""
    if is_keys(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def _stored(output: Any, found: Any, first: int, count: int) -> Any:
    """The output of all replicas, after storing that of one block in it."""
    if output is None:
        output = jax.tree.map(lambda leaf: np.full((count, *leaf.shape[1:]), missing_value(leaf)), found)
    for mine, new in zip(jax.tree.leaves(output), jax.tree.leaves(found), strict=True):
        mine[first : first + len(new)] = new[: count - first]
    return output
