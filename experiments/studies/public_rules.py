"""Derivative rules that other people published, put to check_vjp: which are right, and where the two disagree."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import jax.scipy.special as special
import numpy as np
from jax import lax
from jax.experimental.ode import odeint

import minijaxnet as mjn
from minijaxnet._jaxpr import equations
from minijaxnet._tables import figure, text_table

QUESTIONS = (
    "structure",
    "primal",
    "algebra",
    "precision",
    "oracle",
    "linearity",
    "transforms",
    "forward",
    "second order",
)
LETTERS = {"pass": "+", "fail": "F", "unchecked": "?"}
DTYPES = ("float32", "bfloat16", "float64")
WIDER = ("float32", "float64")  # for what never ends in bfloat16: no step is ever short enough


class Rule(NamedTuple):
    """A public function with a derivative rule of its own, and where to ask for it.

    Attributes:
        fun: the function.
        points: ``{what is special about them: args}``; Python numbers, lists and arrays.
        reference: the same function or the same slope by other means, where the rule hides its plain function: it is
            a primitive's, or around a loop or a solver.
        dtypes: that it is for.
    """

    fun: Callable[..., Any]
    points: dict[str, tuple[Any, ...]]
    reference: Callable[..., Any] | None = None
    dtypes: tuple[str, ...] = DTYPES


class Finding(NamedTuple):
    """What became of one rule in one dtype at one point.

    Attributes:
        name: of the rule.
        kind: of what holds the rule.
        dtype: of the arguments.
        point: its name.
        report: what the check said; None where JAX itself refuses, or the check raised.
        trouble: why there is no report.
        escaped: whether it was the check that raised.
        seconds: that it took.
    """

    name: str
    kind: str
    dtype: str
    point: str
    report: mjn.GradReport | None
    trouble: str
    escaped: bool
    seconds: float

    @property
    def accused(self) -> bool:
        """Whether the report is not ok."""
        return self.report is not None and not self.report.ok


def with_slope(fun: Callable[..., Any], *slopes: Callable[..., Any] | None) -> Callable[..., Any]:
    """The function with these partial derivatives, from a book: ``f(a) + sum_i f_i(a) (x_i - a_i)`` at a = x."""

    def tangent(*args: Any) -> Any:
        at = [lax.stop_gradient(x) for x in args]
        return fun(*at) + sum(s(*at) * (x - a) for s, x, a in zip(slopes, args, at, strict=True) if s is not None)

    return tangent


def eliminate(a: Any, b: Any) -> Any:
    """Solve ``a x = b`` by elimination without pivots, plainly."""
    rows, right = list(a), list(b)
    for i in range(len(rows)):
        for k in range(len(rows)):
            if k != i:
                factor = rows[k][i] / rows[i][i]
                rows[k], right[k] = rows[k] - factor * rows[i], right[k] - factor * right[i]
    return jnp.stack([right[i] / rows[i][i] for i in range(len(rows))])


def expand(a: Any) -> Any:
    """A determinant, along its first row."""
    if len(a) == 1:
        return a[0, 0]
    minors = [jnp.concatenate([a[1:, :k], a[1:, k + 1 :]], axis=1) for k in range(len(a))]
    return sum((-1) ** k * a[0, k] * expand(minor) for k, minor in enumerate(minors))


def cholesky_by_rows(a: Any) -> Any:
    """The lower factor of ``a = L L'``, after symmetrizing as ``jnp.linalg.cholesky`` does."""
    a, n = (a + a.T) / 2, len(a)
    lower = jnp.zeros_like(a)
    for i in range(n):
        for j in range(i + 1):
            rest = a[i, j] - sum(lower[i, k] * lower[j, k] for k in range(j))
            lower = lower.at[i, j].set(jnp.sqrt(rest) if i == j else rest / lower[j, j])
    return lower


def gram_schmidt(a: Any) -> tuple[Any, Any]:
    """``a = q r`` with the signs that Householder's reflections give: those of ``jnp.linalg.qr``, as constants."""
    signs = jnp.sign(jnp.diag(lax.stop_gradient(jnp.linalg.qr(a)[1])))
    columns: list[Any] = []
    for k, column in enumerate(a.T):
        rest = column - sum(q * (q @ column) for q in columns)
        columns.append(signs[k] * rest / jnp.sqrt(jnp.sum(rest**2)))
    q = jnp.stack(columns, axis=1)
    return q, jnp.triu(q.T @ a)


def symmetric_2x2(a: Any) -> tuple[Any, Any]:
    """Eigenvalues, and the projector on the eigenvector of the smaller one; ascending, as ``eigh`` has them."""
    a = (a + a.T) / 2
    mean, half = (a[0, 0] + a[1, 1]) / 2, (a[0, 0] - a[1, 1]) / 2
    apart = jnp.sqrt(half**2 + a[0, 1] ** 2)
    low, high = mean - apart, mean + apart
    return jnp.stack([low, high]), (high * jnp.eye(2, dtype=a.dtype) - a) / (high - low)


def eigh_2x2(a: Any) -> tuple[Any, Any]:
    """The same by ``jnp.linalg.eigh``; the projector is free of the eigenvector's sign."""
    values, vectors = jnp.linalg.eigh(a)
    return values, jnp.outer(vectors[:, 0], vectors[:, 0])


def series(first: Any, ratio: Callable[[Any], Any], terms: int = 60) -> Any:
    """``t_0 + t_1 + ...`` with ``t_k+1 = ratio(k) t_k``; a scan, since written out it takes minutes to compile."""

    def add(state: tuple[Any, Any], k: Any) -> tuple[tuple[Any, Any], None]:
        total, term = state
        term = (term * ratio(k)).astype(total.dtype)
        return (total + term, term), None

    return lax.scan(add, (first, first), jnp.arange(terms, dtype=first.dtype))[0][0]


