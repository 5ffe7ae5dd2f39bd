"""Steps and the shapes of their states and batches: nothing here needs numbers to run on."""

import jax
import jax.numpy as jnp

import minijaxnet as mjn


def step_of(network, n_in, n_out, batch_size, *, dtype=jnp.float32, objective=None, descent=mjn.gradient_descent):
    """A step, and the shapes of its state and batch: nothing here needs numbers to run on."""
    objective = objective or mjn.objective(network, mjn.mean_squared_error)
    made = descent(objective, 0.1)
    state = jax.eval_shape(lambda key: made.init(network.init(key)), jax.random.key(0))
    return made.step, state, tuple(jax.ShapeDtypeStruct((batch_size, n), dtype) for n in (n_in, n_out))


def mlp_step(sizes, batch_size, *, by_hand=False, dtype=jnp.float32, **options):
    network = mjn.mlp(sizes, dtype=dtype)
    objective = mjn.objective(network, mjn.mean_squared_error)
    if by_hand:
        rule = mjn.mlp_gradient(sizes, activation=jax.nn.relu, loss=mjn.mean_squared_error)
        objective = mjn.with_gradient(objective, rule)
    return step_of(network, sizes[0], sizes[-1], batch_size, dtype=dtype, objective=objective, **options)
