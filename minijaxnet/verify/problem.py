"""What is asked of a hand-derived gradient, on flat arguments: two rules that should be one, and a scalar to try."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Flat = Callable[..., list[Any]]


class Problem(NamedTuple):
    """What is to be judged, all of it on flat arguments.

    Attributes:
        hand: ``hand(*leaves) -> [*values, *gradients]``.
        reference: the same by autodiff of the plain function; None where there is none to be had.
        objective: ``objective(*leaves)``, the real scalar whose gradient it is.
        paths: the names of the arguments.
        moved: which of them are differentiated; there is a gradient for each.
        names: the names of the gradients.
        n_values: how many values come before the gradients.
        cotangents: where among the leaves the cotangents are; none for a plain gradient.
        forward: the same pair of rules for forward mode, where there is one.
        second_order: the same pair of rules for the derivative of the gradient, where it is asked for.
        subject: what is judged, in words for the report.
        why_no_reference: why there is none.
    """

    hand: Flat
    reference: Flat | None
    objective: Callable[..., Any]
    paths: list[str]
    moved: list[bool]
    names: list[str]
    n_values: int
    cotangents: list[int]
    forward: tuple[Flat, Flat] | None = None
    second_order: tuple[Flat, Flat] | None = None
    subject: str = "gradient by hand against autodiff"
    why_no_reference: str = ""


def only(values: Sequence[Any], moved: Sequence[bool]) -> list[Any]:
    """Those of the values that are moved."""
    return [value for value, mine in zip(values, moved, strict=True) if mine]


def of_moved(function: Callable[..., Any], leaves: Sequence[Any], moved: Sequence[bool]) -> Callable[[list[Any]], Any]:
    """A function of all leaves as one of those that are moved, the others staying as they are."""

    def of_moved(values: list[Any]) -> Any:
        rest = iter(values)
        return function(*(next(rest) if mine else leaf for leaf, mine in zip(leaves, moved, strict=True)))

    return of_moved


def first(function: Flat, count: int) -> Flat:
    """A function of some leaves as one of these and more."""
    return lambda *leaves: function(*leaves[:count])


def derivatives(
    hand: Flat, reference: Flat, skip: int, moved: Sequence[bool], leaves: Sequence[Any], seed: int
) -> tuple[Flat, Flat]:
    """Of two flat functions, without so many first results, the derivatives in one random direction.

    By forward mode; by reverse mode where the hand rule has a ``custom_vjp`` in it, through which there is no other.
    """
    forward = _derivative(hand, skip, moved, seed, reverse=False)
    try:
        reverse = "custom_lin" in str(jax.make_jaxpr(forward)(*leaves))  # where JAX will refuse
    except (TypeError, NotImplementedError):
        reverse = True
    if reverse:
        forward = _derivative(hand, skip, moved, seed, reverse=True)
    return forward, _derivative(reference, skip, moved, seed, reverse=reverse)


def _derivative(function: Flat, skip: int, moved: Sequence[bool], seed: int, *, reverse: bool) -> Flat:
    def derivative(*leaves: Any) -> list[Any]:
        draw = np.random.default_rng(seed + 3)
        start = only(leaves, moved)
        last = of_moved(lambda *leaves: function(*leaves)[skip:], leaves, moved)
        if reverse:
            results, pull = jax.vjp(last, start)
            return list(pull([jnp.asarray(draw.normal(size=x.shape), x.dtype) for x in results])[0])
        directions = [jnp.asarray(draw.normal(size=x.shape), x.dtype) for x in start]
        return list(jax.jvp(last, (start,), (directions,))[1])

    return derivative
