"""Checkpoints: a tree comes back bit by bit, or not at all if the template is another one."""

import dataclasses
import re
from collections import OrderedDict, namedtuple
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import safetensors
import safetensors.flax
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kits.checkpoints import assert_same_bits

import minijaxnet as mjn
from minijaxnet.run import CheckpointError, checkpoint_step, load_checkpoint, save_checkpoint


class Pair(NamedTuple):
    first: Any
    second: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    weights: Any
    bias: Any
    activation: Any = dataclasses.field(default=None, metadata={"static": True})


def blank(leaf):
    """A leaf of the same kind with other values."""
    if isinstance(leaf, np.ndarray):
        return np.zeros(leaf.shape, leaf.dtype)
    if isinstance(leaf, np.generic | bool | int | float | complex):
        return type(leaf)(0)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(0 * jax.random.key_data(leaf), impl=jax.random.key_impl(leaf))
    with jax.enable_x64(True):
        return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding if leaf.committed else None)


def there_and_back(tree, path):
    save_checkpoint(path, tree, step=3)
    assert checkpoint_step(path) == 3
    return load_checkpoint(path, jax.tree.map(blank, tree))


# --- There and back ---------------------------------------------------------------------------------------------------

NUMPY_DTYPES = [
    *(
        f"{order}{kind}"
        for order in "<>"
        for kind in ("i2", "i4", "i8", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
    ),
    *("?", "i1", "u1", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3b11fnuz"),
]
LAYOUTS = {
    "C": lambda array: array,
    "Fortran": np.asfortranarray,
    "transposed": lambda array: np.ascontiguousarray(array.T).T,
    "strided": lambda array: np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array,
    "backwards": lambda array: array[::-1][::-1].copy()[::-1] if array.ndim else array,
    "broadcast": lambda array: np.broadcast_to(array[:1], array.shape) if array.ndim and len(array) else array,
    "read-only": lambda array: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape),
    "unaligned": lambda array: np.frombuffer(b"x" + array.tobytes(), array.dtype, offset=1).reshape(array.shape),
}


@st.composite
def numpy_leaves(draw):
    dtype = np.dtype(draw(st.sampled_from(NUMPY_DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    size = int(np.prod(shape)) * dtype.itemsize
    data = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, size, np.uint8)
    array = (data % 2 == 1 if dtype.kind == "b" else data.view(dtype)).reshape(shape)
    return LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](array)


TEXT = st.text(st.sampled_from("ab/']\\\"\n\0é٤😀"), max_size=3)  # of all characters it would take a second to know
NUMBERS = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_subnormal=True) | st.complex_numbers()
SCALARS = NUMBERS | st.sampled_from([np.float32(1.5), np.int8(-3), np.bool_(True), np.complex64(1j), np.float64("nan")])
EMPTY = st.sampled_from([None, (), [], {}, optax.EmptyState()])
TREES = st.recursive(
    numpy_leaves() | SCALARS | EMPTY,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(TEXT, inner, max_size=3)
        | st.dictionaries(st.integers(-9, 9), inner, max_size=3)
        | st.builds(Pair, inner, inner)
        | st.builds(Layer, inner, inner)
        | st.dictionaries(TEXT, inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES)
def test_trees_of_numpy_arrays_and_numbers_come_back_bit_by_bit(tree, tmp_path):
    path = tmp_path / "a.safetensors"
    loaded = there_and_back(tree, path)
    assert_same_bits(loaded, tree)
    assert all(
        leaf.flags.writeable and leaf.flags.owndata for leaf in jax.tree.leaves(loaded) if type(leaf) is np.ndarray
    )
    with safetensors.safe_open(path, "np") as file:
        assert len(list(file.keys())) == len(jax.tree.leaves(tree))
    assert [found.name for found in tmp_path.iterdir()] == ["a.safetensors"]


DTYPES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 bfloat16 float32 float64 complex64 complex128"
DTYPES += " float8_e3m4 float8_e4m3 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz"
DTYPES += " float8_e8m0fnu float4_e2m1fn int2 int4 uint2 uint4"


@pytest.mark.parametrize("dtype", DTYPES.split())
def test_jax_arrays_of_every_dtype_come_back(dtype, tmp_path):
    values = np.random.default_rng(0).integers(0, 2, (2, 3)).astype(dtype)
    with jax.enable_x64(True):
        tree = {"matrix": values, "scalar": values[0, 1], "empty": values[:0]}
        tree = jax.tree.map(jax.device_put, tree)
        assert tree["matrix"].dtype == dtype
        assert_same_bits(there_and_back(tree, tmp_path / "a"), tree)
    # And where x64 is off: what it was given is float64, and what it hands back is.
    assert_same_bits(there_and_back(tree, tmp_path / "a"), tree)
    structs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    assert_same_bits(load_checkpoint(tmp_path / "a", structs), tree)


def test_every_bit_pattern_of_the_narrow_floats_comes_back(tmp_path):
    tree = {
        "bfloat16": jax.device_put(np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16)),
        "float16": jax.device_put(np.arange(1 << 16, dtype=np.uint16).view(np.float16)),
        "float8": jax.device_put(np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)),
        "NaN": np.array([0x7F800001, 0xFFC12345, 0x7FC00000], np.uint32).view(np.float32),
    }
    assert_same_bits(there_and_back(tree, tmp_path / "a"), tree)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_typed_keys_come_back_as_they_were(impl, tmp_path):
    key = jax.random.key(7, impl=impl)
    data = np.asarray(jax.random.key_data(key))
    several = np.arange(3 * data.size, dtype=np.uint32).reshape(3, 1, -1)
    tree = {"key": key, "keys": jax.random.wrap_key_data(several, impl=impl), "data": jax.device_put(data)}
    assert_same_bits(there_and_back(tree, tmp_path / "a"), tree)
    structs = jax.eval_shape(lambda: tree)
    assert_same_bits(load_checkpoint(tmp_path / "a", structs), tree)


