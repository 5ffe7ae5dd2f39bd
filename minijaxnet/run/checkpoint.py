"""Checkpoints: a tree of arrays in one file, restored bit by bit.

A loaded tree is compared with a template, node by node. Another dtype, a tuple instead of a list, an additional or a
missing leaf are errors that name the node. Nothing in a file is executed.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.core import Tracer

from minijaxnet._checks import check_count
from minijaxnet._types import PyTree
from minijaxnet.run.checkpoint_format import (
    MOST_HEADER_BYTES,
    MOST_STEPS,
    CheckpointError,
    Header,
    Stored,
    check_data,
    encode,
    opened,
    read_data,
    read_header,
    write,
)

# How Python numbers are stored, without loss.
_PYTHON = {bool: np.bool_, int: np.int64, float: np.float64, complex: np.complex128}
_CODES = (
    {"bool": "BOOL", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
    | {f"{kind}{8 * n}": f"{kind[0].upper()}{8 * n}" for kind in ("uint", "int") for n in (1, 2, 4, 8)}
    | {f"float{8 * n}": f"F{8 * n}" for n in (2, 4, 8)}
)
# The format has no complex numbers: an additional axis has the real and the imaginary part.
_COMPLEX = {"complex64": "F32", "complex128": "F64"}


def save_checkpoint(path: str | Path, tree: PyTree, *, step: int) -> None:
    """Save a tree of arrays as one file.

    The file is flushed to the disk when this returns. After an error (a full disk) or a kill, ``path`` has either all
    of the old content or all of the new. Bits are stored unchanged, also those of NaN. If several processes run one
    program, only one of them saves.

    It is a safetensors file, which other programs can read, with a SHA-256 of its content. Python numbers are stored as
    float64, int64, bool or complex128, and dtypes that safetensors does not have as bytes.

    Args:
        path: of the file, in a folder that exists.
        tree: a tree of JAX arrays, also sharded ones, random keys (``jax.random.key``), NumPy arrays of any strides,
            and numbers.
        step: a count that is stored with the tree, at least 0.

    Raises:
        TypeError: a leaf is neither an array nor a number; the text names it.
        ValueError: this process does not have the data of a leaf (it was donated, or is on devices of other processes);
            an int has more than 64 bits.
        OSError: the file cannot be written (a full disk, a folder that is read-only or missing); it names the path.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(f"{folder}/a.safetensors", {"weights": np.arange(3.0)}, step=7)
        ...     load_checkpoint(f"{folder}/a.safetensors", like={"weights": np.zeros(3)})
        {'weights': array([0., 1., 2.])}
    """
    write_checkpoint(Path(path), tree, step=step)


def write_checkpoint(path: Path, tree: PyTree, *, step: int, rows_sha256: str = "", read: int = 0) -> None:
    """Save with further fields of the header: a SHA-256 of the logged rows, and the number of batches read."""
    header, leaves = _described(tree)
    header = header._replace(step=check_count("step", step), rows_sha256=rows_sha256, read=read)
    if header.step >= MOST_STEPS:
        raise ValueError(f"step: got {step}; expected less than {MOST_STEPS}")
    for name, leaf in leaves.items():
        _check_has_data(name, leaf)
    if (length := len(encode(header))) > MOST_HEADER_BYTES:
        raise ValueError(
            f"tree: got {len(leaves)} leaves, a header of {length} bytes; expected at most {MOST_HEADER_BYTES}"
        )
    write(path, header, (_bytes(leaf) for leaf in leaves.values()))


def load_checkpoint(path: str | Path, like: PyTree) -> Any:
    """Load a tree that ``save_checkpoint`` saved, if its structure, shapes and dtypes are those of ``like``.

    The placement of leaves is not stored but taken from ``like``: JAX leaves are put on the devices and in the sharding
    of those in ``like`` (float64 ones also if x64 is off), NumPy leaves become NumPy arrays, and Python numbers Python
    numbers. Weak types become strong.

    Args:
        path: of the file; a symbolic link is refused.
        like: a tree of the same structure, shapes and dtypes. Its values are not used, so ``jax.ShapeDtypeStruct`` is
            enough. Static fields (an activation function in a dataclass) are taken from it.

    Returns:
        A tree like ``like``.

    Raises:
        CheckpointError: the file is damaged, is not a checkpoint, or has another tree; the text names the file and the
            leaf, what was got and what was expected.
        TypeError: a leaf of ``like`` is neither an array nor a number.
        OSError: the file cannot be read; FileNotFoundError if it does not exist.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(f"{folder}/a.safetensors", {"weights": np.arange(3.0)}, step=7)
        ...     try:
        ...         load_checkpoint(f"{folder}/a.safetensors", like={"weights": np.zeros(4)})
        ...     except CheckpointError as error:
        ...         print(str(error).removeprefix(f"{folder}/a.safetensors: "))
        tree['weights']: got float64[3]; expected float64[4]
    """
    _, tree, difference = read_checkpoint(Path(path), like)
    if difference:
        raise CheckpointError(difference)
    return tree


def checkpoint_step(path: str | Path) -> int:
    """The step of a checkpoint. The whole file is read, and its checksum is compared.

    Raises:
        CheckpointError: the file is damaged, or is not a checkpoint.
        OSError: the file cannot be read; FileNotFoundError if it does not exist.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(f"{folder}/a.safetensors", {"weights": np.arange(3.0)}, step=7)
        ...     checkpoint_step(f"{folder}/a.safetensors")
        7
    """
    with opened(Path(path)) as (file, size):
        header = read_header(Path(path), file, size)
        check_data(Path(path), file, header)
    return header.step


def read_checkpoint(path: Path, like: PyTree) -> tuple[Header, Any, str]:
    """Read a checkpoint: its header, its tree, and ""; or header, None, and the differences from ``like``."""
    expected, _ = _described(like)
    with opened(path) as (file, size):
        # A header that is far longer than the template's has another tree; it is refused before it fills the memory.
        header = read_header(path, file, size, min(MOST_HEADER_BYTES, (1 << 20) + 4 * len(encode(expected))))
        if difference := _differences(header, expected):
            return header, None, f"{path}: {difference}"
        arrays = {name: _room(header.kinds[name], stored) for name, stored in header.arrays.items()}
        read_data(path, file, header, (_byte_view(array) for array in arrays.values()))
    return header, restored(arrays, like), ""


def read_arrays(path: Path) -> tuple[Header, dict[str, np.ndarray]]:
    """Read the header and the arrays of a checkpoint without a template; random keys as their bits.

    Raises:
        CheckpointError: the file is damaged, is not a checkpoint, or has an unknown dtype.
        OSError: the file cannot be read; FileNotFoundError if it does not exist.
    """
    with opened(path) as (file, size):
        header = read_header(path, file, size)
        try:
            arrays = {name: _room(header.kinds[name], stored) for name, stored in header.arrays.items()}
        except TypeError as error:
            raise CheckpointError(f"{path}: {error}; expected a dtype of NumPy or ml_dtypes") from None
        read_data(path, file, header, (_byte_view(array) for array in arrays.values()))
    return header, arrays


def _room(kind: str, stored: Stored) -> np.ndarray:
    """An empty array for the data of a leaf."""
    if kind.startswith("key<"):
        return np.empty(stored.shape, "<u4")
    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    if _stored(kind, np.empty((), dtype))[1].code != stored.code:
        raise TypeError(f"got {kind} stored as {stored.code}")
    return np.empty(stored.shape[:-1] if kind in _COMPLEX else stored.shape, dtype.newbyteorder("<"))


def on_device(array: np.ndarray, kind: str, sharding: Any = None) -> jax.Array:
    """Put an array of a checkpoint on a device, with its saved dtype, or as random keys."""
    wide = jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype
    with jax.enable_x64(True) if wide else contextlib.nullcontext():
        if not kind.startswith("key<"):
            return jax.device_put(array, sharding)
        keys = jax.random.wrap_key_data(jnp.asarray(array), impl=kind.removeprefix("key<").rstrip(">"))
        return jax.device_put(keys, sharding)


def restored(arrays: Mapping[str, np.ndarray], like: PyTree) -> Any:
    """Build a tree like ``like`` from arrays by name."""
    _, leaves = _described(like)
    values = [_restored(arrays[name], leaf) for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(like), values)


def differences_of(header: Header, like: PyTree) -> str:
    """The differences between the tree of a checkpoint and a template; "" if there are none."""
    return _differences(header, _described(like)[0])


def _differences(got: Header, expected: Header) -> str:
    """The nodes that differ, in the template's order; "" if there are none."""

    def described(header: Header, name: str) -> str:
        kind = header.kinds.get(name, "nothing")
        if name not in header.arrays:
            return kind
        shape, has_inner_axis = header.arrays[name].shape, kind in _COMPLEX or kind.startswith("key<")
        return f"{kind}[{','.join(map(str, shape[:-1] if has_inner_axis else shape))}]"

    names = dict.fromkeys([*expected.kinds, *got.kinds])
    pairs = ((name, described(got, name), described(expected, name)) for name in names)
    found = [f"{name}: got {a}; expected {b}" for name, a, b in pairs if a != b]
    found[5:] = [f"and {len(found) - 5} more"] if found[5:] else []
    if found and "DescentState" in (got.kinds["tree"], expected.kinds["tree"]):
        found.append("(load_params loads the weights from the checkpoint of a state, or of weights alone)")
    return "\n  ".join(found)


