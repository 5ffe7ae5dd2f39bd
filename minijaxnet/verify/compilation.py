"""A problem traced and compiled for arguments of certain shapes, quickly: its programs run a few times only."""

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._jaxpr import closed_over, equations, other_keys
from minijaxnet.verify.arguments import UNTRACEABLE
from minijaxnet.verify.interpreter import computed_narrow, interpret
from minijaxnet.verify.numbers import widened
from minijaxnet.verify.perturbation import Perturbation, perturbed
from minijaxnet.verify.problem import Flat, Problem

EPSILON = float(np.finfo(np.float64).eps)
# How LLVM is told not to optimize: these programs run a few times only, and their meaning stays.
_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
_DRAWS = ("random_bits", "threefry2x32", "random_gamma", "rng_bit_generator")


class Traced(NamedTuple):
    """A function of flat arguments, ready to be carried out in float64.

    Attributes:
        program: its jaxpr; None where it can't be traced, or there is no function.
        consts: the arrays that it closes over, and those of the programs inside it, widened.
        const_dtypes: the dtypes that they came in.
        call: the function itself, ``call(*arguments) -> results``.
        note: what keeps it from being float64 throughout; "" if nothing.
    """

    program: Any
    consts: list[Any]
    const_dtypes: list[Any]
    call: Flat
    note: str = ""


class Working(NamedTuple):
    """Both rules compiled as they are, for arguments of certain dtypes; or why they are not."""

    program: Any
    why_not: str = ""


class Compiled(NamedTuple):
    """A problem compiled for arguments of certain shapes.

    Attributes:
        problem: the problem.
        hand: the rule by hand.
        reference: that by autodiff.
        objective: the scalar.
        pair: both rules in float64, in one program.
        value: the scalar in float64.
        noise: the relative rounding error of a value of the objective: more than float64's where a callback has less.
        iterates: whether the objective iterates to a tolerance of its own.
        mapped: the hand rule under vmap, in float64; or why there is none.
        working: makes the rules in the dtypes one works in, for arguments like those given.
        enlarged: makes the program of both rules whose roundings can be made larger.
    """

    problem: Problem
    hand: Traced
    reference: Traced
    objective: Traced
    pair: Any
    value: Any
    noise: float
    iterates: bool
    mapped: Any
    working: Callable[[Sequence[Any]], Working]
    enlarged: Callable[[], Any]

    @property
    def notes(self) -> list[str]:
        """What keeps the rules from being float64 throughout."""
        return sorted({traced.note for traced in (self.hand, self.reference) if traced.note})


def compile_problem(problem: Problem, leaves: Sequence[Any], *, pair_only: bool = False) -> Compiled:
    """Trace and compile a problem for arguments like these; ``pair_only``: the two rules in float64, and no more."""
    asked_for = jnp.result_type(float) == jnp.float64
    with jax.enable_x64(True), jax.disable_jit(False):
        wide = [widened(leaf) for leaf in leaves]
        (hand, reference, objective), like, x64 = _traced_alike(problem, wide, leaves, asked_for=asked_for)
        lowered = {"pair": _pair(hand, reference).lower(wide, hand.consts, reference.consts, Perturbation().arrays())}
        mapped = hand.note
        if not pair_only:
            value = jax.jit(lambda consts, leaves: interpret(objective.program, consts, leaves)[0])
            lowered["value"] = value.lower(objective.consts, wide)
        if hand.program is not None and not pair_only:
            try:
                lowered["mapped"] = _lowered_mapped(problem.hand, hand, wide, like, x64=x64)
            except Exception as error:
                mapped = f"under vmap: {in_short(error)}"
    working = "not asked for" if pair_only else _working_lowered(problem, hand, leaves)
    if not isinstance(working, str):
        lowered["working"] = working
    compiled = dict(zip(lowered, compile_together(list(lowered.values())), strict=True))
    ready = {_dtypes(leaves): Working(compiled.get("working"), working if isinstance(working, str) else "")}

    def working_for(others: Sequence[Any]) -> Working:
        if (key := _dtypes(others)) not in ready:
            found = _working_lowered(problem, hand, others)
            ready[key] = Working(None, found) if isinstance(found, str) else Working(*compile_together([found]))
        return ready[key]

    @functools.cache
    def enlarged() -> Any:
        with jax.enable_x64(True):
            moved = _enlarged(hand, reference, problem.moved)
            return compile_together([moved.lower(wide, hand.consts, reference.consts, Perturbation().arrays())])[0]

    return Compiled(
        problem,
        hand,
        reference,
        objective,
        compiled["pair"],
        compiled.get("value"),
        max([EPSILON, *(float(jnp.finfo(dtype).eps) for dtype in computed_narrow(objective.program))]),
        any(eqn.primitive.name == "while" for eqn in equations(objective.program)),
        compiled.get("mapped", mapped),
        working_for,
        enlarged,
    )


