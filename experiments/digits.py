"""A network learns handwritten digits, by a gradient derived by hand."""

import jax
import jax.numpy as jnp

import minijaxnet as mjn

SIZES = (64, 512, 10)
WEIGHT_DECAY = 0.003

network = mjn.mlp(SIZES)
cross_entropy = mjn.objective(network, mjn.softmax_cross_entropy)
backprop = mjn.mlp_gradient(SIZES, activation=jax.nn.relu, loss=mjn.softmax_cross_entropy)


def objective(params, batch):
    """The cross-entropy, and a price on large weights: ``L = CE + decay * sum(W^2)``."""
    return cross_entropy(params, batch) + WEIGHT_DECAY * sum(jnp.sum(layer["weights"] ** 2) for layer in params)


def value_and_gradient(params, batch):
    """Backpropagation, and the slope of the price: ``dL/dW = dCE/dW + 2 * decay * W``."""
    loss, gradient = backprop(params, batch)
    price = WEIGHT_DECAY * sum(jnp.sum(layer["weights"] ** 2) for layer in params)
    for slopes, layer in zip(gradient, params, strict=True):
        slopes["weights"] += 2 * WEIGHT_DECAY * layer["weights"]
    return loss + price, gradient


experiment = mjn.Experiment(
    "digits",
    init=network.init,
    objective=objective,
    data=mjn.digits,
    value_and_gradient=value_and_gradient,
    predict=network.apply,
    metrics={"accuracy": mjn.objective(network, mjn.accuracy)},
    defaults=mjn.Settings(steps=1_500, learning_rate=0.1, batch_size=32),
)
