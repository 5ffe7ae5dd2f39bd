"""Gradients of elementwise functions, at kinks, and with all kinds of arguments and results."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpora.kit import (
    WORKING,
    Cases,
    GradCase,
    Slip,
    exactly,
    fixed,
    given,
    in_dtype,
    normal,
    one_element,
    random_key,
    scaled,
    summed,
    swapped,
    wide,
)

CASES = Cases(GradCase)
add = CASES.add
SOME = given(normal(9, scale=2))


def gelu_slope(x):
    return lax.erfc(-x / math.sqrt(2)) / 2 + x * jnp.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def silu_slope(x):
    s = jax.nn.sigmoid(x)
    return s + x * s * jax.nn.sigmoid(-x)


def sigmoid_slope(x):
    return jax.nn.sigmoid(x) * jax.nn.sigmoid(-x)


def huber(x):
    return jnp.where(jnp.abs(x) <= 1, x**2 / 2, jnp.abs(x) - 0.5)


def guarded_sinc(x):
    safe = jnp.where(x == 0, 1, x)
    return jnp.where(x == 0, 1, jnp.sin(safe) / safe)


def sinc_slope(x):
    safe = jnp.where(x == 0, 1, x)
    return jnp.where(x == 0, 0, (jnp.cos(safe) - jnp.sin(safe) / safe) / safe)


def is_positive(x):
    return (x > 0).astype(x.dtype)


def naive_sigmoid(x):
    return jnp.exp(x) / (1 + jnp.exp(x))


FAR, HUGE = given(exactly([0.5, -0.25, 0.75, 4, -7, 12])), given(exactly([1000, 1, -1]))
SMALL = given(exactly([2e-4, -1e-4, 3e-5]))
ONE_SIDED, BEYOND = Slip("one-sided"), Slip("domain")
UNSTABLE, INFINITE = Slip("precision", dtypes=WORKING), Slip("nonfinite", "", (0,))
for name, f, slope, args, wrong in [
    (
        "tanh",
        jnp.tanh,
        lambda x: (1 - jnp.tanh(x)) * (1 + jnp.tanh(x)),
        SOME,
        {"slope of the output taken twice": (lambda x: 1 - jnp.tanh(jnp.tanh(x)) ** 2, Slip("other"))},
    ),
    (
        "sigmoid far out",
        jax.nn.sigmoid,
        sigmoid_slope,
        given(exactly([0.5, -3, 11, -12])),
        {"no slope beyond 10": (lambda x: jnp.where(jnp.abs(x) > 10, 0, sigmoid_slope(x)), BEYOND)},
    ),
    ("softplus", jax.nn.softplus, jax.nn.sigmoid, HUGE, {"naive, at 1000": (naive_sigmoid, INFINITE)}),
    (
        "GELU",
        lambda x: jax.nn.gelu(x, approximate=False),
        gelu_slope,
        SOME,
        {
            "the density forgotten": (lambda x: lax.erfc(-x / math.sqrt(2)) / 2, Slip("missing term")),
            "by tanh for by erf": (jax.vmap(jax.grad(jax.nn.gelu)), Slip("other")),
        },
    ),
    ("SiLU", jax.nn.silu, silu_slope, SOME, {"second term forgotten": (jax.nn.sigmoid, Slip("missing term"))}),
    ("Huber", huber, lambda x: jnp.clip(x, -1, 1), FAR, {"slope x beyond 1": (lambda x: x, BEYOND)}),
    ("relu6", lambda x: jnp.clip(x, 0, 6), None, FAR, {"without its ceiling": (is_positive, BEYOND)}),
    ("leaky relu", lambda x: jax.nn.leaky_relu(x, 0.01), None, SOME, {"dead below 0": (is_positive, ONE_SIDED)}),
    (
        "sinc, at 0 as well",
        guarded_sinc,
        sinc_slope,
        given(exactly([0, 1, -2, 0.5, 3])),
        {"unguarded": (lambda x: (jnp.cos(x) - jnp.sin(x) / x) / x, INFINITE)},
    ),
    (
        "expm1 squared",
        lambda x: jnp.expm1(x) ** 2,
        lambda x: 2 * jnp.expm1(x) * jnp.exp(x),
        SMALL,
        {"by exp(x) - 1": (lambda x: 2 * (jnp.exp(x) - 1) * jnp.exp(x), UNSTABLE)},
    ),
]:
    add(name, summed(f), args, slope, wrong)
add(
    "quartic",
    summed(lambda x: x**4),
    given(normal(4)),
    lambda x: 4 * x**3,
    {"its square held fixed": (lambda x: 4 * lax.stop_gradient(x**2) * x, Slip("second order"))},
    order=2,
)


def arctan2_gradient(p):
    square = p["x"] ** 2 + p["y"] ** 2
    return {"x": -p["y"] / square, "y": p["x"] / square}


add(
    "arctan2",
    lambda p: jnp.sum(jnp.arctan2(p["y"], p["x"])),
    given({"x": normal(6), "y": normal(6)}),
    arctan2_gradient,
    {"x negated": scaled("['x']", -1), "x and y swapped": swapped("x", "y")},
)

# --- At a kink, with another convention than autodiff's ---------------------------------------------------------------

AT_KINK = given(exactly([-1, 0, 2, 0, 3]))
add("relu, slope 1 at 0", summed(jax.nn.relu), AT_KINK, lambda x: jnp.where(x >= 0, 1, 0).astype(x.dtype), kink=True)
add("abs, slope -1/2 at 0", summed(jnp.abs), AT_KINK, lambda x: jnp.where(x == 0, -0.5, jnp.sign(x)), kink=True)
add(
    "maximum of equals, all to the first",
    lambda p: jnp.sum(jnp.maximum(p["a"], p["b"])),
    given({"a": exactly([1, 2, 3, 3]), "b": exactly([1, 3, 2, 3])}),
    lambda p: {"a": (p["a"] >= p["b"]).astype(p["a"].dtype), "b": (p["a"] < p["b"]).astype(p["a"].dtype)},
    kink=True,
)

# --- Keys, and what is held fixed -------------------------------------------------------------------------------------


def dropout_loss(w, x, key):
    keep = jax.random.bernoulli(key, 0.75, w.shape)
    return jnp.sum((jnp.where(keep, w / 0.75, 0) @ x) ** 2)


def dropout_gradient(w, x, key, scale=0.75):
    keep = jax.random.bernoulli(key, 0.75, w.shape)
    return jnp.where(keep, 2 * jnp.outer(jnp.where(keep, w / 0.75, 0) @ x, x) / scale, 0)


add(
    "dropout",
    dropout_loss,
    given(normal(4, 4), normal(4), random_key(3)),
    dropout_gradient,
    {
        "slope not scaled": (lambda *args: dropout_gradient(*args, 1), Slip("dropout scale", factor=0.75)),
        "another mask": (lambda w, x, key: dropout_gradient(w, x, jax.random.fold_in(key, 1)), Slip("other")),
    },
)
around = lambda x: 4 * (x - jnp.mean(x)) ** 3  # noqa: E731
add("around a mean held fixed", lambda x: jnp.sum((x - lax.stop_gradient(jnp.mean(x))) ** 4), given(normal(6)), around)
add(
    "around a mean",
    lambda x: jnp.sum((x - jnp.mean(x)) ** 4),
    given(normal(6)),
    wrong={"that is held fixed": (around, Slip("missing term"))},
)

# --- Dtypes, trees and shapes -----------------------------------------------------------------------------------------


def mixed_output(p, x):
    wider = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.matmul(x, p["weights"], preferred_element_type=wider) + p["bias"]


def mixed_gradient(p, x):
    out = mixed_output(p, x)
    return {"weights": (wide(x).T @ out).astype(p["weights"].dtype), "bias": jnp.sum(out, axis=0)}


add(
    "bfloat16 weights beside a float32 bias",
    lambda p, x: jnp.sum(mixed_output(p, x) ** 2) / 2,
    given(
        {"weights": in_dtype(jnp.bfloat16, normal(4, 3)), "bias": in_dtype(jnp.float32, normal(3))},
        in_dtype(jnp.bfloat16, normal(5, 4)),
    ),
    mixed_gradient,
)


def picked(p, batch):
    return jnp.where(batch["keep"], p["w"][batch["ids"]], 0) * batch["counts"]


def picked_gradient(p, batch):
    counts = jnp.where(batch["keep"], batch["counts"], 0).astype(p["w"].dtype)
    return {"w": jnp.zeros_like(p["w"]).at[batch["ids"]].add(counts), "b": (p["b"][1], p["b"][0])}


add(
    "integers and booleans among the arguments",
    lambda p, batch: jnp.sum(picked(p, batch)) + p["b"][0] * p["b"][1],
    given(
        {"w": normal(4), "b": (normal(), normal())},
        {"ids": fixed([3, 1, 1]), "keep": fixed([True, True, False], bool), "counts": fixed([2, 5, 7])},
    ),
    picked_gradient,
)
add(
    "a leaf without elements",
    lambda p: jnp.sum(p["none"]) + jnp.sum(p["some"] ** 2),
    given({"none": normal(0, 3), "some": normal(2)}),
    lambda p: {"none": jnp.ones_like(p["none"]), "some": 2 * p["some"]},
)


def outer_gradient(p):
    out = 2 * (p["row"] * p["column"] + p["one"])
    rows, columns = jnp.sum(out * p["column"], axis=0, keepdims=True), jnp.sum(out * p["row"], axis=1, keepdims=True)
    return {"row": rows, "column": columns, "one": jnp.sum(out, keepdims=True)}


add(
    "axes of size 1",
    lambda p: jnp.sum((p["row"] * p["column"] + p["one"]) ** 2),
    given({"row": normal(1, 3), "column": normal(4, 1), "one": normal(1, 1)}),
    outer_gradient,
)
add("scalar", lambda x: x**2, given(normal()), lambda x: 2 * x, {"halved": scaled("", 0.5)})
add(
    "scalar rate",
    lambda p, x: jnp.sum(p["rate"] * x),
    given({"rate": normal()}, normal(4)),
    wrong={"not summed": (lambda p, x: {"rate": x}, Slip("broadcast", "['rate']"))},
)
add(
    "another argument, with auxiliary output",
    lambda x, w, y: (jnp.mean((x @ w - y) ** 2), {"predictions": x @ w, "count": 3}),
    given(normal(5, 3), normal(3), normal(5)),
    lambda x, w, y: 2 * x.T @ (x @ w - y) / len(y),
    argnums=1,
    has_aux=True,
)
add(
    "a hundred thousand elements",
    summed(jnp.sin),
    given(normal(100_000)),
    jnp.cos,
    {"one of them": one_element("", (12_345,), 1.001)},
)
add("NumPy array returned", lambda x: jnp.sum(3 * x), given(normal(3, 2)), lambda x: np.full(x.shape, 3, x.dtype))
add("Python float returned", lambda x: 3 * x, given(normal()), lambda x: 3.0)
add(
    "computed in NumPy",
    lambda x: jnp.sum(jnp.exp(x / 4)),
    given(normal(5)),
    lambda x: (np.exp(np.asarray(x, np.float64) / 4) / 4).astype(x.dtype),
    traceable=False,
)
