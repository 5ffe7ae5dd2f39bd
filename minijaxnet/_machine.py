"""What numbers depend on beside the code: the processor, and settings of JAX by which it computes other ones."""

import os
import platform
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

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
    return values | {name: os.environ.get(name, "") for name in ("JAX_ENABLE_X64", "NVIDIA_TF32_OVERRIDE")}


def choose_deterministic() -> None:
    """Have XLA take for a GPU only kernels that return the same bits each time, if JAX has not started yet."""
    flags, wanted = os.environ.get("XLA_FLAGS", ""), "--xla_gpu_deterministic_ops=true"
    if wanted not in flags.split():
        os.environ["XLA_FLAGS"] = f"{flags} {wanted}".strip()


# Bits of the fraction that a matrix product of float32 reads of its operands, where not all 23.
_BITS = {
    "gpu": {"DEFAULT": 10, "HIGH": 10},
    "tpu": {"DEFAULT": 7, "HIGH": 14},
    "cpu": {},
}
_BITS_OF_ALGORITHMS = {"BF16_BF16_F32": 7, "BF16_BF16_F32_X3": 14, "TF32_TF32_F32": 10, "F16_F16_F32": 10}
_ALIASES = {"NONE": "DEFAULT", "FASTEST": "DEFAULT", "BFLOAT16": "DEFAULT"} | dict.fromkeys(
    ("TENSORFLOAT32", "BFLOAT16_3X"), "HIGH"
)


def product_epsilon(dtype: Any, platform: str) -> float:
    """The relative rounding of what a matrix product reads, as JAX is set: on a GPU coarser than float32's own.

    >>> product_epsilon("float32", "cpu"), product_epsilon("float32", "gpu"), product_epsilon("bfloat16", "gpu")
    (1.1920928955078125e-07, 0.0009765625, 0.0078125)
    """
    own = float(jnp.finfo(dtype).eps)
    bits = _product_bits(platform) if own == float(jnp.finfo(jnp.float32).eps) else None
    return own if bits is None else 2.0**-bits


def product_note(platform: str) -> str:
    """That a matrix product of float32 has fewer digits than float32, if it is so.

    >>> product_note("cpu"), product_note("gpu")
    ('', 'float32 products with 10 of 23 bits (jax_default_matmul_precision is None)')
    """
    bits, asked = _product_bits(platform), jax.config.values["jax_default_matmul_precision"]
    return "" if bits is None else f"float32 products with {bits} of 23 bits (jax_default_matmul_precision is {asked})"


def _product_bits(platform: str) -> int | None:
    asked = str(jax.config.jax_default_matmul_precision).upper()  # pyright: ignore[reportAttributeAccessIssue]
    return _BITS_OF_ALGORITHMS.get(asked, _BITS.get(platform, {}).get(_ALIASES.get(asked, asked)))


def read_text(path: str) -> str | None:
    """A file of the system; None where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
