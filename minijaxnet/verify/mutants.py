"""Which one change of autodiff's own program makes it the hand rule? That change is the slip.

Three kinds of change are tried, the likeliest first: an operation of the gradient's program done otherwise; a value of
the function taken as fixed, so that nothing flows back through it; a sum over another axis. All of the first kind are
in one compiled program, and so are all of the second: a number tells it which to make.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from minijaxnet._jaxpr import equations
from minijaxnet.verify.evaluation import Evaluation, as_real, compile_together, outputs
from minijaxnet.verify.hints import Wrong
from minijaxnet.verify.interpreter import bind, interpret
from minijaxnet.verify.problem import of_moved, only

_MOST_OPERATIONS = 400
_MOST_CHANGES = 600
_FORGETTABLE = frozenset("exp log tanh logistic sqrt rsqrt square integer_pow log1p sin cos erf".split())
_RESHAPES = frozenset("broadcast_in_dim expand_dims reshape squeeze".split())
_ELEMENTWISE = _FORGETTABLE | set("add add_any convert_element_type copy div max min mul neg stop_gradient sub".split())

Change = tuple[str, Callable[[list[Any]], Any]]


def cotangent_ignored(at: Evaluation, slips: Mapping[int, Wrong]) -> dict[int, str]:
    """For each wrong leaf, by its place, which of several cotangents its rule ignores, if that is it."""
    return _explained(slips, _without_a_cotangent(at))


def changed(at: Evaluation, slips: Mapping[int, Wrong]) -> dict[int, str]:
    """For each wrong leaf, by its place, the first change that gives the hand rule's numbers, where there is one."""
    kinds = (kind(at) for kind in (_otherwise, _taken_as_fixed, _over_another_axis))
    return _explained(slips, itertools.chain.from_iterable(kinds))


def _explained(slips: Mapping[int, Wrong], tried: Iterator[tuple[str, Sequence[Any]]]) -> dict[int, str]:
    """Of sentences and the gradients that they would give, the first to give each slip's numbers."""
    found: dict[int, str] = {}
    if not slips:
        return found

    for sentence, gradients in tried:
        for leaf, slip in slips.items():
            if leaf not in found and slip.equal(as_real(np.conj(gradients[leaf])), slip.hand):
                found[leaf] = f"{slip.path}: {sentence}"
        if len(found) == len(slips):
            break
    return found


def _without_a_cotangent(at: Evaluation) -> Iterator[tuple[str, Sequence[Any]]]:
    """The gradients when one of several cotangents is forgotten."""
    cotangents = at.problem.cotangents
    for i, place in enumerate(cotangents if len(cotangents) > 1 else []):
        leaves = [0 * x if k == place else x for k, x in enumerate(at.wide)]
        gradients = outputs(at.compiled, leaves)[1][at.problem.n_values :]
        yield f"the cotangent of output {i} is ignored", gradients


def _otherwise(at: Evaluation) -> Iterator[tuple[str, Sequence[Any]]]:
    """The gradients when one operation of their program is done otherwise."""
    rule = at.compiled.reference
    # The backward pass comes last, and is where slips are made.
    candidates = [(eqn, change) for eqn in _operations(rule.program) for change in _changes(eqn)][::-1][:_MOST_CHANGES]
    changes: dict[int, list[tuple[int, Callable[[list[Any]], Any]]]] = {}
    for number, (eqn, (_, change)) in enumerate(candidates):
        changes.setdefault(id(eqn), []).append((number, change))

    def gradients(consts: Any, leaves: Any, which: Any) -> list[Any]:
        def instead(eqn: Any, operands: list[Any]) -> list[Any] | None:
            if id(eqn) not in changes:
                return None
            (result,) = bind(eqn, operands)
            for number, change in changes[id(eqn)]:
                result = jnp.where(which == number, change(operands), result)
            return [result]

        return interpret(rule.program, consts, leaves, instead=instead)[at.problem.n_values :]

    sentences = [f"{sentence}{_where(eqn)}" for eqn, (sentence, _) in candidates]
    yield from _one_by_one(sentences, gradients, rule.consts, at.wide)


