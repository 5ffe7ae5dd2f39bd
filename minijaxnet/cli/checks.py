"""The checks of an experiment: of its gradient by hand, and of the derivative rules within its loss."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minijaxnet.experiment import Experiment
from minijaxnet.verify import GradReport
from minijaxnet.verify.check import grad_checker
from minijaxnet.verify.report import headline_of
from minijaxnet.verify.rules import rules_checker, rules_in

# The file in which the verb ``check`` writes its reports.
CHECKED = "check.json"

Check = Callable[[tuple[Any, ...]], GradReport]


def checks_of(
    experiment: Experiment, like: tuple[Any, ...], *, also_jax: bool = False, **options: Any
) -> dict[str, Check]:
    """The checks of an experiment by their names, compiled for arguments like these.

    The rules come first: the gradient by hand is compared with autodiff, which runs them.

    Args:
        experiment: with its loss, and its gradient by hand, if there is one.
        like: parameters, a batch, and a key for an objective that draws.
        also_jax: whether rules of JAX's own, such as that of ``relu``, are checked where there is nothing else.
        options: ``order``, ``seed`` and ``tell``, as for ``grad_checker``.
    """
    by_hand, checks = experiment.value_and_gradient, {}
    rules = rules_in(experiment.objective, like)
    if any(not rule.is_jax for rule in rules) or (rules and also_jax and by_hand is None):
        names = ", ".join(rule.name for rule in rules)
        checks[f"derivative rules ({names})"] = rules_checker(experiment.objective, like, **options)
    if by_hand is not None:
        checks["gradient by hand"] = grad_checker(experiment.objective, by_hand, like, has_value=True, **options)
    return checks


def report_on(experiment: Experiment, arguments: tuple[Any, ...]) -> GradReport | None:
    """The report on the first part by hand that is wrong, or else on the last one; None where nothing is by hand."""
    report = None
    for check in checks_of(experiment, arguments).values():
        report = check(arguments)
        if not report.ok:
            break
    return report


def read_checked(content: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """The check, dtype, point and headline of each report in the file ``CHECKED``; nothing if it is damaged."""
    try:
        return [
            (each["check"], each["dtype"], each["point"], headline_of(each["report"])) for each in content["reports"]
        ]
    except (AttributeError, KeyError, TypeError):
        return []


def count_of(headlines: Sequence[str]) -> str:
    """How many verdicts there are of each kind.

    >>> count_of(["right", "right", "NOT RIGHT"])
    'right at 2, NOT RIGHT at 1 of 3 verdicts'
    """
    if not headlines:
        return "nothing can be read"
    count = len(headlines)
    states = ", ".join(f"{headline} at {n}" for headline, n in Counter(headlines).items())
    return f"{states} of {count} verdict{'s' if count != 1 else ''}"
