"""What limits a step on this machine: its arithmetic, its memory, the launch of its kernels, or the call from Python?

A step cannot be faster than the machine's best rate of arithmetic allows, than its bytes can be moved, than its kernels
can be launched, or than a call that does nothing. All these are measured here, on the same device in the same process:
a data sheet knows neither its clock nor other load, nor what XLA makes of the machine.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from minijaxnet._loops import block_on, repeated
from minijaxnet._tables import percent, significant, text_table
from minijaxnet.bench.blocks import check_seconds, seconds_of, steps_for
from minijaxnet.bench.cost import StepCost

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
        rows = [
            (f"matrix products, {dtype}", f"{significant(rate / 1e9)} GFLOP/s") for dtype, rate in self.peaks.items()
        ]
        rows += [
            (f"memory, {moved:,} bytes a pass", f"{significant(rate / 1e9)} GB/s")
            for moved, rate in self.bandwidths.items()
        ]
        rows += [("an empty call", f"{significant(1e6 * self.dispatch_s)} us")]
        rows += [("an empty kernel", f"{significant(1e6 * self.launch_s)} us")] if self.launch_s else []
        return text_table((self.device, "measured"), rows)


class Limits(NamedTuple):
    """Lower bounds of a step's time, and which of them is the largest; print it.

    Attributes:
        step_s: seconds that it took.
        dispatch_s: seconds of an empty call; 0 for a step inside a compiled loop.
        bandwidth_s: seconds to move its least bytes.
        compute_s: seconds of its matrix products at the measured peak.
        binds: "dispatch", "bandwidth", "compute" or "launches": the largest of them.
        attained: ``compute_s / step_s``, the share of the measured peak that was reached.
        intensity: matrix FLOPs for each of the bytes that must be moved.
        ridge: the intensity at which moving takes as long as computing; NaN without matrix products.
        notes: those of the step's cost.
        launches_s: seconds to launch its kernels; 0 on a CPU.
    """

    step_s: float
    dispatch_s: float
    bandwidth_s: float
    compute_s: float
    binds: str
    attained: float
    intensity: float
    ridge: float
    notes: tuple[str, ...] = ()
    launches_s: float = 0.0

    @property
    def bound_s(self) -> float:
        """The largest of them: seconds that such a step needs at least on this machine."""
        return max(self.dispatch_s, self.bandwidth_s, self.compute_s, self.launches_s)

    def __str__(self) -> str:
        """A table of the bounds, and what follows from them."""
        bounds = {"dispatch": self.dispatch_s, "bandwidth": self.bandwidth_s, "compute": self.compute_s}
        bounds |= {"launches": self.launches_s} if self.launches_s else {}
        rows = [("the step", significant(1e6 * self.step_s), "")]
        rows += [(name, significant(1e6 * bound), percent(bound / self.step_s)) for name, bound in bounds.items()]
        times = self.step_s / self.bound_s if self.bound_s else math.inf
        lines = [
            text_table(("at least", "us", "of the step"), rows),
            f"nearest limit: {self.binds}, the step takes {significant(times, 3)} times as long",
        ]
        if self.compute_s:
            lines += [
                f"matrix products: {percent(self.attained)} of the measured peak",
                f"{significant(self.intensity)} matrix FLOPs a byte; the ridge is at {significant(self.ridge)}",
            ]
        if times < 1:
            lines.append(
                "faster than the bound: the machine was slower while that was measured, or bytes stayed in a cache"
            )
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def limits(cost: StepCost, step_s: float, roofline: Roofline, *, called: bool = False) -> Limits:
    """The lower bounds of a step's time, and which of them is the largest.

    ::

        dispatch     an empty call, if the step is called from Python
        bandwidth    least bytes / the rate at which so many bytes are moved
        compute      the sum over dtypes of matrix FLOPs / peak FLOP/s
        launches     kernels * the time of an empty one

    The bandwidth is that of a cache where so few bytes fit into one. It is a bound only for a step that moves its bytes
    each time: a loop that is one native function may keep the smallest networks in registers. It was measured with as
    many bytes read as written; a step that mostly reads may move them somewhat faster. Elementwise operations are left
    out, so a step with few matrix products can be far from all bounds.

    Args:
        cost: from ``step_cost``, of one device.
        step_s: the step's time, in seconds.
        roofline: from ``measure_roofline``, with each dtype of the step's matrix products.
        called: whether each step is a call from Python; otherwise it is inside a compiled loop.

    Returns:
        The bounds, in seconds.

    Raises:
        ValueError: ``step_s`` is not positive; a cost of several devices; a dtype without a measured peak.

    Example:
        >>> cost = StepCost({"float32": 2_000_000}, {}, 8_000)
        >>> print(limits(cost, 50e-6, Roofline("cpu", {"float32": 1e11}, {1000: 1e9}, 5e-6)))
        at least   us  of the step
        --------------------------
        the step   50
        dispatch    0        0.0 %
        bandwidth   8       16.0 %
        compute    20       40.0 %
        nearest limit: compute, the step takes 2.5 times as long
        matrix products: 40.0 % of the measured peak
        250 matrix FLOPs a byte; the ridge is at 100

    Source: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore
        architectures", 2009.
    """
    if not 0 < step_s < math.inf:
        raise ValueError(f"step_s: got {step_s}; expected a positive number of seconds")
    if cost.devices != 1:
        raise ValueError(f"cost: got that of {cost.devices} devices; expected one device, as in the roofline")
    if missing := [dtype for dtype in cost.matrix_flops if dtype not in roofline.peaks]:
        raise ValueError(
            f"roofline: got the peaks of {', '.join(roofline.peaks) or 'nothing'}; "
            f"expected {', '.join(missing)} too, from measure_roofline(dtypes=...)"
        )
    matrix_flops, rate = sum(cost.matrix_flops.values()), roofline.bandwidth(cost.least_bytes)
    compute_s = sum(flops / roofline.peaks[dtype] for dtype, flops in cost.matrix_flops.items())
    bounds = {
        "dispatch": called * roofline.dispatch_s,
        "bandwidth": cost.least_bytes / rate,
        "compute": compute_s,
        "launches": (cost.launches or 0) * roofline.launch_s,
    }
    return Limits(
        step_s=step_s,
        binds=max(bounds, key=lambda name: bounds[name]),
        attained=compute_s / step_s,
        intensity=matrix_flops / cost.least_bytes if cost.least_bytes else math.inf,
        ridge=matrix_flops / compute_s / rate if compute_s else math.nan,
        notes=cost.notes,
        **{f"{name}_s": bound for name, bound in bounds.items()},
    )


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
