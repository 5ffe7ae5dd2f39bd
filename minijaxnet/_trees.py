"""Functions on trees that JAX lacks: named leaves, a norm, a cast, a comparison of structures."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from minijaxnet._types import DTypeLike, PyTree

# Leaves with at least this many elements are summed in two steps.
_MANY = 1024


def leaf_name(path: tuple[Any, ...]) -> str:
    """The path of a leaf in Python's notation; ``(leaf)`` if the tree is a single leaf.

    >>> [(path, leaf)] = jax.tree_util.tree_flatten_with_path({"bias": 1.0})[0]
    >>> leaf_name(path)
    "['bias']"
    """
    return jax.tree_util.keystr(path) or "(leaf)"


def is_keys(values: Any) -> bool:
    """Whether the array holds random keys."""
    return jnp.issubdtype(values.dtype, jax.dtypes.prng_key)


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by name, in the tree's order.

    >>> named_leaves(({"weights": 1.0}, 2.0))
    {"[0]['weights']": 1.0, '[1]': 2.0}
    """
    return {leaf_name(p): leaf for p, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def number_of(tree: PyTree) -> int:
    """The total number of elements in a tree of arrays.

    >>> number_of({"a": jnp.ones((2, 3)), "b": 1.0})
    7
    """
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree))


def checked_tree(tree: PyTree, where: str) -> Any:
    """Return the tree if JAX can flatten it.

    Raises:
        TypeError: a dictionary has keys that cannot be sorted.
        ValueError: it is nested too deep.

    Example:
        >>> checked_tree({1: 0.0, "b": 0.0}, "params")
        Traceback (most recent call last):
        TypeError: params: got a dictionary with keys of several types; expected keys that can be sorted
    """
    try:
        jax.tree.leaves(tree)
    except (RecursionError, SystemError):
        raise ValueError(f"{where}: got a tree that is nested too deep; expected fewer levels") from None
    except ValueError as error:
        if "sorting" not in str(error):
            raise
        raise TypeError(
            f"{where}: got a dictionary with keys of several types; expected keys that can be sorted"
        ) from None
    return tree


def floating_arrays(tree: PyTree, where: str) -> Any:
    """Convert each leaf to a strongly typed floating array, as a descent needs it.

    With a weak type (a Python number) the first and the second state would differ in type, and the step would be
    compiled twice.

    Args:
        tree: a tree of real floating arrays or Python floats.
        where: the name of the tree in an error.

    Returns:
        The same tree; leaves keep their dtype, Python floats get JAX's default one.

    Raises:
        TypeError: a leaf is not a real floating number (integer, boolean, complex, text); the tree is empty.

    Example:
        >>> floating_arrays({"weight": 2.0}, "params")
        {'weight': Array(2., dtype=float32)}
        >>> floating_arrays([1, 2], "params")
        Traceback (most recent call last):
        TypeError: params[0]: got dtype int32; expected a real floating dtype (a gradient step is not an integer)
    """

    def convert(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        name = where + jax.tree_util.keystr(path)
        try:
            array = jnp.asarray(leaf)
        except TypeError:
            kind = f"dtype {leaf.dtype}" if hasattr(leaf, "dtype") else type(leaf).__name__
            hint = " (for a module of layers: only its arrays, as from equinox.partition)" if callable(leaf) else ""
            raise TypeError(f"{name}: got {kind}; expected an array of floating numbers{hint}") from None
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(
                f"{name}: got dtype {array.dtype}; expected a real floating dtype (a gradient step is not an integer)"
            )
        return lax.convert_element_type(array, array.dtype)

    if not jax.tree.leaves(checked_tree(tree, where)):
        raise TypeError(f"{where}: got a tree without leaves; expected at least one array")
    return jax.tree_util.tree_map_with_path(convert, tree)


def l2_norm(tree: PyTree) -> jax.Array:
    r"""The Euclidean norm of a tree as one long vector: ``sqrt(sum_i g_i^2)``.

    Squares are summed in float32, or in float64 if a leaf is float64, so that bfloat16 leaves lose no digits.

    Args:
        tree: a tree of floating arrays.

    Returns:
        A scalar, float32 or wider.

    Example:
        >>> l2_norm({"a": jnp.array([3.0]), "b": jnp.array([[4.0]])})
        Array(5., dtype=float32)
    """
    leaves = jax.tree.leaves(tree)
    dtype = jnp.float64 if any(leaf.dtype == jnp.float64 for leaf in leaves) else jnp.float32

    def sum_of_squares(leaf: jax.Array) -> jax.Array:
        squares = jnp.square(leaf.astype(dtype))
        if leaf.ndim > 1 and leaf.size >= _MANY:
            # Sum over the first axis first: this vectorizes, while in one long sum each addition waits for the last.
            squares = lax.optimization_barrier(jnp.sum(squares, axis=0))
        return jnp.sum(squares)

    return jnp.sqrt(sum(map(sum_of_squares, leaves), start=jnp.zeros((), dtype)))


@jax.jit
def own_copy(tree: PyTree) -> Any:
    """Copy a tree, so that it may be donated."""
    return jax.tree.map(jnp.copy, tree)


def cast_floats(tree: PyTree, dtype: DTypeLike) -> Any:
    """Cast the floating leaves of a tree; integers, booleans and keys stay as they are.

    >>> cast_floats((jnp.ones(1), jnp.arange(1)), jnp.bfloat16)
    (Array([1], dtype=bfloat16), Array([0], dtype=int32))
    """

    def cast(leaf: Any) -> Any:
        leaf = jnp.asarray(leaf)
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, tree)


