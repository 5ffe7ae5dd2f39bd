"""Is a hand-derived gradient right? Against autodiff in float64, with no tolerance to choose.

Two questions are kept apart. *Algebra*: are the two rules the same function? Both are run in float64, and may differ by
what rounding can do there. How much that is, is measured: the reference is run again at inputs moved by a tiny relative
step h, which changes it by about ``condition * h``; rounding acts like a move of float64's epsilon. *Precision*: in the
dtype you work in, is the rule's rounding error like autodiff's own? Both are held against the float64 truth.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet.pytrees import cast_floats, named_leaves, structure_difference
from minijaxnet.verify.report import GradReport, LeafReport, Verdict

_EPSILON = float(np.finfo(np.float64).eps)
# The relative move of the inputs: far above float64's rounding, far below the distance to the next kink.
_MOVE = 2.0**-36
_PROBES = 3
# Rounding errors of a few operations in a row, over the error of one.
_ROUNDINGS = 64


def check_grad(
    loss: Callable[..., Any],
    gradient: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    argnums: int = 0,
    has_aux: bool = False,
    has_value: bool = False,
    seed: int = 0,
) -> GradReport:
    """Hold a gradient written by hand against autodiff of the plain loss, element by element.

    For every leaf: ``|by hand - autodiff| <= rounding``, both in float64, with the rounding measured from the problem's
    own condition; then the rounding errors of both in the dtype of the arguments.

    Args:
        loss: ``loss(*args)``, a floating scalar, or ``(loss, aux)``.
        gradient: ``gradient(*args)``, like ``args[argnums]``.
        args: the arguments to check at; trees of arrays. Integer, boolean and key leaves are carried along.
        argnums: the argument that the gradient belongs to.
        has_aux: whether the loss returns ``(loss, aux)``.
        has_value: whether ``gradient`` returns ``(loss, gradient)``, as ``jax.value_and_grad`` does.
        seed: of the directions in which the inputs are moved.

    Returns:
        A report: ``print`` it, ask it for ``.ok``.

    Raises:
        TypeError: a leaf of the argument that is not floating.

    Example:
        >>> cube = lambda w: jnp.sum(w**3)
        >>> check_grad(cube, lambda w: 3 * w**2, (jnp.arange(4.0),)).ok
        True
        >>> check_grad(cube, lambda w: 3 * w, (jnp.arange(4.0),)).worst.index
        (3,)

    Source: Higham, "Accuracy and stability of numerical algorithms", 2002, chapter 1 (backward error and condition).
    """
    for path, leaf in named_leaves(args[argnums]).items():
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(f"args[{argnums}]{path}: got dtype {jnp.result_type(leaf)}; expected a real floating dtype")

    def by_hand(*args: Any) -> tuple[Any, Any]:
        return gradient(*args) if has_value else (None, gradient(*args))

    def by_autodiff(*args: Any) -> tuple[Any, Any]:
        value, slope = jax.value_and_grad(loss, argnums=argnums, has_aux=has_aux)(*args)
        return (value[0] if has_aux else value), slope

    shape = jax.eval_shape(by_hand, *args)[1]
    if difference := structure_difference(shape, args[argnums]):
        why = f"the gradient is not like args[{argnums}]: {difference}"
        unchecked = Verdict("unchecked", "the structure differs")
        return GradReport({"structure": Verdict("fail", why), "algebra": unchecked, "precision": unchecked}, {})

    working = [_on_host(jax.jit(rule)(*args)) for rule in (by_hand, by_autodiff)]
    with jax.enable_x64(True):
        exact_args = cast_floats(args, jnp.float64)
        reference_rule = jax.jit(by_autodiff)
        hand, reference = _on_host(jax.jit(by_hand)(*exact_args)), _on_host(reference_rule(*exact_args))
        moved = [_on_host(reference_rule(*_moved(exact_args, seed + i))) for i in range(_PROBES)]

    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(args[argnums])]
    leaves, too_coarse = {}, []
    for i, (path, truth) in enumerate(named_leaves(reference[1]).items()):
        mine, hand_working, autodiff_working = (
            jax.tree.leaves(tree)[i] for tree in (hand[1], working[0][1], working[1][1])
        )
        # What a relative move of the inputs by one does to this leaf, if it went on as it begins.
        condition = max(_largest(jax.tree.leaves(m[1])[i] - truth) for m in moved) / _MOVE
        leaves[path] = _compare(path, mine, truth, condition)
        if dtypes[i] != np.float64 and leaves[path].error <= leaves[path].tolerance:
            epsilon = float(jnp.finfo(dtypes[i]).eps)
            hand_error, autodiff_error = _largest(hand_working - truth), _largest(autodiff_working - truth)
            floor = epsilon * _largest(truth)
            ratio = max(hand_error, floor / 2) / max(autodiff_error, floor / 2) if floor else 1.0
            leaves[path] = replace(leaves[path], precision_ratio=ratio)
            if not hand_error <= 8 * autodiff_error + epsilon * condition + floor and np.isfinite(autodiff_error):
                too_coarse.append(path)
    return GradReport(_verdicts(leaves, too_coarse, hand[0], reference[0], moved, has_value, dtypes), leaves)


def _compare(path: str, hand: np.ndarray, truth: np.ndarray, condition: float) -> LeafReport:
    """Element by element in float64; a number that is not finite on one side only is infinitely wrong."""
    tolerance = _ROUNDINGS * _EPSILON * (condition + _largest(truth))
    same = (hand == truth) | (np.isnan(hand) & np.isnan(truth))
    with np.errstate(invalid="ignore"):
        errors = np.where(same, 0.0, np.nan_to_num(np.abs(hand - truth), nan=np.inf))
    if errors.size == 0:
        return LeafReport(path, hand.shape, 0.0, tolerance, (), 0.0, 0.0, 0.0, None)
    index = tuple(int(i) for i in np.unravel_index(np.argmax(errors), errors.shape))
    share = float(np.mean(errors > tolerance))
    worst = float(errors[index])
    return LeafReport(path, hand.shape, worst, tolerance, index, float(hand[index]), float(truth[index]), share, None)


def _verdicts(
    leaves: dict[str, LeafReport],
    too_coarse: list[str],
    hand_value: Any,
    value: Any,
    moved: list[Any],
    has_value: bool,
    dtypes: list[Any],
) -> dict[str, Verdict]:
    verdicts = {"structure": Verdict("pass", "the gradient is like its argument")}
    if has_value:
        condition = max(float(np.abs(m[0] - value)) for m in moved) / _MOVE
        tolerance = _ROUNDINGS * _EPSILON * (condition + float(np.abs(value)))
        right = bool(np.abs(hand_value - value) <= tolerance)
        reason = "its loss is the function's own" if right else f"its loss is {hand_value:.17g}, not {value:.17g}"
        verdicts["primal"] = Verdict("pass" if right else "fail", reason)
    wrong = [path for path, leaf in leaves.items() if not leaf.error <= leaf.tolerance]
    if not all(np.isfinite(leaf.reference) for leaf in leaves.values()):
        verdicts["algebra"] = Verdict("unchecked", "autodiff's gradient is not finite here")
    elif wrong:
        verdicts["algebra"] = Verdict("fail", f"wrong beyond rounding in {', '.join(wrong[:3])}")
    else:
        verdicts["algebra"] = Verdict("pass", "equal to rounding in float64, every element of every leaf")
    if wrong or all(dtype == np.float64 for dtype in dtypes):
        why = "the algebra is wrong" if wrong else "float64 is the truth itself"
        verdicts["precision"] = Verdict("unchecked", why)
    elif too_coarse:
        verdicts["precision"] = Verdict("fail", f"far less precise than autodiff in {', '.join(too_coarse[:3])}")
    else:
        names = ", ".join(sorted({dtype.name for dtype in dtypes}))
        verdicts["precision"] = Verdict("pass", f"in {names} its rounding error is like autodiff's")
    return verdicts


def _moved(args: Any, seed: int) -> Any:
    """Each floating element times ``1 + h`` or ``1 - h``, at random."""
    draw = np.random.default_rng(seed)

    def move(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf * (1 + _MOVE * draw.choice((-1.0, 1.0), size=leaf.shape))

    return jax.tree.map(move, args)


def _on_host(tree: Any) -> Any:
    """As float64 on the host: float64 arrays do not survive leaving the x64 context."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def _largest(values: np.ndarray) -> float:
    return float(np.max(np.abs(values), initial=0.0))
