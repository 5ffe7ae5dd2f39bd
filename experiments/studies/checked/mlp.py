"""A network of 64-128-10 on all training digits, with the gradient by hand that minijaxnet has of it."""

import jax

import minijaxnet as mjn

SIZES = (64, 128, 10)

loss = mjn.objective(mjn.mlp(SIZES), mjn.softmax_cross_entropy)
value_and_gradient = mjn.mlp_gradient(SIZES, activation=jax.nn.relu, loss=mjn.softmax_cross_entropy)
args = (mjn.mlp(SIZES).init(jax.random.key(0)), mjn.digits()[0])
