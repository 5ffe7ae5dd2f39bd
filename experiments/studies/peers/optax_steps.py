"""optax: its losses and optimizers, the step jitted and called from Python as in its guide, and the same in a scan."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from . import Arm, Workload
from .arms import python_loop
from .raw_jax import on_device, over_copies, predictions, scanned

ADAM_RATE = 1e-3


def loss_of(classifies: bool) -> Callable[..., jax.Array]:
    """``loss(predict, x, y)``, by optax; ``predict(x)`` gives the predictions."""
    if classifies:
        return lambda predict, x, y: optax.softmax_cross_entropy_with_integer_labels(predict(x), y).mean()
    return lambda predict, x, y: optax.squared_error(predict(x), y).mean()


def arms(workload: Workload) -> dict[str, Arm]:
    """SGD and Adam, each in both loops. Adam takes another path: only its time can be compared."""
    params, batch = on_device(workload)
    loss_function = loss_of(workload.classifies)

    def both(name: str, optimizer: optax.GradientTransformation, same_rule: bool) -> dict[str, Arm]:
        def step(params: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any, jax.Array]:
            def loss_at(params: Any) -> jax.Array:
                return loss_function(lambda x: predictions(params, x), x, y)

            loss, grads = jax.value_and_grad(loss_at)(params)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, loss

        step = over_copies(step, workload, n_states=2)
        states = (params, optimizer.init(params) if workload.copies is None else jax.vmap(optimizer.init)(params))
        return {
            f"{name}, jitted step": Arm(python_loop(jax.jit(step), lambda: states, batch), same_rule=same_rule),
            f"{name}, scan": Arm(scanned(step, states, batch), whole=True, same_rule=same_rule),
        }

    return {
        **both("optax SGD", optax.sgd(workload.learning_rate), True),
        **both("optax Adam (another rule)", optax.adam(ADAM_RATE), False),
    }
