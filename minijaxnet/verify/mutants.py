"""Which one change of autodiff's own program makes it the hand rule? That change is the slip.

Three kinds of change are tried: a value of the function taken as fixed, so that nothing flows back through it; an
operation of the gradient's program done otherwise; a sum over another axis. All changes of a kind are in one compiled
program: a number tells it which to make.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src import source_info_util

from minijaxnet._jaxpr import equations, is_literal
from minijaxnet.verify.changes import FORGETTABLE, changes, is_real, listed, subsets
from minijaxnet.verify.compared import Compared
from minijaxnet.verify.evaluation import Evaluation, as_real, compile_together, outputs
from minijaxnet.verify.hints import Wrong, explain, guess
from minijaxnet.verify.interpreter import Loops, bind, interpret
from minijaxnet.verify.problem import of_moved, only

_MOST_OPERATIONS = 400
_MOST_CHANGES = 600
_MOST_ROUNDS = 16
# Beginnings of the sentences that are tried before others.
_LIKELY = ("transposed", "set where", "an index", "the dilation", "a state", "a sign is wrong")
_RESHAPES = frozenset("broadcast_in_dim expand_dims reshape squeeze".split())
_ELEMENTWISE = FORGETTABLE | set(
    """abs add add_any and convert_element_type copy div eq ge gt is_finite le lt max min mul ne neg not or pow select_n
    sign stop_gradient sub""".split()
)

Tried = Iterator[tuple[str, Sequence[Any]]]


def explained(at: Evaluation, compared: Sequence[Compared]) -> list[str]:
    """How the wrong leaves are wrong, as far as the usual slips explain it; a slip that explains several is told once.

    The leaves are named in the order in which autodiff's backward pass comes to them: a slip precedes what follows.
    """
    slips = _wrong_leaves(at, compared)
    told = _covering(slips, _without_a_cotangent(at), slips.keys()) if slips else {}
    for leaf, slip in slips.items():
        if leaf not in told and (sentence := explain(slip)):
            told[leaf] = sentence
    if open_leaves := slips.keys() - told.keys():
        found = _covering(slips, _changed(at), open_leaves)
        one_for_all = len(found) == len(slips) and len(set(found.values())) == 1
        told = found if one_for_all else found | told
    told |= {leaf: sentence for leaf in slips.keys() - told.keys() if (sentence := guess(slips[leaf]))}
    named: dict[str, list[str]] = {}
    for leaf in slips:
        if leaf in told:
            named.setdefault(told[leaf], []).append(slips[leaf].path)
    return [f"{', '.join(paths)}: {sentence}" for sentence, paths in named.items()]


def _wrong_leaves(at: Evaluation, compared: Sequence[Compared]) -> dict[int, Wrong]:
    truths = {c.name: c.reference for c in compared}
    is_key = [jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in at.wide]
    named = zip(at.problem.paths, at.wide, is_key, strict=True)
    arguments = {path: as_real(x) for path, x, key in named if not key}
    coarse = 1e-6 if at.compiled.notes else 0.0  # where not all is in float64
    slips = {}
    program, points, dtypes = at.compiled.reference.program, at.differentiated(), at.dtypes()
    made = {var: k for k, eqn in enumerate(program.eqns) for var in eqn.outvars} if program is not None else {}
    atoms = program.outvars[at.problem.n_values :] if program is not None else [None] * len(compared)
    order = [-1 if atom is None or is_literal(atom) else made.get(atom, -1) for atom in atoms]
    for i in sorted(range(len(compared)), key=order.__getitem__):
        c = compared[i]
        if c.wrong.any():
            others = {name: truth for name, truth in truths.items() if name != c.name}
            pairs = bool(jnp.issubdtype(dtypes[i], jnp.complexfloating))
            tolerance = c.tolerance + coarse * np.max(np.abs(c.reference), initial=0.0)
            slips[i] = Wrong(c.name, c.hand, c.reference, tolerance, c.wrong, points[i], others, arguments, pairs)
    return slips


def _covering(slips: Mapping[int, Wrong], tried: Tried, needed: Set[int]) -> dict[int, str]:
    """For each leaf the sentence that gives its numbers, and those of most others; the search ends with all needed."""
    reached: list[tuple[str, set[int]]] = []
    for sentence, gradients in tried:
        leaves = {i for i, slip in slips.items() if slip.equal(as_real(np.conj(gradients[i])), slip.hand)}
        reached += [(sentence, leaves)] if leaves else []
        if needed <= leaves:
            break
    found: dict[int, str] = {}
    for sentence, leaves in sorted(reached, key=lambda each: -len(each[1])):
        found = dict.fromkeys(leaves, sentence) | found
    return found


def _without_a_cotangent(at: Evaluation) -> Tried:
    """The gradients when one of several cotangents is forgotten."""
    cotangents = at.problem.cotangents
    for i, place in enumerate(cotangents if len(cotangents) > 1 else []):
        leaves = [0 * x if k == place else x for k, x in enumerate(at.wide)]
        yield f"the cotangent of output {i} is ignored", outputs(at.compiled, leaves)[1][at.problem.n_values :]


def _changed(at: Evaluation) -> Tried:
    """The gradients by each change of the program, kind by kind."""
    yield from _taken_as_fixed(at)
    if len(_operations(at.compiled.reference.program)) and (program := derived(at)) is not None:
        yield from _otherwise(at, program)
        yield from _over_another_axis(at, program)


def _taken_as_fixed(at: Evaluation) -> Tried:
    """The gradients when one value within the function, all its sums, or a loop's state are taken as fixed."""
    rule, moved = at.compiled.objective, at.problem.moved
    operations = _operations(rule.program)[::-1]  # the last of a chain says best what is fixed
    places = [eqn for eqn in operations if len(eqn.outvars) == 1 and is_real(eqn.outvars[0])]
    scans = [eqn for eqn in operations if eqn.primitive.name == "scan"]
    numbers = {id(eqn): number for number, eqn in enumerate(places)}
    sums = {id(eqn) for eqn in places if eqn.primitive.name == "reduce_sum" and eqn.outvars[0].aval.shape}
    how = "a term is missing: nothing flows back through"
    sentences = [f"{how} {eqn.primitive.name}, which is taken as fixed{_where(eqn)}" for eqn in places]
    sentences += [f"{how} the sums and means: these statistics are taken as fixed"] if len(sums) > 1 else []
    first_round = {}
    for eqn in scans:
        first_round[id(eqn)] = len(sentences)
        words = ["the state of a loop, which is taken as fixed in each round"]
        words += [f"the first {k} rounds of a loop" for k in _rounds(eqn)]
        words += [f"more than {k} rounds of a loop" for k in _rounds(eqn)]
        sentences += [f"{how} {what}{_where(eqn)}" for what in words]

    def gradients(consts: Any, leaves: Any, which: Any) -> list[Any]:
        def fixed(value: Any, when: Any) -> Any:
            return jnp.where(when, lax.stop_gradient(value), value) if jnp.issubdtype(value.dtype, jnp.inexact) else value

        def instead(eqn: Any, operands: list[Any]) -> list[Any] | None:
            if id(eqn) not in numbers:
                return None
            (result,) = bind(eqn, operands)
            together = (which == len(numbers)) if id(eqn) in sums and len(sums) > 1 else False
            return [fixed(result, (which == numbers[id(eqn)]) | together)]

        def carried(eqn: Any, step: Any, carry: list[Any]) -> list[Any]:
            if (start := first_round.get(id(eqn))) is None:
                return carry
            step = eqn.params["length"] - 1 - step if eqn.params["reverse"] else step
            n, k = len(_rounds(eqn)), which - start
            now = (k == 0) | ((k > 0) & (k <= n) & (k == step)) | ((k > n) & (k <= 2 * n) & (step % (k - n) == 0))
            return [fixed(x, now) for x in carry]

        def value(*leaves: Any) -> Any:
            loops = Loops(carried=carried if scans else None)
            return interpret(rule.program, consts, leaves, instead=instead, loops=loops)[0]

        return jax.grad(of_moved(value, leaves, moved))(only(leaves, moved))

    yield from _one_by_one(sentences, gradients, rule.consts, at.wide)


