"""The baseline network: a forward pass node by node, its error, and a descent to an error of 0.

Two inputs, two hidden nodes, one output, no bias. The lesson changes the weights by hand until the error is 0. Here
gradient descent does it, then starts from a thousand random weights: not all of these descents end at an error of 0.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import minijaxnet as mjn

network = mjn.mlp((2, 2, 1), bias=False)
objective = mjn.objective(network, mjn.mean_squared_error)


class Case(NamedTuple):
    """One point and weights for it: the incoming weights of each node, as the lesson draws them."""

    title: str
    inputs: tuple[float, ...]
    hidden_nodes: tuple[tuple[float, ...], ...]
    output_node: tuple[float, ...]
    actual: float


BASELINE = Case("The baseline network", (2, 3), ((1, 1), (-1, 1)), (2, -1), 13)
CASES = (
    BASELINE,
    BASELINE._replace(title="Better output weights", output_node=(3, -2)),
    Case("Practice 1", (3, 2), ((2, 1), (0, 0)), (2, 2), 5),
    Case("Practice 2", (0, 3), ((2, 1), (1, 2)), (1, 1), 3),
    Case("Practice 2, node 1 changed", (0, 3), ((2, 1), (1, 0)), (1, 1), 3),
)
RATE = 0.003


class Forward(NamedTuple):
    """What a forward pass computes."""

    hidden: tuple[float, ...]
    prediction: float
    error: float


class Descended(NamedTuple):
    """Where a descent started and ended: the weights, and the forward pass of the baseline's point."""

    start: Any
    end: Any
    forward_at_start: Forward
    forward_at_end: Forward
    steps: int
    status: mjn.Status


class ManyEnds(NamedTuple):
    """Where descents from many starts ended: hidden values ``(starts, 2)``, error and status ``(starts,)``."""

    hidden: Any
    errors: Any
    statuses: Any


def params_of(case: Case) -> Any:
    """The network's params. Weights are (n_in, n_out): a node's incoming weights are a column."""
    layers = (case.hidden_nodes, (case.output_node,))
    return tuple({"weights": jnp.asarray(np.array(nodes, float).T)} for nodes in layers)


def batch_of(case: Case) -> mjn.Batch:
    """The case's point, as a batch of one."""
    return mjn.Batch(jnp.asarray([case.inputs], float), jnp.asarray([[case.actual]], float))


def node_by_node(case: Case) -> Forward:
    """The forward pass as the lesson does it: a node multiplies and adds, and a hidden node is at least 0."""

    def node(weights: Sequence[float], values: Sequence[float]) -> float:
        return float(sum(weight * value for weight, value in zip(weights, values, strict=True)))

    hidden = tuple(max(0.0, node(weights, case.inputs)) for weights in case.hidden_nodes)
    prediction = node(case.output_node, hidden)
    return Forward(hidden, prediction, prediction - case.actual)


def as_matrices(params: Any, batch: mjn.Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same pass as the framework does it, one matrix product a layer: hidden values, predictions and errors."""
    hidden = jax.nn.relu(batch.x @ params[0]["weights"])
    predictions = network.apply(params, batch.x)
    return hidden, predictions, mjn.prediction_errors(predictions, batch.y)


def forward(params: Any, batch: mjn.Batch) -> Forward:
    """The forward pass of a batch of one point, by matrix products."""
    hidden, prediction, error = as_matrices(params, batch)
    return Forward(tuple(hidden[0].tolist()), prediction.item(), error.item())


def descend_from_baseline(learning_rate: float = RATE) -> Descended:
    """Take the baseline's weights downhill on the squared error of its one point, until it is flat."""
    start, batch = params_of(BASELINE), batch_of(BASELINE)
    descent = mjn.gradient_descent(objective, learning_rate)
    state, trace = mjn.descend(descent, descent.init(start), batch, steps=1_000, until_flat=1e-3)
    status = mjn.Status(int(trace.status))
    ends = forward(start, batch), forward(state.params, batch)
    return Descended(start, state.params, *ends, int(trace.steps_taken), status)


def descend_from_many(starts: int = 1_000, learning_rate: float = RATE) -> ManyEnds:
    """The same descent from random weights, all starts in one compiled program."""
    batch = batch_of(BASELINE)
    descent = mjn.gradient_descent(objective, learning_rate)

    def run(key: jax.Array) -> ManyEnds:
        state, trace = mjn.descend(descent, descent.init(network.init(key)), batch, steps=1_000, until_flat=1e-3)
        hidden, _, errors = as_matrices(state.params, batch)
        return ManyEnds(hidden[0], errors[0, 0], trace.status)

    ends = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), starts))
    return jax.tree.map(np.asarray, ends)


