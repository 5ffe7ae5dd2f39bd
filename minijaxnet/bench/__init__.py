"""How fast is a step, what limits it, and which of several steps is faster?"""

from minijaxnet.bench.bounds import Limits, limits
from minijaxnet.bench.collectives import Collective, Communication, communication
from minijaxnet.bench.compare import compare_steps
from minijaxnet.bench.comparison import ArmTiming, StepComparison
from minijaxnet.bench.cost import StepCost, step_cost
from minijaxnet.bench.intervals import Interval
from minijaxnet.bench.roofline import Roofline, measure_roofline
from minijaxnet.bench.time_step import StepTiming, time_step

__all__ = [
    "ArmTiming",
    "Collective",
    "Communication",
    "Interval",
    "Limits",
    "Roofline",
    "StepComparison",
    "StepCost",
    "StepTiming",
    "communication",
    "compare_steps",
    "limits",
    "measure_roofline",
    "step_cost",
    "time_step",
]
