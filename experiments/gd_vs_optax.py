"""Gradient descent beside optimizers of optax: where each gets from the same start, and what its step costs."""

import jax
import jax.numpy as jnp
import optax

import minijaxnet as mjn

STEPS = 1_000

network = mjn.mlp((30, 16, 1), activation=jnp.tanh)
objective = mjn.objective(network, mjn.binary_cross_entropy)
accuracy = mjn.objective(network, mjn.accuracy)

DESCENTS = {
    "gradient descent": mjn.gradient_descent(objective, 0.1),
    "optax.sgd": mjn.optax_descent(objective, optax.sgd(0.1)),
    "optax.sgd, momentum 0.9": mjn.optax_descent(objective, optax.sgd(0.1, momentum=0.9)),
    "optax.adam, rate 0.01": mjn.optax_descent(objective, optax.adam(0.01)),
}


def main() -> None:
    """Print the losses on the way, then the comparison of step times."""
    train, test = mjn.breast_cancer()
    params = network.init(jax.random.key(0))

    print(f"Breast cancer, {STEPS:,} steps from the same start\n")
    print(f"{'loss at step':<24} {0:>8} {10:>8} {100:>8} {STEPS - 1:>8}   test accuracy")
    losses = {}
    for name, descent in DESCENTS.items():
        state, trace = mjn.descend(descent, descent.init(params), train, steps=STEPS)
        row = " ".join(f"{trace.loss[step]:8.4f}" for step in (0, 10, 100, STEPS - 1))
        print(f"{name:<24} {row}   {accuracy(state.params, test):13.1%}")
        losses[name] = trace.loss

    same = int(jnp.sum(losses["optax.sgd"] == losses["gradient descent"]))
    print(f"\nGradient descent and optax.sgd have the same loss, bit for bit, in {same} of {STEPS} steps:")
    print("both take params - learning_rate * gradient. Momentum and Adam are other rules.\n")
    print(mjn.compare_steps(DESCENTS, params, train, baseline="gradient descent", seconds=4.0, same_result=False))


if __name__ == "__main__":
    main()
