"""A network learns handwritten digits, by a gradient derived by hand."""

import jax

import minijaxnet as mjn

SIZES = (64, 128, 10)

network = mjn.mlp(SIZES)

experiment = mjn.Experiment(
    "digits",
    init=network.init,
    objective=mjn.objective(network, mjn.softmax_cross_entropy),
    data=mjn.digits,
    value_and_gradient=mjn.mlp_gradient(SIZES, activation=jax.nn.relu, loss=mjn.softmax_cross_entropy),
    predict=network.apply,
    metrics={"accuracy": mjn.objective(network, mjn.accuracy)},
    defaults=mjn.Settings(steps=2_000, learning_rate=0.5, batch_size=64),
)
