"""The custom derivative rules within an objective: which there are, whether they are right, and which of them is wrong.

A rule is somewhere within a loss, at arguments that the loss computes. The gradient of the loss with all of its rules
is compared with that without any; where these differ, each rule is put back alone, and the gradient is wrong again with
those that are at fault.
"""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from minijaxnet._jaxpr import called, equations
from minijaxnet.verify.check_vjp import RULES, vjp_checker
from minijaxnet.verify.report import GradReport, Subject, listed

_JAX = Path(jax.__file__).parent


class Rule(NamedTuple):
    """A function with a derivative rule of its own.

    Attributes:
        name: of the function.
        file: where it is defined; "" if that is unknown.
        line: in that file.
    """

    name: str
    file: str
    line: str

    @property
    def is_jax(self) -> bool:
        """Whether it is JAX's own, such as ``jax.nn.relu``."""
        return _JAX in Path(self.file).parents

    def __str__(self) -> str:
        """Its name, and where it is."""
        return f"{self.name} ({Path(self.file).name}:{self.line})" if self.file else self.name


def rules_in(function: Callable[..., Any], args: tuple[Any, ...]) -> list[Rule]:
    """The custom derivative rules within a function, those of JAX last; only the shapes of ``args`` matter.

    >>> [rule.name for rule in rules_in(lambda x: jax.nn.relu(x) + jax.numpy.sin(x), (1.0,))]
    ['relu']
    """
    found = {rule for eqn in equations(jax.make_jaxpr(function)(*args)) if (rule := _rule_of(eqn)) is not None}
    return sorted(found, key=lambda rule: (rule.is_jax, rule))


def rules_checker(
    objective: Callable[..., Any],
    like: tuple[Any, ...],
    *,
    order: int = 1,
    seed: int = 0,
    tell: Callable[[str], None] = lambda stage: None,
) -> Callable[[tuple[Any, ...]], GradReport]:
    """The check of the derivative rules within an objective, by its gradient; compiled as by ``grad_checker``.

    Args:
        objective: ``objective(params, *rest)``, a scalar, differentiated with respect to its first argument.
        like: arguments of the shapes that will come.
        order: 2 to check the derivative of the gradient, too.
        seed: of random directions and signs.
        tell: called with what is being done.

    Returns:
        ``check(args)``, a report whose first hints name the rules at fault.

    Example:
        >>> @jax.custom_vjp
        ... def double(x):
        ...     return 2 * x
        >>> double.defvjp(lambda x: (2 * x, None), lambda _, c: (3 * c,))
        >>> check = rules_checker(lambda w: double(jax.nn.relu(w)), (1.0,))
        >>> print(check((1.0,)).hints[0].split(" (")[0])
        the derivative rule at fault is that of double
    """
    rules = rules_in(objective, like)
    options: dict[str, Any] = {"argnums": 0, "order": order, "seed": seed}
    check = vjp_checker(objective, like, tell=tell, **options)

    @functools.cache
    def check_alone(rule: Rule) -> Callable[[tuple[Any, ...]], GradReport]:
        return vjp_checker(_with_only(objective, rule), like, **options)

    def is_wrong(rule: Rule, args: tuple[Any, ...]) -> bool:
        tell(f"is it {rule.name}?")
        try:
            return check_alone(rule)(args).headline == "NOT RIGHT"
        except Exception:  # without the others there may be no derivative
            return False

    def checked(args: tuple[Any, ...]) -> GradReport:
        report, hints = check(args), []
        if report.headline == "NOT RIGHT":
            suspects = [rule for rule in rules if not rule.is_jax] or rules
            at_fault = suspects if len(suspects) == 1 else [rule for rule in suspects if is_wrong(rule, args)]
            hints = [f"the derivative rule at fault is that of {rule}" for rule in at_fault]
            hints = hints or [f"no derivative rule is wrong alone: {listed(list(map(str, suspects)))}"]
        subject = Subject("gradient through derivative rules", report.subject.reference)
        return GradReport(report.verdicts, report.leaves, (*hints, *report.hints), subject)

    return checked


def _with_only(function: Callable[..., Any], rule: Rule) -> Callable[..., Any]:
    """A function without its custom rules, but for one."""
    from minijaxnet.verify.interpreter import Hooks, interpret

    @functools.wraps(function)
    def with_only(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        hooks = Hooks(keeps=lambda eqn: _rule_of(eqn) == rule)
        results = interpret(closed.jaxpr, closed.consts, jax.tree.leaves(args), wide=False, hooks=hooks)
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return with_only


def _rule_of(eqn: Any) -> Rule | None:
    """The function with a rule that an operation of a program is; None for any other."""
    if not eqn.primitive.name.startswith(RULES):
        return None
    primitive = eqn.params.get("_prim")
    program = called(eqn) or getattr(primitive, "traced", None)
    for _ in range(2):  # of what is traced the closed program, and of that the program
        program = getattr(program, "jaxpr", program)
    source = getattr(getattr(program, "debug_info", None), "func_src_info", None)
    if source:  # "swish at /home/me/it.py:12"
        name, _, place = source.partition(" at ")
        return Rule(name, *place.rpartition(":")[::2])
    if primitive is None:
        return Rule(eqn.primitive.name, "", "")
    kind = type(primitive)
    return Rule(kind.__name__, inspect.getsourcefile(kind) or "", str(inspect.getsourcelines(kind)[1]))
