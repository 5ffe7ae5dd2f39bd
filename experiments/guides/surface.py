"""The loss as a surface over two weights, and descents on it from many starts, all in one compiled program.

    python experiments/guides/surface.py surface.png

A wave ``y = height * sin(frequency * x)`` is fitted to 200 points. There are two lowest places, for the opposite
frequency at the opposite height is the same wave. Descents that find one of them are orange, the others are white.
"""

import io
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np

import minijaxnet as mjn
from minijaxnet.report.style import COLOURS, HEIGHTS, figure, styled

SPAN = 4.0
X = jnp.linspace(-3, 3, 200)
POINTS = mjn.Batch(X, 1.5 * jnp.sin(2.0 * X))
CENTER = {"frequency": jnp.float32(0), "height": jnp.float32(0)}


def loss(params, batch):
    """The mean squared error of the wave, and the params: the trace then has the path."""
    errors = params["height"] * jnp.sin(params["frequency"] * batch.x) - batch.y
    return jnp.mean(errors**2), params


def run(frequency, height):
    """The trace of one descent."""
    descent = mjn.gradient_descent(loss, 0.01, has_aux=True)
    start = descent.init({"frequency": frequency, "height": height})
    return mjn.descend(descent, start, POINTS, steps=2_000)[1]


def paths() -> tuple[np.ndarray, np.ndarray]:
    """``(starts, steps, 3)``: frequency, height and loss at each step; and ``(starts,)``: who found the wave."""
    along = jnp.linspace(-3.6, 3.6, 10)
    trace = mjn.sweep(run, {"frequency": along, "height": along}).output
    stops = np.stack([trace.aux["frequency"], trace.aux["height"], trace.loss], axis=-1).reshape(100, -1, 3)
    return stops, stops[:, -1, 2] < 1e-3


def main() -> None:
    """Draw the surface from the side with a few paths, and from above with all of them."""
    directions = [mjn.weight_direction(CENTER, f"['{name}']", ()) for name in CENTER]
    surface = mjn.loss_surface(lambda params, batch: loss(params, batch)[0], CENTER, POINTS, directions=directions,
                               span=SPAN, points=121)  # fmt: skip
    stops, found = paths()
    from matplotlib.colors import PowerNorm
    from PIL import Image

    grid, heights = np.meshgrid(surface.offsets, surface.offsets, indexing="ij"), np.asarray(surface.losses)
    with styled():
        page, shades = figure(9.6, 4.2), PowerNorm(0.5)
        side: Any = page.add_subplot(1, 2, 1, projection="3d", computed_zorder=False)
        side.plot_surface(*grid, heights, norm=shades, cmap=HEIGHTS, rcount=121, ccount=121, antialiased=False)
        above = page.add_subplot(1, 2, 2, xlabel="frequency", ylabel="height", aspect="equal")
        bands = above.contourf(*grid, heights, np.linspace(0, 4.2, 29) ** 2, norm=shades, cmap=HEIGHTS)
        page.colorbar(bands, ax=above, label="loss", ticks=(0, 1, 4, 9, 16), shrink=0.9)
        for path, hit in sorted(zip(stops, found, strict=True), key=lambda pair: pair[1]):
            colour = COLOURS["path"] if hit else "#ffffff"
            side.plot(*path.T, color=colour, linewidth=0.9, zorder=2)
            above.plot(*path[:, :2].T, color=colour, linewidth=0.9)
            above.scatter(*path[-1, :2], color=colour, s=14, zorder=3)
        side.view_init(elev=58, azim=-75)
        side.set_box_aspect((1, 1, 0.4), zoom=1.25)
        side.set_axis_off()
        for axes in (side, above):
            axes.set(xlim=(-SPAN, SPAN), ylim=(-SPAN, SPAN))
        page.savefig(drawn := io.BytesIO(), dpi=120)
    Image.open(drawn).convert("RGB").quantize(256).save(sys.argv[1], optimize=True)  # a small file
    print(f"{found.sum()} of {len(found)} descents found the wave")


if __name__ == "__main__":
    main()
