"""Gradients of losses of linear algebra."""

import jax
import jax.numpy as jnp
import numpy as np

from corpora.kit import GradCase, Slip, Subject, given, normal, positive_definite, wide

SUBJECT = Subject(GradCase)
right, wrong, transposed = SUBJECT.right, SUBJECT.wrong, SUBJECT.transposed


def near_diagonal(draw, dtype):
    return jnp.asarray(draw.normal(size=(4, 4)) + 4 * np.eye(4), dtype)


# --- Products ---------------------------------------------------------------------------------------------------------


def product_loss(p, c):
    return jnp.sum(c * (p["a"] @ p["b"]))


def product_gradient(p, c):
    return {"a": c @ p["b"].T, "b": p["a"].T @ c}


oblong = right(
    "matrix product, oblong",
    product_loss,
    product_gradient,
    given({"a": normal(3, 4), "b": normal(4, 5)}, normal(3, 5)),
)
square = right(
    "matrix product, square",
    product_loss,
    product_gradient,
    given({"a": normal(4, 4), "b": normal(4, 4)}, normal(4, 4)),
)
transposed("matrix product, square, a transposed", square, "['a']")
transposed("matrix product, oblong, b transposed", oblong, "['b']")


def einsum_loss(p):
    return jnp.sum(jnp.einsum("bij,bjk->ik", p["a"], p["b"]) ** 2) / 2


def einsum_gradient(p):
    out = jnp.einsum("bij,bjk->ik", p["a"], p["b"])
    return {"a": jnp.einsum("ik,bjk->bij", out, p["b"]), "b": jnp.einsum("bij,ik->bjk", p["a"], out)}


right("einsum over a batch", einsum_loss, einsum_gradient, given({"a": normal(2, 3, 4), "b": normal(2, 4, 3)}))


def bilinear_gradient(p):
    return {"x": p["m"] @ p["y"], "m": jnp.outer(p["x"], p["y"]), "y": p["x"] @ p["m"]}


bilinear = right(
    "bilinear form",
    lambda p: p["x"] @ p["m"] @ p["y"],
    bilinear_gradient,
    given({"x": normal(4), "m": normal(4, 4), "y": normal(4)}),
)
transposed("bilinear form, matrix transposed", bilinear, "['m']")
SUBJECT.swapped("bilinear form, x and y swapped", bilinear, "x", "y")
quadratic = right(
    "quadratic form, not symmetric",
    lambda x, m: x @ m @ x,
    lambda x, m: (m + m.T) @ x,
    given(normal(5), normal(5, 5)),
)
wrong("quadratic form, as if symmetric", quadratic, lambda x, m: 2 * m @ x, Slip("missing term", ""))
right("trace of a cube", lambda m: jnp.trace(m @ m @ m), lambda m: 3 * (m @ m).T, given(normal(4, 4)))
right("Frobenius norm", jnp.linalg.norm, lambda m: m / jnp.linalg.norm(m), given(normal(3, 4)))
right(
    "3-norm",
    lambda x: jnp.sum(jnp.abs(x) ** 3) ** (1 / 3),
    lambda x: x * jnp.abs(x) / jnp.sum(jnp.abs(x) ** 3) ** (2 / 3),
    given(normal(6)),
)

# --- Inverses and factorisations --------------------------------------------------------------------------------------


def log_determinant_gradient(m):
    return jnp.linalg.inv(wide(m)).T.astype(m.dtype)


log_determinant = right(
    "log-determinant", lambda m: jnp.linalg.slogdet(wide(m))[1], log_determinant_gradient, given(near_diagonal)
)
right(
    "determinant",
    lambda m: jnp.linalg.det(wide(m)),
    lambda m: (jnp.linalg.det(wide(m)) * jnp.linalg.inv(wide(m)).T).astype(m.dtype),
    log_determinant.args,
)
transposed("log-determinant, inverse not transposed", log_determinant, "")
SUBJECT.element("one diagonal element negated", log_determinant, "", (3, 3), -1)


def inverse_gradient(m, c):
    inverse = jnp.linalg.inv(wide(m))
    return -(inverse.T @ c @ inverse.T).astype(m.dtype)


inverse = right(
    "inverse",
    lambda m, c: jnp.sum(c * jnp.linalg.inv(wide(m))),
    inverse_gradient,
    given(near_diagonal, normal(4, 4)),
)
transposed("inverse, transposed", inverse, "")


def solve_gradient(p, c):
    x = jnp.linalg.solve(wide(p["m"]), wide(p["b"]))
    adjoint = jnp.linalg.solve(wide(p["m"]).T, wide(c))
    return {"m": -jnp.outer(adjoint, x).astype(c.dtype), "b": adjoint.astype(c.dtype)}


system = right(
    "linear system",
    lambda p, c: c @ jnp.linalg.solve(wide(p["m"]), wide(p["b"])),
    solve_gradient,
    given({"m": near_diagonal, "b": normal(4)}, normal(4)),
)
transposed("linear system, matrix transposed", system, "['m']")


def likelihood_loss(covariance, y):
    factor = jnp.linalg.cholesky(wide(covariance))
    white = jax.scipy.linalg.solve_triangular(factor, wide(y), lower=True)
    return white @ white / 2 + jnp.sum(jnp.log(jnp.diag(factor)))


def likelihood_gradient(covariance, y):
    inverse = jnp.linalg.inv(wide(covariance))
    weights = inverse @ y
    return ((inverse - jnp.outer(weights, weights)) / 2).astype(y.dtype)


likelihood = right(
    "Gaussian likelihood by Cholesky", likelihood_loss, likelihood_gradient, given(positive_definite(4), normal(4))
)
wrong(
    "Gaussian likelihood, determinant forgotten",
    likelihood,
    lambda k, y: likelihood_gradient(k, y) - (jnp.linalg.inv(wide(k)) / 2).astype(k.dtype),
    Slip("missing term", ""),
)


def eigenvalue_gradient(m):
    vector = jnp.linalg.eigh(wide(m))[1][:, -1]
    return jnp.outer(vector, vector).astype(m.dtype)


right(
    "largest eigenvalue",
    lambda m: jnp.linalg.eigvalsh(wide(m))[-1],
    eigenvalue_gradient,
    given(lambda draw, dtype: jnp.asarray(np.diag([1.0, 2, 4, 8]) + 0.25 * np.ones((4, 4)), dtype)),
)