def _taken_as_fixed(at: Evaluation) -> Iterator[tuple[str, Sequence[Any]]]:
    """The gradients when one value within the function, or all its sums, are taken as fixed."""
    rule, moved = at.compiled.objective, at.problem.moved
    places = [eqn for eqn in _operations(rule.program) if len(eqn.outvars) == 1 and _is_real(eqn.outvars[0])]
    numbers = {id(eqn): number for number, eqn in enumerate(places)}
    sums = {id(eqn) for eqn in places if eqn.primitive.name == "reduce_sum" and eqn.outvars[0].aval.shape}

    def gradients(consts: Any, leaves: Any, which: Any) -> list[Any]:
        def instead(eqn: Any, operands: list[Any]) -> list[Any] | None:
            if id(eqn) not in numbers:
                return None
            (result,) = bind(eqn, operands)
            fixed = which == numbers[id(eqn)]
            if id(eqn) in sums:
                fixed |= which == len(numbers)
            return [jnp.where(fixed, lax.stop_gradient(result), result)]

        def value(*leaves: Any) -> Any:
            return interpret(rule.program, consts, leaves, instead=instead)[0]

        return jax.grad(of_moved(value, leaves, moved))(only(leaves, moved))

    how = "a term is missing: nothing flows back through"
    sentences = [f"{how} {eqn.primitive.name}{_where(eqn)}" for eqn in places]
    sentences += [f"{how} the sums and means: these statistics are taken as fixed"] if len(sums) > 1 else []
    yield from _one_by_one(sentences, gradients, rule.consts, at.wide)


def _over_another_axis(at: Evaluation) -> Iterator[tuple[str, Sequence[Any]]]:
    """The gradients when one sum, or all alike, are over another axis, and broadcast back."""
    rule = at.compiled.reference
    sums = [eqn for eqn in _operations(rule.program) if eqn.primitive.name == "reduce_sum"]
    sums = [eqn for eqn in sums if eqn.outvars[0].aval.shape]
    alike: dict[Any, list[Any]] = {}
    for eqn in sums:
        alike.setdefault((eqn.invars[0].aval.shape, tuple(eqn.params["axes"])), []).append(eqn)
    groups = [*alike.values(), *([eqn] for eqn in sums if len(alike) < len(sums))]
    if any(eqn.primitive.name in ("scan", "while", "cond") for eqn in _operations(rule.program)):
        return
    for group in groups:
        shape, right = group[0].invars[0].aval.shape, tuple(group[0].params["axes"])
        others = [axes for n in range(1, len(shape) + 1) for axes in itertools.combinations(range(len(shape)), n)]
        for axes, as_mean in itertools.product(others, (True, False)):
            ratio = np.prod([shape[a] for a in right]) / np.prod([shape[a] for a in axes]) if as_mean else 1.0
            if axes == right:
                continue

            def instead(eqn: Any, operands: list[Any], axes: Any = axes, ratio: Any = ratio, group: Any = group) -> Any:
                if any(eqn is mine for mine in group):
                    total = ratio * jnp.sum(operands[0], axis=axes, keepdims=True)
                    return [jnp.broadcast_to(total, operands[0].shape)]
                return _followed(eqn, operands)

            try:
                results = interpret(rule.program, rule.consts, at.wide, instead=instead)
            except (TypeError, ValueError):  # the change does not fit what follows
                continue
            words = f"axis {_listed(axes)} where it should be over axis {_listed(right)}"
            sentence = f"the wrong axis: a {'mean' if as_mean else 'sum'} over {words}{_where(group[0])}"
            yield sentence, results[at.problem.n_values :]


def _followed(eqn: Any, operands: list[Any]) -> list[Any] | None:
    """An operation on a sum that is already broadcast to the shape of what was summed; None for any other."""
    kept = [getattr(x, "shape", ()) == v.aval.shape for x, v in zip(operands, eqn.invars, strict=True)]
    if all(kept):
        return None
    of_one = eqn.primitive.name == "reduce_sum" and all(eqn.invars[0].aval.shape[a] == 1 for a in eqn.params["axes"])
    if of_one or eqn.primitive.name in _RESHAPES:
        return [operands[0]]
    shape = next(x.shape for x, same in zip(operands, kept, strict=True) if not same)
    if eqn.primitive.name not in _ELEMENTWISE or any(x.shape not in ((), shape) for x in operands):
        raise TypeError("it does not fit what follows")
    return bind(eqn, [jnp.broadcast_to(x, shape) for x in operands])


def _one_by_one(
    sentences: Sequence[str], gradients: Callable[..., list[Any]], consts: Any, leaves: Any
) -> Iterator[tuple[str, Sequence[Any]]]:
    """What each change gives, one after another, by one compiled program; nothing where it can't be had."""
    if not sentences:
        return
    try:
        (program,) = compile_together([jax.jit(gradients).lower(consts, leaves, np.int32(0))])
    except Exception:  # no reverse mode through a loop, or a shape that the change does not bear: no hint is lost
        return
    for number, sentence in enumerate(sentences):
        yield sentence, program(consts, leaves, np.int32(number))


def _operations(program: Any) -> list[Any]:
    """The operations of a program; none if they are too many to try."""
    eqns = list(equations(program))
    return eqns if len(eqns) <= _MOST_OPERATIONS else []


