"""What there is to check in an experiment: its gradient by hand, and the derivative rules within its loss."""

from collections.abc import Callable
from typing import Any

from minijaxnet.experiment import Experiment
from minijaxnet.verify import GradReport
from minijaxnet.verify.check import grad_checker
from minijaxnet.verify.rules import rules_checker, rules_in

Check = Callable[[tuple[Any, ...]], GradReport]


def checks_of(
    experiment: Experiment,
    like: tuple[Any, ...],
    *,
    order: int = 1,
    seed: int = 0,
    also_jax: bool = False,
    tell: Callable[[str], None] = lambda stage: None,
) -> dict[str, Check]:
    """The checks of an experiment, by what they judge, made ready for arguments like these.

    The rules come first: the gradient by hand is held against autodiff, which runs them.

    Args:
        experiment: with its loss, and its gradient by hand, if there is one.
        like: parameters, a batch, and a key for an objective that draws.
        order: 2 to check second derivatives, too.
        seed: of whatever is drawn.
        also_jax: whether rules of JAX's own, such as that of ``relu``, are checked where there is nothing else.
        tell: told what is being done.
    """
    options: dict[str, Any] = {"order": order, "seed": seed, "tell": tell}
    by_hand, checks = experiment.value_and_gradient, {}
    rules = rules_in(experiment.objective, like)
    if any(not rule.is_jax for rule in rules) or (rules and also_jax and by_hand is None):
        checks[f"derivative rules ({', '.join(rule.name for rule in rules)})"] = rules_checker(
            experiment.objective, like, **options
        )
    if by_hand is not None:
        checks["gradient by hand"] = grad_checker(experiment.objective, by_hand, like, has_value=True, **options)
    return checks