def test_the_template_says_what_kind_of_leaf_comes_back(tmp_path):
    save_checkpoint(tmp_path / "a", [np.float64(1.5)] * 5, step=0)
    like = [0.0, np.float64(0), np.zeros(()), jax.ShapeDtypeStruct((), np.float64), np.zeros((), ">f8")]
    loaded = load_checkpoint(tmp_path / "a", like)
    assert [type(leaf) for leaf in loaded[:3]] == [float, np.float64, np.ndarray]
    assert isinstance(loaded[3], jax.Array)
    assert loaded[4].dtype.str == ">f8"
    assert [float(leaf) for leaf in loaded] == [1.5] * 5


def test_a_template_whose_buffers_were_donated_will_do(tmp_path):
    tree = {"weights": jax.device_put(np.arange(3.0))}
    save_checkpoint(tmp_path / "a", tree, step=0)
    tree["weights"].delete()
    assert load_checkpoint(tmp_path / "a", tree)["weights"].tolist() == [0, 1, 2]


def test_steps_are_kept_and_checked(tmp_path):
    for step in (0, 1, np.int32(7), jnp.int32(12), 10**18 - 1):
        save_checkpoint(tmp_path / "a", [], step=step)
        assert checkpoint_step(tmp_path / "a") == int(step)
    for step, kind in ((-1, ValueError), (10**18, ValueError), (1.0, TypeError), (True, TypeError), (None, TypeError)):
        with pytest.raises(kind, match=rf"^step: got {step}; expected"):
            save_checkpoint(tmp_path / "a", [], step=step)
    assert checkpoint_step(tmp_path / "a") == 10**18 - 1


# --- The template -----------------------------------------------------------------------------------------------------

X = np.float32([1, 2])
APART = {
    "a path, a nested one": ({"a/b": X}, {"a": {"b": X}}),
    "a key that looks like a path": ({"a']['b": X}, {"a": {"b": X}}),
    "keys of two implementations": lambda: ([jax.random.key(7)], [jax.random.key(7, impl="rbg")]),
    "integer key, list": ({0: X}, [X]),
    "integer key, text key": ({0: X}, {"0": X}),
    "list, tuple": ([X], (X,)),
    "tuple, named tuple": ((X, X), Pair(X, X)),
    "named tuple, dataclass": (namedtuple("Layers", "weights bias")(X, X), Layer(X, X)),
    "dict, ordered dict": ({"a": X}, OrderedDict(a=X)),
    "None, nothing": ({"a": X, "b": None}, {"a": X}),
    "an empty list, an empty dict": ([X, []], [X, {}]),
    "None under different keys": ([X, {"a": None}], [X, {"b": None}]),
    "None, a leaf": ({"a": None}, {"a": X}),
    "a leaf less": ([X], [X, X]),
    "shape": ([np.zeros(6)], [np.zeros((2, 3))]),
    "a scalar, one element": ([np.zeros(())], [np.zeros(1)]),
    "dtypes of one width": ([np.zeros(2, np.int32)], [np.zeros(2, np.float32)]),
    "bytes of one width": ([np.zeros(2, np.uint8)], [np.zeros(2, ml_dtypes.int4)]),
    "complex, pairs": ([np.zeros(2, np.complex64)], [np.zeros((2, 2), np.float32)]),
    "a key, its data": lambda: ([jax.random.key(0)], [np.zeros(2, np.uint32)]),
    "bool, int8": ([True], [np.int8(1)]),
}


@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize("way", [1, -1], ids=["", "the other way"])
def test_trees_that_differ_are_kept_apart(name, way, tmp_path):
    pair = APART[name]() if callable(APART[name]) else APART[name]
    saved, like = pair[::way]
    save_checkpoint(tmp_path / "a", saved, step=0)
    assert_same_bits(load_checkpoint(tmp_path / "a", saved), saved)
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(tmp_path / 'a'))}: tree.*: got .*; expected .*"):
        load_checkpoint(tmp_path / "a", like)


