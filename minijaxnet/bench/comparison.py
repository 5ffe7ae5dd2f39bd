"""What a comparison of steps found: ratios with intervals, and what may be concluded from them."""

import textwrap
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minijaxnet.tables import figure, text_table

_COLUMNS = 100


class Ratio(NamedTuple):
    """An arm's time over the baseline's: the median over rounds, and its interval."""

    median: float
    low: float
    high: float


class ArmTiming(NamedTuple):
    """What was measured of one arm.

    Attributes:
        compile_s: seconds to trace, lower and compile the loop of steps, anew for each arm. What JAX keeps of jitted
            functions inside the step, and its cache on disk where that is on, still shorten it.
        step_s: seconds a step inside a compiled loop, the median over rounds.
        samples_s: the same for each round.
    """

    compile_s: float
    step_s: float
    samples_s: np.ndarray


@dataclass(frozen=True)
class StepComparison:
    """What ``compare_steps`` found; print it.

    Attributes:
        baseline: the name of the arm that the others are held against.
        arms: ``{name: ArmTiming}``.
        ratios: ``{name: Ratio}`` of each arm's time to the baseline's.
        control: the ratio of the baseline to itself.
        rounds: how often each arm was timed.
    """

    baseline: str
    arms: dict[str, ArmTiming]
    ratios: dict[str, Ratio]
    control: Ratio
    rounds: int

    @property
    def sound(self) -> bool:
        """Whether the baseline equals itself; where it does not, no verdict can be believed."""
        return self.control.low <= 1 <= self.control.high

    @property
    def verdicts(self) -> dict[str, str]:
        """``{name: "faster", "slower" or "indistinguishable"}``: whether the interval is beyond 1 and the control's."""
        return {name: self._verdict(ratio) for name, ratio in self.ratios.items()}

    def _verdict(self, ratio: Ratio) -> str:
        if not self.sound:
            return "indistinguishable"
        if ratio.high < min(1.0, self.control.low):
            return "faster"
        return "slower" if ratio.low > max(1.0, self.control.high) else "indistinguishable"

    def to_dict(self) -> dict[str, Any]:
        """The figures in JSON's own kinds, without the samples."""
        arms = {name: {"compile_s": arm.compile_s, "step_us": 1e6 * arm.step_s} for name, arm in self.arms.items()}
        return {
            "baseline": self.baseline,
            "sound": self.sound,
            "rounds": self.rounds,
            "control": self.control._asdict(),
            "ratios": {name: ratio._asdict() for name, ratio in self.ratios.items()},
            "verdicts": self.verdicts,
            "arms": arms,
        }

    def __str__(self) -> str:
        """A table of the arms, and whether it can be believed."""
        columns = ("compile s", "us a step", "ratio", "95 % interval", "verdict")
        cells = {
            name: (
                f"{arm.compile_s:.2f}",
                figure(1e6 * arm.step_s),
                *_interval_cells(self.ratios.get(name)),
                self.verdicts.get(name, "baseline"),
            )
            for name, arm in self.arms.items()
        }
        room = _COLUMNS - len(text_table(("", *columns), [("", *row) for row in cells.values()]).splitlines()[1])
        rows = []
        for name, row in cells.items():
            first, *rest = textwrap.wrap(name, room, subsequent_indent="  ")
            rows += [(first, *row), *((part, *[""] * len(row)) for part in rest)]
        median, interval = _interval_cells(self.control)
        lines = [
            text_table(("step", *columns), rows),
            f"{self.rounds} interleaved rounds; the baseline against itself: {median} ({interval})",
        ]
        return "\n".join(lines if self.sound else [*lines, "UNSOUND: the machine is too noisy for a verdict"])


def _interval_cells(ratio: Ratio | None) -> tuple[str, str]:
    return ("1", "") if ratio is None else (_cell(ratio.median), f"{_cell(ratio.low)} to {_cell(ratio.high)}")


def _cell(ratio: float) -> str:
    return f"{ratio:.3f}" if 0.1 <= ratio < 10 else figure(ratio)