def gamma_by_series(a: Any, x: Any) -> Any:
    """The lower incomplete gamma function over gamma, by its series in x."""
    scale = jnp.exp(a * jnp.log(x) - x - lax.lgamma(a + 1))
    return scale * series(jnp.ones_like(a + x), lambda k: x / (a + 1 + k))


def drawn_gamma(key: Any, a: Any) -> Any:
    """A gamma draw with the slope that keeps its quantile: ``dz/da = -(dF/da) / (dF/dz)``."""
    draw, at = lax.stop_gradient(jax.random.gamma(key, a)), lax.stop_gradient(a)
    by_shape = jax.vmap(jax.grad(gamma_by_series))(at, draw)
    density = jnp.exp((at - 1) * jnp.log(draw) - draw - lax.lgamma(at))
    return draw - by_shape / density * (a - at)


@contextlib.contextmanager
def softmax_rule() -> Iterator[None]:
    """``jax.nn.softmax`` has its custom rule only where this flag is set."""
    before = jax.config.values["jax_softmax_custom_jvp"]
    jax.config.update("jax_softmax_custom_jvp", True)
    try:
        yield
    finally:
        jax.config.update("jax_softmax_custom_jvp", before)


def softmax(x: Any) -> Any:
    """The softmax with its rule."""
    with softmax_rule():
        return jax.nn.softmax(x)


def softmax_of_some(x: Any) -> Any:
    """The softmax with its rule, of all but the second element."""
    with softmax_rule():
        return jax.nn.softmax(x, where=jnp.arange(x.shape[-1]) != 1)


MATRIX = [[2.0, 0.3, 0.1], [0.2, 1.5, 0.4], [0.1, 0.25, 1.0]]
LARGER = [[2.0, 0.3, 0.1, 0.2], [0.2, 1.5, 0.4, -0.3], [0.1, 0.25, 1.0, 0.6], [-0.5, 0.4, 0.1, 3.0]]
NEARLY_SINGULAR = [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0009765625], [1.0, 1.0, 2.0]]
POSITIVE = [[4.0, 1.0, 0.5], [1.0, 3.0, 0.25], [0.5, 0.25, 2.0]]
VECTOR = [1.0, -2.0, 0.5]
SPREAD = [-3.0, -0.75, 0.5, 2.25]


def neural() -> dict[str, Rule]:
    """``jax.nn``."""
    kinks = {"ordinary": (SPREAD,), "kinks": ([0.0, -0.0, 6.0, 3.0, -3.0],), "large": ([-1e4, 1e4, 50.0],)}
    logits = {"ordinary": (SPREAD,), "equal": ([1.0] * 4,), "large": ([1e3, -1e3, 999.0, 0.0],)}
    masked = {"ordinary": ([0.5, 7.0, -1.0, 2.0],), "masked": ([0.5, 1e4, -1.0, 2.0],)}
    rules = {
        "relu": Rule(jax.nn.relu, kinks),
        "relu6": Rule(jax.nn.relu6, kinks),
        "hard_silu": Rule(jax.nn.hard_silu, kinks),
        "hard_sigmoid": Rule(jax.nn.hard_sigmoid, kinks),
        "softplus": Rule(jax.nn.softplus, {"ordinary": (SPREAD,), "edges": ([0.0, -1e3, 1e3, -40.0],)}),
        "log_sigmoid": Rule(jax.nn.log_sigmoid, {"ordinary": (SPREAD,), "edges": ([0.0, -1e3, 1e3, -40.0],)}),
        "mish": Rule(jax.nn.mish, {"ordinary": (SPREAD,), "edges": ([0.0, -80.0, 80.0],)}),
        "softmax": Rule(softmax, logits),
        "softmax, where=": Rule(softmax_of_some, masked),
        "log1mexp": Rule(
            jax.nn.log1mexp, {"ordinary": ([0.1, 0.5, 1.0, 3.0],), "edges": ([1e-6, 0.6875, 50.0, 200.0],)}
        ),
        # No rule of their own: held against the plainest formula.
        "silu": Rule(
            jax.nn.silu, {"ordinary": (SPREAD,), "edges": ([0.0, -60.0, 60.0],)}, lambda x: x / (1 + jnp.exp(-x))
        ),
        "logsumexp": Rule(jax.nn.logsumexp, logits, lambda x: jnp.max(x) + jnp.log(jnp.sum(jnp.exp(x - jnp.max(x))))),
        "standardize": Rule(
            jax.nn.standardize,
            {"ordinary": (SPREAD,), "equal": ([1.0] * 4,), "large": ([1000.0, 1001.0, 1004.0],)},
            lambda x: (x - jnp.mean(x)) / jnp.sqrt(jnp.mean((x - jnp.mean(x)) ** 2) + 1e-5),
        ),
    }
    return {f"jax.nn.{name}": rule for name, rule in rules.items()}


def numerical() -> dict[str, Rule]:
    """``jax.numpy``."""
    pair = {
        "ordinary": ([0.5, -1.0, 3.0], [1.5, 2.0, -1.0]),
        "equal": ([0.0, 2.0, -7.0], [0.0, 2.0, -7.0]),
        "large": ([1e3, -1e3, 80.0], [-1e3, -1e3 + 2, -80.0]),
    }
    bessel_i0 = with_slope(jnp.i0, lambda x: jnp.sign(x) * jnp.exp(jnp.abs(x)) * special.i1e(jnp.abs(x)))
    rules = {
        "sinc": Rule(jnp.sinc, {"ordinary": (SPREAD,), "edges": ([0.0, 1e-4, 1.0, -2.0, 1000.5],)}),
        "i0": Rule(jnp.i0, {"ordinary": (SPREAD,), "edges": ([0.0, 1e-3, 30.0],)}),
        "i0, by i1": Rule(jnp.i0, {"ordinary": (SPREAD,), "edges": ([0.0, 1e-3, 30.0],)}, bessel_i0),
        "logaddexp": Rule(jnp.logaddexp, pair),
        "logaddexp2": Rule(jnp.logaddexp2, pair),
        "frexp": Rule(
            lambda x: jnp.frexp(x)[0],
            {"ordinary": (SPREAD,), "edges": ([1.0, 0.0, -8.0, 1e-3],)},
            with_slope(lambda x: jnp.frexp(x)[0], lambda x: jnp.exp2(-jnp.frexp(x)[1].astype(x.dtype))),
        ),
        "hypot": Rule(jnp.hypot, {"ordinary": ([3.0, 1.0], [4.0, 1e-3])}, lambda x, y: jnp.sqrt(x**2 + y**2)),
        "cbrt": Rule(
            jnp.cbrt,
            {"ordinary": ([0.5, 2.0, 27.0],), "small": ([1e-3, -1e-2],)},
            lambda x: jnp.sign(x) * jnp.exp(jnp.log(jnp.abs(x)) / 3),
        ),
    }
    return {f"jnp.{name}": rule for name, rule in rules.items()}


