"""Equinox: a module as the state, with optax. ``filter_jit`` is the usual way, partitioned arrays are the fast one."""

from typing import Any

import equinox as eqx  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp
import optax

from . import Arm, Workload
from .arms import python_loop
from .optax_steps import loss_of
from .raw_jax import on_device, over_copies, scanned


def module(workload: Workload, params: Any) -> Any:
    """Equinox's MLP with the given weights, each transposed as its layers keep them, copies stacked."""
    n_in, *hidden, n_out = workload.sizes

    def make(key: jax.Array) -> Any:
        return eqx.nn.MLP(n_in, n_out, hidden[0], len(hidden), activation=jax.nn.relu, key=key)

    key = jax.random.key(0)
    mlp = make(key) if workload.copies is None else eqx.filter_vmap(make)(jax.random.split(key, workload.copies))
    leaves = [leaf for weights, bias in params for leaf in (jnp.swapaxes(weights, -1, -2), bias)]
    return eqx.tree_at(lambda mlp: [leaf for layer in mlp.layers for leaf in (layer.weight, layer.bias)], mlp, leaves)


def arms(workload: Workload) -> dict[str, Arm]:
    """The documented ``filter_jit`` loop; arrays apart from the rest under ``jax.jit``; and a scan over the arrays."""
    if len(set(workload.sizes[1:-1])) > 1:
        raise ValueError(f"sizes: got {workload.sizes}; expected hidden layers of one width, as eqx.nn.MLP has them")
    params, batch = on_device(workload)
    model = module(workload, params)
    optimizer = optax.sgd(workload.learning_rate)
    loss_function = loss_of(workload.classifies)
    opt_state = optimizer.init(eqx.filter(model, eqx.is_array))
    arrays, static = eqx.partition(model, eqx.is_array)

    def step(model: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any, jax.Array]:
        loss, grads = eqx.filter_value_and_grad(lambda model: loss_function(jax.vmap(model), x, y))(model)
        updates, opt_state = optimizer.update(grads, opt_state)
        return eqx.apply_updates(model, updates), opt_state, loss

    def step_of_arrays(arrays: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any, jax.Array]:
        model, opt_state, loss = step(eqx.combine(arrays, static), opt_state, x, y)
        return eqx.filter(model, eqx.is_array), opt_state, loss

    of_copies = step if workload.copies is None else eqx.filter_vmap(step, in_axes=(eqx.if_array(0), None, None, None))
    step_of_arrays = over_copies(step_of_arrays, workload, n_states=2)
    states = (arrays, opt_state)
    return {
        "Equinox, filter_jit (usual)": Arm(python_loop(eqx.filter_jit(of_copies), lambda: (model, opt_state), batch)),
        "Equinox, partition, jax.jit": Arm(python_loop(jax.jit(step_of_arrays), lambda: states, batch)),
        "Equinox, scan of the arrays": Arm(scanned(step_of_arrays, states, batch), whole=True),
    }