def _rounds(eqn: Any) -> range:
    return range(1, min(eqn.params["length"], _MOST_ROUNDS))


def _otherwise(at: Evaluation, program: Any) -> Tried:
    """The gradients when one operation of their program is done otherwise."""
    operations = list(equations(program))[::-1]  # the backward pass comes last, and is where slips are made
    candidates = [(eqn, change) for eqn in operations for change in (*changes(eqn), *_other_states(eqn))]
    candidates = sorted(candidates, key=lambda each: not each[1][0].startswith(_LIKELY))[:_MOST_CHANGES]
    mine: dict[int, list[tuple[int, Callable[[list[Any]], Any]]]] = {}
    for number, (eqn, (_, change)) in enumerate(candidates):
        mine.setdefault(id(eqn), []).append((number, change))

    def gradients(consts: Any, leaves: Any, which: Any) -> list[Any]:
        def instead(eqn: Any, operands: list[Any]) -> list[Any] | None:
            if id(eqn) not in mine:
                return None
            (result,) = bind(eqn, operands)
            for number, change in mine[id(eqn)]:
                result = jnp.where(which == number, change(operands), result)
            return [result]

        def ended(eqn: Any, operands: list[Any], results: list[Any], one_more: Any) -> list[Any]:
            for number, change in mine.get(id(eqn), ()):
                changed = change([operands, results])
                results = [jnp.where(which == number, a, b) for a, b in zip(changed, results, strict=True)]
            return results

        loops = Loops(ended=ended)
        return interpret(program.jaxpr, program.consts, [*consts, *leaves], instead=instead, loops=loops)

    sentences = [f"{sentence}{_where(eqn)}" for eqn, (sentence, _) in candidates]
    yield from _one_by_one(sentences, gradients, at.compiled.objective.consts, at.wide)


