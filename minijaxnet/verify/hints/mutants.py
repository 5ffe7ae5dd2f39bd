"""Which one change of autodiff's own program makes it the hand rule? That change is the slip.

Three kinds of change are tried: a value of the function taken as fixed, so that nothing flows back through it; an
operation of the gradient's program done otherwise; a sum over another axis. All changes of a kind are in one compiled
program, with a number as an argument that says which to make.
"""

import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from minijaxnet._jaxpr import equations, is_literal
from minijaxnet._trees import is_keys
from minijaxnet.verify.comparison import Comparison
from minijaxnet.verify.compilation import compile_all
from minijaxnet.verify.evaluation import Evaluation, outputs
from minijaxnet.verify.hints.axes import over_others, settled, ways
from minijaxnet.verify.hints.changes import Change, Rank, changes, in_words, is_real, where
from minijaxnet.verify.hints.derived import by_people, gradients
from minijaxnet.verify.hints.slips import Wrong, explain, guess
from minijaxnet.verify.interpreter import Hooks, bind, interpret
from minijaxnet.verify.widening import as_real, largest

_MOST_OPERATIONS = 400
_MOST_CHANGES = 600
_MOST_ROUNDS = 16
Tried = Iterator[tuple[str, Sequence[Any]]]


def explained(at: Evaluation, compared: Sequence[Comparison]) -> list[str]:
    """How each wrong leaf is wrong, as far as a slip explains it."""
    slips = _wrong_leaves(at, compared)
    found = _covering(slips, _without_a_cotangent(at), slips.keys()) if slips else {}
    for leaf, slip in slips.items():
        if leaf not in found and (sentence := explain(slip)):
            found[leaf] = sentence
    if unexplained := slips.keys() - found.keys():
        by_change = _covering(slips, _changed(at), unexplained)
        one_for_all = len(by_change) == len(slips) and len(set(by_change.values())) == 1
        found = by_change if one_for_all else by_change | found
    found |= {leaf: sentence for leaf in slips.keys() - found.keys() if (sentence := guess(slips[leaf]))}
    return [f"{slip.path}: {found[leaf]}" for leaf, slip in slips.items() if leaf in found]


def _wrong_leaves(at: Evaluation, compared: Sequence[Comparison]) -> dict[int, Wrong]:
    """The wrong leaves, in the order in which autodiff's backward pass comes to them: a slip precedes what follows."""
    truths = {c.name: c.reference for c in compared}
    named = zip(at.problem.paths, at.wide, strict=True)
    arguments = {path: as_real(x) for path, x in named if not is_keys(x)}
    coarse = 1e-6 if at.compiled.notes else 0.0  # where not all is in float64
    program, params, dtypes = at.compiled.reference.program, at.params(), at.dtypes()
    made = {var: k for k, eqn in enumerate(program.eqns) for var in eqn.outvars}
    order = [-1 if is_literal(atom) else made.get(atom, -1) for atom in program.outvars[at.problem.n_values :]]
    slips = {}
    for i in sorted(range(len(compared)), key=order.__getitem__):
        c = compared[i]
        if c.wrong.any():
            others = {name: truth for name, truth in truths.items() if name != c.name}
            pairs = bool(jnp.issubdtype(dtypes[i], jnp.complexfloating))
            tolerance = c.tolerance + coarse * largest(c.reference)
            slips[i] = Wrong(c.name, c.hand, c.reference, tolerance, c.wrong, params[i], others, arguments, pairs)
    return slips


def _covering(slips: Mapping[int, Wrong], tried: Tried, needed: Set[int]) -> dict[int, str]:
    """For each leaf the sentence that gives its numbers, and those of most others; the search ends with all needed."""
    reached: list[tuple[str, set[int]]] = []
    for sentence, results in tried:
        leaves = {i for i, slip in slips.items() if slip.equal(as_real(np.conj(results[i])), slip.hand)}
        reached += [(sentence, leaves)] if leaves else []
        if needed <= leaves:
            break
    found: dict[int, str] = {}
    for sentence, leaves in sorted(reached, key=lambda each: -len(each[1])):
        found = dict.fromkeys(leaves, sentence) | found
    return found


def _without_a_cotangent(at: Evaluation) -> Tried:
    """The gradients when one of several cotangents is forgotten."""
    n = at.problem.n_cotangents
    for i in range(n if n > 1 else 0):
        leaves = list(at.wide)
        leaves[i - n] = 0 * leaves[i - n]
        yield f"the cotangent of output {i} is ignored", outputs(at.compiled, leaves)[1][at.problem.n_values :]


def _changed(at: Evaluation) -> Tried:
    """The gradients by each change of the program, kind by kind."""
    yield from _taken_as_fixed(at)
    if len(_operations(at.compiled.reference.program)) and (program := by_people(at)) is not None:
        yield from _otherwise(at, program)
        yield from _over_another_axis(at, program)


class _Fixed(NamedTuple):
    """What is taken as fixed, in words: values by their operation, and a loop's state at some of its steps."""

    words: str
    values: Set[int]
    steps: Mapping[int, np.ndarray]


