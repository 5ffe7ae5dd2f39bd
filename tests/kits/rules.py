"""Functions with a derivative rule of their own."""

import jax
import jax.numpy as jnp


def custom(fun, forward, backward, **options):
    """A new function with a rule of its own; ``jax.custom_vjp`` of the same function twice would share one."""
    ruled = jax.custom_vjp(lambda *args: fun(*args), **options)
    ruled.defvjp(forward, backward)
    return ruled


def sine(backward=lambda x, c: jnp.cos(x) * c):
    return custom(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, c: (backward(x, c),))
