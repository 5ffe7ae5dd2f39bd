"""Gradients of elementwise functions, and of their like: at kinks, with slips on one side or beyond a threshold."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from corpora.kit import WORKING, GradCase, Slip, Subject, exactly, given, normal, summed, uniform

SUBJECT = Subject(GradCase)
right, wrong, twin = SUBJECT.right, SUBJECT.wrong, SUBJECT.twin
SOME = given(normal(9, scale=2))


def normal_cdf(x):
    return lax.erfc(-x / math.sqrt(2)) / 2


def gelu(x):
    return jax.nn.gelu(x, approximate=False)


def gelu_slope(x):
    return normal_cdf(x) + x * jnp.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def gelu_tanh_slope(x):
    rate = math.sqrt(2 / math.pi)
    t = jnp.tanh(rate * (x + 0.044715 * x**3))
    return (1 + t) / 2 + x / 2 * (1 - t) * (1 + t) * rate * (1 + 3 * 0.044715 * x**2)


def silu_slope(x):
    s = jax.nn.sigmoid(x)
    return s + x * s * jax.nn.sigmoid(-x)


def mish(x):
    return x * jnp.tanh(jax.nn.softplus(x))


def mish_slope(x):
    t = jnp.tanh(jax.nn.softplus(x))
    return t + x * (1 - t) * (1 + t) * jax.nn.sigmoid(x)


def huber(x):
    return jnp.where(jnp.abs(x) <= 1, x**2 / 2, jnp.abs(x) - 0.5)


def guarded_sinc(x):
    safe = jnp.where(x == 0, 1, x)
    return jnp.where(x == 0, 1, jnp.sin(safe) / safe)


def sinc_slope(x):
    safe = jnp.where(x == 0, 1, x)
    return jnp.where(x == 0, 0, (jnp.cos(safe) - jnp.sin(safe) / safe) / safe)


SMOOTH = {
    name: right(name, summed(f), slope, SOME)
    for name, f, slope in [
        ("tanh", jnp.tanh, lambda x: (1 - jnp.tanh(x)) * (1 + jnp.tanh(x))),
        ("sigmoid", jax.nn.sigmoid, lambda x: jax.nn.sigmoid(x) * jax.nn.sigmoid(-x)),
        ("softplus", jax.nn.softplus, jax.nn.sigmoid),
        ("GELU by erf", gelu, gelu_slope),
        ("GELU by tanh", jax.nn.gelu, gelu_tanh_slope),
        ("SiLU", jax.nn.silu, silu_slope),
        ("mish", mish, mish_slope),
        ("log cosh", lambda x: jnp.logaddexp(x, -x), jnp.tanh),
        ("Huber", huber, lambda x: jnp.clip(x, -1, 1)),
        ("log1p", lambda x: jnp.log1p(x**2), lambda x: 2 * x / (1 + x**2)),
        ("expm1 squared", lambda x: jnp.expm1(x / 2) ** 2, lambda x: jnp.expm1(x / 2) * jnp.exp(x / 2)),
        ("ELU", jax.nn.elu, lambda x: jnp.where(x > 0, 1, jnp.exp(jnp.minimum(x, 0)))),
    ]
}
right("power", summed(lambda x: x**2.5), lambda x: 2.5 * x**1.5, given(uniform(6, low=0.5, high=3)))
right("sinc, at 0 as well", summed(guarded_sinc), sinc_slope, given(exactly([0, 1, -2, 0.5, 3, 0])))


def arctan2_gradient(p):
    square = p["x"] ** 2 + p["y"] ** 2
    return {"x": -p["y"] / square, "y": p["x"] / square}


arctan2 = right(
    "arctan2",
    lambda p: jnp.sum(jnp.arctan2(p["y"], p["x"])),
    arctan2_gradient,
    given({"x": normal(6), "y": normal(6)}),
)
SUBJECT.factor("arctan2, x negated", arctan2, "['x']", -1)
SUBJECT.swapped("arctan2, x and y swapped", arctan2, "x", "y")


def swiglu_gradient(p, c):
    return {"gate": c * p["up"] * silu_slope(p["gate"]), "up": c * jax.nn.silu(p["gate"])}


swiglu = right(
    "SwiGLU",
    lambda p, c: jnp.sum(c * jax.nn.silu(p["gate"]) * p["up"]),
    swiglu_gradient,
    given({"gate": normal(3, 4), "up": normal(3, 4)}, normal(3, 4)),
)
SUBJECT.swapped("SwiGLU, gate and up swapped", swiglu, "gate", "up")

for name, case, slope, slip in [
    ("SiLU, the product's second term forgotten", SMOOTH["SiLU"], jax.nn.sigmoid, Slip("missing term", "")),
    ("mish, the outer tanh only", SMOOTH["mish"], lambda x: jnp.tanh(jax.nn.softplus(x)), Slip("missing term", "")),
    ("GELU, the density forgotten", SMOOTH["GELU by erf"], normal_cdf, Slip("missing term", "")),
    ("GELU by tanh for GELU by erf", SMOOTH["GELU by erf"], jax.vmap(jax.grad(jax.nn.gelu)), Slip("other", "")),
    (
        "tanh, slope of the output taken twice",
        SMOOTH["tanh"],
        lambda x: 1 - jnp.tanh(jnp.tanh(x)) ** 2,
        Slip("other", ""),
    ),
]:
    wrong(name, case, slope, slip)
wrong(
    "quartic, its square held fixed",
    twin(summed(lambda x: x**4), given(normal(4)), order=2),
    lambda x: 4 * lax.stop_gradient(x**2) * x,
    Slip("second order", ""),
)
wrong(
    "product, one factor held fixed",
    twin(lambda p: jnp.sum(p["a"] ** 2 * p["b"] ** 2), given({"a": normal(3), "b": normal(3)}), order=2),
    lambda p: {"a": 2 * p["a"] * p["b"] ** 2, "b": 2 * p["b"] * lax.stop_gradient(p["a"] ** 2)},
    Slip("second order", "['b']"),
)
wrong("a scalar, halved", twin(lambda x: x**2, given(normal())), lambda x: x, Slip("factor", "", (), factor=0.5))

# --- At a kink, with another convention than autodiff's ---------------------------------------------------------------

AT_KINK = given(exactly([-1, 0, 2, 0, 3]))
right("relu, slope 1 at 0", summed(jax.nn.relu), lambda x: jnp.where(x >= 0, 1, 0).astype(x.dtype), AT_KINK, kink=True)
right("relu, slope 1/2 at 0", summed(jax.nn.relu), lambda x: (jnp.sign(x) + 1) / 2, AT_KINK, kink=True)
right("abs, slope 0 at 0", summed(jnp.abs), jnp.sign, AT_KINK, kink=True)
right("abs, slope -1/2 at 0", summed(jnp.abs), lambda x: jnp.where(x == 0, -0.5, jnp.sign(x)), AT_KINK, kink=True)
right(
    "maximum of equals, all to the first",
    lambda p: jnp.sum(jnp.maximum(p["a"], p["b"])),
    lambda p: {"a": (p["a"] >= p["b"]).astype(p["a"].dtype), "b": (p["a"] < p["b"]).astype(p["a"].dtype)},
    given({"a": exactly([1, 2, 3, 3]), "b": exactly([1, 3, 2, 3])}),
    kink=True,
)
right(
    "hinge on the margin",
    lambda z, y: jnp.mean(jnp.maximum(0, 1 - y * z)),
    lambda z, y: jnp.where(y * z <= 1, -y, 0) / z.size,
    given(exactly([1, -1, 0.5, 2]), exactly([1, -1, 1, 1])),
    kink=True,
)
right(
    "largest of equals, all to the first",
    lambda x: jnp.sum(jnp.max(x, axis=1)),
    lambda x: jax.nn.one_hot(jnp.argmax(x, axis=1), x.shape[1], dtype=x.dtype),
    given(exactly([[1, 3, 3], [2, 2, 1]])),
    kink=True,
)

# --- One-sided, wrong beyond a threshold, not finite ------------------------------------------------------------------

FAR = given(exactly([0.5, -0.25, 0.75, 4, -7, 12]))


def gelu_cut(x):
    return jnp.where(jnp.abs(x) > 3, (x > 0).astype(x.dtype), gelu_slope(x))


def sigmoid_cut(x):
    return jnp.where(jnp.abs(x) > 10, 0, jax.nn.sigmoid(x) * jax.nn.sigmoid(-x))


def cosine_series(x):
    return 1 - x**2 / 2 + x**4 / 24 - x**6 / 720 + x**8 / 40320


def is_positive(x):
    return (x > 0).astype(x.dtype)


ONE_SIDED, BEYOND = Slip("one-sided", ""), Slip("domain", "")
for name, f, slope, args, slip in [
    ("ELU, slope 1 everywhere", jax.nn.elu, jnp.ones_like, SOME, ONE_SIDED),
    (
        "softsign, without the absolute value",
        lambda x: x / (1 + jnp.abs(x)),
        lambda x: 1 / (1 + x) ** 2,
        SOME,
        ONE_SIDED,
    ),
    (
        "log(1 + |x|), without the sign",
        lambda x: jnp.log1p(jnp.abs(x)),
        lambda x: 1 / (1 + jnp.abs(x)),
        SOME,
        ONE_SIDED,
    ),
    ("leaky relu, dead below 0", lambda x: jax.nn.leaky_relu(x, 0.01), is_positive, SOME, ONE_SIDED),
    ("cube of |x|, as that of x", lambda x: jnp.abs(x) ** 3, lambda x: 3 * x**2, SOME, ONE_SIDED),
    ("Huber, slope x beyond 1", huber, lambda x: x, FAR, BEYOND),
    ("GELU, taken as relu beyond 3", gelu, gelu_cut, given(exactly([0.5, -1, 2, 3.25, -3.5])), BEYOND),
    ("relu6, without its ceiling", lambda x: jnp.clip(x, 0, 6), is_positive, FAR, BEYOND),
    ("sigmoid, no slope beyond 10", jax.nn.sigmoid, sigmoid_cut, given(exactly([0.5, -3, 11, -12])), BEYOND),
    ("exponential, clipped at 5", jnp.exp, lambda x: jnp.exp(jnp.minimum(x, 5)), FAR, BEYOND),
    ("sine, by five terms of a series", jnp.sin, cosine_series, given(exactly([1 / 64, -1 / 128, 1, 3])), BEYOND),
    (
        "sinc, unguarded at 0",
        guarded_sinc,
        lambda x: (jnp.cos(x) - jnp.sin(x) / x) / x,
        given(exactly([0, 1, -2])),
        Slip("nonfinite", "", (0,)),
    ),
    (
        "softplus by exp(x) / (1 + exp(x)), at 1000",
        jax.nn.softplus,
        lambda x: jnp.exp(x) / (1 + jnp.exp(x)),
        given(exactly([1000, 1, -1])),
        Slip("nonfinite", "", (0,)),
    ),
    (
        "x |x|, infinite at 0",
        lambda x: x * jnp.abs(x),
        lambda x: jnp.where(x == 0, jnp.inf, 2 * jnp.abs(x)),
        given(exactly([1, 0, -2])),
        Slip("nonfinite", "", (1,)),
    ),
]:
    wrong(name, twin(summed(f), args), slope, slip)

# --- Right in exact arithmetic only -----------------------------------------------------------------------------------

for name, loss, rule, args in [
    (
        "expm1 squared, by exp(x) - 1",
        lambda x: jnp.sum(jnp.expm1(x) ** 2),
        lambda x: 2 * (jnp.exp(x) - 1) * jnp.exp(x),
        given(exactly([2e-4, -1e-4, 3e-5])),
    ),
    (
        "log-sum-exp, naive",
        jax.nn.logsumexp,
        lambda x: jnp.exp(x) / jnp.sum(jnp.exp(x)),
        given(exactly([100, 99, 101])),
    ),
    ("softplus, naive", summed(jax.nn.softplus), lambda x: jnp.exp(x) / (1 + jnp.exp(x)), given(exactly([95, 1, -1]))),
    (
        "1 - cos x, by itself",
        summed(lambda x: jnp.sin(x / 2) ** 4),
        lambda x: (1 - jnp.cos(x)) * jnp.sin(x) / 2,
        given(exactly([1e-3, 2e-3, -5e-4])),
    ),
    (
        "log1p squared, by log(1 + x)",
        summed(lambda x: jnp.log1p(x) ** 2),
        lambda x: 2 * jnp.log(1 + x) / (1 + x),
        given(exactly([2e-4, -1e-4, 5e-5])),
    ),
]:
    wrong(name, twin(loss, args), rule, Slip("precision", "", dtypes=WORKING))
wrong(
    "hypotenuse, of squares of 1e25",
    twin(
        lambda p: 1e25 * jnp.sum(jnp.sqrt(p["x"] ** 2 + p["y"] ** 2)),
        given({"x": exactly([3]), "y": exactly([4])}),
    ),
    lambda p: {axis: 1e25 * (1e25 * p[axis]) / jnp.sqrt((1e25 * p["x"]) ** 2 + (1e25 * p["y"]) ** 2) for axis in "xy"},
    Slip("precision", None, dtypes=WORKING),
)
