"""Is a hand-derived gradient right? Against autodiff in float64, with no tolerance to choose.

Several questions are kept apart. *Algebra*: are the two rules the same function? Both are run in float64, and may
differ by what rounding can do there, which is measured. *Precision*: in the dtype you work in, is the rule's rounding
error like autodiff's own? Both are held against the float64 truth. *Oracle*: is autodiff itself right? Finite
differences with their own error estimate say so. A report tells what was not checked, and why.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet.pytrees import array_type, leaf_name, structure_difference
from minijaxnet.verify.report import GradientMismatch, GradReport, Verdict

Flat = Callable[..., list[Any]]
_UNTRACEABLE = (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError)


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

    For every element of every leaf ``|by hand - autodiff| <= rounding``, both in float64, the rounding measured by
    carrying out both programs with enlarged roundings; then the rounding errors of both in the dtype of the arguments;
    then finite differences, ``jit`` against eager and ``vmap``, and with ``order=2`` the gradient's own derivative.

    Args:
        loss: ``loss(*args)``, a real floating scalar, or ``(loss, aux)``.
        gradient: ``gradient(*args)``, like ``args[argnums]`` (a tuple of such for several argnums).
        args: the arguments to check at; trees of arrays. Integer, boolean and key leaves are carried along.
        argnums: the argument that the gradient belongs to, or several.
        has_aux: whether the loss returns ``(loss, aux)``.
        has_value: whether ``gradient`` returns ``(value, gradient)``, as ``jax.value_and_grad`` does.
        order: 2 to check the derivative of the gradient, too.
        seed: of random directions and signs.

    Returns:
        A report: ``print`` it, ask it for ``.ok``.

    Raises:
        TypeError: arguments that are not real floating where they are differentiated, a loss that is not a scalar.
        ValueError: NaN in the arguments, ``argnums`` or ``order`` out of range, nothing to differentiate.

    Example:
        >>> cube = lambda w: jnp.sum(w**3)
        >>> check_grad(cube, lambda w: 3 * w**2, (jnp.arange(4.0),)).ok
        True
        >>> check_grad(cube, lambda w: 3 * w, (jnp.arange(4.0),)).worst.index
        (3,)

    Source: Higham, "Accuracy and stability of numerical algorithms", 2002, chapter 1; Parker, "Monte Carlo
    arithmetic", 1997; Ridders, "Accurate computation of F'(x) and F'(x) F''(x)", 1982.
    """
    from minijaxnet.verify.judge import Question, judge  # 15 ms: imported where used

    args, order = _checked_args(args), _checked_order(order)
    chosen = _checked_argnums(argnums, len(args))
    leaves, treedef = jax.tree.flatten(args)
    moved = jax.tree.leaves(tuple(jax.tree.map(lambda _, i=i: i in chosen, arg) for i, arg in enumerate(args)))
    target = args[argnums] if isinstance(argnums, int) else tuple(args[i] for i in argnums)
    _check_differentiable(target, f"args[{argnums}]" if isinstance(argnums, int) else "args")
    names = [leaf_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(target)[0]]

    def scalar(*leaves: Any) -> Any:
        value = loss(*jax.tree.unflatten(treedef, leaves))
        return value[0] if has_aux else value

    def by_hand(*args: Any) -> tuple[Any, Any]:
        returned = gradient(*args)
        if not has_value:
            return (), returned
        if not (isinstance(returned, tuple | list) and len(returned) == 2):
            raise TypeError(
                f"gradient: got a {type(returned).__name__}; expected (value, gradient), as has_value=True says"
            )
        value, returned = returned
        return (value[0] if has_aux and isinstance(value, tuple | list) else value), returned

    value_shape = _checked_loss(loss, args, has_aux)
    value, slope = _shapes(by_hand, args)
    if has_value and (difference := structure_difference(value, value_shape)):
        return _misbuilt(f"the value is not like the loss: {difference}")
    if difference := structure_difference(_typed(slope, target), target):
        return _misbuilt(f"the gradient is not like args[{argnums}]: {difference}")

    def hand(*leaves: Any) -> list[Any]:
        return jax.tree.leaves(by_hand(*jax.tree.unflatten(treedef, leaves)))

    def gradient_of(rule: Flat) -> Flat:
        return lambda *leaves: rule(*leaves)[int(has_value) :]

    def reference(*leaves: Any) -> list[Any]:
        value, slopes = jax.value_and_grad(_of_moved(scalar, leaves, moved))(_only(leaves, moved))
        return [value, *slopes] if has_value else list(slopes)

    curved = None
    if order == 2:
        curved = _derivatives(gradient_of(hand), gradient_of(reference), moved, seed)
    paths = [f"args{jax.tree_util.keystr(path)}" for path, _ in jax.tree_util.tree_flatten_with_path(args)[0]]
    question = Question(
        hand, reference, scalar, leaves, paths, moved, names, n_values=int(has_value), cotangents=[], curved=curved
    )
    return judge(question, seed)


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
    recovered by carrying out the program of ``fun`` with its custom rules taken out, through ``jit``, ``scan``,
    ``cond``, ``while``, ``vmap`` and nesting.

    Args:
        fun: ``fun(*args)``, any tree of arrays: a ``jax.custom_vjp`` or ``jax.custom_jvp`` function, or one that calls
            some.
        args: the arguments to check at; trees of arrays. Integer, boolean and key leaves are carried along.
        reference: the plain function, where it can't be recovered or is to be another one (a surrogate).
        argnums: the arguments to differentiate; all floating leaves of all arguments if None.
        order: 2 to check the rule's own derivative, too.
        seed: of cotangents, random directions and signs.

    Returns:
        A report, with leaves by their path in ``args``.

    Raises:
        TypeError: arguments or outputs that are complex, no floating leaf or output.
        ValueError: NaN in the arguments; a plain function that can't be differentiated: pass ``reference``.

    Example:
        >>> @jax.custom_vjp
        ... def double(x):
        ...     return 2 * x
        >>> double.defvjp(lambda x: (2 * x, None), lambda _, c: (3 * c,))
        >>> report = check_vjp(double, (jnp.ones(3),))
        >>> print(report.ok, report.hints)
        False ('[0]: 1.5 times what it should be',)

    Source: the JAX documentation, "Custom derivative rules".
    """
    from minijaxnet.verify.interpret import equations, interpret
    from minijaxnet.verify.judge import Question, judge

    args, order = _checked_args(args), _checked_order(order)
    chosen = range(len(args)) if argnums is None else _checked_argnums(argnums, len(args))
    leaves, treedef = jax.tree.flatten(args)
    in_chosen = jax.tree.leaves(tuple(jax.tree.map(lambda _, i=i: i in chosen, arg) for i, arg in enumerate(args)))
    moved = [mine and jnp.issubdtype(leaf.dtype, jnp.inexact) for mine, leaf in zip(in_chosen, leaves, strict=True)]
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(args)[0]]
    for path, leaf, mine in zip(paths, leaves, moved, strict=True):
        if mine:
            _check_real(leaf, f"args{path}")
    if not any(moved):
        raise TypeError("args: got no floating leaf; expected one at least, to differentiate with respect to")

    def flat(function: Callable[..., Any]) -> Flat:
        def call(*leaves: Any) -> list[Any]:
            out = jax.tree.leaves(function(*jax.tree.unflatten(treedef, leaves)))
            return [x for x in out if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]

        return call

    mine = flat(fun)
    closed = jax.make_jaxpr(mine)(*leaves)
    outputs = closed.out_avals
    if not outputs:
        raise TypeError("fun: got no floating output; expected one at least")
    for output in outputs:
        _check_real(output, "fun: its output")
    custom = {eqn.primitive.name.split("_call")[0] for eqn in equations(closed) if "custom_" in eqn.primitive.name}
    if reference is None and not custom & {"custom_vjp", "custom_jvp"}:
        why = "fun holds no custom rule, and no reference= was given"
        return GradReport({"structure": Verdict("pass", why), "algebra": Verdict("unchecked", why)}, {})

    def recovered(*leaves: Any) -> list[Any]:
        closed = jax.make_jaxpr(mine)(*leaves)
        return interpret(getattr(closed, "jaxpr", closed), closed.consts, leaves, wide=False)

    plain = recovered if reference is None else flat(reference)
    draw = np.random.default_rng(seed)
    # Few digits, so that they are the same in every dtype.
    cotangents = [jnp.asarray(np.round(draw.normal(size=out.shape) * 16) / 16 + 1 / 32, out.dtype) for out in outputs]
    n = len(leaves)

    def pulled(function: Flat, *, value: Flat) -> Flat:
        def rule(*all_leaves: Any) -> list[Any]:
            leaves, cotangents = all_leaves[:n], all_leaves[n:]
            of_moved = _of_moved(function, leaves, moved)
            out, pull = jax.vjp(of_moved, _only(leaves, moved))
            like = [c.astype(x.dtype) for c, x in zip(cotangents, out, strict=True)]
            return [*(out if value is function else value(*leaves)), *pull(like)[0]]

        return rule

    # The value that comes with the rule against the value without it.
    hand, by_autodiff = pulled(mine, value=mine), pulled(plain, value=mine if reference is not None else plain)

    def objective(*all_leaves: Any) -> Any:
        out = plain(*all_leaves[:n])
        return sum(jnp.sum(x * c.astype(x.dtype)) for x, c in zip(out, all_leaves[n:], strict=True))

    everything = [*leaves, *cotangents]
    try:
        shapes = jax.eval_shape(hand, *everything)[len(outputs) :]
    except Exception as error:
        if re.search(r"custom.(vjp|jvp)", str(error), re.IGNORECASE):  # JAX itself finds that the rule does not fit
            return _misbuilt(" ".join(str(error).split()))
        error.add_note("check_vjp: raised by the rule of fun, where it was differentiated")
        raise
    try:
        jax.eval_shape(by_autodiff, *everything)
    except Exception as error:
        why = str(error).strip().splitlines()[0]
        raise ValueError(
            f"fun: without its custom rules it can't be differentiated ({why}); expected reference=, the plain function"
        ) from error
    names = _only(paths, moved)
    for name, got, leaf in zip(names, shapes, _only(leaves, moved), strict=True):
        if difference := structure_difference(got, leaf):
            return _misbuilt(f"the gradient is not like args{name}: {difference}")

    forward = curved = None
    if "custom_jvp" in custom and "custom_vjp" not in custom:
        forward = _derivatives(_first(mine, n), _first(plain, n), [*moved, *[False] * len(outputs)], seed)
    if order == 2:
        slopes = (lambda *a, rule=rule: rule(*a)[len(outputs) :] for rule in (hand, by_autodiff))
        curved = _derivatives(next(slopes), next(slopes), [*moved, *[True] * len(outputs)], seed)
    question = Question(
        hand,
        by_autodiff,
        objective,
        everything,
        [*(f"args{path}" for path in paths), *(f"cotangent[{i}]" for i in range(len(outputs)))],
        [*moved, *[False] * len(outputs)],
        names,
        n_values=len(outputs),
        cotangents=list(range(n, n + len(outputs))),
        forward=forward,
        curved=curved,
    )
    return judge(question, seed)


def assert_grad(*arguments: Any, **options: Any) -> None:
    """Like ``check_grad``, for a test: raise ``GradientMismatch`` with the whole report if the gradient is not right.

    Example:
        >>> assert_grad(lambda w: jnp.sum(w**2), lambda w: 2 * w, (jnp.arange(3.0),))
    """
    _raise_unless_ok(check_grad(*arguments, **options))


def assert_vjp(*arguments: Any, **options: Any) -> None:
    """Like ``check_vjp``, for a test: raise ``GradientMismatch`` with the whole report if a rule is not right.

    Example:
        >>> assert_vjp(jax.nn.relu, (jnp.arange(-2.0, 3.0),))
    """
    _raise_unless_ok(check_vjp(*arguments, **options))


def _raise_unless_ok(report: GradReport) -> None:
    if not report.ok:
        raise GradientMismatch(report)


# --- Flat functions ---------------------------------------------------------------------------------------------------


def _only(values: Sequence[Any], moved: Sequence[bool]) -> list[Any]:
    return [value for value, mine in zip(values, moved, strict=True) if mine]


def _of_moved(function: Callable[..., Any], leaves: Sequence[Any], moved: Sequence[bool]) -> Callable[[list[Any]], Any]:
    """A function of all leaves as one of those that are moved, the others staying as they are."""

    def of_moved(values: list[Any]) -> Any:
        rest = iter(values)
        return function(*(next(rest) if mine else leaf for leaf, mine in zip(leaves, moved, strict=True)))

    return of_moved


def _first(function: Flat, count: int) -> Flat:
    """A function of some leaves as one of these and more."""
    return lambda *leaves: function(*leaves[:count])


def _derivatives(hand: Flat, reference: Flat, moved: Sequence[bool], seed: int) -> tuple[Flat, Flat]:
    return _derivative(hand, moved, seed), _derivative(reference, moved, seed)


def _derivative(function: Flat, moved: Sequence[bool], seed: int) -> Flat:
    """The derivative of a flat function in a random direction: by forward mode, or by reverse where that is refused."""

    def derivative(*leaves: Any) -> list[Any]:
        draw = np.random.default_rng(seed + 3)
        of_moved, start = _of_moved(function, leaves, moved), _only(leaves, moved)
        ways = [jnp.asarray(draw.normal(size=x.shape), x.dtype) for x in start]
        try:
            return list(jax.jvp(of_moved, (start,), (ways,))[1])
        except TypeError:
            out, pull = jax.vjp(of_moved, start)
            return list(pull([jnp.asarray(draw.normal(size=x.shape), x.dtype) for x in out])[0])

    return derivative


# --- What was passed in ----------------------------------------------------------------------------------------------


def _checked_args(args: Any) -> tuple[Any, ...]:
    """The arguments as arrays."""
    if not isinstance(args, tuple | list):
        raise TypeError(f"args: got a {type(args).__name__}; expected a tuple of arguments")

    def convert(path: tuple[Any, ...], leaf: Any) -> Any:
        name = f"args{jax.tree_util.keystr(path)}"
        try:
            array = jnp.asarray(leaf)
        except TypeError:
            raise TypeError(f"{name}: got a {type(leaf).__name__}; expected an array") from None
        if jnp.issubdtype(array.dtype, jnp.floating):
            bad = np.argwhere(np.isnan(np.asarray(array).astype(np.float64)))
            if len(bad):
                place = list(map(int, bad[0]))
                raise ValueError(f"{name}: got NaN{f' at {place}' if place else ''}; expected numbers")
            array = jax.lax.convert_element_type(array, array.dtype)
        return array

    return jax.tree_util.tree_map_with_path(convert, tuple(args))


def _checked_order(order: Any) -> int:
    if order not in (1, 2) or isinstance(order, bool):
        raise ValueError(f"order: got {order!r}; expected 1 or 2")
    return order


def _checked_argnums(argnums: Any, count: int) -> tuple[int, ...]:
    chosen = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    for i in chosen:
        if not isinstance(i, int) or isinstance(i, bool):
            raise TypeError(f"argnums: got {argnums!r}; expected an int or several")
        if not 0 <= i < count:
            raise ValueError(
                f"argnums: got {argnums!r}; expected numbers from 0 to {count - 1}, there are {count} args"
            )
    return chosen


def _check_differentiable(target: Any, where: str) -> None:
    leaves = jax.tree_util.tree_flatten_with_path(target)[0]
    if not leaves:
        raise ValueError(f"{where}: got a tree without leaves; expected something to differentiate with respect to")
    for path, leaf in leaves:
        _check_real(leaf, f"{where}{jax.tree_util.keystr(path)}")


def _check_real(leaf: Any, name: str) -> None:
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        raise TypeError(f"{name}: got dtype {leaf.dtype}; complex numbers are not supported, split them into two")
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise TypeError(f"{name}: got dtype {leaf.dtype}; expected a real floating dtype")


def _checked_loss(loss: Callable[..., Any], args: tuple[Any, ...], has_aux: bool) -> Any:
    """The shape of the loss, a scalar."""
    value = jax.eval_shape(loss, *args)
    if has_aux:
        if not (isinstance(value, tuple | list) and len(value) == 2):
            raise TypeError(f"loss: got a {type(value).__name__}; expected (loss, aux), as has_aux=True says")
        value = value[0]
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is None or shape != () or not jnp.issubdtype(dtype, jnp.floating):
        got = type(value).__name__ if dtype is None else array_type(value)
        raise TypeError(f"loss: got {got}; expected a real floating scalar")
    return value


def _shapes(rule: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """What a rule returns, by shape; a rule that works on NumPy arrays is called."""
    try:
        return jax.eval_shape(rule, *args)
    except _UNTRACEABLE:
        return rule(*args)
    except Exception as error:
        error.add_note("check_grad: raised by the hand gradient")
        raise


def _typed(got: Any, expected: Any) -> Any:
    """Python numbers (and what JAX types as weakly as them) with the dtype of what stands in their place."""
    if jax.tree.structure(got) != jax.tree.structure(expected):
        return got

    def typed(leaf: Any, like: Any) -> Any:
        weak = isinstance(leaf, int | float) or getattr(leaf, "weak_type", False)
        return jax.ShapeDtypeStruct(jnp.shape(leaf), like.dtype) if weak else leaf

    return jax.tree.map(typed, got, expected)


def _misbuilt(why: str) -> GradReport:
    unchecked = Verdict("unchecked", "the structure differs")
    return GradReport({"structure": Verdict("fail", why), "algebra": unchecked, "precision": unchecked}, {})
