"""What is passed to a check: arguments, which of them are differentiated, and a loss, each checked by name."""

import contextlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._trees import array_type
from minijaxnet.verify.problem import only

UNTRACEABLE = (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError)


class Arguments(NamedTuple):
    """Arguments taken apart: the arrays among their leaves, and the rest, which is bound as it is.

    Attributes:
        leaves: the arrays.
        paths: their names, by the signature of the function.
        given: their names by their place in ``args``.
        places: for each of them, in which argument it is.
        rebuilt: ``rebuilt(*leaves)``, the arguments with these instead.
        heads: the names of the arguments themselves.
        bound: of what is bound, in which argument it is, its name and its value.
        numbers: whether Python's floats, and single integers, are arrays.
    """

    leaves: list[jax.Array]
    paths: list[str]
    given: list[str]
    places: list[int]
    rebuilt: Callable[..., tuple[Any, ...]]
    heads: list[str]
    bound: list[tuple[int, str, Any]]
    numbers: bool

    def leaves_like(self, args: Any, function: Callable[..., Any]) -> list[jax.Array]:
        """The arrays of other arguments of the same shapes."""
        other = taken_apart(args, function, numbers=self.numbers)
        got, expected = ({n: x.shape for n, x in zip(a.given, a.leaves, strict=True)} for a in (other, self))
        if got != expected:
            raise ValueError(f"args: got shapes {got}; expected {expected}, those that the check was made for")
        return other.leaves


def taken_apart(args: Any, function: Callable[..., Any], *, numbers: bool = True) -> Arguments:
    """The arguments of a function, checked; ``numbers``: whether Python's floats, and single integers, are arrays."""
    if not isinstance(args, tuple | list):
        raise TypeError(f"args: got a {type(args).__name__}; expected a tuple of arguments")
    heads = _parameter_names(function, len(args))
    everything, treedef = jax.tree.flatten(tuple(args))
    found = [path for path, _ in jax.tree_util.tree_flatten_with_path(tuple(args))[0]]
    places = [path[0].idx for path in found]
    paths = [heads[place] + jax.tree_util.keystr(path[1:]) for place, path in zip(places, found, strict=True)]
    given = [f"args{jax.tree_util.keystr(path)}" for path in found]
    is_array = [_is_array(leaf, numbers=numbers) for leaf in everything]

    def rebuilt(*leaves: Any) -> tuple[Any, ...]:
        rest = iter(leaves)
        return jax.tree.unflatten(
            treedef, [next(rest) if mine else x for mine, x in zip(is_array, everything, strict=True)]
        )

    arrays = [_checked(x, path) for x, path, mine in zip(everything, given, is_array, strict=True) if mine]
    named = zip(places, given, everything, is_array, strict=True)
    bound: list[tuple[int, str, Any]] = [(place, name, x) for place, name, x, mine in named if not mine]
    places, paths, given = only(places, is_array), only(paths, is_array), only(given, is_array)
    return Arguments(arrays, paths, given, places, rebuilt, heads, bound, numbers)


def bound_where_needed(args: Any, function: Callable[..., Any], tried: Callable[[Arguments], Any]) -> Arguments:
    """The arguments taken apart so that a function takes them: numbers are bound where they can't be arrays.

    What JAX says of arguments that a rule wants as they are (``nondiff_argnums``) is kept, with what to write.
    """
    arguments = taken_apart(args, function)
    try:
        tried(arguments)
    except Exception as error:
        bound = taken_apart(args, function, numbers=False)
        if 0 < len(bound.leaves) < len(arguments.leaves):
            with contextlib.suppress(Exception):
                tried(bound)
                return bound
        name = getattr(function, "__name__", "")
        call = f"lambda x: {name if name.isidentifier() else 'fun'}(x, 3)"
        how = f"each array among the arguments is traced; bind those that are wanted as they are, as in {call}"
        if isinstance(error, (*UNTRACEABLE, jax.errors.UnexpectedTracerError)):
            raise TypeError(f"args: {' '.join(str(error).split())[:300]}...; {how}") from error
        error.add_note(how)
        raise
    return arguments


