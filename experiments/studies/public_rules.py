"""Public derivative rules, of JAX and of optax, checked by check_vjp: which are right, and where the two disagree.

python experiments/studies/public_rules.py --only nn.relu --dtype float32
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.special as special
import numpy as np
from jax import lax

import minijaxnet as mjn
from minijaxnet._tables import text_table

QUESTIONS = ("structure", "primal", "algebra", "precision", "oracle", "linearity", "transforms", "forward")
LETTERS = {"pass": "+", "fail": "F", "unchecked": "?"}
DTYPES = ("float32", "bfloat16", "float64")


class Rule(NamedTuple):
    """A public function with a derivative rule of its own, and where to check it.

    Attributes:
        fun: the function.
        points: ``{what is special about them: args}``; Python numbers, lists and arrays.
        reference: the same function or the same derivative by other means, where the rule is a primitive's.
    """

    fun: Callable[..., Any]
    points: dict[str, tuple[Any, ...]]
    reference: Callable[..., Any] | None = None


def with_derivative(fun: Callable[..., Any], derivative: Callable[..., Any]) -> Callable[..., Any]:
    """The function with this derivative, from a book: ``f(a) + f'(a) (x - a)`` at a = x."""

    def tangent(x: Any) -> Any:
        at = lax.stop_gradient(x)
        return fun(at) + derivative(at) * (x - at)

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


MATRIX = [[2.0, 0.3, 0.1], [0.2, 1.5, 0.4], [0.1, 0.25, 1.0]]
NEARLY_SINGULAR = [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0009765625], [1.0, 1.0, 2.0]]
TALL = [[1.0, 2.0], [0.5, -1.0], [3.0, 0.25]]
VECTOR = [1.0, -2.0, 0.5]
SPREAD = [-3.0, -0.75, 0.5, 2.25]


def neural() -> dict[str, Rule]:
    """``jax.nn``."""
    nn = jax.nn
    kinks = {"ordinary": (SPREAD,), "kinks": ([0.0, -0.0, 6.0, 3.0, -3.0],), "large": ([-1e4, 1e4, 50.0],)}
    edges = {"ordinary": (SPREAD,), "edges": ([0.0, -1e3, 1e3, -40.0],)}
    logits = {"ordinary": (SPREAD,), "equal": ([1.0] * 4,), "large": ([1e3, -1e3, 999.0, 0.0],)}
    small = {"ordinary": ([0.1, 0.5, 1.0, 3.0],), "edges": ([1e-6, 0.6875, 50.0, 200.0],)}
    return {
        "nn.relu": Rule(nn.relu, kinks),
        "nn.relu6": Rule(nn.relu6, kinks),
        "nn.hard_silu": Rule(nn.hard_silu, kinks),
        "nn.softplus": Rule(nn.softplus, edges),
        "nn.log_sigmoid": Rule(nn.log_sigmoid, edges),
        "nn.mish": Rule(nn.mish, {"ordinary": (SPREAD,), "edges": ([0.0, -80.0, 80.0],)}),
        "nn.log1mexp": Rule(nn.log1mexp, small),
        "nn.silu": Rule(
            nn.silu, {"ordinary": (SPREAD,), "edges": ([0.0, -60.0, 60.0],)}, lambda x: x / (1 + jnp.exp(-x))
        ),
        "nn.logsumexp": Rule(nn.logsumexp, logits, lambda x: jnp.max(x) + jnp.log(jnp.sum(jnp.exp(x - jnp.max(x))))),
    }


def numerical() -> dict[str, Rule]:
    """``jax.numpy`` and ``jax.numpy.linalg``: custom rules, and primitives beside their plainest formulas."""
    linalg = jnp.linalg
    pair = {"ordinary": ([0.5, -1.0, 3.0], [1.5, 2.0, -1.0]), "equal": ([0.0, 2.0, -7.0], [0.0, 2.0, -7.0])}
    square = {"ordinary": (MATRIX,), "nearly singular": (NEARLY_SINGULAR,)}
    symmetric = {"ordinary": ([[2.0, 0.5], [0.5, 1.0]],), "near": ([[1.0, 0.015625], [0.015625, 1.0]],)}
    tall = {"ordinary": (TALL,), "equal singular values": (np.eye(3, 2),)}
    system = {"ordinary": (MATRIX, VECTOR), "identity": (np.eye(3), VECTOR)}

    def log_determinant(a: Any) -> Any:
        return linalg.slogdet(a)[1]

    def singular_values(a: Any) -> Any:
        return linalg.svd(a, compute_uv=False)

    return {
        "jnp.sinc": Rule(jnp.sinc, {"ordinary": (SPREAD,), "edges": ([0.0, 1e-4, 1.0, -2.0, 1000.5],)}),
        "jnp.i0": Rule(jnp.i0, {"ordinary": (SPREAD,), "edges": ([0.0, 1e-3, 30.0],)}),
        "jnp.logaddexp": Rule(jnp.logaddexp, pair),
        "jnp.logaddexp2": Rule(jnp.logaddexp2, pair),
        "jnp.hypot": Rule(jnp.hypot, {"ordinary": ([3.0, 1.0], [4.0, 1e-3])}, lambda x, y: jnp.sqrt(x**2 + y**2)),
        "linalg.det": Rule(linalg.det, {**square, "identity": (np.eye(3),)}, expand),
        "linalg.slogdet": Rule(log_determinant, square, lambda a: jnp.log(jnp.abs(expand(a)))),
        "linalg.inv": Rule(linalg.inv, square, lambda a: eliminate(a, jnp.eye(len(a), dtype=a.dtype))),
        "linalg.solve": Rule(linalg.solve, system, eliminate),
        "linalg.pinv": Rule(linalg.pinv, tall, lambda a: eliminate(a.T @ a, a.T)),
        "linalg.eigh": Rule(eigh_2x2, symmetric, symmetric_2x2),
        "linalg.svd": Rule(singular_values, {"ordinary": (TALL,)}, lambda a: jnp.sqrt(symmetric_2x2(a.T @ a)[0][::-1])),
    }


