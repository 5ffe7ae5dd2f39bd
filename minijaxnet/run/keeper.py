"""The checkpoints of a fit, from which it goes on after whatever ended it."""

import time
from pathlib import Path
from typing import Any

from minijaxnet.descent import DescentState
from minijaxnet.processes import arrays_from_first, from_first, here
from minijaxnet.pytrees import check_count, is_number
from minijaxnet.run.checkpoint import load_checkpoint, save_checkpoint
from minijaxnet.run.checkpoint_folder import checkpoint_path, checkpoints, keep_newest, load_latest
from minijaxnet.run.checkpoint_format import UNFINISHED

CHECKPOINTS = "checkpoints"

_KEPT = 3


class Keeper:
    """The checkpoints of one fit: when one is due, and where it goes on.

    With several processes each has a keeper, and the first one's has the folder.

    Attributes:
        notes: why checkpoints could not be used, a text each.
    """

    def __init__(self, folder: str | Path | None, *, every: int | None, seconds: float, resume: bool):
        """Check what is asked for; nothing is written yet."""
        if resume and folder is None:
            raise ValueError("resume: got True without run_dir; expected the folder of the run to go on with")
        if not is_number(seconds) or not seconds >= 0:
            raise ValueError(f"checkpoint_s: got {seconds!r}; expected seconds, at least 0")
        self._every = None if every is None else check_count("checkpoint_every", every, least=1)
        self._seconds, self._resume = seconds, resume
        self._folder = None if folder is None else Path(folder) / CHECKPOINTS
        if self._folder is not None and self._folder.is_dir() and checkpoints(self._folder) and not resume:
            raise FileExistsError(f"{self._folder}: there is a run in this folder; expected a new one, or resume=True")
        self._saved, self._last_s, self.notes = 0, time.monotonic(), []

    def begin(self, state: DescentState, rows_until: int) -> tuple[int, DescentState]:
        """The step and the state to go on with: 0 and the one given, or those of the newest checkpoint.

        Where the log lacks a row, of step ``rows_until``, that is one from which it is seen again.
        """
        step, found = self._newest(here(state), rows_until)
        if (step := from_first(step)) is None:
            return 0, state
        self._saved = step
        return step, arrays_from_first(found, state)

    def _newest(self, like: DescentState, rows_until: int) -> tuple[int | None, Any]:
        """The step and the state of the newest checkpoint to go on from; None and None if there is none."""
        if self._folder is None:
            return None, None
        self._folder.mkdir(exist_ok=True)
        for path in self._folder.iterdir():
            if UNFINISHED.fullmatch(path.name):  # by a process that is dead, for the folder is ours
                path.unlink()
        if not self._resume or (found := load_latest(self._folder, like)) is None:
            return None, None
        step, state, self.notes = found
        if step <= rows_until:
            return step, state
        older = [(step, path) for step, path in checkpoints(self._folder) if step <= rows_until]
        lost = f"the row of step {rows_until:,} is lost: it goes on from step"
        self.notes = [*self.notes, f"{lost} {older[0][0] if older else 0:,}, not {step:,}"]
        return (older[0][0], load_checkpoint(older[0][1], like)) if older else (None, None)

    def steps_left(self, step: int) -> int:
        """How many steps may be taken before the next checkpoint by count."""
        return 2**31 - 1 if self._every is None else self._every - step % self._every

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is due after so many steps."""
        by_count = self._every is not None and step % self._every == 0
        return self._folder is not None and (by_count or time.monotonic() - self._last_s >= self._seconds)

    def keep(self, step: int, state: DescentState) -> None:
        """Save a checkpoint, and have the oldest go."""
        if step == self._saved:  # it is there
            return
        state = here(state)
        if self._folder is not None:
            save_checkpoint(checkpoint_path(self._folder, step), state, step=step)
            keep_newest(self._folder, _KEPT)
        self._saved, self._last_s = step, time.monotonic()
