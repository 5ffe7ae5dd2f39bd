"""What numbers depend on beside the code: the processor, and settings of JAX by which it computes other ones."""

import os
import platform
from pathlib import Path
from typing import Any

import jax

# Those by which the same code draws or rounds otherwise.
_SETTINGS = (
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
    "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion",
    "jax_legacy_prng_key",
    "jax_disable_jit",
)


def processor() -> str:
    """The processor's model.

    >>> len(processor()) > 0
    True
    """
    text = read_text("/proc/cpuinfo") or ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def jax_settings() -> dict[str, Any]:
    """JAX's settings that change numbers, those of the whole process, in JSON's own kinds.

    >>> jax_settings()["jax_default_prng_impl"]
    'threefry2x32'
    """
    values = {name: jax.config.values[name] for name in _SETTINGS if name in jax.config.values}
    # Within a run float64 is allowed or not by its precision; the experiment's file was loaded before that.
    return values | {"JAX_ENABLE_X64": os.environ.get("JAX_ENABLE_X64", "")}


def read_text(path: str) -> str | None:
    """A file of the system; None where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