def difference(saved, like, path):
    save_checkpoint(path, saved, step=0)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, like)
    return str(caught.value).removeprefix(f"{path}: ").split("\n  ")


def test_an_error_names_each_leaf_what_the_file_holds_and_what_was_expected(tmp_path):
    saved = {"kernel": X, "old": np.ones((2, 3), np.float32), "same": X, "c": np.zeros((3, 1), np.complex128)}
    like = {"kernel": np.ones(3, np.float32), "new": [np.int8(1)], "same": X, "c": 1j}
    assert difference(saved, like, tmp_path / "a") == [
        "tree['c']: got complex128[3,1]; expected complex128[]",
        "tree['kernel']: got float32[2]; expected float32[3]",
        "tree['new']: got nothing; expected list",
        "tree['new'][0]: got nothing; expected int8[]",
        "tree['old']: got float32[2,3]; expected nothing",
    ]
    assert difference([X], (X,), tmp_path / "a") == ["tree: got list; expected tuple"]
    assert difference({"a": None}, {"a": X}, tmp_path / "a") == ["tree['a']: got None; expected float32[2]"]
    keys = jax.random.split(jax.random.key(0), 3)
    assert difference(keys, X, tmp_path / "a") == ["tree: got key<threefry2x32>[3]; expected float32[2]"]
    [*_, more] = difference([X] * 9, [X[:1]] * 9, tmp_path / "a")
    assert more == "and 4 more"


def test_ordered_dicts_of_another_order_hold_the_same(tmp_path):
    save_checkpoint(tmp_path / "a", OrderedDict(a=np.ones(1), b=np.zeros(2)), step=0)
    loaded = load_checkpoint(tmp_path / "a", OrderedDict(b=np.ones(2), a=np.zeros(1)))
    assert_same_bits(loaded, OrderedDict(b=np.zeros(2), a=np.ones(1)))


REFUSED = {
    "text": ("relu", TypeError, "got str; expected an array or a number"),
    "a function": (abs, TypeError, "got builtin_function_or_method; expected an array or a number"),
    "objects": (np.array([{}, None]), TypeError, "got dtype object; expected numbers"),
    "an array of text": (np.array(["a"]), TypeError, "got dtype <U1; expected numbers"),
    "dates": (np.zeros(2, "datetime64[s]"), TypeError, r"got dtype datetime64\[s\]; expected numbers"),
    "records": (np.zeros(2, "i4,f4"), TypeError, "got dtype .*; expected numbers"),
    "long double": (np.zeros(2, np.clongdouble), TypeError, "got dtype c.*; expected numbers"),
    "masked": (np.ma.masked_array([1.0], [True]), TypeError, "got MaskedArray; expected an array or a number"),
    "an enumeration": (mjn.FLAT, TypeError, "got Status; expected an array or a number"),
    "a shape": (jax.ShapeDtypeStruct((), "f4"), TypeError, "got ShapeDtypeStruct; expected an array with data"),
    "a wide int": (2**63, ValueError, "got an int of 64 bits; expected one that fits into 64"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_array_is_refused_by_name_and_nothing_is_written(name, tmp_path):
    leaf, kind, text = REFUSED[name]
    with pytest.raises(kind, match=rf"^tree\.second\['bad'\]: {text}"):
        save_checkpoint(tmp_path / "a", Pair(X, {"bad": leaf}), step=0)
    assert not list(tmp_path.iterdir())
    if kind is TypeError and name != "a shape":
        save_checkpoint(tmp_path / "a", Pair(X, {"bad": X}), step=0)
        with pytest.raises(kind, match=rf"^tree\.second\['bad'\]: {text}"):
            load_checkpoint(tmp_path / "a", Pair(X, {"bad": leaf}))


def test_a_donated_array_is_refused_by_name(tmp_path):
    gone = jax.device_put(np.ones(3))
    gone.delete()
    with pytest.raises(
        ValueError, match=r"^tree\['w'\]: got an array that was deleted or donated; expected one with data"
    ):
        save_checkpoint(tmp_path / "a", {"w": gone}, step=0)
    assert not list(tmp_path.iterdir())


def test_data_of_other_processes_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(type(jax.device_put(1.0)), "is_fully_addressable", False)
    whole = {"w": jax.device_put(np.ones(2))}  # replicated: all of it is here
    monkeypatch.setattr(type(jax.device_put(1.0)), "is_fully_replicated", False)
    with pytest.raises(ValueError, match=r"^tree\['w'\]: got an array on devices of other processes; expected all"):
        save_checkpoint(tmp_path / "a", whole, step=0)
    monkeypatch.setattr(type(jax.device_put(1.0)), "is_fully_replicated", True)
    save_checkpoint(tmp_path / "a", whole, step=0)
