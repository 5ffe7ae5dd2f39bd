"""Gradient descent beside optax: the same path for the same rule, other paths for other rules, on real data."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import minijaxnet as mjn
from minijaxnet._tables import percent, significant, text_table

LEARNING_RATE = 0.1
STEPS = 1_000

network = mjn.mlp((30, 16, 1), activation=jnp.tanh)
objective = mjn.objective(network, mjn.binary_cross_entropy)
accuracy = mjn.objective(network, mjn.accuracy)

RIVALS = {
    "gradient descent": mjn.gradient_descent(objective, LEARNING_RATE),
    "optax.sgd": mjn.optax_descent(objective, optax.sgd(LEARNING_RATE)),
    "optax.sgd, momentum 0.9": mjn.optax_descent(objective, optax.sgd(LEARNING_RATE, momentum=0.9)),
    "optax.adam, rate 0.01": mjn.optax_descent(objective, optax.adam(0.01)),
}


def paths(rivals: dict[str, mjn.Descent], train: mjn.Batch) -> dict[str, tuple[mjn.DescentState, mjn.Trace]]:
    """Where each rival gets from the same start."""
    params = network.init(jax.random.key(0))
    return {name: mjn.descend(descent, descent.init(params), train, steps=STEPS) for name, descent in rivals.items()}


def distance(params: mjn.DescentState, other: mjn.DescentState) -> float:
    """The largest difference between two sets of parameters."""
    differences = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), params.params, other.params)
    return max(jax.tree.leaves(differences))


def main() -> None:
    """Print where each rival gets, how far it is from gradient descent, and what its step costs."""
    train, test = mjn.breast_cancer()
    ends = paths(RIVALS, train)
    ours = ends["gradient descent"][0]

    print(f"Breast cancer, {STEPS:,} steps from the same start\n")
    rows = [
        (
            name,
            *(significant(trace.loss[step]) for step in (0, 10, 100, STEPS - 1)),
            percent(float(accuracy(state.params, test))),
            f"{distance(state, ours):.1e}",
        )
        for name, (state, trace) in ends.items()
    ]
    columns = ("", "loss at 0", "at 10", "at 100", f"at {STEPS - 1}", "test accuracy", "distance from ours")
    print(text_table(columns, rows))

    same = np.count_nonzero(ends["optax.sgd"][1].loss == ends["gradient descent"][1].loss)
    print(f"\nGradient descent and optax.sgd see the same loss, bit for bit, in {same} of {STEPS} steps:")
    print("the rule is the same, params - learning_rate * slope. Momentum and Adam are other rules.\n")
    print(
        mjn.compare_steps(
            RIVALS,
            network.init(jax.random.key(0)),
            train,
            baseline="gradient descent",
            seconds=4.0,
            same_result=False,
        )
    )


if __name__ == "__main__":
    main()