def _nodes(node: Any, name: str = "tree") -> Iterator[tuple[str, Any, bool]]:
    """The nodes of a tree, a parent before its children: name, node, and whether it is a leaf.

    Leaves come in the order of ``jax.tree.leaves``. JAX's own leaf paths are not enough: they do not distinguish tuples
    from lists, and leave out None and empty containers.
    """
    children = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda child: child is not node)[0]
    is_leaf = [path for path, _ in children] == [()]
    yield name, node, is_leaf
    for path, child in () if is_leaf else children:
        yield from _nodes(child, name + jax.tree_util.keystr(path))


def _described(tree: PyTree) -> tuple[Header, dict[str, Any]]:
    """The header for a checkpoint of a tree, and the tree's leaves by name."""
    kinds, arrays, leaves = {}, {}, {}
    for name, node, is_leaf in _nodes(tree):
        if name in kinds:
            raise ValueError(f"{name}: got two nodes of this name; expected keys with different texts")
        if is_leaf:
            kinds[name], arrays[name] = _stored(name, node)
            leaves[name] = node
        else:
            kinds[name] = "None" if node is None else type(node).__name__
    return Header(0, kinds, arrays), leaves


def _stored(name: str, leaf: Any) -> tuple[str, Stored]:
    """The kind of a leaf, and how it is stored."""
    if type(leaf) in _PYTHON:
        dtype, shape = np.dtype(_PYTHON[type(leaf)]), ()
    elif isinstance(leaf, np.ndarray | np.generic | jax.Array | jax.ShapeDtypeStruct) and not isinstance(
        leaf, np.ma.MaskedArray
    ):
        dtype, shape = leaf.dtype, leaf.shape
    else:
        raise TypeError(f"{name}: got {type(leaf).__name__}; expected an array or a number")
    if _is_key(leaf):
        return f"key<{_key_impl(leaf)}>", Stored("U32", jax.eval_shape(jax.random.key_data, leaf).shape)
    if dtype.name in _COMPLEX:
        return dtype.name, Stored(_COMPLEX[dtype.name], (*shape, 2))
    one_byte = dtype.itemsize == 1 and getattr(ml_dtypes, dtype.name, None) is dtype.type
    if code := _CODES.get(dtype.name, "U8" if one_byte else None):
        return dtype.name, Stored(code, tuple(shape))
    raise TypeError(f"{name}: got dtype {dtype}; expected numbers")


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_impl(keys: Any) -> Any:
    """The implementation of random keys; found by tracing, since ``key_impl`` does not take a ShapeDtypeStruct."""
    impls = []
    jax.eval_shape(lambda traced: impls.append(jax.random.key_impl(traced)), keys)
    return impls[0]


