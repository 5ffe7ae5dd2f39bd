"""Runs: carry a descent to its end, and keep on disk what happened."""

from minijaxnet.run.fit import FitResult, Progress, check_values, fit

__all__ = ["FitResult", "Progress", "check_values", "fit"]
