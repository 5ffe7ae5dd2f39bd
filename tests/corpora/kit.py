"""What a case of the gradient corpus is, and how its arguments are drawn."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

DTYPES = ("float32", "bfloat16", "float64")
WORKING = ("float32", "bfloat16")

KINDS = {
    "factor",  # times Slip.factor: -1, 2, 1/2, n, 1/n
    "transposed",
    "swapped",  # with another leaf
    "axis",  # reduced over the wrong axis
    "mean for sum",
    "one-sided",  # right only where x > 0
    "missing term",
    "element",  # one element or one slice
    "cotangent",  # not linear in it, or deaf to it
    "second order",  # value and first derivative right
    "primal",  # the value that comes with the gradient
    "precision",  # right in exact arithmetic, useless in Slip.dtypes
    "structure",  # shape, dtype, None, a leaf too few
    "nonfinite",  # where the truth is finite
    "relative",  # every element off by a small relative amount
    "broadcast",
    "domain",  # right up to a threshold
    "dropout scale",
    "index",  # repeated or shifted indices
    "other",
}


class Slip(NamedTuple):
    """What is wrong, and where.

    ``leaf`` is a ``jax.tree_util.keystr`` path: within the gradient, or, for a ``VjpCase``, within the arguments. None
    if several are wrong. ``index`` is given where one element only is wrong. ``dtypes``: those in which the slip shows.
    """

    kind: str
    leaf: str | None
    index: tuple[int, ...] | None = None
    factor: float | None = None
    dtypes: tuple[str, ...] = DTYPES


class GradCase(NamedTuple):
    """A loss and its gradient by hand.

    The fields after ``slip`` serve whoever judges the case, not the checker. ``kink``: the arguments lie on one, where
    any number between the slopes of the two sides is right. ``rounding``: what rounding may leave of the float64
    comparison, in absolute terms. ``truth``: the gradient by a way other than autodiff, where autodiff loses digits.
    ``traceable``: False where the rule works on NumPy arrays and cannot be jitted. ``keyed``: it draws from a key, so
    that another dtype is another draw. ``clears``: JAX's caches must be cleared between float32 and float64: an index
    that is a NumPy array of int64, traced in the one, is a TypeError in the other (JAX 0.10). ``dtypes``: those in
    which loss and rule can be run.
    """

    name: str
    loss: Callable[..., Any]
    gradient: Callable[..., Any]
    args: Callable[[Any], tuple]
    argnums: int = 0
    has_aux: bool = False
    has_value: bool = False
    order: int = 1
    slip: Slip | None = None
    kink: bool = False
    rounding: float = 0.0
    truth: Callable[..., Any] | None = None
    traceable: bool = True
    keyed: bool = False
    clears: bool = False
    dtypes: tuple[str, ...] = DTYPES


class VjpCase(NamedTuple):
    """A function with a custom rule in it.

    ``plain`` is the same function without its custom rules, for whoever judges the case. ``reference`` goes to the
    checker where it cannot take the rules out by itself.
    """

    name: str
    fun: Callable[..., Any]
    plain: Callable[..., Any]
    args: Callable[[Any], tuple]
    reference: Callable[..., Any] | None = None
    order: int = 1
    slip: Slip | None = None
    kink: bool = False
    rounding: float = 0.0
    keyed: bool = False
    dtypes: tuple[str, ...] = DTYPES


class Surrogate(NamedTuple):
    """A rule wrong on purpose: with ``case.reference`` its gradient is right, without it the report has ``words``.

    The value of ``case.fun`` is not that of its reference.
    """

    case: VjpCase
    words: tuple[str, ...]


class Subject:
    """The cases of one subject, right and wrong, all of one kind.

    A wrong one is made from its twin, mostly a right one: the same function at the same arguments, with another rule.
    """

    def __init__(self, kind: type[GradCase] | type[VjpCase]) -> None:
        self.kind, self.right_ones, self.wrong_ones = kind, [], []

    def right(self, name: str, *fields: Any, **options: Any) -> Any:
        case = self.kind(name, *fields, **options)
        self.right_ones.append(case)
        return case

    def wrong(self, name: str, twin: Any, rule: Callable[..., Any], slip: Slip, **options: Any) -> None:
        options["gradient" if self.kind is GradCase else "fun"] = rule
        self.wrong_ones.append(twin._replace(name=name, slip=slip, **options))

    def twin(self, plain: Callable, args: Callable[[Any], tuple], rule: Any = None, **options: Any) -> Any:
        """A function at arguments, for wrong rules alone."""
        return self.kind("", *((plain, rule) if self.kind is GradCase else (rule, plain)), args, **options)

    # Of gradients only: what is done to one leaf of the twin's.

    def factor(self, name: str, twin: Any, leaf: str, factor: float, kind: str = "factor") -> None:
        self.wrong(name, twin, but(twin.gradient, leaf, times(factor)), Slip(kind, leaf, factor=factor))

    def element(self, name: str, twin: Any, leaf: str, index: tuple[int, ...], factor: float) -> None:
        self.wrong(name, twin, but(twin.gradient, leaf, at(index, factor)), Slip("element", leaf, index))

    def transposed(self, name: str, twin: Any, leaf: str, change: Callable = jnp.transpose) -> None:
        self.wrong(name, twin, but(twin.gradient, leaf, change), Slip("transposed", leaf))

    def swapped(self, name: str, twin: Any, one: str, other: str) -> None:
        def gradient(*args: Any) -> Any:
            right = twin.gradient(*args)
            return {**right, one: right[other], other: right[one]}

        self.wrong(name, twin, gradient, Slip("swapped", None))


# --- Arguments: given(maker, {"name": maker}, ...) is a function of the dtype ----------------------------------------


def given(*makers: Any, seed: int = 0) -> Callable[[Any], tuple]:
    """``args(dtype)``: every maker of the tree called in order with one generator; what is no maker stays as it is."""

    def args(dtype: Any) -> tuple:
        draw = np.random.default_rng(seed)
        return jax.tree.map(lambda make: make(draw, dtype) if callable(make) else make, makers)

    return args


def normal(*shape: int, scale: float = 1.0, shift: float = 0.0) -> Callable:
    return lambda draw, dtype: jnp.asarray(shift + scale * draw.normal(size=shape), dtype)


def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Callable:
    return lambda draw, dtype: jnp.asarray(draw.uniform(low, high, size=shape), dtype)


def apart(*shape: int) -> Callable:
    """Eighths in random order around zero, no two equal, none zero, all exact in bfloat16 (up to 500 of them)."""

    def make(draw: np.random.Generator, dtype: Any) -> jax.Array:
        size = int(np.prod(shape))
        return jnp.asarray((draw.permutation(size).reshape(shape) - size // 2 + 0.5) / 8, dtype)

    return make


def exactly(values: Any) -> Callable:
    return lambda draw, dtype: jnp.asarray(np.asarray(values, np.float64), dtype)


def positive_definite(n: int) -> Callable:
    def make(draw: np.random.Generator, dtype: Any) -> jax.Array:
        root = draw.normal(size=(n, n))
        return jnp.asarray(root @ root.T / n + np.eye(n), dtype)

    return make


def integers(high: int, *shape: int) -> Callable:
    return lambda draw, dtype: jnp.asarray(draw.integers(high, size=shape), jnp.int32)


def fixed(values: Any, dtype: Any = jnp.int32) -> Callable:
    """Integers, booleans, or floats whose dtype does not follow the others."""
    return lambda draw, _: jnp.asarray(np.asarray(values), dtype)


def in_dtype(dtype: Any, make: Callable) -> Callable:
    return lambda draw, _: make(draw, dtype)


def random_key(seed: int = 0) -> Callable:
    return lambda draw, dtype: jax.random.key(seed)


# --- Rules -----------------------------------------------------------------------------------------------------------


def wide(x: jax.Array) -> jax.Array:
    """At least float32, for what knows no bfloat16: factorisations, FFT."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def but(rule: Callable, leaf: str, change: Callable) -> Callable:
    """The rule, with one leaf of its result changed afterwards."""

    def changed(*args: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, value: change(value) if jax.tree_util.keystr(path) == leaf else value, rule(*args)
        )

    return changed


def times(factor: float) -> Callable:
    return lambda value: factor * value


def at(index: Any, factor: float) -> Callable:
    return lambda value: value.at[index].multiply(factor)


def summed(f: Callable) -> Callable:
    """The loss of an elementwise function."""
    return lambda x: jnp.sum(f(x))


def custom(plain: Callable, forward: Callable, backward: Callable, **options: Any) -> Callable:
    """``plain`` with the rule ``(forward, backward)``, as ``custom_vjp`` wants them."""
    fun = jax.custom_vjp(plain, **options)
    fun.defvjp(forward, backward)
    return fun


def custom_elementwise(plain: Callable, slope: Callable) -> Callable:
    """``plain`` with the rule ``g * slope(x)``."""
    return custom(plain, lambda x: (plain(x), x), lambda x, g: (g * slope(x),))


def custom_tangent(plain: Callable, tangent: Callable) -> Callable:
    """``plain`` with the forward rule ``tangent(primals, tangents)``."""
    fun = jax.custom_jvp(plain)
    fun.defjvp(lambda primals, tangents: (plain(*primals), tangent(primals, tangents)))
    return fun
