"""Runs: carry a descent to its end, and keep on disk what happened."""

from minijaxnet.run.checkpoint import CheckpointError, checkpoint_step, load_checkpoint, save_checkpoint
from minijaxnet.run.fit import FitResult, Progress, check_values, fit
from minijaxnet.run.log import Sink

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