def _pair(hand: Traced, reference: Traced) -> Any:
    """Both rules as they are; only what has fewer digits than float64 can be perturbed."""

    def both(arguments: Any, hand_consts: Any, reference_consts: Any, moved: Perturbation) -> Any:
        rules = ((hand, hand_consts), (reference, reference_consts))
        return [
            [] if rule.program is None else interpret(rule.program, consts, arguments, moved, everything=False)
            for rule, consts in rules
        ]

    return jax.jit(both)


def _enlarged(hand: Traced, reference: Traced, moved: Sequence[bool]) -> Any:
    """Both rules, with all of their roundings, and what is differentiated, to be perturbed."""

    def both(arguments: Any, hand_consts: Any, reference_consts: Any, by: Perturbation) -> Any:
        start = by._replace(size=by.size * by.inputs, lift=by.lift * by.inputs, seed=by.seed + 77)
        arguments = [
            perturbed(argument, start, i) if mine else argument
            for i, (argument, mine) in enumerate(zip(arguments, moved, strict=True))
        ]
        results = []
        for rule, consts in ((hand, hand_consts), (reference, reference_consts)):
            results.append([] if rule.program is None else interpret(rule.program, consts, arguments, by))
            by = by._replace(seed=by.seed + 7919)
        return results

    return jax.jit(both)


def _lowered_mapped(function: Flat, rule: Traced, wide: Sequence[Any], like: Sequence[Any], *, x64: bool) -> Any:
    """The rule under vmap over two points, widened as it is alone."""
    axes = mapped_axes(rule, wide)
    with jax.enable_x64(x64):
        closed = jax.make_jaxpr(jax.vmap(function, axes))(*stacked(like, like, axes))
    program, consts = closed.jaxpr, list(map(widened, closed.consts))
    run = jax.jit(lambda consts, leaves: interpret(program, consts, leaves))
    return _Bound(run.lower(consts, stacked(wide, wide, axes)), consts)


class _Bound(NamedTuple):
    """A lowered program whose first argument is known."""

    lowered: Any
    first: Any

    def compile(self, compiler_options: Any = None) -> Any:
        """The program of what is left."""
        return functools.partial(self.lowered.compile(compiler_options=compiler_options), self.first)


def _working_lowered(problem: Problem, hand: Traced, leaves: Sequence[Any]) -> Any:
    """Both rules lowered as they are; or why they are not."""
    if hand.program is None:
        return hand.note
    dtypes = [leaf.dtype for leaf, moved in zip(leaves, problem.moved, strict=True) if moved]
    if problem.reference is None or all(dtype in (np.float64, np.complex128) for dtype in dtypes):
        return "it is the dtype of the comparison itself"
    rules = [problem.hand, problem.reference]
    try:
        with jax.disable_jit(False):
            return jax.jit(lambda *leaves: [rule(*leaves) for rule in rules]).lower(*leaves)
    except NotImplementedError as error:  # a factorisation in bfloat16
        return f"JAX refuses: {in_short(error)}"
    except TypeError as error:
        if "64" in str(error):  # of a NumPy array that JAX keeps: see _traced_alike
            return f"JAX refuses: {in_short(error)}"
        raise
    except ValueError as error:
        if "interpret mode" in str(error):  # a Pallas kernel, where there is no device for it
            return f"not on this device: {in_short(error)}"
        raise


