"""A single weight: the bowl Loss(w), the stops of a descent in it, and how large the learning rate may be.

A linear unit with one input: the error is ``w * input - actual``, the loss its square, a bowl over w. At each stop the
slope says which way is down, and the step is the learning rate times the slope, so steps shorten as the bowl flattens.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import minijaxnet as mjn
from minijaxnet.landscape import LossSlice, loss_slice

WEIGHT, INPUT, ACTUAL, RATE = 2.0, 3.0, 10.0, 0.01
LOWEST = ACTUAL / INPUT
TWO_WEIGHTS, TWO_INPUTS, TWO_ACTUAL = (1.0, 2.0), (3.0, 4.0), 6.0

batch = mjn.Batch(jnp.array([INPUT]), jnp.array([ACTUAL]))


def loss(weight: Any, batch: Any) -> jax.Array:
    """``Loss(w) = mean((w * input - actual)^2)``."""
    x, actual = batch
    return mjn.mean_squared_error(weight * x, actual)


def loss_and_weight(weight: Any, batch: Any) -> tuple[jax.Array, Any]:
    """The loss, and the weight beside it, so that the trace records every stop."""
    return loss(weight, batch), weight


losses_and_slopes = jax.jit(jax.vmap(jax.value_and_grad(loss), in_axes=(0, None)))
second_derivative = jax.jit(jax.grad(jax.grad(loss)))


class Stops(NamedTuple):
    """A descent: weight, loss, slope and the step to the next stop, ``(stops,)`` each; and how it ended."""

    weights: np.ndarray
    losses: np.ndarray
    slopes: np.ndarray
    steps: np.ndarray
    status: mjn.Status


class Rates(NamedTuple):
    """What each learning rate does, ``(rates,)`` each.

    The slope is ``curvature * (w - lowest)``, so by theory a step multiplies the distance from the lowest point by
    ``1 - rate * curvature``: it shrinks for rates below ``2 / curvature``.
    """

    rates: np.ndarray
    factors_by_theory: np.ndarray
    factors: np.ndarray
    steps_taken: np.ndarray
    statuses: np.ndarray
    last_losses: np.ndarray


class TwoWeights(NamedTuple):
    """One step of a unit with two weights."""

    error: float
    slope: np.ndarray
    new_weights: np.ndarray
    new_error: float


def stops_of(learning_rate: float = RATE, *, until_flat: float = 0.1) -> Stops:
    """Descend from the lesson's weight until it is flat, and record every stop, the last included."""
    descent = mjn.gradient_descent(loss_and_weight, learning_rate, has_aux=True)
    state, trace = mjn.descend(descent, descent.init(WEIGHT), batch, steps=1_000, until_flat=until_flat)
    weights = np.append(trace.aux[: trace.steps_taken], state.params)
    losses, slopes = map(np.asarray, losses_and_slopes(weights, batch))
    return Stops(weights, losses, slopes, -learning_rate * slopes, mjn.Status(int(trace.status)))


def curvature() -> float:
    """The second derivative of the loss, the same everywhere in this bowl."""
    return second_derivative(WEIGHT, batch).item()


def bowl() -> LossSlice:
    """The loss up to a weight of 2 on either side of the lowest."""
    return loss_slice(loss, LOWEST, batch, direction=1.0, span=2.0, points=63)


def descend_at(rates: Any) -> Rates:
    """The same descent at each of the rates, in one compiled program."""

    def run(rate: jax.Array) -> tuple[jax.Array, ...]:
        descent = mjn.gradient_descent(loss, rate)
        start = descent.init(WEIGHT)
        after_one, _ = descent.step(start, batch)
        factor = (after_one.params - LOWEST) / (start.params - LOWEST)
        state, trace = mjn.descend(descent, start, batch, steps=1_000, until_flat=1e-3)
        return factor, trace.steps_taken, trace.status, loss(state.params, batch)

    rates = np.asarray(rates, np.float32)
    measured = jax.jit(jax.vmap(run))(rates)
    return Rates(rates, 1 - rates * curvature(), *map(np.asarray, measured))


def largest_rate() -> float:
    """The largest rate at which the descent ends lower than it started, to a thousandth of ``2 / curvature``."""
    tried = descend_at(2 / curvature() * np.linspace(0.5, 1.5, 1_001))
    gets_lower = tried.last_losses < loss(WEIGHT, batch).item()
    return tried.rates[gets_lower].max().item()


def two_weights() -> TwoWeights:
    """The lesson's linear unit with two inputs: its error and slope, and one step."""
    unit = mjn.mlp((2, 1), bias=False)
    point = mjn.Batch(jnp.array([TWO_INPUTS]), jnp.array([[TWO_ACTUAL]]))
    objective = mjn.objective(unit, mjn.mean_squared_error)
    params = ({"weights": jnp.array(TWO_WEIGHTS)[:, None]},)
    descent = mjn.gradient_descent(objective, RATE)
    state, _ = descent.step(descent.init(params), point)
    before, after = (
        mjn.prediction_errors(unit.apply(weights, point.x), point.y).item() for weights in (params, state.params)
    )
    slope, new_weights = (
        np.asarray(tree[0]["weights"]).ravel() for tree in (jax.grad(objective)(params, point), state.params)
    )
    return TwoWeights(before, slope, new_weights, after)