def _other_states(eqn: Any) -> Iterator[tuple[str, Callable[[list[Any]], Any]]]:
    """Where a scan keeps its state of each round for the backward pass: the state of the round before, or after."""
    if eqn.primitive.name != "scan":
        return
    body, outer = getattr(eqn.params["jaxpr"], "jaxpr", eqn.params["jaxpr"]), eqn.outvars
    n_carry = sum(a.aval.ndim == b.aval.ndim for a, b in zip(outer, body.outvars, strict=True))
    n_rows = sum(a.aval.ndim != b.aval.ndim for a, b in zip(eqn.invars, body.invars, strict=True))
    first = len(eqn.invars) - n_carry - n_rows
    before, after = body.invars[first : first + n_carry], body.outvars[:n_carry]
    for kept, atom in enumerate(body.outvars[n_carry:], start=n_carry):
        for k, (start, end) in enumerate(zip(before, after, strict=True)):
            if is_literal(atom) or atom not in (start, end):
                continue

            def change(x: list[Any], kept: int = kept, k: int = k, later: bool = atom is start) -> list[Any]:
                operands, results = x
                states, edge = results[kept], (results[k] if later else operands[first + k])[None]
                ahead = later != eqn.params["reverse"]
                other = jnp.concatenate([states[1:], edge] if ahead else [edge, states[:-1]])
                return [other if i == kept else y for i, y in enumerate(results)]

            yield f"a state of a loop is that of the round {'after' if atom is start else 'before'}", change


class _Kept(NamedTuple):
    """A sum in the shape of what was summed, and the axes that it should be over: along these it was to be the same."""

    full: Any
    axes: tuple[int, ...]


def _over_another_axis(at: Evaluation, program: Any) -> Tried:
    """The gradients when one sum, all alike, or those of a softmax, are over another axis, or over its blocks."""
    operations = list(equations(program))
    if any(eqn.primitive.name in ("scan", "while", "cond", "shard_map") for eqn in operations):
        return
    sums = [eqn for eqn in operations if eqn.primitive.name in ("reduce_sum", "reduce_max") and not _of_one(eqn)]
    sums = [eqn for eqn in sums if eqn.outvars[0].aval.shape]
    alike: dict[Any, list[Any]] = {}
    for eqn in sums:
        alike.setdefault((eqn.invars[0].aval.shape, tuple(eqn.params["axes"])), []).append(eqn)
    groups = [group for group in alike.values() if any(eqn.primitive.name == "reduce_sum" for eqn in group)]
    groups += [
        [a, b] for group in alike.values() for a, b in itertools.pairwise(group) if a.primitive.name == "reduce_max"
    ]
    only_sums = [[eqn for eqn in group if eqn.primitive.name == "reduce_sum"] for group in alike.values()]
    groups += [part for group in only_sums for k in range(1, len(group)) for part in (group[k:], group[:k])]
    groups += [[eqn] for group in only_sums for eqn in group]
    groups = list({tuple(map(id, group)): group for group in groups}.values())
    plans = [(group, *way) for group in groups for way in _ways(group)][:_MOST_CHANGES]
    own = {id(eqn): [(number, *plan[2:]) for number, plan in enumerate(plans) if eqn in plan[0]] for eqn in sums}

    def gradients(consts: Any, leaves: Any, which: Any) -> list[Any]:
        def instead(eqn: Any, operands: list[Any]) -> list[Any] | None:
            if id(eqn) not in own:
                return _followed(eqn, operands)
            return [_reduced(eqn, _settled(operands[0], eqn.invars[0]), own[id(eqn)], which, len(plans))]

        results = interpret(program.jaxpr, program.consts, [*consts, *leaves], instead=instead)
        return [_settled(x, atom) for x, atom in zip(results, program.jaxpr.outvars, strict=True)]

    yield from _one_by_one([plan[1] for plan in plans], gradients, at.compiled.objective.consts, at.wide)


