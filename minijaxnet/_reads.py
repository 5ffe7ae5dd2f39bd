"""The identity of a function, and the numbers that it reads from outside."""

import array
import collections
import contextvars
import dataclasses
import functools
import inspect
import itertools
import numbers
import sys
import types
import weakref
from collections.abc import Hashable, Iterator, Mapping, Sequence, Set
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

# Limits of the search: its depth, the objects it visits, and the size up to which arrays are compared by value.
_DEEPEST, _MOST, _SMALL = 12, 1000, 1000
_OWN = __name__.partition(".")[0]
PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic, numbers.Number, array.array)


def numbers_read(function: Any) -> list[tuple[str, type, Any]]:
    """The plain numbers and texts that a function reads from outside: from what it closes over, and from its globals.

    The search follows the functions that it calls, and attributes of objects and classes. JAX arrays and large NumPy
    arrays are compared by identity, not by value. The types are part of the result, since 1 and 1.0
    make different programs.

    >>> numbers_read((lambda rate: lambda x: rate * x)(0.5))
    [('rate', <class 'float'>, 0.5)]
    """
    found, seen, left = [], set(), [("", function, 0)]
    while left and len(seen) < _MOST:
        name, value, depth = left.pop()
        if isinstance(value, PLAIN):
            if value is not None:
                found.append((name, type(value), value.tobytes() if isinstance(value, array.array) else value))
        elif isinstance(value, np.ndarray | jax.Array):
            if not isinstance(value, Tracer):
                small = isinstance(value, np.ndarray) and value.size <= _SMALL and value.dtype != object
                found.append((name, np.ndarray, value.tobytes() if small else WeakIdentity(value)))
        elif depth < _DEEPEST and id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, types.FunctionType | types.BuiltinFunctionType) and depth:
                found.append((name, types.FunctionType, identity(value)))
            left += [(f"{name}.{inner}" if name else inner, part, depth + 1) for inner, part in _parts(value)]
    return found


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a value, by name."""
    if isinstance(value, types.FunctionType):
        yield from _outside(value)
    elif isinstance(value, types.MethodType | staticmethod | classmethod):
        yield from (("self", getattr(value, "__self__", None)), ("function", value.__func__))
    elif isinstance(value, functools.partial):
        yield from (("function", value.func), ("args", value.args), ("keywords", value.keywords))
    elif isinstance(value, property):
        yield "get", value.fget
    elif isinstance(value, contextvars.ContextVar):
        yield "value", value.get(None)
    elif isinstance(value, Mapping):
        yield from ((str(key), value[key]) for key in itertools.islice(value, _SMALL))
    elif isinstance(value, Set):
        yield "set", tuple(sorted(map(repr, itertools.islice(value, _SMALL))))
    elif isinstance(value, Sequence | collections.deque):
        yield from ((str(i), part) for i, part in enumerate(itertools.islice(value, _SMALL)))
    elif isinstance(value, type):
        if not _is_library(value.__module__):
            yield from ((name, part) for name, part in vars(value).items() if name[:2] != "__" or name == "__call__")
    elif not isinstance(value, types.ModuleType):
        yield from _of_object(value)


def _of_object(value: Any) -> Iterator[tuple[str, Any]]:
    """The attributes of an object and of its classes, except those of libraries."""
    attributes, kind = getattr(value, "__dict__", {}), type(value)
    is_ours, is_standard = (
        kind.__module__.split(".")[0] == _OWN,
        kind.__module__.split(".")[0] in sys.stdlib_module_names,
    )
    if _is_library(kind.__module__) and not is_ours and not is_standard:
        yield from [("", attributes["__wrapped__"])] if "__wrapped__" in attributes else ()  # a jitted function
        return
    yield from attributes.items()
    for each in kind.__mro__:
        slots = np.atleast_1d(vars(each).get("__slots__", ())).tolist()
        yield from ((name, getattr(value, name, None)) for name in slots)
        yield "class", (vars(each).get("__call__") if is_ours else each)


def _outside(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function closes over, its defaults, and the globals that it names unless it is from a library."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    if function.__defaults__ or function.__kwdefaults__:
        yield "defaults", (function.__defaults__, function.__kwdefaults__)
    if not _is_library(function.__globals__.get("__name__", "")):
        named = list(dict.fromkeys(name for code in _codes(function.__code__) for name in code.co_names))
        yield from _named(function.__globals__, named)


def _named(variables: Mapping[str, Any], names: list[str]) -> Iterator[tuple[str, Any]]:
    """The variables with these names; for a module, unless it is a library, the variables in it with these names."""
    for name in names:
        value = variables.get(name)
        if not isinstance(value, types.ModuleType):
            yield name, value
        elif not _is_library(value.__name__):
            rest = [other for other in names if other != name]
            yield from ((f"{name}.{inner}", part) for inner, part in _named(vars(value), rest))


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _codes(const)


@functools.cache
def _is_library(module: str) -> bool:
    """Whether a module is installed or from the standard library, so that its numbers do not change."""
    root = module.partition(".")[0]
    if root in sys.stdlib_module_names:
        return root != "__main__"
    found = getattr(sys.modules.get(root), "__file__", None) or ""
    return root == _OWN or "site-packages" in found or "dist-packages" in found


class WeakIdentity:
    """A weak reference to an object, compared by identity."""

    def __init__(self, value: Any):
        self.ref, self._hash = weakref.ref(value), id(value)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, WeakIdentity) and self.ref() is other.ref() is not None


def identity(value: Any) -> Hashable:
    """A hashable value that is equal for two functions with the same components."""
    if (parts := components(value)) is not None:
        return (type(value), *map(identity, parts))
    if isinstance(value, (*PLAIN, type)):
        return type(value), value
    try:
        if type(value).__eq__ is not object.__eq__ and not isinstance(value, np.ndarray | jax.Array):
            hash(value)
            return weakref.ref(value)
        return WeakIdentity(value)
    except TypeError:  # no hash, or no weak reference
        return value if inspect.isbuiltin(value) else (type(value), id(value))


def components(value: Any) -> list[Any] | None:
    """The components that define a method, a partial, a tuple or a frozen dataclass; None for any other value."""
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, tuple(sorted(value.keywords.items()))]
    if isinstance(value, tuple):
        return list(value)
    options = getattr(type(value), "__dataclass_params__", None)
    if options is not None and options.frozen and options.eq:
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return None
