"""The interval around a median: the rank against exact sums of binomials, the coverage against made-up noise."""

import itertools
import math

import numpy as np
import pytest
from kits.marks import slow

from minijaxnet.bench.intervals import RISK, Interval, fewest_samples, interval_rank, median_interval


def brute_force_rank(rounds, n_arms, others=1):
    """By how often ranks sum to less than so much, in whole numbers; the risk is 1/20 over the arms."""
    ways = [1]
    for _ in range(rounds):
        ways = [sum(ways[max(0, k - others) : k + 1]) for k in range(len(ways) + others)]
    tails = itertools.accumulate(ways[: rounds * others // 2])
    return sum(2 * tail * 20 * n_arms <= (others + 1) ** rounds for tail in tails)


@pytest.mark.parametrize("others", [1, 2])
def test_the_rank_is_the_largest_that_the_sums_of_ranks_allow(others):
    few = [(count, n_arms) for n_arms in (1, 2, 3, 5, 10) for count in range(1, 61)]
    for count, n_arms in (*few, (200, 2)):
        assert interval_rank(count, others, RISK / n_arms) == brute_force_rank(count, n_arms, others), (count, n_arms)
    for count, n_arms in ((201, 1), (600, 2)):  # as good as normal
        assert abs(interval_rank(count, others, RISK / n_arms) - brute_force_rank(count, n_arms, others)) <= 1


def test_the_fewest_rounds_are_the_first_with_an_interval():
    for n_arms in range(1, 20):
        fewest = fewest_samples(1, RISK / n_arms)
        assert brute_force_rank(fewest, n_arms) >= 1 > brute_force_rank(fewest - 1, n_arms)


def test_the_interval_is_between_the_ranks_from_either_end_in_any_order():
    samples = np.random.default_rng(0).permutation(np.arange(1.0, 42.0))
    rank = brute_force_rank(41, 2)
    assert median_interval(samples, RISK / 2) == Interval(21.0, float(rank), float(42 - rank))


@pytest.mark.parametrize("noise", ["lognormal", *slow("spikes", "bursts")])
def test_an_arm_among_two_entries_of_the_baseline_is_covered_as_often_as_it_says(noise):
    draw, trials, rounds, shift = np.random.default_rng(1), 2_000, 30, 0.3

    def logs():
        # The noise that all three entries of a round share, and the noise of each.
        own = {
            "lognormal": lambda: draw.normal(0, 0.1, (rounds, 3)),
            "spikes": lambda: 0.01 * draw.random((rounds, 3)) + draw.exponential(3, (rounds, 3)) ** 3,
            "bursts": lambda: 0.01 * draw.random((rounds, 3)) + 5 * (draw.random((rounds, 3)) < 0.2),
        }[noise]()
        return draw.normal(0, 10, (rounds, 1)) + own + [0, 0, shift]

    found = [median_interval(times[:, 2:] - times[:, :2]) for times in (logs() for _ in range(trials))]
    covered = np.mean([each.low <= shift <= each.high for each in found])
    assert covered >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)
    assert covered <= 0.99, "and it is not too wide"