def _ways(group: list[Any]) -> Iterator[tuple[str, tuple[int, ...], float, int]]:
    """How a group of sums may go wrong: in words, the axes, a factor, and in how many blocks of the axis."""
    shape, right = group[0].invars[0].aval.shape, tuple(group[0].params["axes"])
    kinds = {eqn.primitive.name for eqn in group}
    blocks = [b for b in range(2, shape[right[0]]) if shape[right[0]] % b == 0][:4] if len(right) == 1 else []
    if "reduce_max" not in kinds:
        yield f"a sum over axis {listed(right)} is left out{_where(group[0])}", (), 1.0, 1
    for axes, as_mean in itertools.product(subsets(len(shape)), (True, False)):
        what = "softmax" if "reduce_max" in kinds else "mean" if as_mean else "sum"
        size, whole = np.prod([shape[a] for a in axes], dtype=int), np.prod([shape[a] for a in right])
        if axes != right and (as_mean or "reduce_max" not in kinds):
            words = f"the wrong axis: a {what} over axis {listed(axes)} where it should be over axis {listed(right)}"
            yield f"{words}{_where(group[0])}", axes, float(whole / size) if what == "mean" else 1.0, 1
        for b in blocks if axes == right else ():
            words = f"a {what} is over each of {b} blocks of axis {listed(right)} where it should be over all of it"
            yield f"{words}{_where(group[0])}", right, float(b) if what == "mean" else 1.0, b


