"""``minijaxnet check``: are the gradients right that someone derived, at ordinary points and at awkward ones?"""

import dataclasses
import difflib
import importlib
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._tables import text_table
from minijaxnet._trees import array_type, cast_floats
from minijaxnet.cli.checks import CHECKED, checks_of
from minijaxnet.cli.errors import UsageError
from minijaxnet.cli.flags import CheckFlags
from minijaxnet.cli.parsing import parse, split_file
from minijaxnet.cli.screen import Screen, screen
from minijaxnet.cli.start import first_batch, start_of
from minijaxnet.descent import DescentState, gradient_descent
from minijaxnet.experiment import Experiment, load_experiment, load_module, own_traceback
from minijaxnet.loop import descend
from minijaxnet.run.folder import create_run_folder, environment, write_json
from minijaxnet.verify import GradReport
from minijaxnet.verify.check import grad_checker
from minijaxnet.verify.check_vjp import vjp_checker
from minijaxnet.verify.compilation import quick_options

_PRECISIONS = ("float32", "bfloat16", "float64")
# The points, each by how it is made of the start, the trained parameters and the batch.
_POINTS: dict[str, Callable[[Any, Callable[[], Any], Any], tuple[Any, Any]]] = {
    "start": lambda params, trained, batch: (params, batch),
    "trained": lambda params, trained, batch: (trained(), batch),
    "zeros": lambda params, trained, batch: (_scaled(params, 0.0), batch),
    "negated": lambda params, trained, batch: (_scaled(params, -1.0), batch),
    "times 1000": lambda params, trained, batch: (_scaled(params, 1e3), batch),
    "times 0.001": lambda params, trained, batch: (_scaled(params, 1e-3), batch),
    "repeated rows": lambda params, trained, batch: (
        params,
        jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), batch),
    ),
}
# By what is judged, by the dtype, by the point.
Reports = dict[str, dict[str, GradReport]]
Found = dict[str, Reports]


def main(arguments: Sequence[str]) -> int:
    """Check an experiment, a small file, or a function by its name."""
    file, rest = split_file("check", arguments)
    if file is not None and ":" in file and not file.endswith(".py"):
        return _check_named(file, parse(CheckFlags, "check", None, file, rest).flags)
    if file is not None and not Path(file).exists() and not file.endswith(".py"):
        raise UsageError(f"check: there is no file {file}; expected a Python file, or package.module:function")
    module = None if file is None else load_module(file)
    if module is not None and not hasattr(module, "experiment") and hasattr(module, "args"):
        return _check_parts(vars(module), file or "", parse(CheckFlags, "check", None, file or "", rest).flags)
    experiment = None if file is None else load_experiment(file)
    flags, init_options, data_options, _ = parse(CheckFlags, "check", experiment, file or "FILE", rest)
    assert experiment is not None and file is not None, "without a file only help is shown"
    return _check_experiment(experiment, file, flags, init_options, data_options)


# --- An experiment ----------------------------------------------------------------------------------------------------


def _check_experiment(
    experiment: Experiment, file: str, flags: CheckFlags, init_options: dict, data_options: dict
) -> int:
    if flags.args is not None:
        raise UsageError(
            f"--args: got {flags.args!r} for {file}, an experiment; expected it for a function by its name"
        )
    quick = (experiment.defaults.precision,) if flags.quick else _PRECISIONS
    precisions = (flags.precision,) if flags.precision else quick
    names = ["start"] if flags.quick else [*_POINTS]
    found: Found = {}
    try:
        with screen() as on:
            on.say(f"{experiment.name}: {_counted(names, 'point')} in {', '.join(precisions)}")
            on.tell("data and the first parameters")
            params, train, *_, key = start_of(
                experiment, flags.seed, "float32", init_options, data_options, quick_options()
            )
            batch = first_batch(train, experiment.defaults.batch_size)
            start = (params, batch) if key is None else (params, batch, key)
            _judge(found, experiment, start, names, precisions, flags, on)
    except KeyboardInterrupt:
        done = sum(len(of) for reports in found.values() for of in reports.values())
        if found:
            _conclude(experiment.name, found)
        print(f"stopped after {done} of {len(names) * len(precisions) * max(len(found), 1)} verdicts")
        raise
    if not found:
        print(
            f"{experiment.name}: nothing was judged, for there is nothing by hand: no value_and_gradient=, and no "
            "derivative rule within the loss. Its gradient is autodiff's own."
        )
        return 0
    folder = create_run_folder(flags.runs, f"{experiment.name}-check")
    write_json(folder / "environment.json", environment())
    told = {
        what: {precision: {name: r.to_dict() for name, r in of.items()} for precision, of in reports.items()}
        for what, reports in found.items()
    }
    write_json(folder / CHECKED, {"file": file, "flags": dataclasses.asdict(flags), "reports": told})
    code = _conclude(experiment.name, found)
    print(f"written to {folder}")
    return code


