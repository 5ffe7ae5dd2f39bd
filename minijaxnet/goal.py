"""What is best: the highest or the lowest of a number."""

from typing import NamedTuple

import numpy as np

# Parts of the names of numbers of which more is better.
_HIGHER = ("accuracy", "precision", "recall", "f1", "auc", "score", "r2", "likelihood")


class Goal(NamedTuple):
    """A number, and whether more of it is better.

    Attributes:
        name: of the number.
        highest: whether the highest is the best.
    """

    name: str
    highest: bool

    def __str__(self) -> str:
        """In words."""
        return f"{'highest' if self.highest else 'lowest'} {self.name}"

    def better(self, value: float, than: float) -> bool:
        """Whether a number is better than another; NaN never is, and any number is better than NaN."""
        if np.isnan(value) or np.isnan(than):
            return bool(np.isnan(than) and not np.isnan(value))
        return value > than if self.highest else value < than


def goal_of(text: str) -> Goal:
    """A goal by its name: what is called an accuracy or a score should be high, anything else low.

    ``highest NAME`` and ``lowest NAME`` say it.

    >>> print(goal_of("test_loss"), goal_of("test_accuracy"), goal_of("highest margin"), sep=", ")
    lowest test_loss, highest test_accuracy, highest margin
    """
    how, _, name = text.partition(" ")
    if how in ("highest", "lowest") and name:
        return Goal(name.strip(), how == "highest")
    return Goal(text, any(part in text.lower() for part in _HIGHER))
