"""What a report of the gradient checker says, in few words."""

import inspect
import re

from minijaxnet.verify import grad_checker


def check_grad_at(loss, gradient, points, **options):
    """``{name: report}`` at points of the same shapes, compiled once."""
    check = grad_checker(loss, gradient, next(iter(points.values())), **options)
    return {name: check(args) for name, args in points.items()}


def states(report, *names):
    """The states of the verdicts concerned; of all without names."""
    return {name: report.verdicts[name].state for name in names or report.verdicts}


def passes(*names):
    return dict.fromkeys(names, "pass")


def failures(report):
    return {name for name, state in states(report).items() if state == "fail"}


def wrong_leaves(report):
    return {path for path, leaf in report.leaves.items() if not leaf.ok}


def named(function, leaf, argnums=None):
    """A leaf by the name that a report has for it; ``leaf`` as ``keystr`` writes it, of one argument or of all."""
    names = [name for name, p in inspect.signature(function).parameters.items() if p.kind is not p.VAR_POSITIONAL]
    if isinstance(argnums, int):
        return leaf or (names[argnums] if argnums < len(names) else f"args[{argnums}]")
    place, rest = re.fullmatch(r"\[(\d+)\](.*)", leaf).groups()
    return (names[int(place)] if int(place) < len(names) else f"args[{place}]") + rest