def _traced_alike(
    problem: Problem, wide: Sequence[Any], leaves: Sequence[Any], *, asked_for: bool
) -> tuple[list[Traced], Sequence[Any], bool]:
    """Both rules and the objective, traced in float64 or all as they are; the arguments for that; whether in float64.

    As they are where float64 would draw other random numbers, and where one refuses it, perhaps for no fault of its
    own: JAX keeps what it made of a NumPy array as long as a program has it, be float64 enabled or not. Carried out,
    they are widened all the same.
    """
    none = Traced(None, [], [], lambda *_: [])

    def traced(arguments: Sequence[Any], *, x64: bool) -> list[Traced]:
        reference = none if problem.reference is None else trace(problem.reference, arguments, x64=x64)
        objective = trace(lambda *leaves: [problem.objective(*leaves)], arguments, x64=x64)
        return [trace(problem.hand, arguments, x64=x64), reference, objective]

    try:
        found = traced(wide, x64=True)
    except Exception as error:
        try:
            return traced(leaves, x64=asked_for), leaves, asked_for
        except Exception:
            raise error from None
    hand = found[0].program
    if hand is not None and any(eqn.primitive.name in _DRAWS for eqn in equations(hand)):
        return traced(leaves, x64=asked_for), leaves, asked_for
    return found, wide, True


def trace(function: Flat, arguments: Sequence[Any], *, x64: bool = True) -> Traced:
    """A function of flat arguments, traced with these; ``x64``: whether float64 is to be had."""
    try:
        with jax.enable_x64(x64):
            closed = jax.make_jaxpr(lambda *arguments: function(*arguments))(*arguments)  # which JAX does not keep
    except UNTRACEABLE:
        return Traced(None, [], [], function, "it can't be traced: it was called as it is")
    consts = [*closed.consts, *(x for inner in closed_over(closed) for x in inner.consts)]
    dtypes = [x.dtype for x in consts]
    return Traced(closed.jaxpr, list(map(widened, consts)), dtypes, function, _narrowest_cast(closed) if x64 else "")


def compile_together(lowered: Sequence[Any]) -> list[Any]:
    """Compiled programs, made side by side on the cores there are, quickly."""
    wide = jnp.result_type(float) == jnp.float64  # each thread has its own, and a custom_partitioning traces in it

    def compiled(program: Any) -> Any:
        with jax.enable_x64(wide):
            return program.compile(compiler_options=quick_options())

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(compiled, lowered))


@functools.cache
def quick_options() -> dict[str, Any] | None:
    """Options for quick compilation, if this XLA has them."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda x: x).lower(0.0).compile(compiler_options=_QUICK)
    except jax.errors.JaxRuntimeError:
        return None
    return _QUICK


def mapped_axes(rule: Traced, leaves: Sequence[Any]) -> list[int | None]:
    """What of a batch of points to ``vmap`` over: all of it, but no keys of a generator that draws otherwise there."""
    everything = not other_keys(rule.program)
    return [0 if everything or jnp.issubdtype(leaf.dtype, jnp.inexact) else None for leaf in leaves]


def stacked(first: Sequence[Any], second: Sequence[Any], axes: Sequence[int | None]) -> list[Any]:
    """Two points as one batch; the second one's share of what is not mapped over is left out."""

    def pair(a: Any, b: Any, axis: int | None) -> Any:
        if axis is None:
            return a
        return np.stack((a, b)) if isinstance(a, np.ndarray) else jnp.stack((a, b))

    return [pair(*each) for each in zip(first, second, axes, strict=True)]


def in_short(error: Exception) -> str:
    """The beginning of an error's text, on one line."""
    return " ".join(str(error).split())[:150] or type(error).__name__


def _dtypes(leaves: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(leaf.dtype for leaf in leaves)


def _narrowest_cast(closed: Any) -> str:
    """Where a program that was given float64 makes fewer digits of it; "" if nowhere."""
    for eqn in equations(closed):
        if eqn.primitive.name == "reduce_precision" and eqn.params["mantissa_bits"] < 23:
            return f"it rounds to {eqn.params['mantissa_bits']} bits, which was taken for float64"
        for before, after in zip(eqn.invars, eqn.outvars, strict=False):
            wide, narrow = getattr(before.aval, "dtype", None), getattr(after.aval, "dtype", None)
            if eqn.primitive.name == "convert_element_type" and wide == jnp.float64 and narrow is not None:
                if jnp.issubdtype(narrow, jnp.floating) and narrow != jnp.float64:
                    return f"it casts to {narrow}, which was taken for float64"
    return ""
