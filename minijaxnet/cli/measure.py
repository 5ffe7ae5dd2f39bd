"""The numbers that are logged beside the loss that each step sees."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax

from minijaxnet._trees import array_type, number_of
from minijaxnet._types import Params
from minijaxnet.experiment import Experiment
from minijaxnet.run.log import MOST_WATCHED, weights_of

# Rows in the log of a run of one or two weights: enough to draw the descent.
_ROWS = 1_000


def measure_of(
    experiment: Experiment, params: Params, batches: dict[str, Any], key: Any, constants: Mapping[str, float]
) -> Callable[[Any], dict[str, Any]]:
    """``measure(params)``: the loss and metrics over all points of each batch, one or two weights, and constants.

    A logged row's own ``loss`` is that of the step: with minibatches over one of them.

    Raises:
        ValueError: a metric whose name is taken.
        TypeError: a metric that is not a scalar.
    """
    extra, few = () if key is None else (key,), number_of(params) <= MOST_WATCHED
    names = [*measured_names(experiment, batches), *constants, *(weights_of(params) if few else [])]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"metrics: got the name {twice.pop()!r}; expected another, that one is logged already")

    @jax.jit  # the data are arguments: a program cannot hold those of other processes
    def program(params: Params, batches: dict[str, Any], extra: Any) -> dict[str, Any]:
        return measured(experiment, params, batches, extra) | (weights_of(params) if few else {})

    def measure(params: Params) -> dict[str, Any]:
        return program(params, batches, extra) | constants

    for name, value in jax.eval_shape(measure, params).items():
        if not hasattr(value, "shape") or value.shape != ():
            got = array_type(value) if hasattr(value, "shape") else type(value).__name__
            raise TypeError(f"{name}: got {got}; expected a scalar")
    return measure


def measured(experiment: Experiment, params: Params, batches: Mapping[str, Any], extra: tuple) -> dict[str, Any]:
    """The loss and metrics over each batch; ``extra`` is the key of an objective that draws, or empty."""
    numbers = {}
    for of, batch in batches.items():
        numbers[f"{of}_loss"] = experiment.objective(params, batch, *extra)
        prefix = "" if of == "train" else f"{of}_"
        numbers |= {f"{prefix}{name}": metric(params, batch) for name, metric in experiment.metrics.items()}
    return numbers


def measured_names(experiment: Experiment, batches: Collection[str]) -> list[str]:
    """The names of these numbers."""
    of_train = ["train_loss", *experiment.metrics] if "train" in batches else []
    others = [of for of in batches if of != "train"]
    return of_train + [f"{of}_{name}" for of in others for name in ("loss", *experiment.metrics)]


def log_every_of(params: Params, steps: int) -> int | None:
    """Steps from one logged row to the next by default; None leaves it to ``fit``."""
    return max(1, steps // _ROWS) if number_of(params) <= MOST_WATCHED else None