def linear_algebra() -> dict[str, Rule]:
    """``jax.numpy.linalg`` and ``jax.scipy.linalg``: primitives and custom rules, beside their plainest formulas."""
    tall = [[1.0, 2.0], [0.5, -1.0], [3.0, 0.25]]
    square = {"ordinary": (MATRIX,), "nearly singular": (NEARLY_SINGULAR,)}
    larger = {"ordinary": (LARGER,), "identity": (np.eye(4),), "singular": (np.diag([1.0, 0.0, 2.0, 3.0]),)}
    system = {"ordinary": (MATRIX, VECTOR), "identity": (np.eye(3), VECTOR)}
    pair = {"ordinary": ([[2.0, 0.5], [0.5, 1.0]],), "near": ([[1.0, 0.015625], [0.015625, 1.0]],)}

    def singular(a: Any) -> Any:
        return jnp.linalg.svd(a, compute_uv=False)

    def log_determinant(a: Any, method: str = "lu") -> Any:
        return jnp.linalg.slogdet(a, method=method)[1]

    def exponential(a: Any) -> Any:
        def add(state: tuple[Any, Any], k: Any) -> tuple[tuple[Any, Any], None]:
            total, term = state
            term = term @ a / k
            return (total + term, term), None

        one = jnp.eye(len(a), dtype=a.dtype)
        return lax.scan(add, (one, one), jnp.arange(1, 40, dtype=a.dtype))[0][0]

    def triangular(a: Any, b: Any) -> Any:
        return jsp.linalg.solve_triangular(a, b, lower=True)

    rules = {
        "linalg.det, 4x4": Rule(jnp.linalg.det, larger, expand),
        "linalg.slogdet, 2x2": Rule(lambda a: jnp.linalg.slogdet(a)[1], pair),
        "linalg.slogdet, lu": Rule(log_determinant, {"ordinary": (MATRIX,), "nearly singular": (NEARLY_SINGULAR,)}),
        "linalg.slogdet, lu, expanded": Rule(log_determinant, square, lambda a: jnp.log(jnp.abs(expand(a)))),
        "linalg.slogdet, qr": Rule(
            lambda a: log_determinant(a, "qr"), {"ordinary": (MATRIX,)}, lambda a: jnp.log(jnp.abs(expand(a)))
        ),
        "linalg.pinv": Rule(jnp.linalg.pinv, {"ordinary": (tall,), "equal singular values": (np.eye(3, 2),)}),
        "linalg.pinv, by normal equations": Rule(
            jnp.linalg.pinv,
            {"ordinary": (tall,), "equal singular values": (np.eye(3, 2),)},
            lambda a: eliminate(a.T @ a, a.T),
        ),
        "linalg.inv": Rule(jnp.linalg.inv, square, lambda a: eliminate(a, jnp.eye(len(a), dtype=a.dtype))),
        "linalg.solve": Rule(jnp.linalg.solve, system, eliminate),
        "linalg.cholesky": Rule(
            jnp.linalg.cholesky, {"ordinary": (POSITIVE,), "identity": (np.eye(3),)}, cholesky_by_rows
        ),
        "linalg.qr": Rule(lambda a: tuple(jnp.linalg.qr(a)), {"ordinary": (tall,), "square": (MATRIX,)}, gram_schmidt),
        "linalg.eigh, 2x2": Rule(eigh_2x2, pair, symmetric_2x2),
        "linalg.svd, values": Rule(
            singular, {"ordinary": (tall,)}, lambda a: jnp.sqrt(symmetric_2x2(a.T @ a)[0][::-1])
        ),
        "linalg.norm": Rule(
            jnp.linalg.norm, {"ordinary": (VECTOR,), "large": ([1e15, 1e15],)}, lambda x: jnp.sqrt(jnp.sum(x**2))
        ),
        "linalg.lstsq": Rule(
            lambda a, b: jnp.linalg.lstsq(a, b)[0],
            {"ordinary": (tall, VECTOR)},
            lambda a, b: eliminate(a.T @ a, a.T @ b),
        ),
        "scipy.linalg.expm": Rule(
            jsp.linalg.expm, {"ordinary": (MATRIX,), "zero": (np.zeros((3, 3)),), "equal": (np.eye(3),)}, exponential
        ),
        "scipy.linalg.sqrtm": Rule(lambda a: jnp.real(jsp.linalg.sqrtm(a)), {"ordinary": (POSITIVE,)}, jnp.sqrt),
        "scipy.linalg.solve_triangular": Rule(triangular, system, lambda a, b: eliminate(jnp.tril(a), b)),
    }
    return {f"jax.{name}" if name.startswith("scipy") else f"jnp.{name}": rule for name, rule in rules.items()}


