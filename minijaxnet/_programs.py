"""Compiled programs of a function's function: found again by what it is and reads, and gone when it is gone.

``jax.jit`` keeps a static argument for good, with all that it closes over, and takes it for the same as long as it is
equal, whatever numbers it reads from outside. Here programs are kept as weakly as those of a function that is jitted
itself, and a changed number makes another program.
"""

import dataclasses
import functools
import inspect
import sys
import threading
import types
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

# How deep and how far is looked for numbers, and up to which size an array counts by its numbers.
_DEEPEST, _MOST, _SMALL = 8, 400, 64
# Programs of one function, by different numbers, that are kept.
_KEPT = 4
_OWN = __name__.partition(".")[0]
_PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic)


class JitOf:
    """``jax.jit`` of ``body(function, *arguments)``, where the function is compiled into the program.

    Args:
        body: to be jitted.
        static_argnums: further static arguments, counted without the function.
        donate_argnums: arguments that are donated, counted alike.
        inline: whether it is written out where it is called within another program.

    Example:
        >>> twice = JitOf(lambda function, x: function(function(x)))
        >>> float(twice(lambda x: x + 1, 1.0))
        3.0
    """

    def __init__(
        self,
        body: Callable[..., Any],
        *,
        static_argnums: tuple[int, ...] = (),
        donate_argnums: tuple[int, ...] = (),
        inline: bool = False,
    ):
        """Have no program yet."""
        self._body = body
        self._options = {"static_argnums": static_argnums, "donate_argnums": donate_argnums, "inline": inline}
        self._programs: dict[Known, Any] = {}
        self._now = threading.local()
        functools.update_wrapper(self, body)

    def __call__(self, function: Any, *arguments: Any) -> Any:
        """Run the program."""
        return self._with(function, lambda program: program(*arguments))

    def trace(self, function: Any, *arguments: Any) -> Any:
        """The traced program, as of ``jax.jit(...).trace``."""
        return self._with(function, lambda program: program.trace(*arguments))

    def eval_shape(self, function: Any, *arguments: Any) -> Any:
        """The shapes of what the program returns."""
        return self._with(function, lambda program: program.eval_shape(*arguments))

    def _with(self, function: Any, call: Callable[[Any], Any]) -> Any:
        function = known(function)
        before = getattr(self._now, "function", None)
        self._now.function = function.function  # the program itself holds no reference to it
        is_new = function not in self._programs
        try:
            return call(self._program_of(function))
        finally:
            self._now.function = before
            if is_new and (program := self._programs.pop(function, None)) is not None:
                self._programs[function.but_for_what_it_changes().without_it()] = program

    def _program_of(self, function: "Known") -> Any:
        if (program := self._programs.get(function)) is None:
            others = [other for other in self._programs if other.identity == function.identity]
            for old in others[: len(others) + 1 - _KEPT]:
                del self._programs[old]
            if not others:
                for part in _objects_of(function.function):
                    weakref.finalize(part, _drop_dead, weakref.ref(self)).atexit = False
            now, body = self._now, self._body

            def program_of(*arguments: Any) -> Any:
                return body(now.function, *arguments)

            program_of.__name__ = program_of.__qualname__ = getattr(body, "__name__", "program")
            program = self._programs[function.without_it()] = jax.jit(program_of, **self._options)
        return program


class Known:
    """A function that has been looked at: equal where it is the same and reads the same numbers."""

    def __init__(self, function: Any, identity: Hashable, numbers: tuple[Any, ...]):
        self.function, self.identity, self.numbers = function, identity, numbers
        self._hash = hash((identity, numbers))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Known) and (self.identity, self.numbers) == (other.identity, other.numbers)

    def without_it(self) -> "Known":
        """The same as a key, which does not keep the function."""
        return Known(None, self.identity, self.numbers)

    def but_for_what_it_changes(self) -> "Known":
        """The same, without the numbers that are others since it was looked at, such as a count of its own calls."""
        now = numbers_read(self.function)
        changed = {name for name, *_ in {*self.numbers} ^ {*now}}
        if changed:
            _CHANGED.setdefault(self.identity, set()).update(changed)
        return known(self.function)


# By the identity of a function the names of the numbers that it changes itself.
_CHANGED: dict[Hashable, set[str]] = {}


def known(function: Any) -> Known:
    """A function, looked at once for several programs."""
    if isinstance(function, Known):
        return function
    identity = _identity(function)
    own = _CHANGED.get(identity, ())
    return Known(function, identity, tuple(number for number in numbers_read(function) if number[0] not in own))


