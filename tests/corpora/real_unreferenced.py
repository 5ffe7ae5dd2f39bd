"""Functions that have no plain form to be held against: rules of primitives, and solvers that only their rule can take.

Finite differences are left, and the reason says so.
"""

import jax
import jax.numpy as jnp
import jax.scipy.special as special
import numpy as np
from jax import lax
from jax.experimental.ode import odeint
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.scipy.linalg import expm
from jax.scipy.sparse.linalg import cg

from corpora.real_kit import Kind, drawn, elementwise, f32, ruled, tangent

KIND = Kind()
right, wrong = KIND.right, KIND.wrong

BY_DIFFERENCES = {"says": "finite differences"}

# --- The rule is a primitive's own ------------------------------------------------------------------------------------

X = f32(0.5, -1.2, 2.0)
POSITIVE = f32(0.4, 1.3, 2.6)
SHARES = f32(0.2, 0.5, 0.7)
MATRIX = f32([2, 0.5, -0.3], [0.1, 1.5, 0.4], [-0.7, 0.2, 1.1])
DEFINITE = f32([2, 0.5, -0.3], [0.5, 1.5, 0.4], [-0.3, 0.4, 1.1])
KNOTS, HEIGHTS = f32(0, 1, 3), f32(0.5, -1, 2)

OWN = {
    "cholesky": (jnp.linalg.cholesky, DEFINITE),
    "gammaln": (special.gammaln, POSITIVE),
    "sort": (jnp.sort, X),
    "solve": (jnp.linalg.solve, MATRIX, X),
    "erfinv": (special.erfinv, SHARES),
    "cumsum": (jnp.cumsum, X),
    "logsumexp": (special.logsumexp, X),
}
OWN_SLOW = {
    "eigvalsh": (jnp.linalg.eigvalsh, DEFINITE),
    "singular values": (lambda a: jnp.linalg.svd(a, compute_uv=False), MATRIX),
    "interp": (jnp.interp, POSITIVE, KNOTS, HEIGHTS),
    "det": (jnp.linalg.det, MATRIX),
    "inv": (jnp.linalg.inv, MATRIX),
    "expm": (expm, MATRIX / 4),
    "cumprod": (jnp.cumprod, X),
    "digamma": (special.digamma, POSITIVE),
    "cg": (lambda a, b: cg(lambda x: a @ x, b, tol=1e-12, maxiter=9)[0], DEFINITE, X),
}
for name, (fun, *args) in {**OWN, **OWN_SLOW}.items():
    right(name, fun, tuple(args), slow=name in OWN_SLOW, **BY_DIFFERENCES)
right(
    "betainc, in its last argument",
    special.betainc,
    (POSITIVE, POSITIVE[::-1].copy(), SHARES),
    options={"argnums": 2},
    slow=True,
    **BY_DIFFERENCES,
)


def replaced_at(place, fun):
    """A function with its value at one place written by hand: autodiff takes it for constant there."""
    return lambda x: jnp.where(x == place, fun(np.float32(place)), fun(x))


replaced = right(
    "a square, no element at the place that is replaced", replaced_at(1, jnp.square), (X,), **BY_DIFFERENCES
)
wrong("a square, an element at the place that is replaced", replaced, replaced_at(0.5, jnp.square), plain=jnp.square)
rows = right("rows over their lengths", lambda x: x / jnp.linalg.norm(x), (X,), slow=True, **BY_DIFFERENCES)


def primitive_sine(name, slope):
    """A primitive as the documentation writes them, with a rule of its own."""
    primitive = Primitive(name)
    primitive.def_impl(jnp.sin)
    primitive.def_abstract_eval(lambda x: jax.core.ShapedArray(x.shape, x.dtype))
    mlir.register_lowering(primitive, mlir.lower_fun(jnp.sin, multiple_results=False))
    ad.defjvp(primitive, lambda t, x: t * slope(x))
    batching.defvectorized(primitive)
    return primitive.bind


primitive = right("a primitive of one's own", primitive_sine("my_sine", jnp.cos), (X,), plain=jnp.sin, **BY_DIFFERENCES)
wrong("a primitive of one's own, sign lost", primitive, primitive_sine("my_wrong_sine", lambda x: -jnp.cos(x)))
wrong(
    "a primitive of one's own, a thousandth off",
    primitive,
    primitive_sine("my_nearly_sine", lambda x: 1.001 * jnp.cos(x)),
)

# Many elements: not one by one, but in directions.
MANY = drawn(3000, seed=12)
right("sums of many elements", jnp.cumsum, (MANY,), slow=True, **BY_DIFFERENCES)
many = right(
    "a primitive of one's own, of many elements",
    primitive_sine("my_sine_of_many", jnp.cos),
    (MANY,),
    plain=jnp.sin,
    slow=True,
    **BY_DIFFERENCES,
)
wrong(
    "a primitive of one's own, of many elements, right where they are positive",
    many,
    primitive_sine("my_half_sine_of_many", lambda x: jnp.where(x > 0, jnp.cos(x), 1.01 * jnp.cos(x))),
    slow=True,
)

# --- Solvers that only their rule can differentiate -------------------------------------------------------------------


def newton_root(x):
    def moving(state):
        before, root = state
        return jnp.any(jnp.abs(root - before) > 4 * jnp.finfo(x.dtype).eps * root)

    def step(state):
        _, root = state
        return root, (root + x / root) / 2

    return lax.while_loop(moving, step, (jnp.zeros_like(x), jnp.maximum(x, 1)))[1]


def rule_of_root(slope):
    return ruled(newton_root, lambda x: (newton_root(x), newton_root(x)), lambda root, c: (slope(root) * c,))


