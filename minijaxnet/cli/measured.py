"""What a run logs beside the loss that each step sees."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from minijaxnet.experiment import Experiment
from minijaxnet.pytrees import array_type, number_of
from minijaxnet.run.log import MOST_WATCHED, weights_of

# Of one weight or two the log shows so many stops: enough to draw the descent.
_STOPS = 1_000


def measure_of(
    experiment: Experiment,
    params: Any,
    train: Any,
    held: dict[str, Any],
    key: Any,
    also: Mapping[str, float],
) -> Callable[[Any], dict[str, Any]]:
    """``measure(params)``: the loss and metrics over all training points, over each batch held back, and few weights.

    And numbers that stay, by ``also``. A logged row's own ``loss`` is the one that the step saw: with minibatches that
    of its batch.

    Raises:
        ValueError: a metric whose name is taken.
        TypeError: one that is no scalar.
    """
    extra, watched = () if key is None else (key,), number_of(params) <= MOST_WATCHED
    each = ("loss", *experiment.metrics)
    names = ["train_loss", *experiment.metrics, *(f"{of}_{name}" for of in held for name in each)]
    names += [*also, *(weights_of(params) if watched else [])]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"metrics: got the name {twice.pop()!r}; expected another, that one is logged already")

    @jax.jit  # the data are arguments: a program cannot hold those of other processes
    def measured(params: Any, train: Any, held: dict[str, Any], extra: Any) -> dict[str, Any]:
        numbers = {"train_loss": experiment.objective(params, train, *extra)}
        numbers |= {name: metric(params, train) for name, metric in experiment.metrics.items()}
        for of, batch in held.items():
            numbers[f"{of}_loss"] = experiment.objective(params, batch, *extra)
            numbers |= {f"{of}_{name}": metric(params, batch) for name, metric in experiment.metrics.items()}
        return numbers | (weights_of(params) if watched else {})

    def measure(params: Any) -> dict[str, Any]:
        return measured(params, train, held, extra) | also

    for name, value in jax.eval_shape(measure, params).items():
        if not hasattr(value, "shape") or value.shape != ():
            got = array_type(value) if hasattr(value, "shape") else type(value).__name__
            raise TypeError(f"{name}: got {got}; expected a scalar")
    return measure


def log_every_of(params: Any, steps: int) -> int | None:
    """Steps from one logged row to the next where nothing is said; None leaves it to ``fit``."""
    return max(1, steps // _STOPS) if number_of(params) <= MOST_WATCHED else None
