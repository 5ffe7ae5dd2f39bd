"""Are the custom derivative rules within a function right? Against autodiff of the same function without them."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._jaxpr import equations
from minijaxnet.pytrees import structure_difference
from minijaxnet.verify.arguments import (
    Arguments,
    bound_where_needed,
    check_inexact,
    checked_argnums,
    checked_order,
)
from minijaxnet.verify.problem import Flat, Problem, derivatives, first, of_moved, only
from minijaxnet.verify.report import GradReport, always, misbuilt, raise_unless_ok

# What a rule for the way back goes by in a program: a custom_vjp, JAX's new kind of primitive, a linear_call.
_BACKWARD_RULES = ("custom_vjp", "call_hi_primitive", "linear_call")
RULES = (*_BACKWARD_RULES, "custom_jvp")


def check_vjp(
    fun: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    reference: Callable[..., Any] | None = None,
    argnums: int | Sequence[int] | None = None,
    order: int = 1,
    seed: int = 0,
) -> GradReport:
    """Check the custom derivative rules within a function against autodiff of the same function without them.

    With a random cotangent c for the outputs, ``vjp(fun)(c)`` is held against ``vjp(plain)(c)`` as ``check_grad`` does,
    and has to be linear in c. Rules of ``jax.custom_jvp`` are checked in forward mode, too. The plain function is
    recovered by carrying out the program of ``fun`` with its custom rules taken out (``custom_vjp``, ``custom_jvp``,
    ``linear_call`` and JAX's primitives with an ``expand``), through ``jit``, ``scan``, ``cond``, ``while``, ``vmap``,
    ``shard_map`` and nesting; a ``pallas_call`` is interpreted. Where there is no plain function that autodiff takes,
    finite differences in float64 are the reference, and where there is no custom rule, autodiff is held against them.

    Args:
        fun: ``fun(*args)``, any tree of arrays: a ``jax.custom_vjp`` or ``jax.custom_jvp`` function, or one that calls
            some.
        args: the arguments to check at; trees of arrays, real or complex. Integer, boolean and key leaves are carried
            along; what is no array, such as an int, a bool or a text, is passed as it is.
        reference: the plain function, where it can't be recovered or is to be another one (a surrogate).
        argnums: the arguments to differentiate; all floating leaves of all arguments if None.
        order: 2 to check the rule's own derivative, too.
        seed: of cotangents, random directions and signs.

    Returns:
        A report, with leaves by their names in the signature of ``fun``.

    Raises:
        TypeError: no floating leaf or output, arrays where a function wants numbers that it knows.
        ValueError: NaN in the arguments.

    Example:
        >>> @jax.custom_vjp
        ... def double(x):
        ...     return 2 * x
        >>> double.defvjp(lambda x: (2 * x, None), lambda _, c: (3 * c,))
        >>> report = check_vjp(double, (jnp.ones(3),))
        >>> print(report.ok, report.hints)
        False ('x: 1.5 times what it should be',)

    Source: the JAX documentation, "Custom derivative rules".
    """
    return vjp_checker(fun, args, reference=reference, argnums=argnums, order=order, seed=seed)(args)


def vjp_checker(
    fun: Callable[..., Any],
    like: tuple[Any, ...],
    *,
    reference: Callable[..., Any] | None = None,
    argnums: int | Sequence[int] | None = None,
    order: int = 1,
    seed: int = 0,
    tell: Callable[[str], None] = lambda stage: None,
) -> Callable[[tuple[Any, ...]], GradReport]:
    """``check_vjp`` made ready for arguments of certain shapes, as ``grad_checker`` makes ``check_grad``.

    Example:
        >>> check = vjp_checker(jax.nn.relu, (jnp.ones(3),))
        >>> check((jnp.full(3, -1.0),)).ok
        True
    """
    from minijaxnet.verify.compilation import compile_problem  # 15 ms: imported where used
    from minijaxnet.verify.interpreter import interpret
    from minijaxnet.verify.judge import judge

    tell("tracing and compiling both rules")
    order = checked_order(order)

    def flat(function: Callable[..., Any], arguments: Arguments) -> Flat:
        def call(*leaves: Any) -> list[Any]:
            results = jax.tree.leaves(function(*arguments.rebuilt(*leaves)))
            return [x for x in results if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]

        return call

    def traced(arguments: Arguments) -> Any:
        return jax.make_jaxpr(flat(fun, arguments))(*arguments.leaves)

    arguments = bound_where_needed(like, fun, traced)
    leaves, whole, closed = arguments.leaves, flat(fun, arguments), traced(arguments)
    outputs, n = closed.out_avals, len(leaves)
    count = len(arguments.heads)
    chosen = tuple(range(count)) if argnums is None else checked_argnums(argnums, count)
    moved = [
        place in chosen and bool(jnp.issubdtype(leaf.dtype, jnp.inexact))
        for place, leaf in zip(arguments.places, leaves, strict=True)
    ]
    if argnums is not None:
        for path, leaf, place in zip(arguments.given, leaves, arguments.places, strict=True):
            if place in chosen:
                check_inexact(leaf, path)
    if not any(moved):
        raise TypeError("args: got no floating leaf; expected one at least, to differentiate with respect to")
    if not outputs:
        raise TypeError("fun: got no floating output; expected one at least")
    custom = {eqn.primitive.name for eqn in equations(closed)}
    has_vjp, has_jvp = (any(name.startswith(kinds) for name in custom) for kinds in (_BACKWARD_RULES, ("custom_jvp",)))

    def recovered(*leaves: Any) -> list[Any]:
        closed = jax.make_jaxpr(whole)(*leaves)
        return interpret(getattr(closed, "jaxpr", closed), closed.consts, leaves, wide=False)

    plain = recovered if reference is None else flat(reference, arguments)

    def pulled(function: Flat, value: Flat) -> Flat:
        """The value, and the gradients that a cotangent is pulled back to; ``value`` says what the value should be."""

        def rule(*everything: Any) -> list[Any]:
            leaves, cotangents = everything[:n], everything[n:]
            results, pull = jax.vjp(of_moved(function, leaves, moved), only(leaves, moved))
            like = [c.astype(x.dtype) for c, x in zip(cotangents, results, strict=True)]
            return [*(results if value is function else value(*leaves)), *pull(like)[0]]

        return rule

    def objective(*everything: Any) -> Any:
        pairs = zip(plain(*everything[:n]), everything[n:], strict=True)
        return sum(jnp.real(jnp.sum(x * c.astype(x.dtype))) for x, c in pairs)

    # A reference that was given may be a surrogate, of another value: the function without its rule has its own.
    hand, by_autodiff = pulled(whole, whole), pulled(plain, plain if reference is None else whole)
    draw = np.random.default_rng(seed)
    everything = [*leaves, *(_cotangent(draw, out) for out in outputs)]
    try:
        shapes = jax.eval_shape(hand, *everything)[len(outputs) :]
    except Exception as error:
        if re.search(r"custom.(vjp|jvp)", str(error), re.IGNORECASE):  # JAX itself finds that the rule does not fit
            return always(misbuilt(" ".join(str(error).split())))
        error.add_note("check_vjp: raised by the rule of fun, where it was differentiated")
        raise
    names = only(arguments.paths, moved)
    for name, got, leaf in zip(names, shapes, only(leaves, moved), strict=True):
        if difference := structure_difference(got, leaf):
            return always(misbuilt(f"the gradient is not like {name}: {difference}"))

    why_none, subject = "", "derivative rule against autodiff"
    if reference is None and not (has_vjp or has_jvp):
        why_none, subject = "fun holds no custom rule", "autodiff against finite differences"
    else:
        try:
            jax.eval_shape(by_autodiff, *everything)
        except Exception as error:
            if reference is not None:
                error.add_note("check_vjp: raised by reference=, where it was differentiated")
                raise
            why = str(error).strip().splitlines()[0]
            why_none = f"without its custom rules fun can't be differentiated ({why})"
            subject = "derivative rule against finite differences"

    still, all_moved = [False] * len(outputs), [True] * len(outputs)
    forward = second = None
    if why_none:
        forward = (lambda *all_of: hand(*all_of)[: len(outputs)], first(plain, n))
    elif has_jvp and not has_vjp:
        forward = derivatives(first(whole, n), first(plain, n), 0, [*moved, *still], everything, seed)
    if order == 2 and not why_none:
        second = derivatives(hand, by_autodiff, len(outputs), [*moved, *all_moved], everything, seed)
    problem = Problem(
        hand,
        None if why_none else by_autodiff,
        objective,
        [*arguments.paths, *(f"cotangent[{i}]" for i in range(len(outputs)))],
        [*moved, *still],
        names,
        len(outputs),
        list(range(n, n + len(outputs))),
        forward,
        second,
        subject,
        why_none,
    )
    compiled = compile_problem(problem, everything)

    def check(args: tuple[Any, ...]) -> GradReport:
        leaves = arguments.leaves_like(args, fun)
        draw = np.random.default_rng(seed)
        dtypes = [x.dtype for x in jax.eval_shape(whole, *leaves)]
        return judge(compiled, [*leaves, *map(functools.partial(_cotangent, draw), outputs, dtypes)], seed, tell)

    return check


def _cotangent(draw: np.random.Generator, like: Any, dtype: Any = None) -> jax.Array:
    """A random cotangent for an output, of few digits, so that it is the same in every dtype."""
    dtype = like.dtype if dtype is None else dtype

    def numbers() -> np.ndarray:
        return np.round(draw.normal(size=like.shape) * 16) / 16 + 1 / 32

    return jnp.asarray(numbers() + 1j * numbers() if jnp.issubdtype(dtype, jnp.complexfloating) else numbers(), dtype)


def assert_vjp(
    fun: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    reference: Callable[..., Any] | None = None,
    argnums: int | Sequence[int] | None = None,
    order: int = 1,
    seed: int = 0,
) -> None:
    """Like ``check_vjp``, for a test: raise ``GradientMismatch`` with the whole report if a rule is not right.

    Example:
        >>> assert_vjp(jax.nn.relu, (jnp.arange(-2.0, 3.0),))
    """
    raise_unless_ok(check_vjp(fun, args, reference=reference, argnums=argnums, order=order, seed=seed))
