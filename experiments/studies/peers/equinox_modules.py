"""Equinox: a module as the state, with optax. ``filter_jit`` is the usual way, a scan over its arrays the fast one."""

from typing import Any

import equinox as eqx  # pyright: ignore[reportMissingImports]
import jax
import optax

from . import Arm, Workload
from .optax_steps import loss_of
from .raw_jax import on_device, python_loop, scanned


def module(workload: Workload, params: Any) -> Any:
    """Equinox's MLP with the given weights, each transposed as its layers keep them."""
    n_in, *hidden, n_out = workload.sizes
    mlp = eqx.nn.MLP(n_in, n_out, hidden[0], len(hidden), activation=jax.nn.relu, key=jax.random.key(0))
    leaves = [leaf for weights, bias in params for leaf in (weights.T, bias)]
    return eqx.tree_at(lambda mlp: [leaf for layer in mlp.layers for leaf in (layer.weight, layer.bias)], mlp, leaves)


def arms(workload: Workload) -> dict[str, Arm]:
    """The documented ``filter_jit`` loop, and a scan over the arrays."""
    params, batch = on_device(workload)
    model = module(workload, params)
    optimizer = optax.sgd(workload.learning_rate)
    loss_function = loss_of(workload)
    opt_state = optimizer.init(eqx.filter(model, eqx.is_array))
    arrays, static = eqx.partition(model, eqx.is_array)

    def step(model: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any, jax.Array]:
        loss, grads = eqx.filter_value_and_grad(lambda model: loss_function(jax.vmap(model), x, y))(model)
        updates, opt_state = optimizer.update(grads, opt_state)
        return eqx.apply_updates(model, updates), opt_state, loss

    def step_of_arrays(arrays: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any, jax.Array]:
        model, opt_state, loss = step(eqx.combine(arrays, static), opt_state, x, y)
        return eqx.filter(model, eqx.is_array), opt_state, loss

    return {
        "Equinox, filter_jit (usual)": Arm(python_loop(eqx.filter_jit(step), (model, opt_state), batch)),
        "Equinox, scan of the arrays": Arm(scanned(step_of_arrays, (arrays, opt_state), batch), whole=True),
    }