def scipy_special() -> dict[str, Rule]:
    """``jax.scipy.special``: those with a custom rule without a reference, primitives beside a slope from the books."""
    positive = {"ordinary": ([0.25, 0.75, 1.5, 4.0],), "edges": ([1e-3, 1.0, 30.0],)}
    shares = {"ordinary": ([0.2, 0.5, 0.9],), "edges": ([1e-6, 0.99609375],)}
    real = {"ordinary": (SPREAD,), "edges": ([0.0, 1e-3, 5.0, -5.0],)}
    counts = {"ordinary": ([0.5, 1.0, 2.0], [0.25, 3.0, 1.0]), "zero": ([0.0, 0.0, 1.0], [1.0, 0.5, 1e-6])}
    tails = {"ordinary": (SPREAD,), "tails": ([-30.0, -9.0, 9.0, 12.0],), "seam": ([-20.5, -10.25],)}
    normal = np.sqrt(2 * np.pi)
    # By ones, too: together they are vmapped loops, whose condition is an array.
    sides = {**positive, "one": (1.5,), "small": (0.125,), "large": (30.0,)}
    integrals = {"ordinary": ([-2.0, 0.5, 3.0],), "one": (1.5,), "negative": (-0.75,), "root": (0.3725,)}

    def bessel(n: int) -> Callable[[Any], Any]:
        return lambda x: special.bessel_jn(x, v=n)[n]

    def density(x: Any) -> Any:
        return jnp.exp(-(x**2) / 2) / normal

    def beta_slope(a: Any, b: Any, x: Any) -> Any:
        return jnp.exp((a - 1) * jnp.log(x) + (b - 1) * jnp.log1p(-x) - special.betaln(a, b))

    def gamma_slope(a: Any, x: Any) -> Any:
        return jnp.exp((a - 1) * jnp.log(x) - x - lax.lgamma(a))

    def spence_slope(x: Any) -> Any:
        at_one = jnp.abs(x - 1) < 1e-3
        far = jnp.where(at_one, 2.0, x)
        near = jnp.where(at_one, x - 1, 0.0)
        return jnp.where(at_one, -1 + near / 2 - near**2 / 3 + near**3 / 4 - near**4 / 5, jnp.log(far) / (1 - far))

    def hyper_1f1(a: Any, b: Any, x: Any) -> Any:
        return series(jnp.ones_like(x), lambda k: (a + k) / (b + k) * x / (k + 1))

    def hyper_2f1(a: Any, b: Any, c: Any, x: Any) -> Any:
        return series(jnp.ones_like(x), lambda k: (a + k) * (b + k) / (c + k) * x / (k + 1), 120)

    def expn_slope(n: float) -> Callable[[Any], Any]:
        return with_slope(lambda x: special.expn(n, x), lambda x: -special.expn(n - 1, x))

    rules = {
        "xlogy": Rule(special.xlogy, {"ordinary": counts["ordinary"], "zero": ([0.0, 0.0, 1.0], [0.0, 2.0, 1e-6])}),
        "xlog1py": Rule(
            special.xlog1py, {"ordinary": counts["ordinary"], "zero": ([0.0, 0.0, 1.0], [-1.0, 0.0, 1e-6])}
        ),
        "entr": Rule(special.entr, {"ordinary": positive["ordinary"], "edges": ([0.0, 1e-6, 1.0],)}),
        "kl_div": Rule(special.kl_div, {**counts, "equal": ([0.5, 2.0], [0.5, 2.0])}),
        "rel_entr": Rule(special.rel_entr, {**counts, "equal": ([0.5, 2.0], [0.5, 2.0])}),
        "logit": Rule(special.logit, {**shares, "ends": ([0.0, 1.0],)}),
        "log_ndtr": Rule(special.log_ndtr, tails),
        "log_ndtr, by ndtr": Rule(special.log_ndtr, tails, with_slope(special.log_ndtr, mills)),
        "erfcx": Rule(special.erfcx, {**real, "tails": ([-3.0, 8.0, 12.0, 60.0],)}),
        "dawsn": Rule(special.dawsn, {**real, "seams": ([3.25, 6.25, 12.0, -3.25],)}),
        "fresnel": Rule(special.fresnel, {**real, "seams": ([1.5, 1.6, 9.0],)}),
        "sici": Rule(special.sici, {"ordinary": ([0.5, 1.0, 3.0],), "seams": ([1e-3, 4.0, 4.5, 100.0],)}),
        "owens_t": Rule(
            special.owens_t, {"ordinary": ([0.5, 1.5], [0.25, 2.0]), "edges": ([0.0, 0.0, 1.0], [0.5, 1.0, 1.0])}
        ),
        "expi": Rule(special.expi, integrals, with_slope(special.expi, lambda x: jnp.exp(x) / x)),
        "exp1": Rule(special.exp1, sides, with_slope(special.exp1, lambda x: -jnp.exp(-x) / x)),
        "expn, n=2": Rule(lambda x: special.expn(2.0, x), sides, expn_slope(2.0)),
        "poch": Rule(
            special.poch,
            {"ordinary": ([0.5, 2.0], [1.5, 0.25]), "zero": ([0.5, 2.0], [0.0, 1e-4]), "large": ([20.0], [5.0])},
        ),
        "hyp1f1": Rule(
            special.hyp1f1,
            {
                "ordinary": ([0.5, 2.0], [1.5, 1.25], [0.75, 3.0]),
                "one": (2.0, 1.25, 3.0),
                "edges": ([0.5, 1.0, 2.0], [1.5, 1.0, 3.0], [0.0, 2.0, 1e-3]),
            },
            hyper_1f1,
        ),
        "hyp1f1, a = 0": Rule(special.hyp1f1, {"edge": (0.0, 1.5, 0.75)}, hyper_1f1),
        "hyp2f1": Rule(
            special.hyp2f1,
            {"ordinary": ([0.5, 1.0], [1.5, 0.25], [2.5, 3.25], [0.25, 0.5]), "one": (0.5, 1.5, 2.5, 0.25)},
            hyper_2f1,
        ),
        "hyp2f1, b = c": Rule(special.hyp2f1, {"edge": (0.5, 1.5, 1.5, 0.25)}, hyper_2f1),
        "hyp2f1, x = 0": Rule(special.hyp2f1, {"edge": (0.5, 1.5, 2.5, 0.0)}, hyper_2f1),
        "zeta": Rule(
            special.zeta,
            {"ordinary": ([2.0, 3.5], [1.0, 0.5]), "edges": ([1.0625, 20.0], [3.0, 1.0])},
            lambda s, q: zeta_by_sum(s, q),
        ),
        "i0e": Rule(
            special.i0e, real, with_slope(special.i0e, lambda x: special.i1e(x) - jnp.sign(x) * special.i0e(x))
        ),
        "i1e": Rule(
            special.i1e,
            {"ordinary": (SPREAD,), "large": ([40.0, -40.0],)},
            with_slope(special.i1e, lambda x: special.i0e(x) - special.i1e(x) * (jnp.sign(x) + 1 / x)),
        ),
        "i1, at 0": Rule(special.i1, {"zero": ([0.0],)}, lambda x: x / 2 + x**3 / 16),
        "bessel_jn, J1": Rule(
            bessel(1), positive, with_slope(bessel(1), lambda x: (bessel(0)(x) - special.bessel_jn(x, v=2)[2]) / 2)
        ),
        "spence": Rule(special.spence, positive, with_slope(special.spence, spence_slope)),
        "digamma": Rule(special.digamma, positive, with_slope(special.digamma, lambda x: special.polygamma(1, x))),
        "polygamma, n=1": Rule(
            lambda x: special.polygamma(1, x),
            positive,
            with_slope(lambda x: special.polygamma(1, x), lambda x: -2 * special.zeta(3.0, x)),
        ),
        "gammaln": Rule(special.gammaln, positive, with_slope(special.gammaln, special.digamma)),
        "erfinv": Rule(
            special.erfinv,
            {"ordinary": ([-0.5, 0.25, 0.9],), "edges": ([0.0, 0.99609375],)},
            with_slope(special.erfinv, lambda x: np.sqrt(np.pi) / 2 * jnp.exp(special.erfinv(x) ** 2)),
        ),
        "ndtr": Rule(special.ndtr, tails, with_slope(special.ndtr, density)),
        "ndtri": Rule(special.ndtri, shares, with_slope(special.ndtri, lambda p: 1 / density(special.ndtri(p)))),
        "gammainc": Rule(
            special.gammainc,
            {"ordinary": ([0.5, 2.0, 5.0], [1.0, 1.5, 4.0]), "small": ([0.25, 3.0], [1e-3, 0.125])},
            gamma_by_series,
        ),
        "gammainc, in x": Rule(
            lambda x: special.gammainc(jnp.asarray(2.5, x.dtype), x),
            positive,
            with_slope(
                lambda x: special.gammainc(jnp.asarray(2.5, x.dtype), x),
                lambda x: gamma_slope(jnp.asarray(2.5, x.dtype), x),
            ),
        ),
        "betainc, in x": Rule(
            lambda x: special.betainc(jnp.asarray(2.5, x.dtype), jnp.asarray(1.5, x.dtype), x),
            shares,
            with_slope(
                lambda x: special.betainc(jnp.asarray(2.5, x.dtype), jnp.asarray(1.5, x.dtype), x),
                lambda x: beta_slope(jnp.asarray(2.5, x.dtype), jnp.asarray(1.5, x.dtype), x),
            ),
        ),
    }
    return {f"jax.scipy.special.{name}": rule for name, rule in rules.items()}


