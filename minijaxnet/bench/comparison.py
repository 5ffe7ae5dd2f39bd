"""The result of a comparison of steps: ratios with intervals, and what may be concluded from them."""

import functools
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from minijaxnet._machine import description
from minijaxnet._tables import html_of, percent, significant, text_table
from minijaxnet._trees import array_type
from minijaxnet.bench.intervals import RISK, Interval, median_interval
from minijaxnet.bench.saved import SinceThen, read_result, since_then, write_result

_AN_HOUR_S = 3600
# Programs compiled from the same code differed by about 0.1 % for as long as they were kept (blocks of a millisecond,
# two x86-64 cores). A smaller difference than this is no verdict.
_ALIKE = 0.002


class ArmTiming(NamedTuple):
    """What was measured of one arm.

    Attributes:
        compile_s: seconds to trace, lower and compile the loop of steps, anew for each arm. JAX's cache of jitted
            functions inside the step still shortens it, and its cache on disk where that is on.
        call_s: seconds of a call that takes no step.
        samples_s: seconds a step inside a compiled loop, for each round, without the call.
    """

    compile_s: float
    call_s: float
    samples_s: np.ndarray

    @property
    def step_s(self) -> float:
        """The median over rounds."""
        return float(np.median(self.samples_s))


@dataclass(frozen=True)
class StepComparison:
    """The result of ``compare_steps``; print it.

    Attributes:
        baseline: the name of the arm that the others are compared with.
        arms: ``{name: ArmTiming}``.
        control_s: seconds a step of the baseline's second entry, for each round.
        sentinel_s: seconds of a fixed workload, every few rounds.
        risk: the probability that one of the intervals is wrong.
        width: an arm is the same as the baseline where its ratio is within so much of 1.
        measured_s: seconds that the rounds took.
        compiled: the names of programs that JAX compiled during the rounds.
        clocks: a GPU's clock in MHz, and what limited it, every few rounds; empty where it cannot be read.
        workload: the dtypes and shapes of params and batch.
        machine: where it was measured.
    """

    baseline: str
    arms: dict[str, ArmTiming]
    control_s: np.ndarray
    sentinel_s: np.ndarray
    risk: float = RISK
    width: float = 0.01
    measured_s: float = 1.0
    compiled: tuple[str, ...] = ()
    clocks: tuple[tuple[float, str], ...] = ()
    workload: str = ""
    machine: dict[str, Any] = field(default_factory=description)

    @property
    def rounds(self) -> int:
        """How often each arm was timed."""
        return len(self.control_s)

    @functools.cached_property
    def ratios(self) -> dict[str, Interval]:
        """``{name: ratio of its time to the baseline's}``, with intervals that hold together with 95 % confidence."""
        entries = np.stack([self.arms[self.baseline].samples_s, self.control_s], axis=1)
        return {n: self._ratio(arm.samples_s, entries) for n, arm in self.arms.items() if n != self.baseline}

    @functools.cached_property
    def control(self) -> Interval:
        """The ratio of the baseline's second entry to its first."""
        return self._ratio(self.control_s, self.arms[self.baseline].samples_s[:, None])

    def _ratio(self, samples_s: np.ndarray, others_s: np.ndarray) -> Interval:
        # In logarithms a ratio and its inverse are symmetric, so that the median of an even number of rounds is, too.
        logs = np.log(samples_s[:, None] / others_s)
        return Interval(*map(math.exp, median_interval(logs, self.risk / len(self.arms))))

    @property
    def drift(self) -> float:
        """How much the fixed workload's time varied: that of the slowest quarter of the run over the fastest."""
        quarters = [float(np.median(part)) for part in np.array_split(self.sentinel_s, 4) if part.size]
        return max(quarters) / min(quarters)

    @property
    def sound(self) -> bool:
        """Whether the baseline equals itself, and nothing was compiled during the rounds."""
        return not self.compiled and _beyond(self.control, _ALIKE) is None

    @property
    def resolution(self) -> float:
        """The smallest ratio that is a verdict, or its inverse: larger where the baseline differs from itself."""
        return 1 + _ALIKE if self.sound else max(self.control.high, 1 / self.control.low, 1 + _ALIKE)

    @property
    def verdicts(self) -> dict[str, str]:
        """``{name: "faster", "slower", "same" or "undecided"}``.

        Faster and slower: the interval is beyond ``resolution``. The same: it is within ``width`` of 1.
        """
        return {name: self._verdict(ratio) for name, ratio in self.ratios.items()}

    def _verdict(self, ratio: Interval) -> str:
        if verdict := _beyond(ratio, self.resolution - 1):
            return verdict
        return "same" if self.sound and distance(ratio) <= self.width else "undecided"

    @property
    def is_clear(self) -> bool:
        """Whether more rounds would change no verdict."""
        return self.sound and "undecided" not in self.verdicts.values()

    def seconds_needed(self, name: str) -> float:
        """About how many seconds would give a verdict: an interval's width falls with the root of the rounds."""
        log = [math.log(x) for x in self.ratios[name]]
        off, half = abs(log[0]), (log[2] - log[1]) / 2
        room = max(off - math.log(self.resolution), math.log1p(self.width) - off)
        return self.measured_s * (half / room) ** 2 if room > 0 else math.inf

    def to_dict(self) -> dict[str, Any]:
        """The numbers in JSON's own kinds, without the samples."""
        arms = {
            name: {"compile_s": arm.compile_s, "call_us": 1e6 * arm.call_s, "step_us": 1e6 * arm.step_s}
            for name, arm in self.arms.items()
        }
        return {
            "baseline": self.baseline,
            "sound": self.sound,
            "resolution": self.resolution,
            "width": self.width,
            "risk": self.risk,
            "rounds": self.rounds,
            "measured_s": self.measured_s,
            "control": self.control._asdict(),
            "drift": self.drift,
            "ratios": {name: ratio._asdict() for name, ratio in self.ratios.items()},
            "verdicts": self.verdicts,
            "clocks": [[*clock] for clock in self.clocks],
            "arms": arms,
        }

    def save(self, path: str | Path) -> None:
        """Write it as JSON, with every sample and the machine, for ``against``."""
        content = {
            "found": self.to_dict(),
            "baseline": self.baseline,
            "machine": self.machine,
            "workload": self.workload,
            "arms": {n: arm._asdict() | {"samples_s": arm.samples_s.tolist()} for n, arm in self.arms.items()},
            "control_s": self.control_s.tolist(),
            "sentinel_s": self.sentinel_s.tolist(),
        }
        write_result(path, content)

    def against(self, path: str | Path) -> SinceThen:
        """Compare it with one that was saved before: weaker than timing side by side, and the result says so.

        Args:
            path: where ``save`` wrote the earlier one.

        Returns:
            ``.ratios`` of the times now to those then, with ``.verdicts``; print it.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is truncated, of another version, of another machine, of other params or another batch, or
                has no arm in common.
        """
        content = read_result(path)
        if (then := content.get("workload")) and then != self.workload:
            raise ValueError(f"{path}: got a result for {then}; expected {self.workload}")
        samples = {name: arm.samples_s for name, arm in self.arms.items()}
        return since_then(path, content, samples, self.sentinel_s, self.machine)

    def _repr_html_(self) -> str:
        return html_of(self)

    def cells(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The table of the arms: its columns, and a row for each arm."""
        rows = []
        for name, arm in self.arms.items():
            ratio, verdict = ("1", ""), "baseline"
            if name != self.baseline:
                ratio, verdict = self.ratios[name].cells(as_ratio), self.verdicts[name]
            if verdict == "same":
                verdict = f"same within {percent(distance(self.ratios[name]))}"
            rows.append((name, f"{arm.compile_s:.2f}", significant(1e6 * arm.step_s), *ratio, verdict))
        return ("step", "compile s", "us a step", "ratio", "95 % interval", "verdict"), rows

    def conclusions(self) -> list[str]:
        """What to know about the table, in sentences."""
        median, interval = self.control.cells(as_ratio)
        call_us = significant(1e6 * self.arms[self.baseline].call_s, 3)
        lines = [
            f"{self.rounds:,} paired rounds in {significant(self.measured_s, 2)} s; "
            f"the baseline against itself: {median} ({interval})",
            f"the cost of a call, {call_us} us, is subtracted; "
            f"the time of a fixed workload varied by {percent(self.drift - 1)}",
        ]
        if self.clocks:
            lowest, highest = min(self.clocks)[0], max(self.clocks)[0]
            limits = ", ".join(sorted({why for _, why in self.clocks if why}))
            clock = f"the device's clock was between {lowest:,.0f} and {highest:,.0f} MHz"
            lines.append(f"{clock}; limited by {limits}" if limits else clock)
        if products := self.machine.get("products"):
            lines.append(products)
        for name, verdict in self.verdicts.items():
            if verdict == "undecided" and self.sound:
                needed_s = self.seconds_needed(name)
                more = f"about {significant(needed_s, 2)} s" if needed_s < _AN_HOUR_S else "more than an hour"
                lines.append(f"undecided: {name} would need {more}, at this noise")
        if self.compiled:
            lines.append(f"UNSOUND: JAX compiled {', '.join(self.compiled)} during the rounds")
        elif not self.sound:
            least = as_ratio(self.resolution)
            lines.append(f"UNSOUND: the baseline differs from itself; a verdict needs a ratio of more than {least}")
        return lines

    def __str__(self) -> str:
        """A table of the arms, and whether it can be trusted."""
        return "\n".join([text_table(*self.cells()), *self.conclusions()])


def workload_of(params: Any, batch: Any) -> str:
    """The dtypes and shapes of params and batch; a long text ends with a digest.

    >>> workload_of({"w": np.zeros((2, 3), np.float32)}, np.zeros(4, np.int32))
    "params {'w': 'float32[2,3]'}, batch int32[4]"
    """
    text = f"params {jax.tree.map(array_type, params)}, batch {jax.tree.map(array_type, batch)}"
    return text if len(text) <= 200 else f"{text[:160]}... ({zlib.crc32(text.encode()):08x})"


def distance(ratio: Interval) -> float:
    """How far from 1 a ratio can be, as a share of the smaller time.

    >>> round(distance(Interval(1.0, 0.99, 1.005)), 4)
    0.0101
    """
    return max(ratio.high, 1 / ratio.low) - 1


def _beyond(ratio: Interval, share: float) -> str | None:
    """Whether a ratio is certainly more than a share away from 1: "faster", "slower" or None."""
    if ratio.high < 1 / (1 + share):
        return "faster"
    return "slower" if ratio.low > 1 + share else None


def as_ratio(ratio: float) -> str:
    """A ratio with four digits.

    >>> as_ratio(0.88), as_ratio(12.3456)
    ('0.880', '12.35')
    """
    return f"{ratio:.3f}" if 0.1 <= ratio < 10 else significant(ratio)
