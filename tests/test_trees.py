"""Helpers for trees: floating leaves, the norm, the cast, the difference of structures."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minijaxnet._checks import pair
from minijaxnet._trees import cast_floats, floating_arrays, l2_norm, structure_difference

norm_of = jax.jit(l2_norm)
TREE = ({"weights": np.ones((2, 3), np.float32), "bias": np.zeros(3, np.float32)}, [np.float32(1.0), ()])


@pytest.mark.parametrize(
    ("batch", "got"), [([1, 2, 3], "list of 3"), ({}, "dict"), (np.ones((2, 2)), r"float(32|64)\[2,2\]"), ("ab", "str")]
)
def test_what_is_no_pair_is_refused_where_it_stands(batch, got):
    with pytest.raises(TypeError, match=rf"^there: got {got}; expected a pair \(x, y\)$"):
        pair(batch, "there")


# --- floating_arrays --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([1.0, 2], r"params\[1\]: got dtype int32; expected a real floating dtype"),
        (np.complex64(1), r"params: got dtype complex64; expected a real floating dtype"),
        ({"k": jax.random.key}, r"params\['k'\]: got dtype key<fry>; expected a real floating dtype"),
        ([1.0, "text"], r"params\[1\]: got str; expected an array of floating numbers"),
        ({"a": [], "b": None}, r"params: got a tree without leaves"),
    ],
)
def test_floating_arrays_refuses_what_cannot_take_a_gradient_step_and_names_it(tree, message):
    tree = jax.tree.map(lambda leaf: leaf(0) if leaf is jax.random.key else leaf, tree)
    with pytest.raises(TypeError, match=message):
        floating_arrays(tree, "params")


# --- l2_norm ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    a=hnp.arrays(np.float32, (3, 2), elements=st.floats(-(2.0**40), 2.0**40, width=32, allow_subnormal=False)),
    b=hnp.arrays(np.float32, (4,), elements=st.floats(-1, 1, width=32, allow_subnormal=False)),
)
def test_the_norm_of_a_tree_is_that_of_one_long_vector(a, b):
    got = norm_of({"a": a, "b": [b]})
    expected = np.linalg.norm(np.concatenate([a.ravel(), b]).astype(np.float64))
    # 11 roundings at most, halved by the root; squares below 2^-126 are lost.
    assert abs(float(got) - expected) <= 6 * 2**-23 * expected + 10 * 2.0**-63


@pytest.mark.parametrize("scale", [1e-17, 1.0, 1e18])
def test_the_norm_is_exact_to_rounding_between_1e_17_and_1e18(scale):
    tree = {"a": np.float32([3 * scale, 0]), "b": np.float32([[4 * scale]])}
    assert float(norm_of(tree)) == pytest.approx(5 * scale, rel=1e-6)


def test_the_norm_of_bfloat16_leaves_is_summed_in_float32():
    # In bfloat16 the sum of 4,096 ones would stop at 256.
    norm = l2_norm([jnp.ones(4_096, jnp.bfloat16)])
    assert (norm, norm.dtype) == (64, jnp.float32)
    assert norm_of([np.full(4, 300, np.float16)]) == 600, "squares of 300 are too large for float16"


def test_the_norm_of_a_mixed_tree_is_as_wide_as_its_widest_leaf():
    with jax.enable_x64(True):
        norm = norm_of((np.ones(3), np.ones(5, jnp.bfloat16), np.ones(1, np.float32)))
        assert (norm, norm.dtype) == (3, jnp.float64)
        assert norm_of([np.ones(4, np.float32)]).dtype == jnp.float32


# --- cast_floats ------------------------------------------------------------------------------------------------------


def test_a_cast_changes_floats_and_nothing_else():
    key, dtype = jax.random.key(3), jnp.bfloat16
    tree = {"f": np.ones(2, np.float32), "py": 2.5, "i": np.arange(3, dtype=np.int32), "b": np.array([True]), "k": key}
    got = cast_floats(tree, dtype)
    assert (got["f"].dtype, got["py"].dtype) == (dtype, dtype)
    chex.assert_trees_all_equal((got["i"], got["b"]), (np.arange(3, dtype=np.int32), np.array([True])), strict=True)
    assert (got["k"] == key).all()
    assert got["py"] == 2.5


# --- structure_difference ---------------------------------------------------------------------------------------------


def test_a_tree_does_not_differ_from_its_likes():
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, TREE))
    assert structure_difference(TREE, TREE) is None
    assert structure_difference(shapes, TREE) is None
    assert structure_difference({"k": jax.random.key(0)}, {"k": jax.random.key(1)}) is None
    assert structure_difference(1.0, jnp.float32(2)) is None


@pytest.mark.parametrize(
    ("got", "expected", "message"),
    [
        ({"w": np.ones(2, np.float32)}, {"w": np.ones(3, np.float32)}, "['w']: got float32[2]; expected float32[3]"),
        ([1.0, np.int32(1)], [1.0, 1.0], "[1]: got int32[]; expected float32[]"),
        (np.zeros(2, np.uint32), jax.random.key, "(leaf): got uint32[2]; expected key<fry>[]"),
        (
            {"a": 1.0},
            {"a": 1.0, "b": 1.0},
            "got a tree with leaves [\"['a']\"]; expected [\"['a']\", \"['b']\"] (too many: [], missing: [\"['b']\"])",
        ),
        (
            (1.0, None),
            (1.0, 2.0),
            "got a tree with leaves ['[0]']; expected ['[0]', '[1]'] (too many: [], missing: ['[1]'])",
        ),
    ],
)
def test_what_keeps_one_tree_from_standing_for_another_is_said_with_its_place(got, expected, message):
    expected = expected(0) if expected is jax.random.key else expected
    assert structure_difference(got, expected) == message
