"""Comparisons of steps that were never taken."""

import numpy as np

from minijaxnet.bench import ArmTiming, StepComparison


def comparison(factors, rounds=20, *, control=1.0, machine=None):
    """Arms by how many times as long as the first of them they take, with a noise of a per cent that all share."""
    wobble = 1 + 0.01 * np.sin(np.arange(rounds))
    arms = {name: ArmTiming(0.5, 1e-5, 1e-4 * factor * wobble) for name, factor in factors.items()}
    wandering = np.linspace(1, 1.5, rounds)
    return StepComparison(
        next(iter(factors)), arms, 1e-4 * control * wobble, wandering, machine=machine or {"cpu": "one"}
    )
