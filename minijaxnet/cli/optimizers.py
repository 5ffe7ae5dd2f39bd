"""The optimizer of an experiment, and the rivals that its step is timed against."""

import contextlib
import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from minijaxnet._types import Objective, PyTree
from minijaxnet.bench import StepComparison, compare_steps
from minijaxnet.cli.parsing import parse_numbers
from minijaxnet.cli.request import Request
from minijaxnet.cli.start import Start
from minijaxnet.custom_gradient import with_gradient
from minijaxnet.descent import Descent, gradient_descent
from minijaxnet.descent_optax import optax_descent
from minijaxnet.experiment import OWN, Experiment, is_transformation, optimizer_options

_RATES = ("learning_rate", "max_learning_rate")


def differentiated(experiment: Experiment) -> Callable[..., Any]:
    """The objective whose derivative is the gradient by hand, where there is one."""
    by_hand = experiment.value_and_gradient
    return experiment.objective if by_hand is None else with_gradient(experiment.objective, by_hand)


class Optimizer(NamedTuple):
    """An optimizer by its name, and its numbers.

    Attributes:
        name: "gd", "own" for the experiment's own, or that of an optimizer of optax.
        options: its numbers beside the learning rate.
        own: the experiment's own, if it has one.
        steps: how many steps it may take, for a schedule.
    """

    name: str
    options: Mapping[str, Any] = {}
    own: Any = None
    steps: int = 0

    def __str__(self) -> str:
        """In words."""
        return {"gd": "gradient descent", OWN: "its own optimizer"}.get(self.name, f"optax.{self.name}")

    def descent(self, objective: Objective, learning_rate: Any) -> Descent:
        """The descent by it.

        The rate of ``polyak_sgd`` is the largest that it may take; a transformation has its own.

        Raises:
            ValueError: no optimizer has that name (near names are suggested), or it has no such option.
        """
        plain = gradient_descent(objective, learning_rate)  # which checks the rate, for all optimizers
        if self.name == "gd":
            if self.options:
                raise ValueError(f"optimizer: gd takes no {', '.join(self.options)}; expected one of optax, as sgd")
            return plain
        made = _own(self, learning_rate) if self.name == OWN else _of_optax(self, learning_rate)
        return optax_descent(objective, made)


def _of_optax(optimizer: Optimizer, learning_rate: Any) -> Any:
    try:
        import optax
    except ImportError:
        how = 'pip install "minijaxnet[optax]"'
        raise ImportError(f"optimizer: got {optimizer.name!r}, but optax is not installed: {how}") from None
    makers = {name: maker for name, maker in vars(optax).items() if name[0] != "_" and _takes_rate(maker)}
    if optimizer.name not in makers:
        near = difflib.get_close_matches(optimizer.name, ["gd", *makers], n=3, cutoff=0.5)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise ValueError(f"optimizer: got {optimizer.name!r}; expected gd or the name of an optimizer of optax{hint}")
    parameters = inspect.signature(makers[optimizer.name]).parameters
    rate = next(name for name in _RATES if name in parameters)
    _check_options(optimizer.name, optimizer.options, [name for name in parameters if name != rate])
    return makers[optimizer.name](**{rate: learning_rate}, **optimizer.options)


def _takes_rate(maker: Any) -> bool:
    if not inspect.isfunction(maker):
        return False
    parameters = inspect.signature(maker).parameters
    required = {name for name, parameter in parameters.items() if parameter.default is parameter.empty}
    return any(name in parameters and required <= {name} for name in _RATES)


def _own(optimizer: Optimizer, learning_rate: Any) -> Any:
    own, options = optimizer.own, dict(optimizer.options)
    if own is None:
        raise ValueError(f"optimizer: got {OWN!r}; expected an experiment with one, Experiment(optimizer=...)")
    if is_transformation(own):
        if options:
            got = ", ".join(options)
            raise ValueError(f"optimizer: got {got}; expected an optimizer(learning_rate, *, {got}=...) of its own")
        return own
    _check_options("its own", options, [*optimizer_options(own)])
    signature = inspect.signature(own)
    if "steps" in signature.parameters:
        options["steps"] = optimizer.steps
    try:
        signature.bind(learning_rate, **options)
    except TypeError as error:
        raise TypeError(f"optimizer: {error}; expected optimizer(learning_rate, *, steps, ...)") from None
    made = own(learning_rate, **options)
    if not is_transformation(made):
        raise TypeError(f"optimizer: it returns a {type(made).__name__}; expected a transformation of optax")
    return made


def _check_options(optimizer: str, options: Mapping[str, Any], possible: Sequence[str]) -> None:
    if unknown := [name for name in options if name not in possible]:
        expected = f"some of {', '.join(possible)}" if possible else "none"
        raise ValueError(f"optimizer: {optimizer} takes no {unknown[0]!r}; expected {expected}")


def optimizer_of(experiment: Experiment, name: str, steps: int, options: Mapping[str, Any]) -> Optimizer:
    """An optimizer by its name; options of the experiment's own that are not given have its defaults."""
    defaults = optimizer_options(experiment.optimizer) if name == OWN else {}
    return Optimizer(name, {**defaults, **options}, experiment.optimizer, steps)


def optimizer_of_request(request: Request) -> Optimizer:
    """The optimizer of a run."""
    experiment, flags, is_own = request.experiment, request.flags, request.flags.optimizer == OWN
    if is_own and is_transformation(experiment.optimizer) and flags.learning_rate != experiment.defaults.learning_rate:
        expected = "none, since the experiment's optimizer is a transformation that has its own"
        raise ValueError(f"learning_rate: got {flags.learning_rate:g}; expected {expected}")
    options = (request.optimizer if is_own else {}) | parse_numbers(flags.optimizer_options)
    return optimizer_of(experiment, flags.optimizer, flags.steps, options)


def compare_with_rivals(
    experiment: Experiment,
    optimizer: Optimizer,
    learning_rate: float,
    start: Start,
    batch: PyTree,
    *,
    seconds: float,
) -> StepComparison | None:
    """An experiment's own step, the first arm, against its rivals; None where there is none.

    The rivals are autodiff, which is the baseline, if the gradient is by hand, and plain gradient descent of optax, or
    ours where the optimizer is another one.
    """
    own, autodiff = str(optimizer), f"{optimizer}, autodiff"
    arms = {own: optimizer.descent(experiment.objective, learning_rate)}
    if experiment.value_and_gradient is not None:
        by_hand = optimizer.descent(differentiated(experiment), learning_rate)
        arms = {f"{own}, gradient by hand": by_hand, autodiff: arms[own]}
    if optimizer.name == "gd":
        with contextlib.suppress(ImportError):
            arms["optax.sgd, autodiff"] = Optimizer("sgd").descent(experiment.objective, learning_rate)
    else:
        arms["gradient descent, autodiff"] = gradient_descent(experiment.objective, learning_rate)
    if len(arms) < 2:
        return None
    options = {"seconds": seconds, "key": start.draw_key, "same_result": optimizer.name == "gd"}
    return compare_steps(arms, start.params, batch, baseline=autodiff if autodiff in arms else own, **options)