def scipy_special() -> dict[str, Rule]:
    """``jax.scipy.special``: custom rules, and primitives beside a derivative from the books."""
    positive = {"ordinary": ([0.25, 0.75, 1.5, 4.0],), "edges": ([1e-3, 1.0, 30.0],)}
    shares = {"ordinary": ([0.2, 0.5, 0.9],), "edges": ([1e-6, 0.99609375],)}
    real = {"ordinary": (SPREAD,), "edges": ([0.0, 1e-3, 5.0, -5.0],)}
    counts = {"ordinary": ([0.5, 1.0, 2.0], [0.25, 3.0, 1.0]), "zero": ([0.0, 0.0, 1.0], [1.0, 0.5, 1e-6])}
    tails = {"ordinary": (SPREAD,), "tails": ([-30.0, -9.0, 9.0, 12.0],), "seam": ([-20.5, -10.25],)}
    equal = {**counts, "equal": ([0.5, 2.0], [0.5, 2.0])}

    def density(x: Any) -> Any:
        return jnp.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)

    def trigamma(x: Any) -> Any:
        return special.polygamma(1, x)

    by_book: dict[str, tuple[Callable[..., Any], dict[str, tuple[Any, ...]], Callable[..., Any]]] = {
        "exp1": (special.exp1, positive, lambda x: -jnp.exp(-x) / x),
        "expi": (special.expi, {"ordinary": ([-2.0, 0.5, 3.0],), "one": (1.5,)}, lambda x: jnp.exp(x) / x),
        "i0e": (special.i0e, real, lambda x: special.i1e(x) - jnp.sign(x) * special.i0e(x)),
        "digamma": (special.digamma, positive, trigamma),
        "polygamma": (trigamma, positive, lambda x: -2 * special.zeta(3.0, x)),
        "gammaln": (special.gammaln, positive, special.digamma),
        "ndtr": (special.ndtr, tails, density),
        "ndtri": (special.ndtri, shares, lambda p: 1 / density(special.ndtri(p))),
    }
    plain = {
        "xlogy": Rule(special.xlogy, counts),
        "entr": Rule(special.entr, {"ordinary": positive["ordinary"], "edges": ([0.0, 1e-6, 1.0],)}),
        "kl_div": Rule(special.kl_div, equal),
        "rel_entr": Rule(special.rel_entr, equal),
        "logit": Rule(special.logit, {**shares, "ends": ([0.0, 1.0],)}),
        "log_ndtr": Rule(special.log_ndtr, tails),
        "erfcx": Rule(special.erfcx, {**real, "tails": ([-3.0, 8.0, 12.0, 60.0],)}),
        "dawsn": Rule(special.dawsn, {**real, "seams": ([3.25, 6.25, 12.0, -3.25],)}),
        "gammainc": Rule(special.gammainc, {"ordinary": ([0.5, 2.0, 5.0], [1.0, 1.5, 4.0])}, gamma_by_series),
    }
    plain |= {name: Rule(fun, points, with_derivative(fun, slope)) for name, (fun, points, slope) in by_book.items()}
    return {f"special.{name}": rule for name, rule in plain.items()}


