"""A network learns handwritten digits, by a gradient derived by hand."""

import jax
import jax.numpy as jnp

import minijaxnet as mjn

SIZES = (64, 512, 10)
WEIGHT_DECAY = 0.003

network = mjn.mlp(SIZES)
cross_entropy = mjn.objective(network, mjn.softmax_cross_entropy)
backprop = mjn.mlp_gradient(SIZES, activation=jax.nn.relu, loss=mjn.softmax_cross_entropy)


def penalty(params):
    """A price on large weights: ``decay * sum(W^2)``."""
    return WEIGHT_DECAY * sum(jnp.sum(layer["weights"] ** 2) for layer in params)


def objective(params, batch):
    """``L = CE + decay * sum(W^2)``."""
    return cross_entropy(params, batch) + penalty(params)


def value_and_gradient(params, batch):
    """The loss, and its gradient by hand: ``dL/dW = dCE/dW + 2 * decay * W``."""
    loss, gradient = backprop(params, batch)
    for layer_gradient, layer in zip(gradient, params, strict=True):
        layer_gradient["weights"] += 2 * WEIGHT_DECAY * layer["weights"]
    return loss + penalty(params), gradient


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
