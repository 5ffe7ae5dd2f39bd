"""From an empty process to the end of the first 1,000 steps on digits: seconds of imports, data and compilation.

    python experiments/studies/first_steps.py --rounds 5

Each row is a new process, with nothing compiled, or with JAX's cache of compiled programs on disk from an earlier one.
The network is 64-128-10, its batch all training points, its learning rate 0.1.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minijaxnet._tables import text_table

SIZES, STEPS, RATE = (64, 128, 10), 1_000, 0.1
STAGES = ("start and imports", "data", "weights", "first 1,000 steps", "the next 1,000")


def ours() -> Iterator[None]:
    """minijaxnet's ``descend``."""
    import jax

    import minijaxnet as mjn

    yield
    train, _ = mjn.digits()
    yield
    network = mjn.mlp(SIZES)
    descent = mjn.gradient_descent(mjn.objective(network, mjn.softmax_cross_entropy), RATE)
    state = jax.block_until_ready(descent.init(network.init(jax.random.key(0))))
    yield
    for _ in range(2):
        jax.block_until_ready(mjn.descend(descent, state, train, steps=STEPS))
        yield


def raw_jax() -> Iterator[None]:
    """JAX alone, its steps in one ``lax.scan`` that records the loss."""
    import jax
    import jax.numpy as jnp
    from jax import lax
    from sklearn.datasets import load_digits

    yield
    x, y = load_digits(return_X_y=True)
    x, y = jnp.asarray(x[:1438] / 16, jnp.float32), jnp.asarray(y[:1438])
    yield
    start = jax.nn.initializers.he_normal()
    keys = jax.random.split(jax.random.key(0), len(SIZES) - 1)
    shapes = zip(keys, itertools.pairwise(SIZES), strict=True)
    params = jax.block_until_ready([(start(key, shape), jnp.zeros(shape[1])) for key, shape in shapes])
    yield

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        (first, first_bias), (last, last_bias) = params
        logits = jax.nn.relu(x @ first + first_bias) @ last + last_bias
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=-1))

    @jax.jit
    def run(params: Any, x: jax.Array, y: jax.Array) -> Any:
        def step(params: Any, _: None) -> tuple[Any, jax.Array]:
            value, gradient = jax.value_and_grad(loss)(params, x, y)
            return jax.tree.map(lambda weight, slope: weight - RATE * slope, params, gradient), value

        return lax.scan(step, params, None, length=STEPS)

    for _ in range(2):
        jax.block_until_ready(run(params, x, y))
        yield


TOOLS: dict[str, Callable[[], Iterator[None]]] = {"minijaxnet": ours, "raw lax.scan": raw_jax}


def stages_of(tool: str, cache: Path | None) -> np.ndarray:
    """Seconds of each stage, in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    if cache is not None:
        environment |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    before = time.time()
    command = [sys.executable, __file__, "--child", tool]
    out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return np.diff([before, *json.loads(out.splitlines()[-1])])


def main() -> None:
    """Print a table: a row for each tool without the cache and with it, medians over the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each process is started")
    parser.add_argument("--child", choices=TOOLS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps([time.time() for _ in TOOLS[options.child]()]))
        return
    with tempfile.TemporaryDirectory() as folder:
        arms = [(tool, cache) for cache in (None, Path(folder)) for tool in TOOLS]
        for tool in TOOLS:
            stages_of(tool, Path(folder))  # fills the cache
        rounds = [[stages_of(tool, cache) for tool, cache in arms] for _ in range(options.rounds)]
    rows = []
    for (tool, cache), seconds in zip(arms, np.median(rounds, axis=0), strict=True):
        stages = [f"{value:.2f}" for value in seconds]
        rows.append((f"{tool}, cached" if cache else tool, *stages, f"{seconds[:-1].sum():.2f}"))
    print(text_table(("seconds", *STAGES, "until the first 1,000"), rows))


if __name__ == "__main__":
    main()
