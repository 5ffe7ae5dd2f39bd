"""Whether the highest or the lowest value of a metric is the best."""

from typing import NamedTuple

import numpy as np

# Parts of the names of metrics whose highest value is the best.
_HIGHER = ("accuracy", "precision", "recall", "f1", "auc", "score", "r2", "likelihood")
# The same where less of it is better.
_LOWER = ("loss", "error", "norm", "mse", "mae", "perplexity", "entropy", "distance", "divergence", "deviance")


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


def goal_of(text: str, where: str) -> Goal:
    """The goal that a text names: ``highest NAME``, ``lowest NAME``, or a name alone.

    With a name alone, the highest accuracy or score is the best, and the lowest loss, error or norm.

    Raises:
        ValueError: a name alone that does not say whether more of it is better.

    >>> print(*(goal_of(text, "by") for text in ("test_loss", "test_accuracy", "highest margin")), sep=", ")
    lowest test_loss, highest test_accuracy, highest margin
    """
    how, _, name = text.partition(" ")
    if how in ("highest", "lowest") and name:
        return Goal(name.strip(), how == "highest")
    highest, lowest = (any(part in text.lower() for part in parts) for parts in (_HIGHER, _LOWER))
    if highest == lowest:
        expected = f"'highest {text}' or 'lowest {text}', since the name does not say which is better"
        raise ValueError(f"{where}: got {text!r}; expected {expected}")
    return Goal(text, highest)
