"""Right gradients of plain losses: linear algebra, elementwise functions, kinks, losses."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpora.kit import (
    GradCase,
    exactly,
    fixed,
    given,
    integers,
    normal,
    positive_definite,
    summed,
    uniform,
    wide,
)

RIGHT: list[GradCase] = []


def right(name, loss, gradient, args, **options):
    RIGHT.append(GradCase(name, loss, gradient, args, **options))


# --- Linear algebra ---------------------------------------------------------------------------------------------------


def product_loss(p, c):
    return jnp.sum(c * (p["a"] @ p["b"]))


def product_gradient(p, c):
    return {"a": c @ p["b"].T, "b": p["a"].T @ c}


OBLONG = given({"a": normal(3, 4), "b": normal(4, 5)}, normal(3, 5))
SQUARE = given({"a": normal(4, 4), "b": normal(4, 4)}, normal(4, 4))
right("matrix product, oblong", product_loss, product_gradient, OBLONG)
right("matrix product, square", product_loss, product_gradient, SQUARE)


def einsum_loss(p):
    return jnp.sum(jnp.einsum("bij,bjk->ik", p["a"], p["b"]) ** 2) / 2


def einsum_gradient(p):
    out = jnp.einsum("bij,bjk->ik", p["a"], p["b"])
    return {"a": jnp.einsum("ik,bjk->bij", out, p["b"]), "b": jnp.einsum("bij,ik->bjk", p["a"], out)}


EINSUM = given({"a": normal(2, 3, 4), "b": normal(2, 4, 3)})
right("einsum over a batch", einsum_loss, einsum_gradient, EINSUM)


def bilinear_loss(p):
    return p["x"] @ p["m"] @ p["y"]


def bilinear_gradient(p):
    return {"x": p["m"] @ p["y"], "m": jnp.outer(p["x"], p["y"]), "y": p["x"] @ p["m"]}


BILINEAR = given({"x": normal(4), "m": normal(4, 4), "y": normal(4)})
right("bilinear form", bilinear_loss, bilinear_gradient, BILINEAR)


def quadratic_loss(x, m):
    return x @ m @ x


QUADRATIC = given(normal(5), normal(5, 5))
right("quadratic form, not symmetric", quadratic_loss, lambda x, m: (m + m.T) @ x, QUADRATIC)


def log_determinant_loss(m):
    return jnp.linalg.slogdet(wide(m))[1]


def log_determinant_gradient(m):
    return jnp.linalg.inv(wide(m)).T.astype(m.dtype)


NEAR_DIAGONAL = given(lambda draw, dtype: jnp.asarray(draw.normal(size=(4, 4)) + 4 * np.eye(4), dtype))
right("log-determinant", log_determinant_loss, log_determinant_gradient, NEAR_DIAGONAL)
right(
    "determinant",
    lambda m: jnp.linalg.det(wide(m)),
    lambda m: (jnp.linalg.det(wide(m)) * jnp.linalg.inv(wide(m)).T).astype(m.dtype),
    NEAR_DIAGONAL,
)


def inverse_loss(m, c):
    return jnp.sum(c * jnp.linalg.inv(wide(m)))


def inverse_gradient(m, c):
    inverse = jnp.linalg.inv(wide(m))
    return -(inverse.T @ c @ inverse.T).astype(m.dtype)


INVERSE = given(lambda draw, dtype: jnp.asarray(draw.normal(size=(4, 4)) + 4 * np.eye(4), dtype), normal(4, 4))
right("inverse", inverse_loss, inverse_gradient, INVERSE)


def solve_loss(p, c):
    return c @ jnp.linalg.solve(wide(p["m"]), wide(p["b"]))


def solve_gradient(p, c):
    x = jnp.linalg.solve(wide(p["m"]), wide(p["b"]))
    adjoint = jnp.linalg.solve(wide(p["m"]).T, wide(c))
    return {"m": -jnp.outer(adjoint, x).astype(c.dtype), "b": adjoint.astype(c.dtype)}


SOLVE = given(
    {"m": lambda draw, dtype: jnp.asarray(draw.normal(size=(4, 4)) + 4 * np.eye(4), dtype), "b": normal(4)}, normal(4)
)
right("linear system", solve_loss, solve_gradient, SOLVE)


def likelihood_loss(covariance, y):
    factor = jnp.linalg.cholesky(wide(covariance))
    white = jax.scipy.linalg.solve_triangular(factor, wide(y), lower=True)
    return white @ white / 2 + jnp.sum(jnp.log(jnp.diag(factor)))


def likelihood_gradient(covariance, y):
    inverse = jnp.linalg.inv(wide(covariance))
    weights = inverse @ y
    return ((inverse - jnp.outer(weights, weights)) / 2).astype(y.dtype)


GAUSSIAN = given(positive_definite(4), normal(4))
right("Gaussian likelihood by Cholesky", likelihood_loss, likelihood_gradient, GAUSSIAN)
right("trace of a cube", lambda m: jnp.trace(m @ m @ m), lambda m: 3 * (m @ m).T, given(normal(4, 4)))
right("Frobenius norm", jnp.linalg.norm, lambda m: m / jnp.linalg.norm(m), given(normal(3, 4)))
right(
    "3-norm",
    lambda x: jnp.sum(jnp.abs(x) ** 3) ** (1 / 3),
    lambda x: x * jnp.abs(x) / jnp.sum(jnp.abs(x) ** 3) ** (2 / 3),
    given(normal(6)),
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

# --- Elementwise ------------------------------------------------------------------------------------------------------

SOME = given(normal(9, scale=2))


def normal_cdf(x):
    return lax.erfc(-x / math.sqrt(2)) / 2


def gelu_slope(x):
    return normal_cdf(x) + x * jnp.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def gelu_tanh_slope(x):
    rate = math.sqrt(2 / math.pi)
    t = jnp.tanh(rate * (x + 0.044715 * x**3))
    return (1 + t) / 2 + x / 2 * (1 - t) * (1 + t) * rate * (1 + 3 * 0.044715 * x**2)


def silu_slope(x):
    s = jax.nn.sigmoid(x)
    return s + x * s * jax.nn.sigmoid(-x)


def mish(x):
    return x * jnp.tanh(jax.nn.softplus(x))


def mish_slope(x):
    t = jnp.tanh(jax.nn.softplus(x))
    return t + x * (1 - t) * (1 + t) * jax.nn.sigmoid(x)


def huber(x):
    return jnp.where(jnp.abs(x) <= 1, x**2 / 2, jnp.abs(x) - 0.5)


def guarded_sinc(x):
    safe = jnp.where(x == 0, 1, x)
    return jnp.where(x == 0, 1, jnp.sin(safe) / safe)


def sinc_slope(x):
    safe = jnp.where(x == 0, 1, x)
    return jnp.where(x == 0, 0, (jnp.cos(safe) - jnp.sin(safe) / safe) / safe)


for name, f, slope in [
    ("tanh", jnp.tanh, lambda x: (1 - jnp.tanh(x)) * (1 + jnp.tanh(x))),
    ("sigmoid", jax.nn.sigmoid, lambda x: jax.nn.sigmoid(x) * jax.nn.sigmoid(-x)),
    ("softplus", jax.nn.softplus, jax.nn.sigmoid),
    ("GELU by erf", lambda x: jax.nn.gelu(x, approximate=False), gelu_slope),
    ("GELU by tanh", jax.nn.gelu, gelu_tanh_slope),
    ("SiLU", jax.nn.silu, silu_slope),
    ("mish", mish, mish_slope),
    ("log cosh", lambda x: jnp.logaddexp(x, -x), jnp.tanh),
    ("Huber", huber, lambda x: jnp.clip(x, -1, 1)),
    ("log1p", lambda x: jnp.log1p(x**2), lambda x: 2 * x / (1 + x**2)),
    ("expm1 squared", lambda x: jnp.expm1(x / 2) ** 2, lambda x: jnp.expm1(x / 2) * jnp.exp(x / 2)),
    ("ELU", jax.nn.elu, lambda x: jnp.where(x > 0, 1, jnp.exp(jnp.minimum(x, 0)))),
]:
    right(name, summed(f), slope, SOME)
right("power", summed(lambda x: x**2.5), lambda x: 2.5 * x**1.5, given(uniform(6, low=0.5, high=3)))
right("sinc, at 0 as well", summed(guarded_sinc), sinc_slope, given(exactly([0, 1, -2, 0.5, 3, 0])))


def arctan2_loss(p):
    return jnp.sum(jnp.arctan2(p["y"], p["x"]))


def arctan2_gradient(p):
    square = p["x"] ** 2 + p["y"] ** 2
    return {"x": -p["y"] / square, "y": p["x"] / square}


ARCTAN2 = given({"x": normal(6), "y": normal(6)})
right("arctan2", arctan2_loss, arctan2_gradient, ARCTAN2)


def swiglu_loss(p, c):
    return jnp.sum(c * jax.nn.silu(p["gate"]) * p["up"])


def swiglu_gradient(p, c):
    return {"gate": c * p["up"] * silu_slope(p["gate"]), "up": c * jax.nn.silu(p["gate"])}


SWIGLU = given({"gate": normal(3, 4), "up": normal(3, 4)}, normal(3, 4))
right("SwiGLU", swiglu_loss, swiglu_gradient, SWIGLU)

# --- At a kink, with another convention than autodiff's ---------------------------------------------------------------

AT_KINK = given(exactly([-1, 0, 2, 0, 3]))
right("relu, slope 1 at 0", summed(jax.nn.relu), lambda x: jnp.where(x >= 0, 1, 0).astype(x.dtype), AT_KINK, kink=True)
right("relu, slope 1/2 at 0", summed(jax.nn.relu), lambda x: (jnp.sign(x) + 1) / 2, AT_KINK, kink=True)
right("abs, slope 0 at 0", summed(jnp.abs), jnp.sign, AT_KINK, kink=True)
right("abs, slope -1/2 at 0", summed(jnp.abs), lambda x: jnp.where(x == 0, -0.5, jnp.sign(x)), AT_KINK, kink=True)
right(
    "maximum of equals, all to the first",
    lambda p: jnp.sum(jnp.maximum(p["a"], p["b"])),
    lambda p: {"a": (p["a"] >= p["b"]).astype(p["a"].dtype), "b": (p["a"] < p["b"]).astype(p["a"].dtype)},
    given({"a": exactly([1, 2, 3, 3]), "b": exactly([1, 3, 2, 3])}),
    kink=True,
)
right(
    "hinge on the margin",
    lambda z, y: jnp.mean(jnp.maximum(0, 1 - y * z)),
    lambda z, y: jnp.where(y * z <= 1, -y, 0) / z.size,
    given(exactly([1, -1, 0.5, 2]), exactly([1, -1, 1, 1])),
    kink=True,
)
right(
    "largest of equals, all to the first",
    lambda x: jnp.sum(jnp.max(x, axis=1)),
    lambda x: jax.nn.one_hot(jnp.argmax(x, axis=1), x.shape[1], dtype=x.dtype),
    given(exactly([[1, 3, 3], [2, 2, 1]])),
    kink=True,
)

# --- Losses -----------------------------------------------------------------------------------------------------------


def linear_loss(p, x, y):
    return jnp.mean((x @ p["w"] + p["b"] - y) ** 2)


def linear_gradient(p, x, y):
    error = 2 * (x @ p["w"] + p["b"] - y) / y.size
    return {"w": x.T @ error, "b": jnp.sum(error, axis=0)}


LINEAR = given({"w": normal(3, 3), "b": normal(3)}, normal(3, 3), normal(3, 3))
OBLONG_LINEAR = given({"w": normal(3, 2), "b": normal(2)}, normal(6, 3), normal(6, 2))
right("mean squared error, square", linear_loss, linear_gradient, LINEAR)
right("mean squared error, oblong", linear_loss, linear_gradient, OBLONG_LINEAR)
right(
    "mean absolute error",
    lambda x, y: jnp.mean(jnp.abs(x - y)),
    lambda x, y: jnp.sign(x - y) / x.size,
    given(normal(4, 3), normal(4, 3)),
)


def cross_entropy(z, labels):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), labels[:, None], axis=1))


def cross_entropy_gradient(z, labels):
    return (jax.nn.softmax(z) - jax.nn.one_hot(labels, z.shape[1], dtype=z.dtype)) / z.shape[0]


LOGITS = given(normal(6, 4), integers(4, 6))
right("softmax cross-entropy, integer labels", cross_entropy, cross_entropy_gradient, LOGITS)
right(
    "softmax cross-entropy, one-hot labels",
    lambda z, y: -jnp.mean(jnp.sum(y * jax.nn.log_softmax(z), axis=1)),
    lambda z, y: (jax.nn.softmax(z) - y) / z.shape[0],
    given(normal(4, 3), exactly(np.eye(3)[[0, 2, 1, 1]])),
)
right(
    "softmax cross-entropy, huge logits",
    cross_entropy,
    cross_entropy_gradient,
    given(normal(6, 4, scale=1e4), integers(4, 6)),
)


def classifier_loss(p, x, labels):
    return cross_entropy(x @ p["w"] + p["b"], labels)


def classifier_gradient(p, x, labels):
    delta = cross_entropy_gradient(x @ p["w"] + p["b"], labels)
    return {"w": x.T @ delta, "b": jnp.sum(delta, axis=0)}


BALANCED = given(
    {"w": exactly(np.zeros((4, 10))), "b": exactly(np.zeros(10))}, normal(30, 4), fixed(np.arange(30) % 10)
)
right(
    "zero weights, balanced classes: the bias has slope 0",
    classifier_loss,
    classifier_gradient,
    BALANCED,
    rounding=1e-15,
)


def bce_loss(z, y):
    return jnp.mean(jnp.maximum(z, 0) - z * y + jnp.log1p(jnp.exp(-jnp.abs(z))))


CONFIDENT = given(exactly([20, -20, 40, -40, 80, -80, 30, 1]), exactly([1, 0, 0, 1, 1, 0, 0, 1]))
right("binary cross-entropy, logits to 80", bce_loss, lambda z, y: (jax.nn.sigmoid(z) - y) / z.size, CONFIDENT)
right(
    "binary cross-entropy, confident and right, no cancellation",
    lambda z, y: jnp.mean(jnp.where(y > 0, jax.nn.softplus(-z), jax.nn.softplus(z))),
    lambda z, y: jnp.where(y > 0, -jax.nn.sigmoid(-z), jax.nn.sigmoid(z)) / z.size,
    given(exactly([20, -30, 40, -25]), exactly([1, 0, 1, 0])),
)
right(
    "hinge",
    lambda z, y: jnp.mean(jnp.maximum(0, 1 - y * z)),
    lambda z, y: jnp.where(y * z < 1, -y, 0) / z.size,
    given(normal(8), exactly([1, -1, 1, -1, 1, -1, 1, -1])),
)


def reverse_kl_loss(z, log_p):
    log_q = jax.nn.log_softmax(z)
    return jnp.sum(jnp.exp(log_q) * (log_q - log_p))


def reverse_kl_gradient(z, log_p):
    log_q = jax.nn.log_softmax(z)
    q, ratio = jnp.exp(log_q), log_q - log_p
    return q * (ratio - jnp.sum(q * ratio, axis=-1, keepdims=True))


REVERSE_KL = given(normal(3, 4), normal(3, 4, shift=-2))
right("reverse Kullback-Leibler", reverse_kl_loss, reverse_kl_gradient, REVERSE_KL)


def focal_loss(z, sign):
    return -jnp.sum((1 - jax.nn.sigmoid(sign * z)) ** 2 * jax.nn.log_sigmoid(sign * z))


def focal_gradient(z, sign):
    p, rest, log_p = jax.nn.sigmoid(sign * z), jax.nn.sigmoid(-sign * z), jax.nn.log_sigmoid(sign * z)
    return sign * rest**2 * (2 * p * log_p - rest)


FOCAL = given(normal(8), exactly([1, -1, 1, 1, -1, -1, 1, -1]))
right("focal", focal_loss, focal_gradient, FOCAL)


def crf_forward(p):
    def step(alpha, unary):
        alpha = unary + jax.nn.logsumexp(alpha[:, None] + p["transition"], axis=0)
        return alpha, alpha

    last, later = lax.scan(step, p["unary"][0], p["unary"][1:])
    return jnp.concatenate([p["unary"][:1], later]), jax.nn.logsumexp(last)


def crf_loss(p, labels):
    score = jnp.sum(p["unary"][jnp.arange(len(labels)), labels]) + jnp.sum(p["transition"][labels[:-1], labels[1:]])
    return crf_forward(p)[1] - score


def crf_gradient(p, labels):
    alpha, log_z = crf_forward(p)

    def back(beta, unary):
        beta = jax.nn.logsumexp(p["transition"] + (unary + beta)[None], axis=1)
        return beta, beta

    end = jnp.zeros_like(alpha[0])
    _, earlier = lax.scan(back, end, p["unary"][1:], reverse=True)
    beta = jnp.concatenate([earlier, end[None]])
    pairs = jnp.exp(alpha[:-1, :, None] + p["transition"] + (p["unary"] + beta)[1:, None, :] - log_z)
    return {
        "unary": jnp.exp(alpha + beta - log_z).at[jnp.arange(len(labels)), labels].add(-1),
        "transition": jnp.sum(pairs, axis=0).at[labels[:-1], labels[1:]].add(-1),
    }


CRF = given({"unary": normal(6, 3), "transition": normal(3, 3)}, integers(3, 6))
right("conditional random field, forward-backward", crf_loss, crf_gradient, CRF)

CTC_STATES = np.array([0, 1, 0, 2, 0], np.int32)  # blank, the labels 1 and 2 between blanks
CTC_MOVES = np.array([[j in (i, i + 1) or (i, j) == (1, 3) for j in range(5)] for i in range(5)])


def ctc_alpha(y):
    alphas = [y[0, CTC_STATES] * jnp.asarray([1, 1, 0, 0, 0], y.dtype)]
    for row in y[1:]:
        alphas.append((alphas[-1] @ jnp.asarray(CTC_MOVES, y.dtype)) * row[CTC_STATES])
    return jnp.stack(alphas)


def ctc_loss(z):
    return -jnp.log(jnp.sum(ctc_alpha(jax.nn.softmax(z))[-1, -2:]))


def ctc_gradient(z):
    y = jax.nn.softmax(z)
    alpha, betas = ctc_alpha(y), [jnp.asarray([0, 0, 0, 1, 1], y.dtype)]
    for row in y[:0:-1]:
        betas.append(jnp.asarray(CTC_MOVES, y.dtype) @ (row[CTC_STATES] * betas[-1]))
    posterior = alpha * jnp.stack(betas[::-1])
    posterior /= jnp.sum(posterior, axis=1, keepdims=True)
    return y - jnp.zeros_like(y).at[:, CTC_STATES].add(posterior)


CTC = given(normal(5, 3))
right("connectionist temporal classification", ctc_loss, ctc_gradient, CTC)


def contrastive_loss(p):
    z = p["image"] @ p["text"].T * 2
    return -jnp.mean(jnp.diag(jax.nn.log_softmax(z)))


def contrastive_gradient(p):
    z = p["image"] @ p["text"].T * 2
    delta = 2 * (jax.nn.softmax(z) - jnp.eye(len(z), dtype=z.dtype)) / len(z)
    return {"image": delta @ p["text"], "text": delta.T @ p["image"]}


CONTRASTIVE = given({"image": normal(4, 3), "text": normal(4, 3)})
right("InfoNCE", contrastive_loss, contrastive_gradient, CONTRASTIVE)


def triplet_loss(p):
    near, far = p["anchor"] - p["near"], p["anchor"] - p["far"]
    return jnp.sum(jnp.maximum(0, jnp.sum(near**2, axis=1) - jnp.sum(far**2, axis=1) + 1))


def triplet_gradient(p):
    near, far = p["anchor"] - p["near"], p["anchor"] - p["far"]
    active = jnp.sum(near**2, axis=1) - jnp.sum(far**2, axis=1) + 1 > 0
    on = 2 * active[:, None].astype(near.dtype)
    return {"anchor": on * (near - far), "near": -on * near, "far": on * far}


TRIPLET = given({"anchor": normal(6, 3), "near": normal(6, 3), "far": normal(6, 3)})
right("triplet", triplet_loss, triplet_gradient, TRIPLET)


class Regression(NamedTuple):
    weights: Any
    bias: Any


def logistic_loss(p, x, y):
    z = x @ p.weights + p.bias
    return jnp.mean(jax.nn.softplus(z) - y * z) + 0.05 * jnp.sum(p.weights**2)


def logistic_gradient(p, x, y):
    delta = (jax.nn.sigmoid(x @ p.weights + p.bias) - y) / len(y)
    return Regression(x.T @ delta + 0.1 * p.weights, jnp.sum(delta))


LOGISTIC = given(Regression(normal(3), normal()), normal(6, 3), exactly([0, 1, 1, 0, 1, 0]))
right("logistic regression with weight decay, NamedTuple", logistic_loss, logistic_gradient, LOGISTIC)
right("logistic regression, order two", logistic_loss, logistic_gradient, LOGISTIC, order=2)
