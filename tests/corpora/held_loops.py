"""Held out: slips in recurrences, indices, fixed points, energies and losses."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpora.held_kit import HeldOut, array

CASES: list[HeldOut] = []
held = lax.stop_gradient


def add(name, fun, hand, args, words="", never="", **options):
    CASES.append(HeldOut(name, fun, hand, args, words, never, **options))


# --- Recurrences ------------------------------------------------------------------------------------------------------

STEPS, H = 7, 4
XS, U, R, LAST = array(0, STEPS, 3), array(1, 3, H), 0.5 * array(2, H, H), array(3, STEPS, H)


def rnn(p, xs, c):
    def step(h, x):
        h = jnp.tanh(x @ p["u"] + h @ p["r"])
        return h, h

    return jnp.sum(c * lax.scan(step, jnp.zeros(H, c.dtype), xs)[1])


def rnn_back(p, xs, c, slip=""):
    h, states = jnp.zeros(H, c.dtype), [jnp.zeros(H, c.dtype)]
    for x in xs:
        h = jnp.tanh(x @ p["u"] + h @ p["r"])
        states.append(h)
    du, dr, dh = 0 * p["u"], 0 * p["r"], jnp.zeros(H, c.dtype)
    for t in reversed(range(STEPS)):
        dh = dh + c[t]
        dz = dh if slip == "slope" else dh * (1 - states[t + 1] ** 2)
        if slip == "stale slope":
            dz = dh * (1 - states[t] ** 2)
        du, dr = du + jnp.outer(xs[t], dz), dr + jnp.outer(states[t + (slip == "next")], dz)
        dh = dz @ (p["r"] if slip == "transposed" else p["r"].T)
        dh = 0 * dh if slip == "cut" or (slip == "first" and t == 2) or (slip == "chunks" and t % 3 == 0) else dh
    return {"u": du, "r": dr}


NET = {"u": U, "r": R}
for slip, words, never in [
    ("cut", "loop", "axis"),
    ("first", "first 2 rounds", ""),
    ("chunks", "loop", ""),
    ("next", "round after", ""),
    ("stale slope", "round before", "axis"),
    ("transposed", "transposed", ""),
    ("slope", "factor|slope|fixed", ""),
]:
    add(f"recurrent: {slip}", rnn, lambda p, xs, c, s=slip: rnn_back(p, xs, c, s), (NET, XS, LAST), words, never)

GATES = {name: 0.5 * array(10 + i, H, H) for i, name in enumerate("fiog")}
ROWS = array(15, STEPS, H)


def lstm(p, xs, w, slip=""):
    def step(state, x):
        h, c = state
        z = x + h
        f, i, o = (jax.nn.sigmoid(z @ p[k]) for k in "fio")
        c = (held(f) if slip == "forget" else f) * c + i * jnp.tanh(z @ p["g"])
        h = o * (held(jnp.tanh(c)) if slip == "cell" else jnp.tanh(c))
        return (h, held(c) if slip == "memory" else c), None

    zero = jnp.zeros(H, xs.dtype)
    return jnp.sum(w * lax.scan(step, (zero, zero), xs)[0][0])


for slip in ("forget", "cell", "memory"):
    rule = jax.grad(lambda p, xs, w, s=slip: lstm(p, xs, w, s))
    add(
        f"LSTM: nothing back through the {slip}",
        lstm,
        rule,
        (GATES, ROWS, LAST[0]),
        "nothing flows back|zero|term is missing",
    )


def gru(p, xs, w, slip=""):
    def step(h, x):
        z, r = jax.nn.sigmoid((x + h) @ p["f"]), jax.nn.sigmoid((x + h) @ p["i"])
        n = jnp.tanh(x @ p["o"] + (held(r) if slip else r) * (h @ p["g"]))
        return (1 - z) * n + z * h, None

    return jnp.sum(w * lax.scan(step, jnp.zeros(H, xs.dtype), xs)[0])


without_reset = jax.grad(lambda p, xs, w: {**p, "i": 0}["i"] + gru(p, xs, w, "r"))
add("GRU: reset gate", gru, without_reset, (GATES, ROWS, LAST[0]), "nothing flows back|path to this leaf", "axis")


def decay(a, x):
    return jnp.sum(lax.scan(lambda s, r: (a * s + r, a * s + r), jnp.zeros((), x.dtype), x)[1] ** 2)


add(
    "filter: state fixed",
    decay,
    jax.grad(lambda a, x: jnp.sum(lax.scan(lambda s, r: (a * held(s) + r,) * 2, 0 * x[0], x)[1] ** 2)),
    (jnp.float32(0.7), XS[:, 0]),
    "loop|fixed",
)

# --- Indices ----------------------------------------------------------------------------------------------------------

TABLE, IDS, COEFFS = array(20, 6, 3), jnp.asarray([1, 4, 1, 5], jnp.int32), array(21, 4, 3)
ORDER = jnp.asarray([2, 0, 3, 5, 1, 4], jnp.int32)
LONG = array(22, 6, 3)


def looked_up(table, c):
    return jnp.sum(c * jnp.sin(table[IDS]))


add(
    "embedding: set",
    looked_up,
    lambda table, c: jnp.zeros_like(table).at[IDS].set(c * jnp.cos(table[IDS])),
    (TABLE, COEFFS),
    "set where add",
)
add(
    "permutation: by itself",
    lambda x, c: jnp.sum(c * jnp.sin(x[ORDER])),
    lambda x, c: (c * jnp.cos(x[ORDER]))[ORDER],
    (TABLE, LONG),
    "inverse",
)
add(
    "sort: by its order",
    lambda x, c: jnp.sum(c * jnp.sort(x)),
    lambda x, c: c[jnp.argsort(x)],
    (TABLE[:, 0], LONG[:, 0]),
    "inverse",
)
GROUPS = jnp.asarray([0, 0, 1, 2, 2, 2], jnp.int32)


def segments(x, c):
    total = jax.ops.segment_sum(x, GROUPS, 3)
    return jnp.sum(c * jnp.sin(total / jnp.asarray([2.0, 1.0, 3.0], x.dtype)[:, None]))


def segments_back(x, c):
    total = jax.ops.segment_sum(x, GROUPS, 3) / jnp.asarray([2.0, 1.0, 3.0], x.dtype)[:, None]
    return (c * jnp.cos(total))[GROUPS]


add("segments: not divided by their counts", segments, segments_back, (TABLE, LONG[:3]), "division|factor")
SUMMED = array(23, 6)
add(
    "cumulative sum: not reversed",
    lambda x, c: jnp.sum(c * jnp.cumsum(x)),
    lambda x, c: jnp.cumsum(c),
    (TABLE[:, 0], SUMMED),
    "wrong way|revers",
)
add(
    "cumulative sum: without its own",
    lambda x, c: jnp.sum(c * jnp.cumsum(x)),
    lambda x, c: jnp.cumsum(c[::-1])[::-1] - c,
    (TABLE[:, 0], SUMMED),
    "shifted|own element",
)
add(
    "differences: one place late",
    lambda x, c: jnp.sum(c[1:] * jnp.diff(x) ** 2),
    lambda x, c: jnp.roll(jax.grad(lambda x: jnp.sum(c[1:] * jnp.diff(x) ** 2))(x), 1),
    (TABLE[:, 0], SUMMED),
    "shifted",
)

# --- Fixed points -----------------------------------------------------------------------------------------------------

MIX, PUSH = 0.45 * np.asarray(np.linalg.qr(np.random.default_rng(30).normal(size=(4, 4)))[0], np.float32), array(31, 4)


def settle(b, rounds):
    return lax.fori_loop(0, rounds, lambda _, z: jnp.tanh(MIX @ z) + 0.5 * b, jnp.zeros_like(b))


def implicit(rounds, sign=-1.0, transposed=True):
    @jax.custom_vjp
    def solve(b):
        return settle(b, rounds)

    def back(z, g):
        jac = (1 - jnp.tanh(MIX @ z) ** 2)[:, None] * MIX
        matrix = jnp.eye(4, dtype=g.dtype) + sign * jac
        return (0.5 * jnp.linalg.solve(matrix.T if transposed else matrix, g),)

    solve.defvjp(lambda b: (solve(b),) * 2, back)
    return solve


add("fixed point: a few rounds", implicit(6), None, (PUSH,), "not converged", "sign|factor")
add("fixed point: sign", implicit(80, sign=1.0), None, (PUSH,), "", "converged")
add("fixed point: not transposed", implicit(80, transposed=False), None, (PUSH,), "", "converged")
add("fixed point: few rounds, and the sign", implicit(6, sign=1.0), None, (PUSH,), "", "not converged")


def root(while_tolerance, factor=1.0):
    @jax.custom_vjp
    def cube_root(a):
        def one(state):
            x, _ = state
            new = x - 0.15 * (x**3 - a) / x
            return new, jnp.abs(new - x)

        return lax.while_loop(lambda s: jnp.max(s[1]) > while_tolerance, one, (jnp.ones_like(a), jnp.ones_like(a)))[0]

    cube_root.defvjp(lambda a: (cube_root(a),) * 2, lambda x, g: (factor * g / (3 * x**2),))
    return cube_root


ABOVE = array(33, 3, low=2.0)
add("root by while: tolerance", root(1e-3), None, (ABOVE,), "not converged")
add("root by while, against its formula", root(1e-3), None, (ABOVE,), "not converged", reference=jnp.cbrt)
add("root by while: factor", root(1e-12, 2.0), None, (ABOVE,), "twice", "converged", reference=jnp.cbrt)


def orbit(x0, c):
    return jnp.sum(c * lax.fori_loop(0, 5, lambda _, x: x + 0.1 * jnp.sin(x), x0))


add(
    "Euler's method: one step only", orbit, lambda x, c: c * (1 + 0.1 * jnp.cos(x)), (PUSH, SUMMED[:4]), "", "converged"
)

# --- Energies and losses ----------------------------------------------------------------------------------------------

ATOMS = array(40, 4, 3)


def pairs(x):
    d2 = jnp.sum((x[:, None] - x[None]) ** 2, -1) + np.eye(len(x))
    return 0.5 * jnp.sum((1 - np.eye(len(x))) / d2**3)


def pair_force(x, factor=1.0, power=4):
    d = x[:, None] - x[None]
    d2 = jnp.sum(d**2, -1) + np.eye(len(x))
    return -6 * factor * jnp.sum(d * ((1 - np.eye(len(x))) / d2**power)[..., None], 1)


add("pair energy: counted twice", pairs, lambda x: pair_force(x, 2.0), (ATOMS,), "twice|factor 2")
add("pair energy: a force is minus the gradient", pairs, lambda x: pair_force(x, -1.0), (ATOMS,), "sign")
add("pair energy: another power", pairs, lambda x: pair_force(x, power=3), (ATOMS,), "", "sign|axis|right up|fixed")
add(
    "bond: along the difference, not its unit",
    lambda x, y: 0.5 * jnp.sum((jnp.linalg.norm(x - y, axis=-1) - 1) ** 2),
    lambda x, y: (jnp.linalg.norm(x - y, axis=-1, keepdims=True) - 1) * (x - y),
    (ATOMS, LONG[:4]),
    "division|factor",
    "sign",
)
add("power rule", lambda w: jnp.sum(w**3), lambda w: 3 * w, (jnp.arange(4.0),), "", "right up|branch|only where")
add(
    "quantile loss: the two sides exchanged",
    lambda x, y: jnp.sum(jnp.maximum(0.3 * (y - x), -0.7 * (y - x))),
    lambda x, y: jnp.where(y > x, -0.7, 0.3),
    (array(41, 8), array(42, 8)),
    "",
    "constant|branch|sign",
)
add(
    "Huber: never clipped",
    lambda x: jnp.sum(jnp.where(jnp.abs(x) < 1, 0.5 * x**2, jnp.abs(x) - 0.5)),
    lambda x: x,
    (2 * array(43, 12),),
    "mask|right up to",
)
add(
    "ridge: decay forgotten",
    lambda w, x, y: jnp.mean((x @ w - y) ** 2) + 0.05 * jnp.sum(w**2),
    lambda w, x, y: 2 * x.T @ (x @ w - y) / len(y),
    (SUMMED[:3], TABLE, SUMMED),
    r"0\.1 times the argument",
)
add(
    "two elements off by the same",
    lambda w: jnp.sum(w**2) + jnp.sum(w),
    lambda w: 2 * w,
    (array(44, 2),),
    "",
    "constant",
)
add(
    "variance: mean fixed does not matter, but ddof",
    lambda x: jnp.sum((x - jnp.mean(x)) ** 2) / (len(x) - 1),
    lambda x: 2 * (x - jnp.mean(x)) / len(x),
    (array(45, 6),),
    "times what it should be",
)
WAVE = array(46, 5) + 1j * array(47, 5)
SPECTRUM = array(48, 5) + 1j * array(49, 5)
add(
    "complex: conjugate",
    lambda z, w: jnp.real(jnp.sum(w * jnp.exp(z))),
    lambda z, w: jnp.conj(w * jnp.exp(z)),
    (WAVE, SPECTRUM),
    "conjugate",
)


@jax.custom_vjp
def moments(x):
    return jnp.sum(x), jnp.sum(x**2)


moments.defvjp(lambda x: (moments(x), x), lambda x, g: (2 * x * g[1],))
add("two outputs: the first ignored", moments, None, (array(50, 5),), "cotangent of output 0")
add(
    "matrix: log-determinant, not transposed",
    lambda a: jnp.linalg.slogdet(a)[1],
    lambda a: jnp.linalg.inv(a),
    (array(51, 4, 4) + 3 * jnp.eye(4),),
    "transposed",
)
add(
    "trace of a product: not transposed",
    lambda a, b: jnp.trace(a @ b @ a),
    lambda a, b: b @ a + a @ b,
    (array(52, 4, 4), array(53, 4, 4)),
    "transposed",
)
add(
    "Gaussian: log of the deviation's own slope",
    lambda s, x: jnp.sum(jnp.log(s) + 0.5 * (x / s) ** 2),
    lambda s, x: -(x**2) / s**3,
    (array(54, 5, low=0.5), array(55, 5)),
    "term is missing",
)
add(
    "logistic: slope of the sigmoid twice",
    lambda w, x, y: -jnp.mean(y * jax.nn.log_sigmoid(x @ w) + (1 - y) * jax.nn.log_sigmoid(-x @ w)),
    lambda w, x, y: x.T @ ((jax.nn.sigmoid(x @ w) - y) * jax.nn.sigmoid(x @ w) * jax.nn.sigmoid(-x @ w)) / len(y),
    (SUMMED[:3], TABLE, jnp.asarray([0.0, 1, 1, 0, 1, 0])),
    "",
    "axis|sign|missing",
)
