"""Gradients of losses over sequences: dynamic programming, recurrent networks, iterations."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpora.kit import GradCase, Slip, Subject, exactly, given, integers, normal, uniform, wide

SUBJECT = Subject(GradCase)
right, wrong, factor, element = SUBJECT.right, SUBJECT.wrong, SUBJECT.factor, SUBJECT.element

# --- Sums over all paths ----------------------------------------------------------------------------------------------


def crf_forward(p):
    def step(alpha, unary):
        alpha = unary + jax.nn.logsumexp(alpha[:, None] + p["transition"], axis=0)
        return alpha, alpha

    last, later = lax.scan(step, p["unary"][0], p["unary"][1:])
    return jnp.concatenate([p["unary"][:1], later]), jax.nn.logsumexp(last)


def crf_loss(p, labels):
    score = jnp.sum(p["unary"][jnp.arange(len(labels)), labels]) + jnp.sum(p["transition"][labels[:-1], labels[1:]])
    return crf_forward(p)[1] - score


def crf_gradient(p, labels):
    alpha, log_z = crf_forward(p)

    def back(beta, unary):
        beta = jax.nn.logsumexp(p["transition"] + (unary + beta)[None], axis=1)
        return beta, beta

    end = jnp.zeros_like(alpha[0])
    _, earlier = lax.scan(back, end, p["unary"][1:], reverse=True)
    beta = jnp.concatenate([earlier, end[None]])
    pairs = jnp.exp(alpha[:-1, :, None] + p["transition"] + (p["unary"] + beta)[1:, None, :] - log_z)
    return {
        "unary": jnp.exp(alpha + beta - log_z).at[jnp.arange(len(labels)), labels].add(-1),
        "transition": jnp.sum(pairs, axis=0).at[labels[:-1], labels[1:]].add(-1),
    }


crf = right(
    "conditional random field, forward-backward",
    crf_loss,
    crf_gradient,
    given({"unary": normal(6, 3), "transition": normal(3, 3)}, integers(3, 6)),
)
element("random field, first label of one step", crf, "['unary']", (0, 1), 1.01)
SUBJECT.transposed("random field, transition transposed", crf, "['transition']")


def without_observed_transitions(p, labels):
    slope = crf_gradient(p, labels)
    return {**slope, "transition": slope["transition"].at[labels[:-1], labels[1:]].add(1)}


wrong(
    "random field, observed transitions forgotten",
    crf,
    without_observed_transitions,
    Slip("missing term", "['transition']"),
)

CTC_STATES = np.array([0, 1, 0, 2, 0], np.int32)  # blank, the labels 1 and 2 between blanks
CTC_MOVES = np.array([[j in (i, i + 1) or (i, j) == (1, 3) for j in range(5)] for i in range(5)])


def ctc_alpha(y):
    alphas = [y[0, CTC_STATES] * jnp.asarray([1, 1, 0, 0, 0], y.dtype)]
    for row in y[1:]:
        alphas.append((alphas[-1] @ jnp.asarray(CTC_MOVES, y.dtype)) * row[CTC_STATES])
    return jnp.stack(alphas)


def ctc_loss(z):
    return -jnp.log(jnp.sum(ctc_alpha(jax.nn.softmax(z))[-1, -2:]))


def ctc_gradient(z):
    y = jax.nn.softmax(z)
    alpha, betas = ctc_alpha(y), [jnp.asarray([0, 0, 0, 1, 1], y.dtype)]
    for row in y[:0:-1]:
        betas.append(jnp.asarray(CTC_MOVES, y.dtype) @ (row[CTC_STATES] * betas[-1]))
    posterior = alpha * jnp.stack(betas[::-1])
    posterior /= jnp.sum(posterior, axis=1, keepdims=True)
    return y - jnp.zeros_like(y).at[:, CTC_STATES].add(posterior)


ctc = right("connectionist temporal classification", ctc_loss, ctc_gradient, given(normal(5, 3)))
factor("CTC, by a thousandth", ctc, "", 0.999, "relative")

# --- Recurrent networks through time ----------------------------------------------------------------------------------


def rnn_states(p, x):
    def step(h, x):
        h = jnp.tanh(x @ p["in"] + h @ p["hidden"] + p["bias"])
        return h, h

    return lax.scan(step, jnp.zeros_like(p["bias"]), x)[1]


def rnn_loss(p, x, c):
    return jnp.sum(c * rnn_states(p, x))


def rnn_deltas(p, h, c):
    def back(later, here):
        h, c = here
        delta = (c + later) * (1 - h) * (1 + h)
        return delta @ p["hidden"].T, delta

    return lax.scan(back, jnp.zeros_like(p["bias"]), (h, c), reverse=True)[1]


def rnn_gradient(p, x, c):
    h = rnn_states(p, x)
    delta = rnn_deltas(p, h, c)
    before = jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])
    return {"in": x.T @ delta, "hidden": before.T @ delta, "bias": jnp.sum(delta, axis=0)}


def rnn_input_not_through_time(p, x, c):
    h = rnn_states(p, x)
    return {**rnn_gradient(p, x, c), "in": x.T @ (c * (1 - h) * (1 + h))}


def rnn_truncated(p, x, c):
    h = rnn_states(p, x)
    delta = jnp.concatenate([jnp.zeros_like(c[:2]), rnn_deltas(p, h[2:], c[2:])])
    return {"in": x.T @ delta, "hidden": h[:-1].T @ delta[1:], "bias": jnp.sum(delta, axis=0)}


def rnn_one_step_late(p, x, c):
    h = rnn_states(p, x)
    return {**rnn_gradient(p, x, c), "hidden": h.T @ rnn_deltas(p, h, c)}


rnn = right(
    "recurrent network through time",
    rnn_loss,
    rnn_gradient,
    given({"in": normal(3, 3), "hidden": normal(3, 3), "bias": normal(3)}, normal(5, 3), normal(5, 3)),
)
SUBJECT.transposed("recurrent network, hidden weights transposed", rnn, "['hidden']")
factor("recurrent network, mean over time for the bias", rnn, "['bias']", 1 / 5, "mean for sum")
for name, rule, slip in [
    ("input weights not through time", rnn_input_not_through_time, Slip("missing term", "['in']")),
    ("first two steps cut off", rnn_truncated, Slip("missing term", None)),
    ("hidden states one step late", rnn_one_step_late, Slip("index", "['hidden']")),
]:
    wrong(f"recurrent network, {name}", rnn, rule, slip)


def gru_step(p, h, x):
    r, z = jnp.split(jax.nn.sigmoid(x @ p["gates_x"] + h @ p["gates_h"]), 2)
    new = jnp.tanh(x @ p["new_x"] + r * (h @ p["new_h"]))
    return z * h + (1 - z) * new, (r, z, new)


def gru_run(p, x):
    def step(h, x):
        after, gates = gru_step(p, h, x)
        return after, (h, gates)

    return lax.scan(step, jnp.zeros_like(p["new_h"][0]), x)


def gru_loss(p, x, c):
    return gru_run(p, x)[0] @ c


def gru_gradient(p, x, c):
    def back(dh, here):
        x, (h, (r, z, new)) = here
        dnew = dh * (1 - z) * (1 - new) * (1 + new)
        dz = dh * (h - new) * z * (1 - z)
        dr = dnew * (h @ p["new_h"]) * r * (1 - r)
        gates = jnp.concatenate([dr, dz])
        slope = {
            "gates_x": jnp.outer(x, gates),
            "gates_h": jnp.outer(h, gates),
            "new_x": jnp.outer(x, dnew),
            "new_h": jnp.outer(h, dnew * r),
        }
        return dh * z + p["gates_h"] @ gates + p["new_h"] @ (dnew * r), slope

    slopes = lax.scan(back, c, (x, gru_run(p, x)[1]), reverse=True)[1]
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), slopes)


gru = right(
    "gated recurrent unit through time",
    gru_loss,
    gru_gradient,
    given(
        {"gates_x": normal(2, 6), "gates_h": normal(3, 6), "new_x": normal(2, 3), "new_h": normal(3, 3)},
        normal(4, 2),
        normal(3),
    ),
)
factor("GRU, new_h negated", gru, "['new_h']", -1)
factor("GRU, gates by a millionth", gru, "['gates_h']", 1 + 1e-6, "relative")


def lstm_run(p, x):
    def step(state, x):
        h, cell = state
        i, f, o, new = jnp.split(x @ p["x"] + h @ p["h"] + p["b"], 4)
        i, f, o, new = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jax.nn.sigmoid(o), jnp.tanh(new)
        after = f * cell + i * new
        return (o * jnp.tanh(after), after), (h, cell, after, i, f, o, new)

    zero = jnp.zeros_like(p["h"][:, 0])
    return lax.scan(step, (zero, zero), x)


def lstm_loss(p, x, c):
    return lstm_run(p, x)[0][0] @ c


def lstm_gradient(p, x, c, output_gate=True):
    def back(carry, here):
        dh, dcell = carry
        x, (h, cell, after, i, f, o, new) = here
        t = jnp.tanh(after)
        dcell = dcell + dh * (o if output_gate else 1) * (1 - t) * (1 + t)
        gates = jnp.concatenate(
            [
                dcell * new * i * (1 - i),
                dcell * cell * f * (1 - f),
                dh * t * o * (1 - o),
                dcell * i * (1 - new) * (1 + new),
            ]
        )
        return (p["h"] @ gates, dcell * f), {"x": jnp.outer(x, gates), "h": jnp.outer(h, gates), "b": gates}

    slopes = lax.scan(back, (c, jnp.zeros_like(c)), (x, lstm_run(p, x)[1]), reverse=True)[1]
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), slopes)


lstm = right(
    "long short-term memory through time",
    lstm_loss,
    lstm_gradient,
    given({"x": normal(2, 12), "h": normal(3, 12), "b": normal(12)}, normal(4, 2), normal(3)),
)
factor("LSTM, bias doubled", lstm, "['b']", 2)
wrong(
    "LSTM, output gate forgotten on the way to the cell",
    lstm,
    lambda p, x, c: lstm_gradient(p, x, c, output_gate=False),
    Slip("missing term", None),
)
# --- Iterations -------------------------------------------------------------------------------------------------------

right(
    "cumulative sum",
    lambda x, c: jnp.sum(c * jnp.cumsum(x)),
    lambda x, c: jnp.cumsum(c[::-1])[::-1],
    given(normal(7), normal(7)),
)
cumulative_product = right(
    "cumulative product",
    lambda x, c: jnp.sum(c * jnp.cumprod(x)),
    lambda x, c: jnp.cumsum((c * jnp.cumprod(x))[::-1])[::-1] / x,
    given(uniform(6, low=0.5, high=1.5), normal(6)),
)
wrong(
    "cumulative product by division, at 0",
    cumulative_product,
    cumulative_product.gradient,
    Slip("nonfinite", ""),
    args=given(exactly([2, 0.5, 0, 3]), normal(4)),
)
wrong(
    "last step of the sequence forgotten",
    SUBJECT.twin(lambda x, w: jnp.sum(jnp.sin(x @ w)), given(normal(5, 3), normal(3))),
    lambda x, w: (jnp.cos(x @ w)[:, None] * w).at[-1].set(0),
    Slip("element", ""),
)


def recurrence(a, b):
    def step(h, ab):
        h = ab[0] * h + ab[1]
        return h, h

    return lax.scan(step, jnp.zeros_like(b[0]), (a, b))[1]


def recurrence_loss(p, c):
    return jnp.sum(c * recurrence(p["a"], p["b"]))


def recurrence_gradient(p, c):
    h = recurrence(p["a"], p["b"])
    # The adjoint runs the same recurrence backwards, with the rates one step later.
    later = jnp.concatenate([p["a"][1:], jnp.zeros_like(p["a"][:1])])
    db = recurrence(later[::-1], c[::-1])[::-1]
    return {"a": db * jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]]), "b": db}


linear = right(
    "linear recurrence",
    recurrence_loss,
    recurrence_gradient,
    given({"a": uniform(6, 3), "b": normal(6, 3)}, normal(6, 3)),
)
element("linear recurrence, last rate of one channel", linear, "['a']", (5, 2), 0)
wrong(
    "linear recurrence, rates one step early",
    linear,
    lambda p, c: {**recurrence_gradient(p, c), "b": recurrence(p["a"][::-1], c[::-1])[::-1]},
    Slip("other", "['b']"),
)


def average(x):
    return lax.scan(lambda s, x: (0.75 * s + 0.25 * x, None), jnp.zeros_like(x[0]), x)[0]


right(
    "exponential moving average",
    lambda x, c: average(x) @ c,
    lambda x, c: jnp.asarray(0.25 * 0.75 ** np.arange(5, -1, -1), x.dtype)[:, None] * c,
    given(normal(6, 3), normal(3)),
)


def fixed_point(p):
    return lax.fori_loop(0, 120, lambda _, z: jnp.tanh(p["w"] @ z + p["b"]), jnp.zeros_like(p["b"]))


def fixed_point_gradient(p, c):
    z = fixed_point(p)
    slope = wide((1 - z) * (1 + z))
    v = slope * jnp.linalg.solve((jnp.eye(len(z)) - slope[:, None] * p["w"]).T, c)
    return jax.tree.map(lambda leaf: leaf.astype(z.dtype), {"w": jnp.outer(v, z), "b": v})


implicit = right(
    "fixed point, implicitly",
    lambda p, c: c @ fixed_point(p),
    fixed_point_gradient,
    given({"w": normal(4, 4, scale=0.25), "b": normal(4)}, normal(4)),
)
wrong(
    "fixed point, one step only",
    implicit,
    lambda p, c: {
        "w": jnp.outer((1 - fixed_point(p) ** 2) * c, fixed_point(p)),
        "b": (1 - fixed_point(p) ** 2) * c,
    },
    Slip("missing term", None),
)


def euler(w, z):
    def step(z, _):
        return z + 0.125 * jnp.tanh(w @ z), z

    return lax.scan(step, z, None, length=16)


def euler_gradient(w, z, c):
    def back(adjoint, z):
        t = jnp.tanh(w @ z)
        pulled = 0.125 * (1 - t) * (1 + t) * adjoint
        return adjoint + w.T @ pulled, jnp.outer(pulled, z)

    return jnp.sum(lax.scan(back, c, euler(w, z)[1], reverse=True)[1], axis=0)


adjoint = right(
    "Euler's method, discrete adjoint",
    lambda w, z, c: c @ euler(w, z)[0],
    euler_gradient,
    given(normal(3, 3), normal(3), normal(3)),
)
SUBJECT.transposed("Euler's adjoint, transposed", adjoint, "")
