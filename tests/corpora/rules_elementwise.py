"""Elementwise functions with a custom rule in them."""

import jax
import jax.numpy as jnp
from jax import lax

from corpora.kit import (
    WORKING,
    Slip,
    Subject,
    VjpCase,
    custom,
    custom_elementwise,
    custom_tangent,
    exactly,
    given,
    normal,
    wide,
)

SUBJECT = Subject(VjpCase)
right, wrong, twin = SUBJECT.right, SUBJECT.wrong, SUBJECT.twin
SOME = given(normal(6, scale=2))


def softplus(x):
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def relu(x):
    return jnp.maximum(x, 0)


def cube(x):
    return x**3


def chained(f):
    return lambda x: f(jnp.sin(f(x)))


def tanh_slope(x):
    return (1 - jnp.tanh(x)) * (1 + jnp.tanh(x))


def is_positive(x):
    return (x > 0).astype(x.dtype)


my_tanh = custom_elementwise(jnp.tanh, tanh_slope)
my_sin = custom_tangent(jnp.sin, lambda x, t: jnp.cos(x[0]) * t[0])
my_cube = custom_elementwise(cube, lambda x: 3 * x**2)
tanh = right("tanh", my_tanh, jnp.tanh, SOME)
soft = right(
    "softplus, forward rule", custom_tangent(softplus, lambda x, t: jax.nn.sigmoid(x[0]) * t[0]), softplus, SOME
)
sine = right("sine, forward rule, order two", my_sin, jnp.sin, SOME, order=2)
cubed = right("cube, order two", my_cube, cube, SOME, order=2)
chain = right(
    "cube of a sine of a cube, order two", chained(my_cube), chained(cube), given(normal(4, scale=0.5)), order=2
)
right("a scalar", my_cube, cube, given(normal()))
right("no elements", my_cube, cube, given(normal(0, 3)))
right("huge slopes", custom_elementwise(lambda x: 1e30 * x, lambda x: 1e30), lambda x: 1e30 * x, SOME)
right("tiny values", my_cube, cube, given(normal(4, scale=1e-10)))
right("a million elements", my_tanh, jnp.tanh, given(normal(1_000_000)))
right(
    "relu, slope 1 at 0",
    custom_elementwise(relu, lambda x: (x >= 0).astype(x.dtype)),
    relu,
    given(exactly([-1, 0, 2])),
    kink=True,
)
right(
    "jax.nn.relu at 0 beside a rule",
    lambda x: jax.nn.relu(x) + my_tanh(x),
    lambda x: jax.nn.relu(x) + jnp.tanh(x),
    given(exactly([-1, 0, 2])),
    kink=True,
)
right(
    "a rule in wider numbers, rounded at the end",
    custom(jnp.tanh, lambda x: (jnp.tanh(x), x), lambda x, g: ((wide(g) / jnp.cosh(wide(x)) ** 2).astype(x.dtype),)),
    jnp.tanh,
    SOME,
)
inner_and_outer = custom(
    lambda x: jnp.tanh(x) ** 2,
    lambda x: (my_tanh(x) ** 2, x),
    lambda x, g: (g * 2 * my_tanh(x) * jax.vmap(jax.grad(my_tanh))(x),),
)
right("a rule that uses another rule", inner_and_outer, lambda x: jnp.tanh(x) ** 2, SOME)
right(
    "jnp.sinc at 0 beside a rule, order two",
    lambda x: jnp.sinc(x) * my_cube(x + 1),
    lambda x: jnp.sinc(x) * (x + 1) ** 3,
    given(exactly([0, 0.5, -1.25])),
    reference=lambda x: jnp.sinc(x) * (x + 1) ** 3,
    order=2,
)


@jax.custom_gradient
def doubled_exp(x):
    out = jnp.exp(x / 2)
    return out, lambda g: (g * out / 2,)


right("jax.custom_gradient", doubled_exp, lambda x: jnp.exp(x / 2), SOME)


def power(x, n):
    return x**n


