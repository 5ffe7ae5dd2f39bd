"""Rounds: a block of every arm in turn, in a new order each time, until the time is up."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from minijaxnet.bench.blocks import seconds_of, steps_for
from minijaxnet.bench.intervals import fewest_samples
from minijaxnet.bench.machine import sentinel

_BLOCK_S = 0.02  # long against the clock and the call, short against the machine's drift


class Samples(NamedTuple):
    """Seconds a step of each round.

    Attributes:
        arms: ``{name: (rounds,)}``.
        control: ``(rounds,)``, of the baseline's second entry.
        sentinel: ``(rounds,)``, of the fixed workload.
    """

    arms: dict[str, np.ndarray]
    control: np.ndarray
    sentinel: np.ndarray


def block(name: str, run: Callable[[int], Any]) -> Callable[[], float]:
    """A function that times one block of steps, in seconds a step; blocks are about equally long for all arms.

    Args:
        name: of the arm.
        run: ``run(steps)`` takes so many steps from the start, and returns what has to be waited for.
    """

    def seconds(steps: int) -> float:
        return seconds_of(lambda: run(steps))

    steps = steps_for(_BLOCK_S, seconds, f"arms[{name!r}]")
    return lambda: seconds(steps) / steps


def in_turns(runs: Sequence[Callable[[], float]]) -> Iterator[list[float]]:
    """Round after round: what each run returns, all of them in a new order each time.

    >>> next(in_turns([lambda: 1.0, lambda: 2.0]))
    [1.0, 2.0]
    """
    draw = np.random.default_rng(0)
    while True:
        times = [0.0] * len(runs)
        for turn in draw.permutation(len(runs)):
            times[turn] = runs[turn]()
        yield times


def take_rounds(blocks: Mapping[str, Callable[[], float]], control: Callable[[], float], *, seconds: float) -> Samples:
    """Time a block of each arm, of the control and of a fixed workload, round by round.

    Args:
        blocks: ``{name: block}``; a block returns seconds a step.
        control: a block of the baseline's second entry.
        seconds: for how long; at least as many rounds are taken as an interval needs.

    Raises:
        ValueError: these rounds would take more than half a minute longer, and ten times as long.
    """
    turns = in_turns([*blocks.values(), control, sentinel()])
    needed = fewest_samples(len(blocks))
    rounds: list[list[float]] = []
    durations: list[float] = []
    began, elapsed = time.perf_counter(), 0.0
    while len(rounds) < needed or elapsed + max(durations) < seconds:
        rounds.append(next(turns))
        durations.append(time.perf_counter() - began - elapsed)
        elapsed += durations[-1]
        # The shortest of two at least: a machine that is busy for a moment is no reason to refuse.
        if len(rounds) > 1 and min(durations) * needed > max(10 * seconds, seconds + 30):
            raise ValueError(
                f"seconds: got {seconds:g}; expected at least {min(durations) * needed:.1f}, "
                f"the {needed} rounds that an interval needs"
            )
    *arms, again, wandering = np.array(rounds).T
    return Samples(dict(zip(blocks, arms, strict=True)), again, wandering)