def _judge(
    found: Found,
    experiment: Experiment,
    start: tuple[Any, ...],
    names: Sequence[str],
    precisions: Sequence[str],
    flags: CheckFlags,
    on: Screen,
) -> None:
    """Fill in the reports at all points, and tell each as soon as it is there; none where nothing is by hand."""
    doing = ""

    def tell(stage: str) -> None:
        on.tell(f"{doing}{stage}")

    def trained() -> Any:
        tell(f"{flags.steps} steps of descent")
        descent = gradient_descent(experiment.objective, experiment.defaults.learning_rate)

        def ended(state: DescentState, batch: Any) -> Any:
            return descend(descent, state, batch, steps=flags.steps)[0].params

        return jax.jit(ended, compiler_options=quick_options())(descent.init(params, *extra), batch)

    params, batch, *extra = start
    options: dict[str, Any] = {"order": flags.order, "seed": flags.seed, "also_jax": True, "tell": tell}
    points: dict[str, Any] = {}
    checks = None
    for precision in precisions:
        for name in names:
            doing = f"{name}, {precision}: "
            if name not in points:
                points[name] = _POINTS[name](params, trained, batch)
            with jax.enable_x64(precision == "float64"):
                args = (*cast_floats(points[name], precision), *extra)
                if checks is None or (extra and name == names[0]):  # in another dtype other numbers are drawn
                    checks = checks_of(experiment, args, **options)
                for what, check in checks.items():
                    report = found.setdefault(what, {}).setdefault(precision, {})[name] = check(args)
                    how = _cell(report) if report.ok else f"{report.headline}: {report.summary}"
                    on.say(f"{f'{what}, ' if len(checks) > 1 else ''}{name}, {precision}: {how}")
        if not checks:
            return


def _conclude(experiment: str, found: Found) -> int:
    """Print a table for each check, what is wrong in full, and the end of it; the exit code."""
    judged = [(what, p, name, r) for what, of in found.items() for p, at in of.items() for name, r in at.items()]
    for what, reports in found.items():
        print(f"\n{_table(what, reports)}")
    for what, precision, name, report in judged:
        if not report.ok:
            print(f"\n--- {f'{what}, ' if len(found) > 1 else ''}{name}, {precision}\n{report}")
    kind = "point" if len(found) == 1 else "verdict"
    states = Counter(report.headline for *_, report in judged)
    print(f"\n{experiment}: {', '.join(f'{how} at {n}' for how, n in states.items())} of {_counted(judged, kind)}")
    return 0 if [*states] == ["right"] else 1


def _table(what: str, reports: Reports) -> str:
    """A line a point: right or not in each precision, and the worst rounding against autodiff's."""
    names = list(dict.fromkeys(name for of in reports.values() for name in of))
    rows = [(name, *(_cell(of[name]) if name in of else "-" for of in reports.values())) for name in names]
    title = f"{what} against autodiff: verdict, and its rounding error over autodiff's"
    return text_table(("point", *reports), rows, title=title)


def _cell(report: GradReport) -> str:
    ratios = [leaf.precision_ratio for leaf in report.leaves.values() if leaf.precision_ratio is not None]
    return report.headline + (f", {max(ratios):.2g}" if ratios else "")


def _scaled(params: Any, factor: float) -> Any:
    return jax.tree.map(lambda leaf: (factor * leaf).astype(leaf.dtype), params)


def _counted(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}{'s' if len(things) != 1 else ''}"


# --- A function by its name, and a small file -------------------------------------------------------------------------


