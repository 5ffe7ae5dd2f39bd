"""What a case of the corpora is, and how its arguments and its rules are made."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import minijaxnet as mjn

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
    "cotangent",  # not linear in it, or without it
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
    leaf: str | None = ""
    index: tuple[int, ...] | None = None
    factor: float | None = None
    dtypes: tuple[str, ...] = DTYPES


class GradCase(NamedTuple):
    """A loss and its gradient by hand, at ``args(dtype)``.

    The fields after ``slip`` serve the tests of the corpus, not the checker. ``kink``: the arguments lie on one, where
    any number between the one-sided derivatives is right. ``rounding``: what rounding may leave of the float64
    comparison, in absolute terms. ``truth``: the gradient by a way other than autodiff, where autodiff loses digits.
    ``traceable``: False where the rule works on NumPy arrays and cannot be jitted. ``clears``: JAX's caches must be
    cleared between float32 and float64: an index that is a NumPy array of int64, traced in the one, is a TypeError in
    the other (JAX 0.10). ``dtypes``: those in which loss and rule can be run.
    """

    name: str
    loss: Callable[..., Any]
    args: Callable[[Any], tuple]
    gradient: Callable[..., Any]
    argnums: int = 0
    has_aux: bool = False
    has_value: bool = False
    order: int = 1
    slip: Slip | None = None
    kink: bool = False
    rounding: float = 0.0
    truth: Callable[..., Any] | None = None
    traceable: bool = True
    clears: bool = False
    dtypes: tuple[str, ...] = DTYPES


class VjpCase(NamedTuple):
    """A function with a custom rule in it.

    ``plain`` is the same function without its custom rules, for the tests of the corpus. ``reference`` goes to the
    checker where it cannot take the rules out by itself.
    """

    name: str
    plain: Callable[..., Any]
    args: Callable[[Any], tuple]
    fun: Callable[..., Any]
    reference: Callable[..., Any] | None = None
    order: int = 1
    slip: Slip | None = None
    kink: bool = False
    rounding: float = 0.0
    dtypes: tuple[str, ...] = DTYPES


class Surrogate(NamedTuple):
    """A rule wrong on purpose: with ``case.reference`` its gradient is right, without it the report has ``words``."""

    case: VjpCase
    words: str


class Cases:
    """Right and wrong rules of one subject."""

    def __init__(self, kind: type[GradCase] | type[VjpCase]) -> None:
        self.kind, self.right, self.wrong = kind, [], []

    def add(self, name: str, function: Any, args: Any, rule: Any = None, wrong: Mapping = {}, **options: Any) -> None:
        """A function at arguments with its right rule, if there is one, and the wrong ones by what is wrong with each.

        Of a wrong one there is ``(rule, slip)``, or ``(rule, slip, options)``, or a function that makes the first of
        the right rule.
        """
        if rule is not None:
            self.right.append(self.kind(name, function, args, rule, **options))
        for what, given in wrong.items():
            other, slip, *more = given(rule) if callable(given) else given
            case = self.kind(f"{name}, {what}", function, args, other, **options)
            self.wrong.append(case._replace(slip=slip, **(more[0] if more else {})))


# --- Code as people write it ------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A rule as people write it, at fixed arguments.

    ``fun`` is the loss where ``gradient`` is given, otherwise the function with rules in it. ``right``: whether the
    rule is. ``hesitates``: of a right rule, that it may also be left unchecked. ``says``: what the reason of the
    algebra has to mention. ``words``: a pattern that a hint on a wrong one must match, "" where there is nothing to
    say. ``never``: one that no hint may match. ``x64``: run with float64 enabled.
    """

    name: str
    fun: Callable[..., Any]
    args: tuple[Any, ...]
    gradient: Callable[..., Any] | None = None
    options: Mapping[str, Any] = {}
    right: bool = True
    hesitates: bool = False
    says: str = ""
    words: str = ""
    never: str = ""
    x64: bool = False

    def report(self) -> mjn.GradReport:
        with jax.enable_x64(self.x64):
            if self.gradient is None:
                return mjn.check_vjp(self.fun, self.args, **self.options)
            return mjn.check_grad(self.fun, self.gradient, self.args, **self.options)


class Code:
    """The cases of one kind, right and wrong; of each only the first is not slow."""

    def __init__(self) -> None:
        self.cases: list[Case] = []

    def grad(
        self, name: str, loss: Callable, args: tuple, rule: Callable, wrong: Mapping[str, Callable] = {}, **more: Any
    ) -> None:
        """A loss with its right gradient by hand, and wrong ones by what is wrong with each."""
        self._add(Case(name, loss, args, rule, **more), [(what, {"gradient": other}) for what, other in wrong.items()])

    def rule(self, name: str, fun: Callable, args: tuple, wrong: Mapping[str, Callable] = {}, **more: Any) -> None:
        """A function with a right rule in it, and with wrong ones."""
        self._add(Case(name, fun, args, **more), [(what, {"fun": other}) for what, other in wrong.items()])

    def slip(
        self, name: str, fun: Any, hand: Any, args: tuple, words: str = "", never: str = "", **options: Any
    ) -> None:
        """A wrong rule of which a hint has something to say; ``hand`` is None where ``fun`` holds the rule."""
        self.cases.append(Case(name, fun, args, hand, options, right=False, words=words, never=never))

    def _add(self, case: Case, others: list[tuple[str, dict[str, Any]]]) -> None:
        self.cases.append(case)
        wrong = case._replace(right=False, hesitates=False, says="")
        self.cases += [wrong._replace(name=f"{case.name}, {what}", **other) for what, other in others]


