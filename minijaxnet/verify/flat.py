"""Functions of trees as functions of flat leaves, of which some are differentiated."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Flat = Callable[..., list[Any]]


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
    except TypeError:
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
        ways = [jnp.asarray(draw.normal(size=x.shape), x.dtype) for x in start]
        return list(jax.jvp(last, (start,), (ways,))[1])

    return derivative


def chosen_leaves(args: tuple[Any, ...], chosen: Sequence[int]) -> list[bool]:
    """For each leaf of the arguments, whether it is in one of those chosen."""
    return [i in chosen for i, arg in enumerate(args) for _ in jax.tree.leaves(arg)]


def paths_of(args: tuple[Any, ...]) -> list[str]:
    """The names of all leaves of the arguments."""
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(args)[0]]
