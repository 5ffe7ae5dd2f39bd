"""Is a hand-derived gradient right? Against autodiff in float64, with no tolerance to choose.

Several questions are kept apart. *Algebra*: are the two rules the same function? Both are run in float64, and may
differ by what rounding can do there, which is measured. *Precision*: in the dtype you work in, is the rule's rounding
error like autodiff's own? Both are compared with float64. *Oracle*: is autodiff itself right? Finite differences with
their own error estimate are the oracle. A report says what was not checked, and why.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from minijaxnet._checks import check_callable
from minijaxnet._trees import array_type, structure_difference
from minijaxnet.verify.arguments import (
    UNTRACEABLE,
    Argnums,
    Arguments,
    bound_where_needed,
    checked_argnums,
    checked_order,
    params_first,
)
from minijaxnet.verify.problem import Problem, derivatives
from minijaxnet.verify.report import GradReport, misbuilt, raise_unless_ok


def check_grad(
    loss: Callable[..., Any],
    gradient: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    argnums: Argnums = 0,
    has_aux: bool = False,
    has_value: bool = False,
    order: int = 1,
    seed: int = 0,
) -> GradReport:
    """Compare a gradient written by hand with autodiff of the plain loss, element by element.

    For every element of every leaf ``|by hand - autodiff| <= rounding``, both in float64 whatever dtypes the code has.
    The rounding is measured at points a few roundings away, and where that leaves a doubt by enlarging every rounding.
    Then come the rounding errors of both in the dtype of the arguments, finite differences, ``vmap``, and with
    ``order=2`` the gradient's own derivative. Constants that arrive rounded to fewer digits may be off in their last.

    The gradient of a real loss of complex arguments ``z = x + iy`` is JAX's, ``du/dx - i du/dy``; a complex loss is
    taken to be holomorphic, and its gradient is ``df/dz``.

    Where arguments are placed over several devices, as by ``replicate`` and ``shard_batch``, both rules are compiled
    for that placement, too, and each device's copy of the gradient is compared with autodiff's on one device.

    Args:
        loss: ``loss(*args)``, a real floating scalar, or ``(loss, aux)``.
        gradient: ``gradient(*args)``, like ``args[argnums]`` (a tuple of such for several argnums).
        args: the arguments to check at; trees of arrays. Integer, boolean and key leaves are passed along; what is not
            an array, such as an int, a bool or a text, is passed as it is.
        argnums: the argument that the gradient belongs to, or several.
        has_aux: whether the loss returns ``(loss, aux)``.
        has_value: whether ``gradient`` returns ``(value, gradient)``, as ``jax.value_and_grad`` does.
        order: 2 to check the derivative of the gradient, too.
        seed: of random directions and signs.

    Returns:
        A report: ``print`` it, ask it for ``.ok``. Leaves go by their names in the signature of the loss.

    Raises:
        TypeError: arguments that are neither floating nor complex where they are differentiated, a loss that is not a
            scalar, arrays where a function needs plain numbers.
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
    argnums: Argnums = 0,
    has_aux: bool = False,
    has_value: bool = False,
    order: int = 1,
    seed: int = 0,
    tell: Callable[[str], None] = lambda stage: None,
) -> Callable[[tuple[Any, ...]], GradReport]:
    """``check_grad`` compiled for arguments of certain shapes: it returns a function to call with them, in any dtypes.

    Args:
        loss: as for ``check_grad``, like all that follows but ``like`` and ``tell``.
        gradient: by hand.
        like: arguments of the shapes that will come.
        argnums: the argument, or several.
        has_aux: whether the loss returns ``(loss, aux)``.
        has_value: whether ``gradient`` returns ``(value, gradient)``.
        order: 1 or 2.
        seed: of random directions and signs.
        tell: called with what is being done.

    Returns:
        ``check(args)``, a report.

    Example:
        >>> import jax.numpy as jnp
        >>> check = grad_checker(lambda w: jnp.sum(w**2), lambda w: 2 * w, (jnp.ones(2),))
        >>> check((jnp.full(2, 3.0),)).ok
        True
    """
    from minijaxnet.verify.compilation import compile_problem  # 15 ms: imported where used
    from minijaxnet.verify.verdicts import report_at

    for name, function in (("loss", loss), ("gradient", gradient)):
        check_callable(name, function)
    tell("tracing and compiling both rules")
    order, given = checked_order(order), _Given(loss, gradient, argnums, has_aux, has_value)
    arguments = bound_where_needed(like, loss, given.shape_of_loss)
    value = given.shape_of_loss(arguments)
    arguments, n_params = params_first(arguments, argnums)
    if (report := _misfit(given, arguments, value)) is not None:
        return lambda args: report
    compiled = compile_problem(_problem(given, arguments, n_params, value.dtype, order, seed), arguments.leaves)
    return lambda args: report_at(compiled, arguments.leaves_like(args, loss), seed, tell)


