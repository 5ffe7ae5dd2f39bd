"""The few tree helpers that JAX lacks: floating leaves, a norm, a cast, a comparison of structures."""

import math
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# A tree of arrays; what it is a tree of, its name says.
PyTree: TypeAlias = Any

# From so many elements on a sum is taken in two steps.
_MANY = 1024


def leaf_name(path: tuple[Any, ...]) -> str:
    """The path of a leaf as one would write it in Python, ``(leaf)`` for a bare one.

    >>> [(path, leaf)] = jax.tree_util.tree_flatten_with_path({"bias": 1.0})[0]
    >>> leaf_name(path)
    "['bias']"
    """
    return jax.tree_util.keystr(path) or "(leaf)"


def is_keys(values: Any) -> bool:
    """Whether these are keys of JAX."""
    return jnp.issubdtype(values.dtype, jax.dtypes.prng_key)


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their names, in the tree's order.

    >>> named_leaves(({"weights": 1.0}, 2.0))
    {"[0]['weights']": 1.0, '[1]': 2.0}
    """
    return {leaf_name(p): leaf for p, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def number_of(tree: Any) -> int:
    """How many numbers a pytree of arrays holds.

    >>> number_of({"a": jnp.ones((2, 3)), "b": 1.0})
    7
    """
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree))


def checked_tree(tree: Any, where: str) -> Any:
    """The tree, which JAX can take apart.

    Raises:
        TypeError: a dictionary whose keys can't be sorted.
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


def floating_arrays(tree: Any, where: str) -> Any:
    """Each leaf as a strongly typed floating array: what a descent can move.

    A weak type (a Python number) would make the compiled step take the first state and the second for two
    different kinds of argument, and so compile it twice.

    Args:
        tree: a pytree of real floating arrays or Python floats.
        where: what the caller names the tree in an error.

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
            hint = " (of a module of layers its arrays alone, as by equinox.partition)" if callable(leaf) else ""
            raise TypeError(f"{name}: got {kind}; expected an array of floating numbers{hint}") from None
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(
                f"{name}: got dtype {array.dtype}; expected a real floating dtype (a gradient step is not an integer)"
            )
        return lax.convert_element_type(array, array.dtype)

    if not jax.tree.leaves(checked_tree(tree, where)):
        raise TypeError(f"{where}: got a tree without leaves; expected at least one array")
    return jax.tree_util.tree_map_with_path(convert, tree)


def l2_norm(tree: Any) -> jax.Array:
    r"""The Euclidean norm of a tree taken as one long vector: ``sqrt(sum_i g_i^2)``.

    Squares are summed in float32, or in float64 where a leaf is wider, so that bfloat16 leaves lose nothing.

    Args:
        tree: a pytree of floating arrays of any shape.

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
            # Column by column first: that is done side by side, where one long sum waits for each addition.
            squares = lax.optimization_barrier(jnp.sum(squares, axis=0))
        return jnp.sum(squares)

    return jnp.sqrt(sum(map(sum_of_squares, leaves), start=jnp.zeros((), dtype)))


@jax.jit
def own_copy(tree: Any) -> Any:
    """A copy that may be donated."""
    return jax.tree.map(jnp.copy, tree)


def cast_floats(tree: Any, dtype: Any) -> Any:
    """The same tree with floating leaves in ``dtype``; integers, booleans and keys stay as they are.

    >>> cast_floats((jnp.ones(1), jnp.arange(1)), jnp.bfloat16)
    (Array([1], dtype=bfloat16), Array([0], dtype=int32))
    """

    def cast(leaf: Any) -> Any:
        leaf = jnp.asarray(leaf)
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, tree)


def structure_difference(got: Any, expected: Any) -> str | None:
    """What keeps one tree from standing where another stood: structure, shape or dtype; None if nothing.

    Args:
        got: a pytree of arrays (or of anything with ``shape`` and ``dtype``).
        expected: the tree it should look like.

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
        want = expected_leaves[name]
        if (jnp.shape(leaf), jnp.result_type(leaf)) != (jnp.shape(want), jnp.result_type(want)):
            return f"{name}: got {array_type(leaf)}; expected {array_type(want)}"
    return None


def check_like(got: Any, expected: Any, where: str) -> None:
    """That one tree could stand where another one does.

    >>> check_like(jnp.ones(2), jnp.ones(3), "state")
    Traceback (most recent call last):
    TypeError: state: (leaf): got float32[2]; expected float32[3]
    """
    if difference := structure_difference(got, expected):
        raise TypeError(f"{where}: {difference}")


def check_arrays(tree: Any, where: str) -> Any:
    """A tree of nothing but arrays and numbers.

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
    """What a traced program, ``jax.jit(f).trace(...)``, does beside computing, such as printing; "" if nothing.

    >>> side_effects(jax.jit(lambda x: x + 1).trace(1.0))
    ''
    """
    return ", ".join(sorted(str(effect) for effect in traced.jaxpr.effects))


def array_type(leaf: Any) -> str:
    """An array's dtype and shape, as JAX writes them.

    >>> array_type(jnp.zeros((2, 3)))
    'float32[2,3]'
    """
    return f"{jnp.result_type(leaf)}[{','.join(map(str, jnp.shape(leaf)))}]"
