"""Gradients through indices, windows and transforms of arrays."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpora.kit import GradCase, Slip, Subject, apart, at, but, fixed, given, normal, wide

SUBJECT = Subject(GradCase)
right, wrong, factor, element = SUBJECT.right, SUBJECT.wrong, SUBJECT.factor, SUBJECT.element

# --- Indices ----------------------------------------------------------------------------------------------------------

embedding = right(
    "embedding with repeated indices",
    lambda table, ids, c: jnp.sum(c * table[ids]),
    lambda table, ids, c: jnp.zeros_like(table).at[ids].add(c),
    given(normal(6, 3), fixed([1, 4, 1, 0, 4, 1]), normal(6, 3)),
)
for name, rule, kind in [
    ("repeated rows overwritten", lambda table, ids, c: jnp.zeros_like(table).at[ids].set(c), "index"),
    ("one row on", lambda table, ids, c: jnp.zeros_like(table).at[ids + 1].add(c), "index"),
    ("a padding row without slope", lambda *args: embedding.gradient(*args).at[0].set(0), "element"),
]:
    wrong(f"embedding, {name}", embedding, rule, Slip(kind, ""))
INDICES = np.array([2, 0, 2])
right(
    "gather by a NumPy index of int64",
    lambda x: jnp.sum(x[:, INDICES] ** 2),
    lambda x: jnp.zeros_like(x).at[:, INDICES].add(2 * x[:, INDICES]),
    given(normal(2, 3)),
    clears=True,
)
scatter = right(
    "scatter, overwriting",
    lambda p, at, c: jnp.sum(c * p["x"].at[at].set(p["new"])),
    lambda p, at, c: {"x": c.at[at].set(0), "new": c[at]},
    given({"x": normal(6), "new": normal(3)}, fixed([4, 0, 3]), normal(6)),
)
wrong(
    "scatter, overwritten elements keep their slope",
    scatter,
    lambda p, at, c: {"x": c, "new": c[at]},
    Slip("index", "['x']"),
)
segments = right(
    "segment sum",
    lambda x, ids: jnp.sum(jax.ops.segment_sum(x, ids, num_segments=4) ** 2) / 2,
    lambda x, ids: jax.ops.segment_sum(x, ids, num_segments=4)[ids],
    given(normal(7), fixed([0, 2, 2, 0, 3, 3, 3])),
)
factor("segment sum, halved", segments, "", 0.5)
in_order = right(
    "sort",
    lambda x, c: jnp.sum(c * jnp.sort(x)),
    lambda x, c: jnp.zeros_like(c).at[jnp.argsort(x)].set(c),
    given(apart(8), normal(8)),
)
wrong("sort, permuted the other way", in_order, lambda x, c: c[jnp.argsort(x)], Slip("index", ""))
right(
    "largest three",
    lambda x: jnp.sum(lax.top_k(x, 3)[0] ** 2),
    lambda x: jnp.where(x >= lax.top_k(x, 3)[0][-1], 2 * x, 0),
    given(apart(8)),
)
right(
    "route by argmax",
    lambda p, x: jnp.sum((x * p[jnp.argmax(x, axis=1)][:, None]) ** 2),
    lambda p, x: jnp.zeros_like(p).at[jnp.argmax(x, axis=1)].add(2 * jnp.sum(x**2, axis=1) * p[jnp.argmax(x, axis=1)]),
    given(normal(3), apart(5, 3)),
)


# --- Windows ----------------------------------------------------------------------------------------------------------


def pool_gradient(x, c):
    windows = x.reshape(2, 2, 2, 2)
    most = jnp.max(windows, axis=(1, 3), keepdims=True)
    return jnp.where(windows == most, c[:, None, :, None], 0).reshape(x.shape)


pool = right(
    "max-pool",
    lambda x, c: jnp.sum(c * lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (2, 2), "VALID")),
    pool_gradient,
    given(apart(4, 4), normal(2, 2)),
)
wrong(
    "max-pool, always to the first of the window",
    pool,
    lambda x, c: jnp.zeros_like(x).at[::2, ::2].set(c),
    Slip("index", ""),
)
right(
    "average pool",
    lambda x, c: jnp.sum(c * jnp.mean(x.reshape(2, 2, 2, 2), axis=(1, 3))),
    lambda x, c: jnp.kron(c, jnp.ones((2, 2), c.dtype)) / 4,
    pool.args,
)
conv1d = right(
    "convolution in one dimension",
    lambda p, c: jnp.sum(c * jnp.correlate(p["x"], p["w"], mode="valid")),
    lambda p, c: {"x": jnp.convolve(c, p["w"], mode="full"), "w": jnp.correlate(p["x"], c, mode="valid")},
    given({"x": normal(8), "w": normal(3)}, normal(6)),
)
wrong(
    "convolution, kernel not flipped",
    conv1d,
    lambda p, c: {**conv1d.gradient(p, c), "x": jnp.convolve(c, p["w"][::-1], mode="full")},
    Slip("other", "['x']"),
)


def conv2d_gradient(p, c):
    (_, _, height, width), (kernel_h, kernel_w) = c.shape, p["w"].shape[2:]
    dx, dw = jnp.zeros_like(p["x"]), jnp.zeros_like(p["w"])
    for i in range(kernel_h):
        for j in range(kernel_w):
            window = (slice(None), slice(None), slice(i, i + height), slice(j, j + width))
            dx = dx.at[window].add(jnp.einsum("nohw,oi->nihw", c, p["w"][:, :, i, j]))
            dw = dw.at[:, :, i, j].set(jnp.einsum("nohw,nihw->oi", c, p["x"][window]))
    return {"x": dx, "w": dw}


conv2d = right(
    "convolution in two dimensions",
    lambda p, c: jnp.sum(c * lax.conv_general_dilated(p["x"], p["w"], (1, 1), "VALID")),
    conv2d_gradient,
    given({"x": normal(2, 2, 5, 5), "w": normal(2, 2, 3, 3)}, normal(2, 2, 3, 3)),
)
factor("convolution, kernel halved", conv2d, "['w']", 0.5)
element("convolution, one weight by a millionth", conv2d, "['w']", (1, 0, 2, 1), 1 + 1e-6)
SUBJECT.transposed("convolution, kernel transposed", conv2d, "['w']", lambda w: jnp.swapaxes(w, 2, 3))
wrong(
    "second convolution channel forgotten",
    conv2d,
    but(conv2d_gradient, "['w']", at(np.s_[:, 1], 0)),
    Slip("element", "['w']"),
)
EDGE = np.array([0, 0, 1, 1, 1], np.int32)


def pad_gradient(x, c):
    rows = jnp.zeros((2, 4), x.dtype).at[EDGE].add(c)
    return rows[:, :3].at[:, 2].add(rows[:, 3])


right(
    "pad, edges repeated",
    lambda x, c: jnp.sum(c * jnp.pad(x, ((1, 2), (0, 1)), mode="edge")),
    pad_gradient,
    given(normal(2, 3), normal(5, 4)),
)


def power_gradient(x, c):
    return (2 * len(x) * jnp.real(jnp.fft.ifft(c * jnp.fft.fft(wide(x))))).astype(x.dtype)


power = right(
    "power spectrum",
    lambda x, c: jnp.sum(c * jnp.abs(jnp.fft.fft(wide(x))) ** 2),
    power_gradient,
    given(normal(8), normal(8)),
)
factor("power spectrum, length forgotten", power, "", 1 / 8)