# --- Arguments: given(maker, {"name": maker}, ...) is a function of the dtype ----------------------------------------


def given(*makers: Any) -> Callable[[Any], tuple]:
    """``args(dtype)``: every maker of the tree called in order with one generator; what is no maker stays as it is."""

    def args(dtype: Any) -> tuple:
        draw = np.random.default_rng(0)
        return jax.tree.map(lambda make: make(draw, dtype) if callable(make) else make, makers)

    return args


def normal(*shape: int, scale: float = 1.0, shift: float = 0.0) -> Callable:
    return lambda draw, dtype: jnp.asarray(shift + scale * draw.normal(size=shape), dtype)


def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Callable:
    return lambda draw, dtype: jnp.asarray(draw.uniform(low, high, size=shape), dtype)


def apart(*shape: int) -> Callable:
    """Eighths in random order around zero, no two equal, none zero, all exact in bfloat16 (up to 500 of them)."""
    size = int(np.prod(shape))
    return lambda draw, dtype: jnp.asarray((draw.permutation(size).reshape(shape) - size // 2 + 0.5) / 8, dtype)


def exactly(values: Any) -> Callable:
    return lambda draw, dtype: jnp.asarray(np.asarray(values, np.float64), dtype)


def integers(high: int, *shape: int) -> Callable:
    return lambda draw, dtype: jnp.asarray(draw.integers(high, size=shape), jnp.int32)


def fixed(values: Any, dtype: Any = jnp.int32) -> Callable:
    """Integers, booleans, or floats whose dtype does not follow the others."""
    return lambda draw, _: jnp.asarray(np.asarray(values), dtype)


def in_dtype(dtype: Any, make: Callable) -> Callable:
    return lambda draw, _: make(draw, dtype)


def random_key(seed: int = 0) -> Callable:
    return lambda draw, dtype: jax.random.key(seed)


def f32(*values: Any) -> np.ndarray:
    return np.asarray(values, np.float32)


def drawn(*shape: int, seed: int = 0, low: float | None = None) -> np.ndarray:
    """Normal numbers, or uniform ones from ``low`` to ``low + 1``."""
    draw = np.random.default_rng(seed)
    return np.float32(draw.normal(size=shape) if low is None else draw.uniform(low, low + 1, size=shape))


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


def scaled(leaf: str, factor: float, kind: str = "factor") -> Callable:
    """One leaf of a gradient times a factor."""
    return lambda rule: (but(rule, leaf, lambda value: factor * value), Slip(kind, leaf, factor=factor))


def one_element(leaf: str, index: tuple[int, ...], factor: float) -> Callable:
    """One element of a gradient times a factor."""
    return lambda rule: (but(rule, leaf, lambda x: x.at[index].multiply(factor)), Slip("element", leaf, index))


def transposed(leaf: str) -> Callable:
    return lambda rule: (but(rule, leaf, jnp.transpose), Slip("transposed", leaf))


def swapped(one: str, other: str) -> Callable:
    def change(rule: Callable) -> tuple[Callable, Slip]:
        return lambda *args: (lambda g: {**g, one: g[other], other: g[one]})(rule(*args)), Slip("swapped", None)

    return change


def summed(f: Callable) -> Callable:
    """The loss of an elementwise function."""
    return lambda x: jnp.sum(f(x))


def custom(plain: Callable, forward: Callable, backward: Callable, **options: Any) -> Callable:
    """``plain`` with the rule ``(forward, backward)``; a new function, so that each has a rule of its own."""
    fun = jax.custom_vjp(lambda *args: plain(*args), **options)
    fun.defvjp(forward, backward)
    return fun


def sine(backward: Callable = lambda x, c: jnp.cos(x) * c, forward: Callable = jnp.sin) -> Callable:
    """The sine with a rule, a right one unless others are given."""
    return custom(jnp.sin, lambda x: (forward(x), x), lambda x, c: (backward(x, c),))


def elementwise(plain: Callable, slope: Callable) -> Callable:
    """``plain`` with the rule ``c * slope(x)``."""
    return custom(plain, lambda x: (plain(x), x), lambda x, c: (c * slope(x),))


def tangent(plain: Callable, rule: Callable, **options: Any) -> Callable:
    """``plain`` with the forward rule ``rule(primals, tangents)``."""
    fun = jax.custom_jvp(lambda *args: plain(*args), **options)
    fun.defjvp(lambda primals, tangents: (plain(*primals), rule(primals, tangents)))
    return fun
