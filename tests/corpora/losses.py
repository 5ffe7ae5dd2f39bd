"""Gradients of the losses that models are trained by."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from corpora.kit import (
    DTYPES,
    WORKING,
    Cases,
    GradCase,
    Slip,
    but,
    exactly,
    given,
    integers,
    normal,
    one_element,
    scaled,
    transposed,
)

CASES = Cases(GradCase)
add = CASES.add

# --- Losses -----------------------------------------------------------------------------------------------------------


def linear_loss(p, x, y):
    return jnp.mean((x @ p["w"] + p["b"] - y) ** 2)


def linear_gradient(p, x, y, axis=0):
    error = 2 * (x @ p["w"] + p["b"] - y) / y.size
    return {"w": x.T @ error, "b": jnp.sum(error, axis=axis)}


def all_scaled(factor, kind):
    by_factor = lambda *args: jax.tree.map(lambda x: factor * x, linear_gradient(*args))  # noqa: E731
    return by_factor, Slip(kind, None, factor=factor)


def other_structure(change, leaf, dtypes=DTYPES):
    return lambda *args: change(linear_gradient(*args)), Slip("structure", leaf, dtypes=dtypes)


def with_value(change):
    rule = lambda *args: (change(linear_loss(*args)), linear_gradient(*args))  # noqa: E731
    return rule, Slip("primal", None), {"has_value": True}


add(
    "mean squared error, square",
    linear_loss,
    given({"w": normal(3, 3), "b": normal(3)}, normal(3, 3), normal(3, 3)),
    linear_gradient,
    {
        "bias negated": scaled("['b']", -1),
        "mean for the bias": scaled("['b']", 1 / 3, "mean for sum"),
        "one weight by a thousandth": one_element("['w']", (1, 2), 1.001),
        "weights transposed": transposed("['w']"),
        "divided by the points alone": all_scaled(3, "factor"),
        "all by a thousandth": all_scaled(1.001, "relative"),
        "bias summed over outputs": (lambda *args: linear_gradient(*args, axis=1), Slip("axis", "['b']")),
        "one bias spread over all": (
            but(linear_gradient, "['b']", lambda b: jnp.full_like(b, jnp.sum(b))),
            Slip("broadcast", "['b']"),
        ),
    },
)
OBLONG = given({"w": normal(3, 2), "b": normal(2)}, normal(6, 3), normal(6, 2))
add(
    "mean squared error, oblong",
    linear_loss,
    OBLONG,
    linear_gradient,
    {
        "weights doubled": scaled("['w']", 2),
        "value a millionth too large": with_value(lambda loss: loss * (1 + 1e-6)),
        "value negated": with_value(lambda loss: -loss),
        "a leaf too few": other_structure(lambda g: {"w": g["w"]}, "['b']"),
        "None for a leaf": other_structure(lambda g: {**g, "b": None}, "['b']"),
        "a bias of shape (1, n)": other_structure(lambda g: {**g, "b": g["b"][None]}, "['b']"),
        "a tuple for a dictionary": other_structure(lambda g: (g["b"], g["w"]), None),
        "weights in float32": other_structure(
            lambda g: {**g, "w": g["w"].astype(jnp.float32)}, "['w']", ("bfloat16", "float64")
        ),
    },
)
add(
    "value beside the gradient",
    linear_loss,
    OBLONG,
    lambda *args: (linear_loss(*args), linear_gradient(*args)),
    {"unannounced": lambda rule: (rule, Slip("structure", None), {"has_value": False})},
    has_value=True,
)


def cross_entropy(z, labels):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), labels[:, None], axis=1))


def cross_entropy_gradient(z, labels):
    return (jax.nn.softmax(z) - jax.nn.one_hot(labels, z.shape[1], dtype=z.dtype)) / z.shape[0]


add(
    "softmax cross-entropy",
    cross_entropy,
    given(normal(6, 4), integers(4, 6)),
    cross_entropy_gradient,
    {
        "sum for mean": scaled("", 6),
        "labels from 1": (lambda z, y: cross_entropy_gradient(z, (y + 1) % z.shape[1]), Slip("index")),
        "probabilities held fixed": (
            lambda z, y: lax.stop_gradient(cross_entropy_gradient(z, y)),
            Slip("second order"),
            {"order": 2},
        ),
    },
)


def unstable(z, y):
    p = jax.nn.sigmoid(z)
    return (p - y) / (p * (1 - p)) * (p * (1 - p)) / z.size


add(
    "binary cross-entropy",
    lambda z, y: jnp.mean(jax.nn.softplus(z) - y * z),
    given(exactly([1, -2, 20, -50]), exactly([1, 0, 0, 1])),
    lambda z, y: (jax.nn.sigmoid(z) - y) / z.size,
    {
        "logits clipped at 30": (
            lambda z, y: jnp.where(jnp.abs(z) > 30, 0, jax.nn.sigmoid(z) - y) / z.size,
            Slip("domain"),
        ),
        "through p (1 - p)": (
            unstable,
            Slip("precision", dtypes=WORKING),
            {"args": given(exactly([20, 1]), exactly([0, 1]))},
        ),
    },
)


class Regression(NamedTuple):
    weights: Any
    bias: Any


def logistic_loss(p, x, y):
    z = x @ p.weights + p.bias
    return jnp.mean(jax.nn.softplus(z) - y * z) + 0.05 * jnp.sum(p.weights**2)


def logistic_gradient(p, x, y, decay=0.1):
    delta = (jax.nn.sigmoid(x @ p.weights + p.bias) - y) / len(y)
    return Regression(x.T @ delta + decay * p.weights, jnp.sum(delta))


add(
    "logistic regression with weight decay, NamedTuple",
    logistic_loss,
    given(Regression(normal(3), normal()), normal(6, 3), exactly([0, 1, 1, 0, 1, 0])),
    logistic_gradient,
    {"decay forgotten": (lambda *args: logistic_gradient(*args, 0), Slip("missing term", ".weights"))},
)


def triplet_loss(p):
    near, far = p["anchor"] - p["near"], p["anchor"] - p["far"]
    return jnp.sum(jnp.maximum(0, jnp.sum(near**2, axis=1) - jnp.sum(far**2, axis=1) + 1))


def triplet_gradient(p):
    near, far = p["anchor"] - p["near"], p["anchor"] - p["far"]
    active = jnp.sum(near**2, axis=1) - jnp.sum(far**2, axis=1) + 1 > 0
    on = 2 * active[:, None].astype(near.dtype)
    return {"anchor": on * (near - far), "near": -on * near, "far": on * far}


TRIPLET = given({"anchor": normal(6, 3), "near": normal(6, 3), "far": normal(6, 3)})
add("triplet", triplet_loss, TRIPLET, triplet_gradient, {"far by a millionth": scaled("['far']", 1 + 1e-6, "relative")})
