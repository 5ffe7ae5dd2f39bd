"""RMSNorm with a rule by hand.

Source: Zhang and Sennrich, "Root mean square layer normalization", 2019.
"""

import jax
import jax.numpy as jnp

EPSILON = 1e-6


def plain(x: jax.Array, scale: jax.Array) -> jax.Array:
    """``y = s x r``, ``r = (mean(x^2) + epsilon)^(-1/2)``, row by row."""
    return scale * x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + EPSILON)


def forward(x: jax.Array, scale: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The value, and what the slopes need."""
    r = jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + EPSILON)
    return scale * x * r, (x, scale, r)


def backward(kept: tuple[jax.Array, ...], d_y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The slopes; ``d_z`` is dL/dz.

    ``dr/dx_j = -r^3 x_j / n``, so ``dL/dx = r s d_y - x r^3 mean(s d_y x)``; and ``dL/ds = sum over rows of d_y x r``.
    """
    x, scale, r = kept
    d_x = r * scale * d_y - x * r**3 * jnp.mean(scale * d_y * x, axis=-1, keepdims=True)
    return d_x, jnp.sum(d_y * x * r, axis=0)


fun = jax.custom_vjp(plain)
fun.defvjp(forward, backward)
args = (jax.random.normal(jax.random.key(0), (4, 6)), jnp.linspace(0.5, 1.5, 6))
