"""What a run logs beside the loss that each step sees."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from minijaxnet._trees import array_type, number_of
from minijaxnet.experiment import Experiment
from minijaxnet.run.log import MOST_WATCHED, weights_of

# Of one weight or two the log shows so many stops: enough to draw the descent.
_STOPS = 1_000


def measure_of(
    experiment: Experiment,
    params: Any,
    batches: dict[str, Any],
    key: Any,
    also: Mapping[str, float],
) -> Callable[[Any], dict[str, Any]]:
    """``measure(params)``: the loss and metrics over all points of each batch, and few weights.

    And numbers that stay, by ``also``. A logged row's own ``loss`` is the one that the step saw: with minibatches that
    of its batch.

    Raises:
        ValueError: a metric whose name is taken.
        TypeError: one that is no scalar.
    """
    extra, watched = () if key is None else (key,), number_of(params) <= MOST_WATCHED
    names = [_name(of, name) for of in batches for name in ("loss", *experiment.metrics)]
    names += [*also, *(weights_of(params) if watched else [])]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"metrics: got the name {twice.pop()!r}; expected another, that one is logged already")

    @jax.jit  # the data are arguments: a program cannot hold those of other processes
    def measured(params: Any, batches: dict[str, Any], extra: Any) -> dict[str, Any]:
        numbers = {}
        for of, batch in batches.items():
            numbers[_name(of, "loss")] = experiment.objective(params, batch, *extra)
            numbers |= {_name(of, name): metric(params, batch) for name, metric in experiment.metrics.items()}
        return numbers | (weights_of(params) if watched else {})

    def measure(params: Any) -> dict[str, Any]:
        return measured(params, batches, extra) | also

    for name, value in jax.eval_shape(measure, params).items():
        if not hasattr(value, "shape") or value.shape != ():
            got = array_type(value) if hasattr(value, "shape") else type(value).__name__
            raise TypeError(f"{name}: got {got}; expected a scalar")
    return measure


def _name(of: str, name: str) -> str:
    """Under which name a number of a batch is logged: a metric of the training batch under its own."""
    return name if of == "train" and name != "loss" else f"{of}_{name}"


def log_every_of(params: Any, steps: int) -> int | None:
    """Steps from one logged row to the next where nothing is said; None leaves it to ``fit``."""
    return max(1, steps // _STOPS) if number_of(params) <= MOST_WATCHED else None
