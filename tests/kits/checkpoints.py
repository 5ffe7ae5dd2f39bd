"""What the tests of checkpoints share."""

import functools
import struct
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet.run import save_checkpoint

# A bit of everything, in 78 bytes of data.
TREE = {
    "weights": np.arange(12, dtype=np.float32).reshape(3, 4),
    "bias": (np.float16([1, 2, 3]), np.zeros((0, 2), np.int8)),
    "rate": 0.25,
    "nothing": None,
    "complex": np.complex128([1 + 2j]),
}


def bits(leaf):
    """All that a leaf is, comparable: its kind, dtype, shape and bytes."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return "key", str(jax.random.key_impl(leaf)), leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes()
    kind = "jax" if isinstance(leaf, jax.Array) else type(leaf).__name__
    array = np.asarray(leaf)
    return kind, array.dtype.str if array.dtype.kind in "biufc" else array.dtype.name, array.shape, array.tobytes()


def assert_same_bits(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    assert list(map(bits, jax.tree.leaves(got))) == list(map(bits, jax.tree.leaves(expected)))


@functools.cache
def good_file():
    """A checkpoint of the tree at step 41, its bytes."""
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "good", TREE, step=41)
        return (Path(folder) / "good").read_bytes()


def parts(content):
    """Length, header's text and data of a file."""
    length = struct.unpack("<Q", content[:8])[0]
    return content[:8], content[8 : 8 + length], content[8 + length :]
