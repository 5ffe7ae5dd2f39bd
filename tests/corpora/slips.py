"""Slips as people make them in layers, recurrences, indices and fixed points, and what a hint has to say of each."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpora.kit import Code, custom, drawn

SLIPS = Code()
slip = SLIPS.slip
held = lax.stop_gradient

# --- Normalisation and softmax ----------------------------------------------------------------------------------------

X, G, B, C = drawn(5, 6), drawn(6, seed=1), drawn(6, seed=2), drawn(5, 6, seed=3)


def norm(x, axis):
    mu = jnp.mean(x, axis, keepdims=True)
    r = lax.rsqrt(jnp.mean((x - mu) ** 2, axis, keepdims=True) + 1e-3)
    return (x - mu) * r, r


def layer_norm(p, c):
    return jnp.sum(c * (norm(p["x"], 1)[0] * p["g"] + p["b"]))


def layer_norm_back(what, axis=1):
    def back(p, c):
        xh, r = norm(p["x"], 1)
        d = c if what == "scale" else c * p["g"]
        spread = 0 if what == "variance" else xh * jnp.mean(d * xh, axis, keepdims=True)
        sums = jnp.mean if what == "batch mean" else jnp.sum
        by_g = c * (p["x"] - jnp.mean(p["x"], 1, keepdims=True)) if what == "not normalised" else c * xh
        return {"x": r * (d - jnp.mean(d, axis, keepdims=True) - spread), "g": jnp.sum(by_g, 0), "b": sums(c, 0)}

    return back


P = {"x": X, "g": G, "b": B}
for what, words in {
    "variance": "term is missing",
    "scale": "factor .*missing",
    "batch mean": "a mean where a sum",
    "not normalised": "rsqrt|factor is missing",
}.items():
    slip(f"layer norm: {what}", layer_norm, layer_norm_back(what), (P, C), words)
slip("layer norm: means over the batch", layer_norm, layer_norm_back("", 0), (P, C), "wrong axis")


def batch_norm(x, c):
    return jnp.sum(c * norm(x, 0)[0])


def soft(x, c, axis=1):
    return jnp.sum(c * jax.nn.softmax(x, axis))


def soft_back(x, c, axis=1):
    p = jax.nn.softmax(x, axis=1)
    return p * (c - jnp.sum(p * c, axis, keepdims=True))


def diagonal(x, c):
    p = jax.nn.softmax(x, axis=1)
    return p * (1 - p) * c


def unit(x, c):
    return jnp.sum(c * x / jnp.sqrt(jnp.sum(x**2, -1, keepdims=True)))


XC = (X, C)
slip("batch norm: statistics fixed", batch_norm, lambda x, c: c * norm(x, 0)[1], XC, "fixed")
fixed_length = lambda x, c: c / jnp.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
slip("rows of length one: length fixed", unit, fixed_length, XC, "fixed", "sign")
slip("softmax: diagonal", soft, diagonal, XC, "sum", "sign")
slip("softmax: sum over the batch", soft, lambda x, c: soft_back(x, c, axis=0), XC, "wrong axis")
slip("softmax: over the batch", soft, jax.grad(lambda x, c: soft(x, c, 0)), XC, "wrong axis")
slip("softmax: temperature", lambda x, c: soft(x / 0.7, c), lambda x, c: soft_back(x / 0.7, c), XC, r"0\.7.* times")
HOT, WEIGHTS = np.eye(6, dtype=np.float32)[[0, 3, 5, 3, 1]], np.float32([1, 0.5, 0, 1, 0])


def cross(x, t):
    return -jnp.mean(jnp.sum(t * jax.nn.log_softmax(x), 1))


def weighted(x, t, w):
    return -jnp.sum(w[:, None] * t * jax.nn.log_softmax(x)) / jnp.sum(w)


slip("cross-entropy: no mean", cross, lambda x, t: jax.nn.softmax(x) - t, (X, HOT), "n = 5")
slip("cross-entropy: no labels", cross, lambda x, t: jax.nn.softmax(x) / 5, (X, HOT), "a term too many: 0.2 times t")
unmasked = lambda x, t, w: (jax.nn.softmax(x) - t) / jnp.sum(w)  # noqa: E731
slip("cross-entropy: padding not masked", weighted, unmasked, (X, HOT, WEIGHTS), "factor", "surrogate")

# --- Attention, dense layers, convolution, dropout --------------------------------------------------------------------

QKV, UP = tuple(drawn(6, 6, seed=10 + i) for i in range(3)), drawn(6, 6, seed=13)
CAUSAL = np.tril(np.ones((6, 6), bool))


def attention(qkv, o, mask=None):
    s = qkv[0] @ qkv[1].T / 6**0.5
    return jnp.sum(o * (jax.nn.softmax(s if mask is None else jnp.where(mask, s, -1e30), -1) @ qkv[2]))


def attention_back(what):
    def back(qkv, o):
        q, k, v = qkv
        a, da = jax.nn.softmax(q @ k.T / 6**0.5, -1), o @ v.T
        row = jnp.sum(a * da, -1, keepdims=True)
        ds = a * (da - (0 if what == "row" else row)) / (1 if what == "scale" else 6**0.5)
        found = [ds @ k, (ds if what == "transposed" else ds.T) @ q, a.T @ o]
        return (found[1], found[0], found[2]) if what == "swapped" else tuple(found)

    return back


for what, words, never in [
    ("transposed", r"\[1\].*: transposed", r"\[0\]|\[2\]"),
    ("scale", "times", ""),
    ("row", "term is missing", ""),
    ("swapped", "swapped", ""),
]:
    slip(f"attention: {what}", attention, attention_back(what), (QKV, UP), words, never)
slip("attention: not causal", lambda p, o: attention(p, o, CAUSAL), attention_back(""), (QKV, UP), "mask", "surrogate")
M, OVER = drawn(6, 6, seed=20), drawn(6, 6, seed=22)


def dense_back(x, w, c):
    return (c * (1 - jnp.tanh(x @ w) ** 2)) @ w


slip("dense: weights not transposed", lambda x, w, c: jnp.sum(c * jnp.tanh(x @ w)), dense_back, (X, M, C), "transposed")
bias_back = lambda b, x, c: jnp.sum(c * jnp.cos(x + b), 1)  # noqa: E731
slip("bias over the other axis", lambda b, x, c: jnp.sum(c * jnp.sin(x + b)), bias_back, (B, M, OVER), "axis")
IMAGE, KERNEL, PLACES = drawn(1, 2, 9, seed=30), drawn(3, 2, 3, seed=31), drawn(1, 3, 9, seed=32)


def conv(x, w, c):
    return jnp.sum(c * lax.conv_general_dilated(x, w, (1,), "SAME"))


unreversed = lambda x, w, c: lax.conv_general_dilated(c, jnp.swapaxes(w, 0, 1), (1,), "SAME")  # noqa: E731
slip("conv: kernel not reversed", conv, unreversed, (IMAGE, KERNEL, PLACES), "revers")
KEPT = np.float32(drawn(5, 6, seed=40) > -0.5)
dropout = lambda x, mask: x * mask / 0.75  # noqa: E731
unmasked_dropout = custom(dropout, lambda x, m: (dropout(x, m), m), lambda m, g: (g / 0.75, None))
slip("dropout: mask forgotten", unmasked_dropout, None, (X, KEPT), r"a factor args\[1\] is missing", "surrogate")

# --- Recurrences ------------------------------------------------------------------------------------------------------

XS, LAST = drawn(7, 3), drawn(7, 4, seed=3)
NET = {"u": drawn(3, 4, seed=1), "r": drawn(4, 4, seed=2) / 2}


def rnn(p, xs, c):
    step = lambda h, x: (jnp.tanh(x @ p["u"] + h @ p["r"]),) * 2  # noqa: E731
    return jnp.sum(c * lax.scan(step, jnp.zeros(4, c.dtype), xs)[1])


def rnn_back(what):
    def back(p, xs, c):
        states = [jnp.zeros(4, c.dtype)]
        for x in xs:
            states.append(jnp.tanh(x @ p["u"] + states[-1] @ p["r"]))
        du, dr, dh = 0 * p["u"], 0 * p["r"], 0 * states[0]
        for t in reversed(range(7)):
            dh = dh + c[t]
            dz = dh * (1 - states[t if what == "stale slope" else t + 1] ** 2)
            du, dr = du + jnp.outer(xs[t], dz), dr + jnp.outer(states[t + (what == "next")], dz)
            dh = dz @ (p["r"] if what == "transposed" else p["r"].T)
            dh = 0 * dh if what == "cut" or (what == "first" and t == 2) else dh
        return {"u": du, "r": dr}

    return back


for what, words, never in [
    ("cut", "loop", "axis"),
    ("first", "first 2 rounds", ""),
    ("next", "round after", ""),
    ("stale slope", "round before", "axis"),
    ("transposed", "transposed", ""),
]:
    slip(f"recurrent: {what}", rnn, rnn_back(what), (NET, XS, LAST), words, never)
GATES, ROWS = {name: drawn(4, 4, seed=10 + i) / 2 for i, name in enumerate("fiog")}, drawn(7, 4, seed=15)


def lstm(p, xs, w, forget=lambda f: f):
    def step(state, x):
        h, c = state
        f, i, o = (jax.nn.sigmoid((x + h) @ p[k]) for k in "fio")
        c = forget(f) * c + i * jnp.tanh((x + h) @ p["g"])
        return (o * jnp.tanh(c), c), None

    zero = jnp.zeros(4, xs.dtype)
    return jnp.sum(w * lax.scan(step, (zero, zero), xs)[0][0])


no_forget = jax.grad(lambda p, xs, w: lstm(p, xs, w, held))
slip("LSTM: forget gate fixed", lstm, no_forget, (GATES, ROWS, LAST[0]), "nothing flows back|zero|term is missing")


def decay(a, x, fixed=lambda s: s):
    return jnp.sum(lax.scan(lambda s, r: (a * fixed(s) + r,) * 2, jnp.zeros((), x.dtype), x)[1] ** 2)


slip("filter: state fixed", decay, jax.grad(lambda a, x: decay(a, x, held)), (np.float32(0.7), XS[:, 0]), "loop|fixed")

# --- Indices and order ------------------------------------------------------------------------------------------------

TABLE, LONG, SUMMED = drawn(6, 3, seed=20), drawn(6, 3, seed=22), drawn(6, seed=23)
IDS, ORDER = np.int32([1, 4, 1, 5]), np.int32([2, 0, 3, 5, 1, 4])
looked_up = lambda t, c: jnp.sum(c * jnp.sin(t[IDS]))  # noqa: E731
by_set = lambda t, c: jnp.zeros_like(t).at[IDS].set(c * jnp.cos(t[IDS]))  # noqa: E731
slip("embedding: set", looked_up, by_set, (TABLE, LONG[:4]), "set where add")
permuted = lambda x, c: jnp.sum(c * jnp.sin(x[ORDER]))  # noqa: E731
slip("permutation: by itself", permuted, lambda x, c: (c * jnp.cos(x[ORDER]))[ORDER], (TABLE, LONG), "inverse")
in_order = lambda x, c: jnp.sum(c * jnp.sort(x))  # noqa: E731
slip("sort: by its order", in_order, lambda x, c: c[jnp.argsort(x)], (SUMMED, LONG[:, 0]), "inverse")
cumulated = lambda x, c: jnp.sum(c * jnp.cumsum(x))  # noqa: E731
slip("cumulative sum: not reversed", cumulated, lambda x, c: jnp.cumsum(c), (SUMMED, LONG[:, 0]), "wrong way|revers")
without_own = lambda x, c: jnp.cumsum(c[::-1])[::-1] - c  # noqa: E731
slip("cumulative sum: without its own", cumulated, without_own, (SUMMED, LONG[:, 0]), "shifted|own element")

# --- Fixed points: not yet converged, or wrong ------------------------------------------------------------------------

MIX = 0.45 * np.asarray(np.linalg.qr(np.random.default_rng(30).normal(size=(4, 4)))[0], np.float32)
PUSH, ABOVE = drawn(4, seed=31), drawn(3, seed=33, low=2.0)


def implicit(rounds, sign=-1.0):
    solve = lambda b: lax.fori_loop(0, rounds, lambda _, z: jnp.tanh(MIX @ z) + b / 2, jnp.zeros_like(b))  # noqa: E731

    def back(z, g):
        jac = (1 - jnp.tanh(MIX @ z) ** 2)[:, None] * MIX
        return (0.5 * jnp.linalg.solve((jnp.eye(4, dtype=g.dtype) + sign * jac).T, g),)

    return custom(solve, lambda b: (solve(b),) * 2, back)


slip("fixed point: a few rounds", implicit(6), None, (PUSH,), "not converged", "sign|factor")
slip("fixed point: sign", implicit(80, 1.0), None, (PUSH,), "", "converged")
slip("fixed point: a few rounds, and the sign", implicit(6, 1.0), None, (PUSH,), "", "not converged")


def root(tolerance, factor=1.0):
    def cube_root(a):
        one = lambda s: (lambda x: (x, jnp.abs(x - s[0])))(s[0] - 0.15 * (s[0] ** 3 - a) / s[0])  # noqa: E731
        return lax.while_loop(lambda s: jnp.max(s[1]) > tolerance, one, (jnp.ones_like(a), jnp.ones_like(a)))[0]

    return custom(cube_root, lambda a: (cube_root(a),) * 2, lambda x, g: (factor * g / (3 * x**2),))


slip("root by while: tolerance", root(1e-3), None, (ABOVE,), "not converged")
slip("root by while: factor", root(1e-12, 2.0), None, (ABOVE,), "twice", "converged", reference=jnp.cbrt)

# --- Energies, losses, complex numbers --------------------------------------------------------------------------------

huber = lambda x: jnp.sum(jnp.where(jnp.abs(x) < 1, 0.5 * x**2, jnp.abs(x) - 0.5))  # noqa: E731
slip("Huber: never clipped", huber, lambda x: x, (2 * drawn(12, seed=43),), "mask|right up to")
slip("two elements off by the same", lambda w: jnp.sum(w**2) + jnp.sum(w), lambda w: 2 * w, (PUSH[:2],), "", "constant")
spread = lambda x: jnp.sum((x - jnp.mean(x)) ** 2) / (len(x) - 1)  # noqa: E731
WAVES = (drawn(5, seed=46) + 1j * drawn(5, seed=47), drawn(5, seed=48) + 1j * drawn(5, seed=49))
wave = lambda z, w: jnp.real(jnp.sum(w * jnp.exp(z)))  # noqa: E731
slip("complex: conjugate", wave, lambda z, w: jnp.conj(w * jnp.exp(z)), WAVES, "conjugate")
moments = lambda x: (jnp.sum(x), jnp.sum(x**2))  # noqa: E731
second_alone = custom(moments, lambda x: (moments(x), x), lambda x, g: (2 * x * g[1],))
slip("two outputs: the first ignored", second_alone, None, (SUMMED,), "cotangent of output 0")


wrong_formula = lambda x, k: 2 * x * jnp.cos(0.1 * k)  # noqa: E731
swung = lambda x, k: jnp.sum(lax.fori_loop(0, 6, lambda _, s: s + 0.1 * k * jnp.sin(s), x) ** 2)  # noqa: E731
slip("a made-up formula", swung, wrong_formula, (SUMMED, np.float32(1.3)), "", "converged|sign|axis|right up")
