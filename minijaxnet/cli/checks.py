"""What there is to check in an experiment: its gradient by hand, and the derivative rules within its loss."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minijaxnet.experiment import Experiment
from minijaxnet.verify import GradReport
from minijaxnet.verify.check import grad_checker
from minijaxnet.verify.report import headline_of
from minijaxnet.verify.rules import rules_checker, rules_in

# The file in which the verb ``check`` leaves what it found.
CHECKED = "check.json"

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


def checked_in(told: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """What was judged, in which dtype, at which point, and the headline, of what the file ``CHECKED`` holds."""
    try:
        return [
            (what, precision, point, headline_of(report))
            for what, reports in told["reports"].items()
            for precision, of in reports.items()
            for point, report in of.items()
        ]
    except (AttributeError, KeyError, TypeError):  # it is damaged
        return []


def conclusion_of(headlines: Sequence[str]) -> str:
    """How many verdicts are what.

    >>> conclusion_of(["right", "right", "NOT RIGHT"])
    'right at 2, NOT RIGHT at 1 of 3 verdicts'
    """
    if not headlines:
        return "nothing can be read"
    count = len(headlines)
    states = ", ".join(f"{how} at {n}" for how, n in Counter(headlines).items())
    return f"{states} of {count} verdict{'s' if count != 1 else ''}"
