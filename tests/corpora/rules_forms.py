"""What a custom rule may look like, and what surrounds it; and the rules that are wrong on purpose."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpora.kit import (
    Slip,
    Subject,
    Surrogate,
    VjpCase,
    custom,
    custom_elementwise,
    exactly,
    fixed,
    given,
    normal,
    uniform,
    wide,
)
from corpora.rules_elementwise import SOME, cube, my_cube, my_tanh
from corpora.rules_layers import softened, softmax, softmax_back

SUBJECT = Subject(VjpCase)
right, wrong, twin = SUBJECT.right, SUBJECT.wrong, SUBJECT.twin

# --- Arguments and outputs --------------------------------------------------------------------------------------------


def moments(x):
    return {"sum": jnp.sum(x), "squares": x**2, "largest": jnp.argmax(x)}


def rule_of_moments(backward):
    return custom(moments, lambda x: (moments(x), x), lambda x, g: (backward(x, g),))


several = right(
    "several outputs, one of them an index",
    rule_of_moments(lambda x, g: g["sum"] + 2 * x * g["squares"]),
    moments,
    given(normal(5)),
)
wrong(
    "several outputs, the cotangent of one ignored",
    several,
    rule_of_moments(lambda x, g: 2 * x * g["squares"]),
    Slip("cotangent", "[0]"),
)


def weighted(x, weights):
    return jnp.sum(lax.stop_gradient(weights) * x**2)


def weighted_back(saved, g):
    x, weights = saved
    return 2 * g * weights * x, None


right(
    "None for what has slope 0",
    custom(weighted, lambda x, w: (weighted(x, w), (x, w)), weighted_back),
    weighted,
    given(normal(4), normal(4)),
)


def product(x, y):
    return x * y


def rule_of_product(backward):
    return custom(product, lambda x, y: (x * y, (x, y)), lambda saved, g: backward(*saved, g))


for name, backward, slip in [
    ("factors swapped", lambda x, y, g: (g * x, g * y), Slip("swapped", None)),
    ("None for what has a slope", lambda x, y, g: (g * y, None), Slip("structure", "[1]")),
    ("a slope too few", lambda x, y, g: (g * y,), Slip("structure", None)),
]:
    wrong(f"product, {name}", twin(product, given(normal(4), normal(4))), rule_of_product(backward), slip)
sparing_product = jax.custom_vjp(product)
sparing_product.defvjp(
    lambda x, y: (x.value * y.value, (x.value if y.perturbed else None, y.value if x.perturbed else None)),
    lambda saved, g: tuple(None if other is None else g * other for other in saved[::-1]),
    symbolic_zeros=True,
)
right(
    "symbolic zeros",
    lambda x, y: jnp.sin(sparing_product(x, y)),
    lambda x, y: jnp.sin(x * y),
    given(normal(4), normal(4)),
)
right(
    "one branch with a rule",
    lambda x, left: lax.cond(left, my_cube, jnp.sin, x),
    lambda x, left: lax.cond(left, cube, jnp.sin, x),
    given(normal(4), fixed(True, bool)),
)
right(
    "bias and scalar, broadcast",
    custom(
        lambda x, b, s: s * x + b,
        lambda x, b, s: (s * x + b, (x, s)),
        lambda saved, g: (saved[1] * g, jnp.sum(g, axis=0), jnp.sum(g * saved[0])),
    ),
    lambda x, b, s: s * x + b,
    given(normal(3, 4), normal(4), normal()),
)
right(
    "nested containers, rule inside",
    lambda p: [my_cube(p[0]["a"]), (my_tanh(p[1][0]) * p[0]["a"],)],
    lambda p: [cube(p[0]["a"]), (jnp.tanh(p[1][0]) * p[0]["a"],)],
    given([{"a": normal(3)}, (normal(3),)]),
)
wrong(
    "bias, not summed over the batch",
    twin(lambda x, b: x + b, given(normal(3, 4), normal(4))),
    custom(lambda x, b: x + b, lambda x, b: (x + b, None), lambda _, g: (g, g)),
    Slip("structure", "[1]"),
)


def squared_length(x):
    return jnp.sum(x**2, axis=1)


def by_the_length(x, g):
    length = jnp.linalg.norm(x, axis=1, keepdims=True)
    return (2 * g[:, None] * x / length * length,)


wrong(
    "length of rows, at a row of zeros",
    twin(squared_length, given(exactly([[3, 4], [0, 0]]))),
    custom(squared_length, lambda x: (squared_length(x), x), by_the_length),
    Slip("nonfinite", "[0]"),
)

# --- Rules whose function cannot be differentiated without them: the reference is given -------------------------------


def newton_root(x):
    def step(state):
        _, root = state
        return root, (root + x / root) / 2

    def moving(state):
        return jnp.any(jnp.abs(state[0] - state[1]) > 4 * jnp.finfo(x.dtype).eps * state[1])

    return lax.while_loop(moving, step, (jnp.zeros_like(x), jnp.maximum(x, 1)))[1]


def rule_of_root(factor):
    return custom(newton_root, lambda x: (newton_root(x), newton_root(x)), lambda root, g: (factor * g / root,))


root = right(
    "root by a while loop", rule_of_root(0.5), jnp.sqrt, given(uniform(5, low=0.5, high=4)), reference=jnp.sqrt
)
wrong("root by a while loop, half forgotten", root, rule_of_root(1), Slip("factor", "[0]", factor=2))


def host_sin(x):
    def on_host(x):
        return np.sin(np.asarray(x, np.float64)).astype(x.dtype)

    return jax.pure_callback(on_host, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims")


right("NumPy behind a callback", custom_elementwise(host_sin, jnp.cos), jnp.sin, SOME, reference=jnp.sin)


def settled(w, b):
    def moving(state):
        return (state[0] < 200) & jnp.any(state[1] != state[2])

    def step(state):
        return state[0] + 1, state[2], jnp.tanh(w @ state[2] + b)

    return lax.while_loop(moving, step, (0, jnp.full_like(b, 2), jnp.zeros_like(b)))[2]


def unrolled_fixed_point(w, b):
    return lax.fori_loop(0, 120, lambda _, z: jnp.tanh(w @ z + b), jnp.zeros_like(b))


def settled_back(saved, g):
    w, z = saved
    slope = wide((1 - z) * (1 + z))
    v = slope * jnp.linalg.solve((jnp.eye(len(z)) - slope[:, None] * w).T, wide(g))
    return jnp.outer(v, z).astype(w.dtype), v.astype(z.dtype)


right(
    "fixed point by a while loop, implicitly",
    custom(settled, lambda w, b: (settled(w, b), (w, settled(w, b))), settled_back),
    unrolled_fixed_point,
    given(normal(4, 4, scale=0.25), normal(4)),
    reference=unrolled_fixed_point,
)
# --- Wrong on purpose -------------------------------------------------------------------------------------------------

SURROGATES: list[Surrogate] = []


def one_hot(x):
    return jax.nn.one_hot(jnp.argmax(x, axis=-1), x.shape[-1], dtype=x.dtype)


def is_positive(x):
    return (x > 0).astype(x.dtype)


MEANT = ("surrogate", "straight-through")
for name, plain, slope, reference, words in [
    ("straight-through rounding", lambda x: jnp.round(x), jnp.ones_like, lambda x: x, MEANT),
    (
        "straight-through sign",
        jnp.sign,
        lambda x: (jnp.abs(x) <= 1).astype(x.dtype),
        lambda x: jnp.clip(x, -1, 1),
        MEANT,
    ),
    (
        "spike with a sigmoid's slope",
        is_positive,
        lambda x: jax.nn.sigmoid(x) * jax.nn.sigmoid(-x),
        jax.nn.sigmoid,
        MEANT,
    ),
    ("gradient reversal", lambda x: x, lambda x: -jnp.ones_like(x), lambda x: -x, ("-1",)),
    ("gradient scaled to a tenth", lambda x: x, lambda x: jnp.full_like(x, 0.125), lambda x: x / 8, ("0.125",)),
    ("clip that lets all slopes through", lambda x: jnp.clip(x, -1, 1), jnp.ones_like, lambda x: x, ("surrogate",)),
]:
    case = VjpCase(name, custom_elementwise(plain, slope), plain, SOME, reference)
    SURROGATES.append(Surrogate(case, words))
hard = custom(one_hot, lambda x: (one_hot(x), softmax(x)), lambda s, g: (softmax_back(s, g),))
SURROGATES.append(
    Surrogate(VjpCase("hard choice with a softmax's slope", hard, one_hot, softened.args, softmax), MEANT)
)
