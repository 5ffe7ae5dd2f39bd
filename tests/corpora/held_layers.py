"""Held out: slips in the layers of networks, some of them from public reports on layer norm, attention and dropout."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpora.held_kit import HeldOut, array

CASES: list[HeldOut] = []
N, D = 5, 6
X, G, B, C = array(0, N, D), array(1, D), array(2, D), array(3, N, D)
EPS = 1e-3


def add(name, fun, hand, args, words="", never="", **options):
    CASES.append(HeldOut(name, fun, hand, args, words, never, **options))


# --- Normalisation ----------------------------------------------------------------------------------------------------


def norm(x, axis):
    mu = jnp.mean(x, axis, keepdims=True)
    r = lax.rsqrt(jnp.mean((x - mu) ** 2, axis, keepdims=True) + EPS)
    return (x - mu) * r, r


def layer_norm(p, c):
    return jnp.sum(c * (norm(p["x"], 1)[0] * p["g"] + p["b"]))


def layer_norm_back(p, c, axis=1, slip=""):
    xh, r = norm(p["x"], 1)
    d = c if slip == "scale" else c * p["g"]
    mean = 0 if slip == "mean" else jnp.mean(d, axis, keepdims=True)
    spread = 0 if slip == "variance" else xh * jnp.mean(d * xh, axis, keepdims=True)
    sums = jnp.mean if slip == "batch mean" else jnp.sum
    by_g = c * (p["x"] - jnp.mean(p["x"], 1, keepdims=True)) if slip == "not normalised" else c * xh
    return {"x": r * (d - mean - spread), "g": jnp.sum(by_g, 0), "b": sums(c, 0)}


P = {"x": X, "g": G, "b": B}
for slip, words in {
    "mean": "term is missing",
    "variance": "term is missing",
    "scale": "factor .*missing",
    "batch mean": "a mean where a sum",
    "not normalised": "rsqrt|factor is missing",
}.items():
    add(f"layer norm: {slip}", layer_norm, lambda p, c, s=slip: layer_norm_back(p, c, slip=s), (P, C), words)
add("layer norm: means over the batch", layer_norm, lambda p, c: layer_norm_back(p, c, axis=0), (P, C), "wrong axis")


def rms(x, w, c):
    return jnp.sum(c * w * x * lax.rsqrt(jnp.mean(x**2, 1, keepdims=True) + EPS))


def rms_back(x, w, c, slip=""):
    r = lax.rsqrt(jnp.mean(x**2, 1, keepdims=True) + EPS)
    inner = c * x if slip == "inner" else c * x * w
    s = (jnp.sum if slip == "size" else jnp.mean)(inner, 1, keepdims=True)
    return c * w * r - (w if slip == "twice" else 1) * r**3 * x * s


add("rms norm: weight twice in one term", rms, lambda x, w, c: rms_back(x, w, c, "twice"), (X, G, C), "", "sign|axis")
add("rms norm: no weight in the sum", rms, lambda x, w, c: rms_back(x, w, c, "inner"), (X, G, C), "factor is missing")
add("rms norm: a sum for a mean", rms, lambda x, w, c: rms_back(x, w, c, "size"), (X, G, C), "division is missing|mean")
add(
    "residual before a norm: added before it",
    lambda x, w, c: jnp.sum(x * c[::-1]) + rms(x, w, c),
    lambda x, w, c: rms_back(x, w, c + c[::-1]),
    (X, G, C),
    "",
    "factor|swapped|axis",
)


def batch_norm(x, c):
    return jnp.sum(c * norm(x, 0)[0])


def batch_back(x, c, mean=True, count=N):
    xh, r = norm(x, 0)
    return r * (c - mean * jnp.mean(c, 0) - mean * xh * jnp.sum(c * xh, 0) / count)


add("batch norm: statistics fixed", batch_norm, lambda x, c: c * norm(x, 0)[1], (X, C), "fixed")
add("batch norm: n - 1", batch_norm, lambda x, c: batch_back(x, c, count=N - 1), (X, C), "", "fixed|axis|sign")
add(
    "batch norm: over features",
    batch_norm,
    jax.grad(lambda x, c: jnp.sum(c * norm(x, 1)[0])),
    (X, C),
    "wrong axis",
)


def unit(x, c):
    return jnp.sum(c * x / jnp.sqrt(jnp.sum(x**2, -1, keepdims=True)))


add(
    "rows of length one: length fixed",
    unit,
    lambda x, c: c / jnp.linalg.norm(x, axis=-1, keepdims=True),
    (X, C),
    "fixed",
    "sign",
)
add("a vector of length one: length fixed", unit, lambda x, c: c / jnp.linalg.norm(x), (X[0], C[0]), "fixed", "sign")


def cosine(a, b):
    return a @ b / (jnp.linalg.norm(a) * jnp.linalg.norm(b))


add(
    "cosine: length fixed",
    cosine,
    lambda a, b: b / (jnp.linalg.norm(a) * jnp.linalg.norm(b)),
    (G, B),
    "fixed",
    "sign",
)

# --- Softmax and its losses -------------------------------------------------------------------------------------------


def soft(x, c):
    return jnp.sum(c * jax.nn.softmax(x, 1))


def soft_back(x, c, axis=1, sign=-1):
    p = jax.nn.softmax(x, axis=1)
    return p * (c + sign * jnp.sum(p * c, axis, keepdims=True))


def softmax_of(x):
    return jax.nn.softmax(x, axis=1)


add("softmax: diagonal", soft, lambda x, c: softmax_of(x) * (1 - softmax_of(x)) * c, (X, C), "sum", "sign")
add("softmax: sum over the batch", soft, lambda x, c: soft_back(x, c, axis=0), (X, C), "wrong axis")
add("softmax: sign", soft, lambda x, c: soft_back(x, c, sign=1), (X, C), "sign")
add("softmax: over the batch", soft, jax.grad(lambda x, c: jnp.sum(c * jax.nn.softmax(x, 0))), (X, C), "wrong axis")
add(
    "log-softmax: slope not summed",
    lambda x, c: jnp.sum(c * jax.nn.log_softmax(x, 1)),
    lambda x, c: c - softmax_of(x),
    (X, C),
    "factor is missing",
)
add("softmax: temperature", lambda x, c: soft(x / 0.7, c), lambda x, c: soft_back(x / 0.7, c), (X, C), r"0\.7.* times")
Y = jnp.asarray([0, 3, 5, 3, 1])
HOT = jax.nn.one_hot(Y, D)


def cross(x, y):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1))


add("cross-entropy: no mean", cross, lambda x, y: softmax_of(x) - jax.nn.one_hot(y, D), (X, Y), "n = 5")
add("cross-entropy: no labels", cross, lambda x, y: softmax_of(x) / N, (X, Y), "term is missing")
add("cross-entropy: sign", cross, lambda x, y: (jax.nn.one_hot(y, D) - softmax_of(x)) / N, (X, Y), "sign")
RATE = jnp.abs(C[:, 0]) + 0.5


def weighted(x, t, w):
    return -jnp.sum(w[:, None] * t * jax.nn.log_softmax(x)) / jnp.sum(w)


add(
    "cross-entropy: weights of classes",
    weighted,
    lambda x, t, w: (softmax_of(x) - t) / jnp.sum(w),
    (X, HOT, RATE),
    "factor",
)
add(
    "cross-entropy: smoothing ignored",
    lambda x, t: -jnp.sum((0.9 * t + 0.1 / D) * jax.nn.log_softmax(x)),
    lambda x, t: softmax_of(x) - t,
    (X, HOT),
    "",
    "sign|fixed|axis",
)
REAL = jnp.asarray([1.0, 1.0, 0.0, 1.0, 0.0])
add(
    "cross-entropy: padding not masked",
    lambda x, t, m: -jnp.sum(m[:, None] * t * jax.nn.log_softmax(x)) / jnp.sum(m),
    lambda x, t, m: (softmax_of(x) - t) / jnp.sum(m),
    (X, HOT, REAL),
    "factor",
    "surrogate",
)

# --- Attention --------------------------------------------------------------------------------------------------------

T, W = 6, 6
Q, K, V, UP = (array(10 + i, T, W) for i in range(4))
CAUSAL = np.tril(np.ones((T, T), bool))


def attention(qkv, o, mask=None):
    q, k, v = qkv
    s = q @ k.T / W**0.5
    return jnp.sum(o * (jax.nn.softmax(s if mask is None else jnp.where(mask, s, -1e30), -1) @ v))


def attention_back(qkv, o, mask=None, slip=""):
    q, k, v = qkv
    s = q @ k.T / W**0.5
    a = jax.nn.softmax(s if mask is None else jnp.where(mask, s, -1e30), -1)
    da = o @ v.T
    row = jnp.sum(a * da, -1, keepdims=True)
    if slip == "block":
        row = jnp.repeat(jnp.sum((a * da).reshape(T, 2, 3), -1), 3, axis=1)
    ds = a * (da - (0 if slip == "row" else row)) / (1 if slip == "scale" else W**0.5)
    return (k if slip == "swapped" else ds) @ k, (ds if slip == "transposed" else ds.T) @ q, a.T @ o


for slip, words, never in [
    ("transposed", r"\[1\].*: transposed", r"\[0\]|\[2\]"),
    ("scale", "times", ""),
    ("row", r"term is missing", ""),
    ("block", "blocks", ""),
]:
    add(
        f"attention: {slip}",
        attention,
        lambda p, o, s=slip: attention_back(p, o, slip=s),
        ((Q, K, V), UP),
        words,
        never,
    )
add(
    "attention: not causal",
    lambda p, o: attention(p, o, CAUSAL),
    attention_back,
    ((Q, K, V), UP),
    "mask",
    "surrogate",
)
add(
    "attention: slopes of q and k swapped",
    attention,
    lambda p, o: (lambda a: (a[1], a[0], a[2]))(attention_back(p, o)),
    ((Q, K, V), UP),
    "swapped",
)

# --- Dense, convolution, pooling, dropout -----------------------------------------------------------------------------

M = array(20, D, D)


def dense(p, x, c):
    return jnp.sum(c * jnp.tanh(x @ p["w"] + p["b"]))


def dense_back(x_slope=lambda d, w: d @ w.T, bias=lambda d: jnp.sum(d, 0), slope=lambda z: 1 - z**2):
    def back(p, x, c):
        d = c * slope(jnp.tanh(x @ p["w"] + p["b"]))
        return {"w": x.T @ d, "b": bias(d)}

    return back


DENSE = {"w": M, "b": B}
SQUARE, OVER = array(21, D, D), array(22, D, D)
add("dense: bias averaged", dense, dense_back(bias=lambda d: jnp.mean(d, 0)), (DENSE, X, C), "mean where a sum")
add("dense: bias over the other axis", dense, dense_back(bias=lambda d: jnp.sum(d, 1)), (DENSE, SQUARE, OVER), "axis")
add("dense: slope of tanh", dense, dense_back(slope=lambda z: 1 - z), (DENSE, X, C), "", "sign|axis|fixed")
add(
    "dense: square weights not transposed",
    lambda x, w, c: jnp.sum(c * jnp.tanh(x @ w)),
    lambda x, w, c: (c * (1 - jnp.tanh(x @ w) ** 2)) @ w,
    (X, M, C),
    "transposed",
)
IMAGE, KERNEL = array(30, 1, 2, 9), array(31, 3, 2, 3)


def conv(x, w, c, dilation=1, stride=1):
    y = lax.conv_general_dilated(x, w, (stride,), "SAME", rhs_dilation=(dilation,))
    return jnp.sum(c[:, :, : y.shape[2]] * jnp.sin(y))


PLACES = array(32, 1, 3, 9)
slopes = jax.grad(conv, argnums=(0, 1))
add(
    "conv: dilation forgotten",
    lambda w, x, c: jnp.sum(c * lax.conv_general_dilated(x, w, (1,), "SAME", rhs_dilation=(2,))),
    jax.grad(lambda w, x, c: jnp.sum(c * lax.conv_general_dilated(x, w, (1,), "SAME"))),
    (KERNEL, IMAGE, PLACES),
    "dilation",
)
add(
    "conv: kernel not reversed",
    lambda x, w, c: jnp.sum(c * lax.conv_general_dilated(x, w, (1,), "SAME")),
    lambda x, w, c: lax.conv_general_dilated(c, jnp.swapaxes(w, 0, 1), (1,), "SAME"),
    (IMAGE, KERNEL, PLACES),
    "revers",
)
add(
    "conv: off by one",
    lambda x, w, c: jnp.sum(c * lax.conv_general_dilated(x, w, (1,), "SAME")),
    lambda x, w, c: jnp.roll(jax.grad(lambda x: jnp.sum(c * lax.conv_general_dilated(x, w, (1,), "SAME")))(x), 1, 2),
    (IMAGE, KERNEL, PLACES),
    "shifted",
)


def pooled(x, c):
    return jnp.sum(c * jnp.mean(x.reshape(N, 3, 2), 2))


add("average pooling: not divided", pooled, lambda x, c: jnp.repeat(c, 2, 1), (X, C[:, :3]), "factor 2")
add(
    "max pooling: as average",
    lambda x, c: jnp.sum(c * jnp.max(x.reshape(N, 3, 2), 2)),
    lambda x, c: jnp.repeat(c, 2, 1) / 2,
    (X, C[:, :3]),
    "",
    "axis|right up|constant",
)
KEPT = (array(40, N, D) > -0.5).astype(jnp.float32)


@jax.custom_vjp
def dropout(x, mask):
    return x * mask / 0.75


dropout.defvjp(lambda x, m: (dropout(x, m), m), lambda m, g: (g / 0.75, None))
add("dropout: mask forgotten", dropout, None, (X, KEPT), "factor mask|mask", "surrogate")
add(
    "dropout: not scaled",
    lambda x, m, c: jnp.sum(c * jnp.sin(x * m / 0.75)),
    lambda x, m, c: c * m * jnp.cos(x * m / 0.75),
    (X, KEPT, C),
    r"0\.75 times",
)
