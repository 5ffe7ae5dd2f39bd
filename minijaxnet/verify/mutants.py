"""Which one change of autodiff's own program makes it the hand rule? That change is the slip."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp

from minijaxnet.verify.evidence import to_host
from minijaxnet.verify.hints import Wrong
from minijaxnet.verify.interpret import equations, interpret
from minijaxnet.verify.question import Look

_MOST_OPERATIONS = 300
_MOST_RUNS, _MOST_RUNS_WITH_LOOPS = 300, 6
_LOOPS = ("scan", "while", "cond")

Change = tuple[str, Callable[[list[Any]], Any]]


def changed(look: Look, slip: Wrong, leaf: int) -> str:
    """The sentence for the first change that gives the hand rule's numbers; "" if none does, or there are too many."""
    rule = look.examiner.pair.reference
    eqns = list(equations(rule.program))
    if len(eqns) > _MOST_OPERATIONS:
        return ""
    result = look.question.n_values + leaf
    with_loops = any(eqn.primitive.name in _LOOPS for eqn in eqns)
    candidates = [(place, change) for place, eqn in enumerate(eqns) for change in _changes(eqn)]
    # The backward pass comes last, and is where slips are made.
    for place, (sentence, change) in itertools.islice(
        reversed(candidates), _MOST_RUNS_WITH_LOOPS if with_loops else _MOST_RUNS
    ):

        def instead(eqn: Any, operands: list[Any], place: int = place, change: Any = change) -> list[Any] | None:
            return [change(operands)] if eqn is eqns[place] else None

        try:
            results = interpret(rule.program, rule.consts, look.wide, instead=instead)
        except (TypeError, ValueError):  # the change does not fit what follows
            continue
        if slip.equal(to_host(results[result]), slip.hand):
            return f"{slip.path}: {sentence}{_where(eqns[place])}"
    return ""


def _changes(eqn: Any) -> Iterator[Change]:
    """What might be done instead of an operation, by mistake."""
    name, shapes = eqn.primitive.name, [getattr(atom.aval, "shape", ()) for atom in eqn.invars]
    if len(eqn.outvars) != 1 or not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
        return
    out = eqn.outvars[0].aval.shape
    if name in ("add", "add_any"):
        yield "a term is missing: autodiff adds two where the rule has the first", lambda x: x[0] + jnp.zeros(out)
        yield "a term is missing: autodiff adds two where the rule has the second", lambda x: x[1] + jnp.zeros(out)
        yield "a sign is wrong: a difference where a sum is meant", lambda x: x[0] - x[1]
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
    elif name in ("reduce_sum", "reduce_max"):
        right = tuple(eqn.params["axes"])
        for count in range(1, len(shapes[0]) + 1):
            for axes in itertools.combinations(range(len(shapes[0])), count):
                kept = tuple(n for k, n in enumerate(shapes[0]) if k not in axes)
                words = f"axis {_listed(axes)} where it should be summed over axis {_listed(right)}"
                if kept == out and axes != right and name == "reduce_sum":
                    yield f"the wrong axis: summed over {words}", lambda x, axes=axes: jnp.sum(x[0], axis=axes)
                if kept == out and name == "reduce_sum":
                    yield f"a mean for a sum: averaged over {words}", lambda x, axes=axes: jnp.mean(x[0], axis=axes)
    elif name in (
        "exp",
        "log",
        "tanh",
        "logistic",
        "sqrt",
        "rsqrt",
        "square",
        "integer_pow",
        "log1p",
        "sin",
        "cos",
        "erf",
    ):
        yield f"{name} is forgotten", lambda x: x[0]
    elif name == "select_n" and len(shapes) == 3:
        yield "a mask is forgotten: the rule takes one side of a choice everywhere", lambda x: x[1] * jnp.ones(out)
        yield "a mask is forgotten: the rule takes one side of a choice everywhere", lambda x: x[2] * jnp.ones(out)


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
