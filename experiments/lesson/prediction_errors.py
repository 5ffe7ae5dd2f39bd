"""Prediction errors: one for each point, one loss for all; and why many points are hard to predict at once.

Four points and two sets of weights, by the lesson. Then descents from a hundred random starts on every choice of one,
two, three and four of the points: how many of them predict all their points?
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import minijaxnet as mjn

network = mjn.mlp((2, 2, 1), output_activation=jax.nn.relu, bias=False)
objective = mjn.objective(network, mjn.mean_squared_error)
points = mjn.lesson_points()


def weights_of(*hidden_nodes: tuple[float, ...], output_node: tuple[float, ...]) -> Any:
    """Params from each node's incoming weights, which become a column."""
    layers = (hidden_nodes, (output_node,))
    return tuple({"weights": jnp.asarray(np.array(nodes, float).T)} for nodes in layers)


WEIGHTS = {
    "A": weights_of((2, 1), (1, 2), output_node=(1, 1)),
    "B": weights_of((2, 1), (1, 1.5), output_node=(1, 1.5)),
}
RIGHT = 1e-3  # a loss below this is called no error
PREDICTED_AND_ACTUAL = ((10, 20), (8, 3), (6, 1))


class Errors(NamedTuple):
    """A prediction, an error and a squared error for each point, ``(points,)`` each; and their mean, the loss."""

    predictions: np.ndarray
    errors: np.ndarray
    squared: np.ndarray
    loss: float


class Choices(NamedTuple):
    """Descents on every choice of some of the points.

    Attributes:
        choices: ``(choices, points)``, 1 where a point is in the choice.
        losses: ``(choices, starts)``, the loss over the chosen points where each descent ended.
        statuses: ``(choices, starts)``.
        params: where each ended, with those two leading axes.
    """

    choices: np.ndarray
    losses: np.ndarray
    statuses: np.ndarray
    params: Any


def errors_of(predictions: Any, actual: Any) -> Errors:
    """All errors, and the mean of their squares."""
    errors = np.ravel(mjn.prediction_errors(predictions, actual))
    return Errors(np.ravel(predictions), errors, errors**2, mjn.mean_squared_error(predictions, actual).item())


def errors_at(params: Any) -> Errors:
    """The errors of the lesson's network at its four points."""
    return errors_of(network.apply(params, points.x), points.y)


def loss_of_chosen(params: Any, batch: Any) -> jax.Array:
    """The mean squared error over the chosen points of ``(x, y, chosen)``."""
    x, y, chosen = batch
    squared = mjn.prediction_errors(network.apply(params, x), y)[:, 0] ** 2
    return jnp.sum(chosen * squared) / jnp.sum(chosen)


def descend_on_choices(starts: int = 100) -> Choices:
    """Descend on each choice of points from each random start, in one compiled program."""
    n = len(points.x)
    subsets = [subset for size in range(1, n + 1) for subset in itertools.combinations(range(n), size)]
    choices = np.array([[i in subset for i in range(n)] for subset in subsets], np.float32)
    descent = mjn.gradient_descent(loss_of_chosen, learning_rate=0.01)

    def run(chosen: Any, key: jax.Array) -> tuple[Any, ...]:
        batch = (*points, chosen)
        state, trace = mjn.descend(descent, descent.init(network.init(key)), batch, steps=4_000, until_flat=1e-2)
        return loss_of_chosen(state.params, batch), trace.status, state.params

    for_all_starts = jax.vmap(run, in_axes=(None, 0))
    for_all_choices = jax.jit(jax.vmap(for_all_starts, in_axes=(0, None)))
    ends = for_all_choices(choices, jax.random.split(jax.random.key(0), starts))
    return Choices(choices, *jax.tree.map(np.asarray, ends))


def best_for_all(found: Choices) -> Any:
    """The params with the lowest loss over all the points, which are the last choice."""
    best = np.argmin(found.losses[-1])
    return jax.tree.map(lambda leaf: leaf[-1, best], found.params)


experiment = mjn.Experiment(
    "prediction_errors",
    init=lambda key: WEIGHTS["A"],
    objective=objective,
    data=lambda: (points, points),
    predict=network.apply,
    defaults=mjn.Settings(steps=4_000, learning_rate=0.01, until_flat=1e-2),
)


def main() -> None:
    """Print the lesson, then the descents."""
    names = [point(x) for x in np.asarray(points.x)]
    print("Four points, two sets of weights (ReLU on the hidden nodes and on the output)\n")
    results = {name: errors_at(params) for name, params in WEIGHTS.items()}
    for name, result in results.items():
        print(f"Weights {name}: hidden nodes {nodes(WEIGHTS[name][0])}, output {nodes(WEIGHTS[name][1])}")
        print_errors(result, names, points.y)
    better = min(results, key=lambda name: results[name].loss)
    n = len(results[better].errors)
    print(f"There are as many errors as points, at any weights: here {n}. The loss is one")
    print(f"number for all of them, and lower is better: weights {better}.\n")

    print("The loss by hand: square each error, add up, divide by how many there are")
    predicted, actual = (np.array(side, float)[:, None] for side in zip(*PREDICTED_AND_ACTUAL, strict=True))
    print_errors(errors_of(predicted, actual), [""] * len(predicted), actual)

    found = descend_on_choices()
    starts = found.losses.shape[1]
    print("The more points, the harder it is to predict them all at once:")
    print(f"descents from {starts} random starts on each choice of the points\n")
    print("  points  choices  descents  without an error  lowest loss of the hardest choice")
    sizes = found.choices.sum(axis=1)
    for size in range(1, len(points.x) + 1):
        losses = found.losses[sizes == size]
        right = losses < RIGHT
        hardest = losses.min(axis=1).max()
        counts = f"{size:8}  {len(losses):7}  {losses.size:8}"
        print(f"{counts}  {right.sum():7} ({right.mean():6.1%})  {hardest:11.4f}")

    print()
    best = best_for_all(found)
    print("The best weights found for all four:")
    print(f"  hidden nodes {nodes(best[0])}, output {nodes(best[1])}")
    print_errors(errors_at(best), names, points.y)


def print_errors(result: Errors, names: list[str], actual: Any) -> None:
    """A row a point, then the total and the mean."""
    print("  point      predicted    actual     error     squared")
    for name, prediction, target, error, squared in zip(
        names, result.predictions, np.ravel(actual), result.errors, result.squared, strict=True
    ):
        print(f"  {name:9}  {prediction:9.4g} {target:9.4g} {error:9.4g} {squared:11.6g}")
    print(f"  {'total':39} {result.squared.sum():12.8g}")
    print(f"  {'mean: the loss':39} {result.loss:12.8g}\n")


def point(x: np.ndarray) -> str:
    """``(0, 3)``."""
    return "(" + ", ".join(f"{value:g}" for value in x.tolist()) + ")"


def nodes(layer: Any) -> str:
    """Each node's incoming weights: ``(2, 1) (1, 2)``."""
    return " ".join(
        "(" + ", ".join(f"{weight:.4g}" for weight in column.tolist()) + ")"
        for column in np.asarray(layer["weights"]).T
    )


if __name__ == "__main__":
    main()
