"""A sum over another axis, or left out: all such changes of a gradient's program in one program.

Each sum stays in the shape of what is summed, as long as the following operations allow it: whatever axes it goes over,
the shapes are the same, and a number can choose.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from minijaxnet.verify.hints.changes import FORGETTABLE, listed, subsets, where
from minijaxnet.verify.interpreter import bind

_RESHAPES = frozenset("broadcast_in_dim expand_dims reshape squeeze".split())
_ELEMENTWISE = FORGETTABLE | set(
    """abs add add_any and convert_element_type copy div eq ge gt is_finite le lt max min mul ne neg not or pow select_n
    sign stop_gradient sub""".split()
)


class Kept(NamedTuple):
    """A sum in the shape of what was summed, and the axes along which it is constant in the right program."""

    full: Any
    axes: tuple[int, ...]


class Way(NamedTuple):
    """How a group of sums goes wrong: in words, over which axes, times what."""

    words: str
    group: list[Any]
    axes: tuple[int, ...]
    factor: float = 1.0


def ways(operations: list[Any]) -> list[Way]:
    """All of them: of sums that are alike, of the first or the last of these, of each alone, of those of a softmax."""
    alike: dict[Any, list[Any]] = {}
    for eqn in operations:
        if eqn.primitive.name in ("reduce_sum", "reduce_max") and eqn.outvars[0].aval.shape and not _of_one(eqn):
            alike.setdefault((eqn.invars[0].aval.shape, tuple(eqn.params["axes"])), []).append(eqn)
    sums = [[eqn for eqn in group if eqn.primitive.name == "reduce_sum"] for group in alike.values()]
    groups = [group for group, mine in zip(alike.values(), sums, strict=True) if mine]
    groups += [[a, b] for group in groups for a, b in itertools.pairwise(group) if a.primitive.name == "reduce_max"]
    groups += [part for group in sums for k in range(1, len(group)) for part in (group[k:], group[:k])]
    groups += [[eqn] for group in sums for eqn in group]
    return [way for group in {tuple(map(id, g)): g for g in groups}.values() for way in _ways_of(group)]


def _ways_of(group: list[Any]) -> Iterator[Way]:
    shape, right = group[0].invars[0].aval.shape, tuple(group[0].params["axes"])
    softmax, place = any(eqn.primitive.name == "reduce_max" for eqn in group), where(group[0])
    if not softmax:
        yield Way(f"a sum over axis {listed(right)} is left out{place}", group, ())
    for axes, what in itertools.product(subsets(len(shape)), ("softmax",) if softmax else ("mean", "sum")):
        if axes != right:
            words = f"a {what} over axis {listed(axes)} where it should be over axis {listed(right)}"
            sizes = [np.prod([shape[a] for a in some]) for some in (right, axes)]
            factor = float(sizes[0] / sizes[1]) if what == "mean" else 1.0
            yield Way(f"the wrong axis: {words}{place}", group, axes, factor)


def over_others(plans: list[Way], which: Any) -> Callable[[Any, list[Any]], list[Any] | None]:
    """What to do instead of each operation when a number says which of the ways to go."""
    members = {id(eqn) for plan in plans for eqn in plan.group}

    def instead(eqn: Any, operands: list[Any]) -> list[Any] | None:
        if id(eqn) not in members:
            return _followed(eqn, operands)
        mine = [plan if any(eqn is each for each in plan.group) else None for plan in plans]
        return [_reduced(eqn, settled(operands[0], eqn.invars[0]), mine, which)]

    return instead


def _reduced(eqn: Any, x: Any, plans: list[Way | None], which: Any) -> Kept:
    """A sum or a maximum in the shape of its operand, the way that the number says."""
    right, reduce = tuple(eqn.params["axes"]), jnp.max if eqn.primitive.name == "reduce_max" else jnp.sum
    over = np.array([[a in (plan.axes if plan else right) for a in range(x.ndim)] for plan in plans])
    factors = np.array([plan.factor if plan else 1.0 for plan in plans])
    total = x
    for a in range(x.ndim):
        total = jnp.where(jnp.asarray(over)[which, a], reduce(total, axis=a, keepdims=True), total)
    return Kept(total * jnp.asarray(factors)[which] if reduce is jnp.sum else total, right)


def _followed(eqn: Any, operands: list[Any]) -> list[Any] | None:
    """An operation on what is kept in the shape of what was summed, in that shape as long as it can be."""
    kept = [x for x in operands if isinstance(x, Kept)]
    if not kept:
        return None
    name, (full, axes), out = eqn.primitive.name, kept[0], eqn.outvars[0].aval.shape
    rest = [a for a, n in enumerate(full.shape) if a not in axes and n > 1]
    if all(x.axes == axes and x.full.shape == full.shape for x in kept):
        few = int(np.prod([full.shape[a] for a in rest]))
        if (name in _RESHAPES and np.prod(out) == few) or _of_one(eqn):
            return [kept[0]]
        if name == "broadcast_in_dim" and out == full.shape:
            sizes = zip(eqn.params["broadcast_dimensions"], eqn.invars[0].aval.shape, strict=True)
            if [a for a, n in sizes if n > 1] == rest:
                return [full]
        sizes = {int(np.prod(atom.aval.shape)) for atom in (*eqn.invars, *eqn.outvars)}
        if name in _ELEMENTWISE and sizes <= {1, full.size, few}:
            (result,) = bind(eqn, [_spread(x, full.shape, rest) for x in operands])
            return [result if out == full.shape else Kept(result, axes)]
    return bind(eqn, [settled(x, atom) for x, atom in zip(operands, eqn.invars, strict=True)])


def _spread(x: Any, shape: tuple[int, ...], rest: list[int]) -> Any:
    """An operand in the shape of what was summed, of which the program has these axes."""
    if isinstance(x, Kept):
        return x.full
    flat = [n if a in rest else 1 for a, n in enumerate(shape)]
    return jnp.broadcast_to(x if x.ndim == 0 or x.shape == shape else x.reshape(flat), shape)


def settled(x: Any, atom: Any) -> Any:
    """What was kept in a larger shape, in the shape that the program has it in."""
    if not isinstance(x, Kept):
        return x
    return x.full[tuple(0 if a in x.axes else slice(None) for a in range(x.full.ndim))].reshape(atom.aval.shape)


def _of_one(eqn: Any) -> bool:
    """Whether it is a sum over axes of length 1."""
    return eqn.primitive.name == "reduce_sum" and all(eqn.invars[0].aval.shape[a] == 1 for a in eqn.params["axes"])
