"""Callbacks to NumPy and SciPy on the host, with results in float32; and rules that do not repeat themselves."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax.scipy.special import erf, gammaln

from corpora.real_kit import Kind, elementwise, f32, ruled, tangent

KIND = Kind()
right, wrong = KIND.right, KIND.wrong


def on_host(function, *args, shape=None, dtype=jnp.float32, vmap_method="expand_dims"):
    """A NumPy function that computes in float64 and returns float32, whatever it is given."""
    result = jax.ShapeDtypeStruct(args[0].shape if shape is None else shape, dtype)
    return jax.pure_callback(
        lambda *args: np.asarray(function(*(np.asarray(x, np.float64) for x in args)), dtype),
        result,
        *args,
        vmap_method=vmap_method,
    )


X = f32(0.3, -1.2, 2.0)
POSITIVE = f32(0.4, 1.3, 2.6)


def host_sine(x):
    return on_host(np.sin, x)


sine = right("sine by NumPy", elementwise(host_sine, jnp.cos), (X,), plain=jnp.sin, options={"reference": jnp.sin})
wrong("sine by NumPy, sign of the slope", sine, elementwise(host_sine, lambda x: -jnp.cos(x)))
wrong("sine by NumPy, a thousandth too steep", sine, elementwise(host_sine, lambda x: 1.001 * jnp.cos(x)))


def host_sine_alike(x):
    return on_host(np.sin, x, dtype=x.dtype)


alike = right(
    "sine by NumPy, in the dtype that it is given",
    elementwise(host_sine_alike, jnp.cos),
    (X,),
    plain=jnp.sin,
    options={"reference": jnp.sin},
    slow=True,
)
wrong(
    "sine by NumPy, in the dtype that it is given, half of it",
    alike,
    elementwise(host_sine_alike, lambda x: jnp.cos(x) / 2),
    slow=True,
)

gamma = right(
    "digamma by SciPy in the gradient alone",
    lambda w: jnp.sum(gammaln(w)),
    (POSITIVE,),
    lambda w: on_host(scipy.special.digamma, w),
)
wrong(
    "digamma by SciPy, trigamma instead",
    gamma,
    lambda w: on_host(lambda x: scipy.special.polygamma(1, x), w),
)

ROOT = 2 / np.sqrt(np.pi)


def host_erf(x):
    return on_host(scipy.special.erf, x)


both = right(
    "error function and its slope by SciPy",
    elementwise(host_erf, lambda x: on_host(lambda x: ROOT * np.exp(-(x**2)), x)),
    (X,),
    plain=erf,
    options={"reference": erf},
)
wrong(
    "error function by SciPy, slope without its constant",
    both,
    elementwise(host_erf, lambda x: on_host(lambda x: np.exp(-(x**2)), x)),
)

# The spherical Bessel functions of the JAX documentation, by custom_jvp and a recurrence.


def bessel(order, z):
    return on_host(lambda z: scipy.special.jv(order, z), z)


def bessel_0(z):
    return sum((-1.0) ** k / scipy.special.factorial(k) ** 2 * (z / 2) ** (2 * k) for k in range(16))


recurrence = right(
    "Bessel function by SciPy, forward rule by a recurrence",
    tangent(lambda z: bessel(0, z), lambda z, t: (bessel(-1, z[0]) - bessel(1, z[0])) / 2 * t[0]),
    (POSITIVE,),
    plain=bessel_0,
    options={"reference": bessel_0},
    slow=True,
)
wrong(
    "Bessel function by SciPy, recurrence without its half",
    recurrence,
    tangent(lambda z: bessel(0, z), lambda z, t: (bessel(-1, z[0]) - bessel(1, z[0])) * t[0]),
    slow=True,
)
alone = right(
    "Bessel function by SciPy, no reference at hand",
    elementwise(lambda z: bessel(0, z), lambda z: -bessel(1, z)),
    (POSITIVE,),
    plain=bessel_0,
    says="finite differences",
)
wrong(
    "Bessel function by SciPy, no reference at hand, sign lost",
    alone,
    elementwise(lambda z: bessel(0, z), lambda z: bessel(1, z)),
)

ruled_sine = elementwise(host_sine, jnp.cos)
within = right(
    "a loss with a callback and its rule inside",
    lambda w: jnp.sum(ruled_sine(w) ** 2),
    (X,),
    lambda w: 2 * host_sine(w) * jnp.cos(w),
    plain=lambda w: jnp.sum(jnp.sin(w) ** 2),
)
wrong("a loss with a callback inside, factor 2 forgotten", within, lambda w: host_sine(w) * jnp.cos(w))


def host_sine_unbatched(x):
    return on_host(np.sin, x, vmap_method=None)


unbatched = right(
    "a callback that knows no vmap",
    elementwise(host_sine_unbatched, jnp.cos),
    (X,),
    plain=jnp.sin,
    options={"reference": jnp.sin},
)
wrong("a callback that knows no vmap, slope of its square", unbatched, elementwise(host_sine_unbatched, jnp.tan))

MATRIX = f32([2, 0.5, -0.3], [0.1, 1.5, 0.4], [-0.7, 0.2, 1.1])


def host_solve(a, b):
    return on_host(np.linalg.solve, a, b[..., None], shape=(*b.shape, 1), vmap_method="broadcast_all")[..., 0]


def rule_of_solve(backward):
    return ruled(host_solve, lambda a, b: (host_solve(a, b), (a, host_solve(a, b))), lambda s, c: backward(*s, c))


def back_of_solve(a, x, c, transpose=jnp.transpose):
    of_b = host_solve(transpose(a), c)
    return -jnp.outer(of_b, x), of_b


solved = right(
    "a linear system solved by NumPy, forth and back",
    rule_of_solve(back_of_solve),
    (MATRIX, X),
    plain=jnp.linalg.solve,
    options={"reference": jnp.linalg.solve},
    slow=True,
)
wrong(
    "a linear system solved by NumPy, not transposed on the way back",
    solved,
    rule_of_solve(lambda a, x, c: back_of_solve(a, x, c, transpose=lambda a: a)),
    slow=True,
)

# --- Not repeatable ---------------------------------------------------------------------------------------------------

NOISE = Kind()
right, wrong = NOISE.right, NOISE.wrong


def noisy(size):
    """A callback with a state: each call is off by another relative amount."""
    calls = itertools.count()

    def shaken(x):
        with_state = np.random.default_rng(next(calls)).normal(size=np.shape(x))
        return (np.asarray(x) * (1 + size * with_state)).astype(np.asarray(x).dtype)

    def shake(value):
        return jax.pure_callback(
            shaken, jax.ShapeDtypeStruct(value.shape, value.dtype), value, vmap_method="expand_dims"
        )

    return shake


def cosine(size, factor=1.0):
    shake = noisy(size)
    return lambda x: shake(factor * jnp.cos(x))


SHAKE = noisy(1e-9)
WIDE = X.astype(np.float64)
steady = {"plain": jnp.sin, "x64": True}
little = right("a slope that is shaken by a billionth", elementwise(jnp.sin, cosine(1e-9)), (WIDE,), **steady)
wrong("a slope that is shaken by a billionth, half of it", little, elementwise(jnp.sin, cosine(1e-9, 0.5)))
wrong("a slope that is shaken by a billionth, a thousandth off", little, elementwise(jnp.sin, cosine(1e-9, 1.001)))
by_hand = right(
    "a gradient that is shaken by a billionth",
    lambda w: jnp.sum(jnp.sin(w)),
    (WIDE,),
    cosine(1e-9),
    x64=True,
)
wrong("a gradient that is shaken by a billionth, sign lost", by_hand, cosine(1e-9, -1.0))
last_bits = right(
    "a gradient that is shaken in its last bits of float32",
    lambda w: jnp.sum(jnp.sin(w)),
    (X,),
    cosine(2e-7),
    slow=True,
)
wrong("a gradient that is shaken in its last bits, twice as large", last_bits, cosine(2e-7, 2.0), slow=True)
value_too = right(
    "value and slope that are shaken by a billionth",
    ruled(
        jnp.sin,
        lambda x: (SHAKE(jnp.sin(x)), x),
        lambda x, c: (SHAKE(jnp.cos(x)) * c,),
    ),
    (WIDE,),
    slow=True,
    **steady,
)
wrong(
    "value and slope that are shaken by a billionth, slope of the cosine",
    value_too,
    ruled(
        jnp.sin,
        lambda x: (SHAKE(jnp.sin(x)), x),
        lambda x, c: (-SHAKE(jnp.sin(x)) * c,),
    ),
    slow=True,
)

# Shaken so much that nobody would keep it: the report has to say so, whatever the algebra makes of it.
SHAKEN = Kind()
SHAKEN.right("a slope that is shaken by a thousandth", elementwise(jnp.sin, cosine(1e-3)), (WIDE,), **steady)
SHAKEN.right(
    "a gradient that is shaken by a thousandth",
    lambda w: jnp.sum(jnp.sin(w)),
    (X,),
    cosine(1e-3),
    slow=True,
)
