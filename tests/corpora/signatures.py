"""Custom rules with all kinds of arguments and outputs, without a plain function, and wrong on purpose."""

import jax
import jax.numpy as jnp
from jax import lax

from corpora.kit import Cases, Slip, Surrogate, VjpCase, custom, elementwise, given, normal, uniform
from corpora.rules import ROWS, SOME, held, softmax, softmax_back

CASES = Cases(VjpCase)
add = CASES.add

# --- Arguments, outputs and what surrounds a rule ---------------------------------------------------------------------


def moments(x):
    return {"sum": jnp.sum(x), "squares": x**2, "largest": jnp.argmax(x)}


def moments_rule(backward):
    return custom(moments, lambda x: (moments(x), x), lambda x, g: (backward(x, g),))


add(
    "several outputs, one of them an index",
    moments,
    given(normal(5)),
    moments_rule(lambda x, g: g["sum"] + 2 * x * g["squares"]),
    {"the cotangent of one ignored": (moments_rule(lambda x, g: 2 * x * g["squares"]), Slip("cotangent", "[0]"))},
)


def weighted(x, weights):
    return jnp.sum(held(weights) * x**2)


of_x = lambda saved, g: (2 * g * saved[1] * saved[0], None)  # noqa: E731
add(
    "None for what has slope 0",
    weighted,
    given(normal(4), normal(4)),
    custom(weighted, lambda x, w: (weighted(x, w), (x, w)), of_x),
)


def product(x, y):
    return x * y


def product_rule(backward):
    return custom(product, lambda x, y: (x * y, (x, y)), lambda saved, g: backward(*saved, g))


add(
    "product",
    product,
    given(normal(4), normal(4)),
    product_rule(lambda x, y, g: (g * y, g * x)),
    {
        "factors swapped": (product_rule(lambda x, y, g: (g * x, g * y)), Slip("swapped", None)),
        "None for what has a slope": (product_rule(lambda x, y, g: (g * y, None)), Slip("structure", "[1]")),
        "a slope too few": (product_rule(lambda x, y, g: (g * y,)), Slip("structure", None)),
    },
)
sparing = jax.custom_vjp(product)
sparing.defvjp(
    lambda x, y: (x.value * y.value, (x.value if y.perturbed else None, y.value if x.perturbed else None)),
    lambda saved, g: tuple(None if other is None else g * other for other in saved[::-1]),
    symbolic_zeros=True,
)
add("symbolic zeros", lambda x, y: jnp.sin(x * y), given(normal(4), normal(4)), lambda x, y: jnp.sin(sparing(x, y)))


def affine(x, b):
    return x + b


def affine_rule(of_bias):
    return custom(affine, lambda x, b: (x + b, None), lambda _, g: (g, of_bias(g)))


add(
    "bias, broadcast",
    affine,
    given(normal(3, 4), normal(4)),
    affine_rule(lambda g: jnp.sum(g, axis=0)),
    {"not summed over the batch": (affine_rule(lambda g: g), Slip("structure", None))},
)


def newton_root(x):
    """In as many rounds as it takes, which autodiff can't take backward."""

    def step(state):
        return state[1], (state[1] + x / state[1]) / 2

    def moving(state):
        return jnp.any(jnp.abs(state[0] - state[1]) > 4 * jnp.finfo(x.dtype).eps * state[1])

    return lax.while_loop(moving, step, (jnp.zeros_like(x), jnp.maximum(x, 1)))[1]


def root_rule(factor):
    return custom(newton_root, lambda x: (newton_root(x), newton_root(x)), lambda root, g: (factor * g / root,))


add(
    "root by a while loop",
    jnp.sqrt,
    given(uniform(5, low=0.5, high=4)),
    root_rule(0.5),
    {"half forgotten": (root_rule(1), Slip("factor", "[0]", factor=2))},
    reference=jnp.sqrt,
)

# --- Wrong on purpose -------------------------------------------------------------------------------------------------


def one_hot(x):
    return jax.nn.one_hot(jnp.argmax(x, axis=-1), x.shape[-1], dtype=x.dtype)


MEANT = "surrogate|straight-through"
hard = custom(one_hot, lambda x: (one_hot(x), softmax(x)), lambda s, g: (softmax_back(s, g),))
SURROGATES = [
    Surrogate(VjpCase(name, plain, args, rule, reference), words)
    for name, plain, args, rule, reference, words in [
        ("rounding", jnp.round, SOME, elementwise(jnp.round, jnp.ones_like), lambda x: x, MEANT),
        (
            "sign",
            jnp.sign,
            SOME,
            elementwise(jnp.sign, lambda x: (jnp.abs(x) <= 1).astype(x.dtype)),
            lambda x: jnp.clip(x, -1, 1),
            MEANT,
        ),
        (
            "gradient reversal",
            lambda x: x,
            SOME,
            elementwise(lambda x: x, lambda x: -jnp.ones_like(x)),
            lambda x: -x,
            "-1",
        ),
        ("hard choice with a softmax's slope", one_hot, ROWS, hard, softmax, MEANT),
    ]
]
