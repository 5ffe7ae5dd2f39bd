"""Wrong gradients of plain losses: factors, transposes, axes, sides, domains. One slip each."""

import jax
import jax.numpy as jnp

from corpora.kit import GradCase, Slip, but, exactly, given, normal, summed, times
from corpora.right_math import (
    ARCTAN2,
    BILINEAR,
    CONTRASTIVE,
    CRF,
    INVERSE,
    LINEAR,
    LOGITS,
    NEAR_DIAGONAL,
    OBLONG,
    OBLONG_LINEAR,
    SOLVE,
    SOME,
    SQUARE,
    SWIGLU,
    TRIPLET,
    arctan2_gradient,
    arctan2_loss,
    bilinear_gradient,
    bilinear_loss,
    contrastive_gradient,
    contrastive_loss,
    crf_gradient,
    crf_loss,
    cross_entropy,
    gelu_slope,
    huber,
    inverse_gradient,
    inverse_loss,
    linear_gradient,
    linear_loss,
    log_determinant_gradient,
    log_determinant_loss,
    product_gradient,
    product_loss,
    solve_gradient,
    solve_loss,
    swiglu_gradient,
    swiglu_loss,
    triplet_gradient,
    triplet_loss,
)
from corpora.right_networks import (
    ATTENTION,
    CAUSAL,
    CONV2D,
    EULER,
    GRU,
    LSTM,
    MULTI_HEAD,
    NORM,
    POWER,
    RMS_NORM,
    RNN,
    SEGMENTS,
    SOFTMAX,
    WEIGHT_NORM,
    attention_gradient,
    attention_loss,
    conv2d_gradient,
    conv2d_loss,
    euler,
    euler_gradient,
    gru_gradient,
    gru_loss,
    lstm_gradient,
    lstm_loss,
    multi_head_gradient,
    multi_head_loss,
    norm_gradient,
    norm_loss,
    power_gradient,
    power_loss,
    rms_norm_gradient,
    rms_norm_loss,
    rnn_gradient,
    rnn_loss,
    segments_gradient,
    segments_loss,
    softmax_loss,
    standardise,
    weight_norm_gradient,
    weight_norm_loss,
)
from corpora.right_numbers import UNEQUAL, unequal_gradient, unequal_loss

WRONG: list[GradCase] = []


def wrong(name, loss, gradient, args, slip, **options):
    WRONG.append(GradCase(name, loss, gradient, args, slip=slip, **options))


def swapped(rule, one, other):
    def gradient(*args):
        right = rule(*args)
        return {**right, one: right[other], other: right[one]}

    return gradient


# --- A factor ---------------------------------------------------------------------------------------------------------

for name, loss, rule, args, leaf, factor in [
    ("mean squared error, bias negated", linear_loss, linear_gradient, LINEAR, "['b']", -1),
    ("mean squared error, weights doubled", linear_loss, linear_gradient, OBLONG_LINEAR, "['w']", 2),
    (
        "InfoNCE, temperature forgotten for the text",
        contrastive_loss,
        contrastive_gradient,
        CONTRASTIVE,
        "['text']",
        0.5,
    ),
    ("triplet, far negated", triplet_loss, triplet_gradient, TRIPLET, "['far']", -1),
    ("attention, root of the width forgotten for q", attention_loss, attention_gradient, ATTENTION, "['q']", 2),
    ("convolution, kernel halved", conv2d_loss, conv2d_gradient, CONV2D, "['w']", 0.5),
    ("layer norm, scale negated", norm_loss(1), norm_gradient(1), NORM, "['scale']", -1),
    ("LSTM, bias doubled", lstm_loss, lstm_gradient, LSTM, "['b']", 2),
    ("multi-head attention, output doubled", multi_head_loss, multi_head_gradient, MULTI_HEAD, "['o']", 2),
    ("leaf of 1e-8 doubled beside one of 1e8", unequal_loss, unequal_gradient, UNEQUAL, "['small']", 2),
    ("power spectrum, length forgotten", power_loss, power_gradient, POWER, "", 1 / 8),
    ("segment sum, halved", segments_loss, segments_gradient, SEGMENTS, "", 0.5),
    ("GRU, new_h negated", gru_loss, gru_gradient, GRU, "['new_h']", -1),
    ("arctan2, x negated", arctan2_loss, arctan2_gradient, ARCTAN2, "['x']", -1),
]:
    wrong(name, loss, but(rule, leaf, times(factor)), args, Slip("factor", leaf, factor=factor))
wrong(
    "cross-entropy, sum over the batch for its mean",
    cross_entropy,
    lambda z, labels: jax.nn.softmax(z) - jax.nn.one_hot(labels, z.shape[1], dtype=z.dtype),
    LOGITS,
    Slip("factor", "", factor=6),
)
wrong(
    "mean squared error, divided by the points alone",
    linear_loss,
    lambda *args: jax.tree.map(lambda leaf: 3 * leaf, linear_gradient(*args)),
    LINEAR,
    Slip("factor", None, factor=3),
)
wrong(
    "a scalar, halved",
    lambda x: x**2,
    lambda x: x,
    given(normal()),
    Slip("factor", "", (), factor=0.5),
)

