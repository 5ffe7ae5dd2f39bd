"""Many at once: one run for each value of a seed, a learning rate or anything else, in one compiled program."""

from minijaxnet.sweeps.ensemble import Ensemble, ensemble
from minijaxnet.sweeps.grid import Blocks, sweep
from minijaxnet.sweeps.result import Best, SweepResult

__all__ = ["Best", "Blocks", "Ensemble", "SweepResult", "ensemble", "sweep"]