def mills(x: Any) -> Any:
    """The normal density over its distribution function, by the scaled complement of erf: no overflow in the tail."""
    root = np.sqrt(2.0)
    low = np.sqrt(2 / np.pi) / special.erfcx(jnp.maximum(-x, 0.0) / root)
    high = jnp.exp(-(jnp.maximum(x, 0.0) ** 2) / 2) / np.sqrt(2 * np.pi) / special.ndtr(jnp.maximum(x, 0.0))
    return jnp.where(x < 0, low, high)


def zeta_by_sum(s: Any, q: Any) -> Any:
    """Hurwitz's zeta by Euler and Maclaurin: 30 terms, then the integral and its corrections."""
    n = 30
    total = jnp.sum((q[..., None] + jnp.arange(n, dtype=q.dtype)) ** -s[..., None], axis=-1)
    end = q + n
    total = total + end ** (1 - s) / (s - 1) + end**-s / 2
    term = s * end ** (-s - 1)
    for k, number in enumerate((1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66), start=1):
        total = total + number / float(np.prod(np.arange(1.0, 2 * k + 1))) * term
        term = term * (s + 2 * k - 1) * (s + 2 * k) / end**2
    return total


def solvers() -> dict[str, Rule]:
    """Rules around loops: roots, linear systems, differential equations."""
    positive = {"ordinary": (POSITIVE, VECTOR), "identity": (np.eye(3), VECTOR)}

    def root(a: Any) -> Any:
        def newton(f: Any, x: Any) -> Any:
            return lax.fori_loop(0, 60, lambda _, x: x - f(x) / jax.grad(f)(x), x)

        def solve(g: Any, y: Any) -> Any:
            return y / g(jnp.ones_like(y))

        return lax.custom_root(lambda x: x**3 - a, jnp.ones_like(a), newton, solve)

    def matrix_solve(a: Any, b: Any) -> Any:
        return lax.custom_linear_solve(
            lambda x: a @ x, b, lambda _, b: jnp.linalg.inv(a) @ b, lambda _, b: jnp.linalg.inv(a).T @ b
        )

    def krylov(method: Any) -> Callable[..., Any]:
        return lambda a, b: method(a, b, tol=1e-12, maxiter=50)[0]

    def decay(y: Any, rate: Any) -> Any:
        times = jnp.linspace(0.0, 1.0, 4, dtype=y.dtype)
        return odeint(lambda y, t, rate: -rate * y, y, times, rate)

    def decay_exactly(y: Any, rate: Any) -> Any:
        times = jnp.linspace(0.0, 1.0, 4, dtype=y.dtype)
        return y * jnp.exp(-rate * times[:, None])

    rules = {
        "jax.lax.custom_root": Rule(root, {"ordinary": (2.0,), "small": (1e-3,), "large": (1e6,)}, jnp.cbrt),
        "jax.lax.custom_linear_solve": Rule(matrix_solve, {"ordinary": (MATRIX, VECTOR)}, eliminate),
        "jax.scipy.sparse.linalg.cg": Rule(krylov(jsp.sparse.linalg.cg), positive, eliminate),
        "jax.scipy.sparse.linalg.gmres": Rule(krylov(jsp.sparse.linalg.gmres), positive, eliminate),
        "jax.scipy.sparse.linalg.bicgstab": Rule(krylov(jsp.sparse.linalg.bicgstab), positive, eliminate),
        "jax.experimental.ode.odeint": Rule(
            decay, {"ordinary": ([1.0, 2.0], 0.5), "still": ([1.0, 0.0], 0.0)}, decay_exactly, WIDER
        ),
    }
    return rules


