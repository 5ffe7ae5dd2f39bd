"""Gradients of the layers of networks, and through sequences."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpora.kit import Cases, GradCase, Slip, but, fixed, given, normal, swapped, uniform, wide

CASES = Cases(GradCase)
add = CASES.add

# --- Normalisation ----------------------------------------------------------------------------------------------------


def standardise(x, axis, epsilon=1e-5):
    centred = x - jnp.mean(x, axis=axis, keepdims=True)
    inverse = lax.rsqrt(jnp.mean(centred**2, axis=axis, keepdims=True) + epsilon)
    return centred * inverse, inverse


def standardise_back(hat, inverse, g, axis, mean=1, projection=1):
    along = hat * jnp.mean(g * hat, axis=axis, keepdims=True)
    return inverse * (g - mean * jnp.mean(g, axis=axis, keepdims=True) - projection * along)


def norm_loss(axis):
    return lambda p, c: jnp.sum(c * (p["scale"] * standardise(p["x"], axis)[0] + p["shift"]))


def norm_gradient(axis, sums=0, **terms):
    def gradient(p, c):
        hat, inverse = standardise(p["x"], axis)
        back = standardise_back(hat, inverse, c * p["scale"], axis, **terms)
        return {"x": back, "scale": jnp.sum(c * hat, axis=0), "shift": jnp.sum(c, axis=sums)}

    return gradient


NORM = given({"x": normal(4, 4), "scale": normal(4), "shift": normal(4)}, normal(4, 4))
add(
    "layer norm",
    norm_loss(1),
    NORM,
    norm_gradient(1),
    {
        "mean forgotten": (norm_gradient(1, mean=0), Slip("missing term", "['x']")),
        "projection forgotten": (norm_gradient(1, projection=0), Slip("missing term", "['x']")),
        "shift summed over features": (norm_gradient(1, sums=1), Slip("axis", "['shift']")),
        "shift of the first row for all": (
            lambda p, c: {**norm_gradient(1)(p, c), "shift": c[0]},
            Slip("broadcast", "['shift']"),
        ),
    },
)


add(
    "bias before a batch norm",
    lambda b, x, c: jnp.sum(c * standardise(x + b, 0)[0]),
    given(normal(3), normal(6, 3), normal(6, 3)),
    lambda b, x, c: jnp.zeros_like(b),
    {"a slope": (lambda b, x, c: jnp.sum(c * standardise(x + b, 0)[1], axis=0), Slip("missing term"))},
    rounding=1e-14,
)


def softmax_gradient(x, c, axis=-1):
    s = jax.nn.softmax(x)
    return s * (c - jnp.sum(c * s, axis=axis, keepdims=True))


add(
    "softmax",
    lambda x, c: jnp.sum(c * jax.nn.softmax(x)),
    given(normal(3, 4), normal(3, 4)),
    softmax_gradient,
    {
        "its own slope only": (lambda x, c: c * jax.nn.softmax(x), Slip("missing term")),
        "projected along the batch": (lambda x, c: softmax_gradient(x, c, 0), Slip("axis")),
    },
)


def attend(p, mask):
    scores = p["q"] @ p["k"].T / p["q"].shape[-1] ** 0.5
    return jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))


def attention_gradient(p, mask, c):
    weights, da = attend(p, mask), c @ p["v"].T
    ds = weights * (da - jnp.sum(da * weights, axis=-1, keepdims=True)) / p["q"].shape[-1] ** 0.5
    return {"q": ds @ p["k"], "k": ds.T @ p["q"], "v": weights.T @ c}


add(
    "attention, causal",
    lambda p, mask, c: jnp.sum(c * (attend(p, mask) @ p["v"])),
    given({name: normal(4, 4) for name in "qkv"}, fixed(np.tri(4, dtype=bool), bool), normal(4, 4)),
    attention_gradient,
    {
        "q and k swapped": swapped("q", "k"),
        "a NaN in one element": (
            but(attention_gradient, "['v']", lambda v: v.at[2, 1].set(jnp.nan)),
            Slip("nonfinite", "['v']", (2, 1)),
        ),
        "mask forgotten in v": (
            lambda p, mask, c: {**attention_gradient(p, mask, c), "v": attend(p, True).T @ c},
            Slip("other", "['v']"),
        ),
    },
)

# --- Sequences --------------------------------------------------------------------------------------------------------


def rnn_states(p, x):
    def step(h, x):
        h = jnp.tanh(x @ p["in"] + h @ p["hidden"] + p["bias"])
        return h, h

    return lax.scan(step, jnp.zeros_like(p["bias"]), x)[1]


def rnn_gradient(p, x, c, late=False, cut=False):
    h = rnn_states(p, x)

    def back(later, states):
        h, c = states
        delta = (c + later) * (1 - h) * (1 + h)
        return 0 * delta if cut else delta @ p["hidden"].T, delta

    delta = lax.scan(back, jnp.zeros_like(p["bias"]), (h, c), reverse=True)[1]
    before = h if late else jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])
    return {"in": x.T @ delta, "hidden": before.T @ delta, "bias": jnp.sum(delta, axis=0)}


add(
    "recurrent network through time",
    lambda p, x, c: jnp.sum(c * rnn_states(p, x)),
    given({"in": normal(3, 3), "hidden": normal(3, 3), "bias": normal(3)}, normal(5, 3), normal(5, 3)),
    rnn_gradient,
    {
        "not through time": (lambda *args: rnn_gradient(*args, cut=True), Slip("missing term", None)),
        "states one step late": (lambda *args: rnn_gradient(*args, late=True), Slip("index", "['hidden']")),
    },
)


def recurrence(a, b):
    def step(h, ab):
        h = ab[0] * h + ab[1]
        return h, h

    return lax.scan(step, jnp.zeros_like(b[0]), (a, b))[1]


def recurrence_gradient(p, c):
    h = recurrence(p["a"], p["b"])
    # The adjoint runs the same recurrence backwards, with the rates one step later.
    later = jnp.concatenate([p["a"][1:], jnp.zeros_like(p["a"][:1])])
    db = recurrence(later[::-1], c[::-1])[::-1]
    return {"a": db * jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]]), "b": db}


add(
    "linear recurrence",
    lambda p, c: jnp.sum(c * recurrence(p["a"], p["b"])),
    given({"a": uniform(6, 3), "b": normal(6, 3)}, normal(6, 3)),
    recurrence_gradient,
    {
        "a step early": (
            lambda p, c: recurrence_gradient(p, c) | {"b": recurrence(p["a"][::-1], c[::-1])[::-1]},
            Slip("other", "['b']"),
        )
    },
)


def fixed_point(p):
    return lax.fori_loop(0, 120, lambda _, z: jnp.tanh(p["w"] @ z + p["b"]), jnp.zeros_like(p["b"]))


def fixed_point_gradient(p, c, implicit=True):
    z = fixed_point(p)
    slope = wide((1 - z) * (1 + z))
    matrix = (jnp.eye(len(z)) - slope[:, None] * p["w"]).T
    v = slope * (jnp.linalg.solve(matrix, c) if implicit else c)
    return jax.tree.map(lambda leaf: leaf.astype(z.dtype), {"w": jnp.outer(v, z), "b": v})


add(
    "fixed point, implicitly",
    lambda p, c: c @ fixed_point(p),
    given({"w": normal(4, 4, scale=0.25), "b": normal(4)}, normal(4)),
    fixed_point_gradient,
    {"one step only": (lambda p, c: fixed_point_gradient(p, c, False), Slip("missing term", None))},
)