def rule_of_power(slope):
    fun = custom(power, lambda x, n: (x**n, x), lambda n, x, g: (slope(x, n) * g,), nondiff_argnums=(1,))
    return lambda x: fun(x, 3)


static = right("static exponent", rule_of_power(lambda x, n: n * x ** (n - 1)), lambda x: power(x, 3), SOME)
my_tangent_power = jax.custom_jvp(power, nondiff_argnums=(1,))
my_tangent_power.defjvp(lambda n, primals, tangents: (primals[0] ** n, n * primals[0] ** (n - 1) * tangents[0]))
right("static exponent, forward rule", lambda x: my_tangent_power(x, 4), lambda x: power(x, 4), SOME, order=2)
wrong("static exponent, not lowered", static, rule_of_power(lambda x, n: n * x**n), Slip("other", "[0]"))

# --- Not linear in the cotangent, or deaf to it -----------------------------------------------------------------------

for name, backward in [
    ("cotangent ignored", lambda x, g: jnp.cos(x)),
    ("cotangent clipped to 1", lambda x, g: jnp.cos(x) * jnp.clip(g, -1, 1)),
    ("cotangent without its sign", lambda x, g: jnp.cos(x) * jnp.abs(g)),
    ("sign of the cotangent", lambda x, g: jnp.cos(x) * jnp.sign(g)),
    ("cotangent squared", lambda x, g: jnp.cos(x) * g * g),
    ("cotangent normalised", lambda x, g: jnp.cos(x) * g / jnp.linalg.norm(g)),
    ("a constant beside the cotangent", lambda x, g: jnp.cos(x) * g + 1e-3),
    ("negative cotangents dropped", lambda x, g: jnp.cos(x) * jnp.maximum(g, 0)),
    ("small cotangents dropped", lambda x, g: jnp.cos(x) * jnp.where(jnp.abs(g) < 0.25, 0, g)),
    ("first cotangent for all", lambda x, g: jnp.cos(x) * g[0]),
    ("mean of the cotangents", lambda x, g: jnp.cos(x) * jnp.mean(g)),
    ("cotangents reversed", lambda x, g: jnp.cos(x) * g[::-1]),
    ("cotangent clipped at a norm of 5", lambda x, g: jnp.cos(x) * g * jnp.minimum(1, 5 / jnp.linalg.norm(g))),
]:
    fun = custom(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g, backward=backward: (backward(x, g),))
    wrong(f"sine, {name}", sine, fun, Slip("cotangent", "[0]"), order=1)
wrong(
    "two outputs, their cotangents swapped",
    twin(lambda x: (jnp.sin(x), x**2), SOME),
    custom(
        lambda x: (jnp.sin(x), x**2),
        lambda x: ((jnp.sin(x), x**2), x),
        lambda x, g: (jnp.cos(x) * g[1] + 2 * x * g[0],),
    ),
    Slip("cotangent", "[0]"),
)

# --- Another value ----------------------------------------------------------------------------------------------------

for name, forward in [
    ("a thousandth beside it", lambda x: jnp.sin(x) + 1e-3),
    ("rounded to eighths", lambda x: jnp.round(8 * jnp.sin(x)) / 8),
    ("by two terms of its series", lambda x: x - x**3 / 6),
    ("its last value missed", lambda x: jnp.sin(x).at[-1].set(0)),
]:
    fun = custom(jnp.sin, lambda x, forward=forward: (forward(x), x), lambda x, g: (jnp.cos(x) * g,))
    wrong(f"sine, {name}", sine, fun, Slip("primal", None), order=1)
other_value = jax.custom_jvp(jnp.sin)
other_value.defjvp(lambda x, t: (jnp.sin(x[0]) * (1 + 1e-5), jnp.cos(x[0]) * t[0]))
wrong("sine, forward rule, value by 1e-5", sine, other_value, Slip("primal", None), order=1)

# --- Another slope ----------------------------------------------------------------------------------------------------

