"""Where and how often a fault is injected."""

from pathlib import Path
from typing import NamedTuple

import numpy as np


class Setting(NamedTuple):
    """Where and how often a fault is injected.

    Attributes:
        scratch: a new folder.
        draw: for all that is random.
        kills: how often a process is killed.
    """

    scratch: Path
    draw: np.random.Generator
    kills: int

    def folder(self, name: str) -> Path:
        """A new folder."""
        path = self.scratch / name
        path.mkdir(parents=True)
        return path
