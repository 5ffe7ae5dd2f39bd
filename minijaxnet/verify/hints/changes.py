"""What might be done by mistake instead of an operation: a result of the same shape and dtype, and its sentence."""

import enum
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from minijaxnet._jaxpr import is_literal
from minijaxnet.verify.interpreter import SCATTER_PARAMS, bind

# Operations whose names say little to whoever wrote ``x**2``.
_WORDS = {"integer_pow": "a power", "square": "a square", "rsqrt": "one over a square root", "logistic": "a sigmoid"}
FORGETTABLE = frozenset("exp log tanh logistic sqrt rsqrt square integer_pow log1p sin cos erf".split())


class Rank(enum.IntEnum):
    """Which changes are tried before others, and so are named where several give the same numbers."""

    TWICE = enum.auto()
    BOUND = enum.auto()
    TRANSPOSED = enum.auto()
    MASK = enum.auto()
    INDEX = enum.auto()
    STATE = enum.auto()
    SIGN = enum.auto()
    FACTOR = enum.auto()
    DIVISION = enum.auto()
    OTHER = enum.auto()
    ONE = enum.auto()


class Change(NamedTuple):
    """A change of an operation: in words, what it makes of the operands, and when it is tried."""

    words: str
    result: Callable[..., Any]
    rank: Rank = Rank.OTHER


def changes(eqn: Any) -> Iterator[Change]:
    """The changes of one operation."""
    if len(eqn.outvars) != 1 or not is_real(eqn.outvars[0]):
        return
    name, out = eqn.primitive.name, eqn.outvars[0].aval.shape
    shapes = [getattr(atom.aval, "shape", ()) for atom in eqn.invars]
    for words, result, rank in _ARITHMETIC.get(name, ()):
        yield Change(words, lambda x, result=result: result(*x) + jnp.zeros(out), rank)
    if name in FORGETTABLE:
        yield Change(f"{_WORDS.get(name, name)} is forgotten", lambda x: x[0])
        yield Change(f"a factor is missing: {_WORDS.get(name, name)}", lambda x: jnp.ones(out))
    elif name == "rev":
        yield Change("a reversal of the order is forgotten", lambda x: x[0])
    elif name == "transpose" and shapes[0] == out:
        yield Change("transposed on the way", lambda x: x[0], Rank.TRANSPOSED)
    elif name == "dot_general":
        yield from _of_product(eqn, shapes)
    elif name == "reduce_sum":
        yield from _of_sum(eqn, shapes[0])
    elif name in ("max", "min"):
        for k, atom in enumerate(eqn.invars):
            words, rank = f"a mask is forgotten: the rule ignores a {name}imum", Rank.MASK
            if is_literal(atom) and atom.val:  # such as the least number to divide by
                words = f"a factor is missing: what is at {'least' if name == 'max' else 'most'} {atom.val:g}"
                rank = Rank.BOUND
            yield Change(words, lambda x, k=k: x[k] + jnp.zeros(out), rank)
    elif name == "select_n" and len(shapes) == 3:
        words = "a mask is forgotten: the rule takes one side of a choice everywhere"
        yield from (Change(words, lambda x, k=k: x[k] * jnp.ones(out), Rank.MASK) for k in (1, 2))
    elif name in ("cumsum", "cumprod", "cummax"):
        reverse = {**eqn.params, "reverse": not eqn.params["reverse"]}
        yield Change(f"{name} runs the wrong way along its axis", lambda x: eqn.primitive.bind(*x, **reverse))
        if name == "cumsum":
            words = "a term is missing: a cumulative sum is without its own element"
            yield Change(words, lambda x: bind(eqn, x)[0] - x[0])
    elif name in ("gather", "scatter-add", "scatter_add"):
        yield from _of_index(eqn, shapes)


_SUM = [
    Change("a term is missing: autodiff adds two where the rule has the first", lambda a, b: a),
    Change("a term is missing: autodiff adds two where the rule has the second", lambda a, b: b),
    Change("a sign is wrong: a difference where a sum is meant", lambda a, b: a - b, Rank.SIGN),
]
_TWICE = "a term is missing: autodiff adds two where the rule has twice the"
_UNMULTIPLIED = "a factor is missing: autodiff multiplies where the rule does not"
_ARITHMETIC: dict[str, list[Change]] = {
    "add": _SUM,
    "add_any": [
        *_SUM,
        Change(f"{_TWICE} first, as if they were equal", lambda a, b: 2 * a, Rank.TWICE),
        Change(f"{_TWICE} second, as if they were equal", lambda a, b: 2 * b, Rank.TWICE),
    ],
    "sub": [
        Change("a term is missing: the one that is subtracted", lambda a, b: a),
        Change("a term is missing: the one that something is subtracted from", lambda a, b: -b),
        Change("a sign is wrong: a sum where a difference is meant", lambda a, b: a + b, Rank.SIGN),
    ],
    "mul": [Change(_UNMULTIPLIED, lambda a, b: a, Rank.FACTOR), Change(_UNMULTIPLIED, lambda a, b: b, Rank.FACTOR)],
    "div": [
        Change("a division is missing", lambda a, b: a, Rank.DIVISION),
        Change("a division is the wrong way around", lambda a, b: b / a),
    ],
    "neg": [Change("a sign is wrong", lambda a: a, Rank.SIGN)],
}


