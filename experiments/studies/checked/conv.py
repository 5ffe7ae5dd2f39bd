"""Two convolutions, means of 2 x 2 pixels and a dense layer tell digits apart, with the gradient by hand."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import minijaxnet as mjn

POINTS, SIDE, CHANNELS, CLASSES = 100, 8, (1, 4, 8), 10


def conv(x: jax.Array, w: jax.Array) -> jax.Array:
    """``z[n, o, p] = sum over i, k of x[n, i, p + k - 1] w[o, i, k]``, p and k of two numbers each, zeros outside."""
    return lax.conv_general_dilated(x, w, (1, 1), [(1, 1), (1, 1)])


def forward(params: Any, x: jax.Array) -> tuple[jax.Array, ...]:
    """Everything on the way to the logits."""
    first = conv(x, params["first"])
    second = conv(jax.nn.relu(first), params["second"])
    pooled = jax.nn.relu(second).reshape(len(x), -1, SIDE // 2, 2, SIDE // 2, 2).mean((3, 5)).reshape(len(x), -1)
    return first, second, pooled, pooled @ params["w"] + params["b"]


def loss(params: Any, batch: Any) -> jax.Array:
    """Softmax cross-entropy."""
    return mjn.softmax_cross_entropy(forward(params, batch.x)[-1], batch.y)


def value_and_gradient(params: Any, batch: Any) -> tuple[jax.Array, Any]:
    """The loss, and its derivative by each leaf; ``d_z`` is dL/dz."""
    x, y = batch
    first, second, pooled, logits = forward(params, x)
    d_logits = (jax.nn.softmax(logits) - jax.nn.one_hot(y, CLASSES, dtype=logits.dtype)) / len(y)  # (p - t) / n
    d_pooled = (d_logits @ params["w"].T).reshape(len(x), -1, SIDE // 2, SIDE // 2)
    d_h = jnp.repeat(jnp.repeat(d_pooled, 2, axis=2), 2, axis=3) / 4  # each pixel is a quarter of its mean
    d_second = jnp.where(second > 0, d_h, 0)  # h = relu(z)
    d_first = jnp.where(first > 0, by_input(params["second"], d_second), 0)
    return mjn.softmax_cross_entropy(logits, y), {
        "first": by_weights(x, d_first),
        "second": by_weights(jax.nn.relu(first), d_second),
        "w": pooled.T @ d_logits,
        "b": jnp.sum(d_logits, axis=0),
    }


def by_input(w: jax.Array, d_z: jax.Array) -> jax.Array:
    """``dL/dx[n, i, q] = sum over o, k of d_z[n, o, q - k + 1] w[o, i, k]``: w reversed, its channels exchanged."""
    return conv(d_z, jnp.flip(w, (2, 3)).swapaxes(0, 1))


def by_weights(x: jax.Array, d_z: jax.Array) -> jax.Array:
    """``dL/dw[o, i, k] = sum over n, p of x[n, i, p + k - 1] d_z[n, o, p]``: points take the place of channels."""
    return conv(x.swapaxes(0, 1), d_z.swapaxes(0, 1)).swapaxes(0, 1)


def arguments() -> tuple[Any, mjn.Batch]:
    """Weights by He's rule, and the first points of digits as images."""
    a, b, c = CHANNELS
    shapes = {"first": (b, a, 3, 3), "second": (c, b, 3, 3), "w": (c * SIDE**2 // 4, CLASSES)}
    fans = {"first": 9 * a, "second": 9 * b, "w": c * SIDE**2 // 4}
    keys = zip(shapes, jax.random.split(jax.random.key(0), len(shapes)), strict=True)
    params = {name: (2 / fans[name]) ** 0.5 * jax.random.normal(key, shapes[name]) for name, key in keys}
    train, _ = mjn.digits()
    x = train.x[:POINTS].reshape(POINTS, 1, SIDE, SIDE)
    return {**params, "b": jnp.zeros(CLASSES)}, mjn.Batch(x, train.y[:POINTS])


args = arguments()
