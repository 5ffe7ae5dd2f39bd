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
from minijaxnet.verify.arguments import Argnums, Arguments, bound_where_needed, checked_order, params_first
from minijaxnet.verify.problem import Flat, Problem, derivatives
from minijaxnet.verify.report import GradReport, Subject, misbuilt, raise_unless_ok

# The names of rules for reverse mode in a program: a custom_vjp, JAX's new kind of primitive, a linear_call.
_BACKWARD_RULES = ("custom_vjp", "call_hi_primitive", "linear_call")
RULES = (*_BACKWARD_RULES, "custom_jvp")
_BY_AUTODIFF = Subject("derivative rule", "autodiff")
# How JAX's own errors begin where what a rule returns does not fit.
_MISFIT = r"custom.(vjp|jvp)|the bwd rule produced|pytree structure error"


def check_vjp(
    fun: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    reference: Callable[..., Any] | None = None,
    argnums: Argnums | None = None,
    order: int = 1,
    seed: int = 0,
) -> GradReport:
    """Check the custom derivative rules within a function against autodiff of the same function without them.

    With a random cotangent c for the outputs, ``vjp(fun)(c)`` is compared with ``vjp(plain)(c)`` as by ``check_grad``,
    and has to be linear in c. Rules of ``jax.custom_jvp`` are checked in forward mode, too. The plain function is
    the program of ``fun`` run without its custom rules (``custom_vjp``, ``custom_jvp``, ``linear_call`` and JAX's
    primitives with an ``expand``), through ``jit``, ``scan``, ``cond``, ``while``, ``vmap``, ``shard_map`` and nesting;
    a ``pallas_call`` is interpreted. Where there is no plain function that autodiff takes, finite differences in
    float64 are the reference; where there is no custom rule, autodiff itself is compared with them.

    Args:
        fun: ``fun(*args)``, any tree of arrays: a ``jax.custom_vjp`` or ``jax.custom_jvp`` function, or one that calls
            some.
        args: the arguments to check at; trees of arrays, real or complex. Integer, boolean and key leaves are passed
            along; what is not an array, such as an int, a bool or a text, is passed as it is.
        reference: the plain function, where it can't be recovered or is meant to be another one (a surrogate).
        argnums: the arguments to differentiate; all floating leaves of all arguments if None.
        order: 2 to check the rule's own derivative, too.
        seed: of cotangents, random directions and signs.

    Returns:
        A report, with leaves by their names in the signature of ``fun``.

    Raises:
        TypeError: no floating leaf or output, arrays where a function needs plain numbers.
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
    argnums: Argnums | None = None,
    order: int = 1,
    seed: int = 0,
    tell: Callable[[str], None] = lambda stage: None,
) -> Callable[[tuple[Any, ...]], GradReport]:
    """``check_vjp`` compiled for arguments of certain shapes, as ``grad_checker`` for ``check_grad``.

    Example:
        >>> check = vjp_checker(jax.nn.relu, (jnp.ones(3),))
        >>> check((jnp.full(3, -1.0),)).ok
        True
    """
    from minijaxnet.verify.compilation import compile_problem  # 15 ms: imported where used
    from minijaxnet.verify.verdicts import report_at

    check_callable("fun", fun)
    tell("tracing and compiling both rules")
    order = checked_order(order)
    arguments = bound_where_needed(like, fun, lambda arguments: _results_and_rules(fun, arguments))
    arguments, n = params_first(arguments, argnums)
    results, kinds = _results_and_rules(fun, arguments)
    if not results:
        raise TypeError("fun: got no floating output; expected one at least")
    draw = np.random.default_rng(seed)
    leaves = [*arguments.leaves, *(_cotangent(draw, out) for out in results)]
    whole, plain = _flat(fun, arguments), _plain(fun, arguments) if reference is None else _flat(reference, arguments)
    # A reference that was given may be a surrogate, of another value: the function without its rule has its own.
    hand = _pulled_back(whole, whole, n, len(results))
    by_autodiff = _pulled_back(plain, plain if reference is None else whole, n, len(results))
    if (report := _misfit(hand, leaves, arguments.paths[:n])) is not None:
        return lambda args: report
    backward, why_no_reference = bool(kinds & {*_BACKWARD_RULES}), ""
    subject = _BY_AUTODIFF
    if reference is None and not kinds:
        why_no_reference, subject = "fun holds no custom rule", Subject("autodiff", "finite differences")
    elif why_no_reference := _why_not_differentiable(by_autodiff, leaves, given=reference is not None):
        subject = Subject("derivative rule", "finite differences")
    forward = second = None

    def of_args(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *leaves: function(*leaves[: len(arguments.leaves)])

    if why_no_reference:
        forward = (lambda *leaves: hand(*leaves)[: len(results)], of_args(plain))
    elif kinds and not backward:
        forward = derivatives(of_args(whole), of_args(plain), 0, range(n), leaves, seed)
    if order == 2 and not why_no_reference:
        places = [*range(n), *range(len(arguments.leaves), len(leaves))]
        second = derivatives(hand, by_autodiff, len(results), places, leaves, seed)
    problem = Problem(
        hand,
        None if why_no_reference else by_autodiff,
        _weighted_sum(plain, len(results)),
        [*arguments.paths, *(f"cotangent[{i}]" for i in range(len(results)))],
        n,
        names=arguments.paths[:n],
        n_values=len(results),
        n_cotangents=len(results),
        forward=forward,
        second_order=second,
        subject=subject,
        why_no_reference=why_no_reference,
    )
    compiled = compile_problem(problem, leaves)

    def check(args: tuple[Any, ...]) -> GradReport:
        leaves, draw = arguments.leaves_like(args, fun), np.random.default_rng(seed)
        cotangents = [_cotangent(draw, out) for out in jax.eval_shape(whole, *leaves)]
        return report_at(compiled, [*leaves, *cotangents], seed, tell)

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
        return interpret(closed.jaxpr, closed.consts, leaves, wide=False)

    return plain


def _pulled_back(function: Flat, value: Flat, n_params: int, n_results: int) -> Flat:
    """The results of ``value``, and the gradients that the cotangents are pulled back to through ``function``."""

    def pulled_back(*leaves: Any) -> list[Any]:
        args, cotangents = leaves[:-n_results], leaves[-n_results:]
        results, pull_back = jax.vjp(lambda *params: function(*params, *args[n_params:]), *args[:n_params])
        like = [c.astype(x.dtype) for c, x in zip(cotangents, results, strict=True)]
        return [*(results if value is function else value(*args)), *pull_back(like)]

    return pulled_back


def _weighted_sum(function: Flat, n_results: int) -> Callable[..., Any]:
    """The scalar whose gradient is pulled back: the sum of the results, each times its cotangent."""

    def weighted_sum(*leaves: Any) -> Any:
        pairs = zip(function(*leaves[:-n_results]), leaves[-n_results:], strict=True)
        return sum(jnp.real(jnp.sum(x * c.astype(x.dtype))) for x, c in pairs)

    return weighted_sum


def _misfit(hand: Flat, leaves: Sequence[Any], names: Sequence[str]) -> GradReport | None:
    """The report where what the rule returns differs in shape or dtype from its arguments."""
    try:
        shapes = jax.eval_shape(hand, *leaves)[-len(names) :]
    except Exception as error:
        if re.search(_MISFIT, str(error), re.IGNORECASE):  # JAX itself finds that the rule does not fit
            return misbuilt(" ".join(str(error).split()), subject=_BY_AUTODIFF)
        if isinstance(error, AssertionError) and "Accum" in str(error):  # JAX, which can't transpose it
            return misbuilt("the rule has no reverse mode: it is not linear in its tangents", subject=_BY_AUTODIFF)
        error.add_note("check_vjp: raised by the rule of fun, where it was differentiated")
        raise
    for name, got, leaf in zip(names, shapes, leaves, strict=False):
        if difference := structure_difference(got, leaf):
            what = f"the gradient is not like {name}: {difference.removeprefix('(leaf): ')}"
            return misbuilt(what, [got], [leaf], _BY_AUTODIFF)
    return None


def _why_not_differentiable(by_autodiff: Flat, leaves: Sequence[Any], *, given: bool) -> str:
    """Why autodiff can't take the plain function; "" if it can. Where the function was given, JAX's error is raised."""
    try:
        jax.eval_shape(by_autodiff, *leaves)
    except Exception as error:
        if given:
            error.add_note("check_vjp: raised by reference=, where it was differentiated")
            raise
        return f"without its custom rules fun can't be differentiated ({str(error).strip().splitlines()[0]})"
    return ""


def _cotangent(draw: np.random.Generator, like: Any) -> jax.Array:
    """A random cotangent for an output, of few digits, so that it is the same in every dtype."""
    parts = np.round(draw.normal(size=(2, *like.shape)) * 16) / 16 + 1 / 32
    is_complex = jnp.issubdtype(like.dtype, jnp.complexfloating)
    return jnp.asarray(parts[0] + 1j * parts[1] if is_complex else parts[0], like.dtype)


def assert_vjp(
    fun: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    reference: Callable[..., Any] | None = None,
    argnums: Argnums | None = None,
    order: int = 1,
    seed: int = 0,
) -> None:
    """Like ``check_vjp``, for a test: raise ``GradientMismatch`` with the whole report if a rule is not right.

    Args:
        fun: as for ``check_vjp``, and so are the others.
        args: its arguments.
        reference: a function without the rule, to check against.
        argnums: the arguments to differentiate with respect to; all floating ones if None.
        order: 2 to check second derivatives, too.
        seed: of random directions, signs and cotangents.

    Raises:
        GradientMismatch: a rule is not right, or its algebra could not be checked.

    Example:
        >>> assert_vjp(jax.nn.relu, (jnp.arange(-2.0, 3.0),))
    """
    raise_unless_ok(check_vjp(fun, args, reference=reference, argnums=argnums, order=order, seed=seed))
