"""Runs: carry a descent to its end, and keep on disk what happened."""

from minijaxnet.run.fit import FitResult, Progress, fit

__all__ = ["FitResult", "Progress", "fit"]
