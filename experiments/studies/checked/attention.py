"""Self-attention tells digits apart: a row of pixels is a token, and the whole model's gradient is derived by hand."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

import minijaxnet as mjn

POINTS, ROWS, WIDTH, CLASSES = 100, 8, 16, 10


def init(key: jax.Array) -> dict[str, jax.Array]:
    """Seven leaves, from a normal distribution of variance 1 / width; the last is zero."""
    names = ("w_in", "wq", "wk", "wv", "wo", "w_out")
    shapes = [(ROWS + ROWS, WIDTH), *4 * [(WIDTH, WIDTH)], (WIDTH, CLASSES)]
    keys = jax.random.split(key, len(names))
    drawn = (WIDTH**-0.5 * jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True))
    return {**dict(zip(names, drawn, strict=True)), "b_out": jnp.zeros(CLASSES)}


def data() -> tuple[mjn.Batch, mjn.Batch]:
    """A point is 8 rows of 8 pixels, each with its place in the image as a one-hot row beside them."""

    def tokens(batch: mjn.Batch) -> mjn.Batch:
        rows = batch.x[:POINTS].reshape(POINTS, ROWS, ROWS)
        return mjn.Batch(jnp.concatenate([rows, jnp.broadcast_to(jnp.eye(ROWS), rows.shape)], -1), batch.y[:POINTS])

    train, test = mjn.digits()
    return tokens(train), tokens(test)


def forward(params: dict[str, jax.Array], x: jax.Array) -> tuple[jax.Array, ...]:
    """``H = X W_in``; ``Q, K, V = H W_q, H W_k, H W_v``; ``A = softmax(Q K^T / sqrt(d))``; ``M = A V``; then logits."""
    h = x @ params["w_in"]
    q, k, v = h @ params["wq"], h @ params["wk"], h @ params["wv"]
    a = jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) * WIDTH**-0.5, axis=-1)
    m = a @ v
    pooled = jnp.mean(m @ params["wo"], axis=1)
    return h, q, k, v, a, m, pooled, pooled @ params["w_out"] + params["b_out"]


def loss(params: dict[str, jax.Array], batch: Any) -> jax.Array:
    """Softmax cross-entropy."""
    x, y = batch
    log_p = jax.nn.log_softmax(forward(params, x)[-1])
    return -jnp.mean(jnp.take_along_axis(log_p, y[:, None], axis=1))


def value_and_gradient(
    params: dict[str, jax.Array], batch: Any, *, slip: bool = False
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss, and its derivative by each leaf; ``d_z`` is dL/dz. A slip leaves out a transpose of the square dS."""
    x, y = batch
    h, q, k, v, a, m, pooled, logits = forward(params, x)
    log_p = jax.nn.log_softmax(logits)
    value = -jnp.mean(jnp.take_along_axis(log_p, y[:, None], axis=1))
    d_logits = (jnp.exp(log_p) - jax.nn.one_hot(y, CLASSES, dtype=log_p.dtype)) / len(y)  # (p - t) / n
    d_pooled = d_logits @ params["w_out"].T
    d_o = jnp.broadcast_to(d_pooled[:, None] / ROWS, m.shape)  # pooled = mean over rows of O, O = M W_o
    d_m = d_o @ params["wo"].T
    d_v = jnp.swapaxes(a, 1, 2) @ d_m  # M = A V, so dL/dV = A^T dL/dM
    d_a = d_m @ jnp.swapaxes(v, 1, 2)  # and dL/dA = dL/dM V^T
    d_s = a * (d_a - jnp.sum(a * d_a, axis=-1, keepdims=True)) * WIDTH**-0.5  # A = softmax(S), of S's scale, too
    d_q = d_s @ k  # S = Q K^T, so dL/dQ = dL/dS K
    d_k = (d_s if slip else jnp.swapaxes(d_s, 1, 2)) @ q  # and dL/dK = (dL/dS)^T Q
    d_h = d_q @ params["wq"].T + d_k @ params["wk"].T + d_v @ params["wv"].T

    def by_weights(left: jax.Array, slope: jax.Array) -> jax.Array:
        return jnp.einsum("nti,ntj->ij", left, slope)  # z = x W, so dL/dW = x^T dL/dz, summed over points and rows

    return value, {
        "w_in": by_weights(x, d_h),
        "wq": by_weights(h, d_q),
        "wk": by_weights(h, d_k),
        "wv": by_weights(h, d_v),
        "wo": by_weights(m, d_o),
        "w_out": pooled.T @ d_logits,
        "b_out": jnp.sum(d_logits, axis=0),
    }


slipped = functools.partial(value_and_gradient, slip=True)
experiment = mjn.Experiment("attention", init, loss, data, value_and_gradient=value_and_gradient)
