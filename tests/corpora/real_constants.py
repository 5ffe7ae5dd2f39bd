"""Arrays that a rule closes over, and constants that were computed, and rounded, beforehand."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpora.real_kit import Kind, drawn, elementwise, f32, ruled

CLOSURES = Kind()
right, wrong = CLOSURES.right, CLOSURES.wrong

# --- Closed over ------------------------------------------------------------------------------------------------------

W = f32(0.3, -1.2, 2.0)
C = f32(0.1, 1.7, -0.6)  # none of them exact in binary
C_ON_DEVICE = jnp.asarray(C)
closed = right(
    "a JAX array closed over by loss and gradient",
    lambda w: jnp.sum(C_ON_DEVICE * C_ON_DEVICE * w**2),
    (W,),
    lambda w: 2 * (C_ON_DEVICE * C_ON_DEVICE) * w,
)
wrong("a JAX array closed over, not squared in the gradient", closed, lambda w: 2 * C_ON_DEVICE * w)
in_numpy = right(
    "a NumPy array closed over, multiplied by NumPy",
    lambda w: jnp.sum(C * C * w**2),
    (W,),
    lambda w: 2 * (C * C) * w,
)
wrong("a NumPy array closed over, factor 2 forgotten", in_numpy, lambda w: (C * C) * w)
by_numpy_and_jax = right(
    "squared by JAX in the loss, by NumPy in the gradient",
    lambda w: jnp.sum(C_ON_DEVICE**2 * w**2),
    (W,),
    lambda w: 2 * C**2 * w,
)
wrong("squared by JAX in the loss, a sign in the gradient", by_numpy_and_jax, lambda w: 2 * C * np.abs(C) * w)

LAYERS = [(drawn(4, 3, seed=1), drawn(4, seed=2)), (drawn(2, 4, seed=3), drawn(2, seed=4))]


def network(x):
    for weights, bias in LAYERS:
        x = jnp.tanh(weights @ x + bias)
    return jnp.sum(x)


def saliency(x, slope=lambda h: 1 - h**2):
    hidden = [x]
    for weights, bias in LAYERS:
        hidden.append(jnp.tanh(weights @ hidden[-1] + bias))
    back = jnp.ones_like(hidden[-1])
    for (weights, _), h in zip(reversed(LAYERS), reversed(hidden[1:]), strict=True):
        back = weights.T @ (back * slope(h))
    return back


layers = right("a list of layers closed over, slope of the input", network, (W,), saliency)
wrong("a list of layers closed over, slope of tanh not squared", layers, lambda x: saliency(x, lambda h: 1 - h))

KERNEL, KEEP = jnp.asarray(drawn(3, 2, seed=5)), jnp.asarray(f32(1.25, 0, 1.25))


def projected(x):
    return (x * KEEP) @ KERNEL


def rule_of_projected(backward):
    return ruled(projected, lambda x: (projected(x), None), lambda _, c: (backward(c),))


projection = right(
    "a backward pass that closes over arrays",
    rule_of_projected(lambda c: (c @ KERNEL.T) * KEEP),
    (W,),
    plain=projected,
)
wrong("a backward pass that closes over arrays, mask forgotten", projection, rule_of_projected(lambda c: c @ KERNEL.T))

SERIES = {"rates": f32(0.9, 0.7, 0.3), "inputs": f32(0.1, -0.4, 1.1), "order": np.int32([2, 0, 1])}


def filtered(w):
    def step(state, row):
        rate, x, at = row
        return rate * state + x * w[at], None

    return lax.scan(step, jnp.zeros(()), (SERIES["rates"], SERIES["inputs"], SERIES["order"]))[0]


def slope_of_filtered(w, later=True):
    decay = np.cumprod(np.append(SERIES["rates"], np.float32(1))[::-1])[::-1]
    decay = decay[1:] if later else decay[:-1]
    return jnp.zeros_like(w).at[SERIES["order"]].add(decay * SERIES["inputs"])


series = right("a dictionary of series scanned over, its products by NumPy", filtered, (W,), slope_of_filtered)
wrong(
    "a dictionary of series scanned over, decay one step too long",
    series,
    lambda w: slope_of_filtered(w, later=False),
)
curve = right(
    "coefficients closed over by a rule",
    elementwise(lambda x: jnp.polyval(C_ON_DEVICE, x), lambda x: 2 * C_ON_DEVICE[0] * x + C_ON_DEVICE[1]),
    (W,),
    plain=lambda x: jnp.polyval(C_ON_DEVICE, x),
    slow=True,
)
wrong(
    "coefficients closed over by a rule, the constant one taken",
    curve,
    elementwise(lambda x: jnp.polyval(C_ON_DEVICE, x), lambda x: 2 * C_ON_DEVICE[0] * x + C_ON_DEVICE[2]),
    slow=True,
)

# --- Computed beforehand ----------------------------------------------------------------------------------------------

BEFOREHAND = Kind()
right, wrong = BEFOREHAND.right, BEFOREHAND.wrong

POSITIVE = jnp.asarray(f32(0.3, 1.1, 2.7))
SHARES = POSITIVE / jnp.sum(POSITIVE)
shares = right(
    "shares normalised outside",
    lambda w: jnp.sum(POSITIVE / jnp.sum(POSITIVE) * w),
    (W,),
    lambda w: SHARES + 0 * w,
)
wrong("shares normalised outside, twice as large", shares, lambda w: 2 * SHARES + 0 * w)
wrong("shares normalised outside, a thousandth too large", shares, lambda w: 1.001 * SHARES + 0 * w)
wrong("shares not normalised", shares, lambda w: POSITIVE + 0 * w, slow=True)
jitted = right(
    "shares normalised outside, both jitted",
    jax.jit(lambda w: jnp.sum(POSITIVE / jnp.sum(POSITIVE) * w)),
    (W,),
    jax.jit(lambda w: SHARES + 0 * w),
)
wrong(
    "shares normalised outside, both jitted, a thousandth too large", jitted, jax.jit(lambda w: 1.001 * SHARES + 0 * w)
)
scanned = right(
    "shares normalised outside, each in a branch of a loop",
    lambda w: lax.fori_loop(
        0, 3, lambda k, s: s + lax.cond(k < 2, lambda: (POSITIVE / jnp.sum(POSITIVE) * w)[k], lambda: 0.0), 0.0
    ),
    (W,),
    jax.jit(lambda w: jnp.where(jnp.arange(3) < 2, SHARES, 0 * w)),
    slow=True,
)
wrong("shares normalised outside, one too many", scanned, jax.jit(lambda w: SHARES + 0 * w), slow=True)


def least_squares(x, y):
    return lambda w: jnp.mean((x @ w - y) ** 2) / 2


for n, slow in ((20, False), (1000, True)):
    x, y = drawn(n, 3, seed=n), drawn(n, seed=n + 1)
    a, b = x.T @ x / n, x.T @ y / n
    off = a * f32([1, 1, 1], [1, 1.001, 1], [1, 1, 1])
    normal = right(
        f"normal equations of {n} points, by NumPy in float32",
        least_squares(x, y),
        (W,),
        lambda w, a=a, b=b: a @ w - b,
        slow=slow,
    )
    wrong(f"normal equations of {n} points, twice as large", normal, lambda w, a=a, b=b: 2 * (a @ w - b), slow=slow)
    wrong(
        f"normal equations of {n} points, a matrix element off by a thousandth",
        normal,
        lambda w, a=off, b=b: a @ w - b,
        slow=slow,
    )

DATA = drawn(8, 3, seed=7) * f32(1, 3, 0.2) + f32(0.5, -1, 2)
TARGET = drawn(8, seed=8)
STANDARD = (DATA - DATA.mean(axis=0)) / DATA.std(axis=0)
BY_VARIANCE = (DATA - DATA.mean(axis=0)) / DATA.var(axis=0)


def on_raw_data(w):
    z = (DATA - jnp.mean(DATA, axis=0)) / jnp.std(DATA, axis=0)
    return jnp.mean(jax.nn.softplus(-jnp.sign(TARGET) * (z @ w)))


def logistic_slope(z):
    sign = np.sign(TARGET)
    return lambda w: -z.T @ (sign * jax.nn.sigmoid(-sign * (z @ w))) / len(z)


standard = right("data standardised beforehand", on_raw_data, (W,), logistic_slope(STANDARD))
wrong("data divided by the variance beforehand", standard, logistic_slope(BY_VARIANCE))
BUT_FIRST = STANDARD * (np.arange(8) > 0)[:, None]
wrong("data standardised beforehand, one row left out", standard, logistic_slope(BUT_FIRST))

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
    back = np.concatenate([left * COS + right * sin, right * COS - left * sin], axis=1)
    return lambda x: jnp.asarray(back) + 0 * x


rotated = right("rotary embedding by a table", rotary, (drawn(3, 4, seed=10),), slope_of_rotary(SIN))
wrong("rotary embedding by a table, turned the other way", rotated, slope_of_rotary(-SIN))
wrong("rotary embedding by a table, an angle off by a thousandth", rotated, slope_of_rotary(SIN * f32(1, 1.001)))

COUNTS = f32(10, 3, 7)
CLASS_WEIGHTS = jnp.asarray(np.float32(COUNTS.sum() / (3 * COUNTS)))


def weighted_entropy(logits):
    weights = jnp.sum(COUNTS) / (3 * COUNTS)
    return -jnp.sum(weights * C * jax.nn.log_softmax(logits))


def slope_of_weighted_entropy(weights):
    return lambda logits: jnp.sum(weights * C) * jax.nn.softmax(logits) - weights * C


classes = right("class weights from counts", weighted_entropy, (W,), slope_of_weighted_entropy(CLASS_WEIGHTS))
wrong("class weights from counts, a third", classes, slope_of_weighted_entropy(CLASS_WEIGHTS / 3), slow=True)

# --- Numbers ----------------------------------------------------------------------------------------------------------

RATE = jnp.float32(0.1)
decay = right(
    "a rate in float32 in the loss, as a number in the gradient",
    lambda w: RATE * jnp.sum(w**2) / 2,
    (W,),
    lambda w: 0.1 * w,
)
wrong("a rate in float32, ten times as large", decay, lambda w: w)
wrong("a rate in float32, a thousandth too large", decay, lambda w: 0.1001 * w)
literal = right(
    "a rate written in float32 where it is used",
    lambda w: jnp.float32(0.1) * jnp.sum(w**2) / 2,
    (W,),
    lambda w: jnp.float32(0.1) * w,
    slow=True,
)
wrong("a rate written in float32, squared", literal, lambda w: jnp.float32(0.01) * w, slow=True)
SIGMA = 0.7
PRECISION = np.float32(1 / (2 * SIGMA**2))
gauss = right(
    "a precision computed beforehand",
    lambda w: jnp.sum((w - C) ** 2 / (2 * SIGMA**2)),
    (W,),
    lambda w: 2 * PRECISION * (w - C),
)
wrong("a precision computed beforehand, factor 2 forgotten", gauss, lambda w: PRECISION * (w - C))
