"""What a page needs of a run beside its folder."""

from typing import Any, NamedTuple

from minijaxnet.experiment import Experiment


class Known(NamedTuple):
    """What is known of a run beside its folder.

    Attributes:
        experiment: that was run.
        params: where it ended, or where it is.
        train: the training batch.
        test: the test batch.
        key: for an objective that draws numbers; None for any other.
    """

    experiment: Experiment
    params: Any
    train: Any
    test: Any
    key: Any = None
