"""Callbacks to NumPy and SciPy with results in float32, rules that do not repeat themselves, and Pallas kernels."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax.experimental import pallas as pl
from jax.scipy.special import erf, gammaln

from corpora.kit import Code, custom, elementwise, f32

CALLBACKS, NOISE, SHAKEN, INTERPRETED, AS_THEY_ARE = Code(), Code(), Code(), Code(), Code()

# --- Callbacks --------------------------------------------------------------------------------------------------------

grad, rule = CALLBACKS.grad, CALLBACKS.rule
X, POSITIVE = f32(0.3, -1.2, 2.0), f32(0.4, 1.3, 2.6)


def on_host(function, x, vmap_method="expand_dims"):
    """A NumPy function that computes in float64 and returns float32, whatever it is given."""
    result = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    in_numpy = lambda x: np.asarray(function(np.asarray(x, np.float64)), np.float32)  # noqa: E731
    return jax.pure_callback(in_numpy, result, x, vmap_method=vmap_method)


def host_sine(x):
    return on_host(np.sin, x)


BY_SINE = {"reference": jnp.sin}
negated = elementwise(host_sine, lambda x: -jnp.cos(x))
rule("sine by NumPy", elementwise(host_sine, jnp.cos), (X,), {"sign of the slope": negated}, options=BY_SINE)
grad(
    "digamma by SciPy in the gradient alone",
    lambda w: jnp.sum(gammaln(w)),
    (POSITIVE,),
    lambda w: on_host(scipy.special.digamma, w),
    {"trigamma instead": lambda w: on_host(lambda x: scipy.special.polygamma(1, x), w)},
)


def rule_of_erf(factor):
    slope = lambda x: on_host(lambda x: factor * np.exp(-(x**2)), x)  # noqa: E731
    return elementwise(lambda x: on_host(scipy.special.erf, x), slope)


rule(
    "error function and its slope by SciPy",
    rule_of_erf(2 / np.sqrt(np.pi)),
    (X,),
    {"without its constant": rule_of_erf(1)},
    options={"reference": erf},
)


def bessel(order, z):
    return on_host(lambda z: scipy.special.jv(order, z), z)


def rule_of_bessel(sign):
    return elementwise(lambda z: bessel(0, z), lambda z: sign * bessel(1, z))


rule(
    "Bessel function by SciPy, no reference",
    rule_of_bessel(-1),
    (POSITIVE,),
    {"sign lost": rule_of_bessel(1)},
    says="finite differences",
)
ruled_sine = elementwise(host_sine, jnp.cos)
grad(
    "a loss with a callback and its rule inside",
    lambda w: jnp.sum(ruled_sine(w) ** 2),
    (X,),
    lambda w: 2 * host_sine(w) * jnp.cos(w),
    {"factor 2 forgotten": lambda w: host_sine(w) * jnp.cos(w)},
)


def unbatched(slope):
    return elementwise(lambda x: on_host(np.sin, x, vmap_method=None), slope)


rule(
    "a callback that knows no vmap",
    unbatched(jnp.cos),
    (X,),
    {"slope of a square": unbatched(jnp.tan)},
    options=BY_SINE,
)

# --- Not repeatable ---------------------------------------------------------------------------------------------------


def shaken_cosine(size, factor=1.0):
    """A callback with a state: each call is off by another relative amount."""
    calls = itertools.count()

    def shaken(x):
        noise = np.random.default_rng(next(calls)).normal(size=np.shape(x))
        return (np.asarray(x) * (1 + size * noise)).astype(np.asarray(x).dtype)

    def slope(x):
        value = factor * jnp.cos(x)
        like = jax.ShapeDtypeStruct(value.shape, value.dtype)
        return jax.pure_callback(shaken, like, value, vmap_method="expand_dims")

    return slope


WIDE = (X.astype(np.float64),)
little = lambda factor=1.0: elementwise(jnp.sin, shaken_cosine(1e-9, factor))  # noqa: E731
NOISE.rule("a slope that is shaken by a billionth", little(), WIDE, {"half of it": little(0.5)}, x64=True)
NOISE.grad(
    "a gradient that is shaken by a billionth",
    lambda w: jnp.sum(jnp.sin(w)),
    WIDE,
    shaken_cosine(1e-9),
    {"sign lost": shaken_cosine(1e-9, -1.0)},
    x64=True,
)
# So much that nobody would keep it: the report has to say so, whatever the algebra makes of it.
SHAKEN.rule("a slope that is shaken by a thousandth", elementwise(jnp.sin, shaken_cosine(1e-3)), WIDE, x64=True)

# --- Pallas kernels: interpreted, and as they are, compiled where a device can ----------------------------------------

TABLE = f32([0.5, -1.2, 2.0, 0.1], [1.5, 0.25, -0.75, -2.0])


def kernel_on(kernel, *args, interpret):
    like = jax.ShapeDtypeStruct(args[0].shape, args[0].dtype)
    return pl.pallas_call(kernel, out_shape=like, interpret=interpret)(*args)


def rows_on(kernel, *args, interpret):
    """One row at a time."""
    block, like = pl.BlockSpec((1, 4), lambda i: (i, 0)), jax.ShapeDtypeStruct(args[0].shape, args[0].dtype)
    specs = {"grid": (2,), "in_specs": [block] * len(args), "out_specs": block}
    return pl.pallas_call(kernel, out_shape=like, interpret=interpret, **specs)(*args)


def cap(x):
    return 3 * jnp.tanh(x / 3)


def cap_forward(x, out):
    out[...] = cap(x[...])


def cap_backward(y, c, out):
    out[...] = c[...] * (1 - (y[...] / 3) ** 2)


def cap_backward_unscaled(y, c, out):
    out[...] = c[...] * (1 - y[...] ** 2)


def softmax_forward(x, out):
    shifted = jnp.exp(x[...] - jnp.max(x[...], axis=-1, keepdims=True))
    out[...] = shifted / jnp.sum(shifted, axis=-1, keepdims=True)


def softmax_backward(y, c, out):
    out[...] = y[...] * (c[...] - jnp.sum(y[...] * c[...], axis=-1, keepdims=True))


def softmax_backward_mean(y, c, out):
    out[...] = y[...] * (c[...] - jnp.mean(y[...] * c[...], axis=-1, keepdims=True))


def kernels(run, forward, backward, interpret):
    """A rule of two kernels, or of one on the way back only."""
    on = functools.partial(run, interpret=interpret)
    value = forward if forward is cap else functools.partial(on, forward)
    return custom(value, lambda x: (value(x),) * 2, lambda y, c: (on(backward, y, c),))


for kind, interpret, how in ((INTERPRETED, True, "interpreted"), (AS_THEY_ARE, False, "as it is")):
    for name, run, forward, backward, what, other, options in [
        ("tanh kernel", kernel_on, cap_forward, cap_backward, "not scaled", cap_backward_unscaled, {"reference": cap}),
        ("a kernel on the way back only", kernel_on, cap, cap_backward, "not scaled", cap_backward_unscaled, {}),
        (
            "softmax kernel by rows",
            rows_on,
            softmax_forward,
            softmax_backward,
            "a mean for a sum",
            softmax_backward_mean,
            {"reference": jax.nn.softmax},
        ),
    ]:
        wrong = {what: kernels(run, forward, other, interpret)}
        right = kernels(run, forward, backward, interpret)
        kind.rule(f"{name}, {how}", right, (TABLE,), wrong, options=options)
NO_REFERENCE = {
    how: kernels(kernel_on, cap_forward, cap_backward, how == "interpreted") for how in ("interpreted", "as it is")
}
