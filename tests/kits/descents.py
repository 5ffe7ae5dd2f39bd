"""Small descents, and what is looked at in them."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import minijaxnet as mjn

POINTS = mjn.Batch(np.float32([(0, 3), (1, 2), (-1, -2), (4, 0)]), np.float32([(1,), (3,), (5,), (7,)]))
NETWORK = mjn.mlp((2, 4, 1), activation=jnp.tanh)
OBJECTIVE = mjn.objective(NETWORK, mjn.mean_squared_error)
PARAMS = tuple(
    {
        "weights": np.random.default_rng(n_in).normal(size=(n_in, n_out)).astype(np.float32),
        "bias": np.zeros(n_out, np.float32),
    }
    for n_in, n_out in ((2, 4), (4, 1))
)


def squared_distance(weight: Any, target: Any) -> Any:
    return jnp.sum(jnp.square(weight - target))


def bowl(weight: Any, target: Any) -> Any:
    return squared_distance(weight, target), weight


def halving() -> mjn.Descent:
    """Each step halves the distance to the target, without rounding; the gradient is twice the distance."""
    return mjn.gradient_descent(bowl, 0.25, has_aux=True)


def descend_from(params: Any, rate: Any, objective: Any = OBJECTIVE, batch: Any = POINTS, **options: Any) -> Any:
    descent = mjn.gradient_descent(objective, rate)
    return mjn.descend(descent, descent.init(params), batch, **options)


def as_in(dtype: Any, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), tree)


class Traced:
    """A function that counts how often it is traced."""

    def __init__(self, function: Any):
        self.function, self.times = function, 0

    def __call__(self, *arguments: Any) -> Any:
        self.times += 1
        return self.function(*arguments)


@contextlib.contextmanager
def compilations() -> Iterator[list[Any]]:
    """The names of the programs that XLA compiles meanwhile."""
    names = []

    def listen(event, duration, **details):
        if event.endswith("backend_compile_duration"):
            names.append(details.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
