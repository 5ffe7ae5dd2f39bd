"""Sweeps: one run for each value of a seed, a learning rate or anything else, all of them in one compiled program.

A run is a pure function of its arguments, so a thousand runs are one ``vmap``. The grid is cut into blocks that fit
into memory, one a core at a time; each is a call of the same program, and what it found goes to the host.
"""

import contextlib
import functools
import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet.pytrees import check_count, is_keys, named_leaves, side_effects
from minijaxnet.sweeps.result import SweepResult
from minijaxnet.trace import nothing

# Of the memory that is free, what the calls may take; the rest is for results on their way to the host.
_SHARE = 0.4

# Replicas a block on a CPU: with more of the smallest ones its caches overflow (2-2-1: 13 ns a step with 1,000, 17 with
# 2,000); larger ones take as long in blocks of a hundred as of a thousand.
_CACHED = 1_000


class Blocks(NamedTuple):
    """Where the finished blocks of a sweep are kept, so that a later call need not run them again.

    Attributes:
        size: replicas a block, where some are kept already; else None.
        load: ``load(first, like)``: the output of the block that begins with a replica, as NumPy arrays like these;
            None if it is not kept.
        save: ``save(first, output)``.
    """

    size: int | None
    load: Callable[[int, Any], Any]
    save: Callable[[int, Any], None]


def sweep(
    run: Callable[..., Any],
    axes: Mapping[str, Any],
    *,
    zipped: bool = False,
    block: int | None = None,
    blocks: Blocks | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> SweepResult:
    """Call ``run(**values)`` for every combination of the axes' values, in one compiled program.

    Args:
        run: a pure function of one value of each axis, by name, that returns a pytree of arrays, such as what
            ``descend`` returns.
        axes: ``{name: values}``, each an array or keys with an axis in front, at least one value long.
        zipped: whether the first values of all axes go together, then the second, and so on; else it is the grid.
        block: how many replicas a call runs; on a CPU each core runs a call of its own. If None, a core's or a device's
            share of them, or as many as fit into memory; on a CPU at most 1,000.
        blocks: where finished blocks are kept; those that are there are not run. They hold for the same run and axes.
        on_progress: called after each block with the replicas that are done, and how many there are.

    Returns:
        What the runs returned. A run that diverges is a result, too, and leaves the others alone. Each replica equals
        the same run by itself to rounding: of many small matrix products XLA sums the terms in another order than of
        one. Ctrl-C keeps the blocks that are finished; before the first one it raises as ever.

    Raises:
        ValueError: no axis, an axis without values, axes of unequal length that are zipped; a replica for which there
            is not enough memory; a run with side effects.
        TypeError: values without an axis in front; a run that returns what is no array.

    Example:
        >>> from minijaxnet.descent import gradient_descent
        >>> from minijaxnet.loop import descend
        >>> def run(start, learning_rate):
        ...     descent = gradient_descent(lambda weight, batch: (weight - batch) ** 2, learning_rate)
        ...     return descend(descent, descent.init(start), 1.0, steps=20)[1]
        >>> result = sweep(run, {"start": jnp.array([2.0, 3.0]), "learning_rate": jnp.array([0.1, 2.0, 0.3])})
        >>> result.output.loss.shape, result.best().place
        ((2, 3, 20), (0, 2))
    """
    axes = {name: _values(name, values) for name, values in axes.items()}
    if not axes:
        raise ValueError("axes: got none; expected at least one, {name: values}")
    lengths = {name: len(values) for name, values in axes.items()}
    if zipped and len(set(lengths.values())) > 1:
        raise ValueError(f"axes: got lengths {lengths}; expected the same for all, since they are zipped")
    shape = (next(iter(lengths.values())),) if zipped else tuple(lengths.values())
    count = math.prod(shape)
    places = np.unravel_index(np.arange(count), shape)
    rows = dict.fromkeys(axes, places[0]) if zipped else dict(zip(axes, places, strict=True))

    def values_of(first: int, size: int) -> dict[str, Any]:
        # The last block is filled up with its last replica, so that one program serves all.
        at = np.minimum(np.arange(first, first + size), count - 1)
        return {name: values[rows[name][at]] for name, values in axes.items()}

    if blocks is not None and blocks.size is not None:
        block = blocks.size
    workers, most = _workers()
    size, program = _program(run, count, block, workers, most, values_of)
    x64 = jnp.result_type(float) == jnp.float64

    def call(first: int) -> Any:
        with jax.enable_x64(x64):  # which each thread has for itself
            return jax.tree.map(_on_host, program(values_of(first, size)))

    output, finished = None, np.zeros(count, bool)
    if blocks is not None:
        like = jax.tree.map(_like_on_host, jax.eval_shape(functools.partial(_replicas, run), values_of(0, size)))
        for first in range(0, count, size):
            if (kept := blocks.load(first, like)) is not None:
                output = _stored(output, kept, first, count)
                finished[first : first + size] = True

    def take(found: Future[Any]) -> None:
        nonlocal output
        first = calls.pop(found)
        if blocks is not None:
            blocks.save(first, found.result())
        output = _stored(output, found.result(), first, count)
        finished[first : first + size] = True

    calls: dict[Future[Any], int] = {}
    with ThreadPoolExecutor(workers) as pool:
        try:
            calls |= {pool.submit(call, first): first for first in range(0, count, size) if not finished[first]}
            for found in as_completed([*calls]):
                take(found)
                if on_progress is not None:
                    on_progress(int(finished.sum()), count)
        except BaseException as error:
            pool.shutdown(cancel_futures=True)  # and wait for those under way, which are as good as any
            if not isinstance(error, KeyboardInterrupt):
                raise
            for found in [found for found in calls if not found.cancelled() and found.exception() is None]:
                take(found)
            if output is None:
                raise
    output = jax.tree.map(lambda leaf: leaf.reshape(shape + leaf.shape[1:]), output)
    return SweepResult(axes, output, finished.reshape(shape), size)


def _values(name: str, values: Any) -> Any:
    """An axis as an array: NumPy's for numbers, JAX's for keys."""
    if not isinstance(name, str):
        raise TypeError(f"axes: got the name {name!r}; expected text, an argument of run")
    array = values if isinstance(values, jax.Array) else np.asarray(values)
    if not is_keys(array) and array.dtype.kind not in "biufcV":
        raise TypeError(f"axes[{name!r}]: got {array.dtype} values; expected numbers or keys")
    if array.ndim == 0:
        raise TypeError(f"axes[{name!r}]: got a single value, {values!r}; expected several, an array")
    if not len(array):
        raise ValueError(f"axes[{name!r}]: got no values; expected at least one")
    return array if is_keys(array) else np.asarray(array)


@functools.partial(jax.jit, static_argnums=0)
def _replicas(run: Callable[..., Any], values: dict[str, Any]) -> Any:
    def one(values: dict[str, Any]) -> Any:
        output = run(**values)
        for name, leaf in named_leaves(output).items():
            if not isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float):
                raise TypeError(f"run: it returns {name}, {type(leaf).__name__}; expected arrays, which can be stacked")
        return output

    return jax.vmap(one)(values)


