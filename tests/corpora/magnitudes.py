"""Gradients at many magnitudes, with cancellation, and where autodiff fails."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from corpora.kit import WORKING, Cases, GradCase, Slip, exactly, fixed, given, normal, scaled, summed

CASES = Cases(GradCase)
add = CASES.add

# --- Magnitudes and cancellation --------------------------------------------------------------------------------------

add("tiny", summed(lambda x: x * x / 2), given(normal(5, scale=1e-30)), lambda x: x)
add("huge", lambda x: 1e30 * jnp.sum(jnp.sin(x)), given(normal(5)), lambda x: 1e30 * jnp.cos(x))
add(
    "leaves of 1e8 and 1e-8",
    lambda p: 1e8 * jnp.sum(jnp.sin(p["large"])) + 1e-8 * jnp.sum(jnp.sin(p["small"])),
    given({"large": normal(4), "small": normal(4)}),
    lambda p: {"large": 1e8 * jnp.cos(p["large"]), "small": 1e-8 * jnp.cos(p["small"])},
    {"small one doubled": scaled("['small']", 2)},
)
add(
    "softmax sums to 1",
    lambda x: jnp.sum(jax.nn.softmax(x)),
    given(normal(4, 5)),
    jnp.zeros_like,
    {"a slope of a millionth": (lambda x: jnp.full_like(x, 1e-6), Slip("other"))},
    rounding=1e-15,
)
add("flat plateau", summed(jnp.tanh), given(exactly([400, -500, 1000])), jnp.zeros_like)
add(
    "sum with cancellation, the other way round",
    lambda x: jnp.sum(x) ** 2,
    given(exactly([1e4, 0.125, -1e4, 3e3, 0.5, -3e3, 0.0625])),
    lambda x: jnp.full_like(x, 2 * jnp.sum(x[::-1])),
    rounding=1e-11,
)
add(
    "log-sum-exp",
    jax.nn.logsumexp,
    given(exactly([100, 99, 101])),
    jax.nn.softmax,
    {"naive": (lambda x: jnp.exp(x) / jnp.sum(jnp.exp(x)), Slip("precision", dtypes=WORKING))},
)

# --- Right where autodiff is not: mostly NaN --------------------------------------------------------------------------

SUSPECT = Cases(GradCase)
SUSPECT.add(
    "p log p behind a mask",
    lambda p, keep: -jnp.sum(jnp.where(keep, p * jnp.log(p), 0)),
    given(exactly([0.5, 0, 0.25, 0]), fixed([True, False, True, False], bool)),
    lambda p, keep: jnp.where(keep, -1 - jnp.log(jnp.where(keep, p, 1)), 0),
    truth=lambda p, keep: np.array([math.log(2) - 1, 0, math.log(4) - 1, 0]),
)
SUSPECT.add(
    "norm of a zero row",
    lambda x: jnp.sum(jnp.sqrt(jnp.sum(x**2, axis=1)) ** 3),
    given(exactly([[3, 4], [0, 0]])),
    lambda x: 3 * x * jnp.sqrt(jnp.sum(x**2, axis=1, keepdims=True)),
    truth=lambda x: np.array([[45, 60], [0, 0]]),
)
SUSPECT.add(
    "naive softplus at 1000",
    summed(lambda x: jnp.log(1 + jnp.exp(x))),
    given(exactly([1000, 0, -1000])),
    jax.nn.sigmoid,
    truth=lambda x: np.array([1, 0.5, 0]),
)
SUSPECT.add(
    "hypotenuse of 1e200",
    lambda p: jnp.sum(jnp.sqrt(p["x"] ** 2 + p["y"] ** 2)),
    given({"x": exactly([3e200]), "y": exactly([4e200])}),
    lambda p: {name: 1 / jnp.sqrt(1 + (p[other] / p[name]) ** 2) for name, other in (("x", "y"), ("y", "x"))},
    truth=lambda p: {"x": np.array([0.6]), "y": np.array([0.8])},
    dtypes=("float64",),
)
# At saturation tanh rounds to 1, so that its gradient by autodiff, (1 - y) (1 + y), has an error of 1e-16 at best: no
# checker that works in floating point can tell 1e-30 from 0.
BLIND = Cases(GradCase)
BLIND.add(
    "flat plateau",
    summed(jnp.tanh),
    given(exactly([400, -500, 1000])),
    wrong={"a slope of 1e-30": (lambda x: jnp.full_like(x, 1e-30), Slip("other"))},
)
