"""Right gradients where autodiff is not to be trusted, mostly NaN; and a wrong one that no checker can see."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpora.elementwise import sinc_slope
from corpora.kit import GradCase, Slip, exactly, fixed, given, summed

AUTODIFF_SUSPECT: list[GradCase] = []


def suspect(name, loss, gradient, args, truth, **options):
    AUTODIFF_SUSPECT.append(GradCase(name, loss, gradient, args, truth=truth, **options))


def entropy(p, keep):
    return -jnp.sum(jnp.where(keep, p * jnp.log(p), 0))


suspect(
    "p log p behind a mask",
    entropy,
    lambda p, keep: jnp.where(keep, -1 - jnp.log(jnp.where(keep, p, 1)), 0),
    given(exactly([0.5, 0, 0.25, 0]), fixed([True, False, True, False], bool)),
    lambda p, keep: np.array([math.log(2) - 1, 0, math.log(4) - 1, 0]),
)
suspect(
    "square root behind a where",
    summed(lambda x: jnp.where(x > 0, jnp.sqrt(x), 0)),
    lambda x: jnp.where(x > 0, 0.5 * lax.rsqrt(jnp.where(x > 0, x, 1)), 0),
    given(exactly([4, -1, 0.25, -9])),
    lambda x: np.array([0.25, 0, 1, 0]),
)
suspect(
    "quotient behind a where",
    summed(lambda x: jnp.where(x == 0, 1, jnp.sin(x) / x)),
    sinc_slope,
    given(exactly([0, 1, 2])),
    lambda x: np.array([0, math.cos(1) - math.sin(1), math.cos(2) / 2 - math.sin(2) / 4]),
)
suspect(
    "norm of a zero row",
    lambda x: jnp.sum(jnp.sqrt(jnp.sum(x**2, axis=1)) ** 3),
    lambda x: 3 * x * jnp.sqrt(jnp.sum(x**2, axis=1, keepdims=True)),
    given(exactly([[3, 4], [0, 0]])),
    lambda x: np.array([[45, 60], [0, 0]]),
)
suspect(
    "naive softplus at 1000",
    summed(lambda x: jnp.log(1 + jnp.exp(x))),
    jax.nn.sigmoid,
    given(exactly([1000, 0, -1000])),
    lambda x: np.array([1, 0.5, 0]),
)
suspect(
    "naive log-sum-exp at 1000",
    lambda x: jnp.log(jnp.sum(jnp.exp(x))),
    jax.nn.softmax,
    given(exactly([1000, 1000, 990])),
    lambda x: np.exp([0, 0, -10]) / (2 + math.exp(-10)),
)
suspect(
    "naive log cosh at 800",
    summed(lambda x: jnp.log((jnp.exp(x) + jnp.exp(-x)) / 2)),
    jnp.tanh,
    given(exactly([800, -1, 0])),
    lambda x: np.array([1, -math.tanh(1), 0]),
)
suspect(
    "softmax over a row that is masked out",
    lambda x, keep: jnp.sum(jnp.where(keep[:, :1], jax.nn.softmax(x + jnp.where(keep, 0, -jnp.inf)), 0)[:, 0]),
    lambda x, keep: jnp.where(keep, jnp.stack([s := jax.nn.softmax(x)[:, 0] * jax.nn.softmax(x)[:, 1], -s], axis=1), 0),
    given(exactly([[1, 0], [2, 3]]), fixed([[True, True], [False, False]], bool)),
    lambda x, keep: np.array([[s := math.e / (1 + math.e) ** 2, -s], [0, 0]]),
)
suspect(
    "inverse cosine behind a clip",
    summed(lambda x: jnp.where(jnp.abs(x) < 1, jnp.arccos(x), 0)),
    lambda x: jnp.where(jnp.abs(x) < 1, -lax.rsqrt(jnp.where(jnp.abs(x) < 1, 1 - x * x, 1)), 0),
    given(exactly([0, 2, 0.5, -3])),
    lambda x: np.array([-1, 0, -1 / math.sqrt(0.75), 0]),
)
suspect(
    "power behind a where",
    summed(lambda x: jnp.where(x > 0, x**0.5, 0)),
    lambda x: jnp.where(x > 0, 0.5 * jnp.where(x > 0, x, 1) ** -0.5, 0),
    given(exactly([1, -4, 4])),
    lambda x: np.array([0.5, 0, 0.25]),
)
suspect(
    "hypotenuse of 1e200",
    lambda p: jnp.sum(jnp.sqrt(p["x"] ** 2 + p["y"] ** 2)),
    lambda p: {name: 1 / jnp.sqrt(1 + (p[other] / p[name]) ** 2) for name, other in (("x", "y"), ("y", "x"))},
    given({"x": exactly([3e200]), "y": exactly([4e200])}),
    lambda p: {"x": np.array([0.6]), "y": np.array([0.8])},
    dtypes=("float64",),
)

# At saturation tanh rounds to 1, so that its slope by autodiff, (1 - y) (1 + y), is known to some 1e-16 at best: no
# checker that works in floating point can tell a slope of 1e-30 from 0.
BLIND = [
    GradCase(
        "flat plateau, a slope of 1e-30",
        summed(jnp.tanh),
        lambda x: jnp.full_like(x, 1e-30),
        given(exactly([400, -500, 1000])),
        slip=Slip("other", ""),
    )
]