def _reduced(eqn: Any, x: Any, ways: list[tuple[Any, ...]], which: Any, count: int) -> _Kept:
    """A sum or a maximum in the shape of its operand, the way that the number says."""
    reduce = jnp.max if eqn.primitive.name == "reduce_max" else jnp.sum
    right = tuple(eqn.params["axes"])
    chosen = np.tile([a in right for a in range(x.ndim)], (count, 1))
    factors, blocks = np.ones(count), np.ones(count, int)
    for number, axes, factor, block in ways:
        chosen[number], factors[number], blocks[number] = [a in axes for a in range(x.ndim)], factor, block
    total = x
    for a in range(x.ndim):
        total = jnp.where(jnp.asarray(chosen)[which, a], reduce(total, axis=a, keepdims=True), total)
    for b in sorted({*blocks} - {1}):
        (axis,) = right
        parts = x.reshape(*x.shape[:axis], b, x.shape[axis] // b, *x.shape[axis + 1 :])
        part = jnp.broadcast_to(reduce(parts, axis=axis + 1, keepdims=True), parts.shape).reshape(x.shape)
        total = jnp.where(jnp.asarray(blocks)[which] == b, part, total)
    return _Kept(total * jnp.asarray(factors)[which] if reduce is jnp.sum else total, right)


def _followed(eqn: Any, operands: list[Any]) -> list[Any] | None:
    """An operation on what is kept in the shape of what was summed, in that shape as far as it can be."""
    kept = [x for x in operands if isinstance(x, _Kept)]
    if not kept:
        return None
    name, (full, axes), out = eqn.primitive.name, kept[0], eqn.outvars[0].aval.shape
    rest = [a for a, n in enumerate(full.shape) if a not in axes and n > 1]
    if all(x.axes == axes and x.full.shape == full.shape for x in kept):
        if (name in _RESHAPES and np.prod(out) == np.prod([full.shape[a] for a in rest])) or _of_one(eqn):
            return [kept[0]]
        if name == "broadcast_in_dim" and out == full.shape:
            sizes = zip(eqn.params["broadcast_dimensions"], eqn.invars[0].aval.shape, strict=True)
            if [a for a, n in sizes if n > 1] == rest:
                return [full]
        sizes = {int(np.prod(atom.aval.shape)) for atom in (*eqn.invars, *eqn.outvars)}
        if name in _ELEMENTWISE and sizes <= {1, full.size, int(np.prod([full.shape[a] for a in rest]))}:
            (result,) = bind(eqn, [_spread(x, full.shape, rest) for x in operands])
            return [result if out == full.shape else _Kept(result, axes)]
    return bind(eqn, [_settled(x, atom) for x, atom in zip(operands, eqn.invars, strict=True)])


def _spread(x: Any, shape: tuple[int, ...], rest: list[int]) -> Any:
    """An operand in the shape of what was summed, of which the program has these axes."""
    if isinstance(x, _Kept):
        return x.full
    flat = [n if a in rest else 1 for a, n in enumerate(shape)]
    return jnp.broadcast_to(x if x.ndim == 0 or x.shape == shape else x.reshape(flat), shape)


def _settled(x: Any, atom: Any) -> Any:
    """What was kept in a larger shape, in the shape that the program has it in."""
    if not isinstance(x, _Kept):
        return x
    return x.full[tuple(0 if a in x.axes else slice(None) for a in range(x.full.ndim))].reshape(atom.aval.shape)


def _of_one(eqn: Any) -> bool:
    """Whether it is a sum over axes of length 1."""
    return eqn.primitive.name == "reduce_sum" and all(eqn.invars[0].aval.shape[a] == 1 for a in eqn.params["axes"])


def _one_by_one(sentences: Sequence[str], gradients: Callable[..., list[Any]], consts: Any, leaves: Any) -> Tried:
    """What each change gives, one after another, by one compiled program; nothing where it can't be had."""
    if not sentences:
        return
    try:
        (program,) = compile_together([jax.jit(gradients).lower(consts, leaves, np.int32(0))])
    except Exception:  # no reverse mode through a loop, or a shape that the change does not bear: no hint is lost
        return
    for number, sentence in enumerate(sentences):
        yield sentence, program(consts, leaves, np.int32(number))


def derived(at: Evaluation) -> Any:
    """A program of the gradients, from the constants and the arguments, arranged as people do; None if not to be had.

    A division and what follows from the value of a function by a simple formula have their rules from that value.
    """
    rule = at.compiled.objective

    def instead(eqn: Any, operands: list[Any]) -> list[Any] | None:
        traceback = getattr(getattr(eqn, "source_info", None), "traceback", None)
        with source_info_util.user_context(traceback):  # so that the line of the user's is kept
            if eqn.primitive.name in _BY_VALUE and is_real(eqn.outvars[0]):
                return [_by_value(eqn, tuple(operands))]
            return bind(eqn, operands)

    def gradients(consts: Any, leaves: Any) -> list[Any]:
        def value(*leaves: Any) -> Any:
            return interpret(rule.program, consts, leaves, instead=instead)[0]

        return jax.grad(of_moved(value, leaves, at.problem.moved))(only(leaves, at.problem.moved))

    try:
        return jax.make_jaxpr(gradients)(rule.consts, at.wide)
    except Exception:  # no reverse mode through a loop: no hint is lost
        return None


_BY_VALUE: dict[str, Callable[..., tuple[Any, ...]]] = {
    "div": lambda g, y, a, b: (_summed_to(g / b, a), -_summed_to(g * y, b) / b),
    "tanh": lambda g, y, a: (g * (1 - y**2),),
    "logistic": lambda g, y, a: (g * (y * (1 - y)),),
    "sqrt": lambda g, y, a: (g / (2 * y),),
}


def _by_value(eqn: Any, operands: tuple[Any, ...]) -> Any:
    @jax.custom_vjp
    def function(*operands: Any) -> Any:
        return bind(eqn, list(operands))[0]

    def forward(*operands: Any) -> tuple[Any, Any]:
        value = function(*operands)
        return value, (value, *operands)

    function.defvjp(forward, lambda kept, g: _BY_VALUE[eqn.primitive.name](g, *kept))
    return function(*operands)


def _summed_to(x: Any, like: Any) -> Any:
    """Summed over the axes along which something was broadcast."""
    axes = tuple(a for a, n in enumerate(x.shape) if like.ndim == 0 or like.shape[a] != n)
    return jnp.sum(x, axes, keepdims=like.ndim > 0) if axes else x


def _operations(program: Any) -> list[Any]:
    """The operations of a program; none if they are too many to try."""
    eqns = list(equations(program))
    return eqns if len(eqns) <= _MOST_OPERATIONS else []


def _where(eqn: Any) -> str:
    """The line of the user's that an operation comes from, if it can be had."""
    traceback = getattr(getattr(eqn, "source_info", None), "traceback", None)
    for frame in getattr(traceback, "frames", ()):
        library = any(part in frame.file_name for part in ("site-packages", "minijaxnet/verify", "<frozen"))
        if not library:
            return f" (autodiff of {frame.file_name.rsplit('/', 1)[-1]}:{frame.line_num}, {frame.function_name})"
    return ""
