"""What the tests of checkpoints share."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np

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


def run_python(code, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
