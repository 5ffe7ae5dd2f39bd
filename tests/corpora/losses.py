"""Gradients of the losses that models are trained by, and of small models with them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpora.kit import DTYPES, WORKING, GradCase, Slip, Subject, but, exactly, fixed, given, integers, normal, times

SUBJECT = Subject(GradCase)
right, wrong, twin, factor, element = SUBJECT.right, SUBJECT.wrong, SUBJECT.twin, SUBJECT.factor, SUBJECT.element

# --- Squares ----------------------------------------------------------------------------------------------------------


def linear_loss(p, x, y):
    return jnp.mean((x @ p["w"] + p["b"] - y) ** 2)


def linear_gradient(p, x, y):
    error = 2 * (x @ p["w"] + p["b"] - y) / y.size
    return {"w": x.T @ error, "b": jnp.sum(error, axis=0)}


def bias_over_outputs(p, x, y):
    error = 2 * (x @ p["w"] + p["b"] - y) / y.size
    return {"w": x.T @ error, "b": jnp.sum(error, axis=1)}


square = right(
    "mean squared error, square",
    linear_loss,
    linear_gradient,
    given({"w": normal(3, 3), "b": normal(3)}, normal(3, 3), normal(3, 3)),
)
oblong = right(
    "mean squared error, oblong",
    linear_loss,
    linear_gradient,
    given({"w": normal(3, 2), "b": normal(2)}, normal(6, 3), normal(6, 2)),
)
right(
    "value beside the gradient",
    linear_loss,
    lambda *args: (linear_loss(*args), linear_gradient(*args)),
    oblong.args,
    has_value=True,
)
right(
    "mean absolute error",
    lambda x, y: jnp.mean(jnp.abs(x - y)),
    lambda x, y: jnp.sign(x - y) / x.size,
    given(normal(4, 3), normal(4, 3)),
)
factor("mean squared error, bias negated", square, "['b']", -1)
factor("mean squared error, weights doubled", oblong, "['w']", 2)
factor("mean squared error, mean for the bias", square, "['b']", 1 / 3, "mean for sum")
element("mean squared error, one weight by a thousandth", square, "['w']", (1, 2), 1.001)
SUBJECT.transposed("mean squared error, square weights transposed", square, "['w']")
for name, rule, slip in [
    (
        "mean squared error, divided by the points alone",
        lambda *args: jax.tree.map(times(3), linear_gradient(*args)),
        Slip("factor", None, factor=3),
    ),
    (
        "mean squared error, all by a thousandth",
        lambda *args: jax.tree.map(times(1.001), linear_gradient(*args)),
        Slip("relative", None, factor=1.001),
    ),
    ("mean squared error, bias summed over outputs", bias_over_outputs, Slip("axis", "['b']")),
    (
        "bias: one number spread over all",
        but(linear_gradient, "['b']", lambda b: jnp.full_like(b, jnp.sum(b))),
        Slip("broadcast", "['b']"),
    ),
]:
    wrong(name, square, rule, slip)

for name, change in [
    ("value a millionth too large", lambda loss, p: loss * (1 + 1e-6)),
    ("value summed for the mean", lambda loss, p: loss * 12),
    ("value with a weight decay that the loss has not", lambda loss, p: loss + 1e-4 * jnp.sum(p["w"] ** 2)),
    ("value negated", lambda loss, p: -loss),
]:
    wrong(
        name,
        oblong,
        lambda p, x, y, change=change: (change(linear_loss(p, x, y), p), linear_gradient(p, x, y)),
        Slip("primal", None),
        has_value=True,
    )
for name, change, leaf, dtypes in [
    ("a leaf too few", lambda g: {"w": g["w"]}, "['b']", DTYPES),
    ("a leaf too many", lambda g: {**g, "x": g["w"]}, None, DTYPES),
    ("None for a leaf", lambda g: {**g, "b": None}, "['b']", DTYPES),
    ("a bias of shape (1, n)", lambda g: {**g, "b": g["b"][None]}, "['b']", DTYPES),
    ("a tuple for a dictionary", lambda g: (g["b"], g["w"]), None, DTYPES),
    ("weights in float32", lambda g: {**g, "w": g["w"].astype(jnp.float32)}, "['w']", ("bfloat16", "float64")),
    ("weights in bfloat16", lambda g: {**g, "w": g["w"].astype(jnp.bfloat16)}, "['w']", ("float32", "float64")),
    ("weights flattened", lambda g: {**g, "w": g["w"].ravel()}, "['w']", DTYPES),
]:
    gradient = lambda *args, change=change: change(linear_gradient(*args))  # noqa: E731
    wrong(name, oblong, gradient, Slip("structure", leaf, dtypes=dtypes))
wrong(
    "the value as well, unannounced",
    oblong,
    lambda *args: (linear_loss(*args), linear_gradient(*args)),
    Slip("structure", None),
)

# --- Cross-entropies --------------------------------------------------------------------------------------------------


def cross_entropy(z, labels):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), labels[:, None], axis=1))


def cross_entropy_gradient(z, labels):
    return (jax.nn.softmax(z) - jax.nn.one_hot(labels, z.shape[1], dtype=z.dtype)) / z.shape[0]


logits = right(
    "softmax cross-entropy, integer labels", cross_entropy, cross_entropy_gradient, given(normal(6, 4), integers(4, 6))
)
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


for name, rule, slip, order in [
    (
        "cross-entropy, sum over the batch for its mean",
        lambda z, labels: jax.nn.softmax(z) - jax.nn.one_hot(labels, z.shape[1], dtype=z.dtype),
        Slip("factor", "", factor=6),
        1,
    ),
    (
        "cross-entropy, labels from 1",
        lambda z, labels: cross_entropy_gradient(z, (labels + 1) % z.shape[1]),
        Slip("index", ""),
        1,
    ),
    (
        "softmax cross-entropy, the probabilities held fixed",
        lambda z, labels: lax.stop_gradient(cross_entropy_gradient(z, labels)),
        Slip("second order", ""),
        2,
    ),
]:
    wrong(name, logits, rule, slip, order=order)


def classifier_loss(p, x, labels):
    return cross_entropy(x @ p["w"] + p["b"], labels)


def classifier_gradient(p, x, labels):
    delta = cross_entropy_gradient(x @ p["w"] + p["b"], labels)
    return {"w": x.T @ delta, "b": jnp.sum(delta, axis=0)}


right(
    "zero weights, balanced classes: the bias has slope 0",
    classifier_loss,
    classifier_gradient,
    given({"w": exactly(np.zeros((4, 10))), "b": exactly(np.zeros(10))}, normal(30, 4), fixed(np.arange(30) % 10)),
    rounding=1e-15,
)
classifier = twin(
    classifier_loss,
    given({"w": normal(4, 10), "b": normal(10)}, normal(12, 4), integers(10, 12)),
    classifier_gradient,
)
element("one of a classifier's weights forgotten", classifier, "['w']", (2, 7), 0)
right(
    "binary cross-entropy, logits to 80",
    lambda z, y: jnp.mean(jnp.maximum(z, 0) - z * y + jnp.log1p(jnp.exp(-jnp.abs(z)))),
    lambda z, y: (jax.nn.sigmoid(z) - y) / z.size,
    given(exactly([20, -20, 40, -40, 80, -80, 30, 1]), exactly([1, 0, 0, 1, 1, 0, 0, 1])),
)
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


def binary_cross_entropy(z, y):
    return jnp.mean(jax.nn.softplus(z) - y * z)


def unstable(z, y):
    p = jax.nn.sigmoid(z)
    return (p - y) / (p * (1 - p)) * (p * (1 - p)) / z.size


wrong(
    "binary cross-entropy, logits clipped at 30",
    twin(binary_cross_entropy, given(exactly([1, -2, 40, -50]), exactly([1, 0, 0, 1]))),
    lambda z, y: jnp.where(jnp.abs(z) > 30, 0, jax.nn.sigmoid(z) - y) / z.size,
    Slip("domain", ""),
)
wrong(
    "binary cross-entropy, through p (1 - p)",
    twin(binary_cross_entropy, given(exactly([20, 1, -2]), exactly([0, 1, 1]))),
    unstable,
    Slip("precision", "", dtypes=WORKING),
)


def reverse_kl_loss(z, log_p):
    log_q = jax.nn.log_softmax(z)
    return jnp.sum(jnp.exp(log_q) * (log_q - log_p))


def reverse_kl_gradient(z, log_p):
    log_q = jax.nn.log_softmax(z)
    q, ratio = jnp.exp(log_q), log_q - log_p
    return q * (ratio - jnp.sum(q * ratio, axis=-1, keepdims=True))


reverse_kl = right(
    "reverse Kullback-Leibler", reverse_kl_loss, reverse_kl_gradient, given(normal(3, 4), normal(3, 4, shift=-2))
)
wrong(
    "reverse Kullback-Leibler, not centred",
    reverse_kl,
    lambda z, log_p: jax.nn.softmax(z) * (jax.nn.log_softmax(z) - log_p),
    Slip("missing term", ""),
)


def focal_loss(z, sign):
    return -jnp.sum((1 - jax.nn.sigmoid(sign * z)) ** 2 * jax.nn.log_sigmoid(sign * z))


def focal_gradient(z, sign):
    p, rest, log_p = jax.nn.sigmoid(sign * z), jax.nn.sigmoid(-sign * z), jax.nn.log_sigmoid(sign * z)
    return sign * rest**2 * (2 * p * log_p - rest)


focal = right("focal", focal_loss, focal_gradient, given(normal(8), exactly([1, -1, 1, 1, -1, -1, 1, -1])))
factor("focal, by a millionth", focal, "", 1 - 1e-6, "relative")


class Regression(NamedTuple):
    weights: Any
    bias: Any


def logistic_loss(p, x, y):
    z = x @ p.weights + p.bias
    return jnp.mean(jax.nn.softplus(z) - y * z) + 0.05 * jnp.sum(p.weights**2)


def logistic_gradient(p, x, y):
    delta = (jax.nn.sigmoid(x @ p.weights + p.bias) - y) / len(y)
    return Regression(x.T @ delta + 0.1 * p.weights, jnp.sum(delta))


def no_decay(p, x, y):
    right = logistic_gradient(p, x, y)
    return right._replace(weights=right.weights - 0.1 * p.weights)


logistic = right(
    "logistic regression with weight decay, NamedTuple",
    logistic_loss,
    logistic_gradient,
    given(Regression(normal(3), normal()), normal(6, 3), exactly([0, 1, 1, 0, 1, 0])),
)
right("logistic regression, order two", logistic_loss, logistic_gradient, logistic.args, order=2)
wrong("logistic regression, weight decay forgotten", logistic, no_decay, Slip("missing term", ".weights"))
wrong(
    "logistic regression, nothing flows a second time",
    logistic,
    lambda p, x, y: logistic_gradient(jax.tree.map(lax.stop_gradient, p), x, y),
    Slip("second order", None),
    order=2,
)

# --- Similarities -----------------------------------------------------------------------------------------------------


def contrastive_loss(p):
    z = p["image"] @ p["text"].T * 2
    return -jnp.mean(jnp.diag(jax.nn.log_softmax(z)))


def contrastive_gradient(p):
    z = p["image"] @ p["text"].T * 2
    delta = 2 * (jax.nn.softmax(z) - jnp.eye(len(z), dtype=z.dtype)) / len(z)
    return {"image": delta @ p["text"], "text": delta.T @ p["image"]}


contrastive = right(
    "InfoNCE", contrastive_loss, contrastive_gradient, given({"image": normal(4, 3), "text": normal(4, 3)})
)
factor("InfoNCE, temperature forgotten for the text", contrastive, "['text']", 0.5)
factor("contrastive, image by a thousandth", contrastive, "['image']", 1.001, "relative")


def triplet_loss(p):
    near, far = p["anchor"] - p["near"], p["anchor"] - p["far"]
    return jnp.sum(jnp.maximum(0, jnp.sum(near**2, axis=1) - jnp.sum(far**2, axis=1) + 1))


def triplet_gradient(p):
    near, far = p["anchor"] - p["near"], p["anchor"] - p["far"]
    active = jnp.sum(near**2, axis=1) - jnp.sum(far**2, axis=1) + 1 > 0
    on = 2 * active[:, None].astype(near.dtype)
    return {"anchor": on * (near - far), "near": -on * near, "far": on * far}


triplet = right(
    "triplet",
    triplet_loss,
    triplet_gradient,
    given({"anchor": normal(6, 3), "near": normal(6, 3), "far": normal(6, 3)}),
)
factor("triplet, far negated", triplet, "['far']", -1)
