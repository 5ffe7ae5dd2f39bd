"""The machine, its software and JAX's settings: everything but the code that numbers and times depend on."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from minijaxnet._types import DTypeLike

_PACKAGES = ("minijaxnet", "jax", "jaxlib", "numpy", "optax", "scikit-learn")
# JAX's settings that change random numbers or rounding.
_SETTINGS = (
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
    "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion",
    "jax_legacy_prng_key",
    "jax_disable_jit",
)


def description() -> dict[str, Any]:
    """Describe the machine, its software and JAX's settings, as JSON values; None for what cannot be read.

    It is stored with a run and with a saved comparison. Each compares only the entries that matter to it.

    >>> found = description()
    >>> found["cores"] > 0, sorted(found)[:4]
    (True, ['cores', 'devices', 'driver', 'governor'])
    """
    first, *_ = devices = jax.devices()
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "processor": processor(),
        "processor_count": os.cpu_count(),
        # The cores that this process may use.
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "devices": [f"{device.platform}: {device.device_kind}" for device in devices],
        "driver": getattr(first.client, "platform_version", None),
        "settings": jax_settings(),
        "x64": jnp.result_type(float) == jnp.float64,
        "products": product_note(first.platform),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def processor() -> str:
    """The processor's model.

    >>> len(processor()) > 0
    True
    """
    lines = (_text("/proc/cpuinfo") or "").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def jax_settings() -> dict[str, Any]:
    """The settings of JAX, for the whole process, that change numbers, as JSON values.

    >>> jax_settings()["jax_default_prng_impl"]
    'threefry2x32'
    """
    values = {name: jax.config.values[name] for name in _SETTINGS if name in jax.config.values}
    # A run switches float64 on or off by its precision, but the experiment's file is loaded before that.
    return values | {name: os.environ.get(name, "") for name in ("JAX_ENABLE_X64", "NVIDIA_TF32_OVERRIDE")}


def choose_deterministic() -> None:
    """Restrict XLA on a GPU to kernels that return the same bits each time; to be called before JAX starts."""
    flags, deterministic = os.environ.get("XLA_FLAGS", ""), "--xla_gpu_deterministic_ops=true"
    if deterministic not in flags.split():
        os.environ["XLA_FLAGS"] = f"{flags} {deterministic}".strip()


# Bits of the operands' fractions that a float32 matrix product uses, where it does not use all 23.
_BITS = {
    "gpu": {"DEFAULT": 10, "HIGH": 10},
    "tpu": {"DEFAULT": 7, "HIGH": 14},
    "cpu": {},
}
_BITS_OF_ALGORITHMS = {"BF16_BF16_F32": 7, "BF16_BF16_F32_X3": 14, "TF32_TF32_F32": 10, "F16_F16_F32": 10}
_ALIASES = {"NONE": "DEFAULT", "FASTEST": "DEFAULT", "BFLOAT16": "DEFAULT"} | dict.fromkeys(
    ("TENSORFLOAT32", "BFLOAT16_3X"), "HIGH"
)


def product_epsilon(dtype: DTypeLike, platform: str) -> float:
    """The rounding unit of a matrix product's operands by JAX's settings; on a GPU larger than that of float32.

    >>> product_epsilon("float32", "cpu"), product_epsilon("float32", "gpu"), product_epsilon("bfloat16", "gpu")
    (1.1920928955078125e-07, 0.0009765625, 0.0078125)
    """
    own = float(jnp.finfo(dtype).eps)
    bits = _product_bits(platform) if own == float(jnp.finfo(jnp.float32).eps) else None
    return own if bits is None else 2.0**-bits


def product_note(platform: str) -> str:
    """A note if float32 matrix products use fewer bits than float32 has; else "".

    >>> product_note("cpu"), product_note("gpu")
    ('', 'float32 products with 10 of 23 bits (jax_default_matmul_precision is None)')
    """
    bits, precision = _product_bits(platform), jax.config.values["jax_default_matmul_precision"]
    if bits is None:
        return ""
    return f"float32 products with {bits} of 23 bits (jax_default_matmul_precision is {precision})"


def _product_bits(platform: str) -> int | None:
    precision = str(jax.config.jax_default_matmul_precision).upper()  # pyright: ignore[reportAttributeAccessIssue]
    return _BITS_OF_ALGORITHMS.get(precision, _BITS.get(platform, {}).get(_ALIASES.get(precision, precision)))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _text(path: str) -> str | None:
    """The content of a system file; None if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
