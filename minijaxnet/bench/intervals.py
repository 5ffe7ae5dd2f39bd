"""Medians with intervals from order statistics: samples need the same distribution, but any distribution will do."""

import functools
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

RISK = 0.05
# From this number of samples on, a sum is treated as normal.
_MANY = 200


class Interval(NamedTuple):
    """A median with its interval; ``low`` and ``high`` are NaN where there are too few samples for an interval."""

    median: float
    low: float
    high: float

    def over(self, other: "Interval") -> "Interval":
        """The ratio of two that were measured apart, with the widest interval that theirs allow.

        >>> Interval(2.0, 1.8, 2.2).over(Interval(1.0, 0.9, 1.1))
        Interval(median=2.0, low=1.6363636363636362, high=2.4444444444444446)
        """
        return Interval(self.median / other.median, self.low / other.high, self.high / other.low)

    def cells(self, write: Callable[[float], str], scale: float = 1.0) -> tuple[str, str]:
        """The median and the interval as text, for a table.

        >>> Interval(2e-6, 1.5e-6, 3e-6).cells("{:g}".format, 1e6)
        ('2', '1.5 to 3')
        """
        median, low, high = (write(scale * value) for value in self)
        return median, "too few rounds" if math.isnan(self.low) else f"{low} to {high}"


def median_interval(samples: np.ndarray, risk: float = RISK) -> Interval:
    """The median of samples, and the order statistics that enclose the true one except with probability ``risk``.

    A sample ``(n,)`` lies below the true median as often as above it: the number below is a sum S of n fair coins.
    In samples ``(n, k)`` each of n rounds holds the differences of one time from k others. If that time is distributed
    as the others are, except for a shift, its rank among them is equally likely 0 to k, and S is the sum of n ranks.
    The shift lies between the r-th smallest and the r-th largest of all differences, except with a probability of at
    most ``2 P(S < r)``.

    Args:
        samples: ``(n,)`` or ``(n, k)``, at least one, in any order.
        risk: 5 %, or less where several intervals have to hold together (Bonferroni).

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
    """The least number of samples that an interval needs.

    >>> fewest_samples(), fewest_samples(2), fewest_samples(2, RISK / 3)
    (6, 4, 5)
    """
    return next(count for count in range(2, 100) if interval_rank(count, others, risk) > 0)
