"""The machine that a figure was measured on: what it is, and how its speed wanders."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np

from minijaxnet._loops import block_on, repeated
from minijaxnet._machine import processor, product_note, read_text
from minijaxnet.bench.blocks import seconds_of, steps_for

_SENTINEL_S = 0.002
# What has to be equal for two results to be of the same machine.
SAME = ("processor", "cores", "devices", "platform")


def machine() -> dict[str, Any]:
    """What a time depends on beside the code, in JSON's own kinds; what can't be read is None.

    >>> found = machine()
    >>> sorted(found)[:4], found["cores"] > 0
    (['commit', 'cores', 'devices', 'driver'], True)
    """
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "governor": read_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        "driver": getattr(jax.devices()[0].client, "platform_version", None),
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "x64": jnp.result_type(float) == jnp.float64,
        "matmul_precision": str(jax.config.values["jax_default_matmul_precision"]),
        "products": product_note(jax.devices()[0].platform),
        "python": platform.python_version(),
        "commit": _commit(),
    }


def sentinel() -> Callable[[], float]:
    """A function that times a fixed workload: products of small matrices in one compiled loop, always the same."""
    matrix = jax.device_put(np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32) / 64)

    def products(matrix: Any, times: Any) -> Any:
        return repeated(times, lambda _, x: matrix @ x + matrix, matrix, block)

    block = block_on(matrix)

    program = jax.jit(products).lower(matrix, 1).compile()

    def seconds(times: int) -> float:
        return seconds_of(lambda: program(matrix, times))

    times = steps_for(_SENTINEL_S, seconds, "sentinel")
    return lambda: seconds(times) / times


def _commit() -> str | None:
    """The commit of the directory one works in, with ``+`` and a digest of what is not committed."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()

    try:
        changes = git("diff", "HEAD")
        return git("rev-parse", "HEAD") + (f"+{hashlib.sha256(changes.encode()).hexdigest()[:8]}" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None
