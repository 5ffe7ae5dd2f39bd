"""Is a hand-derived gradient right? Against autodiff in float64, with no tolerance to choose.

Several questions are kept apart. *Algebra*: are the two rules the same function? Both are run in float64, and may
differ by what rounding can do there, which is measured. *Precision*: in the dtype you work in, is the rule's rounding
error like autodiff's own? Both are held against the float64 truth. *Oracle*: is autodiff itself right? Finite
differences with their own error estimate say so. A report tells what was not checked, and why.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from minijaxnet._checks import check_callable
from minijaxnet._trees import structure_difference
from minijaxnet.verify.arguments import (
    Arguments,
    bound_where_needed,
    checked_argnums,
    checked_loss,
    checked_order,
    differentiated,
    shapes_of,
    typed,
)
from minijaxnet.verify.problem import Problem, derivatives, of_moved, only
from minijaxnet.verify.report import GradReport, always, misbuilt, raise_unless_ok


def check_grad(
    loss: Callable[..., Any],
    gradient: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    has_value: bool = False,
    order: int = 1,
    seed: int = 0,
) -> GradReport:
    """Hold a gradient written by hand against autodiff of the plain loss, element by element.

    For every element of every leaf ``|by hand - autodiff| <= rounding``, both in float64 whatever dtypes are written,
    the rounding measured at points a few roundings away, and where that leaves a doubt by enlarging every rounding;
    then the rounding errors of both in the dtype of the arguments, finite differences, ``vmap``, and with ``order=2``
    the gradient's own derivative. Constants that arrive rounded to fewer digits may be off in their last one.

    Of a real loss of complex arguments ``z = x + iy`` the gradient is JAX's, ``du/dx - i du/dy``; a complex loss is
    taken to be holomorphic, and its gradient is ``df/dz``.

    Where arguments are placed over several devices, as by ``replicate`` and ``shard_batch``, both rules are compiled
    for that placement, too, and each device's copy of the gradient is held against autodiff's on one device.

    Args:
        loss: ``loss(*args)``, a real floating scalar, or ``(loss, aux)``.
        gradient: ``gradient(*args)``, like ``args[argnums]`` (a tuple of such for several argnums).
        args: the arguments to check at; trees of arrays. Integer, boolean and key leaves are carried along; what is no
            array, such as an int, a bool or a text, is passed as it is.
        argnums: the argument that the gradient belongs to, or several.
        has_aux: whether the loss returns ``(loss, aux)``.
        has_value: whether ``gradient`` returns ``(value, gradient)``, as ``jax.value_and_grad`` does.
        order: 2 to check the derivative of the gradient, too.
        seed: of random directions and signs.

    Returns:
        A report: ``print`` it, ask it for ``.ok``. Leaves go by their names in the signature of the loss.

    Raises:
        TypeError: arguments that are neither floating nor complex where they are differentiated, a loss that is not a
            scalar, arrays where a function wants numbers that it knows.
        ValueError: NaN in the arguments, ``argnums`` or ``order`` out of range, nothing to differentiate.

    Example:
        >>> import jax.numpy as jnp
        >>> cube = lambda w: jnp.sum(w**3)
        >>> check_grad(cube, lambda w: 3 * w**2, (jnp.arange(4.0),)).ok
        True
        >>> check_grad(cube, lambda w: 3 * w, (jnp.arange(4.0),)).worst.index
        (3,)

    Source: Higham, "Accuracy and stability of numerical algorithms", 2002, chapter 1; Parker, "Monte Carlo
    arithmetic", 1997; Ridders, "Accurate computation of F'(x) and F'(x) F''(x)", 1982; the JAX documentation, "The
    autodiff cookbook", on complex numbers.
    """
    options = {"argnums": argnums, "has_aux": has_aux, "has_value": has_value, "order": order, "seed": seed}
    return grad_checker(loss, gradient, args, **options)(args)


def grad_checker(
    loss: Callable[..., Any],
    gradient: Callable[..., Any],
    like: tuple[Any, ...],
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    has_value: bool = False,
    order: int = 1,
    seed: int = 0,
    tell: Callable[[str], None] = lambda stage: None,
) -> Callable[[tuple[Any, ...]], GradReport]:
    """``check_grad`` made ready for arguments of certain shapes: call what it returns with them, in any dtypes.

    Args:
        loss: as for ``check_grad``, like all that follows but ``like`` and ``tell``.
        gradient: by hand.
        like: arguments of the shapes to come.
        argnums: the argument, or several.
        has_aux: whether the loss returns ``(loss, aux)``.
        has_value: whether ``gradient`` returns ``(value, gradient)``.
        order: 1 or 2.
        seed: of random directions and signs.
        tell: told what is being done.

    Returns:
        ``check(args)``, a report.

    Example:
        >>> import jax.numpy as jnp
        >>> check = grad_checker(lambda w: jnp.sum(w**2), lambda w: 2 * w, (jnp.ones(2),))
        >>> check((jnp.full(2, 3.0),)).ok
        True
    """
    from minijaxnet.verify.compilation import compile_problem  # 15 ms: imported where used
    from minijaxnet.verify.judge import judge

    for name, function in (("loss", loss), ("gradient", gradient)):
        check_callable(name, function)
    tell("tracing and compiling both rules")
    order, given = checked_order(order), _Given(loss, gradient, argnums, has_aux, has_value)
    arguments = bound_where_needed(like, loss, lambda arguments: _shape_of_loss(given, arguments))
    value, moved = _shape_of_loss(given, arguments), differentiated(arguments, argnums)
    if what := _not_alike(given, arguments, value):
        return always(misbuilt(what))
    compiled = compile_problem(_problem(given, arguments, value, moved, order, seed), arguments.leaves)

    def check(args: tuple[Any, ...]) -> GradReport:
        return judge(compiled, arguments.leaves_like(args, loss), seed, tell)

    return check


class _Given(NamedTuple):
    """A loss and its gradient, as they are passed to a check."""

    loss: Callable[..., Any]
    gradient: Callable[..., Any]
    argnums: int | Sequence[int]
    has_aux: bool
    has_value: bool


def _shape_of_loss(given: _Given, arguments: Arguments) -> Any:
    count = len(arguments.heads)
    chosen = checked_argnums(given.argnums, count)
    holomorphic = all(
        jnp.issubdtype(leaf.dtype, jnp.complexfloating)
        for leaf, place in zip(arguments.leaves, arguments.places, strict=True)
        if place in chosen
    )
    loss = lambda *leaves: given.loss(*arguments.rebuilt(*leaves))  # noqa: E731
    return checked_loss(loss, arguments.leaves, given.has_aux, holomorphic)


def _by_hand(given: _Given, args: tuple[Any, ...]) -> tuple[Any, Any]:
    """The value by hand, or () where there is none, and the gradient."""
    returned = given.gradient(*args)
    if not given.has_value:
        return (), returned
    if not (isinstance(returned, tuple | list) and len(returned) == 2):
        got = type(returned).__name__
        raise TypeError(f"gradient: got a {got}; expected (value, gradient), as has_value=True says")
    value, gradient = returned
    return (value[0] if given.has_aux and isinstance(value, tuple | list) else value), gradient


def _not_alike(given: _Given, arguments: Arguments, value: Any) -> str:
    """How what the rule returns differs in structure from the loss or the arguments; "" if it doesn't."""
    args, argnums = arguments.rebuilt(*arguments.leaves), given.argnums
    target = args[argnums] if isinstance(argnums, int) else tuple(args[i] for i in argnums)
    got, gradient = shapes_of(lambda *leaves: _by_hand(given, arguments.rebuilt(*leaves)), arguments.leaves)
    if given.has_value and (difference := structure_difference(got, value)):
        return f"the value is not like the loss: {difference}"
    if difference := structure_difference(typed(gradient, target), target):
        which = "the argument" if isinstance(argnums, int) else "the arguments"
        return f"the gradient is not like {which}: {difference.removeprefix('(leaf): ')}"
    return ""