def draws() -> dict[str, Rule]:
    """``jax.random``: draws that are differentiated with respect to their distribution."""
    key = jax.random.key(0)

    def dirichlet_plainly(a: Any) -> Any:
        # dirichlet normalises the logarithms of gamma draws, from the same key.
        draw, at = lax.stop_gradient(jax.random.loggamma(key, a)), lax.stop_gradient(a)
        z = jnp.exp(draw)
        by_shape = jax.vmap(jax.grad(gamma_by_series))(at, z)
        density = jnp.exp(at * draw - z - lax.lgamma(at))
        return jnp.exp(jax.nn.log_softmax(draw - by_shape / density * (a - at)))

    shapes = {"ordinary": ([1.5, 2.0, 4.0],), "edges": ([1.0, 0.25, 12.0],)}
    return {
        "jax.random.gamma": Rule(lambda a: jax.random.gamma(key, a), shapes, lambda a: drawn_gamma(key, a)),
        "jax.random.dirichlet": Rule(lambda a: jax.random.dirichlet(key, a), shapes, dirichlet_plainly),
    }


def optax_rules() -> dict[str, Rule]:
    """``optax``: losses, projections and transforms."""
    import optax

    logits, targets = [0.5, -1.0, 2.0, 30.0], [1.0, 0.0, 1.0, 0.5]
    far = ([-1e4, 1e4, 0.0, 1e-3], targets)
    inside, tied = [0.2, -0.4, 0.9, 0.1], [0.5, 0.5, 0.5, 0.5]

    def ctc(logits: Any) -> Any:
        none = jnp.zeros(logits.shape[:2], logits.dtype)
        return optax.losses.ctc_loss(logits, none, jnp.array([[1, 2]]), jnp.zeros((1, 2), logits.dtype))

    def ctc_plainly(logits: Any) -> Any:
        """Over all paths of three frames that read "1 2": the sum of their probabilities."""
        log_p = jax.nn.log_softmax(logits)[0]
        paths = [(1, 2, 2), (1, 1, 2), (0, 1, 2), (1, 0, 2), (1, 2, 0)]
        scores = jnp.stack([sum(log_p[t, k] for t, k in enumerate(path)) for path in paths])
        return -jax.nn.logsumexp(scores)[None]

    def norm(x: Any) -> Any:
        return jnp.sqrt(jnp.sum(x**2))

    def scaled(x: Any) -> Any:
        return optax.scale_gradient(x**2, 0.5)

    def halved(x: Any) -> Any:
        return x**2 / 2 + lax.stop_gradient(x**2) / 2

    rules = {
        "scale_gradient": Rule(scaled, {"ordinary": (SPREAD,), "zero": ([0.0, 1e-3],)}, halved),
        "losses.safe_softmax_cross_entropy": Rule(
            optax.losses.safe_softmax_cross_entropy,
            {"ordinary": (SPREAD, [0.1, 0.2, 0.3, 0.4]), "one hot": ([1e3, -1e3, 0.0, 5.0], [0.0, 1.0, 0.0, 0.0])},
        ),
        "losses.sigmoid_binary_cross_entropy": Rule(
            optax.losses.sigmoid_binary_cross_entropy, {"ordinary": (logits, targets), "large": far}
        ),
        "losses.sigmoid_focal_loss": Rule(
            optax.losses.sigmoid_focal_loss,
            {"ordinary": (logits, targets), "large": ([-80.0, 80.0, 0.0], [1.0, 0.0, 1.0])},
        ),
        "losses.log_cosh": Rule(
            lambda x: optax.losses.log_cosh(x), {"ordinary": (SPREAD,), "edges": ([0.0, 1e-3, 90.0, -90.0],)}
        ),
        "losses.sparsemax_loss": Rule(
            optax.losses.multiclass_sparsemax_loss, {"ordinary": (SPREAD, np.int32(2)), "equal": (tied, np.int32(1))}
        ),
        "losses.huber_loss": Rule(
            lambda x: optax.losses.huber_loss(x),
            {"ordinary": (SPREAD,), "kinks": ([1.0, -1.0, 0.0],)},
            lambda x: jnp.where(jnp.abs(x) <= 1, x**2 / 2, jnp.abs(x) - 0.5),
        ),
        "losses.kl_divergence": Rule(
            optax.losses.kl_divergence,
            {"ordinary": ([-1.0, -2.0, -0.5], [0.3, 0.2, 0.5]), "zero": ([-1.0, -2.0], [0.0, 1.0])},
            lambda q, p: jnp.sum(special.rel_entr(p, jnp.exp(q))),
        ),
        "losses.cosine_similarity": Rule(
            optax.losses.cosine_similarity,
            {"ordinary": (VECTOR, [0.5, 1.0, 3.0]), "parallel": (VECTOR, VECTOR)},
            lambda x, y: x @ y / norm(x) / norm(y),
        ),
        "losses.ctc_loss": Rule(
            ctc,
            {"ordinary": ([[SPREAD[:3], [1.0, 0.0, -1.0], [0.3, 0.6, 0.2]]],), "equal": (np.zeros((1, 3, 3)),)},
            ctc_plainly,
        ),
        "projections.projection_simplex": Rule(
            optax.projections.projection_simplex,
            {
                "ordinary": (inside,),
                "equal": (tied,),
                "corner": ([5.0, 0.0, 4.0, -1.0],),
                "large": ([1e3, 999.5, 0.0],),
            },
        ),
        "projections.projection_l1_ball": Rule(
            optax.projections.projection_l1_ball, {"ordinary": ([2.0, -1.5, 0.25],), "inside": ([0.1, -0.2, 0.0],)}
        ),
        "projections.projection_non_negative": Rule(
            optax.projections.projection_non_negative, {"ordinary": (SPREAD,), "zero": ([0.0, 1.0],)}
        ),
        "safe_norm": Rule(
            lambda x: optax.safe_norm(x, 1e-3),
            {"ordinary": (VECTOR,), "zero": ([0.0, 0.0],)},
            lambda x: jnp.maximum(norm(x), 1e-3),
        ),
        "safe_root_mean_squares": Rule(
            lambda x: optax.safe_root_mean_squares(x, 1e-3),
            {"ordinary": (VECTOR,), "zero": ([0.0, 0.0],)},
            lambda x: jnp.maximum(norm(x) / np.sqrt(len(x)), 1e-3),
        ),
    }
    return {f"optax.{name}": rule for name, rule in rules.items()}