def _check_has_data(name: str, leaf: Any) -> None:
    if isinstance(leaf, jax.ShapeDtypeStruct | Tracer):
        raise TypeError(f"{name}: got {type(leaf).__name__}; expected an array with data")
    if type(leaf) is int and not -(1 << 63) <= leaf < 1 << 63:
        raise ValueError(f"{name}: got an int of {leaf.bit_length()} bits; expected one that fits into 64")
    if isinstance(leaf, jax.Array):
        if leaf.is_deleted():
            raise ValueError(f"{name}: got an array that was deleted or donated; expected one with data")
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            raise ValueError(f"{name}: got an array on devices of other processes; expected all data in this process")


def _bytes(leaf: Any) -> memoryview:
    """The data of a leaf, in row-major order and little-endian."""
    array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf, _PYTHON.get(type(leaf)))
    return _byte_view(np.ascontiguousarray(array, array.dtype.newbyteorder("<")))


def _byte_view(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _restored(array: np.ndarray, like: PyTree) -> Any:
    """Convert an array to the kind of leaf that ``like`` is."""
    if type(like) in _PYTHON:
        return array.item()
    if isinstance(like, np.ndarray | np.generic):
        array = array.astype(like.dtype, copy=False)
        return array if isinstance(like, np.ndarray) else array[()]
    # An uncommitted array stays uncommitted, so that JAX can move it to the device of others.
    sharding = like.sharding if isinstance(like, jax.ShapeDtypeStruct) or like.committed else None
    return on_device(array, f"key<{_key_impl(like)}>" if _is_key(like) else array.dtype.name, sharding)
