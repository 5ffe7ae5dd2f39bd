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
        starts_anew: whether each process takes seconds to start, so that fewer are.
    """

    scratch: Path
    draw: np.random.Generator
    kills: int
    starts_anew: bool

    def few(self, count: int) -> int:
        """How often to do what takes a process each time."""
        return -(-count // 4) if self.starts_anew else count

    def folder(self, name: str) -> Path:
        """A new folder."""
        path = self.scratch / name
        path.mkdir(parents=True)
        return path
