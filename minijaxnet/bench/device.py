"""What a GPU reports: which kernels a step launches, how long each takes, and how its clock changes."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from minijaxnet._tables import percent, significant, text_table

_MOST_ROWS, _NAME_LENGTH = 8, 48
# What limits a clock, by the bits of NVML.
_LIMITS = {0x4: "power", 0x8: "hardware slowdown", 0x20: "heat", 0x40: "heat", 0x80: "power brake"}


class Kernel(NamedTuple):
    """A kernel of a step.

    Attributes:
        name: as the device reports it.
        launches: how often a step launches it.
        device_s: seconds that all its launches take on the device.
    """

    name: str
    launches: int
    device_s: float


def kernels_of(step: Callable[..., Any], *arguments: Any) -> tuple[Kernel, ...]:
    """The kernels of a step that is called once, the longest first; none where they cannot be measured.

    CUPTI measures them, through ``jax.experimental.mosaic.gpu.profiler``. It cannot while another profiler runs.

    >>> kernels_of(lambda x: x + 1, 1.0) if jax.default_backend() == "cpu" else ()
    ()
    """
    if jax.default_backend() != "gpu":
        return ()
    try:
        from jax.experimental.mosaic.gpu import profiler

        _, timings = profiler.measure(jax.jit(step), aggregate=False)(*arguments)
    except Exception:  # it is experimental, and what it needs may not be installed
        return ()
    taken: dict[str, list[float]] = {}
    for name, milliseconds in timings or ():
        taken.setdefault(name, []).append(1e-3 * milliseconds)
    kernels = [Kernel(name, len(each), sum(each)) for name, each in taken.items()]
    return tuple(sorted(kernels, key=lambda kernel: -kernel.device_s))


def kernel_table(kernels: Sequence[Kernel], step_s: float) -> str:
    """The longest kernels, and for which part of a step's time the device works; "" if there are no kernels.

    >>> print(kernel_table([Kernel("gemm", 2, 3e-6), Kernel("fusion", 1, 1e-6)], 5e-6))
    kernel  launches  us on the device   share
    ------------------------------------------
    gemm           2                 3  75.0 %
    fusion         1                 1  25.0 %
    the device works 4 us of the 5 us that a step takes in a compiled loop; the rest is launching and waiting
    """
    if not kernels:
        return ""
    total_s, rest = sum(kernel.device_s for kernel in kernels), kernels[_MOST_ROWS:]
    listed = [*kernels[:_MOST_ROWS]]
    if rest:
        launches, rest_s = sum(kernel.launches for kernel in rest), sum(kernel.device_s for kernel in rest)
        listed.append(Kernel(f"{len(rest)} more", launches, rest_s))
    rows = [
        (name[:_NAME_LENGTH], launches, significant(1e6 * device_s), percent(device_s / total_s))
        for name, launches, device_s in listed
    ]
    works, takes = significant(1e6 * total_s), significant(1e6 * step_s)
    share = f"the device works {works} us of the {takes} us that a step takes in a compiled loop"
    table = text_table(("kernel", "launches", "us on the device", "share"), rows)
    return f"{table}\n{share}; the rest is launching and waiting"


def clock_reader() -> Callable[[], tuple[float, str]] | None:
    """A function that reads the clock of JAX's default device: in MHz, and what limits it ("" if nothing).

    None where that is no GPU of NVIDIA, or ``nvidia-ml-py`` is not installed. No setting is changed.
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
            limits = dict.fromkeys(why for bit, why in _LIMITS.items() if reasons & bit)
            return float(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)), " and ".join(limits)

        read()
    except Exception:  # no library, no driver or no permission
        return None
    return read


def _handle(pynvml: Any, index: int) -> Any:
    """The device with an index among those that this process can use."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    name = visible[index] if index < len(visible) else str(index)
    return pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else pynvml.nvmlDeviceGetHandleByUUID(name)
