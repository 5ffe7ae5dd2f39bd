"""Bench: how fast is this step?"""

from minijaxnet.bench.compare import ArmTiming, Ratio, StepComparison, compare_steps

__all__ = ["ArmTiming", "Ratio", "StepComparison", "compare_steps"]
