"""What the runs of a sweep returned, where they ended, and which of them ended lowest."""

from typing import Any, NamedTuple

import jax
import numpy as np

from minijaxnet._tables import html_of, percent, significant, text_table
from minijaxnet._trees import is_keys
from minijaxnet.goal import goal_of
from minijaxnet.history import DIVERGED, FLAT, Trace


class Best(NamedTuple):
    """The replica that ended best.

    Attributes:
        place: its index on the axes.
        values: ``{axis: value}``.
        loss: where it ended, as in ``losses``.
    """

    place: tuple[int, ...]
    values: dict[str, Any]
    loss: float


class SweepResult(NamedTuple):
    """What the runs of a sweep returned; print ``table()``.

    Attributes:
        axes: ``{name: values}``, as they were given.
        output: what a run returns, as NumPy arrays with the axes in front: one each, in their order, or one for all of
            them if they were zipped. Of keys, their data.
        finished: which replicas were run, of the axes' shape; all of them, unless Ctrl-C ended the sweep.
        block: how many replicas a call of the program ran.
    """

    axes: dict[str, Any]
    output: Any
    finished: np.ndarray
    block: int

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended it."""
        return not self.finished.all()

    @property
    def trace(self) -> Trace:
        """The trace in the output.

        Raises:
            TypeError: there is none.
        """
        nodes = jax.tree.leaves(self.output, is_leaf=lambda node: isinstance(node, Trace))
        traces = [node for node in nodes if isinstance(node, Trace)]
        if not traces:
            raise TypeError("output: holds no Trace; expected the run to return that of a descent")
        return traces[0]

    @property
    def losses(self) -> np.ndarray:
        """Where each replica ended, of the axes' shape; infinite where it diverged, NaN where nothing is known.

        What the run returns as ``output["loss"]``, if it does; else the last loss in its trace, which is that before
        its last step, and nothing if it took none.
        """
        trace = self.trace
        if isinstance(self.output, dict) and "loss" in self.output:
            ended = np.asarray(self.output["loss"], np.float64)
        else:
            last = np.maximum(np.asarray(trace.steps_taken) - 1, 0)[..., None]
            ended = np.take_along_axis(np.asarray(trace.loss, np.float64), last, axis=-1)[..., 0]
        return np.where(self.finished, np.where(trace.status == DIVERGED, np.inf, ended), np.nan)

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """What the run returns as ``output["metrics"]``, by name; NaN where it diverged, or nothing is known."""
        found = self.output.get("metrics", {}) if isinstance(self.output, dict) else {}
        known = np.isfinite(self.losses)
        return {name: np.where(known, np.asarray(values, np.float64), np.nan) for name, values in found.items()}

    def best(self, by: str = "loss") -> Best:
        """The replica that ended best, of those that did not diverge.

        Args:
            by: "loss" for the lowest last loss, or one of ``metrics``: of an accuracy or a score the highest is the
                best, else the lowest; "highest NAME" or "lowest NAME" say it.

        Raises:
            ValueError: all of them diverged, or there is no such metric.
        """
        losses, goal = self.losses, goal_of(by)
        values = {"loss": np.where(np.isfinite(losses), losses, np.nan)} | self.metrics
        if goal.name not in values:
            raise ValueError(f"by: got {goal.name!r}; expected one of {', '.join(values)}")
        values = values[goal.name]
        if not np.isfinite(values).any():
            got = f"got {values.size} replicas, of which none ended at a finite {goal.name}"
            raise ValueError(f"best: {got}; expected one")
        best = np.nanargmax(values) if goal.highest else np.nanargmin(values)
        place = tuple(int(i) for i in np.unravel_index(best, values.shape))
        each = place if len(place) == len(self.axes) else place * len(self.axes)
        chosen = {name: axis[i] for (name, axis), i in zip(self.axes.items(), each, strict=True)}
        return Best(place, chosen, float(losses[place]))

    def table(self, axis: str | None = None) -> str:
        """How the replicas ended, by the values of one axis: quantiles of the last loss, medians of the metrics.

        Args:
            axis: its name; the first one of numbers, if not said.
        """
        return text_table(*self.cells(axis))

    def cells(self, axis: str | None = None) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The columns of ``table``, and its rows."""
        name = axis or next((name for name, values in self.axes.items() if not is_keys(values)), next(iter(self.axes)))
        if name not in self.axes:
            raise ValueError(f"axis: got {name!r}; expected one of {', '.join(self.axes)}")
        losses, trace, values = self.losses, self.trace, self.axes[name]
        place = list(self.axes).index(name) if losses.ndim == len(self.axes) else 0

        def by_value(array: Any) -> np.ndarray:
            return np.moveaxis(np.asarray(array), place, 0).reshape(len(values), -1)

        rows: list[tuple[str, ...]] = []
        columns = map(by_value, (losses, trace.status, trace.steps_taken))
        for i, (loss, status, taken) in enumerate(zip(*columns, strict=True)):
            there = ~np.isnan(loss)
            if not there.any():
                rows.append((shown(values, i), *["-"] * (5 + len(self.metrics))))
                continue
            quantiles = np.quantile(loss[there], (0.1, 0.5, 0.9), method="nearest")
            flat = taken[there & (status == FLAT)]
            rows.append(
                (
                    shown(values, i),
                    *(significant(float(q)) for q in quantiles),
                    percent(float(np.mean(status[there] == DIVERGED))),
                    significant(float(np.median(flat))) if len(flat) else "-",
                    *(_median(by_value(metric)[i]) for metric in self.metrics.values()),
                )
            )
        return (name, "loss 10 %", "median", "90 %", "diverged", "steps until flat", *self.metrics), rows

    def _repr_html_(self) -> str:
        return html_of(self)

    def __str__(self) -> str:
        """The table."""
        return self.table()


def _median(values: np.ndarray) -> str:
    known = values[np.isfinite(values)]
    return significant(float(np.median(known))) if len(known) else "-"


def shown(values: Any, i: int) -> str:
    """A value of an axis: a number as it is, anything else by its place."""
    return f"#{i}" if is_keys(values) or values.ndim > 1 else significant(float(values[i]))
