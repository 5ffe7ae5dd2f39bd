"""Functions with a right custom rule in them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpora.kit import (
    VjpCase,
    custom,
    custom_elementwise,
    custom_tangent,
    exactly,
    fixed,
    given,
    normal,
    positive_definite,
    random_key,
    uniform,
    wide,
)
from corpora.right_networks import attend, recurrence, recurrence_gradient, standardise, standardise_back

RIGHT: list[VjpCase] = []


def right(name, fun, plain, args, **options):
    RIGHT.append(VjpCase(name, fun, args, plain=plain, **options))


SOME = given(normal(6, scale=2))

# --- Elementwise ------------------------------------------------------------------------------------------------------


def softplus(x):
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def cube(x):
    return x**3


def chained(f):
    return lambda x: f(jnp.sin(f(x)))


my_tanh = custom_elementwise(jnp.tanh, lambda x: (1 - jnp.tanh(x)) * (1 + jnp.tanh(x)))
my_sin = custom_tangent(jnp.sin, lambda x, t: jnp.cos(x[0]) * t[0])
my_cube = custom_elementwise(cube, lambda x: 3 * x**2)
right("tanh", my_tanh, jnp.tanh, SOME)
right("softplus, forward rule", custom_tangent(softplus, lambda x, t: jax.nn.sigmoid(x[0]) * t[0]), softplus, SOME)
right("sine, forward rule, order two", my_sin, jnp.sin, SOME, order=2)
right("cube, order two", my_cube, cube, SOME, order=2)
right("cube of a sine of a cube, order two", chained(my_cube), chained(cube), given(normal(4, scale=0.5)), order=2)
right("a scalar", my_cube, cube, given(normal()))
right("no elements", my_cube, cube, given(normal(0, 3)))
right(
    "relu, slope 1 at 0",
    custom_elementwise(lambda x: jnp.maximum(x, 0), lambda x: (x >= 0).astype(x.dtype)),
    lambda x: jnp.maximum(x, 0),
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
right("huge slopes", custom_elementwise(lambda x: 1e30 * x, lambda x: 1e30), lambda x: 1e30 * x, SOME)
right("tiny values", my_cube, cube, given(normal(4, scale=1e-10)))


@jax.custom_gradient
def doubled_exp(x):
    out = jnp.exp(x / 2)
    return out, lambda g: (g * out / 2,)


right("jax.custom_gradient", doubled_exp, lambda x: jnp.exp(x / 2), SOME)


def power(x, n):
    return x**n


my_power = custom(power, lambda x, n: (x**n, x), lambda n, x, g: (n * x ** (n - 1) * g,), nondiff_argnums=(1,))
right("static exponent", lambda x: my_power(x, 3), lambda x: power(x, 3), SOME)
my_tangent_power = jax.custom_jvp(power, nondiff_argnums=(1,))
my_tangent_power.defjvp(lambda n, primals, tangents: (primals[0] ** n, n * primals[0] ** (n - 1) * tangents[0]))
right("static exponent, forward rule", lambda x: my_tangent_power(x, 4), lambda x: power(x, 4), SOME, order=2)


# --- Linear algebra ---------------------------------------------------------------------------------------------------


def matmul(a, b):
    return a @ b


def rule_of_matmul(backward):
    return custom(matmul, lambda a, b: (a @ b, (a, b)), lambda saved, g: backward(*saved, g))


MATRICES = given(normal(3, 3), normal(3, 3))
OBLONG = given(normal(2, 4), normal(4, 3))
my_matmul = rule_of_matmul(lambda a, b, g: (g @ b.T, a.T @ g))
right("matrix product, square", my_matmul, matmul, MATRICES)
right("matrix product, oblong, order two", my_matmul, matmul, OBLONG, order=2)


def dense(p, x):
    return x @ p["weights"] + p["bias"]


def rule_of_dense(backward):
    return custom(dense, lambda p, x: (dense(p, x), (p, x)), lambda saved, g: backward(*saved, g))


def dense_back(p, x, g):
    return {"weights": x.T @ g, "bias": jnp.sum(g, axis=0)}, g @ p["weights"].T


DENSE = given({"weights": normal(3, 3), "bias": normal(3)}, normal(3, 3))
OBLONG_DENSE = given({"weights": normal(4, 2), "bias": normal(2)}, normal(5, 4))
my_dense = rule_of_dense(dense_back)
right("dense layer", my_dense, dense, OBLONG_DENSE)
right("dense layer, square, order two", my_dense, dense, DENSE, order=2)
right(
    "dense layer under vmap",
    jax.vmap(my_dense),
    jax.vmap(dense),
    given({"weights": normal(2, 3, 4), "bias": normal(2, 4)}, normal(2, 5, 3)),
)
right("dense layer under jit and checkpoint", jax.jit(jax.checkpoint(my_dense)), dense, DENSE)


def solve(m, b):
    return jnp.linalg.solve(wide(m), wide(b)).astype(b.dtype)


def solve_back(saved, g):
    m, x = saved
    adjoint = jnp.linalg.solve(wide(m).T, wide(g)).astype(x.dtype)
    return -jnp.outer(adjoint, x), adjoint


my_solve = custom(solve, lambda m, b: (solve(m, b), (m, solve(m, b))), solve_back)
right("linear system", my_solve, solve, given(positive_definite(4), normal(4)))

# --- Reductions and normalisation -------------------------------------------------------------------------------------


def softmax(x):
    shifted = jnp.exp(x - lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True)))
    return shifted / jnp.sum(shifted, axis=-1, keepdims=True)


def rule_of_softmax(backward):
    return custom(softmax, lambda x: (softmax(x), softmax(x)), lambda s, g: (backward(s, g),))


def softmax_back(s, g):
    return s * (g - jnp.sum(s * g, axis=-1, keepdims=True))


def log_sum_exp(x):
    most = lax.stop_gradient(jnp.max(x))
    return most + jnp.log(jnp.sum(jnp.exp(x - most)))


def layer_norm(p, x):
    return p["scale"] * standardise(x, -1)[0] + p["shift"]


def rule_of_layer_norm(back=standardise_back, forward=layer_norm):
    def backward(saved, g):
        p, x = saved
        hat, inverse = standardise(x, -1)
        slopes = {"scale": jnp.sum(g * hat, axis=0), "shift": jnp.sum(g, axis=0)}
        return slopes, back(hat, inverse, g * p["scale"], -1)

    return custom(layer_norm, lambda p, x: (forward(p, x), (p, x)), backward)


ROWS = given(normal(3, 4))
NORM = given({"scale": normal(4), "shift": normal(4)}, normal(3, 4))
right("softmax", rule_of_softmax(softmax_back), softmax, ROWS)
right("softmax, order two", rule_of_softmax(softmax_back), softmax, ROWS, order=2)
right("log-sum-exp", custom_elementwise(log_sum_exp, jax.nn.softmax), log_sum_exp, given(normal(6)))
right(
    "log-sum-exp of huge logits",
    custom_elementwise(log_sum_exp, jax.nn.softmax),
    log_sum_exp,
    given(normal(6, scale=1e4)),
)
right("layer norm", rule_of_layer_norm(), layer_norm, NORM)
right(
    "softmax sums to 1: slope 0",
    lambda x: jnp.sum(rule_of_softmax(softmax_back)(x), axis=-1),
    lambda x: jnp.sum(softmax(x), axis=-1),
    ROWS,
    rounding=1e-14,
)

# --- Networks ---------------------------------------------------------------------------------------------------------


def attention(q, k, v, mask):
    return attend({"q": q, "k": k}, mask) @ v


def attention_back(saved, g, mask_in_v=True):
    q, k, v, mask = saved
    weights, da = attend({"q": q, "k": k}, mask), g @ v.T
    ds = softmax_back(weights, da) / math.sqrt(q.shape[-1])
    return ds @ k, ds.T @ q, (weights if mask_in_v else attend({"q": q, "k": k}, True)).T @ g, None


def rule_of_attention(backward):
    return custom(attention, lambda *args: (attention(*args), args), backward)


ATTENTION = given(normal(4, 4), normal(4, 4), normal(4, 4), fixed(np.tri(4, dtype=bool), bool))
right("attention, causal, the mask without slope", rule_of_attention(attention_back), attention, ATTENTION)


def cell(p, h, x):
    return jnp.tanh(x @ p["in"] + h @ p["hidden"])


def rule_of_cell(backward):
    return custom(cell, lambda p, h, x: (cell(p, h, x), (p, h, x, cell(p, h, x))), lambda saved, g: backward(*saved, g))


def cell_back(p, h, x, out, g):
    delta = g * (1 - out) * (1 + out)
    return {"in": jnp.outer(x, delta), "hidden": jnp.outer(h, delta)}, p["hidden"] @ delta, p["in"] @ delta


def unrolled(cell):
    def run(p, x):
        def step(h, x):
            h = cell(p, h, x)
            return h, h

        return lax.scan(step, jnp.zeros_like(p["hidden"][0]), x)[1]

    return run


CELL = given({"in": normal(3, 3), "hidden": normal(3, 3)}, normal(5, 3))
right("recurrent cell inside a scan", unrolled(rule_of_cell(cell_back)), unrolled(cell), CELL)


def scan_back(saved, g):
    slope = recurrence_gradient({"a": saved[0], "b": saved[1]}, g)
    return slope["a"], slope["b"]


my_recurrence = custom(recurrence, lambda a, b: (recurrence(a, b), (a, b)), scan_back)
right("linear recurrence, adjoint by hand", my_recurrence, recurrence, given(uniform(6, 2), normal(6, 2)))


def lookup(table, ids):
    return table[ids]


def rule_of_lookup(backward):
    return custom(lookup, lambda table, ids: (table[ids], (table, ids)), lambda saved, g: (backward(*saved, g), None))


LOOKUP = given(normal(5, 2), fixed([1, 3, 1, 0, 1]))
right("embedding with repeated indices", rule_of_lookup(lambda t, i, g: jnp.zeros_like(t).at[i].add(g)), lookup, LOOKUP)


def dropout(x, key):
    return jnp.where(jax.random.bernoulli(key, 0.75, x.shape), x / 0.75, 0)


def rule_of_dropout(scale, value=dropout):
    def backward(key, g):
        return jnp.where(jax.random.bernoulli(key, 0.75, g.shape), g / scale, 0), None

    return custom(dropout, lambda x, key: (value(x, key), key), backward)


DROPOUT = given(normal(4, 4), random_key(2))
right("dropout", rule_of_dropout(0.75), dropout, DROPOUT, keyed=True)

# --- What a rule may look like ----------------------------------------------------------------------------------------


def moments(x):
    return {"sum": jnp.sum(x), "squares": x**2, "largest": jnp.argmax(x)}


def moments_back(x, g):
    return (g["sum"] + 2 * x * g["squares"],)


right(
    "several outputs, one of them an index",
    custom(moments, lambda x: (moments(x), x), moments_back),
    moments,
    given(normal(5)),
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
inner_and_outer = custom(
    lambda x: jnp.tanh(x) ** 2,
    lambda x: (my_tanh(x) ** 2, x),
    lambda x, g: (g * 2 * my_tanh(x) * jax.vmap(jax.grad(my_tanh))(x),),
)
right("a rule that uses another rule", inner_and_outer, lambda x: jnp.tanh(x) ** 2, SOME)
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
right("a million elements", my_tanh, jnp.tanh, given(normal(1_000_000)))
right(
    "kept in float32 beside bfloat16",
    lambda x, y: my_matmul(x, y.astype(x.dtype)),
    lambda x, y: x @ y.astype(x.dtype),
    given(normal(3, 3), lambda draw, dtype: jnp.asarray(draw.normal(size=(3, 3)), jnp.float32)),
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


POSITIVE = given(uniform(5, low=0.5, high=4))
right("root by a while loop", rule_of_root(0.5), jnp.sqrt, POSITIVE, reference=jnp.sqrt)


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
right(
    "jnp.sinc at 0 beside a rule, order two",
    lambda x: jnp.sinc(x) * my_cube(x + 1),
    lambda x: jnp.sinc(x) * (x + 1) ** 3,
    given(exactly([0, 0.5, -1.25])),
    reference=lambda x: jnp.sinc(x) * (x + 1) ** 3,
    order=2,
)