class _Given(NamedTuple):
    """A loss and its gradient, as they are passed to a check."""

    loss: Callable[..., Any]
    gradient: Callable[..., Any]
    argnums: Argnums
    has_aux: bool
    has_value: bool

    def shape_of_loss(self, arguments: Arguments) -> Any:
        """The shape of the loss, a scalar: real, or complex where all that it is differentiated by is."""
        chosen = checked_argnums(self.argnums, len(arguments.heads))
        dtypes = [x.dtype for x, k in zip(arguments.leaves, arguments.places, strict=True) if k in chosen]
        kind = jnp.inexact if all(jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes) else jnp.floating
        value = jax.eval_shape(lambda *leaves: self.loss(*arguments.rebuilt(*leaves)), *arguments.leaves)
        if self.has_aux:
            if not (isinstance(value, tuple | list) and len(value) == 2):
                raise TypeError(f"loss: got a {type(value).__name__}; expected (loss, aux), as has_aux=True says")
            value = value[0]
        dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
        if dtype is None or shape != () or not jnp.issubdtype(dtype, kind):
            got = type(value).__name__ if dtype is None else array_type(value)
            raise TypeError(f"loss: got {got}; expected a real floating scalar")
        return value

    def value(self, args: tuple[Any, ...]) -> Any:
        """The loss alone."""
        value = self.loss(*args)
        return value[0] if self.has_aux else value

    def by_hand(self, args: tuple[Any, ...]) -> tuple[Any, Any]:
        """The value by hand, or () where there is none, and the gradient."""
        returned = self.gradient(*args)
        if not self.has_value:
            return (), returned
        if not (isinstance(returned, tuple | list) and len(returned) == 2):
            got = type(returned).__name__
            raise TypeError(f"gradient: got a {got}; expected (value, gradient), as has_value=True says")
        value, gradient = returned
        return (value[0] if self.has_aux and isinstance(value, tuple | list) else value), gradient


def _misfit(given: _Given, arguments: Arguments, value: Any) -> GradReport | None:
    """The report where what the rule returns differs in structure from the loss or the arguments."""
    args, argnums = arguments.rebuilt(*arguments.leaves), given.argnums
    target = args[argnums] if isinstance(argnums, int) else tuple(args[i] for i in argnums)
    try:
        got, gradient = jax.eval_shape(lambda *leaves: given.by_hand(arguments.rebuilt(*leaves)), *arguments.leaves)
    except UNTRACEABLE:  # a rule that works on NumPy arrays
        got, gradient = given.by_hand(args)
    except Exception as error:
        error.add_note("check_grad: raised by the hand gradient")
        raise
    if given.has_value and (difference := structure_difference(got, value)):
        return misbuilt(f"the value is not like the loss: {difference}")
    gradient = _strongly_typed(gradient, target)
    if difference := structure_difference(gradient, target):
        what = f"the gradient is not like {'the argument' if isinstance(argnums, int) else 'the arguments'}"
        alike = jax.tree.structure(gradient) == jax.tree.structure(target)
        if not given.has_value and isinstance(gradient, tuple | list) and len(gradient) == 2:
            if structure_difference(_strongly_typed(gradient[1], target), target) is None:
                return misbuilt("it returns (value, gradient); expected the gradient alone, or has_value=True")
        mine, right = (jax.tree.leaves(tree) if alike else [] for tree in (gradient, target))
        return misbuilt(f"{what}: {difference.removeprefix('(leaf): ')}", mine, right)
    return None


def _strongly_typed(got: Any, expected: Any) -> Any:
    """Python numbers (and what JAX types as weakly as them) with the dtype of what they stand for."""
    if jax.tree.structure(got) != jax.tree.structure(expected):
        return got

    def typed(leaf: Any, like: Any) -> Any:
        weak = isinstance(leaf, int | float) or getattr(leaf, "weak_type", False)
        return jax.ShapeDtypeStruct(jnp.shape(leaf), like.dtype) if weak else leaf

    return jax.tree.map(typed, got, expected)


def _problem(given: _Given, arguments: Arguments, n_params: int, dtype: Any, order: int, seed: int) -> Problem:
    one, names = isinstance(given.argnums, int), arguments.paths[:n_params]
    chosen = checked_argnums(given.argnums, len(arguments.heads))
    holomorphic, n_values = jnp.issubdtype(dtype, jnp.complexfloating), int(given.has_value)

    def hand(*leaves: Any) -> list[Any]:
        value, gradient = given.by_hand(arguments.rebuilt(*leaves))
        in_order = gradient if one else [gradient[chosen.index(i)] for i in sorted(chosen)]
        return jax.tree.leaves((value, in_order))

    def scalar(*leaves: Any) -> Any:
        return given.value(arguments.rebuilt(*leaves))

    def reference(*leaves: Any) -> list[Any]:
        value_and_grad = jax.value_and_grad(scalar, tuple(range(n_params)), holomorphic=holomorphic)
        value, gradients = value_and_grad(*leaves)
        return [value, *gradients] if given.has_value else list(gradients)

    if one:  # its leaves go by their own names
        names = [name.removeprefix(arguments.heads[chosen[0]]) or name for name in names]
    real = (lambda *leaves: jnp.real(scalar(*leaves))) if holomorphic else scalar
    second = None
    if order == 2:
        second = derivatives(hand, reference, n_values, range(n_params), arguments.leaves, seed)
    return Problem(hand, reference, real, arguments.paths, n_params, names, n_values, second_order=second)


def assert_grad(
    loss: Callable[..., Any],
    gradient: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    argnums: Argnums = 0,
    has_aux: bool = False,
    has_value: bool = False,
    order: int = 1,
    seed: int = 0,
) -> None:
    """Like ``check_grad``, for a test: raise ``GradientMismatch`` with the whole report if the gradient is not right.

    Args:
        loss: as for ``check_grad``, and so are the others.
        gradient: by hand.
        args: arguments of both.
        argnums: the argument, or several, to differentiate with respect to.
        has_aux: whether the loss returns ``(loss, aux)``.
        has_value: whether ``gradient`` returns ``(value, gradient)``.
        order: 2 to check the derivative of the gradient, too.
        seed: of random directions and signs.

    Raises:
        GradientMismatch: the gradient is not right, or its algebra could not be checked.

    Example:
        >>> import jax.numpy as jnp
        >>> assert_grad(lambda w: jnp.sum(w**2), lambda w: 2 * w, (jnp.arange(3.0),))
    """
    options = {"argnums": argnums, "has_aux": has_aux, "has_value": has_value, "order": order, "seed": seed}
    raise_unless_ok(check_grad(loss, gradient, args, **options))
