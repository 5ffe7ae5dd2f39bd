"""Whether the highest or the lowest value of a metric is the best."""

from typing import NamedTuple

import numpy as np

# Parts of the names of metrics whose highest value is the best.
_HIGHER = ("accuracy", "precision", "recall", "f1", "auc", "score", "r2", "likelihood")


class Goal(NamedTuple):
    """A metric, and whether its highest value is the best.

    Attributes:
        name: of the metric.
        highest: whether the highest value is the best; else it is the lowest.
    """

    name: str
    highest: bool

    def __str__(self) -> str:
        """The goal in words."""
        return f"{'highest' if self.highest else 'lowest'} {self.name}"

    def better(self, value: float, than: float) -> bool:
        """Whether a value is better than another; NaN is worse than any number."""
        if np.isnan(value) or np.isnan(than):
            return bool(np.isnan(than) and not np.isnan(value))
        return value > than if self.highest else value < than


def goal_of(text: str) -> Goal:
    """The goal that a text names: ``highest NAME``, ``lowest NAME``, or a name alone.

    With a name alone, the highest accuracy or score is the best, and the lowest of anything else.

    >>> print(goal_of("test_loss"), goal_of("test_accuracy"), goal_of("highest margin"), sep=", ")
    lowest test_loss, highest test_accuracy, highest margin
    """
    how, _, name = text.partition(" ")
    if how in ("highest", "lowest") and name:
        return Goal(name.strip(), how == "highest")
    return Goal(text, any(part in text.lower() for part in _HIGHER))
