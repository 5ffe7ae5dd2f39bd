"""Functions with a wrong custom rule in them; at the end, those that are wrong on purpose."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from corpora.kit import (
    WORKING,
    Slip,
    Surrogate,
    VjpCase,
    custom,
    custom_elementwise,
    custom_tangent,
    exactly,
    given,
    normal,
    wide,
)
from corpora.right_networks import standardise_back
from corpora.vjp_right import (
    ATTENTION,
    CELL,
    DENSE,
    DROPOUT,
    LOOKUP,
    MATRICES,
    NORM,
    OBLONG_DENSE,
    POSITIVE,
    ROWS,
    SOME,
    attention,
    attention_back,
    cell,
    cell_back,
    chained,
    cube,
    dense,
    dense_back,
    dropout,
    layer_norm,
    log_sum_exp,
    lookup,
    matmul,
    moments,
    power,
    product,
    rule_of_attention,
    rule_of_cell,
    rule_of_dense,
    rule_of_dropout,
    rule_of_layer_norm,
    rule_of_lookup,
    rule_of_matmul,
    rule_of_root,
    rule_of_softmax,
    softmax,
    softmax_back,
    softplus,
    unrolled,
)

WRONG: list[VjpCase] = []


def wrong(name, fun, plain, args, slip, **options):
    WRONG.append(VjpCase(name, fun, args, slip=slip, plain=plain, **options))


# --- Not linear in the cotangent, or deaf to it -----------------------------------------------------------------------

for name, backward in [
    ("sine, cotangent ignored", lambda x, g: jnp.cos(x)),
    ("sine, cotangent clipped to 1", lambda x, g: jnp.cos(x) * jnp.clip(g, -1, 1)),
    ("sine, cotangent without its sign", lambda x, g: jnp.cos(x) * jnp.abs(g)),
    ("sine, sign of the cotangent", lambda x, g: jnp.cos(x) * jnp.sign(g)),
    ("sine, cotangent squared", lambda x, g: jnp.cos(x) * g * g),
    ("sine, cotangent normalised", lambda x, g: jnp.cos(x) * g / jnp.linalg.norm(g)),
    ("sine, a constant beside the cotangent", lambda x, g: jnp.cos(x) * g + 1e-3),
    ("sine, negative cotangents dropped", lambda x, g: jnp.cos(x) * jnp.maximum(g, 0)),
    ("sine, small cotangents dropped", lambda x, g: jnp.cos(x) * jnp.where(jnp.abs(g) < 0.25, 0, g)),
    ("sine, first cotangent for all", lambda x, g: jnp.cos(x) * g[0]),
    ("sine, mean of the cotangents", lambda x, g: jnp.cos(x) * jnp.mean(g)),
    ("sine, cotangents reversed", lambda x, g: jnp.cos(x) * g[::-1]),
    ("sine, cotangent clipped at a norm of 5", lambda x, g: jnp.cos(x) * g * jnp.minimum(1, 5 / jnp.linalg.norm(g))),
]:
    fun = custom(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g, backward=backward: (backward(x, g),))
    wrong(name, fun, jnp.sin, SOME, Slip("cotangent", "[0]"))
wrong(
    "dense layer, bias deaf to the cotangent",
    rule_of_dense(lambda p, x, g: ({"weights": x.T @ g, "bias": jnp.full_like(p["bias"], len(x))}, g @ p["weights"].T)),
    dense,
    OBLONG_DENSE,
    Slip("cotangent", "[0]['bias']"),
)
wrong(
    "several outputs, the cotangent of one ignored",
    custom(moments, lambda x: (moments(x), x), lambda x, g: (2 * x * g["squares"],)),
    moments,
    given(normal(5)),
    Slip("cotangent", "[0]"),
)
wrong(
    "two outputs, their cotangents swapped",
    custom(
        lambda x: (jnp.sin(x), x**2),
        lambda x: ((jnp.sin(x), x**2), x),
        lambda x, g: (jnp.cos(x) * g[1] + 2 * x * g[0],),
    ),
    lambda x: (jnp.sin(x), x**2),
    SOME,
    Slip("cotangent", "[0]"),
)
wrong(
    "softmax, cotangent ignored in the projection",
    rule_of_softmax(lambda s, g: s * (g - jnp.sum(s * s, -1, keepdims=True))),
    softmax,
    ROWS,
    Slip("cotangent", "[0]"),
)

# --- Another value ----------------------------------------------------------------------------------------------------

for name, forward in [
    ("sine, a thousandth beside it", lambda x: jnp.sin(x) + 1e-3),
    ("sine, rounded to eighths", lambda x: jnp.round(8 * jnp.sin(x)) / 8),
    ("sine, by two terms of its series", lambda x: x - x**3 / 6),
    ("sine, its last value missed", lambda x: jnp.sin(x).at[-1].set(0)),
]:
    fun = custom(jnp.sin, lambda x, forward=forward: (forward(x), x), lambda x, g: (jnp.cos(x) * g,))
    wrong(name, fun, jnp.sin, SOME, Slip("primal", None))
wrong(
    "dropout, value not scaled when differentiated",
    rule_of_dropout(0.75, lambda x, key: 0.75 * dropout(x, key)),
    dropout,
    DROPOUT,
    Slip("primal", None),
    keyed=True,
)
wrong(
    "layer norm, shift forgotten when differentiated",
    rule_of_layer_norm(forward=lambda p, x: layer_norm(p, x) - p["shift"]),
    layer_norm,
    NORM,
    Slip("primal", None),
)
other_value = jax.custom_jvp(jnp.sin)
other_value.defjvp(lambda x, t: (jnp.sin(x[0]) * (1 + 1e-5), jnp.cos(x[0]) * t[0]))
wrong("sine, forward rule, value by 1e-5", other_value, jnp.sin, SOME, Slip("primal", None))

# --- Factors, transposes, axes ----------------------------------------------------------------------------------------

for name, factor in [
    ("negated", -1),
    ("doubled", 2),
    ("halved", 0.5),
    ("by a thousandth", 1.001),
    ("by a millionth", 1 + 1e-6),
]:
    kind = "relative" if abs(factor - 1) < 0.1 else "factor"
    fun = rule_of_dense(lambda p, x, g, factor=factor: (dense_back(p, x, g)[0], factor * (g @ p["weights"].T)))
    wrong(f"dense layer, input's slope {name}", fun, dense, OBLONG_DENSE, Slip(kind, "[1]", factor=factor))
wrong(
    "sine, forward rule, negated",
    custom_tangent(jnp.sin, lambda x, t: -jnp.cos(x[0]) * t[0]),
    jnp.sin,
    SOME,
    Slip("factor", "[0]", factor=-1),
)
wrong(
    "root by a while loop, half forgotten",
    rule_of_root(1),
    jnp.sqrt,
    POSITIVE,
    Slip("factor", "[0]", factor=2),
    reference=jnp.sqrt,
)
for name, backward, slip in [
    ("matrix product, b not transposed", lambda a, b, g: (g @ b, a.T @ g), Slip("other", "[0]")),
    ("matrix product, a's slope transposed", lambda a, b, g: (b @ g.T, a.T @ g), Slip("transposed", "[0]")),
    ("matrix product, b's slope transposed", lambda a, b, g: (g @ b.T, g.T @ a), Slip("transposed", "[1]")),
    ("matrix product, slopes swapped", lambda a, b, g: (a.T @ g, g @ b.T), Slip("swapped", None)),
    (
        "matrix product, one element of b",
        lambda a, b, g: (g @ b.T, (a.T @ g).at[2, 1].multiply(1.01)),
        Slip("element", "[1]", (2, 1)),
    ),
]:
    wrong(name, rule_of_matmul(backward), matmul, MATRICES, slip)
for name, change, kind, leaf in [
    ("bias over the outputs", lambda s, x, g: {**s, "bias": jnp.sum(g, axis=1)}, "axis", "['bias']"),
    ("mean for the bias", lambda s, x, g: {**s, "bias": jnp.mean(g, axis=0)}, "mean for sum", "['bias']"),
    (
        "bias lumped together",
        lambda s, x, g: {**s, "bias": jnp.full_like(s["bias"], jnp.sum(g))},
        "broadcast",
        "['bias']",
    ),
    ("weights transposed", lambda s, x, g: {**s, "weights": g.T @ x}, "transposed", "['weights']"),
    ("first point forgotten", lambda s, x, g: {**s, "weights": x[1:].T @ g[1:]}, "missing term", "['weights']"),
    ("None for the bias", lambda s, x, g: {**s, "bias": None}, "structure", "['bias']"),
    ("a row of the weights", lambda s, x, g: {**s, "weights": s["weights"].at[1].set(0)}, "element", "['weights']"),
]:
    fun = rule_of_dense(lambda p, x, g, change=change: (change(dense_back(p, x, g)[0], x, g), dense_back(p, x, g)[1]))
    wrong(f"dense layer, {name}", fun, dense, DENSE, Slip(kind, "[0]" + leaf, factor=1 / 3 if "mean" in kind else None))
wrong(
    "product, factors swapped",
    custom(product, lambda x, y: (x * y, (x, y)), lambda saved, g: (g * saved[0], g * saved[1])),
    product,
    given(normal(4), normal(4)),
    Slip("swapped", None),
)

# --- Terms, elements, sides, domains ----------------------------------------------------------------------------------

wrong("softmax, projection forgotten", rule_of_softmax(lambda s, g: s * g), softmax, ROWS, Slip("missing term", "[0]"))
wrong(
    "softmax, over the batch",
    rule_of_softmax(lambda s, g: s * (g - jnp.sum(s * g, axis=0, keepdims=True))),
    softmax,
    ROWS,
    Slip("axis", "[0]"),
)
wrong(
    "layer norm, statistics taken as fixed",
    rule_of_layer_norm(lambda hat, inverse, g, axis: inverse * g),
    layer_norm,
    NORM,
    Slip("missing term", "[1]"),
)
wrong(
    "attention, mask forgotten in v",
    rule_of_attention(functools.partial(attention_back, mask_in_v=False)),
    attention,
    ATTENTION,
    Slip("other", "[2]"),
)
wrong(
    "recurrent cell inside a scan, hidden weights halved",
    unrolled(rule_of_cell(lambda *a: (s := cell_back(*a)) and ({**s[0], "hidden": s[0]["hidden"] / 2}, *s[1:]))),
    unrolled(cell),
    CELL,
    Slip("factor", "[0]['hidden']", factor=0.5),
)
wrong(
    "recurrent cell inside a scan, nothing through time",
    unrolled(rule_of_cell(lambda *a: (s := cell_back(*a)) and (s[0], jnp.zeros_like(s[1]), s[2]))),
    unrolled(cell),
    CELL,
    Slip("missing term", None),
)
for name, plain, slope, args, slip in [
    (
        "leaky relu, dead below 0",
        lambda x: jnp.where(x > 0, x, 0.01 * x),
        lambda x: (x > 0).astype(x.dtype),
        SOME,
        Slip("one-sided", "[0]"),
    ),
    (
        "square root of 1 + x², as |x|'s",
        lambda x: jnp.sqrt(1 + x**2) + x,
        lambda x: jnp.abs(x) / jnp.sqrt(1 + x**2) + 1,
        SOME,
        Slip("one-sided", "[0]"),
    ),
    (
        "softplus, x beyond 4",
        softplus,
        lambda x: jnp.where(x > 4, 1, jax.nn.sigmoid(x)),
        given(exactly([1, -2, 4.5, 6])),
        Slip("domain", "[0]"),
    ),
    (
        "softplus, none below -20",
        softplus,
        lambda x: jnp.where(x < -20, 0, jax.nn.sigmoid(x)),
        given(exactly([-20.5, -24, -1, 3])),
        Slip("domain", "[0]"),
    ),
    (
        "tanh, element 3 forgotten",
        jnp.tanh,
        lambda x: ((1 - jnp.tanh(x)) * (1 + jnp.tanh(x))).at[3].set(0),
        SOME,
        Slip("element", "[0]", (3,)),
    ),
    (
        "tanh, slope from its output twice",
        jnp.tanh,
        lambda x: 1 - jnp.tanh(jnp.tanh(x)) ** 2,
        SOME,
        Slip("other", "[0]"),
    ),
    ("cube over x, at 0", cube, lambda x: 3 * x**3 / x, given(exactly([1, 0, -2])), Slip("nonfinite", "[0]", (1,))),
    (
        "one of a million elements",
        jnp.tanh,
        lambda x: ((1 - jnp.tanh(x)) * (1 + jnp.tanh(x))).at[654_321].multiply(1.01),
        given(normal(1_000_000)),
        Slip("element", "[0]", (654_321,)),
    ),
    ("SiLU, second term forgotten", lambda x: x * jax.nn.sigmoid(x), jax.nn.sigmoid, SOME, Slip("missing term", "[0]")),
]:
    wrong(name, custom_elementwise(plain, slope), plain, args, slip)
wrong(
    "length of rows, at a row of zeros",
    custom(
        lambda x: jnp.sum(x**2, axis=1),
        lambda x: (jnp.sum(x**2, axis=1), x),
        lambda x, g: (
            2 * g[:, None] * x / jnp.linalg.norm(x, axis=1, keepdims=True) * jnp.linalg.norm(x, axis=1, keepdims=True),
        ),
    ),
    lambda x: jnp.sum(x**2, axis=1),
    given(exactly([[3, 4], [0, 0]])),
    Slip("nonfinite", "[0]"),
)
wrong(
    "embedding, repeated rows overwritten",
    rule_of_lookup(lambda t, i, g: jnp.zeros_like(t).at[i].set(g)),
    lookup,
    LOOKUP,
    Slip("index", "[0]"),
)
wrong(
    "embedding, one row on",
    rule_of_lookup(lambda t, i, g: jnp.zeros_like(t).at[i + 1].add(g)),
    lookup,
    LOOKUP,
    Slip("index", "[0]"),
)
wrong(
    "dropout, slope not scaled",
    rule_of_dropout(1),
    dropout,
    DROPOUT,
    Slip("dropout scale", "[0]", factor=0.75),
    keyed=True,
)
wrong(
    "static exponent, not lowered",
    lambda x: custom(power, lambda x, n: (x**n, x), lambda n, x, g: (n * x**n * g,), nondiff_argnums=(1,))(x, 3),
    lambda x: x**3,
    SOME,
    Slip("other", "[0]"),
)

# --- Right at first order only ----------------------------------------------------------------------------------------

held = lax.stop_gradient
wrong(
    "sine, forward rule, slope held fixed",
    custom_tangent(jnp.sin, lambda x, t: held(jnp.cos(x[0])) * t[0]),
    jnp.sin,
    SOME,
    Slip("second order", "[0]"),
    order=2,
)
wrong(
    "cube, slope held fixed",
    custom_elementwise(cube, lambda x: held(3 * x**2)),
    cube,
    SOME,
    Slip("second order", "[0]"),
    order=2,
)
wrong(
    "cube, half of its slope held fixed",
    custom_elementwise(cube, lambda x: 3 * x * held(x)),
    cube,
    SOME,
    Slip("second order", "[0]"),
    order=2,
)
wrong(
    "cube of a sine of a cube, cotangent held fixed",
    chained(custom(cube, lambda x: (cube(x), x), lambda x, g: (3 * x**2 * held(g),))),
    chained(cube),
    given(normal(4, scale=0.5)),
    Slip("second order", "[0]"),
    order=2,
)
wrong(
    "softmax, its output held fixed",
    rule_of_softmax(lambda s, g: softmax_back(held(s), g)),
    softmax,
    ROWS,
    Slip("second order", "[0]"),
    order=2,
)
wrong(
    "matrix product, a held fixed in b's slope",
    rule_of_matmul(lambda a, b, g: (g @ b.T, held(a).T @ g)),
    matmul,
    MATRICES,
    Slip("second order", None),
    order=2,
)
wrong_slope = custom_elementwise(lambda x: 3 * x**2, lambda x: 3 * x)
wrong(
    "cube, whose slope has a wrong rule of its own",
    custom_elementwise(cube, wrong_slope),
    cube,
    SOME,
    Slip("second order", "[0]"),
    order=2,
)

# --- Precision, structure ---------------------------------------------------------------------------------------------


def one_pass(hat, inverse, g, axis):
    """The variance by E[y²] - E[y]² of values far from 0."""
    far = hat / inverse + 1000
    variance = jnp.mean(far**2, axis=axis, keepdims=True) - jnp.mean(far, axis=axis, keepdims=True) ** 2
    return standardise_back(hat, lax.rsqrt(variance + 1e-5), g, axis)


for name, plain, slope, args in [
    (
        "softplus by exp(x) / (1 + exp(x)), at 95",
        softplus,
        lambda x: jnp.exp(x) / (1 + jnp.exp(x)),
        given(exactly([95, 1, -1])),
    ),
    (
        "expm1 squared, by exp(x) - 1",
        lambda x: jnp.expm1(x) ** 2,
        lambda x: 2 * (jnp.exp(x) - 1) * jnp.exp(x),
        given(exactly([2e-4, -1e-4, 3e-5])),
    ),
    ("log-sum-exp, naive", log_sum_exp, lambda x: jnp.exp(x) / jnp.sum(jnp.exp(x)), given(exactly([100, 99, 101]))),
]:
    wrong(name, custom_elementwise(plain, slope), plain, args, Slip("precision", "[0]", dtypes=WORKING))
wrong(
    "layer norm, variance in one pass",
    rule_of_layer_norm(one_pass),
    layer_norm,
    NORM,
    Slip("precision", "[1]", dtypes=WORKING),
)
wrong(
    "tanh, slope in float32",
    custom_elementwise(jnp.tanh, lambda x: 1 / jnp.cosh(wide(x)) ** 2),
    jnp.tanh,
    SOME,
    Slip("structure", "[0]", dtypes=("bfloat16",)),
)
wrong(
    "product, None for what has a slope",
    custom(product, lambda x, y: (x * y, (x, y)), lambda saved, g: (g * saved[1], None)),
    product,
    given(normal(4), normal(4)),
    Slip("structure", "[1]"),
)
wrong(
    "product, a slope too few",
    custom(product, lambda x, y: (x * y, (x, y)), lambda saved, g: (g * saved[1],)),
    product,
    given(normal(4), normal(4)),
    Slip("structure", None),
)
wrong(
    "bias, not summed over the batch",
    custom(lambda x, b: x + b, lambda x, b: (x + b, None), lambda _, g: (g, g)),
    lambda x, b: x + b,
    given(normal(3, 4), normal(4)),
    Slip("structure", "[1]"),
)

# === Wrong on purpose =================================================================================================

SURROGATES: list[Surrogate] = []


def surrogate(name, fun, plain, reference, args, *words):
    SURROGATES.append(Surrogate(VjpCase(name, fun, args, reference=reference, plain=plain), words))


surrogate(
    "straight-through rounding",
    custom_elementwise(lambda x: jnp.round(x), jnp.ones_like),
    lambda x: jnp.round(x),
    lambda x: x,
    SOME,
    "surrogate",
    "straight-through",
)
surrogate(
    "straight-through sign",
    custom_elementwise(jnp.sign, lambda x: (jnp.abs(x) <= 1).astype(x.dtype)),
    jnp.sign,
    lambda x: jnp.clip(x, -1, 1),
    SOME,
    "surrogate",
    "straight-through",
)
surrogate(
    "spike with a sigmoid's slope",
    custom_elementwise(lambda x: (x > 0).astype(x.dtype), lambda x: jax.nn.sigmoid(x) * jax.nn.sigmoid(-x)),
    lambda x: (x > 0).astype(x.dtype),
    jax.nn.sigmoid,
    SOME,
    "surrogate",
    "straight-through",
)
surrogate(
    "hard choice with a softmax's slope",
    custom(
        lambda x: jax.nn.one_hot(jnp.argmax(x, axis=-1), x.shape[-1], dtype=x.dtype),
        lambda x: (jax.nn.one_hot(jnp.argmax(x, axis=-1), x.shape[-1], dtype=x.dtype), softmax(x)),
        lambda s, g: (softmax_back(s, g),),
    ),
    lambda x: jax.nn.one_hot(jnp.argmax(x, axis=-1), x.shape[-1], dtype=x.dtype),
    softmax,
    ROWS,
    "surrogate",
    "straight-through",
)
surrogate(
    "gradient reversal",
    custom_elementwise(lambda x: x, lambda x: -jnp.ones_like(x)),
    lambda x: x,
    lambda x: -x,
    SOME,
    "-1",
)
surrogate(
    "gradient scaled to a tenth",
    custom_elementwise(lambda x: x, lambda x: jnp.full_like(x, 0.125)),
    lambda x: x,
    lambda x: x / 8,
    SOME,
    "0.125",
)
surrogate(
    "clip that lets all slopes through",
    custom_elementwise(lambda x: jnp.clip(x, -1, 1), jnp.ones_like),
    lambda x: jnp.clip(x, -1, 1),
    lambda x: x,
    SOME,
    "surrogate",
)