def numbers_read(function: Any) -> list[tuple[str, type, Any]]:
    """What a function reads from outside: the plain numbers and texts among what it closes over, and its globals.

    Functions that it calls are followed, and the attributes of objects. Of large arrays only which one it is counts.
    Types are told, too: 1 is not 1.0 in a program.

    >>> numbers_read((lambda rate: lambda x: rate * x)(0.5))
    [('rate', <class 'float'>, 0.5)]
    """
    found, seen, left = [], set(), [("", function, 0)]
    while left and len(seen) < _MOST:
        name, value, depth = left.pop()
        if isinstance(value, _PLAIN):
            if value is not None:
                found.append((name, type(value), value))
        elif isinstance(value, np.ndarray | jax.Array):
            if not isinstance(value, Tracer):
                small = isinstance(value, np.ndarray) and value.size <= _SMALL and value.dtype != object
                found.append((name, np.ndarray, value.tobytes() if small else _Which(value)))
        elif depth < _DEEPEST and id(value) not in seen:
            seen.add(id(value))
            left += [(f"{name}.{inner}" if name else inner, part, depth + 1) for inner, part in _parts(value)]
    return found


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What is within a value, by name."""
    if isinstance(value, types.FunctionType):
        yield from _outside(value)
    elif isinstance(value, types.MethodType):
        yield from (("self", value.__self__), ("function", value.__func__))
    elif isinstance(value, functools.partial):
        yield from (("function", value.func), ("args", value.args), ("keywords", value.keywords))
    elif isinstance(value, tuple | list):
        yield from ((str(i), part) for i, part in enumerate(value[:_SMALL]))
    elif isinstance(value, dict):
        yield from ((str(key), part) for key, part in list(value.items())[:_SMALL])
    elif not isinstance(value, type | types.ModuleType):
        attributes, kind = getattr(value, "__dict__", {}), type(value)
        if _is_library(kind.__module__) and not kind.__module__.startswith(_OWN):
            yield from [("", attributes["__wrapped__"])] if "__wrapped__" in attributes else ()  # a jitted function
            return
        yield from attributes.items()
        if isinstance(call := vars(kind).get("__call__"), types.FunctionType):
            yield "__call__", call


def _outside(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function closes over, its defaults, and the globals that it names where it is no library's."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not there yet
            continue
    if function.__defaults__ or function.__kwdefaults__:
        yield "defaults", (function.__defaults__, function.__kwdefaults__)
    if _is_library(function.__globals__.get("__name__", "")):
        return
    names = [name for code in _codes(function.__code__) for name in code.co_names]
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, types.ModuleType):
            if not _is_library(value.__name__):
                yield from ((f"{name}.{each}", vars(value)[each]) for each in names if each in vars(value))
        elif value is not None and not _is_library(getattr(value, "__module__", "") or ""):
            yield name, value


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _codes(const)


@functools.cache
def _is_library(module: str) -> bool:
    """Whether a module is the standard library's, or installed: its numbers do not change."""
    root = module.partition(".")[0]
    if root in sys.stdlib_module_names:
        return root != "__main__"
    found = getattr(sys.modules.get(root), "__file__", None) or ""
    return root == _OWN or "site-packages" in found or "dist-packages" in found


class _Which:
    """An object by which one it is, without keeping it."""

    def __init__(self, value: Any):
        self.ref, self._hash = weakref.ref(value), id(value)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Which) and self.ref() is other.ref() is not None


def _identity(value: Any) -> Hashable:
    """What makes two functions the same: what they are made of, and which objects that ends at."""
    if (parts := _made_of(value)) is not None:
        return (type(value), *map(_identity, parts))
    if isinstance(value, (*_PLAIN, type)):
        return type(value), value
    try:
        if type(value).__eq__ is not object.__eq__ and not isinstance(value, np.ndarray | jax.Array):
            hash(value)
            return weakref.ref(value)
        return _Which(value)
    except TypeError:  # no hash, or no weak reference
        return value if inspect.isbuiltin(value) else (type(value), id(value))


def _made_of(value: Any) -> list[Any] | None:
    """The parts of a value that is nothing but them; None for any other."""
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, tuple(sorted(value.keywords.items()))]
    if isinstance(value, tuple):
        return list(value)
    settled = getattr(type(value), "__dataclass_params__", None)
    if settled is not None and settled.frozen and settled.eq:
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return None


def _objects_of(value: Any) -> Iterator[Any]:
    """The objects that the identity of a value ends at."""
    if (parts := _made_of(value)) is not None:
        for part in parts:
            yield from _objects_of(part)
    elif not isinstance(value, (*_PLAIN, type)) and type(value).__weakrefoffset__:
        yield value


def _is_dead(identity: Any) -> bool:
    if isinstance(identity, tuple):
        return any(map(_is_dead, identity))
    ref = identity.ref if isinstance(identity, _Which) else identity
    return isinstance(ref, weakref.ref) and ref() is None


def _drop_dead(kept: "weakref.ref[JitOf]") -> None:
    if (jit_of := kept()) is not None:
        for key in [key for key in jit_of._programs if _is_dead(key.identity)]:
            del jit_of._programs[key]
    for identity in [identity for identity in _CHANGED if _is_dead(identity)]:
        del _CHANGED[identity]
