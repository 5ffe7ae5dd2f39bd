"""Right gradients of plain losses: normalisation, attention, recurrence, indices, convolutions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpora.kit import GradCase, apart, fixed, given, normal, uniform, wide

RIGHT: list[GradCase] = []


def right(name, loss, gradient, args, **options):
    RIGHT.append(GradCase(name, loss, gradient, args, **options))


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


NORM = given({"x": normal(4, 4), "scale": normal(4), "shift": normal(4)}, normal(4, 4))
right("layer norm", norm_loss(1), norm_gradient(1), NORM)
right("batch norm", norm_loss(0), norm_gradient(0), NORM)


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


RMS_NORM = given({"x": normal(3, 5), "scale": normal(5)}, normal(3, 5))
right("RMS norm", rms_norm_loss, rms_norm_gradient, RMS_NORM)


def softmax_loss(x, c):
    return jnp.sum(c * jax.nn.softmax(x))


def softmax_gradient(x, c):
    s = jax.nn.softmax(x)
    return s * (c - jnp.sum(c * s, axis=-1, keepdims=True))


SOFTMAX = given(normal(3, 4), normal(3, 4))
right("softmax", softmax_loss, softmax_gradient, SOFTMAX)
right(
    "log-softmax",
    lambda x, c: jnp.sum(c * jax.nn.log_softmax(x)),
    lambda x, c: c - jax.nn.softmax(x) * jnp.sum(c, axis=-1, keepdims=True),
    SOFTMAX,
)


def normalise_loss(x, c):
    return jnp.sum(c * x / jnp.linalg.norm(x, axis=-1, keepdims=True))


def normalise_gradient(x, c):
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    unit = x / length
    return (c - unit * jnp.sum(unit * c, axis=-1, keepdims=True)) / length


right("l2-normalise", normalise_loss, normalise_gradient, SOFTMAX)


def weight_norm_loss(p, x, c):
    return jnp.sum(c * (x @ (p["length"] * p["v"] / jnp.linalg.norm(p["v"], axis=0))))


def weight_norm_gradient(p, x, c):
    norm = jnp.linalg.norm(p["v"], axis=0)
    unit, dw = p["v"] / norm, x.T @ c
    along = jnp.sum(dw * unit, axis=0)
    return {"length": along, "v": p["length"] / norm * (dw - unit * along)}


WEIGHT_NORM = given({"length": normal(3), "v": normal(4, 3)}, normal(5, 4), normal(5, 3))
right("weight norm", weight_norm_loss, weight_norm_gradient, WEIGHT_NORM)
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

# --- Attention --------------------------------------------------------------------------------------------------------


def attend(p, mask):
    scores = p["q"] @ p["k"].T / math.sqrt(p["q"].shape[-1])
    return jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))


def attention_loss(p, mask, c):
    return jnp.sum(c * (attend(p, mask) @ p["v"]))


def attention_gradient(p, mask, c):
    weights, da = attend(p, mask), c @ p["v"].T
    ds = weights * (da - jnp.sum(da * weights, axis=-1, keepdims=True)) / math.sqrt(p["q"].shape[-1])
    return {"q": ds @ p["k"], "k": ds.T @ p["q"], "v": weights.T @ c}


QKV = {"q": normal(4, 4), "k": normal(4, 4), "v": normal(4, 4)}
ATTENTION = given(QKV, fixed(np.ones((4, 4), bool), bool), normal(4, 4))
CAUSAL = given(QKV, fixed(np.tri(4, dtype=bool), bool), normal(4, 4))
right("attention", attention_loss, attention_gradient, ATTENTION)
right("attention, causal", attention_loss, attention_gradient, CAUSAL)


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


MULTI_HEAD = given(
    {"q": normal(4, 2, 2), "k": normal(4, 2, 2), "v": normal(4, 2, 2), "o": normal(2, 2, 4)}, normal(5, 4), normal(5, 4)
)
right("multi-head attention, causal", multi_head_loss, multi_head_gradient, MULTI_HEAD)


def rotate(x, sign=1):
    angle = jnp.asarray(np.outer(np.arange(x.shape[0]), 10.0 ** -np.arange(x.shape[1] // 2)), x.dtype)
    even, odd, cos, sin = x[:, ::2], x[:, 1::2], jnp.cos(angle), sign * jnp.sin(angle)
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)


ROTARY = given(normal(5, 4), normal(5, 4))
right("rotary embedding", lambda x, c: jnp.sum(c * rotate(x)), lambda x, c: rotate(c, -1), ROTARY)

# --- Recurrence -------------------------------------------------------------------------------------------------------


def rnn_states(p, x):
    def step(h, x):
        h = jnp.tanh(x @ p["in"] + h @ p["hidden"] + p["bias"])
        return h, h

    return lax.scan(step, jnp.zeros_like(p["bias"]), x)[1]


def rnn_loss(p, x, c):
    return jnp.sum(c * rnn_states(p, x))


def rnn_deltas(p, h, c):
    def back(later, here):
        h, c = here
        delta = (c + later) * (1 - h) * (1 + h)
        return delta @ p["hidden"].T, delta

    return lax.scan(back, jnp.zeros_like(p["bias"]), (h, c), reverse=True)[1]


def rnn_gradient(p, x, c):
    h = rnn_states(p, x)
    delta = rnn_deltas(p, h, c)
    before = jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])
    return {"in": x.T @ delta, "hidden": before.T @ delta, "bias": jnp.sum(delta, axis=0)}


RNN = given({"in": normal(3, 3), "hidden": normal(3, 3), "bias": normal(3)}, normal(5, 3), normal(5, 3))
right("recurrent network through time", rnn_loss, rnn_gradient, RNN)


def gru_step(p, h, x):
    r, z = jnp.split(jax.nn.sigmoid(x @ p["gates_x"] + h @ p["gates_h"]), 2)
    new = jnp.tanh(x @ p["new_x"] + r * (h @ p["new_h"]))
    return z * h + (1 - z) * new, (r, z, new)


def gru_run(p, x):
    def step(h, x):
        after, gates = gru_step(p, h, x)
        return after, (h, gates)

    return lax.scan(step, jnp.zeros_like(p["new_h"][0]), x)


def gru_loss(p, x, c):
    return gru_run(p, x)[0] @ c


def gru_gradient(p, x, c):
    def back(dh, here):
        x, (h, (r, z, new)) = here
        dnew = dh * (1 - z) * (1 - new) * (1 + new)
        dz = dh * (h - new) * z * (1 - z)
        dr = dnew * (h @ p["new_h"]) * r * (1 - r)
        gates = jnp.concatenate([dr, dz])
        slope = {
            "gates_x": jnp.outer(x, gates),
            "gates_h": jnp.outer(h, gates),
            "new_x": jnp.outer(x, dnew),
            "new_h": jnp.outer(h, dnew * r),
        }
        return dh * z + p["gates_h"] @ gates + p["new_h"] @ (dnew * r), slope

    slopes = lax.scan(back, c, (x, gru_run(p, x)[1]), reverse=True)[1]
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), slopes)


GRU = given(
    {"gates_x": normal(2, 6), "gates_h": normal(3, 6), "new_x": normal(2, 3), "new_h": normal(3, 3)},
    normal(4, 2),
    normal(3),
)
right("gated recurrent unit through time", gru_loss, gru_gradient, GRU)


def lstm_run(p, x):
    def step(state, x):
        h, cell = state
        i, f, o, new = jnp.split(x @ p["x"] + h @ p["h"] + p["b"], 4)
        i, f, o, new = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jax.nn.sigmoid(o), jnp.tanh(new)
        after = f * cell + i * new
        return (o * jnp.tanh(after), after), (h, cell, after, i, f, o, new)

    zero = jnp.zeros_like(p["h"][:, 0])
    return lax.scan(step, (zero, zero), x)


def lstm_loss(p, x, c):
    return lstm_run(p, x)[0][0] @ c


def lstm_gradient(p, x, c, output_gate=True):
    def back(carry, here):
        dh, dcell = carry
        x, (h, cell, after, i, f, o, new) = here
        t = jnp.tanh(after)
        dcell = dcell + dh * (o if output_gate else 1) * (1 - t) * (1 + t)
        gates = jnp.concatenate(
            [
                dcell * new * i * (1 - i),
                dcell * cell * f * (1 - f),
                dh * t * o * (1 - o),
                dcell * i * (1 - new) * (1 + new),
            ]
        )
        return (p["h"] @ gates, dcell * f), {"x": jnp.outer(x, gates), "h": jnp.outer(h, gates), "b": gates}

    slopes = lax.scan(back, (c, jnp.zeros_like(c)), (x, lstm_run(p, x)[1]), reverse=True)[1]
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), slopes)


LSTM = given({"x": normal(2, 12), "h": normal(3, 12), "b": normal(12)}, normal(4, 2), normal(3))
right("long short-term memory through time", lstm_loss, lstm_gradient, LSTM)
right(
    "cumulative sum",
    lambda x, c: jnp.sum(c * jnp.cumsum(x)),
    lambda x, c: jnp.cumsum(c[::-1])[::-1],
    given(normal(7), normal(7)),
)
right(
    "cumulative product",
    lambda x, c: jnp.sum(c * jnp.cumprod(x)),
    lambda x, c: jnp.cumsum((c * jnp.cumprod(x))[::-1])[::-1] / x,
    given(uniform(6, low=0.5, high=1.5), normal(6)),
)


def recurrence(a, b):
    def step(h, ab):
        h = ab[0] * h + ab[1]
        return h, h

    return lax.scan(step, jnp.zeros_like(b[0]), (a, b))[1]


def recurrence_loss(p, c):
    return jnp.sum(c * recurrence(p["a"], p["b"]))


def recurrence_gradient(p, c):
    h = recurrence(p["a"], p["b"])
    # The adjoint runs the same recurrence backwards, with the rates one step later.
    later = jnp.concatenate([p["a"][1:], jnp.zeros_like(p["a"][:1])])
    db = recurrence(later[::-1], c[::-1])[::-1]
    return {"a": db * jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]]), "b": db}


RECURRENCE = given({"a": uniform(6, 3), "b": normal(6, 3)}, normal(6, 3))
right("linear recurrence", recurrence_loss, recurrence_gradient, RECURRENCE)


def average(x):
    return lax.scan(lambda s, x: (0.75 * s + 0.25 * x, None), jnp.zeros_like(x[0]), x)[0]


AVERAGE = given(normal(6, 3), normal(3))
right(
    "exponential moving average",
    lambda x, c: average(x) @ c,
    lambda x, c: jnp.asarray(0.25 * 0.75 ** np.arange(5, -1, -1), x.dtype)[:, None] * c,
    AVERAGE,
)


def fixed_point(p):
    return lax.fori_loop(0, 120, lambda _, z: jnp.tanh(p["w"] @ z + p["b"]), jnp.zeros_like(p["b"]))


def fixed_point_gradient(p, c):
    z = fixed_point(p)
    slope = wide((1 - z) * (1 + z))
    v = slope * jnp.linalg.solve((jnp.eye(len(z)) - slope[:, None] * p["w"]).T, c)
    return jax.tree.map(lambda leaf: leaf.astype(z.dtype), {"w": jnp.outer(v, z), "b": v})


FIXED_POINT = given({"w": normal(4, 4, scale=0.25), "b": normal(4)}, normal(4))
right("fixed point, implicitly", lambda p, c: c @ fixed_point(p), fixed_point_gradient, FIXED_POINT)


def euler(w, z):
    def step(z, _):
        return z + 0.125 * jnp.tanh(w @ z), z

    return lax.scan(step, z, None, length=16)


def euler_gradient(w, z, c):
    def back(adjoint, z):
        t = jnp.tanh(w @ z)
        pulled = 0.125 * (1 - t) * (1 + t) * adjoint
        return adjoint + w.T @ pulled, jnp.outer(pulled, z)

    return jnp.sum(lax.scan(back, c, euler(w, z)[1], reverse=True)[1], axis=0)


EULER = given(normal(3, 3), normal(3), normal(3))
right("Euler's method, discrete adjoint", lambda w, z, c: c @ euler(w, z)[0], euler_gradient, EULER)

# --- Indices, convolutions, transforms --------------------------------------------------------------------------------


def embedding_loss(table, ids, c):
    return jnp.sum(c * table[ids])


def embedding_gradient(table, ids, c):
    return jnp.zeros_like(table).at[ids].add(c)


EMBEDDING = given(normal(6, 3), fixed([1, 4, 1, 0, 4, 1]), normal(6, 3))
right("embedding with repeated indices", embedding_loss, embedding_gradient, EMBEDDING)
INDICES = np.array([2, 0, 2])
right(
    "gather by a NumPy index of int64",
    lambda x: jnp.sum(x[:, INDICES] ** 2),
    lambda x: jnp.zeros_like(x).at[:, INDICES].add(2 * x[:, INDICES]),
    given(normal(2, 3)),
    clears=True,
)
right(
    "scatter, overwriting",
    lambda p, at, c: jnp.sum(c * p["x"].at[at].set(p["new"])),
    lambda p, at, c: {"x": c.at[at].set(0), "new": c[at]},
    given({"x": normal(6), "new": normal(3)}, fixed([4, 0, 3]), normal(6)),
)


def segments_loss(x, ids):
    return jnp.sum(jax.ops.segment_sum(x, ids, num_segments=4) ** 2) / 2


def segments_gradient(x, ids):
    return jax.ops.segment_sum(x, ids, num_segments=4)[ids]


SEGMENTS = given(normal(7), fixed([0, 2, 2, 0, 3, 3, 3]))
right("segment sum", segments_loss, segments_gradient, SEGMENTS)
SORT = given(apart(8), normal(8))
right(
    "sort",
    lambda x, c: jnp.sum(c * jnp.sort(x)),
    lambda x, c: jnp.zeros_like(c).at[jnp.argsort(x)].set(c),
    SORT,
)
right(
    "largest three",
    lambda x: jnp.sum(lax.top_k(x, 3)[0] ** 2),
    lambda x: jnp.where(x >= lax.top_k(x, 3)[0][-1], 2 * x, 0),
    given(apart(8)),
)
right(
    "route by argmax",
    lambda p, x: jnp.sum((x * p[jnp.argmax(x, axis=1)][:, None]) ** 2),
    lambda p, x: jnp.zeros_like(p).at[jnp.argmax(x, axis=1)].add(2 * jnp.sum(x**2, axis=1) * p[jnp.argmax(x, axis=1)]),
    given(normal(3), apart(5, 3)),
)


def pool_loss(x, c):
    return jnp.sum(c * lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (2, 2), "VALID"))


def pool_gradient(x, c):
    windows = x.reshape(2, 2, 2, 2)
    most = jnp.max(windows, axis=(1, 3), keepdims=True)
    return jnp.where(windows == most, c[:, None, :, None], 0).reshape(x.shape)


POOL = given(apart(4, 4), normal(2, 2))
right("max-pool", pool_loss, pool_gradient, POOL)
right(
    "average pool",
    lambda x, c: jnp.sum(c * jnp.mean(x.reshape(2, 2, 2, 2), axis=(1, 3))),
    lambda x, c: jnp.kron(c, jnp.ones((2, 2), c.dtype)) / 4,
    POOL,
)


def conv1d_loss(p, c):
    return jnp.sum(c * jnp.correlate(p["x"], p["w"], mode="valid"))


def conv1d_gradient(p, c):
    return {"x": jnp.convolve(c, p["w"], mode="full"), "w": jnp.correlate(p["x"], c, mode="valid")}


CONV1D = given({"x": normal(8), "w": normal(3)}, normal(6))
right("convolution in one dimension", conv1d_loss, conv1d_gradient, CONV1D)


def conv2d_loss(p, c):
    return jnp.sum(c * lax.conv_general_dilated(p["x"], p["w"], (1, 1), "VALID"))


def conv2d_gradient(p, c):
    (_, _, height, width), (kernel_h, kernel_w) = c.shape, p["w"].shape[2:]
    dx, dw = jnp.zeros_like(p["x"]), jnp.zeros_like(p["w"])
    for i in range(kernel_h):
        for j in range(kernel_w):
            window = (slice(None), slice(None), slice(i, i + height), slice(j, j + width))
            dx = dx.at[window].add(jnp.einsum("nohw,oi->nihw", c, p["w"][:, :, i, j]))
            dw = dw.at[:, :, i, j].set(jnp.einsum("nohw,nihw->oi", c, p["x"][window]))
    return {"x": dx, "w": dw}


CONV2D = given({"x": normal(2, 2, 5, 5), "w": normal(2, 2, 3, 3)}, normal(2, 2, 3, 3))
right("convolution in two dimensions", conv2d_loss, conv2d_gradient, CONV2D)
EDGE = np.array([0, 0, 1, 1, 1], np.int32)


def pad_gradient(x, c):
    rows = jnp.zeros((2, 4), x.dtype).at[EDGE].add(c)
    return rows[:, :3].at[:, 2].add(rows[:, 3])


right(
    "pad, edges repeated",
    lambda x, c: jnp.sum(c * jnp.pad(x, ((1, 2), (0, 1)), mode="edge")),
    pad_gradient,
    given(normal(2, 3), normal(5, 4)),
)


def power_loss(x, c):
    return jnp.sum(c * jnp.abs(jnp.fft.fft(wide(x))) ** 2)


def power_gradient(x, c):
    return (2 * len(x) * jnp.real(jnp.fft.ifft(c * jnp.fft.fft(wide(x))))).astype(x.dtype)


POWER = given(normal(8), normal(8))
right("power spectrum", power_loss, power_gradient, POWER)
