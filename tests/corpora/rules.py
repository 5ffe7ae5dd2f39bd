"""Elementwise functions and layers with a custom rule in them."""

import jax
import jax.numpy as jnp
from jax import lax

from corpora.kit import Cases, Slip, VjpCase, custom, elementwise, exactly, given, normal, sine, tangent, wide

CASES = Cases(VjpCase)
add = CASES.add
held = lax.stop_gradient
SOME = given(normal(6, scale=2))

# --- Elementwise functions --------------------------------------------------------------------------------------------


COTANGENTS = {
    "cotangent ignored": lambda x, g: jnp.cos(x),
    "cotangent clipped to 1": lambda x, g: jnp.cos(x) * jnp.clip(g, -1, 1),
    "cotangent without its sign": lambda x, g: jnp.cos(x) * jnp.abs(g),
    "cotangent normalised": lambda x, g: jnp.cos(x) * g / jnp.linalg.norm(g),
    "a constant beside the cotangent": lambda x, g: jnp.cos(x) * g + 1e-3,
    "small cotangents dropped": lambda x, g: jnp.cos(x) * jnp.where(jnp.abs(g) < 0.25, 0, g),
    "first cotangent for all": lambda x, g: jnp.cos(x) * g[0],
    "cotangents reversed": lambda x, g: jnp.cos(x) * g[::-1],
}
VALUES = {
    "its value a thousandth off": lambda x: jnp.sin(x) + 1e-3,
    "its last value missed": lambda x: jnp.sin(x).at[-1].set(0),
}
add(
    "sine",
    jnp.sin,
    SOME,
    sine(),
    {name: (sine(backward), Slip("cotangent", "[0]")) for name, backward in COTANGENTS.items()}
    | {name: (sine(lambda x, g: jnp.cos(x) * g, value), Slip("primal", None)) for name, value in VALUES.items()},
)
other_value = jax.custom_jvp(jnp.sin)
other_value.defjvp(lambda x, t: (jnp.sin(x[0]) * (1 + 1e-5), jnp.cos(x[0]) * t[0]))
add(
    "sine, forward rule",
    jnp.sin,
    SOME,
    tangent(jnp.sin, lambda x, t: jnp.cos(x[0]) * t[0]),
    {
        "negated": (
            tangent(jnp.sin, lambda x, t: -jnp.cos(x[0]) * t[0]),
            Slip("factor", "[0]", factor=-1),
            {"order": 1},
        ),
        "value by 1e-5": (other_value, Slip("primal", None), {"order": 1}),
        "slope held fixed": (tangent(jnp.sin, lambda x, t: held(jnp.cos(x[0])) * t[0]), Slip("second order", "[0]")),
    },
    order=2,
)


def cube(x):
    return x**3


my_cube = elementwise(cube, lambda x: 3 * x**2)
add(
    "cube",
    cube,
    SOME,
    my_cube,
    {
        "slope held fixed": (elementwise(cube, lambda x: held(3 * x**2)), Slip("second order", "[0]")),
        "slope with a wrong rule of its own": (
            elementwise(cube, elementwise(lambda x: 3 * x**2, lambda x: 3 * x)),
            Slip("second order", "[0]"),
        ),
    },
    order=2,
)
add(
    "cube over x",
    cube,
    given(exactly([1, 0, -2])),
    wrong={"at 0": (elementwise(cube, lambda x: 3 * x**3 / x), Slip("nonfinite", "[0]", (1,)))},
)


def tanh_slope(x):
    return (1 - jnp.tanh(x)) * (1 + jnp.tanh(x))


my_tanh = elementwise(jnp.tanh, tanh_slope)
add(
    "tanh",
    jnp.tanh,
    SOME,
    my_tanh,
    {
        "element 3 forgotten": (
            elementwise(jnp.tanh, lambda x: tanh_slope(x).at[3].set(0)),
            Slip("element", "[0]", (3,)),
        ),
        "slope in float32": (
            elementwise(jnp.tanh, lambda x: 1 / jnp.cosh(wide(x)) ** 2),
            Slip("structure", "[0]", dtypes=("bfloat16",)),
        ),
    },
)
squared = lambda x: jnp.tanh(x) ** 2  # noqa: E731
through = lambda x, g: (g * 2 * my_tanh(x) * jax.vmap(jax.grad(my_tanh))(x),)  # noqa: E731
add("a rule that uses another rule", squared, SOME, custom(squared, lambda x: (my_tanh(x) ** 2, x), through))
ON_ZERO = given(exactly([-1, 0, 2]))
relu = lambda x: jnp.maximum(x, 0)  # noqa: E731
add("relu, slope 1 at 0", relu, ON_ZERO, elementwise(relu, lambda x: (x >= 0).astype(x.dtype)), kink=True)
beside = lambda x: jax.nn.relu(x) + jnp.tanh(x)  # noqa: E731
add("jax.nn.relu at 0 beside a rule", beside, ON_ZERO, lambda x: jax.nn.relu(x) + my_tanh(x), kink=True)


@jax.custom_gradient
def doubled_exp(x):
    out = jnp.exp(x / 2)
    return out, lambda g: (g * out / 2,)


add("jax.custom_gradient", lambda x: jnp.exp(x / 2), SOME, doubled_exp)


# --- Layers -----------------------------------------------------------------------------------------------------------


