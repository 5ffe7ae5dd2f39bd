"""Gradients of losses with random keys, many dtypes, trees and shapes, and numbers of many magnitudes."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpora.kit import (
    GradCase,
    Slip,
    Subject,
    but,
    exactly,
    fixed,
    given,
    in_dtype,
    normal,
    random_key,
    summed,
    uniform,
    wide,
)

SUBJECT = Subject(GradCase)
right, wrong, twin = SUBJECT.right, SUBJECT.wrong, SUBJECT.twin

# --- Keys, and what is held fixed -------------------------------------------------------------------------------------


def dropout_loss(w, x, key):
    keep = jax.random.bernoulli(key, 0.75, w.shape)
    return jnp.sum((jnp.where(keep, w / 0.75, 0) @ x) ** 2)


def dropout_with(inner, outer):
    def gradient(w, x, key):
        keep = jax.random.bernoulli(key, 0.75, w.shape)
        return jnp.where(keep, 2 * jnp.outer(jnp.where(keep, w / inner, 0) @ x, x) / outer, 0)

    return gradient


dropout = right(
    "dropout", dropout_loss, dropout_with(0.75, 0.75), given(normal(4, 4), normal(4), random_key(3)), keyed=True
)
for name, rule, slip in [
    ("slope not scaled", dropout_with(0.75, 1), Slip("dropout scale", "", factor=0.75)),
    ("scaled by the share dropped", dropout_with(0.75, 0.25), Slip("dropout scale", "", factor=3)),
    ("scaled nowhere", dropout_with(1, 1), Slip("dropout scale", "", factor=0.75**2)),
    ("another mask", lambda w, x, key: dropout.gradient(w, x, jax.random.fold_in(key, 1)), Slip("other", "")),
]:
    wrong(f"dropout, {name}", dropout, rule, slip)


def sample_loss(p, key):
    z = p["mean"] + jnp.exp(p["log_scale"]) * jax.random.normal(key, p["mean"].shape, p["mean"].dtype)
    return jnp.sum(z**2) / 2 - jnp.sum(p["log_scale"])


def sample_gradient(p, key):
    step = jnp.exp(p["log_scale"]) * jax.random.normal(key, p["mean"].shape, p["mean"].dtype)
    return {"mean": p["mean"] + step, "log_scale": (p["mean"] + step) * step - 1}


sample = right(
    "Gaussian sample, reparametrised",
    sample_loss,
    sample_gradient,
    given({"mean": normal(5), "log_scale": normal(5)}, random_key(1)),
    keyed=True,
)
wrong(
    "Gaussian sample, entropy forgotten",
    sample,
    but(sample_gradient, "['log_scale']", lambda leaf: leaf + 1),
    Slip("missing term", "['log_scale']"),
)
right(
    "around a mean held fixed",
    lambda x: jnp.sum((x - lax.stop_gradient(jnp.mean(x))) ** 4),
    lambda x: 4 * (x - jnp.mean(x)) ** 3,
    given(normal(6)),
)
wrong(
    "around a mean that is not held fixed",
    twin(lambda x: jnp.sum((x - jnp.mean(x)) ** 4), given(normal(6))),
    lambda x: 4 * (x - jnp.mean(x)) ** 3,
    Slip("missing term", ""),
)
right(
    "temporal difference, the target held fixed",
    lambda w, x, after, reward: jnp.mean((reward + 0.9 * lax.stop_gradient(after @ w) - x @ w) ** 2),
    lambda w, x, after, reward: -2 * x.T @ (reward + 0.9 * after @ w - x @ w) / len(x),
    given(normal(3), normal(5, 3), normal(5, 3), normal(5)),
)

# --- Dtypes, trees and shapes -----------------------------------------------------------------------------------------


def mixed_loss(p, x):
    wider = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.sum((jnp.matmul(x, p["weights"], preferred_element_type=wider) + p["bias"]) ** 2) / 2


def mixed_gradient(p, x):
    wider = jnp.promote_types(x.dtype, jnp.float32)
    out = jnp.matmul(x, p["weights"], preferred_element_type=wider) + p["bias"]
    return {"weights": (wide(x).T @ out).astype(p["weights"].dtype), "bias": jnp.sum(out, axis=0)}


right(
    "bfloat16 weights beside a float32 bias",
    mixed_loss,
    mixed_gradient,
    given(
        {"weights": in_dtype(jnp.bfloat16, normal(4, 3)), "bias": in_dtype(jnp.float32, normal(3))},
        in_dtype(jnp.bfloat16, normal(5, 4)),
    ),
)
right(
    "integers and booleans among the arguments",
    lambda p, batch: (
        jnp.sum(jnp.where(batch["keep"], p["w"][batch["ids"]], 0) * batch["counts"]) + p["b"][0] * p["b"][1]
    ),
    lambda p, batch: {
        "w": jnp.zeros_like(p["w"])
        .at[batch["ids"]]
        .add(jnp.where(batch["keep"], batch["counts"], 0).astype(p["w"].dtype)),
        "b": (p["b"][1], p["b"][0]),
    },
    given(
        {"w": normal(4), "b": (normal(), normal())},
        {"ids": fixed([3, 1, 1]), "keep": fixed([True, True, False], bool), "counts": fixed([2, 5, 7])},
    ),
)
right(
    "lists, tuples and dictionaries, nested",
    lambda p: p["layers"][0]["w"] @ p["layers"][1]["w"] * p["scale"][0] + jnp.sum(p["scale"][1] ** 2),
    lambda p: {
        "layers": [{"w": p["scale"][0] * p["layers"][1]["w"]}, {"w": p["scale"][0] * p["layers"][0]["w"]}],
        "scale": (p["layers"][0]["w"] @ p["layers"][1]["w"], 2 * p["scale"][1]),
    },
    given({"layers": [{"w": normal(3)}, {"w": normal(3)}], "scale": (normal(), normal(2, 2))}),
)
right(
    "a leaf without elements",
    lambda p: jnp.sum(p["none"]) + jnp.sum(p["some"] ** 2),
    lambda p: {"none": jnp.ones_like(p["none"]), "some": 2 * p["some"]},
    given({"none": normal(0, 3), "some": normal(2)}),
)
right("a scalar", lambda x: x**3 - x, lambda x: 3 * x**2 - 1, given(normal()))
right(
    "axes of size 1",
    lambda p: jnp.sum((p["row"] * p["column"] + p["one"]) ** 2),
    lambda p: {
        "row": 2 * jnp.sum((p["row"] * p["column"] + p["one"]) * p["column"], axis=0, keepdims=True),
        "column": 2 * jnp.sum((p["row"] * p["column"] + p["one"]) * p["row"], axis=1, keepdims=True),
        "one": 2 * jnp.sum(p["row"] * p["column"] + p["one"], keepdims=True),
    },
    given({"row": normal(1, 3), "column": normal(4, 1), "one": normal(1, 1)}),
)
wrong(
    "size-1 axes, the column's rows lumped together",
    twin(lambda p: jnp.sum((p["row"] * p["column"]) ** 2), given({"row": normal(1, 3), "column": normal(4, 1)})),
    lambda p: {
        "row": 2 * jnp.sum(p["row"] * p["column"] ** 2, axis=0, keepdims=True),
        "column": jnp.full_like(p["column"], 2 * jnp.sum(p["row"] ** 2 * p["column"])),
    },
    Slip("broadcast", "['column']"),
)
wrong(
    "scalar rate, not summed",
    twin(lambda p, x: jnp.sum(p["rate"] * x), given({"rate": normal()}, normal(4))),
    lambda p, x: {"rate": x},
    Slip("broadcast", "['rate']"),
)
right(
    "another argument, with auxiliary output",
    lambda x, w, y: (jnp.mean((x @ w - y) ** 2), {"predictions": x @ w, "count": 3}),
    lambda x, w, y: 2 * x.T @ (x @ w - y) / len(y),
    given(normal(5, 3), normal(3), normal(5)),
    argnums=1,
    has_aux=True,
)
million = right("a million elements", summed(jnp.sin), jnp.cos, given(normal(1_000_000)))
many = million._replace(args=given(normal(100_000)))
SUBJECT.element("one of a hundred thousand elements", many, "", (12_345,), 1.001)
right(
    "NumPy array returned",
    lambda x: jnp.sum(3 * x),
    lambda x: np.full(x.shape, 3, x.dtype),
    given(normal(3, 2)),
)
right("Python float returned", lambda x: 3 * x, lambda x: 3.0, given(normal()))
right(
    "computed in NumPy",
    lambda x: jnp.sum(jnp.exp(x / 4)),
    lambda x: (np.exp(np.asarray(x, np.float64) / 4) / 4).astype(x.dtype),
    given(normal(5)),
    traceable=False,
)
right(
    "Rosenbrock's function, order two",
    lambda x: jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2),
    lambda x: (
        jnp.zeros_like(x)
        .at[1:]
        .add(200 * (x[1:] - x[:-1] ** 2))
        .at[:-1]
        .add(-400 * x[:-1] * (x[1:] - x[:-1] ** 2) - 2 * (1 - x[:-1]))
    ),
    given(normal(5)),
    order=2,
)

# --- Magnitudes, cancellation and stability ---------------------------------------------------------------------------

right("tiny", summed(lambda x: x * x / 2), lambda x: x, given(normal(5, scale=1e-30)))
right("huge", lambda x: 1e30 * jnp.sum(jnp.sin(x)), lambda x: 1e30 * jnp.cos(x), given(normal(5)))


def unequal_loss(p):
    return 1e8 * jnp.sum(jnp.sin(p["large"])) + 1e-8 * jnp.sum(jnp.sin(p["small"]))


def unequal_gradient(p):
    return {"large": 1e8 * jnp.cos(p["large"]), "small": 1e-8 * jnp.cos(p["small"])}


unequal = right(
    "leaves of 1e8 and 1e-8", unequal_loss, unequal_gradient, given({"large": normal(4), "small": normal(4)})
)
SUBJECT.factor("leaf of 1e-8 doubled beside one of 1e8", unequal, "['small']", 2)
flat = right(
    "softmax sums to 1: slope 0",
    lambda x: jnp.sum(jax.nn.softmax(x)),
    jnp.zeros_like,
    given(normal(4, 5)),
    rounding=1e-15,
)
wrong(
    "softmax sums to 1, said to have a slope of a millionth",
    flat,
    lambda x: jnp.full_like(x, 1e-6),
    Slip("other", ""),
)
right(
    "deviations sum to 0: slope 0",
    lambda x: jnp.sum(x - jnp.mean(x)),
    jnp.zeros_like,
    given(normal(7)),
    rounding=1e-14,
)
right("flat plateau", summed(jnp.tanh), jnp.zeros_like, given(exactly([400, -500, 1000])))
right(
    "plateau and slope side by side",
    summed(jax.nn.sigmoid),
    lambda x: jax.nn.sigmoid(x) * jax.nn.sigmoid(-x),
    given(exactly([-80, -40, 0.5, 40, 80])),
)
right(
    "sum with cancellation, the other way round",
    lambda x: jnp.sum(x) ** 2,
    lambda x: jnp.full_like(x, 2 * jnp.sum(x[::-1])),
    given(exactly([1e4, 0.125, -1e4, 3e3, 0.5, -3e3, 0.0625])),
    rounding=1e-11,
)
right(
    "hypotenuse of 1e30",
    lambda p: jnp.sum(jnp.sqrt(p["x"] ** 2 + p["y"] ** 2)),
    lambda p: {name: 1 / jnp.sqrt(1 + (p[other] / p[name]) ** 2) for name, other in (("x", "y"), ("y", "x"))},
    given({"x": uniform(4, low=1e30, high=3e30), "y": uniform(4, low=1e30, high=3e30)}),
)
right(
    "quotient of 1e30, whose square overflows in autodiff",
    lambda p: jnp.sum(p["x"] / p["y"]),
    lambda p: {"x": 1 / p["y"], "y": -(p["x"] / p["y"]) / p["y"]},
    given({"x": uniform(4, low=1e30, high=3e30), "y": uniform(4, low=1e30, high=3e30)}),
)
right(
    "naive softplus at 100, whose slope is stable",
    summed(lambda x: jnp.log(1 + jnp.exp(x))),
    jax.nn.sigmoid,
    given(exactly([100, 90, -100, 1])),
)
right(
    "naive log-sum-exp at 100, whose slope is stable",
    lambda x: jnp.log(jnp.sum(jnp.exp(x))),
    jax.nn.softmax,
    given(exactly([100, 101, 99])),
)
right(
    "difference of square roots, without cancellation",
    summed(lambda x: jnp.sqrt(x + 1) - jnp.sqrt(x)),
    lambda x: -0.5 / (jnp.sqrt(x) * jnp.sqrt(x + 1) * (jnp.sqrt(x) + jnp.sqrt(x + 1))),
    given(exactly([1, 16, 100, 1000])),
)
