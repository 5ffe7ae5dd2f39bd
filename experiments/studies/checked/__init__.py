"""Models with a gradient by hand, as ``minijaxnet check FILE`` takes them; one file each, equations beside the code.

A file has ``loss``, ``value_and_gradient`` and ``args``; or ``fun`` with a rule of its own, the same function ``plain``
and ``args``; or it is an experiment.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import minijaxnet as mjn

CASES = {  # the model's file, and the name of the rule in it
    "attention": ("attention", "value_and_gradient"),
    "attention, a slip": ("attention", "slipped"),
    "digits": ("mlp", "value_and_gradient"),
    "lstm": ("lstm", "value_and_gradient"),
    "rmsnorm": ("rmsnorm", "fun"),
}


class Case(NamedTuple):
    """A rule by hand, and what it is compared with.

    Attributes:
        by_hand: ``(*args)``, to the value and the gradient.
        autodiff: the same by autodiff of the plain function.
        args: of both.
        check: ``check_grad`` or ``check_vjp``.
    """

    by_hand: Callable[..., Any]
    autodiff: Callable[..., Any]
    args: tuple[Any, ...]
    check: Callable[[], mjn.GradReport]


def case_of(name: str, dtype: Any = jnp.float32) -> Case:
    """A case by its name, at arguments of this dtype."""
    file, rule = CASES[name]
    model: Any = importlib.import_module(f".{file}", __package__)
    if experiment := getattr(model, "experiment", None):
        args = experiment.init(jax.random.key(0)), experiment.data()[0]
    else:
        args = model.args
    args = jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, args)
    by_hand = getattr(model, rule)
    if rule != "fun":
        return Case(
            by_hand,
            jax.value_and_grad(model.loss),
            args,
            lambda: mjn.check_grad(model.loss, by_hand, args, has_value=True),
        )
    value = jax.eval_shape(model.plain, *args)  # an eager call would compile what is to be measured
    cotangent = jnp.ones(value.shape, value.dtype)
    return Case(pulled_back(by_hand), pulled_back(model.plain), (args, cotangent), lambda: mjn.check_vjp(by_hand, args))


def pulled_back(function: Callable[..., Any]) -> Callable[..., Any]:
    """``(args, cotangent)`` to the function's value and the cotangent pulled back to the arguments."""

    def both(args: tuple[Any, ...], cotangent: Any) -> tuple[Any, Any]:
        value, pull_back = jax.vjp(function, *args)
        return value, pull_back(cotangent)

    return both