# --- Transposed, swapped ----------------------------------------------------------------------------------------------

for name, loss, rule, args, leaf in [
    ("matrix product, square, a transposed", product_loss, product_gradient, SQUARE, "['a']"),
    ("matrix product, oblong, b transposed", product_loss, product_gradient, OBLONG, "['b']"),
    ("mean squared error, square weights transposed", linear_loss, linear_gradient, LINEAR, "['w']"),
    ("bilinear form, matrix transposed", bilinear_loss, bilinear_gradient, BILINEAR, "['m']"),
    ("log-determinant, inverse not transposed", log_determinant_loss, log_determinant_gradient, NEAR_DIAGONAL, ""),
    ("inverse, transposed", inverse_loss, inverse_gradient, INVERSE, ""),
    ("linear system, matrix transposed", solve_loss, solve_gradient, SOLVE, "['m']"),
    ("recurrent network, hidden weights transposed", rnn_loss, rnn_gradient, RNN, "['hidden']"),
    ("Euler's adjoint, transposed", lambda w, z, c: c @ euler(w, z)[0], euler_gradient, EULER, ""),
    ("random field, transition transposed", crf_loss, crf_gradient, CRF, "['transition']"),
]:
    wrong(name, loss, but(rule, leaf, jnp.transpose), args, Slip("transposed", leaf))
wrong(
    "convolution, kernel transposed",
    conv2d_loss,
    but(conv2d_gradient, "['w']", lambda w: jnp.swapaxes(w, 2, 3)),
    CONV2D,
    Slip("transposed", "['w']"),
)
for name, loss, rule, args, one, other in [
    ("bilinear form, x and y swapped", bilinear_loss, bilinear_gradient, BILINEAR, "x", "y"),
    ("arctan2, x and y swapped", arctan2_loss, arctan2_gradient, ARCTAN2, "x", "y"),
    ("SwiGLU, gate and up swapped", swiglu_loss, swiglu_gradient, SWIGLU, "gate", "up"),
    ("attention, q and k swapped", attention_loss, attention_gradient, CAUSAL, "q", "k"),
]:
    wrong(name, loss, swapped(rule, one, other), args, Slip("swapped", None))

# --- Reduced over the wrong axis, or not summed -----------------------------------------------------------------------


def bias_over_outputs(p, x, y):
    error = 2 * (x @ p["w"] + p["b"] - y) / y.size
    return {"w": x.T @ error, "b": jnp.sum(error, axis=1)}


def shift_over_features(p, c):
    return {**norm_gradient(1)(p, c), "shift": jnp.sum(c, axis=1)}


def scale_over_features(p, c):
    hat, _ = standardise(p["x"], 1)
    return {**norm_gradient(1)(p, c), "scale": jnp.sum(c * hat, axis=1)}


def softmax_over_rows(x, c):
    s = jax.nn.softmax(x)
    return s * (c - jnp.sum(c * s, axis=0, keepdims=True))


wrong("mean squared error, bias summed over outputs", linear_loss, bias_over_outputs, LINEAR, Slip("axis", "['b']"))
wrong("layer norm, shift summed over features", norm_loss(1), shift_over_features, NORM, Slip("axis", "['shift']"))
wrong("layer norm, scale summed over features", norm_loss(1), scale_over_features, NORM, Slip("axis", "['scale']"))
wrong("softmax, projected along the batch", softmax_loss, softmax_over_rows, SOFTMAX, Slip("axis", ""))
wrong(
    "batch norm, the gradient of layer norm",
    norm_loss(0),
    lambda p, c: {**norm_gradient(0)(p, c), "x": norm_gradient(1)(p, c)["x"]},
    NORM,
    Slip("axis", "['x']"),
)
for name, loss, rule, args, leaf, n in [
    ("mean squared error, mean for the bias", linear_loss, linear_gradient, LINEAR, "['b']", 3),
    ("recurrent network, mean over time for the bias", rnn_loss, rnn_gradient, RNN, "['bias']", 5),
    ("RMS norm, mean over the batch for the scale", rms_norm_loss, rms_norm_gradient, RMS_NORM, "['scale']", 3),
    ("weight norm, mean for the length", weight_norm_loss, weight_norm_gradient, WEIGHT_NORM, "['length']", 4),
]:
    slip = Slip("mean for sum", leaf, factor=1 / n)
    wrong(name, loss, but(rule, leaf, lambda leaf, n=n: leaf / n), args, slip)
