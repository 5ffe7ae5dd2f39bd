"""An LSTM reads 100 numbers at a time and keeps their sum; its backward pass through time is a scan by hand.

Source: Hochreiter and Schmidhuber, "Long short-term memory", 1997; with the forget gate of Gers et al., 2000.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

STEPS, POINTS, INPUTS, WIDTH = 100, 8, 3, 8


def cell(params: Any, h: jax.Array, c: jax.Array, x: jax.Array) -> tuple[jax.Array, ...]:
    """``i, f, o = sigmoid(z)``, ``g = tanh(z)``, ``z = x W + h U + b``; ``c' = f c + i g``, ``h' = o tanh(c')``."""
    i, f, g, o = jnp.split(x @ params["w"] + h @ params["u"] + params["b"], 4, axis=1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    c = f * c + i * g
    return i, f, g, o, c, o * jnp.tanh(c)


def run(params: Any, x: jax.Array) -> tuple[jax.Array, Any]:
    """The last h, and of each step what it came from (h, c) and its gates and states."""

    def step(carry: Any, x: jax.Array) -> tuple[Any, Any]:
        h, c = carry
        *gates, c, h = cell(params, h, c, x)
        return (h, c), (*carry, *gates, c)

    start = jnp.zeros((x.shape[1], WIDTH), x.dtype)
    (h, _), kept = lax.scan(step, (start, start), x)
    return h, kept


def loss(params: Any, batch: Any) -> jax.Array:
    """Mean squared error of ``y = h V`` after the last step."""
    x, target = batch
    return jnp.mean((run(params, x)[0] @ params["v"] - target) ** 2)


def value_and_gradient(params: Any, batch: Any) -> tuple[jax.Array, Any]:
    """Backpropagation through time; ``d_z`` is dL/dz."""
    x, target = batch
    last, kept = run(params, x)
    error = last @ params["v"] - target
    d_y = 2 * error / error.size  # L = mean((y - t)^2)

    def back(carry: Any, kept: Any) -> tuple[Any, jax.Array]:
        d_h, d_c = carry
        _, before, i, f, g, o, c = kept
        t = jnp.tanh(c)
        d_o = d_h * t  # h' = o tanh(c')
        d_c = d_c + d_h * o * (1 - t**2)
        d_i, d_f, d_g = d_c * g, d_c * before, d_c * i  # c' = f c + i g
        gates = d_i * i * (1 - i), d_f * f * (1 - f), d_g * (1 - g**2), d_o * o * (1 - o)
        d_z = jnp.concatenate(gates, axis=1)
        return (d_z @ params["u"].T, d_c * f), d_z  # z = x W + h U + b, and c' = f c + i g

    start = (d_y @ params["v"].T, jnp.zeros_like(last))
    _, d_z = lax.scan(back, start, kept, reverse=True)
    return jnp.mean(error**2), {
        "w": jnp.einsum("tni,tnj->ij", x, d_z),
        "u": jnp.einsum("tni,tnj->ij", kept[0], d_z),
        "b": jnp.sum(d_z, axis=(0, 1)),
        "v": last.T @ d_y,
    }


def arguments() -> tuple[Any, Any]:
    """Weights, and random numbers ``(steps, points, inputs)`` with the mean of each point's as its target."""
    shapes = {"w": (INPUTS, 4 * WIDTH), "u": (WIDTH, 4 * WIDTH), "b": (4 * WIDTH,), "v": (WIDTH, 1)}
    *keys, x_key = jax.random.split(jax.random.key(0), 1 + len(shapes))
    params = {k: WIDTH**-0.5 * jax.random.normal(key, shapes[k]) for k, key in zip(shapes, keys, strict=True)}
    x = jax.random.normal(x_key, (STEPS, POINTS, INPUTS))
    return params, (x, jnp.mean(x, axis=(0, 2))[:, None])


args = arguments()