def _parameter_names(function: Callable[..., Any], count: int) -> list[str]:
    """The names of the first few parameters of a function; those that it doesn't tell by their place."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        found = [p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds]
    except (TypeError, ValueError):
        found = []
    return [*found[:count], *(f"args[{i}]" for i in range(len(found[:count]), count))]


def _is_array(leaf: Any, *, numbers: bool) -> bool:
    dtype, shape = getattr(leaf, "dtype", None), getattr(leaf, "shape", None)
    if isinstance(leaf, type) or dtype is None or shape is None:
        return (numbers and isinstance(leaf, float | complex)) or hasattr(leaf, "__jax_array__")
    return numbers or shape != () or not jnp.issubdtype(dtype, jnp.integer)


def _checked(leaf: Any, name: str) -> jax.Array:
    try:
        array = jnp.asarray(leaf)
    except TypeError:
        raise TypeError(f"{name}: got a {type(leaf).__name__}; expected an array") from None
    if jnp.issubdtype(array.dtype, jnp.inexact):
        bad = np.argwhere(np.isnan(np.asarray(array).astype(np.complex128)))
        if len(bad):
            place = list(map(int, bad[0]))
            raise ValueError(f"{name}: got NaN{f' at {place}' if place else ''}; expected numbers")
        array = jax.lax.convert_element_type(array, array.dtype)
    return array


def checked_order(order: Any) -> int:
    """1 or 2."""
    if order not in (1, 2) or isinstance(order, bool):
        raise ValueError(f"order: got {order!r}; expected 1 or 2")
    return order


def checked_argnums(argnums: Any, count: int) -> tuple[int, ...]:
    """The arguments that are differentiated, counted from the first."""
    chosen = tuple(argnums) if isinstance(argnums, tuple | list) else (argnums,)
    for i in chosen:
        if not isinstance(i, int) or isinstance(i, bool):
            raise TypeError(f"argnums: got {argnums!r}; expected an int or several")
        if not -count <= i < count:
            raise ValueError(f"argnums: got {argnums!r}; expected numbers below {count}, there are {count} args")
    if not chosen or len({i % count for i in chosen}) < len(chosen):
        raise ValueError(f"argnums: got {argnums!r}; expected different arguments, one at least")
    return tuple(i % count for i in chosen)


def differentiated(arguments: Arguments, argnums: Any) -> list[bool]:
    """Which leaves are differentiated: all of those arguments; for None all that are floating or complex."""
    inexact = [bool(jnp.issubdtype(leaf.dtype, jnp.inexact)) for leaf in arguments.leaves]
    if argnums is None:
        if not any(inexact):
            raise TypeError("args: got no floating leaf; expected one at least, to differentiate with respect to")
        return inexact
    chosen = checked_argnums(argnums, len(arguments.heads))
    for place, path, leaf in arguments.bound:
        if place in chosen:
            raise TypeError(f"{path}: got {leaf!r}; expected an array, to differentiate with respect to")
    moved = [place in chosen for place in arguments.places]
    if not any(moved):
        where = f"args[{argnums}]" if isinstance(argnums, int) else "args"
        raise ValueError(f"{where}: got a tree without leaves; expected something to differentiate with respect to")
    for path, leaf, mine, floating in zip(arguments.given, arguments.leaves, moved, inexact, strict=True):
        if mine and not floating:
            raise TypeError(f"{path}: got dtype {leaf.dtype}; expected a real floating dtype, or a complex one")
    return moved


def checked_loss(loss: Callable[..., Any], args: Sequence[Any], has_aux: bool, holomorphic: bool) -> Any:
    """The shape of the loss, a scalar; ``holomorphic``: whether it may be complex."""
    value = jax.eval_shape(loss, *args)
    if has_aux:
        if not (isinstance(value, tuple | list) and len(value) == 2):
            raise TypeError(f"loss: got a {type(value).__name__}; expected (loss, aux), as has_aux=True says")
        value = value[0]
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    kind = jnp.inexact if holomorphic else jnp.floating
    if dtype is None or shape != () or not jnp.issubdtype(dtype, kind):
        got = type(value).__name__ if dtype is None else array_type(value)
        raise TypeError(f"loss: got {got}; expected a real floating scalar")
    return value


def shapes_of(rule: Callable[..., Any], args: Sequence[Any]) -> Any:
    """What a rule returns, by shape; a rule that works on NumPy arrays is called."""
    try:
        return jax.eval_shape(rule, *args)
    except UNTRACEABLE:
        return rule(*args)
    except Exception as error:
        error.add_note("check_grad: raised by the hand gradient")
        raise


def typed(got: Any, expected: Any) -> Any:
    """Python numbers (and what JAX types as weakly as them) with the dtype of what stands in their place."""
    if jax.tree.structure(got) != jax.tree.structure(expected):
        return got

    def typed(leaf: Any, like: Any) -> Any:
        weak = isinstance(leaf, int | float) or getattr(leaf, "weak_type", False)
        return jax.ShapeDtypeStruct(jnp.shape(leaf), like.dtype) if weak else leaf

    return jax.tree.map(typed, got, expected)