def _check_named(name: str, flags: CheckFlags) -> int:
    """``package.module:function --args "jnp.ones(3), 2.0"``: the derivative rules of a function, or autodiff's own."""
    fun = _function(name)
    args = _arguments(name, fun, flags.args)
    try:
        return _told(name, lambda tell: vjp_checker(fun, args, order=flags.order, seed=flags.seed, tell=tell)(args))
    except Exception as error:
        given = ", ".join(array_type(x) if hasattr(x, "dtype") else repr(x) for x in jax.tree.leaves(args))
        error.add_note(f"{name} was called with --args: {given}")
        raise


def _function(name: str) -> Callable[..., Any]:
    """A function by its name, from the current folder or from where Python finds it."""
    module_name, _, parts = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *parts.split("."))):
        raise UsageError(f"check: got {name}; expected package.module:function")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _not_imported(module_name, error) from error
        raise UsageError(
            f"check: there is no module {error.name}, neither in the current folder nor where Python looks; "
            f"expected package.module:function, got {name}"
        ) from None
    except (Exception, SystemExit) as error:
        raise _not_imported(module_name, error) from error
    for part in parts.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=1)
            what = f"the module {module_name}" if isinstance(found, ModuleType) else type(found).__name__
            raise UsageError(
                f"check: {what} has no {part!r}{f'; did you mean {near[0]}?' if near else ''}; "
                f"expected package.module:function, got {name}"
            )
        found = getattr(found, part)
    if not callable(found):
        kind = type(found).__name__
        raise UsageError(f"check: {name} is {'an' if kind[0] in 'aeiou' else 'a'} {kind}; expected a function")
    return found


def _not_imported(module: str, error: BaseException) -> UsageError:
    return UsageError(f"check: the module {module} does not import:\n{own_traceback(error)}")


def _arguments(name: str, fun: Callable[..., Any], text: str | None) -> tuple[Any, ...]:
    """What ``--args`` says, if the function can be called with it."""
    if text is None:
        raise UsageError(f'check {name}: expected --args with its arguments, as in --args "jnp.ones(3), 2.0"')
    try:
        args = eval(f"_({text})", {"_": lambda *args: args, "jax": jax, "jnp": jnp, "np": np})
    except Exception as error:
        why = error.msg if isinstance(error, SyntaxError) else f"{type(error).__name__}: {error}"
        raise UsageError(
            f"--args: got {text!r}: {why}; expected Python, with commas between the arguments, and np, jnp and jax "
            "at hand"
        ) from None
    try:
        signature = inspect.signature(fun)
    except (TypeError, ValueError):  # it doesn't tell
        signature = None
    if signature is not None:
        try:
            signature.bind(*args)
        except TypeError as error:
            takes = f"{name.rpartition(':')[2]}{signature}"
            raise UsageError(f"--args: got {_counted(args, 'argument')} for {takes}: {error}") from None
    if not any(jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in jax.tree.leaves(args) if _is_number(x)):
        raise UsageError(
            f"--args: got {text!r}, without a floating number; expected one at least, to differentiate with respect "
            "to: 3.0 for 3, jnp.ones(3)"
        )
    return args


def _is_number(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") or isinstance(leaf, int | float | complex)


def _check_parts(names: Mapping[str, Any], file: str, flags: CheckFlags) -> int:
    """A small file: ``args`` and ``loss`` with ``gradient`` (or ``value_and_gradient``), or ``fun`` with its rules."""

    def take(name: str) -> Callable[..., Any]:
        if not callable(names.get(name)):
            got = "nothing" if name not in names else f"a {type(names[name]).__name__}"
            raise UsageError(f"{file}: {name}: got {got}; expected a function")
        return names[name]

    args = names["args"]
    options: dict[str, Any] = {"order": flags.order, "seed": flags.seed}
    if "fun" in names:
        fun, reference = take("fun"), names.get("reference")
        return _told(file, lambda tell: vjp_checker(fun, args, reference=reference, tell=tell, **options)(args))
    has_value = "value_and_gradient" in names
    by_hand, loss = take("value_and_gradient" if has_value else "gradient"), take("loss")
    return _told(file, lambda tell: grad_checker(loss, by_hand, args, has_value=has_value, tell=tell, **options)(args))


def _told(name: str, check: Callable[[Callable[[str], None]], GradReport]) -> int:
    with screen() as on:
        on.say(name)
        report = check(on.tell)
    print(report)
    return 0 if report.ok else 1