root = right(
    "a root by Newton's method", rule_of_root(lambda y: 0.5 / y), (POSITIVE,), plain=jnp.sqrt, **BY_DIFFERENCES
)
wrong("a root by Newton's method, half forgotten", root, rule_of_root(lambda y: 1 / y))
wrong("a root by Newton's method, a thousandth off", root, rule_of_root(lambda y: 0.5005 / y))

WEIGHTS = f32([0.3, -0.4, 0.2], [0.1, 0.25, -0.3], [-0.2, 0.5, 0.1])


def iterate(step, start):
    def moving(state):
        rounds, before, now = state
        return (rounds < 200) & jnp.any(jnp.abs(now - before) > 2 * jnp.finfo(now.dtype).eps)

    return lax.while_loop(moving, lambda s: (s[0] + 1, s[2], step(s[2])), (0, start, step(start)))[2]


def layer(w, b, z):
    return jnp.tanh(w @ z + b)


def equilibrium(w, b):
    return iterate(lambda z: layer(w, b, z), jnp.zeros_like(b))


def unrolled(w, b):
    return lax.fori_loop(0, 60, lambda _, z: layer(w, b, z), jnp.zeros_like(b))


def rule_of_equilibrium(adjoint):
    def forward(w, b):
        z = equilibrium(w, b)
        return z, (w, b, z)

    def backward(saved, c):
        w, b, z = saved
        through = jax.vjp(lambda z: layer(w, b, z), z)[1]
        return jax.vjp(lambda w, b: layer(w, b, z), w, b)[1](adjoint(lambda u: through(u)[0], c))

    return ruled(equilibrium, forward, backward)


implicit = right(
    "an equilibrium, its implicit rule",
    rule_of_equilibrium(lambda through, c: iterate(lambda u: c + through(u), c)),
    (WEIGHTS, X),
    plain=unrolled,
    slow=True,
    **BY_DIFFERENCES,
)
wrong("an equilibrium, one step back only", implicit, rule_of_equilibrium(lambda through, c: c), slow=True)
wrong(
    "an equilibrium, two steps back only",
    implicit,
    rule_of_equilibrium(lambda through, c: c + through(c + through(c))),
    slow=True,
)


def bisected(a):
    """The root of x³ + a x = 1, by halves; autodiff takes it for constant."""

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        above = middle**3 + a * middle > 1
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    def narrow(state):
        rounds, ends = state
        return rounds + 1, halve(rounds, ends)

    ends = lax.while_loop(lambda s: s[0] < 60, narrow, (0, (jnp.zeros_like(a), jnp.ones_like(a))))[1]
    return (ends[0] + ends[1]) / 2


def by_newton(a):
    x = jnp.ones_like(a)
    for _ in range(12):
        x = x - (x**3 + a * x - 1) / (3 * x**2 + a)
    return x


def rule_of_bisected(slope):
    return ruled(bisected, lambda a: (bisected(a), (a, bisected(a))), lambda s, c: (c * slope(*s),))


halves = right(
    "a root by halves, its implicit rule",
    rule_of_bisected(lambda a, x: -x / (3 * x**2 + a)),
    (POSITIVE,),
    plain=by_newton,
)
wrong("a root by halves, sign lost", halves, rule_of_bisected(lambda a, x: x / (3 * x**2 + a)))
wrong("a root by halves, slope in the root alone", halves, rule_of_bisected(lambda a, x: -x / (3 * x**2)))

integral = right("exponential integral, JAX's rule", special.expi, (POSITIVE,), slow=True, **BY_DIFFERENCES)
own_integral = right(
    "exponential integral, a rule of one's own",
    tangent(special.expi, lambda x, t: jnp.exp(x[0]) / x[0] * t[0]),
    (POSITIVE,),
    plain=special.expi,
    slow=True,
    **BY_DIFFERENCES,
)
wrong(
    "exponential integral, not divided",
    own_integral,
    tangent(special.expi, lambda x, t: jnp.exp(x[0]) * t[0]),
    slow=True,
)

TIMES = f32(0, 0.5, 1)


def decayed(start, rate):
    return odeint(lambda y, t, rate: -rate * y, start, jnp.asarray(TIMES, start.dtype), rate)[-1]


def decayed_exactly(start, rate):
    return start * jnp.exp(-rate)


def rule_of_decayed(factor):
    def backward(saved, c):
        of_start, of_rate = jax.vjp(decayed, *saved)[1](c)
        return of_start, factor * of_rate

    return ruled(decayed, lambda start, rate: (decayed(start, rate), (start, rate)), backward)


flow = right(
    "a differential equation, JAX's adjoint",
    decayed,
    (f32(1, -0.5), np.float32(0.7)),
    plain=decayed_exactly,
    slow=True,
    **BY_DIFFERENCES,
)
wrong("a differential equation, slope of the rate half", flow, rule_of_decayed(0.5), slow=True)

# A loop that stops by itself, under a rule elementwise.


def series(x):
    """exp by its series, until nothing is added."""

    def step(state):
        k, term, total = state
        return k + 1, term * x / k, total + term * x / k

    start = (1.0, jnp.ones_like(x), jnp.ones_like(x))
    return lax.while_loop(lambda s: jnp.any(jnp.abs(s[1]) > jnp.finfo(x.dtype).eps * 1e-3), step, start)[2]


summed = right("a series summed to its end", elementwise(series, series), (X,), plain=jnp.exp, **BY_DIFFERENCES)
wrong("a series summed to its end, less its first term", summed, elementwise(series, lambda x: series(x) - 1))
