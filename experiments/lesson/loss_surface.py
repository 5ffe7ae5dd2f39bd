"""The loss as a surface over two weights: hills, valleys, and descents from random starts on it.

The baseline network on the lesson's four points. The incoming weights of its hidden node 0 span the plane; the other
four weights stay as the lesson has them. Six descents move these two weights only, so their paths lie on the surface.
Then six descents from the same starts move all six weights, and their paths leave the plane of the picture.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import minijaxnet as mjn
from minijaxnet._trees import l2_norm
from minijaxnet.landscape import LossSurface, loss_surface, project_path, weight_direction

network = mjn.mlp((2, 2, 1), output_activation=jax.nn.relu, bias=False)
objective = mjn.objective(network, mjn.mean_squared_error)
points = mjn.lesson_points()
SPAN, RATE, STEPS = 4.0, 0.003, 4_000

# Weights are (n_in, n_out): the incoming weights of node 0 are the first column.
baseline = ({"weights": jnp.array([[1.0, -1.0], [1.0, 1.0]])}, {"weights": jnp.array([[2.0], [-1.0]])})
directions = tuple(weight_direction(baseline, "[0]['weights']", (i, 0)) for i in (0, 1))
center = ({"weights": jnp.array([[0.0, -1.0], [0.0, 1.0]])}, baseline[1])


class Descents(NamedTuple):
    """Descents from several starts.

    Attributes:
        paths: for each start ``(stops, 2)``, where its stops lie on the plane of the two weights; the last included.
        losses: ``(starts,)``, the loss where each ended.
        off_plane: ``(starts,)``, how far from the plane each ended.
        statuses: ``(starts,)``.
    """

    paths: list[np.ndarray]
    losses: np.ndarray
    off_plane: np.ndarray
    statuses: np.ndarray


def at(position: Any) -> Any:
    """The params at a position on the plane."""
    return jax.tree.map(lambda weight, a, b: weight + position[0] * a + position[1] * b, center, *directions)


def surface() -> LossSurface:
    """The loss over the two weights."""
    return loss_surface(objective, center, points, directions=directions, span=SPAN, points=73)


def random_starts(n: int = 6, *, seed: int = 0) -> jax.Array:
    """Positions on the plane, ``(n, 2)``."""
    return jax.random.uniform(jax.random.key(seed), (n, 2), minval=-SPAN, maxval=SPAN)


def over_two_weights(position: Any, batch: Any) -> tuple[jax.Array, Any]:
    """The loss over the two weights; and the params, so that the trace records every stop."""
    params = at(position)
    return objective(params, batch), params


def over_all_weights(params: Any, batch: Any) -> tuple[jax.Array, Any]:
    """The loss over all six weights; and the params."""
    return objective(params, batch), params


def descend_from(starts: jax.Array, *, all_weights: bool = False) -> Descents:
    """Descend from each start on the plane, all of them in one compiled program."""
    descent = mjn.gradient_descent(over_all_weights if all_weights else over_two_weights, RATE, has_aux=True)

    def run(position: jax.Array) -> tuple[Any, Any, jax.Array]:
        start = descent.init(at(position) if all_weights else position)
        state, trace = mjn.descend(descent, start, points, steps=STEPS, until_flat=1e-3)
        end = state.params if all_weights else at(state.params)
        stops = jax.tree.map(lambda rows, last: jnp.concatenate([rows, last[None]]), trace.aux, end)
        return end, stops, trace.status

    ends, stops, statuses = jax.jit(jax.vmap(run))(starts)
    in_one_row = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:]), stops)
    positions = project_path(in_one_row, directions, origin=center).reshape(len(starts), -1, 2)
    losses, off_plane = loss_and_distance(ends, positions[:, -1])
    taken = ~np.isnan(positions[..., 0])  # steps that a descent did not take are NaN
    paths = [path[rows] for path, rows in zip(positions, taken, strict=True)]
    return Descents(paths, np.asarray(losses), np.asarray(off_plane), np.asarray(statuses))


@jax.jit
@jax.vmap
def loss_and_distance(params: Any, position: Any) -> tuple[jax.Array, jax.Array]:
    """The loss at some params, and how far they are from a position on the plane."""
    return objective(params, points), l2_norm(jax.tree.map(jnp.subtract, params, at(position)))


def init(key: jax.Array, *, weight_0: float = 1.0, weight_1: float = 1.0) -> jax.Array:
    """The two weights of the baseline, or others."""
    return jnp.stack([jnp.asarray(weight_0, float), jnp.asarray(weight_1, float)])


def loss_on_plane(position: Any, batch: Any) -> jax.Array:
    """The loss as a function of the two weights alone."""
    return objective(at(position), batch)


experiment = mjn.Experiment(
    "loss_surface",
    init=init,
    objective=loss_on_plane,
    data=lambda: (points, points),
    predict=lambda position, x: network.apply(at(position), x),
    defaults=mjn.Settings(steps=STEPS, learning_rate=RATE, until_flat=1e-3),
)


def main() -> None:
    """Print the surface with the paths on it, and where each descent ended."""
    seen, starts = surface(), random_starts()
    on_plane, free = descend_from(starts), descend_from(starts, all_weights=True)
    print("The loss over two weights, those into hidden node 0: blank where it is lowest.")
    print("Descents start at A, B, ..., pass through a, b, ... and end at an O.\n")
    print(picture(seen, on_plane))

    lowest = np.unravel_index(np.argmin(seen.losses), seen.losses.shape)
    where = np.asarray(seen.offsets)[list(lowest)]
    print(f"\nThe lowest loss in the picture is {seen.losses[lowest]:.3f}, near {place(where)}.")
    print("Where a descent ends depends on where it starts:\n")
    print("  start                end              steps  status    loss")
    for i, path in enumerate(on_plane.paths):
        ended = mjn.Status(int(on_plane.statuses[i])).name
        ends = f"{place(path[0])}  {place(path[-1])}"
        print(f"  {letter(i)} {ends}  {len(path) - 1:5}  {ended:6}  {on_plane.losses[i]:6.3f}")

    print("\nThe same starts, with all six weights free: the slope leads off the plane, not")
    print("always to a lower loss. The picture shows two of six dimensions.\n")
    print("  start  off the plane  steps  status    loss")
    for i, path in enumerate(free.paths):
        ended = mjn.Status(int(free.statuses[i])).name
        numbers = f"{free.off_plane[i]:13.2f}  {len(path) - 1:5}  {ended:6}  {free.losses[i]:6.3f}"
        print(f"  {letter(i)}      {numbers}  {compared(free.losses[i], on_plane.losses[i])}")


def compared(loss: float, other: float) -> str:
    """Lower, higher or the same, to a thousandth."""
    if abs(loss - other) < 1e-3 * other:
        return "the same"
    return "lower" if loss < other else "higher"


def picture(surface: LossSurface, descents: Descents) -> str:
    """The surface in ten shades, each a tenth of the picture, with the paths in letters."""
    shades = " .:-=+*#%@"
    offsets, losses = np.asarray(surface.offsets), np.asarray(surface.losses)
    limits = np.quantile(losses, np.linspace(0, 1, len(shades) + 1))
    shade = np.searchsorted(limits[1:-1], losses)
    canvas = np.array(list(shades))[shade]

    def draw(position: np.ndarray, mark: str) -> None:
        column, row = (int(np.abs(offsets - coordinate).argmin()) for coordinate in position)
        canvas[column, row - row % 2] = mark  # a character is twice as high as wide: every other row is printed

    for i, path in enumerate(descents.paths):
        for stop in path:
            draw(stop, letter(i).lower())
    for i, path in enumerate(descents.paths):
        draw(path[0], letter(i))
        draw(path[-1], "O")

    lines = [f"{offsets[row]:5.1f} {''.join(canvas[:, row])}".rstrip() for row in range(len(offsets) - 1, -1, -2)]
    ends = f"{offsets[0]:<8.1f}", f"{offsets[-1]:8.1f}"
    axis = " " * 6 + ends[0] + "weight from input 0".center(len(offsets) - 16) + ends[1]
    bands = [f"{mark} to {limit:.3g}" for mark, limit in zip(shades[1:], limits[2:], strict=True)]
    legend = f"loss  blank {limits[0]:.3g} to {limits[1]:.3g}, {', '.join(bands[:4])},\n      {', '.join(bands[4:])}"
    return "\n".join(["weight from input 1", *lines, axis, "", legend])


def letter(i: int) -> str:
    """A for the first start."""
    return chr(ord("A") + i)


def place(position: np.ndarray) -> str:
    """``(-1.33, -0.31)``, in as many characters for any start."""
    return f"({position[0]:5.2f}, {position[1]:5.2f})"


if __name__ == "__main__":
    main()
