"""``minijaxnet check``: is a hand-derived gradient right, at ordinary points and at awkward ones, in three dtypes?"""

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from minijaxnet.cli.begin import begin, first_batch
from minijaxnet.cli.errors import UsageError
from minijaxnet.cli.flags import CheckFlags, parse, split_file
from minijaxnet.descent import gradient_descent
from minijaxnet.experiment import Experiment, load_experiment, load_module
from minijaxnet.loop import descend
from minijaxnet.run.folder import create_run_folder, environment, write_json
from minijaxnet.tables import text_table
from minijaxnet.verify import GradReport, check_grad, check_grad_at, check_vjp

_PRECISIONS = ("float32", "bfloat16", "float64")
Reports = dict[str, dict[str, GradReport]]


def main(arguments: Sequence[str]) -> int:
    """Check the gradient of an experiment, of a small file, or of a function by its name."""
    file, rest = split_file("check", arguments)
    if file is not None and ":" in file and not file.endswith(".py"):
        return _check_named(file, rest)
    module = None if file is None else load_module(file)
    if module is not None and not hasattr(module, "experiment") and hasattr(module, "args"):
        return _told(file or "", _of_parts(vars(module), file or ""))
    experiment = None if file is None else load_experiment(file)
    flags, init_options, data_options = parse(CheckFlags, "check", experiment, file or "FILE", rest)
    assert experiment is not None and file is not None, "without a file only help is shown"
    return _check_experiment(experiment, file, flags, init_options, data_options)


def _check_experiment(
    experiment: Experiment, file: str, flags: CheckFlags, init_options: dict, data_options: dict
) -> int:
    if experiment.value_and_gradient is None:
        raise UsageError(f"{file}: its experiment has no gradient by hand; expected value_and_gradient=")
    reports: Reports = {}
    for precision in _PRECISIONS:
        with jax.enable_x64(precision == "float64"):
            params, train, _, _, key = begin(experiment, flags.seed, precision, init_options, data_options)
            batch = first_batch(train, experiment.defaults.batch_size)
            points = _points(experiment, params, batch, () if key is None else (key,), flags.steps)
            options = {"has_value": True, "order": flags.order, "seed": flags.seed}
            reports[precision] = check_grad_at(experiment.objective, experiment.value_and_gradient, points, **options)
    folder = create_run_folder(flags.runs, f"{experiment.name}-check")
    write_json(folder / "environment.json", environment())
    write_json(
        folder / "check.json",
        {
            "file": file,
            "flags": dataclasses.asdict(flags),
            "reports": {p: {name: r.to_dict() for name, r in of.items()} for p, of in reports.items()},
        },
    )
    print(_table(reports))
    for precision, of_points in reports.items():
        for name, report in of_points.items():
            if not report.ok:
                print(f"\n--- {name}, {precision}\n{report}")
    wrong = sum(not report.ok for of_points in reports.values() for report in of_points.values())
    count = sum(map(len, reports.values()))
    print(f"\n{experiment.name}: {'right' if not wrong else 'NOT RIGHT'} at {count - wrong} of {count} points")
    print(f"written to {folder}")
    return 1 if wrong else 0


def _points(experiment: Experiment, params: Any, batch: Any, key: tuple[Any, ...], steps: int) -> dict[str, tuple]:
    """The start, a trained point, and points at which rules go wrong that are right elsewhere."""
    descent = gradient_descent(experiment.objective, experiment.defaults.learning_rate)
    trained = descend(descent, descent.init(params, *key), batch, steps=steps)[0].params

    def scaled(factor: float) -> Any:
        return jax.tree.map(lambda leaf: (factor * leaf).astype(leaf.dtype), params)

    repeated = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), batch)
    return {
        "start": (params, batch, *key),
        "trained": (trained, batch, *key),
        "zeros": (scaled(0.0), batch, *key),
        "negated": (scaled(-1.0), batch, *key),
        "times 1000": (scaled(1e3), batch, *key),
        "times 0.001": (scaled(1e-3), batch, *key),
        "repeated rows": (params, repeated, *key),
    }


def _table(reports: Reports) -> str:
    """A line a point: right or not in each precision, and the worst rounding against autodiff's."""

    def cell(report: GradReport) -> str:
        ratios = [leaf.precision_ratio for leaf in report.leaves.values() if leaf.precision_ratio is not None]
        return ("right" if report.ok else "NOT RIGHT") + (f", {max(ratios):.2g}" if ratios else "")

    rows = [(name, *(cell(reports[p][name]) for p in reports)) for name in next(iter(reports.values()))]
    title = "gradient by hand against autodiff: verdict, and its rounding error over autodiff's"
    return text_table(("point", *reports), rows, title=title)


def _check_named(name: str, arguments: Sequence[str]) -> int:
    """``package.module:function --args "jnp.ones(3), 2.0"``: the custom rules within a function."""
    if len(arguments) != 2 or arguments[0] != "--args":
        got = " ".join(arguments) or "nothing"
        raise UsageError(
            f'check {name}: got {got}; expected --args with its arguments, as in --args "jnp.ones(3), 2.0"'
        )
    module_name, _, function = name.partition(":")
    try:
        fun: Any = importlib.import_module(module_name)
        for part in function.split("."):
            fun = getattr(fun, part)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"check: got {name}, of which {error}; expected package.module:function") from None
    try:
        args = eval(f"({arguments[1]},)", {"jax": jax, "jnp": jnp})
    except Exception as error:
        raise UsageError(f"--args: got {arguments[1]!r}: {error}; expected Python, with jax and jnp at hand") from None
    return _told(name, check_vjp(fun, args))


def _of_parts(names: dict[str, Any], file: str) -> GradReport:
    """A small file: ``args`` and ``loss`` with ``gradient`` (or ``value_and_gradient``), or ``fun`` with its rules."""

    def take(name: str) -> Callable[..., Any]:
        if not callable(names.get(name)):
            got = "nothing" if name not in names else f"a {type(names[name]).__name__}"
            raise UsageError(f"{file}: {name}: got {got}; expected a function")
        return names[name]

    if "fun" in names:
        return check_vjp(take("fun"), names["args"], reference=names.get("reference"))
    has_value = "value_and_gradient" in names
    by_hand = take("value_and_gradient" if has_value else "gradient")
    return check_grad(take("loss"), by_hand, names["args"], has_value=has_value)


def _told(name: str, report: GradReport) -> int:
    print(f"{name}\n{report}")
    return 0 if report.ok else 1
