"""A problem traced and compiled for arguments of certain shapes; compilation is quick, the programs run a few times."""

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._jaxpr import closed_over, equations, non_threefry_keys
from minijaxnet.verify.arguments import UNTRACEABLE
from minijaxnet.verify.interpreter import computed_narrow, interpret
from minijaxnet.verify.perturbation import Perturbation, perturbed
from minijaxnet.verify.problem import Flat, Problem
from minijaxnet.verify.widening import is_inexact, widened

EPSILON = float(np.finfo(np.float64).eps)
# LLVM does not optimize: these programs run a few times only, and their meaning stays.
_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
_DRAWS = ("random_bits", "threefry2x32", "random_gamma", "rng_bit_generator")


class Traced(NamedTuple):
    """A function of flat arguments, ready to be run in float64.

    Attributes:
        program: its jaxpr; None where it can't be traced, or there is no function.
        consts: the arrays that it closes over, and those of the programs inside it, widened.
        const_dtypes: the dtypes that they came in.
        call: the function itself, ``call(*arguments) -> results``.
        note: why it is not in float64 throughout; "" if it is.
    """

    program: Any
    consts: list[Any]
    const_dtypes: list[Any]
    call: Flat
    note: str = ""


class Executable(NamedTuple):
    """A compiled program, or None; and then the reason."""

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
        mapped: the hand rule under vmap over two points, in float64.
        working: compiles both rules in their own dtypes, for arguments like the ones that it gets.
        enlarged: compiles both rules in float64 with roundings that can be enlarged.
    """

    problem: Problem
    hand: Traced
    reference: Traced
    objective: Traced
    pair: Any
    value: Any
    noise: float
    iterates: bool
    mapped: Executable
    working: Callable[[Sequence[Any]], Executable]
    enlarged: Callable[[], Any]

    @property
    def notes(self) -> list[str]:
        """Why the rules are not in float64 throughout."""
        return sorted({traced.note for traced in (self.hand, self.reference) if traced.note})


def compile_problem(problem: Problem, leaves: Sequence[Any], *, pair_only: bool = False) -> Compiled:
    """Trace and compile a problem for arguments like these; ``pair_only``: the two rules in float64, and no more."""
    x64_outside = jnp.result_type(float) == jnp.float64
    lowered, mapped_consts, no_map = {}, [], ""
    with jax.enable_x64(True), jax.disable_jit(False):
        wide = [widened(leaf) for leaf in leaves]
        (hand, reference, objective), like, x64 = _traced_alike(problem, wide, leaves, x64_outside=x64_outside)
        arguments = (wide, hand.consts, reference.consts, Perturbation().arrays())
        lowered["pair"] = _pair(hand, reference).lower(*arguments)
        if not pair_only:
            value = jax.jit(lambda consts, leaves: interpret(objective.program, consts, leaves)[0])
            lowered["value"] = value.lower(objective.consts, wide)
            try:
                lowered["mapped"], mapped_consts = _lowered_mapped(problem.hand, hand, wide, like, x64=x64)
            except Exception as error:
                no_map = hand.note if hand.program is None else f"under vmap: {in_short(error)}"
    no_working = "not needed" if pair_only else ""
    if not pair_only:
        lowered["working"], no_working = _lowered_working(problem, hand, leaves)
    made = dict(zip(lowered, compile_all(list(lowered.values())), strict=True))
    mapped, working = made.get("mapped"), {_dtypes(leaves): Executable(made.get("working"), no_working)}

    def working_for(others: Sequence[Any]) -> Executable:
        if (key := _dtypes(others)) not in working:
            program, why_not = _lowered_working(problem, hand, others)
            working[key] = Executable(compile_all([program])[0], why_not)
        return working[key]

    @functools.cache
    def enlarged() -> Any:
        with jax.enable_x64(True):
            return compile_all([_enlarged(hand, reference, problem.n_params).lower(*arguments)])[0]

    return Compiled(
        problem,
        hand,
        reference,
        objective,
        made["pair"],
        made.get("value"),
        noise=max([EPSILON, *(float(jnp.finfo(dtype).eps) for dtype in computed_narrow(objective.program))]),
        iterates=any(eqn.primitive.name == "while" for eqn in equations(objective.program)),
        mapped=Executable(mapped and functools.partial(mapped, mapped_consts), no_map),
        working=working_for,
        enlarged=enlarged,
    )


def _pair(hand: Traced, reference: Traced) -> Any:
    """Both rules as they are; only values with fewer digits than float64 can be perturbed."""

    def both(arguments: Any, hand_consts: Any, reference_consts: Any, by: Perturbation) -> Any:
        rules = ((hand, hand_consts), (reference, reference_consts))
        return [
            [] if rule.program is None else interpret(rule.program, consts, arguments, by, everything=False)
            for rule, consts in rules
        ]

    return jax.jit(both)


def _enlarged(hand: Traced, reference: Traced, n_params: int) -> Any:
    """Both rules, with all of their roundings and the differentiated arguments to be perturbed."""

    def both(arguments: Any, hand_consts: Any, reference_consts: Any, by: Perturbation) -> Any:
        start = by._replace(size=by.size * by.inputs, lift=by.lift * by.inputs, seed=by.seed + 77)
        arguments = [*(perturbed(x, start, i) for i, x in enumerate(arguments[:n_params])), *arguments[n_params:]]
        results = []
        for rule, consts in ((hand, hand_consts), (reference, reference_consts)):
            results.append([] if rule.program is None else interpret(rule.program, consts, arguments, by))
            by = by._replace(seed=by.seed + 7919)  # the two round independently
        return results

    return jax.jit(both)


def _lowered_mapped(
    function: Flat, rule: Traced, wide: Sequence[Any], like: Sequence[Any], *, x64: bool
) -> tuple[Any, list[Any]]:
    """The rule under vmap over two points, widened as it is alone; and its constants."""
    axes = mapped_axes(rule, wide)
    with jax.enable_x64(x64):
        closed = jax.make_jaxpr(jax.vmap(function, axes))(*stacked(like, like, axes))
    consts = list(map(widened, closed.consts))
    run = jax.jit(lambda consts, leaves: interpret(closed.jaxpr, consts, leaves))
    return run.lower(consts, stacked(wide, wide, axes)), consts


def _lowered_working(problem: Problem, hand: Traced, leaves: Sequence[Any]) -> tuple[Any, str]:
    """Both rules lowered in their own dtypes, or None and the reason."""
    if hand.program is None:
        return None, hand.note
    if problem.reference is None or is_float64(leaves[: problem.n_params]):
        return None, "it is the dtype of the comparison itself"
    rules = [problem.hand, problem.reference]
    try:
        with jax.disable_jit(False):
            return jax.jit(lambda *leaves: [rule(*leaves) for rule in rules]).lower(*leaves), ""
    except NotImplementedError as error:  # a factorisation in bfloat16
        return None, f"JAX refuses: {in_short(error)}"
    except TypeError as error:
        if "64" not in str(error):  # of a NumPy array that JAX keeps: see _traced_alike
            raise
        return None, f"JAX refuses: {in_short(error)}"
    except ValueError as error:
        if "interpret mode" not in str(error):  # a Pallas kernel, where there is no device for it
            raise
        return None, f"not on this device: {in_short(error)}"


def _traced_alike(
    problem: Problem, wide: Sequence[Any], leaves: Sequence[Any], *, x64_outside: bool
) -> tuple[list[Traced], Sequence[Any], bool]:
    """Both rules and the objective, traced in float64 or all as they are; the arguments for that; whether in float64.

    As they are where float64 would draw other random numbers, and where one refuses it, perhaps for no fault of its
    own: JAX keeps what it made of a NumPy array as long as a program has it, be float64 enabled or not. When they are
    run, they are widened all the same.
    """

    def traced(arguments: Sequence[Any], *, x64: bool) -> list[Traced]:
        no_rule = Traced(None, [], [], lambda *_: [])
        reference = no_rule if problem.reference is None else trace(problem.reference, arguments, x64=x64)
        objective = trace(lambda *leaves: [problem.objective(*leaves)], arguments, x64=x64)
        return [trace(problem.hand, arguments, x64=x64), reference, objective]

    try:
        found = traced(wide, x64=True)
    except Exception as error:
        try:
            return traced(leaves, x64=x64_outside), leaves, x64_outside
        except Exception:
            raise error from None
    hand = found[0].program
    if hand is not None and any(eqn.primitive.name in _DRAWS for eqn in equations(hand)):
        return traced(leaves, x64=x64_outside), leaves, x64_outside
    return found, wide, True


def trace(function: Flat, arguments: Sequence[Any], *, x64: bool = True) -> Traced:
    """A function of flat arguments, traced with these; ``x64``: whether float64 is enabled."""
    try:
        with jax.enable_x64(x64):
            closed = jax.make_jaxpr(lambda *arguments: function(*arguments))(*arguments)  # which JAX does not keep
    except UNTRACEABLE:
        return Traced(None, [], [], function, "it can't be traced: it was called as it is")
    consts = [*closed.consts, *(x for inner in closed_over(closed) for x in inner.consts)]
    dtypes = [x.dtype for x in consts]
    return Traced(closed.jaxpr, list(map(widened, consts)), dtypes, function, _narrowest_cast(closed) if x64 else "")


def compile_all(lowered: Sequence[Any]) -> list[Any]:
    """Programs compiled quickly, side by side on the cores there are; None for None."""
    x64 = jnp.result_type(float) == jnp.float64  # each thread has its own, and a custom_partitioning traces in it

    def compiled(program: Any) -> Any:
        with jax.enable_x64(x64):
            return None if program is None else program.compile(compiler_options=quick_options())

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
    """The axes to ``vmap`` over: of everything, or of floats alone where keys draw other numbers under ``vmap``."""
    everything = not non_threefry_keys(rule.program)
    return [0 if everything or is_inexact(leaf) else None for leaf in leaves]


def stacked(first: Sequence[Any], second: Sequence[Any], axes: Sequence[int | None]) -> list[Any]:
    """Two points as one batch; what is not mapped over is the first one's."""
    triples = zip(first, second, axes, strict=True)
    return [a if axis is None else (np if isinstance(a, np.ndarray) else jnp).stack((a, b)) for a, b, axis in triples]


def in_short(error: Exception) -> str:
    """The beginning of an error's text, on one line."""
    return " ".join(str(error).split())[:150] or type(error).__name__


def is_float64(leaves: Sequence[Any]) -> bool:
    """Whether all leaves are float64 or complex128."""
    return all(leaf.dtype in (np.float64, np.complex128) for leaf in leaves)


def _dtypes(leaves: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(leaf.dtype for leaf in leaves)


def _narrowest_cast(closed: Any) -> str:
    """Where a program that was given float64 makes fewer digits of it; "" if nowhere."""
    for eqn in equations(closed):
        if eqn.primitive.name == "reduce_precision" and eqn.params["mantissa_bits"] < 23:
            return f"it rounds to {eqn.params['mantissa_bits']} bits, which was taken for float64"
        if eqn.primitive.name == "convert_element_type" and eqn.invars[0].aval.dtype == jnp.float64:
            narrow = eqn.outvars[0].aval.dtype
            if jnp.issubdtype(narrow, jnp.floating) and narrow != jnp.float64:
                return f"it casts to {narrow}, which was taken for float64"
    return ""