def _workers() -> tuple[int, float]:
    """How many blocks run at once, and how large they may be.

    One a core on a CPU, since most of what is swept is too small to keep two busy.
    """
    (device,) = jnp.zeros(()).devices()
    if device.platform != "cpu":
        return 1, math.inf
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores, _CACHED


def _program(
    run: Callable[..., Any],
    count: int,
    block: int | None,
    workers: int,
    most: float,
    values_of: Callable[[int, int], dict[str, Any]],
) -> tuple[int, Callable[[dict[str, Any]], Any]]:
    """The size of a block and the program for it: a worker's share of the replicas, if ``most`` and memory allow it."""

    def compiled(size: int) -> tuple[Any, int]:
        traced = _replicas.trace(run, values_of(0, size))
        if effects := side_effects(traced):
            raise ValueError(f"run: it has side effects ({effects}); expected a pure function")
        program = traced.lower().compile()
        plan = program.memory_analysis()
        if plan is None:
            return program, 0
        one = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
        return program, one * min(workers, -(-count // size))

    shares = workers * max(1, math.ceil(count / (workers * most)))  # as many for each worker
    size = -(-count // shares) if block is None else min(count, check_count("block", block, least=1))
    program, needed = compiled(size)
    free = _free_bytes()
    if block is None and needed > _SHARE * free:
        size = max(1, int(size * _SHARE * free / needed))
        program, needed = compiled(size)
    if needed > free:
        what = "replicas one by one need" if size == 1 else f"blocks of {size} replicas need"
        raise ValueError(f"block: {what} {needed:,} bytes; expected at most {free:,}, the memory that is free")
    return size, program


def _free_bytes() -> float:
    """The memory of the default device that is free; of the machine's for a CPU; infinite where nobody tells."""
    (device,) = jnp.zeros(()).devices()
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return math.inf


def _on_host(leaf: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if is_keys(leaf) else leaf)


def _like_on_host(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """An array like what a block returns of a leaf, without memory of its own."""
    if is_keys(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def _stored(output: Any, found: Any, first: int, count: int) -> Any:
    """The output of all replicas, with a block's put in its place."""
    if output is None:
        output = jax.tree.map(lambda leaf: np.full((count, *leaf.shape[1:]), nothing(leaf)), found)
    for mine, new in zip(jax.tree.leaves(output), jax.tree.leaves(found), strict=True):
        mine[first : first + len(new)] = new[: count - first]
    return output
