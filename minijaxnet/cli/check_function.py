"""The check of a function by its name, and of a small file that defines one."""

import importlib
import operator
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._trees import array_type
from minijaxnet.cli.errors import UsageError
from minijaxnet.cli.flags import CheckFlags
from minijaxnet.cli.screen import screen
from minijaxnet.experiment import own_traceback
from minijaxnet.verify import GradReport
from minijaxnet.verify.check import grad_checker
from minijaxnet.verify.check_vjp import vjp_checker


def check_named(name: str, flags: CheckFlags) -> int:
    """``package.module:function --args "jnp.ones(3), 2.0"``: the derivative rules of a function, or autodiff's own."""
    fun = _function(name)
    args = _arguments(name, flags.args)
    try:
        return _print_report(
            name, lambda tell: vjp_checker(fun, args, order=flags.order, seed=flags.seed, tell=tell)(args)
        )
    except Exception as error:
        given = ", ".join(array_type(x) if hasattr(x, "dtype") else repr(x) for x in jax.tree.leaves(args))
        error.add_note(f"{name} was called with --args: {given}")
        raise


def check_parts(names: Mapping[str, Any], file: str, flags: CheckFlags) -> int:
    """A small file: ``args`` and ``loss`` with ``gradient`` (or ``value_and_gradient``), or ``fun`` with its rules."""
    args: Any = names["args"]
    options: dict[str, Any] = {"order": flags.order, "seed": flags.seed}
    if "fun" in names:
        options["reference"] = names.get("reference")
        return _print_report(file, lambda tell: vjp_checker(names["fun"], args, tell=tell, **options)(args))
    options["has_value"] = "value_and_gradient" in names
    loss: Any = names.get("loss")
    by_hand: Any = names.get("value_and_gradient" if options["has_value"] else "gradient")
    return _print_report(file, lambda tell: grad_checker(loss, by_hand, args, tell=tell, **options)(args))


def _print_report(name: str, check: Callable[[Callable[[str], None]], GradReport]) -> int:
    with screen() as on:
        on.say(name)
        report = check(on.show_stage)
    print(report)
    return 0 if report.ok else 1


def _function(name: str) -> Callable[..., Any]:
    """A function by its name, from the current folder or from where Python finds it."""
    module, _, path = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    expected = f"check: got {name}; expected package.module:function"
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise UsageError(f"{expected}, but the module {module} does not import:\n{own_traceback(error)}") from error
    try:
        return operator.attrgetter(path)(found)
    except AttributeError as error:
        raise UsageError(f"{expected}, but {error}") from None


def _arguments(name: str, text: str | None) -> tuple[Any, ...]:
    """The arguments that ``--args`` stands for."""
    if text is None:
        raise UsageError(f'check {name}: expected --args with its arguments, as in --args "jnp.ones(3), 2.0"')
    try:
        return eval(f"_({text})", {"_": lambda *args: args, "jax": jax, "jnp": jnp, "np": np})
    except Exception as error:
        why = error.msg if isinstance(error, SyntaxError) else f"{type(error).__name__}: {error}"
        expected = "expected Python, with commas between the arguments; it may use np, jnp and jax"
        raise UsageError(f"--args: got {text!r}: {why}; {expected}") from None