def matmul(backward):
    return custom(lambda a, b: a @ b, lambda a, b: (a @ b, (a, b)), lambda saved, g: backward(*saved, g))


add(
    "matrix product",
    jnp.matmul,
    given(normal(3, 3), normal(3, 3)),
    matmul(lambda a, b, g: (g @ b.T, a.T @ g)),
    {
        "b not transposed": (matmul(lambda a, b, g: (g @ b, a.T @ g)), Slip("other", "[0]")),
        "a's slope transposed": (matmul(lambda a, b, g: (b @ g.T, a.T @ g)), Slip("transposed", "[0]")),
        "slopes swapped": (matmul(lambda a, b, g: (a.T @ g, g @ b.T)), Slip("swapped", None)),
        "one element of b": (
            matmul(lambda a, b, g: (g @ b.T, (a.T @ g).at[2, 1].multiply(1.01))),
            Slip("element", "[1]", (2, 1)),
        ),
        "a held fixed in b's slope": (
            matmul(lambda a, b, g: (g @ b.T, held(a).T @ g)),
            Slip("second order", None),
            {"order": 2},
        ),
    },
)


def dense(p, x):
    return x @ p["weights"] + p["bias"]


def dense_rule(leaf="", change=None, factor=1):
    """With one leaf of its gradient changed, or that of its input times a factor."""

    def backward(saved, g):
        p, x = saved
        slopes = {"weights": x.T @ g, "bias": jnp.sum(g, axis=0)}
        if change is not None:
            slopes[leaf] = change(slopes[leaf], x, g)
        return slopes, factor * (g @ p["weights"].T)

    return custom(dense, lambda p, x: (dense(p, x), (p, x)), backward)


DENSE = given({"weights": normal(3, 3), "bias": normal(3)}, normal(3, 3))
BIAS = {
    "bias over the outputs": (lambda s, x, g: jnp.sum(g, axis=1), Slip("axis", "[0]['bias']")),
    "mean for the bias": (lambda s, x, g: jnp.mean(g, axis=0), Slip("mean for sum", "[0]['bias']", factor=1 / 3)),
    "bias lumped together": (lambda s, x, g: jnp.full_like(s, jnp.sum(g)), Slip("broadcast", "[0]['bias']")),
    "bias without the cotangent": (lambda s, x, g: jnp.full_like(s, len(x)), Slip("cotangent", "[0]['bias']")),
    "None for the bias": (lambda s, x, g: None, Slip("structure", "[0]['bias']")),
}
FACTORS = {"input's slope negated": (-1, "factor"), "input's slope by a millionth": (1 + 1e-6, "relative")}
add(
    "dense layer",
    dense,
    DENSE,
    dense_rule(),
    {name: (dense_rule("bias", change), slip, {"order": 1}) for name, (change, slip) in BIAS.items()}
    | {name: (dense_rule(factor=c), Slip(kind, "[1]", factor=c), {"order": 1}) for name, (c, kind) in FACTORS.items()},
    order=2,
)


def softmax(x):
    shifted = jnp.exp(x - held(jnp.max(x, axis=-1, keepdims=True)))
    return shifted / jnp.sum(shifted, axis=-1, keepdims=True)


def softmax_back(s, g):
    return s * (g - jnp.sum(s * g, axis=-1, keepdims=True))


def softmax_rule(backward):
    return custom(softmax, lambda x: (softmax(x), softmax(x)), lambda s, g: (backward(s, g),))


ROWS = given(normal(3, 4))
add(
    "softmax",
    softmax,
    ROWS,
    softmax_rule(softmax_back),
    {
        "cotangent ignored in the projection": (
            softmax_rule(lambda s, g: s * (g - jnp.sum(s * s, -1, keepdims=True))),
            Slip("cotangent", "[0]"),
        ),
        "over the batch": (softmax_rule(lambda s, g: s * (g - jnp.sum(s * g, 0, keepdims=True))), Slip("axis", "[0]")),
        "its output held fixed": (
            softmax_rule(lambda s, g: softmax_back(held(s), g)),
            Slip("second order", "[0]"),
            {"order": 2},
        ),
    },
)


def cell(p, h, x):
    return jnp.tanh(x @ p["in"] + h @ p["hidden"])


def cell_rule(change=lambda slopes, h, x: (slopes, h, x)):
    def backward(saved, g):
        p, h, x, out = saved
        delta = g * (1 - out) * (1 + out)
        slopes = {"in": jnp.outer(x, delta), "hidden": jnp.outer(h, delta)}
        return change(slopes, p["hidden"] @ delta, p["in"] @ delta)

    return custom(cell, lambda p, h, x: (cell(p, h, x), (p, h, x, cell(p, h, x))), backward)


def unrolled(cell):
    return lambda p, x: lax.scan(lambda h, x: (cell(p, h, x),) * 2, jnp.zeros_like(p["hidden"][0]), x)[1]


add(
    "recurrent cell inside a scan",
    unrolled(cell),
    given({"in": normal(3, 3), "hidden": normal(3, 3)}, normal(5, 3)),
    unrolled(cell_rule()),
    {
        "hidden weights halved": (
            unrolled(cell_rule(lambda w, h, x: ({**w, "hidden": w["hidden"] / 2}, h, x))),
            Slip("factor", "[0]['hidden']", factor=0.5),
        ),
        "nothing through time": (unrolled(cell_rule(lambda w, h, x: (w, 0 * h, x))), Slip("missing term", None)),
    },
)
