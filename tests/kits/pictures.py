"""What tests of pictures share."""

import numpy as np

from minijaxnet.history import DIVERGED, OUT_OF_STEPS, Trace
from minijaxnet.report.style import figure, save, styled
from minijaxnet.sweeps import SweepResult


def axes_with(draw, tmp_path, width=4.8):
    """Axes with what ``draw`` drew, which has been written to a file, too: some things fail only then."""
    with styled():
        made = figure(width)
        axes = made.subplots()
        draw(axes)
        save(made, tmp_path / "picture.svg")
    return axes


def lines(axes):
    """The lines by their labels."""
    return {line.get_label(): line for line in axes.get_lines()}


def swept(losses, **axes):
    """What a sweep of descents returns that ended at these losses, each of two steps; diverged where it is infinite."""
    losses = np.float64(losses)
    status = np.where(np.isfinite(losses), OUT_OF_STEPS, DIVERGED)
    both = np.stack([losses + 1, losses], axis=-1)
    trace = Trace(both, both, (), np.full(losses.shape, 2), status)
    return SweepResult(axes, trace, np.full(losses.shape, True), losses.size)