negated = custom_tangent(jnp.sin, lambda x, t: -jnp.cos(x[0]) * t[0])
wrong("sine, forward rule, negated", sine, negated, Slip("factor", "[0]", factor=-1), order=1)
for name, case, slope, slip in [
    (
        "leaky relu, dead below 0",
        twin(lambda x: jnp.where(x > 0, x, 0.01 * x), SOME),
        is_positive,
        Slip("one-sided", "[0]"),
    ),
    (
        "square root of 1 + x², as |x|'s",
        twin(lambda x: jnp.sqrt(1 + x**2) + x, SOME),
        lambda x: jnp.abs(x) / jnp.sqrt(1 + x**2) + 1,
        Slip("one-sided", "[0]"),
    ),
    (
        "softplus, x beyond 4",
        soft._replace(args=given(exactly([1, -2, 4.5, 6]))),
        lambda x: jnp.where(x > 4, 1, jax.nn.sigmoid(x)),
        Slip("domain", "[0]"),
    ),
    (
        "softplus, none below -20",
        soft._replace(args=given(exactly([-20.5, -24, -1, 3]))),
        lambda x: jnp.where(x < -20, 0, jax.nn.sigmoid(x)),
        Slip("domain", "[0]"),
    ),
    ("tanh, element 3 forgotten", tanh, lambda x: tanh_slope(x).at[3].set(0), Slip("element", "[0]", (3,))),
    ("tanh, slope from its output twice", tanh, lambda x: 1 - jnp.tanh(jnp.tanh(x)) ** 2, Slip("other", "[0]")),
    (
        "one of a hundred thousand elements",
        tanh._replace(args=given(normal(100_000))),
        lambda x: tanh_slope(x).at[65_432].multiply(1.01),
        Slip("element", "[0]", (65_432,)),
    ),
    (
        "cube over x, at 0",
        twin(cube, given(exactly([1, 0, -2]))),
        lambda x: 3 * x**3 / x,
        Slip("nonfinite", "[0]", (1,)),
    ),
    (
        "SiLU, second term forgotten",
        twin(lambda x: x * jax.nn.sigmoid(x), SOME),
        jax.nn.sigmoid,
        Slip("missing term", "[0]"),
    ),
    (
        "softplus by exp(x) / (1 + exp(x)), at 95",
        soft._replace(args=given(exactly([95, 1, -1]))),
        lambda x: jnp.exp(x) / (1 + jnp.exp(x)),
        Slip("precision", "[0]", dtypes=WORKING),
    ),
    (
        "expm1 squared, by exp(x) - 1",
        twin(lambda x: jnp.expm1(x) ** 2, given(exactly([2e-4, -1e-4, 3e-5]))),
        lambda x: 2 * (jnp.exp(x) - 1) * jnp.exp(x),
        Slip("precision", "[0]", dtypes=WORKING),
    ),
    (
        "tanh, slope in float32",
        tanh,
        lambda x: 1 / jnp.cosh(wide(x)) ** 2,
        Slip("structure", "[0]", dtypes=("bfloat16",)),
    ),
]:
    wrong(name, case, custom_elementwise(case.plain, slope), slip)

# --- Right at first order only ----------------------------------------------------------------------------------------

held = lax.stop_gradient
for name, case, fun in [
    ("sine, forward rule, slope held fixed", sine, custom_tangent(jnp.sin, lambda x, t: held(jnp.cos(x[0])) * t[0])),
    ("cube, slope held fixed", cubed, custom_elementwise(cube, lambda x: held(3 * x**2))),
    ("cube, half of its slope held fixed", cubed, custom_elementwise(cube, lambda x: 3 * x * held(x))),
    (
        "cube, whose slope has a wrong rule of its own",
        cubed,
        custom_elementwise(cube, custom_elementwise(lambda x: 3 * x**2, lambda x: 3 * x)),
    ),
    (
        "cube of a sine of a cube, cotangent held fixed",
        chain,
        chained(custom(cube, lambda x: (cube(x), x), lambda x, g: (3 * x**2 * held(g),))),
    ),
]:
    wrong(name, case, fun, Slip("second order", "[0]"))
