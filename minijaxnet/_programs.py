"""Compiled programs of a function's function: found again by what it is and reads, and gone when it is gone.

``jax.jit`` keeps a static argument for good, with all that it closes over, and takes it for the same as long as it is
equal, whatever numbers it reads from outside. Here programs are kept as weakly as those of a function that is jitted
itself, and a changed number makes another program.
"""

import functools
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from minijaxnet._reads import PLAIN, Which, identity, made_of, numbers_read

# Programs of one function, by different numbers, that are kept.
_KEPT = 4


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
        """The shapes of what the program returns."""
        return self._with(function, lambda program: program.eval_shape(*arguments))

    def _with(self, function: Any, call: Callable[[Any], Any]) -> Any:
        function = function_key(function)
        before = getattr(self._now, "function", None)
        self._now.function = function.function  # the program itself holds no reference to it
        is_new = function not in self._programs
        try:
            return call(self._program_of(function))
        finally:
            self._now.function = before
            if is_new and (program := self._programs.pop(function, None)) is not None:
                self._programs[function.but_for_what_it_changes().without_it()] = program

    def _program_of(self, function: "FunctionKey") -> Any:
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


class FunctionKey:
    """A function that has been looked at: equal where it is the same and reads the same numbers."""

    def __init__(self, function: Any, identity: Hashable, numbers: tuple[Any, ...]):
        self.function, self.identity, self.numbers = function, identity, numbers
        self._hash = hash((identity, numbers))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, FunctionKey) and (self.identity, self.numbers) == (other.identity, other.numbers)

    def without_it(self) -> "FunctionKey":
        """The same as a key, which does not keep the function."""
        return FunctionKey(None, self.identity, self.numbers)

    def but_for_what_it_changes(self) -> "FunctionKey":
        """The same as it is now, without the numbers that were others, or of another type, before.

        Such as a count of its own calls, or an int that optax's schedules make a float when they are first called.
        """
        before, now = (
            {name: number for name, *number in all_of} for all_of in (self.numbers, numbers_read(self.function))
        )
        if changed := {name for name in before.keys() & now.keys() if before[name] != now[name]}:
            _CHANGED.setdefault(self.identity, set()).update(changed)
        return function_key(self.function)


# By the identity of a function the names of the numbers that it changes itself.
_CHANGED: dict[Hashable, set[str]] = {}


def function_key(function: Any) -> FunctionKey:
    """A function, looked at once for several programs."""
    if isinstance(function, FunctionKey):
        if function.identity not in _CHANGED:
            return function
        function, its, numbers = function.function, function.identity, function.numbers
    else:
        its, numbers = identity(function), numbers_read(function)
    own = _CHANGED.get(its, ())  # also of one that was looked at before it changed them
    return FunctionKey(function, its, tuple(number for number in numbers if number[0] not in own))


def _objects_of(value: Any) -> Iterator[Any]:
    """The objects that the identity of a value ends at."""
    if (parts := made_of(value)) is not None:
        for part in parts:
            yield from _objects_of(part)
    elif not isinstance(value, (*PLAIN, type)) and type(value).__weakrefoffset__:
        yield value


def _is_dead(identity: Any) -> bool:
    if isinstance(identity, tuple):
        return any(map(_is_dead, identity))
    ref = identity.ref if isinstance(identity, Which) else identity
    return isinstance(ref, weakref.ref) and ref() is None


def _drop_dead(kept: "weakref.ref[JitOf]") -> None:
    if (jit_of := kept()) is not None:
        for key in [key for key in jit_of._programs if _is_dead(key.identity)]:
            del jit_of._programs[key]
    for dead in [its for its in _CHANGED if _is_dead(its)]:
        del _CHANGED[dead]


def is_being_traced() -> bool:
    """Whether this call is within jit, vmap or jvp, of whose tracers a function may close over some.

    >>> is_being_traced(), jax.eval_shape(lambda: jax.numpy.array(is_being_traced())).shape
    (False, ())
    """
    return _trace_state() != _outermost()


def _trace_state() -> Any:
    from jax.extend.core import get_opaque_trace_state  # 17 ms: imported where used

    return get_opaque_trace_state(convention="minijaxnet")


@functools.cache
def _outermost() -> Any:
    """The state of a thread of its own, which is within nothing."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(_trace_state).result()