experiment = mjn.Experiment(
    "baseline_network",
    init=lambda key: params_of(BASELINE),
    objective=objective,
    data=lambda: (batch_of(BASELINE), batch_of(BASELINE)),
    predict=network.apply,
    defaults=mjn.Settings(steps=1_000, learning_rate=RATE, until_flat=1e-3),
)


def main() -> None:
    """Print the lesson, then the descents."""
    for case in CASES:
        result = node_by_node(case)
        print(f"{case.title}: inputs {listed(case.inputs)}, actual {case.actual}")
        for i, (weights, value) in enumerate(zip(case.hidden_nodes, result.hidden, strict=True)):
            print(f"  hidden node {i}   {products(case.inputs, weights)} = {value:g}")
        print(f"  prediction      {products(result.hidden, case.output_node)} = {result.prediction:g}")
        print(f"  error           {result.prediction:g} - {case.actual} = {result.error:g}\n")

    batch, params = batch_of(BASELINE), params_of(BASELINE)
    print("The same as matrix products, a node's incoming weights in a column:")
    result = forward(params, batch)
    into_hidden, into_output = (rows(layer["weights"]) for layer in params)
    print(f"  {listed(batch.x[0])} @ {into_hidden} = {listed(result.hidden)}")
    print(f"  {listed(result.hidden)} @ {into_output} = {listed([result.prediction])}\n")

    found = descend_from_baseline()
    print(f"Gradient descent finds weights with an error of 0, at rate {RATE}:")
    ends = ("start", found.start, found.forward_at_start), ("end", found.end, found.forward_at_end)
    for when, params, result in ends:
        nodes = " and ".join(listed(node) for node in np.asarray(params[0]["weights"]).T)
        print(f"  {when:5}  hidden {nodes}, output {listed(params[1]['weights'].ravel())}")
        print(f"         prediction {result.prediction:.4f}, error {result.error:.2g}")
    print(f"  {found.status.name} after {found.steps} steps\n")

    print("Flat does not mean right. After too long a step both hidden nodes can be 0:")
    print("   rate  steps  status  hidden values     prediction     error")
    for rate in (0.001, RATE, 0.01, 0.02):
        found = descend_from_baseline(rate)
        hidden, prediction, error = found.forward_at_end
        row = f"  {rate:5g}  {found.steps:5}  {found.status.name:6}  {listed(hidden):16}"
        print(f"{row}  {prediction:10.4f}  {error:8.2g}")

    ends = descend_from_many()
    is_flat = ends.statuses == mjn.FLAT
    is_right = np.abs(ends.errors) < 1e-3
    is_zero = np.all(ends.hidden == 0, axis=1)
    print(f"\nFrom {len(ends.errors)} random starts, {is_flat.sum()} end where it is flat:")
    print(f"  {np.sum(is_flat & is_right):4} with an error of 0")
    print(f"  {np.sum(is_flat & is_zero):4} with both hidden nodes at 0, and the error {ends.errors[is_zero][0]:g}")


def listed(numbers: Any) -> str:
    """``[1, 2.5]``."""
    return "[" + ", ".join(f"{float(number):.4g}" for number in numbers) + "]"


def rows(matrix: Any) -> str:
    """``[[1, 2], [3, 4]]``."""
    return "[" + ", ".join(map(listed, matrix)) + "]"


def products(values: Sequence[float], weights: Sequence[float]) -> str:
    """``2 * 1 + 3 * (-1)``."""
    terms = (
        f"{value:g} * {weight:g}" if weight >= 0 else f"{value:g} * ({weight:g})"
        for value, weight in zip(values, weights, strict=True)
    )
    return " + ".join(terms)


if __name__ == "__main__":
    main()