def _of_product(eqn: Any, shapes: list[tuple[int, ...]]) -> Iterator[Change]:
    contracted, batched = eqn.params["dimension_numbers"]
    for side, (shape, batch) in enumerate(zip(shapes, batched, strict=True)):
        own = [axis for axis in range(len(shape)) if axis not in batch]
        for i, j in itertools.combinations(own, 2):
            if shape[i] == shape[j] > 1:

                def swapped(x: list[Any], side: int = side, i: int = i, j: int = j) -> Any:
                    return bind(eqn, [jnp.swapaxes(y, i, j) if k == side else y for k, y in enumerate(x)])[0]

                words = "transposed on the way: a square matrix is in a product the other way around"
                yield Change(words, swapped, Rank.TRANSPOSED)
    for axis, end in itertools.product(contracted[0], (0, -1)):
        less = lambda x, axis=axis, end=end: bind(eqn, [_dropped(x[0], axis, end), x[1]])[0]  # noqa: E731
        yield Change(_forgotten(axis, end), less)


def _of_sum(eqn: Any, shape: tuple[int, ...]) -> Iterator[Change]:
    right, out = tuple(eqn.params["axes"]), eqn.outvars[0].aval.shape
    for one in (1.0, -1.0):
        words = "a factor is missing, or a term: a sum is taken as 1"
        yield Change(words, lambda x, one=one: jnp.full(out, one), Rank.ONE)
    for axis, end in itertools.product(right, (0, -1)):
        less = lambda x, axis=axis, end=end: jnp.sum(_dropped(x[0], axis, end), axis=right)  # noqa: E731
        yield Change(_forgotten(axis, end), less)
    for axes in subsets(len(shape)):
        if tuple(n for k, n in enumerate(shape) if k not in axes) == out:
            words = f"axis {listed(axes)} where it should be summed over axis {listed(right)}"
            if axes != right:
                yield Change(f"the wrong axis: summed over {words}", lambda x, axes=axes: jnp.sum(x[0], axis=axes))
            yield Change(f"a mean for a sum: averaged over {words}", lambda x, axes=axes: jnp.mean(x[0], axis=axes))


def _of_index(eqn: Any, shapes: list[tuple[int, ...]]) -> Iterator[Change]:
    operand, index, params = shapes[0], shapes[1], eqn.params
    numbers, gathers = params["dimension_numbers"], eqn.primitive.name == "gather"
    if not gathers:
        options = {key: params[key] for key in SCATTER_PARAMS}
        words = "set where add is meant: an index that is repeated"
        yield Change(words, lambda x: lax.scatter(*x, **options), Rank.INDEX)
    axes = numbers.start_index_map if gathers else numbers.scatter_dims_to_operand_dims
    if len(axes) == 1 and len(index) > 1 and index[-2] == operand[axes[0]]:

        def inverted(x: list[Any]) -> Any:
            return bind(eqn, [x[0], jnp.argsort(x[1], axis=-2).astype(x[1].dtype), *x[2:]])[0]

        yield Change("an index is used where its inverse is meant, as the order of a sort", inverted, Rank.INDEX)


def subsets(n: int) -> Iterator[tuple[int, ...]]:
    """All choices of some of n axes."""
    return (axes for count in range(1, n + 1) for axes in itertools.combinations(range(n), count))


def listed(axes: tuple[int, ...]) -> str:
    """Axes in words."""
    return ", ".join(map(str, axes))


def is_real(atom: Any) -> bool:
    """Whether it is of real floats."""
    return jnp.issubdtype(atom.aval.dtype, jnp.floating)


def in_words(eqn: Any) -> str:
    """What an operation makes, for whoever does not know JAX's names.

    >>> import jax
    >>> in_words(jax.make_jaxpr(lambda x: x @ x)(jnp.ones(2)).eqns[0])
    'a product of matrices'
    """
    name = eqn.primitive.name
    return _MADE.get(name) or _WORDS.get(name) or f"the result of {name}"


_MADE = {
    **dict.fromkeys(("add", "add_any", "sub"), "a sum of two"),
    **dict.fromkeys(("mul", "div"), "a product or a quotient of two"),
    **dict.fromkeys(("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose"), "a value in another shape"),
    "dot_general": "a product of matrices",
    "reduce_sum": "a sum",
    "reduce_max": "a maximum",
    "select_n": "a choice by jnp.where",
}


def where(eqn: Any) -> str:
    """The line of the user's code that an operation comes from, if JAX has it."""
    traceback = getattr(getattr(eqn, "source_info", None), "traceback", None)
    for frame in getattr(traceback, "frames", ()):
        if not any(part in frame.file_name for part in ("site-packages", "minijaxnet/verify", "<frozen")):
            return f" (autodiff of {frame.file_name.rsplit('/', 1)[-1]}:{frame.line_num}, {frame.function_name})"
    return ""


def _forgotten(axis: int, end: int) -> str:
    return f"a term is missing: the {'last' if end else 'first'} of those summed over axis {axis}"


def _dropped(x: Any, axis: int, end: int) -> Any:
    """Zero instead of the first slice along an axis, or of the last."""
    return x * (np.arange(x.shape[axis]) != end % max(x.shape[axis], 1)).reshape([-1] + [1] * (x.ndim - axis - 1))
