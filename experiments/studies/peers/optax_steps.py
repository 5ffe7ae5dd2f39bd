"""optax: its losses and optimizers, the step jitted and called from Python as in its guide, and the same in a scan."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from . import Arm, Workload
from .raw_jax import on_device, predictions, python_loop, scanned


def loss_of(workload: Workload) -> Callable[..., jax.Array]:
    """``loss(predict, x, y)``, by optax; ``predict(x)`` gives the predictions."""
    if workload.classifies:
        return lambda predict, x, y: optax.softmax_cross_entropy_with_integer_labels(predict(x), y).mean()
    return lambda predict, x, y: optax.squared_error(predict(x), y).mean()


def arms(workload: Workload) -> dict[str, Arm]:
    """SGD and Adam, each in both loops. Adam is another rule: only its time can be compared."""
    params, batch = on_device(workload)
    loss_function = loss_of(workload)
    found = {}
    for name, optimizer, same_rule in (
        ("optax SGD", optax.sgd(workload.learning_rate), True),
        ("optax Adam (another rule)", optax.adam(1e-3), False),
    ):

        def step(params: Any, state: Any, x: jax.Array, y: jax.Array, optimizer: Any = optimizer) -> tuple[Any, ...]:
            def loss_at(params: Any) -> jax.Array:
                return loss_function(lambda x: predictions(params, x), x, y)

            loss, grads = jax.value_and_grad(loss_at)(params)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state, loss

        states = (params, optimizer.init(params))
        found[f"{name}, jitted step"] = Arm(python_loop(jax.jit(step), states, batch), same_rule=same_rule)
        found[f"{name}, scan"] = Arm(scanned(step, states, batch), whole=True, same_rule=same_rule)
    return found