def _changes(eqn: Any) -> Iterator[Change]:
    """What might be done instead of an operation, by mistake: a result of the same shape and dtype."""
    name, shapes = eqn.primitive.name, [getattr(atom.aval, "shape", ()) for atom in eqn.invars]
    if len(eqn.outvars) != 1 or not _is_real(eqn.outvars[0]):
        return
    out = eqn.outvars[0].aval.shape
    if name in ("add", "add_any"):
        yield "a term is missing: autodiff adds two where the rule has the first", lambda x: x[0] + jnp.zeros(out)
        yield "a term is missing: autodiff adds two where the rule has the second", lambda x: x[1] + jnp.zeros(out)
        yield "a sign is wrong: a difference where a sum is meant", lambda x: x[0] - x[1]
        twice = "a term is missing: autodiff adds two where the rule has twice the"
        yield f"{twice} first, as if they were equal", lambda x: 2 * x[0] + jnp.zeros(out)
        yield f"{twice} second, as if they were equal", lambda x: 2 * x[1] + jnp.zeros(out)
    elif name == "sub":
        yield "a term is missing: the one that is subtracted", lambda x: x[0] + jnp.zeros(out)
        yield "a term is missing: the one that something is subtracted from", lambda x: jnp.zeros(out) - x[1]
        yield "a sign is wrong: a sum where a difference is meant", lambda x: x[0] + x[1]
    elif name == "mul":
        yield "a factor is missing: autodiff multiplies where the rule does not", lambda x: x[0] * jnp.ones(out)
        yield "a factor is missing: autodiff multiplies where the rule does not", lambda x: x[1] * jnp.ones(out)
    elif name == "div":
        yield "a division is missing", lambda x: x[0] * jnp.ones(out)
        yield "a division is the wrong way around", lambda x: x[1] / x[0]
    elif name == "neg":
        yield "a sign is wrong", lambda x: x[0]
    elif name == "transpose" and shapes[0] == out:
        yield "transposed on the way", lambda x: x[0]
    elif name == "dot_general":
        (axes, _), _ = eqn.params["dimension_numbers"]
        for axis, end in itertools.product(axes, (0, -1)):
            yield _forgotten(axis, end), lambda x, axis=axis, end=end: bind(eqn, [_dropped(x[0], axis, end), x[1]])[0]
    elif name in ("reduce_sum", "reduce_max"):
        right = tuple(eqn.params["axes"])
        for axis, end in itertools.product(right if name == "reduce_sum" else (), (0, -1)):
            yield _forgotten(axis, end), lambda x, axis=axis, end=end: jnp.sum(_dropped(x[0], axis, end), axis=right)
        for count in range(1, len(shapes[0]) + 1):
            for axes in itertools.combinations(range(len(shapes[0])), count):
                kept = tuple(n for k, n in enumerate(shapes[0]) if k not in axes)
                words = f"axis {_listed(axes)} where it should be summed over axis {_listed(right)}"
                if kept == out and axes != right and name == "reduce_sum":
                    yield f"the wrong axis: summed over {words}", lambda x, axes=axes: jnp.sum(x[0], axis=axes)
                if kept == out and name == "reduce_sum":
                    yield f"a mean for a sum: averaged over {words}", lambda x, axes=axes: jnp.mean(x[0], axis=axes)
    elif name in _FORGETTABLE:
        yield f"{name} is forgotten", lambda x: x[0]
    elif name == "select_n" and len(shapes) == 3:
        yield "a mask is forgotten: the rule takes one side of a choice everywhere", lambda x: x[1] * jnp.ones(out)
        yield "a mask is forgotten: the rule takes one side of a choice everywhere", lambda x: x[2] * jnp.ones(out)


def _forgotten(axis: int, end: int) -> str:
    return f"a term is missing: the {'last' if end else 'first'} of those summed over axis {axis}"


def _dropped(x: Any, axis: int, end: int) -> Any:
    """Zero instead of the first slice along an axis, or of the last."""
    return x * (np.arange(x.shape[axis]) != end % max(x.shape[axis], 1)).reshape([-1] + [1] * (x.ndim - axis - 1))


def _is_real(atom: Any) -> bool:
    return jnp.issubdtype(atom.aval.dtype, jnp.floating)


def _listed(axes: tuple[int, ...]) -> str:
    return ", ".join(map(str, axes))


def _where(eqn: Any) -> str:
    """The line of the user's that an operation comes from, if it can be had."""
    traceback = getattr(getattr(eqn, "source_info", None), "traceback", None)
    for frame in getattr(traceback, "frames", ()):
        library = any(part in frame.file_name for part in ("site-packages", "minijaxnet/verify", "<frozen"))
        if not library:
            return f" (autodiff of {frame.file_name.rsplit('/', 1)[-1]}:{frame.line_num}, {frame.function_name})"
    return ""
