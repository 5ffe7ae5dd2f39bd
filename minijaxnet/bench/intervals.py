"""Medians and the intervals that order statistics give them: no assumption on the noise but that samples are alike."""

import functools
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

RISK = 0.05
# From so many samples on, a sum is as good as normal.
_MANY = 200


class Interval(NamedTuple):
    """A median with its interval; ``low`` and ``high`` are NaN where there are too few samples for one."""

    median: float
    low: float
    high: float

    def over(self, other: "Interval") -> "Interval":
        """The ratio of two that were measured apart: as far as their intervals can be from one another.

        >>> Interval(2.0, 1.8, 2.2).over(Interval(1.0, 0.9, 1.1))
        Interval(median=2.0, low=1.6363636363636362, high=2.4444444444444446)
        """
        return Interval(self.median / other.median, self.low / other.high, self.high / other.low)


def median_interval(samples: np.ndarray, risk: float = RISK) -> Interval:
    """The median of samples, and the order statistics that enclose the true one but for a probability of ``risk``.

    Samples ``(n,)`` lie below the true median as often as above: how many do so is a sum S of n fair coins. Samples
    ``(n, k)`` are, in each of n rounds, the differences of one time from k others; if it is drawn as they are, but for
    a shift, then so is its rank among them, from 0 to k, and S is the sum of n of these. The shift lies between the
    r-th smallest and the r-th largest of all differences but for a probability of at most ``2 P(S < r)``.

    Args:
        samples: ``(n,)`` or ``(n, k)``, at least one, in any order.
        risk: what 95 % leave, or less where several intervals have to hold together (Bonferroni).

    Example:
        >>> median_interval(np.arange(1.0, 10.0))
        Interval(median=5.0, low=2.0, high=8.0)

    Source: Gibbons and Chakraborti, "Nonparametric statistical inference", section 5.2; Steel, "A multiple comparison
        sign test: treatments versus control", 1959, for one entry of the control in each round.
    """
    ordered = np.sort(samples, axis=None)
    rank = interval_rank(len(samples), samples[0].size, risk)
    low, high = (ordered[rank - 1], ordered[-rank]) if rank else (np.nan, np.nan)
    return Interval(float(np.median(ordered)), float(low), float(high))


@functools.cache
def interval_rank(count: int, others: int = 1, risk: float = RISK) -> int:
    """The largest r with ``2 P(S < r) <= risk``, S the sum of ``count`` ranks from 0 to ``others``; 0 if there is none.

    >>> interval_rank(9), interval_rank(9, 2), interval_rank(5)
    (2, 4, 0)
    """
    if count > _MANY:
        # A rank's variance is k (k + 2) / 12; half a rank for the step from one to the next.
        deviation = (count * others * (others + 2) / 12) ** 0.5
        return int(count * others / 2 + NormalDist().inv_cdf(risk / 2) * deviation + 0.5)
    ranks = np.full(others + 1, 1 / (others + 1))
    below = np.cumsum(functools.reduce(np.convolve, [ranks] * count))
    return int(np.sum(2 * below[: count * others // 2] <= risk * (1 + 1e-12)))


def fewest_samples(others: int = 1, risk: float = RISK) -> int:
    """How many samples an interval needs.

    >>> fewest_samples(), fewest_samples(2), fewest_samples(2, RISK / 3)
    (6, 4, 5)
    """
    return next(count for count in range(2, 100) if interval_rank(count, others, risk) > 0)
