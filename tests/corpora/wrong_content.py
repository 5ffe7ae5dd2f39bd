"""Wrong gradients of plain losses: terms, elements, orders, precision, structure, indices. One slip each."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpora.kit import WORKING, GradCase, Slip, at, but, exactly, fixed, given, integers, normal, summed, times
from corpora.right_math import (
    CONTRASTIVE,
    CRF,
    CTC,
    FOCAL,
    GAUSSIAN,
    LINEAR,
    LOGISTIC,
    LOGITS,
    NEAR_DIAGONAL,
    OBLONG_LINEAR,
    QUADRATIC,
    REVERSE_KL,
    SOME,
    classifier_gradient,
    classifier_loss,
    contrastive_gradient,
    contrastive_loss,
    crf_gradient,
    crf_loss,
    cross_entropy,
    cross_entropy_gradient,
    ctc_gradient,
    ctc_loss,
    focal_gradient,
    focal_loss,
    likelihood_gradient,
    likelihood_loss,
    linear_gradient,
    linear_loss,
    log_determinant_gradient,
    log_determinant_loss,
    logistic_gradient,
    logistic_loss,
    mish,
    normal_cdf,
    quadratic_loss,
    reverse_kl_loss,
)
from corpora.right_networks import (
    ATTENTION,
    CAUSAL,
    CONV1D,
    CONV2D,
    EMBEDDING,
    FIXED_POINT,
    GRU,
    LSTM,
    MULTI_HEAD,
    NORM,
    POOL,
    RECURRENCE,
    RNN,
    ROTARY,
    SOFTMAX,
    SORT,
    WEIGHT_NORM,
    attend,
    attention_gradient,
    attention_loss,
    conv1d_gradient,
    conv1d_loss,
    conv2d_gradient,
    conv2d_loss,
    embedding_gradient,
    embedding_loss,
    fixed_point,
    gru_gradient,
    gru_loss,
    lstm_gradient,
    lstm_loss,
    multi_head_gradient,
    multi_head_loss,
    norm_gradient,
    norm_loss,
    normalise_loss,
    pool_loss,
    recurrence,
    recurrence_gradient,
    recurrence_loss,
    rnn_deltas,
    rnn_gradient,
    rnn_loss,
    rnn_states,
    rotate,
    softmax_loss,
    standardise,
    weight_norm_gradient,
    weight_norm_loss,
)
from corpora.right_numbers import (
    DROPOUT,
    MILLION,
    SAMPLE,
    dropout_gradient,
    dropout_loss,
    sample_gradient,
    sample_loss,
)

WRONG: list[GradCase] = []


def wrong(name, loss, gradient, args, slip, **options):
    WRONG.append(GradCase(name, loss, gradient, args, slip=slip, **options))


# --- A term forgotten -------------------------------------------------------------------------------------------------


def no_decay(p, x, y):
    right = logistic_gradient(p, x, y)
    return right._replace(weights=right.weights - 0.1 * p.weights)


def norm_without(term):
    def gradient(p, c):
        hat, inverse = standardise(p["x"], 1)
        g = c * p["scale"]
        dx = g - (0 if term == "mean" else jnp.mean(g, axis=1, keepdims=True))
        dx = dx - (0 if term == "projection" else hat * jnp.mean(g * hat, axis=1, keepdims=True))
        return {**norm_gradient(1)(p, c), "x": inverse * dx}

    return gradient


wrong(
    "logistic regression, weight decay forgotten", logistic_loss, no_decay, LOGISTIC, Slip("missing term", ".weights")
)
wrong("layer norm, mean forgotten", norm_loss(1), norm_without("mean"), NORM, Slip("missing term", "['x']"))
wrong("layer norm, projection forgotten", norm_loss(1), norm_without("projection"), NORM, Slip("missing term", "['x']"))
for name, f, slope in [
    ("SiLU, the product's second term forgotten", jax.nn.silu, jax.nn.sigmoid),
    ("mish, the outer tanh only", mish, lambda x: jnp.tanh(jax.nn.softplus(x))),
    ("GELU, the density forgotten", lambda x: jax.nn.gelu(x, approximate=False), normal_cdf),
]:
    wrong(name, summed(f), slope, SOME, Slip("missing term", ""))
wrong("quadratic form, as if symmetric", quadratic_loss, lambda x, m: 2 * m @ x, QUADRATIC, Slip("missing term", ""))
wrong(
    "softmax, its own slope only", softmax_loss, lambda x, c: c * jax.nn.softmax(x), SOFTMAX, Slip("missing term", "")
)
wrong(
    "l2-normalise, length taken as fixed",
    normalise_loss,
    lambda x, c: c / jnp.linalg.norm(x, axis=-1, keepdims=True),
    SOFTMAX,
    Slip("missing term", ""),
)
wrong(
    "Gaussian likelihood, determinant forgotten",
    likelihood_loss,
    lambda k, y: (
        likelihood_gradient(k, y)
        - (jnp.linalg.inv(k.astype(jnp.promote_types(k.dtype, "float32"))) / 2).astype(k.dtype)
    ),
    GAUSSIAN,
    Slip("missing term", ""),
)
wrong(
    "reverse Kullback-Leibler, not centred",
    reverse_kl_loss,
    lambda z, log_p: jax.nn.softmax(z) * (jax.nn.log_softmax(z) - log_p),
    REVERSE_KL,
    Slip("missing term", ""),
)


def rnn_input_not_through_time(p, x, c):
    h = rnn_states(p, x)
    return {**rnn_gradient(p, x, c), "in": x.T @ (c * (1 - h) * (1 + h))}


def rnn_truncated(p, x, c):
    h = rnn_states(p, x)
    delta = jnp.concatenate([jnp.zeros_like(c[:2]), rnn_deltas(p, h[2:], c[2:])])
    return {"in": x.T @ delta, "hidden": h[:-1].T @ delta[1:], "bias": jnp.sum(delta, axis=0)}


wrong(
    "recurrent network, input weights not through time",
    rnn_loss,
    rnn_input_not_through_time,
    RNN,
    Slip("missing term", "['in']"),
)
wrong("recurrent network, first two steps cut off", rnn_loss, rnn_truncated, RNN, Slip("missing term", None))
wrong(
    "LSTM, output gate forgotten on the way to the cell",
    lstm_loss,
    lambda p, x, c: lstm_gradient(p, x, c, output_gate=False),
    LSTM,
    Slip("missing term", None),
)
wrong(
    "random field, observed transitions forgotten",
    crf_loss,
    lambda p, labels: {
        **crf_gradient(p, labels),
        "transition": crf_gradient(p, labels)["transition"].at[labels[:-1], labels[1:]].add(1),
    },
    CRF,
    Slip("missing term", "['transition']"),
)
wrong(
    "Gaussian sample, entropy forgotten",
    sample_loss,
    but(sample_gradient, "['log_scale']", lambda leaf: leaf + 1),
    SAMPLE,
    Slip("missing term", "['log_scale']"),
    keyed=True,
)
wrong(
    "fixed point, one step only",
    lambda p, c: c @ fixed_point(p),
    lambda p, c: {
        "w": jnp.outer((1 - fixed_point(p) ** 2) * c, fixed_point(p)),
        "b": (1 - fixed_point(p) ** 2) * c,
    },
    FIXED_POINT,
    Slip("missing term", None),
)
wrong(
    "bias before a batch norm, said to have a slope",
    lambda b, x, c: jnp.sum(c * standardise(x + b, 0)[0]),
    lambda b, x, c: jnp.sum(c * standardise(x + b, 0)[1], axis=0),
    given(normal(3), normal(6, 3), normal(6, 3)),
    Slip("missing term", ""),
)

# --- One element ------------------------------------------------------------------------------------------------------

CLASSIFIER = given({"w": normal(4, 10), "b": normal(10)}, normal(12, 4), integers(10, 12))

for name, loss, rule, args, leaf, index, factor in [
    ("mean squared error, one weight by a thousandth", linear_loss, linear_gradient, LINEAR, "['w']", (1, 2), 1.001),
    ("convolution, one weight by a millionth", conv2d_loss, conv2d_gradient, CONV2D, "['w']", (1, 0, 2, 1), 1 + 1e-6),
    ("random field, first label of one step", crf_loss, crf_gradient, CRF, "['unary']", (0, 1), 1.01),
    ("one of a million elements", summed(jnp.sin), jnp.cos, MILLION, "", (123_456,), 1.001),
    ("multi-head attention, one element", multi_head_loss, multi_head_gradient, MULTI_HEAD, "['k']", (3, 1, 0), 0.9),
    (
        "linear recurrence, last rate of one channel",
        recurrence_loss,
        recurrence_gradient,
        RECURRENCE,
        "['a']",
        (5, 2),
        0,
    ),
    ("one of a classifier's weights forgotten", classifier_loss, classifier_gradient, CLASSIFIER, "['w']", (2, 7), 0),
    ("one diagonal element negated", log_determinant_loss, log_determinant_gradient, NEAR_DIAGONAL, "", (3, 3), -1),
]:
    wrong(name, loss, but(rule, leaf, at(index, factor)), args, Slip("element", leaf, index))
wrong(
    "embedding, a padding row without slope",
    embedding_loss,
    lambda *args: embedding_gradient(*args).at[0].set(0),
    EMBEDDING,
    Slip("element", ""),
)
wrong(
    "second convolution channel forgotten",
    conv2d_loss,
    but(conv2d_gradient, "['w']", at(np.s_[:, 1], 0)),
    CONV2D,
    Slip("element", "['w']"),
)
wrong(
    "last step of the sequence forgotten",
    lambda x, w: jnp.sum(jnp.sin(x @ w)),
    lambda x, w: (jnp.cos(x @ w)[:, None] * w).at[-1].set(0),
    given(normal(5, 3), normal(3)),
    Slip("element", ""),
)

# --- Right at first order only; the value beside the gradient ---------------------------------------------------------


def frozen(tree):
    return jax.tree.map(lax.stop_gradient, tree)


wrong(
    "logistic regression, nothing flows a second time",
    logistic_loss,
    lambda p, x, y: logistic_gradient(frozen(p), x, y),
    LOGISTIC,
    Slip("second order", None),
    order=2,
)
wrong(
    "quartic, its square held fixed",
    summed(lambda x: x**4),
    lambda x: 4 * lax.stop_gradient(x**2) * x,
    given(normal(4)),
    Slip("second order", ""),
    order=2,
)
wrong(
    "product, one factor held fixed",
    lambda p: jnp.sum(p["a"] ** 2 * p["b"] ** 2),
    lambda p: {"a": 2 * p["a"] * p["b"] ** 2, "b": 2 * p["b"] * lax.stop_gradient(p["a"] ** 2)},
    given({"a": normal(3), "b": normal(3)}),
    Slip("second order", "['b']"),
    order=2,
)
wrong(
    "softmax cross-entropy, the probabilities held fixed",
    cross_entropy,
    lambda z, labels: lax.stop_gradient(cross_entropy_gradient(z, labels)),
    LOGITS,
    Slip("second order", ""),
    order=2,
)
for name, change in [
    ("value a millionth too large", lambda loss, p: loss * (1 + 1e-6)),
    ("value summed for the mean", lambda loss, p: loss * 12),
    ("value with a weight decay that the loss has not", lambda loss, p: loss + 1e-4 * jnp.sum(p["w"] ** 2)),
    ("value negated", lambda loss, p: -loss),
]:
    wrong(
        name,
        linear_loss,
        lambda p, x, y, change=change: (change(linear_loss(p, x, y), p), linear_gradient(p, x, y)),
        OBLONG_LINEAR,
        Slip("primal", None),
        has_value=True,
    )

# --- Right in exact arithmetic only -----------------------------------------------------------------------------------


def one_pass_norm(x, c):
    mean = jnp.mean(x)
    inverse = lax.rsqrt(jnp.mean(x * x) - mean * mean + 1e-5)
    hat = (x - mean) * inverse
    return inverse * (c - jnp.mean(c) - hat * jnp.mean(c * hat))


def unstable_bce(z, y):
    p = jax.nn.sigmoid(z)
    return (p - y) / (p * (1 - p)) * (p * (1 - p)) / z.size


for name, loss, rule, args in [
    (
        "expm1 squared, by exp(x) - 1",
        lambda x: jnp.sum(jnp.expm1(x) ** 2),
        lambda x: 2 * (jnp.exp(x) - 1) * jnp.exp(x),
        given(exactly([2e-4, -1e-4, 3e-5])),
    ),
    (
        "log-sum-exp, naive",
        jax.nn.logsumexp,
        lambda x: jnp.exp(x) / jnp.sum(jnp.exp(x)),
        given(exactly([100, 99, 101])),
    ),
    ("softplus, naive", summed(jax.nn.softplus), lambda x: jnp.exp(x) / (1 + jnp.exp(x)), given(exactly([95, 1, -1]))),
    (
        "layer norm, variance in one pass",
        lambda x, c: jnp.sum(c * standardise(x, 0)[0]),
        one_pass_norm,
        given(normal(16, scale=8, shift=1000), normal(16)),
    ),
    (
        "binary cross-entropy, through p (1 - p)",
        lambda z, y: jnp.mean(jax.nn.softplus(z) - y * z),
        unstable_bce,
        given(exactly([20, 1, -2]), exactly([0, 1, 1])),
    ),
    (
        "1 - cos x, by itself",
        summed(lambda x: jnp.sin(x / 2) ** 4),
        lambda x: (1 - jnp.cos(x)) * jnp.sin(x) / 2,
        given(exactly([1e-3, 2e-3, -5e-4])),
    ),
    (
        "hypotenuse, of squares of 1e25",
        lambda p: 1e25 * jnp.sum(jnp.sqrt(p["x"] ** 2 + p["y"] ** 2)),
        lambda p: {
            axis: 1e25 * (1e25 * p[axis]) / jnp.sqrt((1e25 * p["x"]) ** 2 + (1e25 * p["y"]) ** 2) for axis in "xy"
        },
        given({"x": exactly([3]), "y": exactly([4])}),
    ),
    (
        "log1p squared, by log(1 + x)",
        summed(lambda x: jnp.log1p(x) ** 2),
        lambda x: 2 * jnp.log(1 + x) / (1 + x),
        given(exactly([2e-4, -1e-4, 5e-5])),
    ),
]:
    wrong(name, loss, rule, args, Slip("precision", None if "hypot" in name else "", dtypes=WORKING))

# --- Structure --------------------------------------------------------------------------------------------------------

for name, change, slip in [
    ("a leaf too few", lambda g: {"w": g["w"]}, Slip("structure", "['b']")),
    ("a leaf too many", lambda g: {**g, "x": g["w"]}, Slip("structure", None)),
    ("None for a leaf", lambda g: {**g, "b": None}, Slip("structure", "['b']")),
    ("a bias of shape (1, n)", lambda g: {**g, "b": g["b"][None]}, Slip("structure", "['b']")),
    ("a tuple for a dictionary", lambda g: (g["b"], g["w"]), Slip("structure", None)),
    (
        "weights in float32",
        lambda g: {**g, "w": g["w"].astype(jnp.float32)},
        Slip("structure", "['w']", dtypes=("bfloat16", "float64")),
    ),
    (
        "weights in bfloat16",
        lambda g: {**g, "w": g["w"].astype(jnp.bfloat16)},
        Slip("structure", "['w']", dtypes=("float32", "float64")),
    ),
    ("weights flattened", lambda g: {**g, "w": g["w"].ravel()}, Slip("structure", "['w']")),
]:
    wrong(name, linear_loss, lambda *args, change=change: change(linear_gradient(*args)), OBLONG_LINEAR, slip)
wrong(
    "the value as well, unannounced",
    linear_loss,
    lambda *args: (linear_loss(*args), linear_gradient(*args)),
    OBLONG_LINEAR,
    Slip("structure", None),
)

# --- Relative ---------------------------------------------------------------------------------------------------------

for name, loss, rule, args, leaf, factor in [
    ("contrastive, image by a thousandth", contrastive_loss, contrastive_gradient, CONTRASTIVE, "['image']", 1.001),
    ("GRU, gates by a millionth", gru_loss, gru_gradient, GRU, "['gates_h']", 1 + 1e-6),
    ("focal, by a millionth", focal_loss, focal_gradient, FOCAL, "", 1 - 1e-6),
    ("CTC, by a thousandth", ctc_loss, ctc_gradient, CTC, "", 0.999),
    ("weight norm, v by a millionth", weight_norm_loss, weight_norm_gradient, WEIGHT_NORM, "['v']", 1 + 1e-6),
]:
    wrong(name, loss, but(rule, leaf, times(factor)), args, Slip("relative", leaf, factor=factor))
wrong(
    "mean squared error, all by a thousandth",
    linear_loss,
    lambda *args: jax.tree.map(times(1.001), linear_gradient(*args)),
    LINEAR,
    Slip("relative", None, factor=1.001),
)

# --- Dropout, indices -------------------------------------------------------------------------------------------------


def dropout_with(inner, outer):
    def gradient(w, x, key):
        keep = jax.random.bernoulli(key, 0.75, w.shape)
        return jnp.where(keep, 2 * jnp.outer(jnp.where(keep, w / inner, 0) @ x, x) / outer, 0)

    return gradient


def other_mask(w, x, key):
    return dropout_gradient(w, x, jax.random.fold_in(key, 1))


for name, rule, slip in [
    ("dropout, slope not scaled", dropout_with(0.75, 1), Slip("dropout scale", "", factor=0.75)),
    ("dropout, scaled by the share dropped", dropout_with(0.75, 0.25), Slip("dropout scale", "", factor=3)),
    ("dropout, scaled nowhere", dropout_with(1, 1), Slip("dropout scale", "", factor=0.75**2)),
    ("dropout, another mask", other_mask, Slip("other", "")),
]:
    wrong(name, dropout_loss, rule, DROPOUT, slip, keyed=True)
wrong(
    "embedding, repeated rows overwritten",
    embedding_loss,
    lambda table, ids, c: jnp.zeros_like(table).at[ids].set(c),
    EMBEDDING,
    Slip("index", ""),
)
wrong(
    "embedding, one row on",
    embedding_loss,
    lambda table, ids, c: jnp.zeros_like(table).at[ids + 1].add(c),
    EMBEDDING,
    Slip("index", ""),
)
wrong(
    "sort, permuted the other way",
    lambda x, c: jnp.sum(c * jnp.sort(x)),
    lambda x, c: c[jnp.argsort(x)],
    SORT,
    Slip("index", ""),
)
wrong(
    "cross-entropy, labels from 1",
    cross_entropy,
    lambda z, labels: cross_entropy_gradient(z, (labels + 1) % z.shape[1]),
    LOGITS,
    Slip("index", ""),
)
wrong(
    "scatter, overwritten elements keep their slope",
    lambda p, at, c: jnp.sum(c * p["x"].at[at].set(p["new"])),
    lambda p, at, c: {"x": c, "new": c[at]},
    given({"x": normal(6), "new": normal(3)}, fixed([4, 0, 3]), normal(6)),
    Slip("index", "['x']"),
)
wrong(
    "max-pool, always to the first of the window",
    pool_loss,
    lambda x, c: jnp.zeros_like(x).at[::2, ::2].set(c),
    POOL,
    Slip("index", ""),
)


def rnn_one_step_late(p, x, c):
    h = rnn_states(p, x)
    return {**rnn_gradient(p, x, c), "hidden": h.T @ rnn_deltas(p, h, c)}


wrong("recurrent network, hidden states one step late", rnn_loss, rnn_one_step_late, RNN, Slip("index", "['hidden']"))

# --- Other ------------------------------------------------------------------------------------------------------------

wrong(
    "rotary embedding, turned on",
    lambda x, c: jnp.sum(c * rotate(x)),
    lambda x, c: rotate(c),
    ROTARY,
    Slip("other", ""),
)
wrong(
    "GELU by tanh for GELU by erf",
    summed(lambda x: jax.nn.gelu(x, approximate=False)),
    jax.vmap(jax.grad(jax.nn.gelu)),
    SOME,
    Slip("other", ""),
)
wrong(
    "convolution, kernel not flipped",
    conv1d_loss,
    lambda p, c: {**conv1d_gradient(p, c), "x": jnp.convolve(c, p["w"][::-1], mode="full")},
    CONV1D,
    Slip("other", "['x']"),
)
wrong(
    "attention, mask forgotten in v",
    attention_loss,
    lambda p, mask, c: {**attention_gradient(p, mask, c), "v": attend(p, True).T @ c},
    CAUSAL,
    Slip("other", "['v']"),
)
wrong(
    "attention, k by ds instead of its transpose",
    attention_loss,
    lambda p, mask, c: {**attention_gradient(p, mask, c), "k": inner_scores(p, mask, c) @ p["q"]},
    ATTENTION,
    Slip("other", "['k']"),
)


def inner_scores(p, mask, c):
    weights, da = attend(p, mask), c @ p["v"].T
    return weights * (da - jnp.sum(da * weights, axis=-1, keepdims=True)) / math.sqrt(p["q"].shape[-1])


wrong(
    "tanh, slope of the output taken twice",
    summed(jnp.tanh),
    lambda x: 1 - jnp.tanh(jnp.tanh(x)) ** 2,
    SOME,
    Slip("other", ""),
)
wrong(
    "linear recurrence, rates one step early",
    recurrence_loss,
    lambda p, c: {**recurrence_gradient(p, c), "b": recurrence(p["a"][::-1], c[::-1])[::-1]},
    RECURRENCE,
    Slip("other", "['b']"),
)
wrong(
    "softmax sums to 1, said to have a slope of a millionth",
    lambda x: jnp.sum(jax.nn.softmax(x)),
    lambda x: jnp.full_like(x, 1e-6),
    given(normal(4, 5)),
    Slip("other", ""),
    rounding=1e-15,
)
wrong(
    "around a mean that is not held fixed",
    lambda x: jnp.sum((x - jnp.mean(x)) ** 4),
    lambda x: 4 * (x - jnp.mean(x)) ** 3,
    given(normal(6)),
    Slip("missing term", ""),
)

# --- Too small to be seen in floating point ---------------------------------------------------------------------------

# At saturation tanh rounds to 1, so that its slope by autodiff, (1 - y) (1 + y), is known to some 1e-16 at best: no
# checker that works in floating point can tell a slope of 1e-30 from 0.
BLIND = [
    GradCase(
        "flat plateau, a slope of 1e-30",
        summed(jnp.tanh),
        lambda x: jnp.full_like(x, 1e-30),
        given(exactly([400, -500, 1000])),
        slip=Slip("other", ""),
    )
]
