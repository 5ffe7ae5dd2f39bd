"""Two random directions, of the network's own scale, for a picture of a large network's loss by ``loss_surface``."""

from typing import Any

import jax
import jax.numpy as jnp

from minijaxnet._trees import floating_arrays


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
