"""The best weights of a run by a measured metric, and early stopping."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from minijaxnet._checks import check_count
from minijaxnet._trees import own_copy
from minijaxnet._types import Params
from minijaxnet.goal import goal_of
from minijaxnet.parallel.processes import to_host
from minijaxnet.run.checkpoint import read_checkpoint, write_checkpoint
from minijaxnet.run.checkpoint_format import CheckpointError
from minijaxnet.run.folder import BEST


class Best(NamedTuple):
    """The best weights of a run.

    Attributes:
        params: the weights.
        step: the step at which they were measured.
        value: the metric at this step.
    """

    params: Params
    step: int
    value: float


class BestKeeper:
    """The best weights of a fit so far, in memory and in its folder.

    Attributes:
        goal: the metric and whether it should be high or low; None if no weights are kept.
        best: the best weights; None before the first measurement.
    """

    def __init__(self, keep_best: str | None, patience: int | None, folder: str | Path | None):
        """Check the arguments of ``fit``."""
        if not isinstance(keep_best, str | None) or keep_best == "":
            raise TypeError(f"keep_best: got {keep_best!r}; expected the name of a metric, such as 'test_loss'")
        if patience is not None and keep_best is None:
            raise ValueError("patience: got a number without keep_best; expected keep_best, such as 'test_loss'")
        self.goal = None if keep_best is None else goal_of(keep_best, "keep_best")
        self.best: Best | None = None
        self._patience = None if patience is None else check_count("patience", patience, least=1)
        self._path = None if folder is None else Path(folder) / BEST
        self._rows_since = 0

    def restore(self, params: Params, rows: list[dict[str, Any]], first: int, *, resume: bool) -> list[str]:
        """Restore the best weights of an earlier process when a fit is resumed from step ``first``; return notes.

        The stored weights may be of a later step than ``first``. Then they are deleted: the resumed fit finds them
        again, unless its rate differs, and then they are not weights of this descent.
        """
        if self.goal is None or self._path is None or not resume or not self._path.is_file():
            return []
        like = Best(to_host(params), 0, 0.0)
        try:
            _, found, difference = read_checkpoint(self._path, like)
        except CheckpointError as error:
            found, difference = None, str(error)
        if found is None:
            return [f"the best weights of earlier steps could not be read, and are lost: {difference}"]
        if found.step > first:
            self._path.unlink()
            return []
        self.best = found
        self._rows_since = sum(row["step"] > found.step for row in rows)
        return []

    def update(self, step: int, params: Params, measured: Mapping[str, float] | None) -> None:
        """Keep the weights if their metric is the best so far.

        Raises:
            ValueError: no metric of that name was measured.
        """
        if self.goal is None:
            return
        if self.goal.name not in (measured or {}):
            names = ", ".join(measured or {}) or "none, without measure="
            raise ValueError(f"keep_best: got {self.goal.name!r}; expected one of the measured metrics: {names}")
        value = float((measured or {})[self.goal.name])
        if self.best is not None and not self.goal.better(value, self.best.value):
            self._rows_since += step > self.best.step
            return
        self.best, self._rows_since = Best(own_copy(params), step, value), 0
        if self._path is not None:
            write_checkpoint(self._path, self.best._replace(params=to_host(self.best.params)), step=step)

    @property
    def is_over(self) -> bool:
        """Whether the metric has not improved for ``patience`` rows."""
        return self._patience is not None and self._rows_since >= self._patience
