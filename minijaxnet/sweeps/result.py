"""The result of a sweep: the outputs of its runs, their last losses, and the best replica."""

from typing import Any, NamedTuple

import jax
import numpy as np

from minijaxnet._tables import html_result, percent, significant, text_table
from minijaxnet._trees import is_keys
from minijaxnet.goal import goal_of
from minijaxnet.history import DIVERGED, FLAT, Trace


class Best(NamedTuple):
    """The best replica of a sweep.

    Attributes:
        place: its index on the axes.
        values: ``{axis: value}``.
        loss: its last loss, as in ``losses``.
    """

    place: tuple[int, ...]
    values: dict[str, Any]
    loss: float


class SweepResult(NamedTuple):
    """The outputs of the runs of a sweep; print ``table()``.

    Attributes:
        axes: ``{name: values}``, the argument of ``sweep``.
        output: the outputs of the runs, as NumPy arrays with the axes in front: all axes in order, or a single one if
            they were zipped. Random keys are stored as their data.
        finished: which replicas were run, of the axes' shape; all of them, unless Ctrl-C ended the sweep.
        block: replicas per block.
    """

    axes: dict[str, Any]
    output: Any
    finished: np.ndarray
    block: int

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the sweep."""
        return not self.finished.all()

    @property
    def trace(self) -> Trace:
        """The trace in the output.

        Raises:
            TypeError: the output has no trace.
        """
        nodes = jax.tree.leaves(self.output, is_leaf=lambda node: isinstance(node, Trace))
        traces = [node for node in nodes if isinstance(node, Trace)]
        if not traces:
            raise TypeError("output: holds no Trace; expected the run to return that of a descent")
        return traces[0]

    @property
    def losses(self) -> np.ndarray:
        """The last loss of each replica, of the axes' shape; infinite if it diverged, NaN if it is unknown.

        It is ``output["loss"]`` if the run returns that; else the last loss in the trace, which is the one before the
        last step, and unknown if no step was taken.
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
        """The run's ``output["metrics"]`` by name; NaN for a replica that diverged or was not run."""
        found = self.output.get("metrics", {}) if isinstance(self.output, dict) else {}
        ended = np.isfinite(self.losses)
        return {name: np.where(ended, np.asarray(values, np.float64), np.nan) for name, values in found.items()}

    def best(self, by: str = "loss") -> Best:
        """The best replica of those that did not diverge.

        Args:
            by: "loss" for the lowest last loss; "highest NAME" or "lowest NAME" for one of ``metrics``; a name
                alone is enough for an accuracy or a score (the highest), and for a loss, an error or a norm.

        Raises:
            ValueError: all replicas diverged, there is no such metric, or the name does not say which is better.
        """
        losses, goal = self.losses, goal_of(by, "by")
        values = {"loss": np.where(np.isfinite(losses), losses, np.nan)} | self.metrics
        if goal.name not in values:
            raise ValueError(f"by: got {goal.name!r}; expected one of {', '.join(values)}")
        values = values[goal.name]
        if not np.isfinite(values).any():
            raise ValueError(f"best: got {values.size} replicas, none with a finite {goal.name}; expected one with it")
        best = np.nanargmax(values) if goal.highest else np.nanargmin(values)
        place = tuple(int(i) for i in np.unravel_index(best, values.shape))
        each = place if len(place) == len(self.axes) else place * len(self.axes)
        chosen = {name: axis[i] for (name, axis), i in zip(self.axes.items(), each, strict=True)}
        return Best(place, chosen, float(losses[place]))

    def table(self, axis: str | None = None) -> str:
        """A table of the last losses (quantiles) and metrics (medians) for each value of one axis.

        Args:
            axis: the name of the axis; by default the first one of numbers.
        """
        return text_table(*self.cells(axis))

    def cells(self, axis: str | None = None) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The headings and the rows of ``table``."""
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
            ended = ~np.isnan(loss)
            if not ended.any():
                rows.append((_axis_value(values, i), *["-"] * (5 + len(self.metrics))))
                continue
            quantiles = np.quantile(loss[ended], (0.1, 0.5, 0.9), method="nearest")
            flat = taken[ended & (status == FLAT)]
            rows.append(
                (
                    _axis_value(values, i),
                    *(significant(float(q)) for q in quantiles),
                    percent(float(np.mean(status[ended] == DIVERGED))),
                    significant(float(np.median(flat))) if len(flat) else "-",
                    *(_median(by_value(metric)[i]) for metric in self.metrics.values()),
                )
            )
        return (name, "loss 10 %", "median", "90 %", "diverged", "steps until flat", *self.metrics), rows

    def _repr_html_(self) -> str:
        try:
            losses = self.losses
        except TypeError:  # the runs return no trace
            axes = ", ".join(f"{name} ({len(values):,})" for name, values in self.axes.items())
            return html_result(f"Sweep over {axes}, without a Trace in its output")
        verdict = f"Sweep: {losses.size:,} descents, {int((losses == np.inf).sum()):,} diverged"
        if np.isfinite(losses).any():
            best = self.best()
            places = best.place * (len(self.axes) // len(best.place))  # zipped axes share one place
            pairs = zip(self.axes.items(), places, strict=True)
            where = (f"{name} {_axis_value(values, i)}" for (name, values), i in pairs)
            verdict += f"; lowest loss {significant(best.loss)} at {', '.join(where)}"
        return html_result(verdict, self.cells())

    def __str__(self) -> str:
        """The table."""
        return self.table()


def _median(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    return significant(float(np.median(finite))) if len(finite) else "-"


def _axis_value(values: Any, i: int) -> str:
    """A value of an axis as text: a number, or the place for anything else."""
    return f"#{i}" if is_keys(values) or values.ndim > 1 else significant(float(values[i]))
