"""Sweeps: one run for each value of a seed, a learning rate or anything else, in one compiled program."""

from minijaxnet.sweeps.grid import Blocks, sweep
from minijaxnet.sweeps.result import Best, SweepResult

__all__ = ["Best", "Blocks", "SweepResult", "sweep"]
