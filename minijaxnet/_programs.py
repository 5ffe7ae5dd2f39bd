"""A cache of compiled programs that take a function as an argument.

``jax.jit`` with a static function argument keeps that function, and everything it closes over, forever. It also reuses
the program although the function reads other numbers from outside. Here a program is dropped when the function is
garbage collected, and a changed number leads to a new program.
"""

import functools
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from minijaxnet._reads import PLAIN, WeakIdentity, components, identity, numbers_read

# Programs that are kept for one function, each for other numbers.
_KEPT = 4


class JitOf:
    """``jax.jit`` of ``body(function, *arguments)``, where the function is compiled into the program.

    Args:
        body: the function to jit.
        static_argnums: further static arguments, counted without the function.
        donate_argnums: donated arguments, counted in the same way.
        inline: as for ``jax.jit``.

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
        """Make an empty cache."""
        self._body = body
        self._options = {"static_argnums": static_argnums, "donate_argnums": donate_argnums, "inline": inline}
        self._programs: dict[FunctionKey, Any] = {}
        self._now = threading.local()
        functools.update_wrapper(self, body)

    def __call__(self, function: Any, *arguments: Any) -> Any:
        """Run the program."""
        return self._with(function, lambda program: program(*arguments))

    def trace(self, function: Any, *arguments: Any) -> Any:
        """The traced program, as of ``jax.jit(...).trace``."""
        return self._with(function, lambda program: program.trace(*arguments))

    def eval_shape(self, function: Any, *arguments: Any) -> Any:
        """The shapes of the program's output."""
        return self._with(function, lambda program: program.eval_shape(*arguments))

    def _with(self, function: Any, call: Callable[[Any], Any]) -> Any:
        key = function_key(function)
        before = getattr(self._now, "function", None)
        self._now.function = key.function  # the program itself holds no reference to it
        is_new = key not in self._programs
        try:
            return call(self._program_of(key))
        finally:
            self._now.function = before
            if is_new and (program := self._programs.pop(key, None)) is not None:
                self._programs[key.without_changing_numbers().without_function()] = program

    def _program_of(self, key: "FunctionKey") -> Any:
        if (program := self._programs.get(key)) is None:
            others = [other for other in self._programs if other.identity == key.identity]
            for old in others[: len(others) + 1 - _KEPT]:
                del self._programs[old]
            if not others:
                for part in _objects_of(key.function):
                    weakref.finalize(part, _drop_collected, weakref.ref(self)).atexit = False
            now, body = self._now, self._body

            def program_of(*arguments: Any) -> Any:
                return body(now.function, *arguments)

            program_of.__name__ = program_of.__qualname__ = getattr(body, "__name__", "program")
            program = self._programs[key.without_function()] = jax.jit(program_of, **self._options)
        return program


class FunctionKey:
    """A function with the numbers that it reads from outside; equal if both are the same."""

    def __init__(self, function: Any, identity: Hashable, numbers: tuple[Any, ...]):
        self.function, self.identity, self.numbers = function, identity, numbers
        self._hash = hash((identity, numbers))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, FunctionKey) and (self.identity, self.numbers) == (other.identity, other.numbers)

    def without_function(self) -> "FunctionKey":
        """The same key without a reference to the function."""
        return FunctionKey(None, self.identity, self.numbers)

    def without_changing_numbers(self) -> "FunctionKey":
        """The key of the function as it is now, without the numbers that the call has changed.

        Examples are a count of its own calls, or an int that optax's schedules turn into a float at their first call.
        """
        before, now = (
            {name: number for name, *number in numbers} for numbers in (self.numbers, numbers_read(self.function))
        )
        if changed := {name for name in before.keys() & now.keys() if before[name] != now[name]}:
            _CHANGED.setdefault(self.identity, set()).update(changed)
        return function_key(self.function)


# The names of the numbers that a function itself changes, by the identity of the function.
_CHANGED: dict[Hashable, set[str]] = {}


def function_key(function: Any) -> FunctionKey:
    """The key of a function; a ``FunctionKey`` serves for several programs."""
    if isinstance(function, FunctionKey):
        if function.identity not in _CHANGED:
            return function
        function, who, numbers = function.function, function.identity, function.numbers
    else:
        who, numbers = identity(function), numbers_read(function)
    changed = _CHANGED.get(who, ())
    return FunctionKey(function, who, tuple(number for number in numbers if number[0] not in changed))


def _objects_of(value: Any) -> Iterator[Any]:
    """The objects that the identity of a value refers to."""
    if (parts := components(value)) is not None:
        for part in parts:
            yield from _objects_of(part)
    elif not isinstance(value, (*PLAIN, type)) and type(value).__weakrefoffset__:
        yield value


def _is_collected(identity: Any) -> bool:
    if isinstance(identity, tuple):
        return any(map(_is_collected, identity))
    ref = identity.ref if isinstance(identity, WeakIdentity) else identity
    return isinstance(ref, weakref.ref) and ref() is None


def _drop_collected(kept: "weakref.ref[JitOf]") -> None:
    if (jit_of := kept()) is not None:
        for key in [key for key in jit_of._programs if _is_collected(key.identity)]:
            del jit_of._programs[key]
    for collected in [each for each in _CHANGED if _is_collected(each)]:
        del _CHANGED[collected]


def is_being_traced() -> bool:
    """Whether this call is within jit, vmap or jvp, where a function may close over tracers.

    >>> is_being_traced(), jax.eval_shape(lambda: jax.numpy.array(is_being_traced())).shape
    (False, ())
    """
    return _trace_state() != _outermost()


def _trace_state() -> Any:
    from jax.extend.core import get_opaque_trace_state  # 17 ms: imported where used

    return get_opaque_trace_state(convention="minijaxnet")


@functools.cache
def _outermost() -> Any:
    """The trace state outside of every transformation, taken in a new thread."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(_trace_state).result()
