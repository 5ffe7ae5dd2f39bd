"""Are the custom derivative rules within a function right? Against autodiff of the same function without them."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet.pytrees import structure_difference
from minijaxnet.verify.arguments import check_real, checked_argnums, checked_args, checked_order
from minijaxnet.verify.flat import Flat, chosen_leaves, derivatives, first, of_moved, only, paths_of
from minijaxnet.verify.report import GradReport, Verdict, misbuilt, raise_unless_ok


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
    ``cond``, ``while``, ``vmap``, ``shard_map`` and nesting.

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
    from minijaxnet.verify.interpret import equations, interpret  # 15 ms: imported where used
    from minijaxnet.verify.judge import judge
    from minijaxnet.verify.question import Question, prepare

    args, order = checked_args(args), checked_order(order)
    chosen = tuple(range(len(args))) if argnums is None else checked_argnums(argnums, len(args))
    leaves, treedef = jax.tree.flatten(args)
    floating = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]
    moved = [mine and real for mine, real in zip(chosen_leaves(args, chosen), floating, strict=True)]
    for path, leaf in zip(only(paths_of(args), moved), only(leaves, moved), strict=True):
        check_real(leaf, f"args{path}")
    if not any(moved):
        raise TypeError("args: got no floating leaf; expected one at least, to differentiate with respect to")

    def flat(function: Callable[..., Any]) -> Flat:
        def call(*leaves: Any) -> list[Any]:
            results = jax.tree.leaves(function(*jax.tree.unflatten(treedef, leaves)))
            return [x for x in results if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]

        return call

    whole = flat(fun)
    closed = jax.make_jaxpr(whole)(*leaves)
    outputs, n = closed.out_avals, len(leaves)
    if not outputs:
        raise TypeError("fun: got no floating output; expected one at least")
    for output in outputs:
        check_real(output, "fun: its output")
    custom = {eqn.primitive.name for eqn in equations(closed)}
    has_vjp, has_jvp = (any(name.startswith(kind) for name in custom) for kind in ("custom_vjp", "custom_jvp"))
    if reference is None and not (has_vjp or has_jvp):
        why = "fun holds no custom rule, and no reference= was given"
        return GradReport({"structure": Verdict("pass", why), "algebra": Verdict("unchecked", why)}, {})

    def recovered(*leaves: Any) -> list[Any]:
        closed = jax.make_jaxpr(whole)(*leaves)
        return interpret(getattr(closed, "jaxpr", closed), closed.consts, leaves, wide=False)

    plain = recovered if reference is None else flat(reference)

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
        return sum(jnp.sum(x * c.astype(x.dtype)) for x, c in pairs)

    # A reference that was given may be a surrogate, of another value: the function without its rule has its own.
    hand, by_autodiff = pulled(whole, whole), pulled(plain, plain if reference is None else whole)
    draw = np.random.default_rng(seed)
    # Of few digits, so that they are the same in every dtype.
    cotangents = [jnp.asarray(np.round(draw.normal(size=out.shape) * 16) / 16 + 1 / 32, out.dtype) for out in outputs]
    everything = [*leaves, *cotangents]
    try:
        shapes = jax.eval_shape(hand, *everything)[len(outputs) :]
    except Exception as error:
        if re.search(r"custom.(vjp|jvp)", str(error), re.IGNORECASE):  # JAX itself finds that the rule does not fit
            return misbuilt(" ".join(str(error).split()))
        error.add_note("check_vjp: raised by the rule of fun, where it was differentiated")
        raise
    try:
        jax.eval_shape(by_autodiff, *everything)
    except Exception as error:
        why = str(error).strip().splitlines()[0]
        raise ValueError(
            f"fun: without its custom rules it can't be differentiated ({why}); expected reference=, the plain function"
        ) from error
    names = only(paths_of(args), moved)
    for name, got, leaf in zip(names, shapes, only(leaves, moved), strict=True):
        if difference := structure_difference(got, leaf):
            return misbuilt(f"the gradient is not like args{name}: {difference}")

    still, all_moved = [False] * len(outputs), [True] * len(outputs)
    forward = curved = None
    if has_jvp and not has_vjp:
        forward = derivatives(first(whole, n), first(plain, n), 0, [*moved, *still], everything, seed)
    if order == 2:
        curved = derivatives(hand, by_autodiff, len(outputs), [*moved, *all_moved], everything, seed)
    paths = [*(f"args{path}" for path in paths_of(args)), *(f"cotangent[{i}]" for i in range(len(outputs)))]
    places = list(range(n, n + len(outputs)))
    question = Question(
        hand, by_autodiff, objective, paths, [*moved, *still], names, len(outputs), places, forward, curved
    )
    return judge(prepare(question, everything), everything, seed)


def assert_vjp(*arguments: Any, **options: Any) -> None:
    """Like ``check_vjp``, for a test: raise ``GradientMismatch`` with the whole report if a rule is not right.

    Example:
        >>> assert_vjp(jax.nn.relu, (jnp.arange(-2.0, 3.0),))
    """
    raise_unless_ok(check_vjp(*arguments, **options))
