"""The interval around a median: the rank against exact sums of binomials, the coverage against made-up noise."""

import itertools
import math

import numpy as np
import pytest
from kits.marks import slow

from minijaxnet.bench.intervals import Interval, fewest_samples, interval_rank, median_interval

FIRST = ("pareto", 20, 2)
OTHERS = {*itertools.product(("exponential", "pareto", "bursts"), (9, 20, 101), (2, 4))} - {FIRST}


def brute_force_rank(rounds, n_arms):
    """By how often fewer than so many of the fair coins fall heads, in whole numbers; risk is 1/20 over the arms."""
    tails = itertools.accumulate(math.comb(rounds, k) for k in range(rounds // 2))
    return sum(2 * tail * 20 * n_arms <= 2**rounds for tail in tails)


def test_the_rank_is_the_largest_that_the_binomial_allows():
    few = [(count, n_arms) for n_arms in (1, 2, 3, 5, 10) for count in range(1, 61)]
    for count, n_arms in (*few, (1_000, 2), (4_001, 3)):
        assert interval_rank(count, n_arms) == brute_force_rank(count, n_arms), (count, n_arms)


def test_the_fewest_rounds_are_the_first_with_an_interval():
    for n_arms in range(1, 20):
        fewest = fewest_samples(n_arms)
        assert brute_force_rank(fewest, n_arms) >= 1 > brute_force_rank(fewest - 1, n_arms)


def test_the_interval_is_between_the_ranks_from_either_end_in_any_order():
    samples = np.random.default_rng(0).permutation(np.arange(1.0, 42.0))
    rank = brute_force_rank(41, 2)
    assert median_interval(samples, 2) == Interval(21.0, float(rank), float(42 - rank))


def test_the_interval_is_that_of_the_sign_test():
    # The values that a two-sided sign test at this risk does not reject as the median.
    samples = np.sort(np.random.default_rng(1).lognormal(size=30))
    ratio = median_interval(samples, 2)

    def rejected(median):
        smaller = int(np.sum(samples < median))
        return 2 * sum(math.comb(30, k) for k in range(min(smaller, 30 - smaller) + 1)) / 2**30 <= 0.025

    assert not rejected(ratio.low * (1 + 1e-9)) and rejected(ratio.low * (1 - 1e-9))
    assert not rejected(ratio.high * (1 - 1e-9)) and rejected(ratio.high * (1 + 1e-9))


@pytest.mark.parametrize(("noise", "rounds", "n_arms"), [FIRST, *slow(*sorted(OTHERS))])
def test_the_interval_covers_the_true_ratio_as_often_as_it_says_whatever_the_noise(noise, rounds, n_arms):
    draw, trials, true_ratio = np.random.default_rng(rounds), 2_000, 1.3

    def times(count):
        # A machine is sometimes slower than itself, never faster.
        return {
            "exponential": lambda: 1 + draw.exponential(1, count),
            "pareto": lambda: 1 + draw.pareto(1.1, count),
            "bursts": lambda: 1 + 0.01 * draw.random(count) + 5 * (draw.random(count) < 0.2),
        }[noise]()

    covered = 0
    for _ in range(trials):
        # Twins' ratio has the median 1 by symmetry, so that the arm's true ratio is the factor.
        ratio = median_interval(true_ratio * times(rounds) / times(rounds), n_arms)
        covered += ratio.low <= true_ratio <= ratio.high
    nominal = 1 - 0.05 / n_arms
    assert covered / trials >= nominal - 3 * math.sqrt(nominal * (1 - nominal) / trials)


def test_the_ratio_of_two_intervals_holds_both():
    assert Interval(2.0, 1.0, 4.0).over(Interval(1.0, 0.5, 2.0)) == Interval(2.0, 0.5, 8.0)
