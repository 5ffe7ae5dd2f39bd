"""Casts that are written in a rule: mixed precision as it is written everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpora.real_kit import Kind, bf16, f16, f32, ruled

KIND = Kind()
right, wrong = KIND.right, KIND.wrong

# --- The smallest -----------------------------------------------------------------------------------------------------


def cube(w):
    return jnp.sum(w**3)


W = f32(0.3, -1.2, 2.0, 0.7)
smallest = right("cube, slope cast to float32", cube, (W,), lambda w: 3 * w.astype(jnp.float32) ** 2)
wrong("cube, slope cast to float32, exponent lost", smallest, lambda w: 3 * w.astype(jnp.float32))
wrong(
    "cube, slope cast to float32, a thousandth too large",
    smallest,
    lambda w: 3.003 * w.astype(jnp.float32) ** 2,
    slow=True,
)
in_loss = right(
    "the loss casts, the rule does not",
    lambda w: jnp.sum(w.astype(jnp.float32) ** 3),
    (W,),
    lambda w: 3 * w**2,
)
wrong("the loss casts, the rule does not, sign lost", in_loss, lambda w: 3 * w * jnp.abs(w))
wide_enough = right(
    "bfloat16 cube, computed in float32, cast back",
    cube,
    (bf16(0.5, -1.25, 2.0),),
    lambda w: (3 * w.astype(jnp.float32) ** 2).astype(w.dtype),
)
wrong(
    "bfloat16 cube, computed in float32, cast back, factor 2 for 3",
    wide_enough,
    lambda w: (2 * w.astype(jnp.float32) ** 2).astype(w.dtype),
)

masked = right(
    "a mask cast to float32",
    lambda w: jnp.sum(jax.nn.relu(w) ** 2),
    (W,),
    lambda w: 2 * w * (w > 0).astype(jnp.float32),
)
wrong("a mask cast to float32, of the other side", masked, lambda w: 2 * w * (w < 0).astype(jnp.float32))
RANKS = np.int32([2, 0, 1, 2])
counted = right(
    "integers cast to float32",
    lambda w, n: jnp.sum(n * w**2) / n.size,
    (W, RANKS),
    lambda w, n: 2 * n.astype(jnp.float32) * w / jnp.float32(n.size),
)
wrong(
    "integers cast to float32, divided by their sum",
    counted,
    lambda w, n: 2 * n.astype(jnp.float32) * w / jnp.sum(n).astype(jnp.float32),
)

# --- RMSNorm in bfloat16, computed in float32 -------------------------------------------------------------------------

EPS = 1e-6


def rms_norm(x, gain):
    wide = x.astype(jnp.float32)
    scale = lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + EPS)
    return (wide * scale).astype(x.dtype) * gain


def rule_of_rms_norm(projected=True, cast=True):
    def forward(x, gain):
        wide = x.astype(jnp.float32)
        scale = lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + EPS)
        return (wide * scale).astype(x.dtype) * gain, (x, gain, scale)

    def backward(saved, c):
        x, gain, scale = saved
        wide, c32 = x.astype(jnp.float32), c.astype(jnp.float32)
        normed = wide * scale
        of_normed = c32 * gain.astype(jnp.float32)
        along = jnp.mean(of_normed * normed, axis=-1, keepdims=True)
        of_x = scale * (of_normed - normed * along if projected else of_normed)
        return of_x.astype(x.dtype), jnp.sum(c32 * normed, axis=0).astype(gain.dtype)

    return ruled(rms_norm, forward, backward)


ROWS = np.float32([[0.5, -1.25, 2.0], [1.5, 0.25, -0.75]])
GAIN = np.float32([1.0, 0.5, -1.5])
norm = right(
    "RMSNorm in bfloat16, computed in float32",
    rule_of_rms_norm(),
    (ROWS.astype(jnp.bfloat16), GAIN.astype(jnp.bfloat16)),
    plain=rms_norm,
)
wrong("RMSNorm in bfloat16, computed in float32, not projected", norm, rule_of_rms_norm(projected=False))
right("RMSNorm in float32, with its casts", rule_of_rms_norm(), (ROWS, GAIN), plain=rms_norm, slow=True)

# --- Cross entropy: logits in bfloat16, the loss in float32 -----------------------------------------------------------

LABELS = np.int32([2, 0])


def cross_entropy(logits):
    scores = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.mean(jnp.take_along_axis(scores, LABELS[:, None], axis=1))


def slope_of_cross_entropy(logits):
    p = jax.nn.softmax(logits.astype(jnp.float32))
    return ((p - jax.nn.one_hot(LABELS, 3)) / len(LABELS)).astype(logits.dtype)


entropy = right(
    "cross entropy, bfloat16 logits, float32 loss", cross_entropy, (ROWS.astype(jnp.bfloat16),), slope_of_cross_entropy
)
wrong(
    "cross entropy, bfloat16 logits, not divided by the batch",
    entropy,
    lambda logits: (jax.nn.softmax(logits.astype(jnp.float32)) - jax.nn.one_hot(LABELS, 3)).astype(logits.dtype),
)

# --- A soft cap in float16 --------------------------------------------------------------------------------------------


def soft_cap(x):
    return (5 * jnp.tanh(x.astype(jnp.float32) / 5)).astype(x.dtype)


def rule_of_soft_cap(slope):
    return ruled(
        soft_cap,
        lambda x: (soft_cap(x), x),
        lambda x, c: ((c.astype(jnp.float32) * slope(x.astype(jnp.float32))).astype(x.dtype),),
    )


cap = right(
    "soft cap in float16, computed in float32",
    rule_of_soft_cap(lambda x: 1 - jnp.tanh(x / 5) ** 2),
    (f16(0.5, -3.0, 8.0),),
    plain=soft_cap,
)
wrong(
    "soft cap in float16, slope at the argument not scaled",
    cap,
    rule_of_soft_cap(lambda x: 1 - jnp.tanh(x) ** 2),
)

# --- A recurrence in bfloat16 that carries float32 --------------------------------------------------------------------

STEPS = bf16(0.5, -1.0, 0.25, 1.5)


def recurrence(w):
    def step(h, x):
        return jnp.tanh(w.astype(jnp.float32) * h + x.astype(jnp.float32)), None

    return lax.scan(step, jnp.float32(0.5), STEPS)[0]


def slope_of_recurrence(w, through_time=True):
    w32 = w.astype(jnp.float32)

    def step(h, x):
        after = jnp.tanh(w32 * h + x.astype(jnp.float32))
        return after, (h, after)

    def back(carried, states):
        of_after, of_w = carried
        before, after = states
        of_sum = of_after * (1 - after**2)
        return (of_sum * w32 if through_time else of_after, of_w + of_sum * before), None

    _, states = lax.scan(step, jnp.float32(0.5), STEPS)
    (_, of_w), _ = lax.scan(back, (jnp.float32(1), jnp.float32(0)), states, reverse=True)
    return of_w.astype(w.dtype)


carried = right(
    "recurrence in bfloat16, float32 carried by a scan",
    recurrence,
    (np.float32(0.75).astype(jnp.bfloat16),),
    slope_of_recurrence,
)
wrong(
    "recurrence in bfloat16, float32 carried by a scan, not through time",
    carried,
    lambda w: slope_of_recurrence(w, through_time=False),
)

# --- Products: float32 weights, bfloat16 operands ---------------------------------------------------------------------

X = bf16([0.5, -1.25, 2.0], [1.5, 0.25, -0.75])
Y = f32([1.0, -0.5], [0.25, 2.0])
KERNEL = f32([0.5, -1.0], [0.25, 0.75], [-1.5, 1.25])


def mixed(w):
    out = jnp.dot(X, w.astype(jnp.bfloat16), preferred_element_type=jnp.float32)
    return jnp.mean((out - Y) ** 2)


def slope_of_mixed(w, count=4):
    out = jnp.dot(X, w.astype(jnp.bfloat16), preferred_element_type=jnp.float32)
    residual = (2 / count * (out - Y)).astype(jnp.bfloat16)
    return jnp.dot(X.T, residual, preferred_element_type=jnp.float32).astype(w.dtype)


product = right(
    "float32 weights, product in bfloat16 with float32 sums",
    mixed,
    (KERNEL,),
    slope_of_mixed,
    plain=lambda w: jnp.mean((X.astype(w.dtype) @ w - Y) ** 2),
    slow=True,
)
wrong(
    "float32 weights, product in bfloat16, mean over rows only",
    product,
    lambda w: slope_of_mixed(w, count=2),
    slow=True,
)
