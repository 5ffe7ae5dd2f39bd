"""The layers of networks with a custom rule in them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpora.kit import (
    WORKING,
    Slip,
    Subject,
    VjpCase,
    custom,
    custom_elementwise,
    exactly,
    fixed,
    given,
    normal,
    positive_definite,
    random_key,
    uniform,
    wide,
)
from corpora.networks import attend, standardise, standardise_back
from corpora.sequences import recurrence, recurrence_gradient

SUBJECT = Subject(VjpCase)
right, wrong = SUBJECT.right, SUBJECT.wrong
held = lax.stop_gradient

# --- Linear algebra ---------------------------------------------------------------------------------------------------


def matmul(a, b):
    return a @ b


def rule_of_matmul(backward):
    return custom(matmul, lambda a, b: (a @ b, (a, b)), lambda saved, g: backward(*saved, g))


my_matmul = rule_of_matmul(lambda a, b, g: (g @ b.T, a.T @ g))
square = right("matrix product, square", my_matmul, matmul, given(normal(3, 3), normal(3, 3)))
right("matrix product, oblong, order two", my_matmul, matmul, given(normal(2, 4), normal(4, 3)), order=2)
for name, backward, slip, order in [
    ("b not transposed", lambda a, b, g: (g @ b, a.T @ g), Slip("other", "[0]"), 1),
    ("a's slope transposed", lambda a, b, g: (b @ g.T, a.T @ g), Slip("transposed", "[0]"), 1),
    ("b's slope transposed", lambda a, b, g: (g @ b.T, g.T @ a), Slip("transposed", "[1]"), 1),
    ("slopes swapped", lambda a, b, g: (a.T @ g, g @ b.T), Slip("swapped", None), 1),
    (
        "one element of b",
        lambda a, b, g: (g @ b.T, (a.T @ g).at[2, 1].multiply(1.01)),
        Slip("element", "[1]", (2, 1)),
        1,
    ),
    ("a held fixed in b's slope", lambda a, b, g: (g @ b.T, held(a).T @ g), Slip("second order", None), 2),
]:
    wrong(f"matrix product, {name}", square, rule_of_matmul(backward), slip, order=order)
right(
    "kept in float32 beside bfloat16",
    lambda x, y: my_matmul(x, y.astype(x.dtype)),
    lambda x, y: x @ y.astype(x.dtype),
    given(normal(3, 3), lambda draw, dtype: jnp.asarray(draw.normal(size=(3, 3)), jnp.float32)),
)


def dense(p, x):
    return x @ p["weights"] + p["bias"]


def rule_of_dense(backward):
    return custom(dense, lambda p, x: (dense(p, x), (p, x)), lambda saved, g: backward(*saved, g))


def dense_back(p, x, g):
    return {"weights": x.T @ g, "bias": jnp.sum(g, axis=0)}, g @ p["weights"].T


my_dense = rule_of_dense(dense_back)
oblong = right("dense layer", my_dense, dense, given({"weights": normal(4, 2), "bias": normal(2)}, normal(5, 4)))
layer = right(
    "dense layer, square, order two",
    my_dense,
    dense,
    given({"weights": normal(3, 3), "bias": normal(3)}, normal(3, 3)),
    order=2,
)
right(
    "dense layer under vmap",
    jax.vmap(my_dense),
    jax.vmap(dense),
    given({"weights": normal(2, 3, 4), "bias": normal(2, 4)}, normal(2, 5, 3)),
)
right("dense layer under jit and checkpoint", jax.jit(jax.checkpoint(my_dense)), dense, layer.args)
for name, factor, kind in [
    ("negated", -1, "factor"),
    ("doubled", 2, "factor"),
    ("halved", 0.5, "factor"),
    ("by a thousandth", 1.001, "relative"),
    ("by a millionth", 1 + 1e-6, "relative"),
]:
    fun = rule_of_dense(lambda p, x, g, factor=factor: (dense_back(p, x, g)[0], factor * (g @ p["weights"].T)))
    wrong(f"dense layer, input's slope {name}", oblong, fun, Slip(kind, "[1]", factor=factor))
wrong(
    "dense layer, bias deaf to the cotangent",
    oblong,
    rule_of_dense(lambda p, x, g: ({"weights": x.T @ g, "bias": jnp.full_like(p["bias"], len(x))}, g @ p["weights"].T)),
    Slip("cotangent", "[0]['bias']"),
)
for name, leaf, change, kind in [
    ("bias over the outputs", "bias", lambda s, x, g: jnp.sum(g, axis=1), "axis"),
    ("mean for the bias", "bias", lambda s, x, g: jnp.mean(g, axis=0), "mean for sum"),
    ("bias lumped together", "bias", lambda s, x, g: jnp.full_like(s, jnp.sum(g)), "broadcast"),
    ("weights transposed", "weights", lambda s, x, g: g.T @ x, "transposed"),
    ("first point forgotten", "weights", lambda s, x, g: x[1:].T @ g[1:], "missing term"),
    ("None for the bias", "bias", lambda s, x, g: None, "structure"),
    ("a row of the weights", "weights", lambda s, x, g: s.at[1].set(0), "element"),
]:

    def backward(p, x, g, leaf=leaf, change=change):
        slopes, of_x = dense_back(p, x, g)
        return {**slopes, leaf: change(slopes[leaf], x, g)}, of_x

    slip = Slip(kind, f"[0]['{leaf}']", factor=1 / 3 if kind == "mean for sum" else None)
    wrong(f"dense layer, {name}", layer, rule_of_dense(backward), slip, order=1)


def solve(m, b):
    return jnp.linalg.solve(wide(m), wide(b)).astype(b.dtype)


def solve_back(saved, g):
    m, x = saved
    adjoint = jnp.linalg.solve(wide(m).T, wide(g)).astype(x.dtype)
    return -jnp.outer(adjoint, x), adjoint


my_solve = custom(solve, lambda m, b: (solve(m, b), (m, solve(m, b))), solve_back)
right("linear system", my_solve, solve, given(positive_definite(4), normal(4)))

# --- Normalisation ----------------------------------------------------------------------------------------------------


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


softened = right("softmax", rule_of_softmax(softmax_back), softmax, given(normal(3, 4)))
right("softmax, order two", rule_of_softmax(softmax_back), softmax, softened.args, order=2)
right(
    "softmax sums to 1: slope 0",
    lambda x: jnp.sum(rule_of_softmax(softmax_back)(x), axis=-1),
    lambda x: jnp.sum(softmax(x), axis=-1),
    softened.args,
    rounding=1e-14,
)
for name, backward, kind, order in [
    (
        "cotangent ignored in the projection",
        lambda s, g: s * (g - jnp.sum(s * s, -1, keepdims=True)),
        "cotangent",
        1,
    ),
    ("projection forgotten", lambda s, g: s * g, "missing term", 1),
    ("over the batch", lambda s, g: s * (g - jnp.sum(s * g, axis=0, keepdims=True)), "axis", 1),
    ("its output held fixed", lambda s, g: softmax_back(held(s), g), "second order", 2),
]:
    wrong(f"softmax, {name}", softened, rule_of_softmax(backward), Slip(kind, "[0]"), order=order)
my_log_sum_exp = custom_elementwise(log_sum_exp, jax.nn.softmax)
summed_up = right("log-sum-exp", my_log_sum_exp, log_sum_exp, given(normal(6)))
right("log-sum-exp of huge logits", my_log_sum_exp, log_sum_exp, given(normal(6, scale=1e4)))
wrong(
    "log-sum-exp, naive",
    summed_up,
    custom_elementwise(log_sum_exp, lambda x: jnp.exp(x) / jnp.sum(jnp.exp(x))),
    Slip("precision", "[0]", dtypes=WORKING),
    args=given(exactly([100, 99, 101])),
)


def one_pass(hat, inverse, g, axis):
    """The variance by E[y²] - E[y]² of values far from 0."""
    far = hat / inverse + 1000
    variance = jnp.mean(far**2, axis=axis, keepdims=True) - jnp.mean(far, axis=axis, keepdims=True) ** 2
    return standardise_back(hat, lax.rsqrt(variance + 1e-5), g, axis)


normed = right(
    "layer norm", rule_of_layer_norm(), layer_norm, given({"scale": normal(4), "shift": normal(4)}, normal(3, 4))
)
for name, fun, slip in [
    (
        "statistics taken as fixed",
        rule_of_layer_norm(lambda hat, inverse, g, axis: inverse * g),
        Slip("missing term", "[1]"),
    ),
    (
        "shift forgotten when differentiated",
        rule_of_layer_norm(forward=lambda p, x: layer_norm(p, x) - p["shift"]),
        Slip("primal", None),
    ),
    ("variance in one pass", rule_of_layer_norm(one_pass), Slip("precision", "[1]", dtypes=WORKING)),
]:
    wrong(f"layer norm, {name}", normed, fun, slip)

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


causal = right(
    "attention, causal, the mask without slope",
    rule_of_attention(attention_back),
    attention,
    given(normal(4, 4), normal(4, 4), normal(4, 4), fixed(np.tri(4, dtype=bool), bool)),
)
wrong(
    "attention, mask forgotten in v",
    causal,
    rule_of_attention(functools.partial(attention_back, mask_in_v=False)),
    Slip("other", "[2]"),
)


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


scanned = right(
    "recurrent cell inside a scan",
    unrolled(rule_of_cell(cell_back)),
    unrolled(cell),
    given({"in": normal(3, 3), "hidden": normal(3, 3)}, normal(5, 3)),
)
for name, change, slip in [
    (
        "hidden weights halved",
        lambda w, h, x: ({**w, "hidden": w["hidden"] / 2}, h, x),
        Slip("factor", "[0]['hidden']", factor=0.5),
    ),
    ("nothing through time", lambda w, h, x: (w, jnp.zeros_like(h), x), Slip("missing term", None)),
]:
    fun = unrolled(rule_of_cell(lambda *args, change=change: change(*cell_back(*args))))
    wrong(f"recurrent cell inside a scan, {name}", scanned, fun, slip)


def scan_back(saved, g):
    slope = recurrence_gradient({"a": saved[0], "b": saved[1]}, g)
    return slope["a"], slope["b"]


my_recurrence = custom(recurrence, lambda a, b: (recurrence(a, b), (a, b)), scan_back)
right("linear recurrence, adjoint by hand", my_recurrence, recurrence, given(uniform(6, 2), normal(6, 2)))


def lookup(table, ids):
    return table[ids]


def rule_of_lookup(backward):
    return custom(lookup, lambda table, ids: (table[ids], (table, ids)), lambda saved, g: (backward(*saved, g), None))


embedding = right(
    "embedding with repeated indices",
    rule_of_lookup(lambda t, i, g: jnp.zeros_like(t).at[i].add(g)),
    lookup,
    given(normal(5, 2), fixed([1, 3, 1, 0, 1])),
)
for name, backward in [
    ("repeated rows overwritten", lambda t, i, g: jnp.zeros_like(t).at[i].set(g)),
    ("one row on", lambda t, i, g: jnp.zeros_like(t).at[i + 1].add(g)),
]:
    wrong(f"embedding, {name}", embedding, rule_of_lookup(backward), Slip("index", "[0]"))


def dropout(x, key):
    return jnp.where(jax.random.bernoulli(key, 0.75, x.shape), x / 0.75, 0)


def rule_of_dropout(scale, value=dropout):
    def backward(key, g):
        return jnp.where(jax.random.bernoulli(key, 0.75, g.shape), g / scale, 0), None

    return custom(dropout, lambda x, key: (value(x, key), key), backward)


dropped = right("dropout", rule_of_dropout(0.75), dropout, given(normal(4, 4), random_key(2)), keyed=True)
wrong("dropout, slope not scaled", dropped, rule_of_dropout(1), Slip("dropout scale", "[0]", factor=0.75))
wrong(
    "dropout, value not scaled when differentiated",
    dropped,
    rule_of_dropout(0.75, lambda x, key: 0.75 * dropout(x, key)),
    Slip("primal", None),
)
