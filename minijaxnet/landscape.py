"""The loss along one direction or two in the space of the params, and the path of a descent there.

A picture has fewer axes than a network has weights, so it shows a slice: the loss at the params plus a multiple of one
direction, or of two. A direction is a tree like the params; ``weight_direction`` makes that of a single weight.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from minijaxnet._jaxpr import inner_programs
from minijaxnet._programs import JitOf
from minijaxnet._trees import array_type, floating_arrays, named_leaves, structure_difference
from minijaxnet._types import Objective, Params, PyTree

# Memory for the points that are evaluated at once. Larger blocks do not fit the cache and were slower.
_BLOCK_BYTES = 2**23


class LossSlice(NamedTuple):
    """The loss along one direction.

    Attributes:
        offsets: ``(points,)``, from ``-span`` to ``span``; the middle one of an odd number is exactly 0.
        losses: ``(points,)`` in the loss's dtype; ``losses[i]`` is the loss at ``params + offsets[i] * direction``.
    """

    offsets: jax.Array
    losses: jax.Array


class LossSurface(NamedTuple):
    """The loss over two directions.

    Attributes:
        offsets: ``(points,)``, from ``-span`` to ``span``, the same along both directions.
        losses: ``(points, points)`` in the loss's dtype; ``losses[i, j]`` is the loss at
            ``params + offsets[i] * directions[0] + offsets[j] * directions[1]``. A picture that draws rows upward, with
            the first direction to the right, draws ``losses.T``.
    """

    offsets: jax.Array
    losses: jax.Array


def loss_slice(
    objective: Objective, params: Params, batch: PyTree, *, direction: Any, span: float = 1.0, points: int = 101
) -> LossSlice:
    """The loss along a direction: ``L(params + a * direction)`` for a from ``-span`` to ``span``.

    One compiled program evaluates all points, in blocks that fit the cache. The sum is computed in float32 or wider and
    then rounded to each parameter's dtype, so these are the losses of a descent in this dtype.

    Args:
        objective: ``f(params, batch)``, a scalar. Compiled programs are reused for the same objective.
        params: the middle of the slice, a tree of floating arrays.
        batch: the batch of the objective.
        direction: a tree of real numbers like ``params``, of any length.
        span: the distance to either side, in lengths of the direction.
        points: the number of points, at least 2.

    Returns:
        Offsets and losses.

    Raises:
        TypeError: the direction has not the structure of ``params``, or is not of real numbers; the objective does not
            return a floating scalar; ``points`` is not an int.
        ValueError: the direction has not the shapes of ``params``; the span is not positive and finite; there are fewer
            than 2 points.

    Example:
        >>> squared_error = lambda weight, batch: (weight * batch[0] - batch[1]) ** 2
        >>> print(loss_slice(squared_error, 2.0, (3.0, 10.0), direction=1.0, points=3))
        LossSlice(offsets=Array([-1.,  0.,  1.], dtype=float32), losses=Array([49., 16.,  1.], dtype=float32))

    Source: Goodfellow, Vinyals and Saxe, "Qualitatively characterizing neural network optimization problems", 2015.
    """
    params = floating_arrays(params, "params")
    _check_like("direction", direction, params)
    offsets = _offsets("loss_slice", span, points, params)
    return LossSlice(offsets, _losses(objective, params, batch, (direction,), offsets[:, None]))


def loss_surface(
    objective: Objective,
    params: Params,
    batch: PyTree,
    *,
    directions: Sequence[Any],
    span: float = 1.0,
    points: int = 51,
) -> LossSurface:
    """The loss over a plane: ``L(params + a * directions[0] + b * directions[1])``, a and b from ``-span`` to ``span``.

    Evaluated as by ``loss_slice``.

    Args:
        objective: ``f(params, batch)``, a scalar.
        params: the middle of the plane, a tree of floating arrays.
        batch: the batch of the objective.
        directions: two trees of real numbers like ``params``; they need not be orthogonal.
        span: the distance to either side, in lengths of each direction.
        points: the number of points along each direction, at least 2.

    Returns:
        Offsets, and the losses with the first direction along their first axis.

    Raises:
        TypeError: ``directions`` is not a pair; and as for ``loss_slice``.
        ValueError: as for ``loss_slice``.

    Example:
        >>> valley = lambda params, batch: params["x"] ** 2 + 0 * params["y"]
        >>> params = {"x": 0.0, "y": 0.0}
        >>> to_x, to_y = weight_direction(params, "['x']", ()), weight_direction(params, "['y']", ())
        >>> print(loss_surface(valley, params, None, directions=(to_x, to_y), points=3).losses)
        [[1. 1. 1.]
         [0. 0. 0.]
         [1. 1. 1.]]

    Source: Li, Xu, Taylor, Studer and Goldstein, "Visualizing the loss landscape of neural nets", 2018.
    """
    params = floating_arrays(params, "params")
    if not isinstance(directions, tuple | list) or len(directions) != 2:
        size = f" of {len(directions)}" if isinstance(directions, tuple | list) else ""
        raise TypeError(f"directions: got {type(directions).__name__}{size}; expected two trees like params")
    for i, direction in enumerate(directions):
        _check_like(f"directions[{i}]", direction, params)
    offsets = _offsets("loss_surface", span, points, params)
    grid = jnp.stack(jnp.meshgrid(offsets, offsets, indexing="ij"), axis=-1).reshape(-1, 2)
    return LossSurface(offsets, _losses(objective, params, batch, tuple(directions), grid).reshape(points, points))


def weight_direction(params: Params, path: str, index: int | tuple[int, ...]) -> Any:
    """The direction of a single weight: 1 for this weight, 0 for all others.

    Args:
        params: a tree of floating arrays.
        path: the leaf, as ``jax.tree_util.keystr`` writes it: ``"[0]['weights']"``; ``"(leaf)"`` for a bare array.
        index: the weight in that leaf, an int for each of its axes; ``()`` for a scalar. In ``weights`` of shape
            ``(n_in, n_out)``, ``(i, j)`` is the weight from input i to node j.

    Returns:
        A tree like ``params``, of length 1.

    Raises:
        TypeError: the path is not text, or the index is not made of ints.
        ValueError: there is no such path, or the index is outside of the leaf.

    Example:
        >>> weight_direction({"bias": jnp.ones(2)}, "['bias']", 1)
        {'bias': Array([0., 1.], dtype=float32)}
        >>> weight_direction(({"bias": jnp.ones(2)}, jnp.ones(1)), "[0]", 1)
        Traceback (most recent call last):
        ValueError: weight_direction: path: got "[0]"; expected one of "[0]['bias']", "[1]"
    """
    params = floating_arrays(params, "params")
    leaves = named_leaves(params)
    if not isinstance(path, str):
        raise TypeError(f"weight_direction: path: got {type(path).__name__}; expected text such as {_quoted(leaves)}")
    if path not in leaves:
        raise ValueError(f'weight_direction: path: got "{path}"; expected one of {_quoted(leaves)}')
    shape = leaves[path].shape
    expected = f"expected an int for each axis of {shape}" if shape else "expected (), as for any scalar"
    try:
        where = tuple(map(operator.index, index if isinstance(index, tuple) else (index,)))
    except TypeError:
        raise TypeError(f"weight_direction: index into {path}: got {index!r}; {expected}") from None
    if len(where) != len(shape) or not all(-size <= i < size for i, size in zip(where, shape, strict=True)):
        raise ValueError(f"weight_direction: index into {path}: got {index!r}; {expected}")
    zeros, structure = [jnp.zeros_like(leaf) for leaf in leaves.values()], jax.tree.structure(params)
    chosen = list(leaves).index(path)
    zeros[chosen] = zeros[chosen].at[where].set(1)
    return jax.tree.unflatten(structure, zeros)


def project_path(path: Any, directions: Sequence[Any], *, origin: Any = None) -> np.ndarray:
    """Project each stop of a descent onto the line, plane or space of some directions.

    The coordinates c of a stop are those of the nearest point of that space, ``min_c |stop - origin - sum_i c_i d_i|``,
    so the directions need be neither orthogonal nor of length 1. A picture shows the nearest point; the stop itself
    may be far from it. Computed on the host, in float64.

    Args:
        path: a tree of params whose leaves have a leading axis of stops, such as the trace's ``aux`` for an objective
            that returns ``(loss, params)``.
        directions: one tree or more like the params, linearly independent.
        origin: the params at coordinates 0, such as the middle of the surface; by default the last stop that is finite
            (the rows of steps that a descent did not take are NaN).

    Returns:
        ``(stops, directions)``, float64; NaN for a stop that is not finite.

    Raises:
        TypeError: the path or the origin has not the structure of the directions; ``directions`` is not a sequence.
        ValueError: the shapes do not fit; the directions are linearly dependent; no stop is finite.

    Example:
        >>> path = {"x": jnp.array([3.0, 2.0, 1.0]), "y": jnp.array([1.0, 1.0, 0.0])}
        >>> print(project_path(path, [{"x": 1.0, "y": 0.0}, {"x": 1.0, "y": 1.0}]))
        [[1. 1.]
         [0. 1.]
         [0. 0.]]
    """
    if not isinstance(directions, tuple | list) or not directions:
        raise TypeError(
            f"directions: got {type(directions).__name__}; expected a list of one or more trees like params"
        )
    for i, direction in enumerate(directions):
        _check_like(f"directions[{i}]", direction, directions[0])
    stops = next((jnp.shape(leaf)[0] for leaf in jax.tree.leaves(path) if jnp.ndim(leaf)), 0)
    _check_like("path", path, directions[0], leading=(stops,))
    if origin is not None:
        _check_like("origin", origin, directions[0])

    columns = [[_float64(leaf).ravel() for leaf in jax.tree.leaves(direction)] for direction in directions]
    # With D = Q R the normal equations D^T D c = D^T s become R c = Q^T s, which does not square the condition.
    basis, triangle = np.linalg.qr(np.stack([np.concatenate(column) for column in columns], axis=1))
    if not np.isfinite(triangle).all() or np.linalg.matrix_rank(triangle) < len(directions):
        raise ValueError(f"directions: got {len(directions)}, not finite or not independent; expected independent ones")

    sizes = [leaf.size for leaf in columns[0]]
    rows = [_float64(leaf).reshape(stops, size) for leaf, size in zip(jax.tree.leaves(path), sizes, strict=True)]
    if origin is None:
        finite = np.flatnonzero(np.all([np.isfinite(leaf).all(axis=1) for leaf in rows], axis=0))
        if not finite.size:
            raise ValueError(f"path: got {stops} stops, none of them finite; expected a finite one, or origin=")
        start = [leaf[finite[-1]] for leaf in rows]
    else:
        start = [_float64(leaf).ravel() for leaf in jax.tree.leaves(origin)]
    parts = np.split(basis, np.cumsum(sizes)[:-1])
    along = sum((leaf - first) @ part for leaf, first, part in zip(rows, start, parts, strict=True))
    return np.linalg.solve(triangle, np.transpose(along)).T + 0.0  # + 0.0 turns -0.0 into 0.0


@JitOf
def _losses(
    objective: Objective, params: Params, batch: PyTree, directions: tuple[Any, ...], offsets: jax.Array
) -> jax.Array:
    """The loss at each row of offsets, one offset per direction, in blocks of points that fit ``_BLOCK_BYTES``."""

    def loss_at(row: jax.Array) -> jax.Array:
        def move(weight: jax.Array, *along: Any) -> jax.Array:
            moved = weight.astype(row.dtype)
            for offset, direction in zip(row, along, strict=True):
                moved = moved + offset * jnp.asarray(direction, row.dtype)
            return moved.astype(weight.dtype)

        return objective(jax.tree.map(move, params, *directions), batch)

    program, loss = jax.make_jaxpr(loss_at, return_shape=True)(offsets[0])
    if not (hasattr(loss, "dtype") and loss.shape == () and jnp.issubdtype(loss.dtype, jnp.floating)):
        got = array_type(loss) if hasattr(loss, "dtype") else type(loss).__name__
        raise TypeError(f"objective: got {got}; expected the loss, a floating scalar")
    block = max(1, _BLOCK_BYTES // max(1, _bytes_made(program)))
    return jax.vmap(loss_at)(offsets) if block >= len(offsets) else lax.map(loss_at, offsets, batch_size=block)


def _bytes_made(program: Any) -> int:
    """The bytes of all intermediate results: an upper bound of the memory in use, found without compiling."""
    total = 0
    for equation in getattr(program, "jaxpr", program).eqns:
        inside = sum(map(_bytes_made, inner_programs(equation)))
        made = sum(math.prod(out.aval.shape) * out.aval.dtype.itemsize for out in equation.outvars)
        total += max(inside, made)
    return total


def _offsets(where: str, span: Any, points: Any, params: Params) -> jax.Array:
    """``points`` numbers from ``-span`` to ``span`` in the widest dtype of the params, symmetric to the last bit."""
    try:
        points = operator.index(points)
    except TypeError:
        raise TypeError(f"{where}: points: got {points!r}; expected an int") from None
    if points < 2:
        raise ValueError(f"{where}: points: got {points}; expected at least 2")
    if isinstance(span, bool) or not isinstance(span, int | float | np.number | np.ndarray | jax.Array):
        raise TypeError(f"{where}: span: got {span!r}; expected a positive number")
    if jnp.shape(span) != () or not 0 < float(span) < float("inf"):
        raise ValueError(f"{where}: span: got {span}; expected a positive, finite number")
    dtype = functools.reduce(jnp.promote_types, (leaf.dtype for leaf in jax.tree.leaves(params)), jnp.float32)
    steps = 2 * np.arange(points) - (points - 1)
    return jnp.asarray(float(span) * (steps / (points - 1)), dtype)


def _check_like(where: str, tree: PyTree, params: Params, leading: tuple[int, ...] = ()) -> None:
    """Raise unless ``tree`` holds real numbers in the structure and shapes of ``params``, after some leading axes."""
    if jax.tree.structure(tree) != jax.tree.structure(params):
        raise TypeError(f"{where}: {structure_difference(tree, params)}")
    expected = named_leaves(params)
    for name, leaf in named_leaves(tree).items():
        try:
            dtype = jnp.result_type(leaf)
        except TypeError:
            raise TypeError(f"{where}{name}: got {type(leaf).__name__}; expected an array of real numbers") from None
        if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
            raise TypeError(f"{where}{name}: got dtype {dtype}; expected real numbers")
        shape = (*leading, *jnp.shape(expected[name]))
        if jnp.shape(leaf) != shape:
            raise ValueError(f"{where}{name}: got shape {jnp.shape(leaf)}; expected {shape}")


def _quoted(names: Any) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _float64(leaf: Any) -> np.ndarray:
    return np.asarray(leaf).astype(np.float64)
