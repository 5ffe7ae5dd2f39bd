"""Runs: descents with checks, logs and checkpoints in a folder on disk."""

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
