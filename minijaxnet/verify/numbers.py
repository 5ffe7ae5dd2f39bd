"""Numbers on the host: floats as float64, complex ones as complex128 or as pairs of float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._trees import is_keys
from minijaxnet.verify.perturbation import wide_dtype


def widened(leaf: Any) -> Any:
    """A floating or complex leaf in float64 or complex128 on the host, any other as it is; on one device."""
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return np.asarray(leaf).astype(wide_dtype(leaf.dtype))
    if not is_spread(leaf):
        return np.array(leaf) if isinstance(leaf, np.ndarray) else leaf  # nothing that JAX keeps
    if is_keys(leaf):
        data, kind = np.asarray(jax.random.key_data(leaf)), jax.random.key_impl(leaf)
        return jax.random.wrap_key_data(jnp.asarray(data), impl=kind)
    return np.asarray(leaf)


def as_real(array: Any) -> np.ndarray:
    """As float64 on the host; a complex array with a last axis of its two parts."""
    array = np.asarray(array)
    if np.iscomplexobj(array):
        return np.stack([array.real, array.imag], axis=-1).astype(np.float64)
    return array.astype(np.float64)


def as_given(real: np.ndarray, dtype: Any) -> np.ndarray:
    """The inverse of ``as_real`` for a leaf of this dtype, in float64 or complex128."""
    return real[..., 0] + 1j * real[..., 1] if jnp.issubdtype(dtype, jnp.complexfloating) else real


def is_spread(leaf: Any) -> bool:
    """Whether an array is on more devices than one."""
    return isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1