def others() -> dict[str, Rule]:
    """Packages that may be there or not: equinox, lineax, optimistix, jaxopt."""
    rules: dict[str, Rule] = {}
    system = {"ordinary": (POSITIVE, VECTOR), "identity": (np.eye(3), VECTOR)}
    for package, fill in (
        ("equinox", from_equinox),
        ("lineax", from_lineax),
        ("optimistix", from_optimistix),
        ("jaxopt", from_jaxopt),
    ):
        try:
            module = __import__(package)
        except ImportError:
            continue
        rules |= {f"{package}.{name}": rule for name, rule in fill(module, system).items()}
    return rules


def from_equinox(equinox: ModuleType, system: Any) -> dict[str, Rule]:
    """``equinox``: neighbours of a number, a loop with checkpoints."""

    @equinox.filter_custom_vjp
    def power(xy: Any) -> Any:
        return xy[0] ** 2 * xy[1]

    power.def_fwd(lambda _, xy: (power(xy), None))
    power.def_bwd(lambda _, c, __, xy: (c * 2 * xy[0] * xy[1], c * xy[0] ** 2))

    def loop(x: Any) -> Any:
        def body(state: Any) -> Any:
            k, y = state
            return k + 1, jnp.sin(y) + x

        return equinox.internal.while_loop(
            lambda state: state[0] < 5, body, (0, x), max_steps=8, kind="checkpointed", checkpoints=3
        )[1]

    def unrolled(x: Any) -> Any:
        y = x
        for _ in range(5):
            y = jnp.sin(y) + x
        return y

    points = {"ordinary": (SPREAD,), "zero": ([0.0, 1e-3],)}
    return {
        "filter_custom_vjp": Rule(lambda x, y: power((x, y)), {"ordinary": (SPREAD, SPREAD), "zero": ([0.0], [0.0])}),
        "internal.nextafter": Rule(equinox.internal.nextafter, points, lambda x: x),
        "internal.while_loop, checkpointed": Rule(loop, points, unrolled),
    }


def from_lineax(lineax: ModuleType, system: Any) -> dict[str, Rule]:
    """``lineax``: norms and solves."""

    def solve(a: Any, b: Any) -> Any:
        return lineax.linear_solve(lineax.MatrixLinearOperator(a), b).value

    def least_squares(a: Any, b: Any) -> Any:
        return lineax.linear_solve(lineax.MatrixLinearOperator(a), b, lineax.QR()).value

    vectors = {"ordinary": (VECTOR,), "zero": ([0.0, 0.0],), "tied": ([3.0, -3.0, 3.0],)}
    tall = [[1.0, 2.0], [0.5, -1.0], [3.0, 0.25]]
    return {
        "two_norm": Rule(lineax.internal.two_norm, vectors),
        "max_norm": Rule(lineax.internal.max_norm, vectors),
        "linear_solve": Rule(solve, system, eliminate),
        "linear_solve, QR": Rule(least_squares, {"ordinary": (tall, VECTOR)}, lambda a, b: eliminate(a.T @ a, a.T @ b)),
    }


def from_optimistix(optimistix: ModuleType, system: Any) -> dict[str, Rule]:
    """``optimistix``: a root, by the implicit function theorem."""

    def root(a: Any) -> Any:
        solver = optimistix.Newton(rtol=1e-12, atol=1e-12)
        return optimistix.root_find(lambda x, a: x**3 - a, solver, jnp.ones_like(a), a, throw=False, max_steps=60).value

    return {"root_find": Rule(root, {"ordinary": (2.0,), "large": (1e3,)}, jnp.cbrt)}


def from_jaxopt(jaxopt: ModuleType, system: Any) -> dict[str, Rule]:
    """``jaxopt``: projections, isotonic regression, implicit differentiation."""
    isotonic, projection = jaxopt.isotonic, jaxopt.projection

    def ridge(a: Any, b: Any) -> Any:
        @jaxopt.implicit_diff.custom_root(lambda x, a, b: a.T @ (a @ x - b) + x / 2)
        def solution(_: Any, a: Any, b: Any) -> Any:
            return jnp.linalg.solve(a.T @ a + jnp.eye(3, dtype=a.dtype) / 2, a.T @ b)

        return solution(None, a, b)

    def ridge_plainly(a: Any, b: Any) -> Any:
        return eliminate(a.T @ a + jnp.eye(3, dtype=a.dtype) / 2, a.T @ b)

    simplex = {"ordinary": ([0.2, -0.4, 0.9, 0.1],), "equal": ([0.5] * 4,), "corner": ([5.0, 0.0, 4.0, -1.0],)}
    return {
        "projection.projection_simplex": Rule(projection.projection_simplex, simplex),
        "projection.projection_sparse_simplex": Rule(lambda x: projection.projection_sparse_simplex(x, 2), simplex),
        "projection.projection_l2_sphere": Rule(
            projection.projection_l2_sphere, {"ordinary": (VECTOR,)}, lambda x: x / jnp.sqrt(jnp.sum(x**2))
        ),
        "isotonic.isotonic_l2_pav": Rule(
            isotonic.isotonic_l2_pav,
            {"ordinary": ([1.0, 3.0, 2.0, 4.0, 3.5],), "sorted": ([1.0, 2.0, 4.0],), "equal": ([1.0, 1.0, 1.0],)},
            pooled,
        ),
        "implicit_diff.custom_root": Rule(ridge, system, ridge_plainly),
    }


