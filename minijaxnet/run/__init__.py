"""Runs: carry a descent to its end, and keep on disk what happened."""

from minijaxnet.run.checkpoint import CheckpointError, checkpoint_step, load_checkpoint, save_checkpoint
from minijaxnet.run.fit import FitResult, Progress, check_values, fit

__all__ = [
    "CheckpointError",
    "FitResult",
    "Progress",
    "check_values",
    "checkpoint_step",
    "fit",
    "load_checkpoint",
    "save_checkpoint",
]
