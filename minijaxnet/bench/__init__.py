"""How fast is a step? What it costs, by itself; and which of several is faster, interleaved and with a control."""

from minijaxnet.bench.compare import compare_steps
from minijaxnet.bench.comparison import ArmTiming, StepComparison
from minijaxnet.bench.intervals import Interval
from minijaxnet.bench.time_step import StepTiming, time_step

__all__ = ["ArmTiming", "Interval", "StepComparison", "StepTiming", "compare_steps", "time_step"]