def _taken_as_fixed(at: Evaluation) -> Tried:
    """The gradients when one value within the function, all its sums, or a loop's state are taken as fixed."""
    plans = list(_fixed_plans(_operations(at.compiled.objective.program)[::-1]))  # the last of a chain says best what

    def with_fixed(consts: Any, leaves: Any, which: Any) -> list[Any]:
        def fixed(value: Any, when: Any) -> Any:
            inexact = jnp.issubdtype(value.dtype, jnp.inexact)
            return jnp.where(when, lax.stop_gradient(value), value) if inexact else value

        def instead(eqn: Any, operands: list[Any]) -> list[Any] | None:
            mine = [which == k for k, plan in enumerate(plans) if id(eqn) in plan.values]
            return [fixed(bind(eqn, operands)[0], functools.reduce(operator.or_, mine))] if mine else None

        def carried(eqn: Any, step: Any, carry: list[Any]) -> list[Any]:
            never = np.zeros(eqn.params["length"], bool)
            when = jnp.asarray([plan.steps.get(id(eqn), never) for plan in plans])[which, step]
            return [fixed(x, when) for x in carry]

        loops = any(plan.steps for plan in plans)
        return gradients(at, Hooks(instead, carried=carried if loops else None))(consts, leaves)

    yield from _one_by_one(at, [plan.words for plan in plans], with_fixed)


def _fixed_plans(operations: Sequence[Any]) -> Iterator[_Fixed]:
    how = "a term is missing: nothing flows back through"
    places = [eqn for eqn in operations if len(eqn.outvars) == 1 and is_real(eqn.outvars[0])]
    for eqn in places:
        yield _Fixed(f"{how} {in_words(eqn)}, which is taken as fixed{where(eqn)}", {id(eqn)}, {})
    sums = {id(eqn) for eqn in places if eqn.primitive.name == "reduce_sum" and eqn.outvars[0].aval.shape}
    if len(sums) > 1:
        yield _Fixed(f"{how} the sums and means: these statistics are taken as fixed", sums, {})
    for eqn in operations:
        if eqn.primitive.name == "scan":
            steps, rounds = np.arange(eqn.params["length"]), range(1, min(eqn.params["length"], _MOST_ROUNDS))
            steps = steps[::-1] if eqn.params["reverse"] else steps
            ways = [("the state of a loop, which is taken as fixed in each round", steps >= 0)]
            ways += [(f"the first {k} rounds of a loop", steps == k) for k in rounds]
            ways += [(f"more than {k} rounds of a loop", steps % k == 0) for k in rounds]
            yield from (_Fixed(f"{how} {what}{where(eqn)}", set(), {id(eqn): mask}) for what, mask in ways)


def _otherwise(at: Evaluation, program: Any) -> Tried:
    """The gradients when one operation of their program is done otherwise."""
    operations = list(equations(program))[::-1]  # the backward pass comes last, and is where slips are made
    candidates = [(eqn, change) for eqn in operations for change in (*changes(eqn), *_other_states(eqn))]
    candidates = sorted(candidates, key=lambda each: each[1].rank)[:_MOST_CHANGES]
    mine: dict[int, list[tuple[int, Callable[[list[Any]], Any]]]] = {}
    for number, (eqn, change) in enumerate(candidates):
        mine.setdefault(id(eqn), []).append((number, change.result))

    def changed(consts: Any, leaves: Any, which: Any) -> list[Any]:
        def instead(eqn: Any, operands: list[Any]) -> list[Any] | None:
            if id(eqn) not in mine:
                return None
            (result,) = bind(eqn, operands)
            for number, change in mine[id(eqn)]:
                result = jnp.where(which == number, change(operands), result)
            return [result]

        def ended(eqn: Any, operands: list[Any], results: list[Any], one_more: Any) -> list[Any]:
            for number, change in mine.get(id(eqn), ()):
                others = change([operands, results])
                results = [jnp.where(which == number, a, b) for a, b in zip(others, results, strict=True)]
            return results

        hooks = Hooks(instead, ended=ended)
        return interpret(program.jaxpr, program.consts, [*consts, *leaves], hooks=hooks)

    yield from _one_by_one(at, [f"{change.words}{where(eqn)}" for eqn, change in candidates], changed)


def _other_states(eqn: Any) -> Iterator[Change]:
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

            words = f"a state of a loop is that of the round {'after' if atom is start else 'before'}"
            yield Change(words, change, Rank.STATE)


def _over_another_axis(at: Evaluation, program: Any) -> Tried:
    """The gradients when sums are over another axis, over blocks of theirs, or left out."""
    operations = list(equations(program))
    if any(eqn.primitive.name in ("scan", "while", "cond", "shard_map") for eqn in operations):
        return
    plans = ways(operations)[:_MOST_CHANGES]

    def over_other_axes(consts: Any, leaves: Any, which: Any) -> list[Any]:
        hooks = Hooks(over_others(plans, which))
        results = interpret(program.jaxpr, program.consts, [*consts, *leaves], hooks=hooks)
        return [settled(x, atom) for x, atom in zip(results, program.jaxpr.outvars, strict=True)]

    yield from _one_by_one(at, [plan.words for plan in plans], over_other_axes)


def _one_by_one(at: Evaluation, sentences: Sequence[str], gradients: Callable[..., list[Any]]) -> Tried:
    """What each change gives, one after another, by one compiled program; nothing where it can't be had."""
    consts = at.compiled.objective.consts
    try:
        (program,) = compile_all([jax.jit(gradients).lower(consts, at.wide, np.int32(0))] if sentences else [None])
    except Exception:  # no reverse mode through a loop, or a shape that the change does not bear: no hint is lost
        return
    for number, sentence in enumerate(sentences):
        yield sentence, program(consts, at.wide, np.int32(number))


def _operations(program: Any) -> list[Any]:
    """The operations of a program; none if they are too many to try."""
    eqns = list(equations(program))
    return eqns if len(eqns) <= _MOST_OPERATIONS else []
