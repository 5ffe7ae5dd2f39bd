"""Gradients of the parts of networks: normalisation, softmax, attention."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpora.kit import WORKING, GradCase, Slip, Subject, but, fixed, given, normal

SUBJECT = Subject(GradCase)
right, wrong, factor, element = SUBJECT.right, SUBJECT.wrong, SUBJECT.factor, SUBJECT.element

# --- Normalisation ----------------------------------------------------------------------------------------------------


def standardise(x, axis, epsilon=1e-5):
    centred = x - jnp.mean(x, axis=axis, keepdims=True)
    inverse = lax.rsqrt(jnp.mean(centred**2, axis=axis, keepdims=True) + epsilon)
    return centred * inverse, inverse


def standardise_back(hat, inverse, g, axis):
    projected = hat * jnp.mean(g * hat, axis=axis, keepdims=True)
    return inverse * (g - jnp.mean(g, axis=axis, keepdims=True) - projected)


def norm_loss(axis):
    return lambda p, c: jnp.sum(c * (p["scale"] * standardise(p["x"], axis)[0] + p["shift"]))


def norm_gradient(axis):
    def gradient(p, c):
        hat, inverse = standardise(p["x"], axis)
        return {
            "x": standardise_back(hat, inverse, c * p["scale"], axis),
            "scale": jnp.sum(c * hat, axis=0),
            "shift": jnp.sum(c, axis=0),
        }

    return gradient


layer_norm = right(
    "layer norm",
    norm_loss(1),
    norm_gradient(1),
    given({"x": normal(4, 4), "scale": normal(4), "shift": normal(4)}, normal(4, 4)),
)
batch_norm = right("batch norm", norm_loss(0), norm_gradient(0), layer_norm.args)


def slipped_norm(change, axis=1):
    """The gradient of a norm with what ``change(p, c, hat, inverse)`` says instead."""

    def gradient(p, c):
        return {**norm_gradient(axis)(p, c), **change(p, c, *standardise(p["x"], 1))}

    return gradient


def norm_without(term):
    def change(p, c, hat, inverse):
        g = c * p["scale"]
        dx = g - (0 if term == "mean" else jnp.mean(g, axis=1, keepdims=True))
        dx = dx - (0 if term == "projection" else hat * jnp.mean(g * hat, axis=1, keepdims=True))
        return {"x": inverse * dx}

    return slipped_norm(change)


factor("layer norm, scale negated", layer_norm, "['scale']", -1)
for name, rule, slip in [
    ("mean forgotten", norm_without("mean"), Slip("missing term", "['x']")),
    ("projection forgotten", norm_without("projection"), Slip("missing term", "['x']")),
    (
        "shift summed over features",
        slipped_norm(lambda p, c, hat, inverse: {"shift": jnp.sum(c, axis=1)}),
        Slip("axis", "['shift']"),
    ),
    (
        "scale summed over features",
        slipped_norm(lambda p, c, hat, inverse: {"scale": jnp.sum(c * hat, axis=1)}),
        Slip("axis", "['scale']"),
    ),
    (
        "shift of the first row for all",
        slipped_norm(lambda p, c, hat, inverse: {"shift": c[0]}),
        Slip("broadcast", "['shift']"),
    ),
]:
    wrong(f"layer norm, {name}", layer_norm, rule, slip)
wrong(
    "batch norm, the gradient of layer norm",
    batch_norm,
    slipped_norm(lambda p, c, hat, inverse: {"x": standardise_back(hat, inverse, c * p["scale"], 1)}, axis=0),
    Slip("axis", "['x']"),
)


def group_norm_loss(x, c):
    return jnp.sum(c * standardise(x.reshape(3, 2, 4), 2)[0].reshape(x.shape))


def group_norm_gradient(x, c):
    hat, inverse = standardise(x.reshape(3, 2, 4), 2)
    return standardise_back(hat, inverse, c.reshape(3, 2, 4), 2).reshape(x.shape)


right("group norm", group_norm_loss, group_norm_gradient, given(normal(3, 8), normal(3, 8)))


def rms_norm_loss(p, c):
    x = p["x"]
    return jnp.sum(c * p["scale"] * x * lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6))


def rms_norm_gradient(p, c):
    inverse = lax.rsqrt(jnp.mean(p["x"] ** 2, axis=-1, keepdims=True) + 1e-6)
    hat, g = p["x"] * inverse, c * p["scale"]
    return {"x": inverse * (g - hat * jnp.mean(g * hat, axis=-1, keepdims=True)), "scale": jnp.sum(c * hat, axis=0)}


rms_norm = right(
    "RMS norm", rms_norm_loss, rms_norm_gradient, given({"x": normal(3, 5), "scale": normal(5)}, normal(3, 5))
)
factor("RMS norm, mean over the batch for the scale", rms_norm, "['scale']", 1 / 3, "mean for sum")


def softmax_loss(x, c):
    return jnp.sum(c * jax.nn.softmax(x))


def softmax_gradient(x, c):
    s = jax.nn.softmax(x)
    return s * (c - jnp.sum(c * s, axis=-1, keepdims=True))


softmax = right("softmax", softmax_loss, softmax_gradient, given(normal(3, 4), normal(3, 4)))
right(
    "log-softmax",
    lambda x, c: jnp.sum(c * jax.nn.log_softmax(x)),
    lambda x, c: c - jax.nn.softmax(x) * jnp.sum(c, axis=-1, keepdims=True),
    softmax.args,
)


def softmax_over_rows(x, c):
    s = jax.nn.softmax(x)
    return s * (c - jnp.sum(c * s, axis=0, keepdims=True))


wrong("softmax, its own slope only", softmax, lambda x, c: c * jax.nn.softmax(x), Slip("missing term", ""))
wrong("softmax, projected along the batch", softmax, softmax_over_rows, Slip("axis", ""))


def normalise_gradient(x, c):
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    unit = x / length
    return (c - unit * jnp.sum(unit * c, axis=-1, keepdims=True)) / length


unit_rows = right(
    "l2-normalise",
    lambda x, c: jnp.sum(c * x / jnp.linalg.norm(x, axis=-1, keepdims=True)),
    normalise_gradient,
    softmax.args,
)
wrong(
    "l2-normalise, length taken as fixed",
    unit_rows,
    lambda x, c: c / jnp.linalg.norm(x, axis=-1, keepdims=True),
    Slip("missing term", ""),
)


def weight_norm_loss(p, x, c):
    return jnp.sum(c * (x @ (p["length"] * p["v"] / jnp.linalg.norm(p["v"], axis=0))))


def weight_norm_gradient(p, x, c):
    norm = jnp.linalg.norm(p["v"], axis=0)
    unit, dw = p["v"] / norm, x.T @ c
    along = jnp.sum(dw * unit, axis=0)
    return {"length": along, "v": p["length"] / norm * (dw - unit * along)}


weight_norm = right(
    "weight norm",
    weight_norm_loss,
    weight_norm_gradient,
    given({"length": normal(3), "v": normal(4, 3)}, normal(5, 4), normal(5, 3)),
)
factor("weight norm, mean for the length", weight_norm, "['length']", 1 / 4, "mean for sum")
factor("weight norm, v by a millionth", weight_norm, "['v']", 1 + 1e-6, "relative")
right(
    "bias before a batch norm: slope 0",
    lambda p, x, c: jnp.sum(c * standardise(x * p["w"] + p["b"], 0)[0]),
    lambda p, x, c: {
        "w": jnp.sum(x * standardise_back(*standardise(x * p["w"] + p["b"], 0), c, 0), axis=0),
        "b": jnp.zeros_like(p["b"]),
    },
    given({"w": normal(3), "b": normal(3)}, normal(6, 3), normal(6, 3)),
    rounding=1e-14,
)
wrong(
    "bias before a batch norm, said to have a slope",
    SUBJECT.twin(lambda b, x, c: jnp.sum(c * standardise(x + b, 0)[0]), given(normal(3), normal(6, 3), normal(6, 3))),
    lambda b, x, c: jnp.sum(c * standardise(x + b, 0)[1], axis=0),
    Slip("missing term", ""),
)


def one_pass_norm(x, c):
    mean = jnp.mean(x)
    inverse = lax.rsqrt(jnp.mean(x * x) - mean * mean + 1e-5)
    hat = (x - mean) * inverse
    return inverse * (c - jnp.mean(c) - hat * jnp.mean(c * hat))


wrong(
    "layer norm, variance in one pass",
    SUBJECT.twin(lambda x, c: jnp.sum(c * standardise(x, 0)[0]), given(normal(16, scale=8, shift=1000), normal(16))),
    one_pass_norm,
    Slip("precision", "", dtypes=WORKING),
)

# --- Attention --------------------------------------------------------------------------------------------------------


def attend(p, mask):
    scores = p["q"] @ p["k"].T / math.sqrt(p["q"].shape[-1])
    return jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))


def attention_loss(p, mask, c):
    return jnp.sum(c * (attend(p, mask) @ p["v"]))


def back_to_scores(p, mask, c):
    weights, da = attend(p, mask), c @ p["v"].T
    return weights * (da - jnp.sum(da * weights, axis=-1, keepdims=True)) / math.sqrt(p["q"].shape[-1])


def attention_gradient(p, mask, c):
    ds = back_to_scores(p, mask, c)
    return {"q": ds @ p["k"], "k": ds.T @ p["q"], "v": attend(p, mask).T @ c}


QKV = {"q": normal(4, 4), "k": normal(4, 4), "v": normal(4, 4)}
attention = right(
    "attention",
    attention_loss,
    attention_gradient,
    given(QKV, fixed(np.ones((4, 4), bool), bool), normal(4, 4)),
)
causal = right(
    "attention, causal",
    attention_loss,
    attention_gradient,
    given(QKV, fixed(np.tri(4, dtype=bool), bool), normal(4, 4)),
)
factor("attention, root of the width forgotten for q", attention, "['q']", 2)
SUBJECT.swapped("attention, q and k swapped", causal, "q", "k")
wrong(
    "attention, a NaN in one element",
    causal,
    but(attention_gradient, "['v']", lambda v: v.at[2, 1].set(jnp.nan)),
    Slip("nonfinite", "['v']", (2, 1)),
)
wrong(
    "attention, mask forgotten in v",
    causal,
    lambda p, mask, c: {**attention_gradient(p, mask, c), "v": attend(p, True).T @ c},
    Slip("other", "['v']"),
)
wrong(
    "attention, k by ds instead of its transpose",
    attention,
    lambda p, mask, c: {**attention_gradient(p, mask, c), "k": back_to_scores(p, mask, c) @ p["q"]},
    Slip("other", "['k']"),
)


def heads(p, x):
    q, k, v = (jnp.einsum("td,dhe->hte", x, p[name]) for name in "qkv")
    scores = jnp.einsum("hte,hse->hts", q, k) / math.sqrt(q.shape[-1])
    return q, k, v, jax.nn.softmax(jnp.where(jnp.tri(len(x), dtype=bool), scores, -jnp.inf))


def multi_head_loss(p, x, c):
    _, _, v, weights = heads(p, x)
    return jnp.sum(c * jnp.einsum("hts,hse,hed->td", weights, v, p["o"]))


def multi_head_gradient(p, x, c):
    q, k, v, weights = heads(p, x)
    out, dout = jnp.einsum("hts,hse->hte", weights, v), jnp.einsum("td,hed->hte", c, p["o"])
    da = jnp.einsum("hte,hse->hts", dout, v)
    ds = weights * (da - jnp.sum(da * weights, axis=-1, keepdims=True)) / math.sqrt(q.shape[-1])
    return {
        "q": jnp.einsum("td,hts,hse->dhe", x, ds, k),
        "k": jnp.einsum("sd,hts,hte->dhe", x, ds, q),
        "v": jnp.einsum("sd,hts,hte->dhe", x, weights, dout),
        "o": jnp.einsum("hte,td->hed", out, c),
    }


multi_head = right(
    "multi-head attention, causal",
    multi_head_loss,
    multi_head_gradient,
    given(
        {"q": normal(4, 2, 2), "k": normal(4, 2, 2), "v": normal(4, 2, 2), "o": normal(2, 2, 4)},
        normal(5, 4),
        normal(5, 4),
    ),
)
factor("multi-head attention, output doubled", multi_head, "['o']", 2)
element("multi-head attention, one element", multi_head, "['k']", (3, 1, 0), 0.9)


def rotate(x, sign=1):
    angle = jnp.asarray(np.outer(np.arange(x.shape[0]), 10.0 ** -np.arange(x.shape[1] // 2)), x.dtype)
    even, odd, cos, sin = x[:, ::2], x[:, 1::2], jnp.cos(angle), sign * jnp.sin(angle)
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)


rotary = right(
    "rotary embedding",
    lambda x, c: jnp.sum(c * rotate(x)),
    lambda x, c: rotate(c, -1),
    given(normal(5, 4), normal(5, 4)),
)
wrong("rotary embedding, turned on", rotary, lambda x, c: rotate(c), Slip("other", ""))
