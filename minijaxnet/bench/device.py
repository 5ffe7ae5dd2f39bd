"""What a GPU tells of itself: how many kernels a step launches and how long each takes, and how its clock moves."""

import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from minijaxnet._tables import percent, significant, text_table
from minijaxnet.bench.communication import INSTRUCTION, computations

# Instructions of a compiled program that launch nothing.
_NO_LAUNCH = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "call"}
_NO_LAUNCH |= {"replica-id", "copy-done", "async-done", "all-reduce-done", "all-gather-done", "collective-permute-done"}
_SHOWN, _NAME_LENGTH = 8, 48
# Why a clock is lower than it could be, by the bits that NVML says it with.
_LIMITED = {0x4: "power", 0x8: "hardware slowdown", 0x20: "heat", 0x40: "heat", 0x80: "power brake"}


class Kernel(NamedTuple):
    """A kernel of a step.

    Attributes:
        name: as the device knows it.
        launches: how often a step launches it.
        device_s: seconds that these take on the device.
    """

    name: str
    launches: int
    device_s: float


def kernels_of(step: Callable[..., Any], *arguments: Any) -> tuple[Kernel, ...]:
    """The kernels of a step that is called once, the longest first; none where the device does not tell.

    Measured by CUPTI through ``jax.experimental.mosaic.gpu.profiler``; another profiler at work keeps it from that.

    >>> kernels_of(lambda x: x + 1, 1.0) if jax.default_backend() == "cpu" else ()
    ()
    """
    if jax.default_backend() != "gpu":
        return ()
    try:
        from jax.experimental.mosaic.gpu import profiler

        _, timings = profiler.measure(jax.jit(step), aggregate=False)(*arguments)
    except Exception:  # it is experimental, and what it needs may not be there: then nobody tells
        return ()
    taken: dict[str, list[float]] = {}
    for name, milliseconds in timings or ():
        taken.setdefault(name, []).append(1e-3 * milliseconds)
    kernels = [Kernel(name, len(each), sum(each)) for name, each in taken.items()]
    return tuple(sorted(kernels, key=lambda kernel: -kernel.device_s))


def kernel_table(kernels: Sequence[Kernel], step_s: float) -> str:
    """The longest kernels, and how much of a step's time the device works; nothing if there are none.

    >>> print(kernel_table([Kernel("gemm", 2, 3e-6), Kernel("fusion", 1, 1e-6)], 5e-6))
    kernel  launches  us on the device  of them
    -------------------------------------------
    gemm           2                 3   75.0 %
    fusion         1                 1   25.0 %
    the device works 4 us of the 5 us that a step takes in a compiled loop, the rest is launching and waiting
    """
    if not kernels:
        return ""
    total_s = sum(kernel.device_s for kernel in kernels)
    rows = [
        (
            _short(kernel.name),
            f"{kernel.launches}",
            significant(1e6 * kernel.device_s),
            percent(kernel.device_s / total_s),
        )
        for kernel in kernels[:_SHOWN]
    ]
    if rest := kernels[_SHOWN:]:
        launches, rest_s = sum(kernel.launches for kernel in rest), sum(kernel.device_s for kernel in rest)
        rows.append((f"{len(rest)} more", f"{launches}", significant(1e6 * rest_s), percent(rest_s / total_s)))
    works, takes = significant(1e6 * total_s), significant(1e6 * step_s)
    gap = f"the device works {works} us of the {takes} us that a step takes in a compiled loop, the rest is launching"
    return f"{text_table(('kernel', 'launches', 'us on the device', 'of them'), rows)}\n{gap} and waiting"


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…"


def launches_of(text: str) -> int:
    """How many kernels and library calls a compiled program launches, by XLA's text of it; a loop's body counts once.

    >>> launches_of(jax.jit(lambda x: x @ x + 1).lower(jax.numpy.ones((2, 2))).compile().as_text()) > 0
    True
    """
    entry, bodies = computations(text)

    def count(name: str) -> int:
        total = 0
        for _, _, operation, rest in INSTRUCTION.findall(bodies[name]):
            total += operation not in _NO_LAUNCH
            if operation in ("call", "while", "conditional"):
                called = re.findall(r"(?:to_apply|body|true_computation|false_computation)=(%[\w.-]+)", rest)
                total += sum(map(count, called)) - (operation == "while")
        return total

    return count(entry)


def clock_reader() -> Callable[[], tuple[float, str]] | None:
    """What reads the clock of the device that JAX uses by default, in MHz, and what limits it ("" if nothing).

    None where there is no GPU of NVIDIA, or ``nvidia-ml-py`` is not installed. It reads, and sets nothing.
    """
    device = jax.devices()[0]
    if device.platform != "gpu":
        return None
    try:
        import pynvml  # pyright: ignore[reportMissingImports] - in the extra cuda

        pynvml.nvmlInit()
        handle = _handle(pynvml, device.local_hardware_id or 0)

        def read() -> tuple[float, str]:
            reasons = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
            limits = dict.fromkeys(why for bit, why in _LIMITED.items() if reasons & bit)
            return float(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)), " and ".join(limits)

        read()
    except Exception:  # no library, no driver, no right to ask: then nobody tells
        return None
    return read


def _handle(pynvml: Any, place: int) -> Any:
    """The device at a place among those that this process sees."""
    seen = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    name = seen[place] if place < len(seen) else str(place)
    return pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else pynvml.nvmlDeviceGetHandleByUUID(name)
