"""A network with tanh units tells benign from malignant tumours, by a gradient derived by hand."""

import jax.numpy as jnp

import minijaxnet as mjn

SIZES = (30, 16, 1)

network = mjn.mlp(SIZES, activation=jnp.tanh)

experiment = mjn.Experiment(
    "breast-cancer",
    init=network.init,
    objective=mjn.objective(network, mjn.binary_cross_entropy),
    data=mjn.breast_cancer,
    value_and_gradient=mjn.mlp_gradient(SIZES, activation=jnp.tanh, loss=mjn.binary_cross_entropy),
    predict=network.apply,
    metrics={"accuracy": mjn.objective(network, mjn.accuracy)},
    defaults=mjn.Settings(steps=1_000, learning_rate=0.1),
)