def pooled(x: Any) -> Any:
    """Isotonic regression by the min-max formula: ``max_{i <= k} min_{j >= k} mean(x_i..x_j)``."""
    n = len(x)
    return jnp.stack(
        [
            jnp.max(
                jnp.stack([jnp.min(jnp.stack([jnp.mean(x[i : j + 1]) for j in range(k, n)])) for i in range(k + 1)])
            )
            for k in range(n)
        ]
    )


def all_rules() -> dict[str, Rule]:
    """Every rule there is to be had here, by name."""
    rules: dict[str, Rule] = {}
    for family in (neural, numerical, linear_algebra, scipy_special, solvers, draws, optax_rules, others):
        rules |= family()
    return rules


def cast(args: tuple[Any, ...], dtype: str) -> tuple[Any, ...]:
    """Arguments as arrays, what is floating in a dtype."""

    def one(x: Any) -> Any:
        array = np.asarray(x)
        return jnp.asarray(array) if np.issubdtype(array.dtype, np.integer) else jnp.asarray(array, dtype)

    return tuple(map(one, args))


def kind_of(fun: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """What holds the rule: custom_jvp, custom_vjp, custom_linear_solve; else JAX's own primitives."""
    names = {eqn.primitive.name for eqn in equations(jax.make_jaxpr(fun)(*args))}
    kinds = ("custom_vjp", "custom_jvp", "custom_linear_solve", "linear_solve")
    return next((kind for kind in kinds if any(name.startswith(kind) for name in names)), "primitives")


def examine(name: str, rule: Rule, dtype: str, point: str, order: int = 1) -> Finding:
    """One rule, in one dtype, at one point."""
    start, kind, escaped = time.perf_counter(), "-", False
    report, trouble = None, ""
    with jax.enable_x64(dtype == "float64"):
        args = cast(rule.points[point], dtype)
        try:
            kind = kind_of(rule.fun, args)
            jax.block_until_ready(jax.jit(rule.fun)(*args))
        except Exception as error:
            trouble = f"JAX refuses: {one_line(error)}"
        if not trouble:
            try:
                report = mjn.check_vjp(rule.fun, args, reference=rule.reference, order=order)
            except Exception as error:
                trouble, escaped = f"the check raised {one_line(error)}", True
    return Finding(name, kind, dtype, point, report, trouble, escaped, time.perf_counter() - start)


def one_line(error: Exception) -> str:
    """An error's kind and the beginning of its text."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def row(finding: Finding) -> tuple[str, ...]:
    """A finding as a row of the table."""
    head = (f"{finding.name}  {finding.point}", finding.kind, finding.dtype)
    if finding.report is None:
        states = ["!" if finding.escaped else "-"] * len(QUESTIONS)
    else:
        verdicts = finding.report.verdicts
        states = [LETTERS[verdicts[q].state] if q in verdicts else "" for q in QUESTIONS]
    return (*head, *states, figure(finding.seconds, 2))


def accusations(findings: Sequence[Finding]) -> Iterator[str]:
    """A paragraph for each finding that accuses, and for each check that raised."""
    for finding in findings:
        title = f"{finding.name}, {finding.dtype}, {finding.point}"
        if finding.report is not None and finding.accused:
            verdicts = finding.report.verdicts.items()
            reasons = [
                f"{q}: {v.reason}" for q, v in verdicts if v.state == "fail" or (q, v.state) == ("algebra", "unchecked")
            ]
            yield "\n    ".join([title, *reasons, *finding.report.hints, *worst(finding.report)])
        elif finding.escaped:
            yield f"{title}\n    {finding.trouble}"


def worst(report: mjn.GradReport) -> Iterator[str]:
    """The worst element in a line; nothing where all are right."""
    leaf = report.worst
    if leaf is not None and not leaf.ok:
        yield f"{leaf.path}{list(leaf.index)}: by hand {leaf.hand:.12g}, by autodiff {leaf.reference:.12g}"


def main() -> None:
    """Print the table and the accusations; ``--only NAME`` takes rules with NAME in theirs, ``--dtype`` one dtype."""
    options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=False))
    only, dtypes = options.get("--only", ""), [options["--dtype"]] if "--dtype" in options else DTYPES
    order = int(options.get("--order", 1))
    rules = {name: rule for name, rule in all_rules().items() if only in name}
    findings = []
    for name, rule in rules.items():
        for dtype in (d for d in dtypes if d in rule.dtypes):
            for point in rule.points:
                finding = examine(name, rule, dtype, point, order)
                findings.append(finding)
                print("  ".join(row(finding)), flush=True)
    heads = ("rule and point", "kind", "dtype", *QUESTIONS, "s")
    print()
    print(text_table(heads, [row(f) for f in findings], title="+ pass, F fail, ? unchecked, - JAX refuses, ! raised"))
    accused = list(accusations(findings))
    print(f"\n{len(rules)} rules, {len(findings)} checks, {len(accused)} accused or raised\n")
    print("\n".join(accused))
    for finding in findings:
        if finding.report is None and not finding.escaped:
            print(f"{finding.name}, {finding.dtype}: {finding.trouble}")


if __name__ == "__main__":
    main()