def structure_difference(got: Any, expected: Any) -> str | None:
    """The first difference between two trees in structure, shape or dtype, as a text; None if there is none.

    Args:
        got: a tree of arrays (or of anything with ``shape`` and ``dtype``).
        expected: the tree to compare with.

    Example:
        >>> structure_difference({"w": jnp.ones(2)}, {"w": jnp.ones(3)})
        "['w']: got float32[2]; expected float32[3]"
    """
    got_leaves, expected_leaves = named_leaves(got), named_leaves(expected)
    if jax.tree.structure(got) != jax.tree.structure(expected):
        if list(got_leaves) == list(expected_leaves):
            return f"got {jax.tree.structure(got)}; expected {jax.tree.structure(expected)}"
        extra = [name for name in got_leaves if name not in expected_leaves]
        missing = [name for name in expected_leaves if name not in got_leaves]
        return f"got a tree with leaves {list(got_leaves)}; expected {list(expected_leaves)}" + (
            f" (too many: {extra}, missing: {missing})" if extra or missing else ""
        )
    for name, leaf in got_leaves.items():
        if array_type(leaf) != array_type(expected_leaves[name]):
            return f"{name}: got {array_type(leaf)}; expected {array_type(expected_leaves[name])}"
    return None


def check_like(got: Any, expected: Any, where: str) -> None:
    """Check that one tree has the structure, shapes and dtypes of another.

    >>> check_like(jnp.ones(2), jnp.ones(3), "state")
    Traceback (most recent call last):
    TypeError: state: (leaf): got float32[2]; expected float32[3]
    """
    if difference := structure_difference(got, expected):
        raise TypeError(f"{where}: {difference}")


def check_arrays(tree: PyTree, where: str) -> Any:
    """Return the tree if all its leaves are arrays or numbers.

    >>> check_arrays({"name": "a"}, "aux")
    Traceback (most recent call last):
    TypeError: aux['name']: got a str; expected an array or a number
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
            name = where + jax.tree_util.keystr(path)
            raise TypeError(f"{name}: got a {type(leaf).__name__}; expected an array or a number")
    return tree


def side_effects(traced: Any) -> str:
    """The side effects, such as printing, of a traced program ``jax.jit(f).trace(...)``; "" if there are none.

    >>> side_effects(jax.jit(lambda x: x + 1).trace(1.0))
    ''
    """
    return ", ".join(sorted(str(effect) for effect in traced.jaxpr.effects))


def array_type(leaf: Any) -> str:
    """The dtype and shape of an array, in JAX's notation.

    >>> array_type(jnp.zeros((2, 3)))
    'float32[2,3]'
    """
    return f"{jnp.result_type(leaf)}[{','.join(map(str, jnp.shape(leaf)))}]"
