"""The best rates of this machine: of arithmetic, of memory, of launching a kernel and of calling a program.

All are measured here, on the same device in the same process as the steps: a data sheet knows neither the clock nor
other load, nor what XLA makes of the machine.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from minijaxnet._loops import block_on, repeated
from minijaxnet._tables import significant, text_table
from minijaxnet.bench.blocks import check_seconds, seconds_of, steps_for

_BLOCK_S = 0.005  # long against the call, short against a second
_LEAST_ROUNDS = 5
_SIDES = (256, 1024, 4096)  # of the square matrices
# Bytes of the arrays that are read and written: from the smallest cache to far more than the largest.
_ARRAYS = tuple(2**k for k in range(14, 29, 2))


class Roofline(NamedTuple):
    """The result of ``measure_roofline``; print it.

    Attributes:
        device: that was measured.
        peaks: ``{dtype: FLOP/s}`` of matrix products, the best of all sizes.
        bandwidths: ``{bytes of a pass: bytes/s}``, read and written bytes together, the best for each size.
        dispatch_s: seconds of a call of a compiled function that does almost nothing, the least.
        launch_s: seconds of a kernel that does almost nothing, in a compiled loop, the least; 0 on a CPU.
    """

    device: str
    peaks: dict[str, float]
    bandwidths: dict[int, float]
    dispatch_s: float
    launch_s: float = 0.0

    def bandwidth(self, moved: float = math.inf) -> float:
        """The best rate at which so many bytes or more were moved repeatedly; by default, of the largest array.

        Few bytes stay in a cache, which is faster than memory.

        >>> roofline = Roofline("cpu", {}, {1000: 9e9, 1_000_000: 8e9, 1_000_000_000: 2e9}, 1e-6)
        >>> roofline.bandwidth(5000), roofline.bandwidth(5_000_000), roofline.bandwidth()
        (9000000000.0, 8000000000.0, 2000000000.0)
        """
        below = max((size for size in self.bandwidths if size <= moved), default=0)
        return max(rate for size, rate in self.bandwidths.items() if size >= below)

    def __str__(self) -> str:
        """A table of the rates."""
        rows = [(f"matrix products, {name}", f"{significant(rate / 1e9)} GFLOP/s") for name, rate in self.peaks.items()]
        for moved, rate in self.bandwidths.items():
            rows.append((f"memory, {moved:,} bytes a pass", f"{significant(rate / 1e9)} GB/s"))
        rows.append(("an empty call", f"{significant(1e6 * self.dispatch_s)} us"))
        if self.launch_s:
            rows.append(("an empty kernel", f"{significant(1e6 * self.launch_s)} us"))
        return text_table((self.device, "measured"), rows)


def measure_roofline(dtypes: Sequence[Any] = ("float32",), *, seconds: float = 1.0) -> Roofline:
    """Measure the limits of JAX's default device: arithmetic, memory, the launch of a kernel and the call.

    ::

        peak         2 side^3 / seconds of x <- x @ w, square, with larger sides while there is time
        bandwidth    2 * bytes of x / seconds of x <- s * x, from 16 KiB to 256 MiB: each byte is read and written
        the call     a jitted scalar function, waited for each time
        a kernel     x <- x + 1, of 8 numbers, in a compiled loop; on an accelerator only

    The first two run in a compiled loop. ``w`` is orthogonal and ``s`` is 1, so that numbers neither vanish nor
    overflow. The matrix precision is JAX's default, as in a step; a product of complex numbers counts four times.

    Each rate is the best of several rounds, in which all measurements take turns: other load only makes them slower.
    They are rates of what XLA compiles, as a step is.

    Args:
        dtypes: of the matrix products, floating or complex.
        seconds: about how long to measure, but at least five rounds; compilation is not included.

    Returns:
        The rates.

    Raises:
        TypeError: ``seconds`` is not a number; ``dtypes`` is not a sequence, or has one that is neither floating nor
            complex, or not enabled.
        ValueError: ``seconds`` is not positive.

    Example:
        >>> measure_roofline().bandwidth()  # doctest: +SKIP
        8300000000.0

    Source: McCalpin, "Memory bandwidth and machine balance in current high performance computers", 1995 (STREAM's
        Scale, here in place).
    """
    check_seconds(seconds)
    if isinstance(dtypes, str):
        raise TypeError(f"dtypes: got {dtypes!r}; expected a sequence of dtypes")
    kinds = [_checked_dtype(dtype) for dtype in dtypes]
    (device,) = jnp.zeros(()).devices()
    # By the kind of work, and how much of it a round does.
    blocks = {("call", 1): _calls()} | {("bytes", 2 * size): _passes(size) for size in _ARRAYS}
    if device.platform != "cpu":
        blocks["kernel", 1] = _block(jnp.add, jnp.zeros(8, jnp.float32), jnp.ones((), jnp.float32))
    for kind in kinds:
        for side in _SIDES:
            work = (8 if kind.kind == "c" else 2) * side**3
            block = blocks[kind.name, work] = _products(side, kind)
            if 4**3 * block() > seconds / 10:  # a side of four times the length is 4^3 times the work
                break
    took, end = {key: [] for key in blocks}, time.perf_counter() + seconds
    while len(took["call", 1]) < _LEAST_ROUNDS or time.perf_counter() < end:
        for key, block in blocks.items():
            took[key].append(block())
    rates = {(what, work): work / min(times) for (what, work), times in took.items()}
    return Roofline(
        f"{device.platform}: {device.device_kind}",
        {kind.name: max(rate for (what, _), rate in rates.items() if what == kind.name) for kind in kinds},
        {work: rate for (what, work), rate in rates.items() if what == "bytes"},
        1 / rates["call", 1],
        1 / rates["kernel", 1] if ("kernel", 1) in rates else 0.0,
    )


def _checked_dtype(dtype: Any) -> Any:
    kind = jnp.dtype(dtype)
    if not jnp.issubdtype(kind, jnp.inexact):
        raise TypeError(f"dtypes: got {kind.name}; expected floating or complex ones")
    if jax.dtypes.canonicalize_dtype(kind) != kind:
        raise TypeError(f"dtypes: got {kind.name}; expected one that is enabled (jax_enable_x64)")
    return kind


def _products(side: int, dtype: Any) -> Callable[[], float]:
    # Orthogonal, all elements +-1 / sqrt(side): exact in any dtype, and without zeros, which may take less power.
    w = functools.reduce(jnp.kron, [jnp.eye(4) - 0.5] * round(math.log(side, 4))).astype(dtype)
    return _block(jnp.matmul, jax.random.normal(jax.random.key(0), w.shape).astype(dtype), w)


def _passes(size: int) -> Callable[[], float]:
    return _block(jnp.multiply, jnp.ones(size // 4, jnp.float32), jnp.ones((), jnp.float32))


def _calls() -> Callable[[], float]:
    call, x = jax.jit(lambda x: x + 1), jnp.zeros((), jnp.float32)
    x = jax.block_until_ready(call(x))  # what it returns is what it takes
    return lambda: min(seconds_of(lambda: call(x)) for _ in range(100))


def _block(function: Callable[[Any, Any], Any], x: Any, other: Any) -> Callable[[], float]:
    """A function that times ``x <- function(x, other)`` inside a compiled loop, in seconds a round.

    ``x`` is donated, otherwise each call would first copy it into memory that the system has yet to provide. The number
    of rounds is an argument and each call continues with the last result, so that XLA cannot compute anything ahead.
    """

    def repeat(x: Any, other: Any, rounds: Any) -> Any:
        return repeated(rounds, lambda _, x: function(x, other), x, block)

    block = block_on(x)
    program = jax.jit(repeat, donate_argnums=0).lower(x, other, 1).compile()

    def timed(rounds: int) -> float:
        nonlocal x
        began = time.perf_counter()
        x = jax.block_until_ready(program(x, other, rounds))
        return time.perf_counter() - began

    rounds, _ = steps_for(_BLOCK_S, timed, "roofline")
    return lambda: timed(rounds) / rounds