wrong(
    "size-1 axes, the column's rows lumped together",
    lambda p: jnp.sum((p["row"] * p["column"]) ** 2),
    lambda p: {
        "row": 2 * jnp.sum(p["row"] * p["column"] ** 2, axis=0, keepdims=True),
        "column": jnp.full_like(p["column"], 2 * jnp.sum(p["row"] ** 2 * p["column"])),
    },
    given({"row": normal(1, 3), "column": normal(4, 1)}),
    Slip("broadcast", "['column']"),
)
wrong(
    "bias: one number spread over all",
    linear_loss,
    but(linear_gradient, "['b']", lambda b: jnp.full_like(b, jnp.sum(b))),
    LINEAR,
    Slip("broadcast", "['b']"),
)
wrong(
    "layer norm, shift of the first row for all",
    norm_loss(1),
    lambda p, c: {**norm_gradient(1)(p, c), "shift": c[0]},
    NORM,
    Slip("broadcast", "['shift']"),
)
wrong(
    "scalar rate, not summed",
    lambda p, x: jnp.sum(p["rate"] * x),
    lambda p, x: {"rate": x},
    given({"rate": normal()}, normal(4)),
    Slip("broadcast", "['rate']"),
)

# --- One-sided, domain, not finite ------------------------------------------------------------------------------------

for name, f, slope in [
    ("ELU, slope 1 everywhere", jax.nn.elu, jnp.ones_like),
    ("softsign, without the absolute value", lambda x: x / (1 + jnp.abs(x)), lambda x: 1 / (1 + x) ** 2),
    ("log(1 + |x|), without the sign", lambda x: jnp.log1p(jnp.abs(x)), lambda x: 1 / (1 + jnp.abs(x))),
    ("leaky relu, dead below 0", lambda x: jax.nn.leaky_relu(x, 0.01), lambda x: (x > 0).astype(x.dtype)),
    ("cube of |x|, as that of x", lambda x: jnp.abs(x) ** 3, lambda x: 3 * x**2),
]:
    wrong(name, summed(f), slope, SOME, Slip("one-sided", ""))
FAR = given(exactly([0.5, -0.25, 0.75, 4, -7, 12]))


def gelu_cut(x):
    return jnp.where(jnp.abs(x) > 3, (x > 0).astype(x.dtype), gelu_slope(x))


def sigmoid_cut(x):
    return jnp.where(jnp.abs(x) > 10, 0, jax.nn.sigmoid(x) * jax.nn.sigmoid(-x))


def cosine_series(x):
    return 1 - x**2 / 2 + x**4 / 24 - x**6 / 720 + x**8 / 40320


for name, f, slope, args in [
    ("Huber, slope x beyond 1", huber, lambda x: x, FAR),
    (
        "GELU, taken as relu beyond 3",
        lambda x: jax.nn.gelu(x, approximate=False),
        gelu_cut,
        given(exactly([0.5, -1, 2, 3.25, -3.5])),
    ),
    ("relu6, without its ceiling", lambda x: jnp.clip(x, 0, 6), lambda x: (x > 0).astype(x.dtype), FAR),
    ("sigmoid, no slope beyond 10", jax.nn.sigmoid, sigmoid_cut, given(exactly([0.5, -3, 11, -12]))),
    ("exponential, clipped at 5", jnp.exp, lambda x: jnp.exp(jnp.minimum(x, 5)), FAR),
    ("sine, by five terms of a series", jnp.sin, cosine_series, given(exactly([1 / 64, -1 / 128, 1, 3]))),
]:
    wrong(name, summed(f), slope, args, Slip("domain", ""))
wrong(
    "binary cross-entropy, logits clipped at 30",
    lambda z, y: jnp.mean(jax.nn.softplus(z) - y * z),
    lambda z, y: jnp.where(jnp.abs(z) > 30, 0, jax.nn.sigmoid(z) - y) / z.size,
    given(exactly([1, -2, 40, -50]), exactly([1, 0, 0, 1])),
    Slip("domain", ""),
)
wrong(
    "cumulative product by division, at 0",
    lambda x, c: jnp.sum(c * jnp.cumprod(x)),
    lambda x, c: jnp.cumsum((c * jnp.cumprod(x))[::-1])[::-1] / x,
    given(exactly([2, 0.5, 0, 3]), normal(4)),
    Slip("nonfinite", ""),
)
wrong(
    "sinc, unguarded at 0",
    summed(lambda x: jnp.where(x == 0, 1, jnp.sin(jnp.where(x == 0, 1, x)) / jnp.where(x == 0, 1, x))),
    lambda x: (jnp.cos(x) - jnp.sin(x) / x) / x,
    given(exactly([0, 1, -2])),
    Slip("nonfinite", "", (0,)),
)
wrong(
    "softplus by exp(x) / (1 + exp(x)), at 1000",
    summed(jax.nn.softplus),
    lambda x: jnp.exp(x) / (1 + jnp.exp(x)),
    given(exactly([1000, 1, -1])),
    Slip("nonfinite", "", (0,)),
)
wrong(
    "attention, a NaN in one element",
    attention_loss,
    but(attention_gradient, "['v']", lambda v: v.at[2, 1].set(jnp.nan)),
    CAUSAL,
    Slip("nonfinite", "['v']", (2, 1)),
)
wrong(
    "x |x|, infinite at 0",
    summed(lambda x: x * jnp.abs(x)),
    lambda x: jnp.where(x == 0, jnp.inf, 2 * jnp.abs(x)),
    given(exactly([1, 0, -2])),
    Slip("nonfinite", "", (1,)),
)
