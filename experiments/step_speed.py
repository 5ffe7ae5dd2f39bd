"""What a step costs: descend with all its guards on, beside a bare scan and Python loops of the same step."""

import functools
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import minijaxnet as mjn
from minijaxnet.tables import figure, text_table

SCAN = "bare scan, records nothing"
DESCEND = "descend: history, until flat, guard"
LOOP = "jitted step, Python loop"


class Workload(NamedTuple):
    """A network, its loss and one batch, and how many steps to time at once in a compiled loop and in Python."""

    objective: Callable[..., Any]
    params: Any
    batch: Any
    steps: int
    python_steps: int
    learning_rate: float


def lesson(*, bias: bool = False) -> Workload:
    """2-2-1 on the four points of the lesson; so small a rate that no slope ever vanishes."""
    network = mjn.mlp((2, 2, 1), bias=bias)
    objective = mjn.objective(network, mjn.mean_squared_error)
    return Workload(objective, network.init(jax.random.key(0)), mjn.lesson_points(), 1_000_000, 2_000, 1e-7)


def classifier(sizes: tuple[int, ...], points: int, steps: int, python_steps: int) -> Workload:
    """A softmax classifier on random points."""
    network = mjn.mlp(sizes)
    x_key, y_key, key = jax.random.split(jax.random.key(0), 3)
    batch = mjn.Batch(jax.random.normal(x_key, (points, sizes[0])), jax.random.randint(y_key, (points,), 0, sizes[-1]))
    objective = mjn.objective(network, mjn.softmax_cross_entropy)
    return Workload(objective, network.init(key), batch, steps, python_steps, 1e-3)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "2-2-1, batch 4": lesson,
    "2-2-1 with bias, batch 4": lambda: lesson(bias=True),
    "64-128-10, batch 128": lambda: classifier((64, 128, 10), 128, 1_000, 500),
    "1024-1024-1024-10, batch 256": lambda: classifier((1024, 1024, 1024, 10), 256, 16, 8),
}


def arms(work: Workload) -> dict[str, tuple[Callable[[int], Any], int]]:
    """``{name: (run, steps)}``: ``run(n)`` takes n steps from the start and returns what it computed.

    The batch and the rate are arguments of every program: captured, they would be folded into it as constants.
    """
    f, rate = work.objective, jnp.float32(work.learning_rate)
    descent = mjn.gradient_descent(f, work.learning_rate)
    start = descent.init(work.params)
    optimizer = optax.sgd(work.learning_rate)

    def step(params: Any, batch: Any, rate: Any) -> Any:
        return jax.tree.map(lambda weight, slope: weight - rate * slope, params, jax.grad(f)(params, batch))

    @functools.partial(jax.jit, static_argnames="steps")
    def bare_scan(params: Any, batch: Any, rate: Any, steps: int) -> Any:
        return lax.scan(lambda params, _: (step(params, batch, rate), None), params, None, length=steps)[0]

    @jax.jit
    def optax_step(params: Any, state: Any, batch: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(f)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    jitted_step = jax.jit(step)

    def python_loop(steps: int) -> Any:
        params = work.params
        for _ in range(steps):
            params = jitted_step(params, work.batch, rate)
        return params

    def optax_loop(steps: int) -> Any:
        params, state = work.params, optimizer.init(work.params)
        for _ in range(steps):
            params, state = optax_step(params, state, work.batch)
        return params

    return {
        SCAN: (lambda steps: bare_scan(work.params, work.batch, rate, steps), work.steps),
        DESCEND: (lambda steps: mjn.descend(descent, start, work.batch, steps=steps), work.steps),
        LOOP: (python_loop, work.python_steps),
        "jitted optax.sgd step, Python loop": (optax_loop, work.python_steps),
    }


def replicas(steps: int, count: int = 1_000) -> Callable[[], Any]:
    """A run of so many copies of the lesson's network at once, each from its own start."""
    network = mjn.mlp((2, 2, 1), bias=False)
    descent = mjn.gradient_descent(mjn.objective(network, mjn.mean_squared_error), 1e-7)
    starts = jax.vmap(network.init)(jax.random.split(jax.random.key(0), count))

    @jax.jit
    def run(starts: Any, batch: Any) -> Any:
        return jax.vmap(lambda params: mjn.descend(descent, descent.init(params), batch, steps=steps))(starts)

    return lambda: run(starts, mjn.lesson_points())


def seconds(run: Callable[[], Any]) -> float:
    """How long a run takes until all it computed is there."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def step_seconds(run: Callable[[int], Any], steps: int) -> float:
    """Seconds a step: the slope between a short run and a long one, in which the costs of a call cancel."""
    short = steps // 4
    return (seconds(lambda: run(steps)) - seconds(lambda: run(short))) / (steps - short)


def measure(work: Workload, rounds: int) -> dict[str, np.ndarray]:
    """Seconds a step of each arm, a row a round; all arms in turn within a round, in a new order each time."""
    runs, draw = arms(work), np.random.default_rng(0)
    for run, steps in runs.values():
        step_seconds(run, steps)  # compiles
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name in draw.permutation(list(runs)):
            samples[name].append(step_seconds(*runs[name]))
    return {name: np.array(values) for name, values in samples.items()}


def show(name: str, samples: dict[str, np.ndarray]) -> None:
    """Print a workload's arms: median microseconds, and the median of the rounds' ratios to the bare scan."""
    rows = [
        (
            arm,
            figure(1e6 * float(np.median(values))),
            f"{np.median(values / samples[SCAN]):.3f}",
            f"{np.quantile(values / samples[SCAN], 0.25):.3f} to {np.quantile(values / samples[SCAN], 0.75):.3f}",
        )
        for arm, values in samples.items()
    ]
    print(text_table((name, "us a step", "times scan", "middle half"), rows))
    print(
        f"descend is {np.median(samples[LOOP] / samples[DESCEND]):.1f} times as fast as the Python loop\n", flush=True
    )


def main() -> None:
    """Print a table a workload, then the replicas; ``--rounds N`` sets how often each arm is timed."""
    rounds = int(sys.argv[sys.argv.index("--rounds") + 1]) if "--rounds" in sys.argv else 25
    for name, workload in WORKLOADS.items():
        show(name, measure(workload(), rounds))

    counts = (250, 1_000, 4_000)
    runs = {steps: replicas(steps) for steps in counts}
    for run in runs.values():
        seconds(run)
    rows = []
    for steps, run in runs.items():
        taken = [seconds(run) / (1_000 * steps) for _ in range(max(3, rounds // 2))]
        rows.append((f"{steps:,} steps", figure(1e9 * float(np.median(taken))), figure(1e9 * min(taken))))
    print(text_table(("1,000 copies of 2-2-1 under vmap", "ns a network and step", "fastest"), rows))


if __name__ == "__main__":
    main()
