"""minijaxnet: ``descend``, and its step in loops of other people's.

Each of its steps also computes the gradient's norm, and ``descend`` keeps it beside the loss, stops where the slope
vanishes and before a step that is not finite: more than the others do.
"""

import functools
from typing import Any

import jax

import minijaxnet as mjn

from . import OURS_LOOP, OURS_WHOLE, Arm, Run, Workload
from .arms import python_loop
from .raw_jax import on_device, over_copies, scanned


def arms(workload: Workload) -> dict[str, Arm]:
    """``descend``, a bare scan of the step that ``compare_steps`` times, and the step called from Python."""
    weights, batch = on_device(workload)
    params = tuple({"weights": weights, "bias": bias} for weights, bias in weights)
    loss = mjn.softmax_cross_entropy if workload.classifies else mjn.mean_squared_error
    objective = mjn.objective(mjn.mlp(workload.sizes), loss)
    rule = mjn.mlp_gradient(workload.sizes, activation=jax.nn.relu, loss=loss)
    descent = mjn.gradient_descent(objective, workload.learning_rate)
    by_hand = mjn.gradient_descent(mjn.with_gradient(objective, rule), workload.learning_rate)
    state = descent.init(params) if workload.copies is None else jax.vmap(descent.init)(params)

    def step(state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
        state, info = descent.step(state, mjn.Batch(x, y))
        return state, info.loss

    @functools.partial(jax.jit, static_argnames=("descent", "steps"))
    def descend_copies(descent: mjn.Descent, params: Any, batch: Any, steps: int) -> Any:
        return jax.vmap(lambda params: mjn.descend(descent, descent.init(params), batch, steps=steps))(params)

    def descend(descent: mjn.Descent, steps: int) -> Any:
        if workload.copies is not None:
            return jax.block_until_ready(descend_copies(descent, params, batch, steps))[1].loss.T
        trace = jax.block_until_ready(mjn.descend(descent, state, batch, steps=steps))[1]
        if trace.steps_taken < steps:
            raise RuntimeError(f"it ended after {trace.steps_taken} of {steps} steps: {mjn.Status(int(trace.status))}")
        return trace.loss

    def whole(descent: mjn.Descent) -> Arm:
        def start() -> Run:
            return functools.partial(descend, descent)

        return Arm(start, whole=True)

    step = over_copies(step, workload)
    return {
        OURS_WHOLE: whole(descent),
        "minijaxnet descend, gradient by hand": whole(by_hand),
        "minijaxnet, scan of descent.step": Arm(scanned(step, (state,), batch), whole=True),
        OURS_LOOP: Arm(python_loop(jax.jit(step), lambda: (state,), batch)),
    }
