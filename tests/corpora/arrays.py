"""Gradients through products, factorisations, indices, windows and transforms of arrays."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpora.kit import (
    Cases,
    GradCase,
    Slip,
    apart,
    fixed,
    given,
    normal,
    one_element,
    scaled,
    swapped,
    transposed,
    wide,
)

CASES = Cases(GradCase)
add = CASES.add

# --- Linear algebra ---------------------------------------------------------------------------------------------------


def product_loss(p, c):
    return jnp.sum(c * (p["a"] @ p["b"]))


def product_gradient(p, c):
    return {"a": c @ p["b"].T, "b": p["a"].T @ c}


SQUARE = given({"a": normal(4, 4), "b": normal(4, 4)}, normal(4, 4))
OBLONG = given({"a": normal(3, 4), "b": normal(4, 5)}, normal(3, 5))
add("matrix product, square", product_loss, SQUARE, product_gradient, {"a transposed": transposed("['a']")})
add("matrix product, oblong", product_loss, OBLONG, product_gradient, {"b transposed": transposed("['b']")})
add(
    "bilinear form",
    lambda p: p["x"] @ p["m"] @ p["y"],
    given({"x": normal(4), "m": normal(4, 4), "y": normal(4)}),
    lambda p: {"x": p["m"] @ p["y"], "m": jnp.outer(p["x"], p["y"]), "y": p["x"] @ p["m"]},
    {"x and y swapped": swapped("x", "y")},
)
add(
    "quadratic form, not symmetric",
    lambda x, m: x @ m @ x,
    given(normal(5), normal(5, 5)),
    lambda x, m: (m + m.T) @ x,
    {"as if symmetric": (lambda x, m: 2 * m @ x, Slip("missing term"))},
)


def near_diagonal(draw, dtype):
    return jnp.asarray(draw.normal(size=(4, 4)) + 4 * np.eye(4), dtype)


def positive_definite(draw, dtype):
    root = draw.normal(size=(4, 4))
    return jnp.asarray(root @ root.T / 4 + np.eye(4), dtype)


add(
    "log-determinant",
    lambda m: jnp.linalg.slogdet(wide(m))[1],
    given(near_diagonal),
    lambda m: jnp.linalg.inv(wide(m)).T.astype(m.dtype),
    {"inverse not transposed": transposed(""), "an element negated": one_element("", (3, 3), -1)},
)


def likelihood_loss(covariance, y):
    factor = jnp.linalg.cholesky(wide(covariance))
    white = jax.scipy.linalg.solve_triangular(factor, wide(y), lower=True)
    return white @ white / 2 + jnp.sum(jnp.log(jnp.diag(factor)))


def likelihood_gradient(covariance, y, determinant=1):
    inverse = jnp.linalg.inv(wide(covariance))
    weights = inverse @ y
    return ((determinant * inverse - jnp.outer(weights, weights)) / 2).astype(y.dtype)


add(
    "Gaussian likelihood by Cholesky",
    likelihood_loss,
    given(positive_definite, normal(4)),
    likelihood_gradient,
    {"determinant forgotten": (lambda k, y: likelihood_gradient(k, y, 0), Slip("missing term"))},
)


def eigenvalue_gradient(m):
    vector = jnp.linalg.eigh(wide(m))[1][:, -1]
    return jnp.outer(vector, vector).astype(m.dtype)


SPREAD = given(lambda draw, dtype: jnp.asarray(np.diag([1.0, 2, 4, 8]) + 0.25 * np.ones((4, 4)), dtype))
add("largest eigenvalue", lambda m: jnp.linalg.eigvalsh(wide(m))[-1], SPREAD, eigenvalue_gradient)

# --- Indices ----------------------------------------------------------------------------------------------------------

add(
    "embedding with repeated indices",
    lambda table, ids, c: jnp.sum(c * table[ids]),
    given(normal(6, 3), fixed([1, 4, 1, 0, 4, 1]), normal(6, 3)),
    lambda table, ids, c: jnp.zeros_like(table).at[ids].add(c),
    {
        "overwritten": (lambda table, ids, c: jnp.zeros_like(table).at[ids].set(c), Slip("index")),
        "one row on": (lambda table, ids, c: jnp.zeros_like(table).at[ids + 1].add(c), Slip("index")),
        "one row fixed": (lambda table, ids, c: jnp.zeros_like(table).at[ids].add(c).at[0].set(0), Slip("element")),
    },
)
INDICES = np.array([2, 0, 2])
add(
    "gather by a NumPy index of int64",
    lambda x: jnp.sum(x[:, INDICES] ** 2),
    given(normal(2, 3)),
    lambda x: jnp.zeros_like(x).at[:, INDICES].add(2 * x[:, INDICES]),
    clears=True,
)
add(
    "scatter, overwriting",
    lambda p, at, c: jnp.sum(c * p["x"].at[at].set(p["new"])),
    given({"x": normal(6), "new": normal(3)}, fixed([4, 0, 3]), normal(6)),
    lambda p, at, c: {"x": c.at[at].set(0), "new": c[at]},
    {"overwritten elements keep their slope": (lambda p, at, c: {"x": c, "new": c[at]}, Slip("index", "['x']"))},
)
add(
    "sort",
    lambda x, c: jnp.sum(c * jnp.sort(x)),
    given(apart(8), normal(8)),
    lambda x, c: jnp.zeros_like(c).at[jnp.argsort(x)].set(c),
    {"permuted the other way": (lambda x, c: c[jnp.argsort(x)], Slip("index"))},
)


# --- Windows and transforms -------------------------------------------------------------------------------------------


def pool_gradient(x, c):
    windows = x.reshape(2, 2, 2, 2)
    most = jnp.max(windows, axis=(1, 3), keepdims=True)
    return jnp.where(windows == most, c[:, None, :, None], 0).reshape(x.shape)


add(
    "max-pool",
    lambda x, c: jnp.sum(c * lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (2, 2), "VALID")),
    given(apart(4, 4), normal(2, 2)),
    pool_gradient,
    {"always to the first": (lambda x, c: jnp.zeros_like(x).at[::2, ::2].set(c), Slip("index"))},
)


def conv_gradient(p, c, flip=1):
    return {"x": jnp.convolve(c, p["w"][::flip], mode="full"), "w": jnp.correlate(p["x"], c, mode="valid")}


add(
    "convolution in one dimension",
    lambda p, c: jnp.sum(c * jnp.correlate(p["x"], p["w"], mode="valid")),
    given({"x": normal(8), "w": normal(3)}, normal(6)),
    conv_gradient,
    {"kernel not flipped": (lambda p, c: conv_gradient(p, c, -1), Slip("other", "['x']"))},
)
add(
    "power spectrum",
    lambda x, c: jnp.sum(c * jnp.abs(jnp.fft.fft(wide(x))) ** 2),
    given(normal(8), normal(8)),
    lambda x, c: (2 * len(x) * jnp.real(jnp.fft.ifft(c * jnp.fft.fft(wide(x))))).astype(x.dtype),
    {"length forgotten": scaled("", 1 / 8)},
)
