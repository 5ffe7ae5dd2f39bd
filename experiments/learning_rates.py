"""Learning rates: 1,024 descents at once; too small crawls, too large leads astray, and theory says where the edge is.

    python experiments/learning_rates.py

Near a minimum the loss is a bowl, ``L = 1/2 (w - w*)^T H (w - w*)``, and a step multiplies the distance along an
eigenvector of H by ``1 - rate * eigenvalue``. That shrinks for all of them if and only if ``rate < 2 / (the largest)``.
For a linear unit and the squared error the bowl is exact, and the same everywhere. For a network it is not: the edge is
then that of the place where the descent started, and where it comes to it may be steeper or flatter.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import minijaxnet as mjn
from minijaxnet._tables import percent, significant, text_table

Objective = Callable[[Any, Any], jax.Array]


class Workload(NamedTuple):
    """What descends.

    Attributes:
        network: what starts the params.
        objective: what is made small.
        batch: what each step looks at.
        steps: how many.
    """

    network: mjn.Network
    objective: Objective
    batch: Any
    steps: int


def linear_unit() -> Workload:
    """Progress of diabetes from ten measures, by a linear unit: a bowl."""
    network = mjn.dense(10, 1)
    return Workload(network, mjn.objective(network, mjn.mean_squared_error), mjn.diabetes()[0], 500)


def lesson_network() -> Workload:
    """2-2-1 on the lesson's four points."""
    network = mjn.mlp((2, 2, 1))
    return Workload(network, mjn.objective(network, mjn.mean_squared_error), mjn.lesson_points(), 1_000)


def digits_network() -> Workload:
    """64-32-10 on the handwritten digits, all of them at each step."""
    network = mjn.mlp((64, 32, 10))
    return Workload(network, mjn.objective(network, mjn.softmax_cross_entropy), mjn.digits()[0], 50)


WORKLOADS = {
    "a linear unit, diabetes": linear_unit,
    "2-2-1, the lesson's points": lesson_network,
    "64-32-10, digits": digits_network,
}


def hessian_eigenvalue(objective: Objective, params: Any, batch: Any) -> float:
    """The largest eigenvalue of the Hessian, written out by ``jax.hessian``: for few weights only."""
    flat, unravel = ravel_pytree(params)
    hessian = jax.hessian(lambda flat: objective(unravel(flat), batch))(flat)
    return float(jnp.linalg.eigvalsh(hessian)[-1])


def lanczos_eigenvalue(objective: Objective, params: Any, batch: Any, *, iterations: int = 30) -> float:
    """The same from products ``H v`` alone, each a derivative of the slope along v: ``jvp(grad)``.

    Lanczos: from a random start, each new direction is H times the last one, made orthogonal to all before; in these
    directions H is tridiagonal, and its extreme eigenvalues come near those of H within a few tens of products.

    Source: Golub and Van Loan, "Matrix computations", chapter 10; Pearlmutter, "Fast exact multiplication by the
        Hessian", 1994.
    """
    flat, unravel = ravel_pytree(params)
    slope = jax.grad(lambda flat: objective(unravel(flat), batch))

    @jax.jit
    def product(v: jax.Array) -> jax.Array:
        return jax.jvp(slope, (flat,), (v,))[1]

    v = np.random.default_rng(0).normal(size=flat.size)
    directions, diagonal, beside = [v / np.linalg.norm(v)], [], []
    for _ in range(min(iterations, flat.size)):
        w = np.asarray(product(jnp.asarray(directions[-1], flat.dtype)), np.float64)
        diagonal.append(w @ directions[-1])
        for _ in range(2):  # twice is enough to be orthogonal in spite of rounding
            w = w - sum((w @ u) * u for u in directions)
        length = np.linalg.norm(w)
        if length < 1e-6 * abs(diagonal[0]):
            break
        directions.append(w / length)
        beside.append(length)
    size = len(diagonal)
    tridiagonal = np.diag(diagonal) + np.diag(beside[: size - 1], 1) + np.diag(beside[: size - 1], -1)
    return float(np.linalg.eigvalsh(tridiagonal)[-1])


def sweep_rates(work: Workload, rates: np.ndarray, seeds: int) -> mjn.SweepResult:
    """A descent for each rate from each of so many starts."""

    def run(learning_rate: Any, key: Any) -> Any:
        descent = mjn.gradient_descent(work.objective, learning_rate)
        return mjn.descend(descent, descent.init(work.network.init(key)), work.batch, steps=work.steps)[1]

    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    return mjn.sweep(run, {"learning_rate": rates, "key": keys})


def astray(result: mjn.SweepResult) -> np.ndarray:
    """Which descents ended higher than they began, or diverged."""
    return ~(result.losses <= result.trace.loss[..., 0])


def edge(rates: np.ndarray, gone: np.ndarray) -> tuple[float, float]:
    """Between which rates most descents begin to go astray: the largest before the first at which half of them do."""
    bad = np.flatnonzero(gone.mean(axis=1) >= 0.5)
    if not len(bad):
        return float(rates[-1]), np.inf
    return (float(rates[bad[0] - 1]) if bad[0] else 0.0), float(rates[bad[0]])


def report(name: str, work: Workload, rates_count: int, seeds: int) -> str:
    """A table of rates, and the edge against theory's."""
    starts = [work.network.init(jax.random.key(seed)) for seed in range(min(seeds, 5))]
    steepest = [lanczos_eigenvalue(work.objective, params, work.batch) for params in starts]
    theory = 2 / float(np.median(steepest))
    result = sweep_rates(work, np.geomspace(theory / 1_000, 10 * theory, rates_count), seeds)
    rates, gone = result.axes["learning_rate"], astray(result)
    share = result.losses / result.trace.loss[..., 0]
    rows = []
    for i in range(0, len(rates), max(1, len(rates) // 16)):
        median = float(np.median(share[i]))
        rows.append(
            (
                significant(rates[i], 3),
                significant(rates[i] / theory, 3),
                significant(median, 3),
                percent(gone[i].mean()),
            )
        )
    low, high = edge(rates, gone)
    title = f"{name}: {gone.size:,} descents of {work.steps:,} steps"
    lines = [text_table(("learning rate", "over theory's edge", "last loss / first", "astray"), rows, title=title)]
    lines.append(f"half go astray between {significant(low)} and {significant(high)}")
    lines.append(
        f"2 / largest eigenvalue at the start: {significant(theory)} (Lanczos, median of {len(starts)} starts)"
    )
    if ravel_pytree(starts[0])[0].size <= 500:
        exact = 2 / float(np.median([hessian_eigenvalue(work.objective, p, work.batch) for p in starts]))
        lines.append(f"                                     {significant(exact)} (the whole Hessian)")
    best = result.best()
    lines.append(f"lowest: {significant(best.loss)} at {significant(float(best.values['learning_rate']))}")
    return "\n".join(lines)


def main() -> None:
    """Print a table a workload."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rates", type=int, default=64, help="how many (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=16, help="starts for each rate (default: %(default)s)")
    options = parser.parse_args()
    for name in ("rates", "seeds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: got {getattr(options, name)}; expected at least 1")
    for name, workload in WORKLOADS.items():
        print(report(name, workload(), options.rates, options.seeds) + "\n", flush=True)


if __name__ == "__main__":
    main()
