"""Learning rates: 1,024 descents at once show from which rate on they fail, beside the rate that theory gives.

    python experiments/learning_rates.py

Near a minimum w* the loss is a bowl, ``L = 1/2 (w - w*)^T H (w - w*)``, and a step multiplies the distance along an
eigenvector of H by ``1 - rate * eigenvalue``. All distances shrink if and only if ``rate < 2 / (largest eigenvalue)``.
For a linear unit with the squared error, H is the same everywhere. For a network it is not: theory's rate is then that
of the start, and H may be larger or smaller where the descent goes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

import minijaxnet as mjn

RATES, STARTS = 64, 16


class Workload(NamedTuple):
    """A network, its objective, the batch of each step and how many steps."""

    network: mjn.Network
    objective: Any
    batch: Any
    steps: int


def workload(network: mjn.Network, loss: Any, batch: mjn.Batch, steps: int) -> Workload:
    """The network with its objective."""
    return Workload(network, mjn.objective(network, loss), batch, steps)


def largest_eigenvalue(objective: Any, params: Any, batch: Any, *, iterations: int = 100) -> jax.Array:
    """The largest eigenvalue of the Hessian H, by power iteration: ``v <- H v / |H v|``.

    ``H v`` is the derivative of the gradient along v, so that H itself is never computed.
    """
    flat, unravel = ravel_pytree(params)
    gradient = jax.grad(lambda flat: objective(unravel(flat), batch))

    def product(v: jax.Array) -> jax.Array:
        return jax.jvp(gradient, (flat,), (v,))[1]

    def iterate(_: Any, v: jax.Array) -> jax.Array:
        return product(v) / jnp.linalg.norm(product(v))

    v = lax.fori_loop(0, iterations, iterate, jax.random.normal(jax.random.key(0), flat.shape))
    return v @ product(v)


def sweep_rates(work: Workload, rates: np.ndarray, starts: int) -> mjn.SweepResult:
    """A descent for each rate and each of so many random starts."""

    def run(learning_rate: jax.Array, key: jax.Array) -> mjn.Trace:
        descent = mjn.gradient_descent(work.objective, learning_rate)
        return mjn.descend(descent, descent.init(work.network.init(key)), work.batch, steps=work.steps)[1]

    return mjn.sweep(run, {"learning_rate": rates, "key": jax.vmap(jax.random.key)(jnp.arange(starts))})


def failed(result: mjn.SweepResult) -> np.ndarray:
    """Which descents ended at a higher loss than they started from, or diverged."""
    return ~(result.losses <= result.trace.loss[..., 0])


def first_failing_rate(rates: np.ndarray, has_failed: np.ndarray) -> float:
    """The lowest rate at which half of the descents fail; infinity if there is none."""
    bad = np.flatnonzero(has_failed.mean(axis=1) >= 0.5)
    return float(rates[bad[0]]) if len(bad) else np.inf


def report(name: str, work: Workload, n_rates: int = RATES, n_starts: int = STARTS) -> str:
    """A table of rates, and the measured limit beside theory's."""
    starts = [work.network.init(jax.random.key(seed)) for seed in range(min(n_starts, 5))]
    theory = 2 / np.median([largest_eigenvalue(work.objective, params, work.batch) for params in starts])
    rates = np.geomspace(theory / 1_000, 10 * theory, n_rates)
    result = sweep_rates(work, rates, n_starts)
    has_failed, shares = failed(result), result.losses / result.trace.loss[..., 0]
    lines = [f"{name}: {has_failed.size:,} descents of {work.steps:,} steps"]
    lines.append("learning rate  rate / theory's  last loss / first  failed")
    for rate, of_rate, share in list(zip(rates, has_failed, shares, strict=True))[:: max(1, n_rates // 16)]:
        lines.append(f"{rate:13.3g}  {rate / theory:15.3g}  {np.median(share):17.3g}  {of_rate.mean():6.0%}")
    lines.append(f"half of them fail from {first_failing_rate(rates, has_failed):.4g} on")
    lines.append(f"2 / largest eigenvalue at the start: {theory:.4g} (median of {len(starts)} starts)")
    best = result.best()
    lines.append(f"lowest loss: {best.loss:.4g}, at the rate {best.values['learning_rate']:.4g}")
    return "\n".join(lines)


def main() -> None:
    """Print the report of each workload."""
    linear, tiny, small = mjn.dense(10, 1), mjn.mlp((2, 2, 1)), mjn.mlp((64, 32, 10))
    workloads = {
        "a linear unit, diabetes": workload(linear, mjn.mean_squared_error, mjn.diabetes()[0], 500),
        "2-2-1, the lesson's points": workload(tiny, mjn.mean_squared_error, mjn.lesson_points(), 1_000),
        "64-32-10, digits": workload(small, mjn.softmax_cross_entropy, mjn.digits()[0], 50),
    }
    for name, work in workloads.items():
        print(report(name, work) + "\n", flush=True)


if __name__ == "__main__":
    main()
