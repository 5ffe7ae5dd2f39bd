"""What is checked: two rules on flat arguments that should be one function, and the scalar that they differentiate."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._jaxpr import equations
from minijaxnet.verify.report import GRADIENT_BY_HAND, Subject

Flat = Callable[..., list[Any]]


class Problem(NamedTuple):
    """Two rules to compare. All functions take the same flat arguments, those that are differentiated first.

    Attributes:
        hand: ``hand(*leaves) -> [*values, *gradients]``.
        reference: the same by autodiff of the plain function; None where autodiff can't take it.
        objective: ``objective(*leaves)``, the real scalar whose gradient it is.
        paths: the names of the arguments.
        n_params: how many of them are differentiated; there is a gradient for each.
        names: the names of the gradients; none where the results are not gradients.
        n_values: how many values come before the gradients.
        n_cotangents: how many of the last arguments are cotangents.
        forward: the same pair of rules for forward mode, where there is one.
        second_order: the same pair of rules for the derivative of the gradient, where it is requested.
        subject: what is checked, and by what.
        why_no_reference: why ``reference`` is None.
    """

    hand: Flat
    reference: Flat | None
    objective: Callable[..., Any]
    paths: list[str]
    n_params: int
    names: list[str]
    n_values: int = 0
    n_cotangents: int = 0
    forward: tuple[Flat, Flat] | None = None
    second_order: tuple[Flat, Flat] | None = None
    subject: Subject = GRADIENT_BY_HAND
    why_no_reference: str = ""


def derivatives(
    hand: Flat, reference: Flat, n_values: int, places: Sequence[int], leaves: Sequence[Any], seed: int
) -> tuple[Flat, Flat]:
    """The derivatives of two flat functions, without their values, in one random direction of some arguments.

    By forward mode; by reverse mode where the hand rule has a ``custom_vjp`` in it, which has no forward mode.
    """
    forward = _derivative(hand, n_values, places, seed, reverse=False)
    try:
        reverse = any(eqn.primitive.name == "custom_lin" for eqn in equations(jax.make_jaxpr(forward)(*leaves)))
    except (TypeError, NotImplementedError):
        reverse = True
    if reverse:
        forward = _derivative(hand, n_values, places, seed, reverse=True)
    return forward, _derivative(reference, n_values, places, seed, reverse=reverse)


def _derivative(function: Flat, n_values: int, places: Sequence[int], seed: int, *, reverse: bool) -> Flat:
    def derivative(*leaves: Any) -> list[Any]:
        def gradients(new: Mapping[int, Any]) -> list[Any]:
            return function(*(new.get(i, leaf) for i, leaf in enumerate(leaves)))[n_values:]

        draw, start = np.random.default_rng(seed + 3), {i: leaves[i] for i in places}
        random_like = lambda x: jnp.asarray(draw.normal(size=x.shape), x.dtype)  # noqa: E731
        if reverse:
            results, pull_back = jax.vjp(gradients, start)
            return jax.tree.leaves(pull_back(list(map(random_like, results))))
        return list(jax.jvp(gradients, (start,), ({i: random_like(x) for i, x in start.items()},))[1])

    return derivative
