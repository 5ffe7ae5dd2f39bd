"""Held out: slips written down when all kinds of hints were there, and run once."""

import jax
import jax.numpy as jnp
from jax import lax

from corpora.held_kit import HeldOut, array

CASES: list[HeldOut] = []
held = lax.stop_gradient


def add(name, fun, hand, args, words="", never="", **options):
    CASES.append(HeldOut(name, fun, hand, args, words, never, **options))


X, Y, Z, S = array(60, 4, 5), array(61, 4, 5), array(62, 5, 5), array(63, 5)


def group_norm(x, c, fixed=lambda v: v):
    parts = x.reshape(4, 2, 4)
    mean = jnp.mean(parts, -1, keepdims=True)
    scale = jnp.sqrt(fixed(jnp.mean((parts - mean) ** 2, -1, keepdims=True)) + 1e-3)
    return jnp.sum(c * ((parts - mean) / scale).reshape(x.shape))


WIDE, WIDER = array(64, 4, 8), array(65, 4, 8)
add(
    "group norm: variance fixed",
    group_norm,
    jax.grad(lambda x, c: group_norm(x, c, held)),
    (WIDE, WIDER),
    "fixed",
    "axis",
)


def lse(x, c):
    return jnp.sum(c * jax.nn.logsumexp(x, 1))


add("log-sum-exp: not weighted by its slope", lse, lambda x, c: jax.nn.softmax(x, 1), (X, S[:4]), "factor")
add("log-sum-exp: over the batch", lse, lambda x, c: c[:, None] * jax.nn.softmax(x, 0), (X, S[:4]), "wrong axis")


def contrast(p, t):
    a = p["a"] / jnp.linalg.norm(p["a"], axis=1, keepdims=True)
    return -jnp.mean(jnp.diag(jax.nn.log_softmax(a @ p["b"].T / t)))


def contrast_back(p, t, ways="both"):
    n = jnp.linalg.norm(p["a"], axis=1, keepdims=True)
    a = p["a"] / n
    d = (jax.nn.softmax(a @ p["b"].T / t) - jnp.eye(len(a))) / len(a) / t
    da = d @ p["b"]
    inner = 0 if ways == "fixed" else a * jnp.sum(a * da, 1, keepdims=True)
    return {"a": (da - inner) / n, "b": (d if ways == "transposed" else d.T) @ a}


PAIR = {"a": X, "b": Y}
add("contrastive: length fixed", contrast, lambda p, t: contrast_back(p, t, "fixed"), (PAIR, 0.5), "fixed", "sign")
add("contrastive: logits transposed", contrast, lambda p, t: contrast_back(p, t, "transposed"), (PAIR, 0.5), "transpos")


def swiglu(p, x):
    return jnp.sum(jnp.sin(jax.nn.silu(x @ p["g"]) * (x @ p["u"])))


def swiglu_back(p, x):
    g, u = x @ p["g"], x @ p["u"]
    d = jnp.cos(jax.nn.silu(g) * u)
    return {"g": x.T @ (d * u * jax.nn.sigmoid(g)), "u": x.T @ (d * jax.nn.silu(g))}


add("SwiGLU: silu's second term", swiglu, swiglu_back, ({"g": Z, "u": array(66, 5, 5)}, X), r"\['g'\].*term is missing")


def moments(x):
    return jnp.mean((x - jnp.mean(x, 0)) ** 3)


def skewed(x):
    return 3 * (x - jnp.mean(x, 0)) ** 2 / x.size


add("third moment: mean fixed", moments, skewed, (X,), "fixed")


def kalman(a, z):
    def step(state, y):
        m, p = state
        k = p / (p + 0.3)
        m = a * m + k * (y - a * m)
        return (m, a * a * (1 - k) * p + 0.1), m

    return jnp.sum(lax.scan(step, (z[0] * 0, 0 * z[0] + 1), z)[1] ** 2)


