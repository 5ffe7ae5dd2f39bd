"""Mixed precision as it is written everywhere, arrays that a rule closes over, and constants rounded beforehand."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpora.kit import Code, custom, drawn, f32

CASTS, CLOSURES, BEFOREHAND = Code(), Code(), Code()
W = f32(0.3, -1.2, 2.0)

# --- Casts ------------------------------------------------------------------------------------------------------------

grad, rule = CASTS.grad, CASTS.rule


def cube(w):
    return jnp.sum(w**3)


grad(
    "cube, slope cast to float32",
    cube,
    (W,),
    lambda w: 3 * w.astype(jnp.float32) ** 2,
    {"exponent lost": lambda w: 3 * w.astype(jnp.float32)},
)
grad(
    "the loss casts, the rule does not",
    lambda w: jnp.sum(w.astype(jnp.float32) ** 3),
    (W,),
    lambda w: 3 * w**2,
    {"sign lost": lambda w: 3 * w * jnp.abs(w)},
)
grad(
    "bfloat16 cube, computed in float32, cast back",
    cube,
    (W.astype(jnp.bfloat16),),
    lambda w: (3 * w.astype(jnp.float32) ** 2).astype(w.dtype),
    {"factor 2 for 3": lambda w: (2 * w.astype(jnp.float32) ** 2).astype(w.dtype)},
)


def rms_norm(x, gain):
    wide = x.astype(jnp.float32)
    scale = lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + 1e-6)
    return (wide * scale).astype(x.dtype) * gain


def rule_of_rms_norm(projected=1):
    def backward(saved, c):
        x, gain = saved
        wide, c32 = x.astype(jnp.float32), c.astype(jnp.float32)
        scale = lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + 1e-6)
        normed, of_normed = wide * scale, c32 * gain.astype(jnp.float32)
        along = jnp.mean(of_normed * normed, axis=-1, keepdims=True)
        of_x = scale * (of_normed - projected * normed * along)
        return of_x.astype(x.dtype), jnp.sum(c32 * normed, axis=0).astype(gain.dtype)

    return custom(rms_norm, lambda x, gain: (rms_norm(x, gain), (x, gain)), backward)


ROWS = np.float32([[0.5, -1.25, 2.0], [1.5, 0.25, -0.75]]).astype(jnp.bfloat16)
GAIN = f32(1.0, 0.5, -1.5).astype(jnp.bfloat16)
rule("RMSNorm in bfloat16, in float32 inside", rule_of_rms_norm(), (ROWS, GAIN), {"not projected": rule_of_rms_norm(0)})


def soft_cap(x):
    return (5 * jnp.tanh(x.astype(jnp.float32) / 5)).astype(x.dtype)


def rule_of_soft_cap(scale):
    def backward(x, c):
        return ((c.astype(jnp.float32) * (1 - jnp.tanh(x.astype(jnp.float32) / scale) ** 2)).astype(x.dtype),)

    return custom(soft_cap, lambda x: (soft_cap(x), x), backward)


HALF = np.float16([0.5, -3.0, 8.0])
rule("soft cap in float16, in float32 inside", rule_of_soft_cap(5), (HALF,), {"slope not scaled": rule_of_soft_cap(1)})
KERNEL, TARGET = drawn(3, 2, seed=5), f32([1.0, -0.5], [0.25, 2.0])


def mixed(w):
    return jnp.dot(ROWS, w.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


def slope_of_mixed(w, count=4):
    residual = (2 / count * (mixed(w) - TARGET)).astype(jnp.bfloat16)
    return jnp.dot(ROWS.T, residual, preferred_element_type=jnp.float32).astype(w.dtype)


grad(
    "float32 weights, product in bfloat16 with float32 sums",
    lambda w: jnp.mean((mixed(w) - TARGET) ** 2),
    (KERNEL,),
    slope_of_mixed,
    {"mean over rows only": lambda w: slope_of_mixed(w, 2)},
)

# --- Closed over ------------------------------------------------------------------------------------------------------

grad, rule = CLOSURES.grad, CLOSURES.rule
C = f32(0.1, 1.7, -0.6)  # none of them exact in binary
ON_DEVICE = jnp.asarray(C)
grad(
    "a JAX array closed over by loss and gradient",
    lambda w: jnp.sum(ON_DEVICE * ON_DEVICE * w**2),
    (W,),
    lambda w: 2 * (ON_DEVICE * ON_DEVICE) * w,
    {"not squared in the gradient": lambda w: 2 * ON_DEVICE * w},
)
grad(
    "a NumPy array closed over, multiplied by NumPy",
    lambda w: jnp.sum(C * C * w**2),
    (W,),
    lambda w: 2 * (C * C) * w,
    {"factor 2 forgotten": lambda w: (C * C) * w},
)
KEEP = jnp.asarray(f32(1.25, 0, 1.25))


def rule_of_projected(backward):
    projected = lambda x: (x * KEEP) @ KERNEL  # noqa: E731
    return custom(projected, lambda x: (projected(x), None), lambda _, c: (backward(c),))


rule(
    "a backward pass that closes over arrays",
    rule_of_projected(lambda c: (c @ KERNEL.T) * KEEP),
    (W,),
    {"mask forgotten": rule_of_projected(lambda c: c @ KERNEL.T)},
)
SERIES = {"rates": f32(0.9, 0.7, 0.3), "inputs": f32(0.1, -0.4, 1.1), "order": np.int32([2, 0, 1])}


def filtered(w):
    def step(state, row):
        return row["rates"] * state + row["inputs"] * w[row["order"]], None

    return lax.scan(step, jnp.zeros(()), SERIES)[0]


def slope_of_filtered(w, later=True):
    decay = np.cumprod(np.append(SERIES["rates"], np.float32(1))[::-1])[::-1]
    return jnp.zeros_like(w).at[SERIES["order"]].add((decay[1:] if later else decay[:-1]) * SERIES["inputs"])


grad(
    "tables scanned over, their products by NumPy",
    filtered,
    (W,),
    slope_of_filtered,
    {"decay one step too long": lambda w: slope_of_filtered(w, later=False)},
)

# --- Computed, and rounded, beforehand --------------------------------------------------------------------------------

grad = BEFOREHAND.grad
POSITIVE = jnp.asarray(f32(0.3, 1.1, 2.7))
SHARES = POSITIVE / jnp.sum(POSITIVE)
grad(
    "shares normalised outside",
    lambda w: jnp.sum(POSITIVE / jnp.sum(POSITIVE) * w),
    (W,),
    lambda w: SHARES + 0 * w,
    {"twice as large": lambda w: 2 * SHARES + 0 * w, "a thousandth too large": lambda w: 1.001 * SHARES + 0 * w},
)


def in_a_loop(w):
    one = lambda k: lax.cond(k < 2, lambda: (POSITIVE / jnp.sum(POSITIVE) * w)[k], lambda: 0.0)  # noqa: E731
    return lax.fori_loop(0, 3, lambda k, s: s + one(k), 0.0)


grad(
    "shares normalised outside, each in a branch of a loop, jitted",
    jax.jit(in_a_loop),
    (W,),
    jax.jit(lambda w: jnp.where(jnp.arange(3) < 2, SHARES, 0 * w)),
    {"one too many": jax.jit(lambda w: SHARES + 0 * w)},
)
DATA, SEEN = drawn(20, 3, seed=7) * f32(1, 3, 0.2) + f32(0.5, -1, 2), drawn(20, seed=8)
NORMAL, RIGHT_SIDE = DATA.T @ DATA / 20, DATA.T @ SEEN / 20
OFF = NORMAL * f32([1, 1, 1], [1, 1.001, 1], [1, 1, 1])
grad(
    "normal equations, by NumPy in float32",
    lambda w: jnp.mean((DATA @ w - SEEN) ** 2) / 2,
    (W,),
    lambda w: NORMAL @ w - RIGHT_SIDE,
    {"a matrix element off by a thousandth": lambda w: OFF @ w - RIGHT_SIDE},
)


ANGLES = np.arange(3)[:, None] * 100.0 ** (-np.arange(2) / 2)
COS, SIN = np.cos(ANGLES).astype(np.float32), np.sin(ANGLES).astype(np.float32)
QUERY = drawn(3, 4, seed=9)


def rotary(x):
    angle = jnp.arange(3.0)[:, None] * 100.0 ** (-jnp.arange(2) / 2)
    left, right = x[:, :2], x[:, 2:]
    turned = [left * jnp.cos(angle) - right * jnp.sin(angle), left * jnp.sin(angle) + right * jnp.cos(angle)]
    return jnp.sum(QUERY * jnp.concatenate(turned, axis=1))


def slope_of_rotary(sin):
    left, right = QUERY[:, :2], QUERY[:, 2:]
    return lambda x: np.concatenate([left * COS + right * sin, right * COS - left * sin], axis=1) + 0 * x


grad(
    "rotary embedding by a table",
    rotary,
    (drawn(3, 4, seed=10),),
    slope_of_rotary(SIN),
    {"an angle off by a thousandth": slope_of_rotary(SIN * f32(1, 1.001))},
)
RATE = jnp.float32(0.1)
grad(
    "a rate in float32 in the loss, as a number in the gradient",
    lambda w: RATE * jnp.sum(w**2) / 2,
    (W,),
    lambda w: 0.1 * w,
    {"a thousandth too large": lambda w: 0.1001 * w},
)
