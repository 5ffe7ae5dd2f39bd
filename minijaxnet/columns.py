"""The dense layer by hand, with the points of a batch as rows or as columns: equal results, different speed."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class DenseGradients(NamedTuple):
    """The gradients that the backward pass of a dense layer returns."""

    params: dict[str, jax.Array]
    x: jax.Array


class Layout(NamedTuple):
    """A layout of a batch in memory, with the dense layer in that layout.

    ``z_ij = sum_k x_ik W_kj + b_j`` for point i, hence

    - ``dL/dW_kj = sum_i x_ik delta_ij``,
    - ``dL/db_j = sum_i delta_ij``,
    - ``dL/dx_ik = sum_j delta_ij W_kj``.

    As products, with the points as rows (``BATCH_FIRST``) or as columns (``FEATURES_FIRST``):

    ============== ================= ================
    gradient       points as rows    points as columns
    ============== ================= ================
    z              ``x W + b``       ``W^T x + b``
    dL/dW          ``x^T delta``     ``x delta^T``
    dL/dx          ``delta W^T``     ``W delta``
    ============== ================= ================

    XLA's product on a CPU is slow with a transposed left operand, so this operand is transposed in memory first: with
    points as rows the activations; with points as columns the data, and the weights, which do not grow with the batch.
    Autodiff of ``x @ W`` computes ``x^T delta`` with the slow product.

    Attributes:
        rearrange: from points as rows to this layout, and back.
        forward: ``(params, x) -> z``.
        backward: ``(params, x, delta) -> DenseGradients``, ``delta = dL/dz``; each gradient of the
            params has the dtype of its parameter.
    """

    rearrange: Callable[[jax.Array], jax.Array]
    forward: Callable[[dict[str, jax.Array], jax.Array], jax.Array]
    backward: Callable[[dict[str, jax.Array], jax.Array, jax.Array], DenseGradients]


def _transposed(matrix: jax.Array) -> jax.Array:
    """Transpose in memory; the barrier keeps XLA from merging the transpose into the product.

    Small matrices have no barrier: XLA compiles the whole loop of a tiny network to one function, but not across one.
    """
    return matrix.T if matrix.size < 256 else lax.optimization_barrier(matrix.T)


def _rows_forward(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    z = x @ params["weights"]
    return z + params["bias"][None, :] if "bias" in params else z


def _rows_backward(params: dict[str, jax.Array], x: jax.Array, delta: jax.Array) -> DenseGradients:
    gradients = {"weights": _transposed(x) @ delta, "bias": jnp.sum(delta, axis=0)}
    return DenseGradients(_like(params, gradients), delta @ params["weights"].T)


def _columns_forward(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    z = _transposed(params["weights"]) @ x
    return z + params["bias"][:, None] if "bias" in params else z


def _columns_backward(params: dict[str, jax.Array], x: jax.Array, delta: jax.Array) -> DenseGradients:
    gradients = {"weights": x @ delta.T, "bias": jnp.sum(delta, axis=1)}
    return DenseGradients(_like(params, gradients), params["weights"] @ delta)


def _like(params: dict[str, jax.Array], gradients: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: gradients[name].astype(leaf.dtype) for name, leaf in params.items()}


BATCH_FIRST = Layout(lambda x: x, _rows_forward, _rows_backward)
FEATURES_FIRST = Layout(_transposed, _columns_forward, _columns_backward)


def faster_layout(points: int, sizes: Sequence[int]) -> Layout:
    """Features first, unless there are so few points that transposing the weights costs more time than it saves.

    Measured on a CPU with 64-512-10: features first took 1.13 of autodiff's time with 32 points, 0.66 with 64.
    """
    return FEATURES_FIRST if points >= min(64, max(sizes)) else BATCH_FIRST