def init(key: jax.Array, *, weight: float = WEIGHT) -> jax.Array:
    """The lesson's weight, or another."""
    return jnp.asarray(weight, float)


experiment = mjn.Experiment(
    "single_weight",
    init=init,
    objective=loss,
    data=lambda: (batch, batch),
    predict=lambda weight, x: weight * x,
    defaults=mjn.Settings(steps=1_000, learning_rate=RATE, until_flat=1e-3),
)


def main() -> None:
    """Print the stops, the bowl with the stops on it, and what the rate decides."""
    stops = stops_of()
    print(f"Loss(w) = (w * {INPUT:g} - {ACTUAL:g})^2, from w = {WEIGHT:g} at rate {RATE:g}\n")
    print("  stop    weight       loss      slope       step")
    last = len(stops.weights) - 1
    for i, (weight, height, slope, step) in enumerate(zip(*stops[:4], strict=True)):
        to_next = f"{step:+10.5f}" if i < last else f"{stops.status.name:>10}"
        print(f"  {i:4}  {weight:8.5f}  {height:9.5f}  {slope:9.5f} {to_next}")

    print(f"\nThe stops in the bowl, lowest at w = {LOWEST:.4f}:\n")
    print(picture(bowl(), stops))
    overshooting = stops_of(0.1)
    print(f"\nThe same at rate 0.1: each step goes too far, and still ends {overshooting.status.name}:\n")
    print(picture(bowl(), overshooting))

    limit = 2 / curvature()
    print("\nHow large may the rate be? A step takes the distance times 1 - rate * curvature.")
    print(f"The curvature is {curvature():g}: the distance shrinks at rates below 2 / curvature = {limit:.4f}.\n")
    print("     rate   factor   theory  steps  status        what it does")
    found = descend_at([0.0001, 0.001, 0.01, 0.03, limit / 2, 0.08, 0.1, 0.11, limit, 0.112, 0.12, 0.2])
    for rate, theory, factor, steps, status, _ in zip(*(column.tolist() for column in found), strict=True):
        ended = mjn.Status(status)
        numbers = f"{rate:7.4f} {rounded(factor)} {rounded(theory)} {steps:6}"
        print(f"  {numbers}  {ended.name:12}  {in_words(factor, ended)}")
    print(f"\n  the largest rate at which the descent ends lower than it started: {largest_rate():.4f}")

    two = two_weights()
    print(f"\nTwo weights {listed(TWO_WEIGHTS)}, inputs {listed(TWO_INPUTS)}, actual {TWO_ACTUAL:g}:")
    print(f"  error {two.error:g}, slope 2 * input * error = {listed(two.slope)}")
    print(f"  at rate {RATE:g} the new weights are {listed(two.new_weights)}, the new error {two.new_error:g}")


def in_words(factor: float, status: mjn.Status) -> str:
    """What happens to the distance from the lowest point, by the factor of each step."""
    if abs(abs(factor) - 1) < 1e-6:
        return "stays as far away"
    if abs(factor) > 1:
        return "overshoots further each time"
    if abs(factor) < 1e-6:
        return "is at the bottom in one step"
    if status == mjn.OUT_OF_STEPS:
        return "is not there yet"
    return "overshoots less each time" if factor < 0 else "comes nearer from one side"


def picture(bowl: LossSlice, stops: Stops, *, height: int = 18) -> str:
    """The bowl in dots and the stops in o, one column an offset of the slice."""
    offsets, losses = np.asarray(bowl.offsets), np.asarray(bowl.losses)
    canvas = np.full((height, len(offsets)), " ")

    def row(loss: Any) -> Any:
        return np.rint((1 - loss / losses.max()) * (height - 1)).astype(int)

    canvas[row(losses), np.arange(len(offsets))] = "."
    columns = np.abs(offsets[:, None] - (stops.weights - LOWEST)).argmin(axis=0)
    canvas[row(losses[columns]), columns] = "o"
    levels = np.linspace(losses.max(), 0, height)
    lines = [f"{level:7.1f} |{''.join(line)}".rstrip() for level, line in zip(levels, canvas, strict=True)]
    ends = [f"{LOWEST + offset:.2f}" for offset in (offsets[0], 0.0, offsets[-1])]
    middle = ends[1].center(len(offsets) - len(ends[0]) - len(ends[2]))
    return "\n".join([*lines, " " * 8 + "+" + "-" * len(offsets), "  weight " + ends[0] + middle + ends[2]])


def rounded(factor: float) -> str:
    """Four digits, and no minus on a zero."""
    return f"{round(factor, 4) + 0.0:8.4f}"


def listed(numbers: Any) -> str:
    """``(1, 2.5)``."""
    return "(" + ", ".join(f"{number:.4g}" for number in numbers) + ")"


if __name__ == "__main__":
    main()
