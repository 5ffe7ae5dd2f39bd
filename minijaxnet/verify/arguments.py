"""The arguments of a check: taken apart into arrays, those that are differentiated first, each checked by name."""

import contextlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

UNTRACEABLE = (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError)

Argnums = int | Sequence[int]


class Arguments(NamedTuple):
    """Arguments taken apart: the arrays among their leaves, and the rest, which is bound as it is.

    Attributes:
        leaves: the arrays.
        paths: their names, by the signature of the function.
        given: their names by their place in ``args``.
        places: for each of them, in which argument it is.
        rebuilt: ``rebuilt(*leaves)``, the arguments with these arrays instead.
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
        """The arrays of other arguments of the same shapes, in the same order."""
        other = taken_apart(args, function, numbers=self.numbers)
        got, expected = ({n: x.shape for n, x in zip(a.given, a.leaves, strict=True)} for a in (other, self))
        if got != expected:
            raise ValueError(f"args: got shapes {got}; expected {expected}, those that the check was made for")
        by_name = dict(zip(other.given, other.leaves, strict=True))
        return [by_name[name] for name in self.given]


def taken_apart(args: Any, function: Callable[..., Any], *, numbers: bool = True) -> Arguments:
    """The arguments of a function, checked; ``numbers``: whether Python's floats, and single integers, are arrays."""
    if not isinstance(args, tuple | list):
        raise TypeError(f"args: got a {type(args).__name__}; expected a tuple of arguments")
    heads = _parameter_names(function, len(args))
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(tuple(args))
    is_array = [_is_array(leaf, numbers=numbers) for _, leaf in with_paths]
    leaves, paths, given, places, bound = [], [], [], [], []
    for (path, leaf), array in zip(with_paths, is_array, strict=True):
        place, name = path[0].idx, f"args{jax.tree_util.keystr(path)}"
        if not array:
            bound.append((place, name, leaf))
            continue
        leaves.append(_checked(leaf, name))
        paths.append(heads[place] + jax.tree_util.keystr(path[1:]))
        given.append(name)
        places.append(place)

    def rebuilt(*arrays: Any) -> tuple[Any, ...]:
        rest = iter(arrays)
        each = zip(with_paths, is_array, strict=True)
        return jax.tree.unflatten(treedef, [next(rest) if array else leaf for (_, leaf), array in each])

    return Arguments(leaves, paths, given, places, rebuilt, heads, bound, numbers)


def bound_where_needed(args: Any, function: Callable[..., Any], attempt: Callable[[Arguments], Any]) -> Arguments:
    """The arguments taken apart so that a function takes them: numbers are bound where they can't be arrays.

    An error of JAX about arguments that a rule needs as they are (``nondiff_argnums``) says what to write instead.
    """
    arguments = taken_apart(args, function)
    try:
        attempt(arguments)
    except Exception as error:
        bound = taken_apart(args, function, numbers=False)
        if 0 < len(bound.leaves) < len(arguments.leaves):
            with contextlib.suppress(Exception):
                attempt(bound)
                return bound
        name = getattr(function, "__name__", "")
        call = f"lambda x: {name if name.isidentifier() else 'fun'}(x, 3)"
        how = f"each array among the arguments is traced; bind those that are needed as they are, as in {call}"
        if isinstance(error, (*UNTRACEABLE, jax.errors.UnexpectedTracerError)):
            raise TypeError(f"args: {' '.join(str(error).split())[:300]}...; {how}") from error
        error.add_note(how)
        raise
    return arguments


def _parameter_names(function: Callable[..., Any], count: int) -> list[str]:
    """The names of the first few parameters of a function; ``args[i]`` where it has none."""
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


def params_first(arguments: Arguments, argnums: Argnums | None) -> tuple[Arguments, int]:
    """The same arguments with the differentiated leaves first, and their number; None for all that can be."""
    differentiated = _differentiated(arguments, argnums)
    order = sorted(range(len(differentiated)), key=lambda i: not differentiated[i])

    def rebuilt(*leaves: Any) -> tuple[Any, ...]:
        in_place = dict(zip(order, leaves, strict=True))
        return arguments.rebuilt(*(in_place[i] for i in range(len(order))))

    lists = (arguments.leaves, arguments.paths, arguments.given, arguments.places)
    leaves, paths, given, places = ([values[i] for i in order] for values in lists)
    ordered = arguments._replace(leaves=leaves, paths=paths, given=given, places=places, rebuilt=rebuilt)
    return ordered, sum(differentiated)


def _differentiated(arguments: Arguments, argnums: Argnums | None) -> list[bool]:
    inexact = [bool(jnp.issubdtype(leaf.dtype, jnp.inexact)) for leaf in arguments.leaves]
    if argnums is None:
        if not any(inexact):
            raise TypeError("args: got no floating leaf; expected one at least, to differentiate with respect to")
        return inexact
    chosen = checked_argnums(argnums, len(arguments.heads))
    for place, path, leaf in arguments.bound:
        if place in chosen:
            raise TypeError(f"{path}: got {leaf!r}; expected an array, to differentiate with respect to")
    found = [place in chosen for place in arguments.places]
    if not any(found):
        where = f"args[{argnums}]" if isinstance(argnums, int) else "args"
        raise ValueError(f"{where}: got a tree without leaves; expected something to differentiate with respect to")
    for path, leaf, mine, floating in zip(arguments.given, arguments.leaves, found, inexact, strict=True):
        if mine and not floating:
            raise TypeError(f"{path}: got dtype {leaf.dtype}; expected a real floating dtype, or a complex one")
    return found