def fixed_gain(a, z):
    def step(state, y):
        m, p = state
        k = held(p / (p + 0.3))
        m = a * m + k * (y - a * m)
        return (m, held(a * a * (1 - k) * p + 0.1)), m

    return jnp.sum(lax.scan(step, (z[0] * 0, 0 * z[0] + 1), z)[1] ** 2)


add("Kalman filter: gain fixed", kalman, jax.grad(fixed_gain), (jnp.float32(0.8), S), "fixed")


def verlet(x0, k):
    def step(state, _):
        x, v = state
        v = v - 0.1 * k * jnp.sin(x)
        return (x + 0.1 * v, v), None

    return jnp.sum(lax.scan(step, (x0, 0 * x0), None, length=6)[0][0] ** 2)


def only_start(x0, k):
    return 2 * x0 * jnp.cos(0.1 * k)


add("verlet: a made-up formula", verlet, only_start, (S, jnp.float32(1.3)), "", "converged|sign|axis|right up")


def newton(a, rounds):
    return lax.fori_loop(0, rounds, lambda _, x: x - (x - a / x) / 4, a)


def implicit_root(rounds, factor):
    root = jax.custom_vjp(lambda a: newton(a, rounds))
    root.defvjp(lambda a: (newton(a, rounds),) * 2, lambda x, g: (factor * g / (2 * x),))
    return root


ABOVE = array(67, 4, low=2.0)
add("square root: ten rounds", implicit_root(10, 1.0), None, (ABOVE,), "not converged")
add("square root: enough rounds, half", implicit_root(90, 0.5), None, (ABOVE,), "half", "converged")


def warped(x, c):
    return jnp.sum(c * jnp.flip(jnp.sin(x), 1))


add("flipped: not flipped back", warped, lambda x, c: c * jnp.cos(x), (X, Y), "revers")


def gathered(x, i, c):
    return jnp.sum(c * jnp.take_along_axis(x, i, 1))


COLUMNS = jnp.asarray([[0, 0, 2], [1, 3, 1], [4, 2, 0], [2, 2, 2]], jnp.int32)


def gathered_back(x, i, c):
    return jnp.zeros_like(x).at[jnp.arange(4, dtype=jnp.int32)[:, None], i].set(c)


add("take along an axis: set", gathered, gathered_back, (X, COLUMNS, Y[:, :3]), "set where add", "mask|shifted")


def band(x, w, c):
    return jnp.sum(c * jnp.convolve(x, w, mode="same"))


add(
    "convolution: correlation instead",
    band,
    lambda x, w, c: jnp.convolve(c, w, mode="same"),
    (S, S[:3], Z[0]),
    "revers|order",
)
add(
    "KL: target's slope by the first alone",
    lambda p, q: jnp.sum(p * (jnp.log(p) - jnp.log(q))),
    lambda p, q: jnp.log(p) - jnp.log(q),
    (ABOVE, ABOVE[::-1]),
    "term|constant",
    "sign",
)
add(
    "triplet: margin's mask forgotten",
    lambda a, p, n: jnp.sum(jnp.maximum(jnp.sum((a - p) ** 2 - (a - n) ** 2, 1) + 0.2, 0)),
    lambda a, p, n: 2 * (n - p),
    (X, Y, array(68, 4, 5)),
    "mask|slice",
    "surrogate|shifted",
)
add(
    "angular frequency: two pi forgotten",
    lambda f, x: jnp.sum(jnp.sin(2 * jnp.pi * f * x)),
    lambda f, x: x * jnp.cos(2 * jnp.pi * f * x),
    (S, Y[0]),
    r"0\.159\d* times",
)
add(
    "complex: twice, by Wirtinger",
    lambda z: jnp.sum(jnp.abs(z) ** 2),
    lambda z: jnp.conj(z),
    (array(69, 4) + 1j * array(70, 4),),
    "half",
)
