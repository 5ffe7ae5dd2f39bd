"""Two directions for a picture of a large network's loss: random ones of its own scale, or those of its path.

They go with ``loss_surface``, which computes the loss over them, and ``project_path``, which says where a descent lies.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet.pytrees import floating_arrays


class PrincipalDirections(NamedTuple):
    """The two directions that a path goes along most.

    Attributes:
        first: a tree like the params, of length 1; the path starts on its positive side.
        second: the same, orthogonal to the first.
        explained: the share of the path's squared distance from its last moment that lies along each; at most 1
            together.
    """

    first: Any
    second: Any
    explained: tuple[float, float]


def random_directions(key: jax.Array, params: Any) -> tuple[Any, Any]:
    r"""Two random directions, each filter as long as that of the params: ``d_j = g_j / |g_j| * |w_j|``.

    ``g_j`` is a normal draw, and j goes over the filters: the weights into one unit, all that share an index of the
    last axis, so a column of weights ``(n_in, n_out)``. A network whose weights are twice as large, and that may
    compute the same, is thus looked at over twice the distance. Biases and other leaves with fewer than two axes stay
    where they are, as in the paper.

    Args:
        key: a ``jax.random.key``.
        params: the middle of the picture, a pytree of floating arrays.

    Returns:
        Two trees like ``params``, nearly orthogonal where there are many weights.

    Raises:
        TypeError: params that are not floating.
        ValueError: no leaf with two axes or more.

    Example:
        >>> params = {"weights": jnp.array([[3.0, 0.0], [4.0, 1.0]]), "bias": jnp.ones(2)}
        >>> direction, _ = random_directions(jax.random.key(0), params)
        >>> print(jnp.linalg.norm(direction["weights"], axis=0).round(5), direction["bias"])
        [5. 1.] [0. 0.]

    Source: Li, Xu, Taylor, Studer and Goldstein, "Visualizing the loss landscape of neural nets", 2018, section 4.
    """
    leaves, structure = jax.tree.flatten(floating_arrays(params, "params"))
    if not any(leaf.ndim > 1 for leaf in leaves):
        raise ValueError(f"params: got leaves of shapes {[leaf.shape for leaf in leaves]}; expected one with two axes")

    @jax.jit
    def draw(key: jax.Array) -> Any:
        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(structure, list(map(_filters_like, keys, leaves)))

    first, second = jax.random.split(key)
    return draw(first), draw(second)


def _filters_like(key: jax.Array, leaf: jax.Array) -> jax.Array:
    """A normal draw whose filters have the norms of the leaf's."""
    if leaf.ndim < 2:
        return jnp.zeros_like(leaf)
    wide = jnp.promote_types(leaf.dtype, jnp.float32)
    draw = jax.random.normal(key, leaf.shape, wide)
    norm, wanted = (
        jnp.sqrt(jnp.sum(jnp.square(array), axis=tuple(range(leaf.ndim - 1)), keepdims=True))
        for array in (draw, leaf.astype(wide))
    )
    return (draw / norm * wanted).astype(leaf.dtype)


def principal_directions(path: Any) -> PrincipalDirections:
    r"""The plane through the last moment of a path that lies nearest to all of it.

    With ``x_t = w_t - w_T`` as the rows of X, these are the first two right singular vectors of X:
    ``X X^T = U S^2 U^T`` and ``v_i = X^T u_i / s_i``, which explain ``s_i^2 / sum_j s_j^2``. Only the small matrix
    ``X X^T``, moments by moments, is made beside the path itself. The distances are from the last moment and not from
    the mean, since the picture is drawn around the last. Computed on the host, in float64.

    Args:
        path: a tree of params whose leaves have a leading axis of moments, at least 3 of them different. Rows of NaN,
            of steps that a descent did not take, are left out.

    Returns:
        The directions in the dtypes of the params, and the share that each explains.

    Raises:
        TypeError: a path that is not of floating numbers.
        ValueError: leading axes that differ; fewer than 3 finite moments; a path that stays on a line.

    Example:
        >>> found = principal_directions({"w": jnp.array([[3.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.0, 0.0]])})
        >>> print(np.round(found.explained, 3), found.first["w"])
        [0.818 0.182] [1. 0.]

    Source: Li, Xu, Taylor, Studer and Goldstein, "Visualizing the loss landscape of neural nets", 2018, section 7.
    """
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, floating_arrays(path, "path")))
    moments = {leaf.shape[:1] for leaf in leaves}
    if len(moments) != 1 or () in moments:
        raise ValueError(f"path: got leaves of shapes {[leaf.shape for leaf in leaves]}; expected one axis of moments")
    finite = np.all([np.isfinite(_rows(leaf)).all(axis=1) for leaf in leaves], axis=0)
    if finite.sum() < 3:
        raise ValueError(f"path: got {finite.sum()} finite moments; expected at least 3, for a plane")

    def away(leaf: np.ndarray) -> np.ndarray:
        rows = _rows(leaf)[finite]
        return rows - rows[-1]

    gram = np.sum([rows @ rows.T for rows in map(away, leaves)], axis=0)
    squares, vectors = np.linalg.eigh(gram)
    squares, vectors = squares[:-3:-1], vectors[:, :-3:-1]
    # What rounding can make of a line is no direction.
    least = max(float(jnp.finfo(leaf.dtype).eps) for leaf in leaves) ** 2 + np.finfo(np.float64).eps
    if not squares[1] > len(gram) * least * squares[0]:
        raise ValueError(
            f"path: got {len(gram)} moments on a line; expected a path that turns, or use random directions"
        )
    vectors = vectors * np.where(vectors[0] < 0, -1, 1) / np.sqrt(squares)
    first, second = (
        jax.tree.unflatten(
            structure, [jnp.asarray((vector @ away(leaf)).reshape(leaf.shape[1:]), leaf.dtype) for leaf in leaves]
        )
        for vector in vectors.T
    )
    shares = squares / np.trace(gram)
    return PrincipalDirections(first, second, (float(shares[0]), float(shares[1])))


def _rows(leaf: np.ndarray) -> np.ndarray:
    """A moment a row, in float64."""
    return leaf.astype(np.float64).reshape(len(leaf), -1)
