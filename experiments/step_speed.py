"""What a step costs: descend with all its guards on, beside a bare scan and Python loops of the same step."""

import contextlib
import functools
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peers
from jax import lax
from peers import c_by_hand

import minijaxnet as mjn
from minijaxnet._tables import significant, text_table

SCAN = "bare scan, records nothing"
DESCEND = "descend: history, until flat, guard"
BY_HAND = "descend, gradient by hand"
EPOCHS = "descend_epochs, a new order each epoch"
LOOP = "jitted step, Python loop"


class Workload(NamedTuple):
    """A network, its loss and one batch, and how many steps to time at once in a compiled loop and in Python.

    ``data`` is what minibatches of the batch's size are drawn from, if there are any.
    """

    objective: Callable[..., Any]
    by_hand: Callable[..., Any]
    params: Any
    batch: mjn.Batch
    steps: int
    python_steps: int
    learning_rate: float
    data: mjn.Batch | None = None


def lesson(*, bias: bool = False) -> Workload:
    """2-2-1 on the four points of the lesson; so small a rate that no slope ever vanishes."""
    sizes, loss = (2, 2, 1), mjn.mean_squared_error
    network = mjn.mlp(sizes, bias=bias)
    by_hand = mjn.mlp_gradient(sizes, activation=jax.nn.relu, loss=loss, bias=bias)
    params = network.init(jax.random.key(0))
    return Workload(mjn.objective(network, loss), by_hand, params, mjn.lesson_points(), 1_000_000, 2_000, 1e-7)


def classifier(sizes: tuple[int, ...], batch: mjn.Batch, steps: int, python_steps: int, data: Any = None) -> Workload:
    """A softmax classifier."""
    network, loss = mjn.mlp(sizes), mjn.softmax_cross_entropy
    by_hand = mjn.mlp_gradient(sizes, activation=jax.nn.relu, loss=loss)
    params = network.init(jax.random.key(0))
    return Workload(mjn.objective(network, loss), by_hand, params, batch, steps, python_steps, 1e-3, data)


def random_points(n_in: int, points: int = 256, classes: int = 10) -> mjn.Batch:
    """Points and classes, drawn."""
    x_key, y_key = jax.random.split(jax.random.key(1))
    return mjn.Batch(jax.random.normal(x_key, (points, n_in)), jax.random.randint(y_key, (points,), 0, classes))


def digits_in_minibatches() -> Workload:
    """Digits: a step sees 128 points, the same ones or an epoch's next ones; 11 steps an epoch."""
    train, _ = mjn.digits()
    return classifier((64, 128, 10), jax.tree.map(lambda leaf: leaf[:128], train), 1_100, 500, data=train)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "2-2-1, batch 4": lesson,
    "2-2-1 with bias, batch 4": lambda: lesson(bias=True),
    "64-128-10, batch 128": digits_in_minibatches,
    "64-256-256-10, batch 256": lambda: classifier((64, 256, 256, 10), random_points(64), 200, 100),
    "1024-1024-1024-10, batch 256": lambda: classifier((1024, 1024, 1024, 10), random_points(1024), 16, 8),
}


def arms(work: Workload) -> dict[str, tuple[Callable[[int], Any], int]]:
    """``{name: (run, steps)}``: ``run(n)`` takes n steps from the start and returns what it computed.

    The batch and the rate are arguments of every program: captured, they would be folded into it as constants.
    """
    f, rate = work.objective, jnp.float32(work.learning_rate)
    descent = mjn.gradient_descent(f, work.learning_rate)
    by_hand = mjn.gradient_descent(mjn.with_gradient(f, work.by_hand), work.learning_rate)
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

    def epochs(descent: mjn.Descent, steps: int) -> Any:
        size = len(work.batch.x)
        count = steps // (len(work.data.x) // size) if work.data else 0
        return mjn.descend_epochs(descent, start, work.data, jax.random.key(0), batch_size=size, epochs=count)

    minibatches = {
        EPOCHS: (lambda steps: epochs(descent, steps), work.steps),
        f"{EPOCHS}, by hand": (lambda steps: epochs(by_hand, steps), work.steps),
    }
    return {
        SCAN: (lambda steps: bare_scan(work.params, work.batch, rate, steps), work.steps),
        DESCEND: (lambda steps: mjn.descend(descent, start, work.batch, steps=steps), work.steps),
        BY_HAND: (lambda steps: mjn.descend(by_hand, start, work.batch, steps=steps), work.steps),
        **(minibatches if work.data else {}),
        LOOP: (python_loop, work.python_steps),
        "jitted optax.sgd step, Python loop": (optax_loop, work.python_steps),
    }


def copies(count: int) -> dict[str, Callable[[int], Any]]:
    """``{name: run}`` as above, for so many copies of the lesson's network at once, each from its own start."""
    work = lesson()
    rate, f = jnp.float32(work.learning_rate), work.objective
    descent = mjn.gradient_descent(f, work.learning_rate)
    keys = jax.random.split(jax.random.key(0), count)
    init = mjn.mlp((2, 2, 1), bias=False).init
    starts = jax.vmap(init)(keys)

    @functools.partial(jax.jit, static_argnames="steps")
    def scans(starts: Any, batch: Any, rate: Any, steps: int) -> Any:
        def step(params: Any, _: None) -> Any:
            slopes = jax.grad(f)(params, batch)
            return jax.tree.map(lambda weight, slope: weight - rate * slope, params, slopes), None

        return jax.vmap(lambda params: lax.scan(step, params, None, length=steps)[0])(starts)

    @functools.partial(jax.jit, static_argnames="steps")
    def descents(starts: Any, batch: Any, steps: int) -> Any:
        return jax.vmap(lambda params: mjn.descend(descent, descent.init(params), batch, steps=steps))(starts)

    @functools.cache
    def run_of(steps: int) -> Callable[..., Any]:
        return lambda key: mjn.descend(descent, descent.init(init(key)), work.batch, steps=steps)[1]

    in_c = {}
    with contextlib.suppress(ImportError):  # no compiler
        made = c_by_hand.arms(peers.Workload((2, 2, 1), 4, work.learning_rate, copies=count))
        in_c = {name: arm.start() for name, arm in made.items()} if isinstance(made, dict) else {}
    return {
        "bare scans under vmap, record nothing": lambda steps: scans(starts, work.batch, rate, steps),
        "descend under vmap": lambda steps: descents(starts, work.batch, steps),
        "sweep, a block a core": lambda steps: mjn.sweep(run_of(steps), {"key": keys}),
        **in_c,
    }


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
            significant(1e6 * float(np.median(values))),
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

    for count in (1_000, 4_000):
        runs, steps = copies(count), 4_000
        taken = {name: [] for name in runs}
        for _ in range(1 + max(3, rounds // 2)):
            for name, run in runs.items():
                taken[name].append(1e9 * step_seconds(run, steps) / count)
        rows = [
            (name, significant(float(np.median(nanoseconds[1:]))), significant(min(nanoseconds[1:])))
            for name, nanoseconds in taken.items()
        ]
        print(text_table((f"{count:,} copies of 2-2-1", "ns a network and step", "fastest"), rows))


if __name__ == "__main__":
    main()
