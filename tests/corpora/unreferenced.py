"""Functions that no plain function can replace: primitives, and solvers that only their rule can differentiate.

Finite differences are left, and the reason says so.
"""

import jax
import jax.numpy as jnp
import jax.scipy.special as special
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.scipy.sparse.linalg import cg

from corpora.kit import Code, custom, drawn, f32

UNREFERENCED = Code()
BY_DIFFERENCES = {"says": "finite differences"}


def rule(name, fun, args, wrong=None, **options):
    UNREFERENCED.rule(name, fun, args, wrong or {}, **BY_DIFFERENCES, **options)


# --- The rule is a primitive's own ------------------------------------------------------------------------------------

X, POSITIVE, SHARES = f32(0.5, -1.2, 2.0), f32(0.4, 1.3, 2.6), f32(0.2, 0.5, 0.7)
DEFINITE = f32([2, 0.5, -0.3], [0.5, 1.5, 0.4], [-0.3, 0.4, 1.1])
for name, (fun, *args) in {
    "cholesky": (jnp.linalg.cholesky, DEFINITE),
    "sort": (jnp.sort, X),
    "solve": (jnp.linalg.solve, DEFINITE, X),
    "gammaln": (special.gammaln, POSITIVE),
    "eigvalsh": (jnp.linalg.eigvalsh, DEFINITE),
    "interp": (jnp.interp, POSITIVE, f32(0, 1, 3), X),
    "cg": (lambda a, b: cg(lambda x: a @ x, b, tol=1e-12, maxiter=9)[0], DEFINITE, X),
}.items():
    rule(name, fun, tuple(args))
rule("betainc", special.betainc, (POSITIVE, POSITIVE[::-1].copy(), SHARES), options={"argnums": 2})


def replaced_at(place):
    """A square whose value at one place is written by hand: autodiff takes it for constant there."""
    return lambda x: jnp.where(x == place, np.float32(place) ** 2, x**2)


rule("a square, nothing at the place that is replaced", replaced_at(1), (X,), {"an element there": replaced_at(0.5)})


def primitive_sine(name, slope):
    """A primitive as the documentation writes them, with a rule of its own."""
    primitive = Primitive(name)
    primitive.def_impl(jnp.sin)
    primitive.def_abstract_eval(lambda x: jax.core.ShapedArray(x.shape, x.dtype))
    mlir.register_lowering(primitive, mlir.lower_fun(jnp.sin, multiple_results=False))
    ad.defjvp(primitive, lambda t, x: t * slope(x))
    batching.defvectorized(primitive)
    return primitive.bind


negated = primitive_sine("my_wrong_sine", lambda x: -jnp.cos(x))
half = primitive_sine("my_half_sine", lambda x: jnp.where(x > 0, jnp.cos(x), 1.01 * jnp.cos(x)))
my_sine = primitive_sine("my_sine", jnp.cos)
rule("a primitive of one's own", my_sine, (X,), {"sign lost": negated})
# Many elements: not one by one, but in directions.
rule("a primitive on many elements", my_sine, (drawn(3000, seed=12),), {"right where they are positive": half})

# --- Solvers that only their rule can differentiate -------------------------------------------------------------------


def newton_root(x):
    def moving(state):
        return jnp.any(jnp.abs(state[1] - state[0]) > 4 * jnp.finfo(x.dtype).eps * state[1])

    step = lambda state: (state[1], (state[1] + x / state[1]) / 2)  # noqa: E731
    return lax.while_loop(moving, step, (jnp.zeros_like(x), jnp.maximum(x, 1)))[1]


def rule_of_root(factor):
    return custom(newton_root, lambda x: (newton_root(x),) * 2, lambda y, c: (factor * c / y,))


rule("a root by Newton's method", rule_of_root(0.5), (POSITIVE,), {"a thousandth off": rule_of_root(0.5005)})


def iterate(step, start):
    def moving(state):
        return (state[0] < 200) & jnp.any(jnp.abs(state[2] - state[1]) > 2 * jnp.finfo(start.dtype).eps)

    return lax.while_loop(moving, lambda s: (s[0] + 1, s[2], step(s[2])), (0, start, step(start)))[2]


def layer(w, b, z):
    return jnp.tanh(w @ z + b)


def rule_of_equilibrium(adjoint):
    def equilibrium(w, b):
        return iterate(lambda z: layer(w, b, z), jnp.zeros_like(b))

    def backward(saved, c):
        w, b, z = saved
        through = jax.vjp(lambda z: layer(w, b, z), z)[1]
        return jax.vjp(lambda w, b: layer(w, b, z), w, b)[1](adjoint(lambda u: through(u)[0], c))

    return custom(equilibrium, lambda w, b: (equilibrium(w, b), (w, b, equilibrium(w, b))), backward)


rule(
    "an equilibrium, its implicit rule",
    rule_of_equilibrium(lambda through, c: iterate(lambda u: c + through(u), c)),
    (f32([0.3, -0.4, 0.2], [0.1, 0.25, -0.3], [-0.2, 0.5, 0.1]), X),
    {"one step back only": rule_of_equilibrium(lambda through, c: c)},
)


def bisected(a):
    """The root of x³ + a x = 1, by halves; autodiff takes it for constant."""

    def halve(state):
        rounds, low, high = state
        middle = (low + high) / 2
        above = middle**3 + a * middle > 1
        return rounds + 1, jnp.where(above, low, middle), jnp.where(above, middle, high)

    _, low, high = lax.while_loop(lambda s: s[0] < 60, halve, (0, jnp.zeros_like(a), jnp.ones_like(a)))
    return (low + high) / 2


def rule_of_bisected(sign):
    slope = lambda a, x: sign * x / (3 * x**2 + a)  # noqa: E731
    return custom(bisected, lambda a: (bisected(a), (a, bisected(a))), lambda s, c: (c * slope(*s),))


UNREFERENCED.rule("a root by halves", rule_of_bisected(-1), (POSITIVE,), {"sign lost": rule_of_bisected(1)})
