"""A median and the interval that order statistics give it: no assumption on the noise but that samples are alike."""

from typing import NamedTuple

import numpy as np

_CONFIDENCE = 0.95


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


def median_interval(samples: np.ndarray, share: int = 1) -> Interval:
    """The median of samples, and the order statistics that enclose the true one with 95 % confidence.

    With X binomial (n, 1/2), the true median lies between the r-th smallest and the r-th largest of n samples but for a
    probability of at most ``2 P(X < r)``; r is the largest for which that is no more than 5 % over ``share``.

    Args:
        samples: at least one, in any order.
        share: among how many intervals the 5 % are divided, so that all of them hold together (Bonferroni).

    Example:
        >>> median_interval(np.arange(1.0, 10.0))
        Interval(median=5.0, low=2.0, high=8.0)

    Source: Gibbons and Chakraborti, "Nonparametric statistical inference", section 5.2.
    """
    ordered = np.sort(samples)
    rank = interval_rank(len(ordered), share)
    low, high = (ordered[rank - 1], ordered[-rank]) if rank else (np.nan, np.nan)
    return Interval(float(np.median(ordered)), float(low), float(high))


def interval_rank(count: int, share: int = 1) -> int:
    """The largest r with ``2 P(X < r) <= risk`` for X binomial (count, 1/2); 0 if there is none."""
    from scipy.special import bdtr

    risk = (1 - _CONFIDENCE) / share
    return int(np.sum(2 * bdtr(np.arange(count // 2), count, 0.5) <= risk))


def fewest_samples(share: int = 1) -> int:
    """How many samples an interval needs.

    >>> fewest_samples(), fewest_samples(3)
    (6, 7)
    """
    return next(count for count in range(2, 100) if interval_rank(count, share) > 0)