def optax_rules() -> dict[str, Rule]:
    """``optax``: losses, projections and transforms; none where it is not installed."""
    try:
        import optax
    except ImportError:
        return {}
    logits, targets = [0.5, -1.0, 2.0, 30.0], [1.0, 0.0, 1.0, 0.5]
    tied, corner = [0.5, 0.5, 0.5, 0.5], [5.0, 0.0, 4.0, -1.0]

    def scaled(x: Any) -> Any:
        return optax.scale_gradient(x**2, 0.5)

    def halved(x: Any) -> Any:
        return x**2 / 2 + lax.stop_gradient(x**2) / 2

    found = {
        "scale_gradient": Rule(scaled, {"ordinary": (SPREAD,), "zero": ([0.0, 1e-3],)}, halved),
        "sigmoid_binary_cross_entropy": Rule(
            optax.losses.sigmoid_binary_cross_entropy,
            {"ordinary": (logits, targets), "large": ([-1e4, 1e4, 0.0, 1e-3], targets)},
        ),
        "log_cosh": Rule(lambda x: optax.losses.log_cosh(x), {"ordinary": (SPREAD,), "edges": ([0.0, 1e-3, 90.0],)}),
        "sparsemax_loss": Rule(
            optax.losses.multiclass_sparsemax_loss, {"ordinary": (SPREAD, np.int32(2)), "equal": (tied, np.int32(1))}
        ),
        "projection_simplex": Rule(
            optax.projections.projection_simplex,
            {"ordinary": ([0.2, -0.4, 0.9, 0.1],), "equal": (tied,), "corner": (corner,)},
        ),
    }
    return {f"optax.{name}": rule for name, rule in found.items()}


def all_rules() -> dict[str, Rule]:
    """Every rule, by name."""
    return neural() | numerical() | scipy_special() | optax_rules()


def cast(args: tuple[Any, ...], dtype: str) -> tuple[Any, ...]:
    """Arguments as arrays, what is floating in a dtype."""

    def one(x: Any) -> Any:
        array = np.asarray(x)
        return jnp.asarray(array) if np.issubdtype(array.dtype, np.integer) else jnp.asarray(array, dtype)

    return tuple(map(one, args))


class Finding(NamedTuple):
    """What became of a rule in a dtype at a point: a report, or why there is none.

    Attributes:
        title: name, dtype and point.
        report: of the check; None where JAX itself refuses the call, or the check raised.
        trouble: why there is no report.
    """

    title: str
    report: mjn.GradReport | None
    trouble: str


def examine(name: str, rule: Rule, dtype: str, point: str) -> Finding:
    """Check one rule, in one dtype, at one point."""
    title = f"{name}, {dtype}, {point}"
    with jax.enable_x64(dtype == "float64"):
        args, doing = cast(rule.points[point], dtype), "JAX refuses the call"
        try:
            jax.block_until_ready(jax.jit(rule.fun)(*args))
            doing = "the check raised"
            return Finding(title, mjn.check_vjp(rule.fun, args, reference=rule.reference), "")
        except Exception as error:
            return Finding(title, None, f"{doing}: {type(error).__name__}: {' '.join(str(error).split())[:120]}")


def row(finding: Finding) -> tuple[str, ...]:
    """A finding as a row of the table."""
    if finding.report is None:
        return (finding.title, *["-"] * len(QUESTIONS))
    verdicts = finding.report.verdicts
    return (finding.title, *(LETTERS[verdicts[q].state] if q in verdicts else "" for q in QUESTIONS))


def accusation(finding: Finding) -> str:
    """Why a rule is not right, or has no report; nothing if it is right."""
    if finding.report is None:
        return f"{finding.title}\n    {finding.trouble}"
    if finding.report.ok:
        return ""
    reasons = [f"{q}: {v.reason}" for q, v in finding.report.verdicts.items() if v.state == "fail"]
    if (leaf := finding.report.worst) is not None and not leaf.ok:
        place = f"{leaf.path}{list(leaf.index)}"
        reasons.append(f"{place}: by the rule {leaf.hand:.12g}, by autodiff {leaf.reference:.12g}")
    return "\n    ".join([finding.title, *reasons, *finding.report.hints])


def main() -> None:
    """Print the table, and what is not right."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", metavar="NAME", help="rules with NAME in theirs")
    parser.add_argument("--dtype", choices=DTYPES, help="one dtype; all of them, if left out")
    options = parser.parse_args()
    rules = {name: rule for name, rule in all_rules().items() if options.only in name}
    findings = []
    for name, rule in rules.items():
        for dtype in [options.dtype] if options.dtype else DTYPES:
            for point in rule.points:
                findings.append(examine(name, rule, dtype, point))
                print("  ".join(row(findings[-1])), flush=True)
    columns = ("rule, dtype, point", *QUESTIONS)
    print(f"\n{text_table(columns, list(map(row, findings)), title='+ pass, F fail, ? unchecked, - no report')}")
    accused = [text for finding in findings if (text := accusation(finding))]
    print(f"\n{len(rules)} rules, {len(findings)} checks, {len(accused)} not right or without a report\n")
    print("\n".join(accused))


if __name__ == "__main__":
    main()