def _problem(given: _Given, arguments: Arguments, value: Any, moved: list[bool], order: int, seed: int) -> Problem:
    one, names = isinstance(given.argnums, int), only(arguments.paths, moved)
    chosen = checked_argnums(given.argnums, len(arguments.heads))
    holomorphic, n_values = jnp.issubdtype(value.dtype, jnp.complexfloating), int(given.has_value)

    def hand(*leaves: Any) -> list[Any]:
        value, gradient = _by_hand(given, arguments.rebuilt(*leaves))
        in_order = gradient if one else [gradient[chosen.index(i)] for i in sorted(chosen)]
        return jax.tree.leaves((value, in_order))

    def scalar(*leaves: Any) -> Any:
        value = given.loss(*arguments.rebuilt(*leaves))
        return value[0] if given.has_aux else value

    def reference(*leaves: Any) -> list[Any]:
        of_chosen = jax.value_and_grad(of_moved(scalar, leaves, moved), holomorphic=holomorphic)
        value, gradients = of_chosen(only(leaves, moved))
        return [value, *gradients] if given.has_value else list(gradients)

    if one:  # its leaves go by their own names
        names = [name.removeprefix(arguments.heads[chosen[0]]) or name for name in names]
    second = derivatives(hand, reference, n_values, moved, arguments.leaves, seed) if order == 2 else None
    real = (lambda *leaves: jnp.real(scalar(*leaves))) if holomorphic else scalar
    return Problem(hand, reference, real, arguments.paths, moved, names, n_values, [], second_order=second)


def assert_grad(
    loss: Callable[..., Any],
    gradient: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    has_value: bool = False,
    order: int = 1,
    seed: int = 0,
) -> None:
    """Like ``check_grad``, for a test: raise ``GradientMismatch`` with the whole report if the gradient is not right.

    Example:
        >>> import jax.numpy as jnp
        >>> assert_grad(lambda w: jnp.sum(w**2), lambda w: 2 * w, (jnp.arange(3.0),))
    """
    options = {"argnums": argnums, "has_aux": has_aux, "has_value": has_value, "order": order, "seed": seed}
    raise_unless_ok(check_grad(loss, gradient, args, **options))
