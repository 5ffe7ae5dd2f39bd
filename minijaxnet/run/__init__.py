"""Runs: carry a descent to its end, and keep on disk what happened."""

from minijaxnet.run.checkpoint import CheckpointError, checkpoint_step, load_checkpoint, save_checkpoint
from minijaxnet.run.fit import FitResult, check_values, fit
from minijaxnet.run.log import Progress, Sink

__all__ = [
    "CheckpointError",
    "FitResult",
    "Progress",
    "Sink",
    "check_values",
    "checkpoint_step",
    "fit",
    "load_checkpoint",
    "save_checkpoint",
]
