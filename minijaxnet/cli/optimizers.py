"""The steps of an experiment: its own, by its optimizer's name, and the rivals that it is timed against."""

import contextlib
import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from minijaxnet.bench import StepComparison, compare_steps
from minijaxnet.cli.parsing import numbers_in
from minijaxnet.cli.request import Request
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
    """Which optimizer, and with which numbers.

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

    def descent(self, objective: Callable[..., Any], learning_rate: Any) -> Descent:
        """The descent by it.

        The rate of ``polyak_sgd`` is the largest that it may take; a transformation that is given whole has its own.

        Raises:
            ValueError: no optimizer has that name, and the nearest ones are named; or none of its options has one.
        """
        plain = gradient_descent(objective, learning_rate)  # the same check of the rate for all
        if self.name == "gd":
            if self.options:
                raise ValueError(f"optimizer: gd takes no {', '.join(self.options)}; expected one of optax, as sgd")
            return plain
        if self.name == OWN:
            return optax_descent(objective, self._own(learning_rate))
        try:
            import optax
        except ImportError:
            raise ImportError(
                f'optimizer: got {self.name!r}, but optax is not installed: pip install "minijaxnet[optax]"'
            ) from None
        makers = {name: maker for name, maker in vars(optax).items() if name[0] != "_" and _takes_rate(maker)}
        if self.name not in makers:
            near = difflib.get_close_matches(self.name, ["gd", *makers], n=3, cutoff=0.5)
            hint = f" (did you mean {' or '.join(near)}?)" if near else ""
            raise ValueError(f"optimizer: got {self.name!r}; expected gd or the name of an optimizer of optax{hint}")
        known = inspect.signature(makers[self.name]).parameters
        rate = next(name for name in _RATES if name in known)
        others = [name for name in known if name != rate]
        if unknown := [name for name in self.options if name not in others]:
            raise ValueError(f"optimizer: {self.name} takes no {unknown[0]!r}; expected some of {', '.join(others)}")
        return optax_descent(objective, makers[self.name](**{rate: learning_rate}, **self.options))

    def _own(self, learning_rate: Any) -> Any:
        if self.own is None:
            raise ValueError(f"optimizer: got {OWN!r}; expected an experiment with one, Experiment(optimizer=...)")
        if is_transformation(self.own):
            if self.options:
                got = ", ".join(self.options)
                raise ValueError(f"optimizer: got {got}; expected an optimizer(learning_rate, *, {got}=...) of its own")
            return self.own
        known = optimizer_options(self.own)
        if unknown := [name for name in self.options if name not in known]:
            few = ", ".join(known) or "none"
            raise ValueError(f"optimizer: its own takes no {unknown[0]!r}; expected some of its numbers: {few}")
        signature = inspect.signature(self.own)
        options = {**({"steps": self.steps} if "steps" in signature.parameters else {}), **self.options}
        try:
            signature.bind(learning_rate, **options)
        except TypeError as error:
            raise TypeError(f"optimizer: {error}; expected optimizer(learning_rate, *, steps, ...)") from None
        found = self.own(learning_rate, **options)
        if not is_transformation(found):
            raise TypeError(f"optimizer: it returns a {type(found).__name__}; expected a transformation of optax")
        return found


def optimizer_of(experiment: Experiment, name: str, steps: int, options: Mapping[str, Any] | None = None) -> Optimizer:
    """An optimizer by its name; of the experiment's own the numbers are its defaults where none are given."""
    known = optimizer_options(experiment.optimizer) if name == OWN else {}
    return Optimizer(name, {**known, **(options or {})}, experiment.optimizer, steps)


def own_arguments(request: Request) -> Mapping[str, Any]:
    """What the experiment's own optimizer takes, where that is the one."""
    own = request.experiment.optimizer if request.flags.optimizer == OWN else None
    return {} if own is None or is_transformation(own) else inspect.signature(own).parameters


def optimizer_of_request(request: Request) -> Optimizer:
    """That of a run."""
    flags, is_own = request.flags, request.flags.optimizer == OWN
    if is_own and is_transformation(request.experiment.optimizer):
        if flags.learning_rate != request.experiment.defaults.learning_rate:
            expected = "none, since the experiment's optimizer is a transformation that has its own"
            raise ValueError(f"learning_rate: got {flags.learning_rate:g}; expected {expected}")
    options = request.optimizer if is_own else {}
    return optimizer_of(request.experiment, flags.optimizer, flags.steps, options | numbers_in(flags.optimizer_options))


def _takes_rate(maker: Any) -> bool:
    if not inspect.isfunction(maker):
        return False
    known = inspect.signature(maker).parameters
    needed = {name for name, parameter in known.items() if parameter.default is parameter.empty}
    return any(name in known and needed <= {name} for name in _RATES)


def compare_with_rivals(
    experiment: Experiment,
    optimizer: Optimizer,
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
    return compare_steps(
        arms,
        params,
        batch,
        baseline=autodiff if autodiff in arms else own,
        seconds=seconds,
        key=key,
        same_result=optimizer.name == "gd",
    )
