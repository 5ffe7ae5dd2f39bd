"""Bench: how fast is this step?"""

from minijaxnet.bench.compare import compare_steps
from minijaxnet.bench.comparison import ArmTiming, Ratio, StepComparison

__all__ = ["ArmTiming", "Ratio", "StepComparison", "compare_steps"]
