"""What a case of code as people write it is: a loss or a function, a rule, arguments, and whether the rule is right."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import minijaxnet as mjn


class RealCase(NamedTuple):
    """A rule as people write it.

    ``fun`` is the loss where ``gradient`` is given, otherwise the function with rules in it. ``plain`` serves whoever
    judges the case, not the checker: the same function without rules, in operations that autodiff or finite differences
    take. ``right``: whether the rule is. ``hesitates``: of a right rule, that it may also be left unjudged. ``fails``:
    the verdict on a wrong rule. ``says``: what the reason of the algebra has to mention. ``x64``: carried out with
    float64 allowed.
    """

    name: str
    fun: Callable[..., Any]
    args: tuple[Any, ...]
    gradient: Callable[..., Any] | None = None
    plain: Callable[..., Any] | None = None
    options: Mapping[str, Any] = {}
    right: bool = True
    hesitates: bool = False
    fails: str = "algebra"
    says: str = ""
    x64: bool = False
    slow: bool = False

    def report(self) -> mjn.GradReport:
        with jax.enable_x64(self.x64):
            if self.gradient is None:
                return mjn.check_vjp(self.fun, self.args, **self.options)
            return mjn.check_grad(self.fun, self.gradient, self.args, **self.options)


class Kind:
    """The cases of one kind, right and wrong; a wrong one is made from its twin, a right one with another rule."""

    def __init__(self) -> None:
        self.cases: list[RealCase] = []

    def right(self, name: str, *fields: Any, **options: Any) -> RealCase:
        self.cases.append(RealCase(name, *fields, **options))
        return self.cases[-1]

    def wrong(self, name: str, twin: RealCase, rule: Callable[..., Any], **options: Any) -> RealCase:
        options["fun" if twin.gradient is None else "gradient"] = rule
        if twin.gradient is None:
            options.setdefault("plain", twin.plain or twin.fun)
        self.cases.append(twin._replace(name=name, right=False, hesitates=False, says="", **options))
        return self.cases[-1]


def f32(*values: Any) -> np.ndarray:
    return np.asarray(values, np.float32)


def bf16(*values: Any) -> np.ndarray:
    return np.asarray(values, np.float32).astype(jnp.bfloat16)


def f16(*values: Any) -> np.ndarray:
    return np.asarray(values, np.float16)


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def ruled(plain: Callable[..., Any], forward: Callable[..., Any], backward: Callable[..., Any], **options: Any) -> Any:
    """``plain`` with the rule ``(forward, backward)``; a new function, so that each has a rule of its own."""
    fun = jax.custom_vjp(lambda *args: plain(*args), **options)
    fun.defvjp(forward, backward)
    return fun


def elementwise(plain: Callable[..., Any], slope: Callable[..., Any]) -> Any:
    """``plain`` of one argument with the rule ``c * slope(x)``."""
    return ruled(plain, lambda x: (plain(x), x), lambda x, c: (c * slope(x),))


def tangent(plain: Callable[..., Any], rule: Callable[..., Any], **options: Any) -> Any:
    """``plain`` with the forward rule ``rule(primals, tangents)``."""
    fun = jax.custom_jvp(lambda *args: plain(*args), **options)
    fun.defjvp(lambda primals, tangents: (plain(*primals), rule(primals, tangents)))
    return fun
