"""Are the custom derivative rules within a function right? Against autodiff of the same function without them."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._checks import check_callable
from minijaxnet._jaxpr import equations
from minijaxnet._trees import structure_difference
from minijaxnet.verify.arguments import Arguments, bound_where_needed, checked_order, differentiated
from minijaxnet.verify.problem import Flat, Problem, derivatives, first, of_moved, only
from minijaxnet.verify.report import GradReport, always, misbuilt, raise_unless_ok

# What a rule for the way back goes by in a program: a custom_vjp, JAX's new kind of primitive, a linear_call.
_BACKWARD_RULES = ("custom_vjp", "call_hi_primitive", "linear_call")
RULES = (*_BACKWARD_RULES, "custom_jvp")
# How JAX's own complaints begin where what a rule returns does not fit.
_MISFIT = r"custom.(vjp|jvp)|the bwd rule produced|pytree structure error"


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
    from minijaxnet.verify.judge import judge

    check_callable("fun", fun)
    tell("tracing and compiling both rules")
    order = checked_order(order)
    arguments = bound_where_needed(like, fun, lambda arguments: _results_and_rules(fun, arguments))
    (results, kinds), moved = _results_and_rules(fun, arguments), differentiated(arguments, argnums)
    if not results:
        raise TypeError("fun: got no floating output; expected one at least")
    draw = np.random.default_rng(seed)
    everything = [*arguments.leaves, *(_cotangent(draw, out) for out in results)]
    whole, plain = _flat(fun, arguments), _plain(fun, arguments) if reference is None else _flat(reference, arguments)
    # A reference that was given may be a surrogate, of another value: the function without its rule has its own.
    hand = _pulled(whole, whole, moved)
    by_autodiff = _pulled(plain, plain if reference is None else whole, moved)
    if what := _not_alike(hand, everything, only(arguments.paths, moved), only(arguments.leaves, moved)):
        return always(misbuilt(what))
    backward, why_none, subject = bool(kinds & {*_BACKWARD_RULES}), "", "derivative rule against autodiff"
    if reference is None and not kinds:
        why_none, subject = "fun holds no custom rule", "autodiff against finite differences"
    elif why_none := _why_not_differentiable(by_autodiff, everything, given=reference is not None):
        subject = "derivative rule against finite differences"

    outputs, n = len(results), len(moved)
    still, all_moved = [False] * outputs, [True] * outputs
    forward = second = None
    if why_none:
        forward = (lambda *all_of: hand(*all_of)[:outputs], first(plain, n))
    elif kinds and not backward:
        forward = derivatives(first(whole, n), first(plain, n), 0, [*moved, *still], everything, seed)
    if order == 2 and not why_none:
        second = derivatives(hand, by_autodiff, outputs, [*moved, *all_moved], everything, seed)
    problem = Problem(
        hand,
        None if why_none else by_autodiff,
        _weighted(plain, n),
        [*arguments.paths, *(f"cotangent[{i}]" for i in range(outputs))],
        [*moved, *still],
        only(arguments.paths, moved),
        outputs,
        list(range(n, n + outputs)),
        forward,
        second,
        subject,
        why_none,
    )
    compiled = compile_problem(problem, everything)

    def check(args: tuple[Any, ...]) -> GradReport:
        leaves, draw = arguments.leaves_like(args, fun), np.random.default_rng(seed)
        cotangents = [_cotangent(draw, out) for out in jax.eval_shape(whole, *leaves)]
        return judge(compiled, [*leaves, *cotangents], seed, tell)

    return check


def _flat(function: Callable[..., Any], arguments: Arguments) -> Flat:
    """A function of leaves, with its floating results as a list."""

    def flat(*leaves: Any) -> list[Any]:
        results = jax.tree.leaves(function(*arguments.rebuilt(*leaves)))
        return [x for x in results if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]

    return flat


def _results_and_rules(fun: Callable[..., Any], arguments: Arguments) -> tuple[list[Any], set[str]]:
    """The shapes of the floating results of a function, and the kinds of custom rules within it."""
    closed = jax.make_jaxpr(_flat(fun, arguments))(*arguments.leaves)
    kinds = {kind for eqn in equations(closed) for kind in RULES if eqn.primitive.name.startswith(kind)}
    return closed.out_avals, kinds


def _plain(fun: Callable[..., Any], arguments: Arguments) -> Flat:
    """The function, flat, without its custom rules."""
    from minijaxnet.verify.interpreter import interpret

    def plain(*leaves: Any) -> list[Any]:
        closed = jax.make_jaxpr(_flat(fun, arguments))(*leaves)
        return interpret(getattr(closed, "jaxpr", closed), closed.consts, leaves, wide=False)

    return plain


def _pulled(function: Flat, value: Flat, moved: Sequence[bool]) -> Flat:
    """The value, and the gradients that a cotangent is pulled back to; ``value`` says what the value should be."""

    def pulled(*everything: Any) -> list[Any]:
        leaves, cotangents = everything[: len(moved)], everything[len(moved) :]
        results, pull = jax.vjp(of_moved(function, leaves, moved), only(leaves, moved))
        like = [c.astype(x.dtype) for c, x in zip(cotangents, results, strict=True)]
        return [*(results if value is function else value(*leaves)), *pull(like)[0]]

    return pulled


def _weighted(function: Flat, n: int) -> Callable[..., Any]:
    """The scalar whose gradient is pulled back: the sum of the results, each times its cotangent."""

    def weighted(*everything: Any) -> Any:
        pairs = zip(function(*everything[:n]), everything[n:], strict=True)
        return sum(jnp.real(jnp.sum(x * c.astype(x.dtype))) for x, c in pairs)

    return weighted


def _not_alike(hand: Flat, everything: Sequence[Any], names: Sequence[str], targets: Sequence[Any]) -> str:
    """How what the rule returns differs in shape or dtype from its arguments; "" if it doesn't."""
    try:
        shapes = jax.eval_shape(hand, *everything)[-len(targets) :]
    except Exception as error:
        if re.search(_MISFIT, str(error), re.IGNORECASE):  # JAX itself finds that the rule does not fit
            return " ".join(str(error).split())
        if isinstance(error, AssertionError) and "Accum" in str(error):  # JAX, which can't transpose it
            return "the rule can't be carried out backward: it is not linear in its tangents"
        error.add_note("check_vjp: raised by the rule of fun, where it was differentiated")
        raise
    for name, got, leaf in zip(names, shapes, targets, strict=True):
        if difference := structure_difference(got, leaf):
            return f"the gradient is not like {name}: {difference.removeprefix('(leaf): ')}"
    return ""


def _why_not_differentiable(by_autodiff: Flat, everything: Sequence[Any], *, given: bool) -> str:
    """Why autodiff can't take the plain function; "" if it can, and what JAX raises where that function was given."""
    try:
        jax.eval_shape(by_autodiff, *everything)
    except Exception as error:
        if given:
            error.add_note("check_vjp: raised by reference=, where it was differentiated")
            raise
        return f"without its custom rules fun can't be differentiated ({str(error).strip().splitlines()[0]})"
    return ""


def _cotangent(draw: np.random.Generator, like: Any) -> jax.Array:
    """A random cotangent for an output, of few digits, so that it is the same in every dtype."""

    def numbers() -> np.ndarray:
        return np.round(draw.normal(size=like.shape) * 16) / 16 + 1 / 32

    complex_output = jnp.issubdtype(like.dtype, jnp.complexfloating)
    return jnp.asarray(numbers() + 1j * numbers() if complex_output else numbers(), like.dtype)


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
