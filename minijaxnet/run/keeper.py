"""What a fit keeps of itself, so that it can go on after whatever ends it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minijaxnet.descent import Descent, DescentState
from minijaxnet.loop import own_copy
from minijaxnet.processes import arrays_from_first, from_first, here
from minijaxnet.pytrees import check_count
from minijaxnet.run.checkpoint import load_checkpoint, save_checkpoint
from minijaxnet.run.checkpoint_folder import checkpoint_path, checkpoints, keep_newest, load_latest
from minijaxnet.run.checkpoint_format import UNFINISHED

CHECKPOINTS = "checkpoints"
Retry = Callable[[DescentState, int], tuple[Descent, DescentState]]

_KEPT = 3
# A descent that has diverged so often diverges; and a checkpoint has room for as many.
_MOST_RETRIES = 32


class Mark(NamedTuple):
    """A state that a fit can go back to."""

    step: int
    state: DescentState


class Keeper:
    """The checkpoints of one fit: when one is due, where it goes on, and how often it went back.

    With several processes each has a keeper, and the first one's has the folder.

    What it goes back to when it diverges is a mark, a state at a step that neither a clock nor a signal chose, so that
    a run that was stopped in between goes back to the same. The newest mark may be astray already; the one before it
    was good for as many steps as lie between two. Both are in the checkpoints of a fit that may go back.

    Attributes:
        notes: why checkpoints could not be used, a text each.
    """

    def __init__(
        self,
        folder: str | Path | None,
        *,
        every: int | None,
        seconds: float,
        resume: bool,
        retry: Retry | None,
        mark_every: int,
    ):
        """Check what is asked for; nothing is written yet."""
        if resume and folder is None:
            raise ValueError("resume: got True without run_dir; expected the folder of the run to go on with")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
            raise ValueError(f"checkpoint_s: got {seconds!r}; expected seconds, at least 0")
        self._every = None if every is None else check_count("checkpoint_every", every, least=1)
        self._seconds, self._resume, self._retry = seconds, resume, retry
        self._mark_every = self._every or mark_every
        self._folder = None if folder is None else Path(folder) / CHECKPOINTS
        self._turns = np.full((_MOST_RETRIES, 2), -1, np.int64)  # of each retry: back to which step, diverged at which
        if self._folder is not None and self._folder.is_dir() and checkpoints(self._folder) and not resume:
            raise FileExistsError(f"{self._folder}: there is a run in this folder; expected a new one, or resume=True")
        self._last_s, self.notes = time.monotonic(), []

    @property
    def events(self) -> list[dict[str, Any]]:
        """How often it went back after it had diverged, as rows of the log."""
        turns = self._turns[self._turns[:, 0] >= 0].tolist()
        return [{"step": back, "event": "went back", "diverged_at": at} for back, at in turns]

    def begin(self, descent: Descent, state: DescentState, rows_until: int) -> tuple[int, Descent, DescentState]:
        """The step, the descent and the state to go on with: those given, or those of the newest checkpoint.

        Where the log lacks a row, of step ``rows_until``, that is one from which it is seen again.
        """
        self._saved, self._marks = 0, (Mark(0, state if self._retry is None else own_copy(state)),) * 2
        step, tree = self._newest(here(self._tree(state)), rows_until)
        if (step := from_first(step)) is None:
            return 0, descent, state
        tree = arrays_from_first(tree, self._tree(state))
        self._saved, state, self._turns = step, tree["state"], tree["turns"]
        if self._retry is not None:
            self._marks = tree["marks"]
            if self.events:
                descent, _ = self._retry(own_copy(state), len(self.events))
        return self._saved, descent, state

    def _newest(self, like: dict[str, Any], rows_until: int) -> tuple[int | None, Any]:
        """The step and the tree of the newest checkpoint to go on from; None and None if there is none."""
        if self._folder is None:
            return None, None
        self._folder.mkdir(exist_ok=True)
        for path in self._folder.iterdir():
            if UNFINISHED.fullmatch(path.name):  # by a process that is dead, for the folder is ours
                path.unlink()
        if not self._resume or (found := load_latest(self._folder, like)) is None:
            return None, None
        step, tree, self.notes = found
        if step <= rows_until:
            return step, tree
        older = [(step, path) for step, path in checkpoints(self._folder) if step <= rows_until]
        lost = f"the row of step {rows_until:,} is lost: it goes on from step"
        self.notes = [*self.notes, f"{lost} {older[0][0] if older else 0:,}, not {step:,}"]
        return (older[0][0], load_checkpoint(older[0][1], like)) if older else (None, None)

    def steps_left(self, step: int) -> int:
        """How many steps may be taken before the next checkpoint by count."""
        return 2**31 - 1 if self._every is None else self._every - step % self._every

    def look(self, step: int, state: DescentState) -> None:
        """Remember a state to go back to."""
        if self._retry is not None and step % self._mark_every == 0 and step != self._marks[1].step:
            self._marks = (self._marks[1], Mark(step, own_copy(state)))

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is due after so many steps."""
        by_count = self._every is not None and step % self._every == 0
        return self._folder is not None and (by_count or time.monotonic() - self._last_s >= self._seconds)

    def keep(self, step: int, state: DescentState) -> None:
        """Save a checkpoint, and have the oldest go."""
        if step == self._saved:  # it is there
            return
        tree = here(self._tree(state))
        if self._folder is not None:
            save_checkpoint(checkpoint_path(self._folder, step), tree, step=step)
            keep_newest(self._folder, _KEPT)
        self._saved, self._last_s = step, time.monotonic()

    def may_retry(self) -> bool:
        """Whether a descent that diverged goes back once more."""
        return self._retry is not None and len(self.events) < _MOST_RETRIES

    def retry(self, diverged_at: int) -> tuple[int, Descent, DescentState]:
        """The step, the descent and the state to go on with."""
        assert self._retry is not None, "may_retry was asked"
        times = len(self.events) + 1
        back, good = self._marks[0]
        self._turns[times - 1] = back, diverged_at
        descent, state = self._retry(own_copy(good), times)
        self._marks = (Mark(back, own_copy(state)),) * 2
        tree = here(self._tree(state))
        if self._folder is not None:
            # A crash between these two leaves a newer checkpoint, which diverges to the same and goes back to the same.
            save_checkpoint(checkpoint_path(self._folder, back), tree, step=back)
            for step, path in checkpoints(self._folder):
                if step > back:
                    path.unlink()
        self._saved = back
        return back, descent, state

    def _tree(self, state: DescentState) -> dict[str, Any]:
        way_back = {} if self._retry is None else {"marks": self._marks}
        return {"state": state, "turns": self._turns} | way_back
