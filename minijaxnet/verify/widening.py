"""Arrays in float64 on the host; a complex array is complex128, or real with a last axis of two parts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._trees import is_keys


def is_inexact(value: Any) -> bool:
    """Whether a value is a floating or complex array."""
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.inexact)


def is_distributed(leaf: Any) -> bool:
    """Whether an array is on more devices than one."""
    return isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1


def wide_dtype(dtype: Any) -> Any:
    """float64, or complex128 for a complex dtype."""
    return np.dtype(np.complex128 if jnp.issubdtype(dtype, jnp.complexfloating) else np.float64)


def widened(leaf: Any) -> Any:
    """A floating or complex leaf in float64 or complex128 on the host, any other as it is; on one device."""
    if is_inexact(leaf):
        return np.asarray(leaf).astype(wide_dtype(leaf.dtype))
    if is_distributed(leaf) and is_keys(leaf):
        data = np.asarray(jax.random.key_data(leaf))
        return jax.random.wrap_key_data(jnp.asarray(data), impl=jax.random.key_impl(leaf))
    # Of a NumPy array a copy: JAX remembers the dtype that it once gave to an array.
    return np.array(leaf) if is_distributed(leaf) or isinstance(leaf, np.ndarray) else leaf


def as_real(array: Any) -> np.ndarray:
    """As float64; a complex array gets a last axis of its two parts."""
    array = np.asarray(array)
    if np.iscomplexobj(array):
        array = np.stack([array.real, array.imag], axis=-1)
    return array.astype(np.float64)


def from_real(real: np.ndarray, dtype: Any) -> np.ndarray:
    """The inverse of ``as_real`` for a leaf of this dtype, in float64 or complex128."""
    return real[..., 0] + 1j * real[..., 1] if jnp.issubdtype(dtype, jnp.complexfloating) else real


def largest(array: np.ndarray) -> float:
    """The largest size of a finite element; 0 if there is none."""
    return float(np.max(np.abs(array), initial=0.0, where=np.isfinite(array)))
