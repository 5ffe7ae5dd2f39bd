"""The steps of an experiment: its own, by its optimizer's name, and the rivals that it is timed against."""

import contextlib
import difflib
import inspect
from collections.abc import Callable
from typing import Any

from minijaxnet.bench import StepComparison, compare_steps
from minijaxnet.descent import Descent, gradient_descent, optax_descent
from minijaxnet.experiment import Experiment
from minijaxnet.gradient_rule import with_gradient

_RATES = ("learning_rate", "max_learning_rate")


def differentiated(experiment: Experiment) -> Callable[..., Any]:
    """The objective whose derivative is the gradient by hand, where there is one."""
    by_hand = experiment.value_and_gradient
    return experiment.objective if by_hand is None else with_gradient(experiment.objective, by_hand)


def make_descent(objective: Callable[..., Any], optimizer: str, learning_rate: Any, /, **options: Any) -> Descent:
    """The descent that a name stands for: "gd", or an optimizer of optax, with options of its own.

    The rate of ``polyak_sgd`` is the largest that it may take.

    Raises:
        ValueError: no optimizer has that name, and the nearest ones are named; or none of its options has one.
    """
    if optimizer == "gd":
        if options:
            raise ValueError(f"optimizer: gd takes no {', '.join(options)}; expected one of optax, such as sgd")
        return gradient_descent(objective, learning_rate)
    gradient_descent(objective, learning_rate)  # the same check of the rate for all
    try:
        import optax
    except ImportError:
        raise ImportError(
            f'optimizer: got {optimizer!r}, but optax is not installed: pip install "minijaxnet[optax]"'
        ) from None
    makers = {name: maker for name, maker in vars(optax).items() if name[0] != "_" and _takes_rate(maker)}
    if optimizer not in makers:
        near = difflib.get_close_matches(optimizer, ["gd", *makers], n=3, cutoff=0.5)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise ValueError(f"optimizer: got {optimizer!r}; expected gd or the name of an optimizer of optax{hint}")
    known = inspect.signature(makers[optimizer]).parameters
    rate = next(name for name in _RATES if name in known)
    others = [name for name in known if name != rate]
    if unknown := [name for name in options if name not in others]:
        raise ValueError(f"optimizer: {optimizer} takes no {unknown[0]!r}; expected some of {', '.join(others)}")
    return optax_descent(objective, makers[optimizer](**{rate: learning_rate}, **options))


def describe(optimizer: str) -> str:
    """An optimizer in words."""
    return "gradient descent" if optimizer == "gd" else f"optax.{optimizer}"


def _takes_rate(maker: Any) -> bool:
    if not inspect.isfunction(maker):
        return False
    known = inspect.signature(maker).parameters
    needed = {name for name, parameter in known.items() if parameter.default is parameter.empty}
    return any(name in known and needed <= {name} for name in _RATES)


def compare_with_rivals(
    experiment: Experiment,
    optimizer: str,
    learning_rate: float,
    params: Any,
    batch: Any,
    key: Any,
    *,
    seconds: float,
) -> StepComparison | None:
    """An experiment's own step, the first arm, against its rivals: autodiff where it is by hand, and optax's plain one.

    The baseline is autodiff where there is a gradient by hand. None where there is no rival.
    """
    own, autodiff = describe(optimizer), f"{describe(optimizer)}, autodiff"
    arms = {own: make_descent(experiment.objective, optimizer, learning_rate)}
    if experiment.value_and_gradient is not None:
        by_hand = make_descent(differentiated(experiment), optimizer, learning_rate)
        arms = {f"{own}, gradient by hand": by_hand, autodiff: arms[own]}
    if optimizer == "gd":
        with contextlib.suppress(ImportError):
            arms["optax.sgd, autodiff"] = make_descent(experiment.objective, "sgd", learning_rate)
    else:
        arms["gradient descent, autodiff"] = gradient_descent(experiment.objective, learning_rate)
    if len(arms) < 2:
        return None
    return compare_steps(
        arms,
        params,
        batch,
        baseline=autodiff if autodiff in arms else own,
        seconds=seconds,
        key=key,
        same_result=optimizer == "gd",
    )
