"""minijaxnet: ``descend``, and its step in a scan and in a Python loop.

Each of its steps also computes the gradient's norm. ``descend`` also keeps it beside the loss, and stops where the
gradient is zero and before a step that is not finite: it does more than the others.
"""

import functools
from typing import Any

import jax

import minijaxnet as mjn

from . import OURS_LOOP, OURS_WHOLE, Arm, Workload
from .raw_jax import on_device, python_loop, scanned


def arms(workload: Workload) -> dict[str, Arm]:
    """``descend`` by autodiff and by hand, and the step alone in both loops."""
    weights, batch = on_device(workload)
    params = tuple({"weights": weights, "bias": bias} for weights, bias in weights)
    loss = mjn.softmax_cross_entropy if workload.classifies else mjn.mean_squared_error
    objective = mjn.objective(mjn.mlp(workload.sizes), loss)
    rule = mjn.mlp_gradient(workload.sizes, activation=jax.nn.relu, loss=loss)
    descent = mjn.gradient_descent(objective, workload.learning_rate)
    by_hand = mjn.gradient_descent(mjn.with_gradient(objective, rule), workload.learning_rate)
    state = descent.init(params)

    def step(state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
        state, info = descent.step(state, mjn.Batch(x, y))
        return state, info.loss

    def descend(descent: mjn.Descent, steps: int) -> Any:
        trace = jax.block_until_ready(mjn.descend(descent, state, batch, steps=steps))[1]
        if trace.steps_taken < steps:
            raise RuntimeError(f"it ended after {trace.steps_taken} of {steps} steps: {mjn.Status(int(trace.status))}")
        return trace.loss

    return {
        OURS_WHOLE: Arm(lambda: functools.partial(descend, descent), whole=True),
        "minijaxnet descend, gradient by hand": Arm(lambda: functools.partial(descend, by_hand), whole=True),
        "minijaxnet, scan of descent.step": Arm(scanned(step, (state,), batch), whole=True),
        OURS_LOOP: Arm(python_loop(jax.jit(step), (state,), batch)),
    }
