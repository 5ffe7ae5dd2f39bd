"""``minijaxnet check``: are the gradients right that someone derived, at ordinary points and at awkward ones?"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from minijaxnet._tables import text_table
from minijaxnet._trees import cast_floats
from minijaxnet._types import Params, PyTree
from minijaxnet.cli.check_function import check_named, check_parts
from minijaxnet.cli.checks import CHECKED, checks_of, count_of
from minijaxnet.cli.errors import UsageError
from minijaxnet.cli.flags import CheckFlags
from minijaxnet.cli.parsing import split_path
from minijaxnet.cli.request import Request, parse, read_request
from minijaxnet.cli.screen import screen
from minijaxnet.cli.start import Start, first_batch, start_of
from minijaxnet.descent import DescentState, gradient_descent
from minijaxnet.experiment import load_module
from minijaxnet.loop import descend
from minijaxnet.run.folder import ENVIRONMENT, create_run_folder, environment, write_json
from minijaxnet.verify import GradReport
from minijaxnet.verify.compilation import quick_options

POINTS = ("start", "trained", "zeros", "negated", "times 1000", "times 0.001", "repeated rows")
_PRECISIONS = ("float32", "bfloat16", "float64")

_DESCRIPTION = (
    "Check the gradient by hand of the experiment of a file, and the derivative rules within its loss; or what a small "
    "file defines: args with loss and gradient, or args with fun; or the derivative rules of a function by its name, "
    'as in: minijaxnet check my_package.module:function --args "jnp.ones(3), 2.0"'
)


class Checked(NamedTuple):
    """The report of one check, in one dtype, at one point."""

    check: str
    dtype: str
    point: str
    report: GradReport

    def __str__(self) -> str:
        """Where it was checked."""
        return f"{self.check}, {self.point}, {self.dtype}"


def main(arguments: Sequence[str]) -> int:
    """Check an experiment, a small file, or a function by its name."""
    file, rest = split_path("check", arguments, "the file of an experiment")
    if file is not None and not file.endswith(".py"):
        if ":" in file:
            return check_named(file, parse("check", CheckFlags, file, None, rest, _DESCRIPTION)[0])
        if not Path(file).exists():
            raise UsageError(f"check: there is no file {file}; expected a Python file, or package.module:function")
    if file is not None and not hasattr(module := load_module(file), "experiment") and hasattr(module, "args"):
        return check_parts(vars(module), file, parse("check", CheckFlags, file, None, rest, _DESCRIPTION)[0])
    request = read_request("check", CheckFlags, arguments, _DESCRIPTION)
    return request if isinstance(request, int) else _check_experiment(request)


def _check_experiment(request: Request) -> int:
    experiment, flags = request.experiment, request.flags
    if flags.args is not None:
        raise UsageError(f"--args: got {flags.args!r} for {request.file}, an experiment; expected it for a function")
    precisions = (experiment.defaults.precision,) if flags.quick else _PRECISIONS
    precisions = precisions if flags.precision is None else (flags.precision,)
    points = POINTS[:1] if flags.quick else POINTS
    found: list[Checked] = []
    try:
        with screen() as on:
            count = f"{len(points)} point{'s' if len(points) > 1 else ''}"
            on.say(f"{experiment.name}: {count} in {', '.join(precisions)}")
            on.show_stage("data and the first parameters")
            for checked in _checked(request, points, precisions, on.show_stage):
                found.append(checked)
                report = checked.report
                on.say(f"{checked}: {_cell(report) if report.ok else f'{report.headline}: {report.summary}'}")
    finally:  # also when it is stopped
        if found:
            _print_tables(experiment.name, found)
    if not found:
        print(
            f"{experiment.name}: nothing was checked, since nothing is by hand: no value_and_gradient=, and no "
            "derivative rule within the loss. Its gradient is autodiff's own."
        )
        return 0
    folder = create_run_folder(flags.runs, f"{experiment.name}-check")
    write_json(folder / ENVIRONMENT, environment())
    reports = [checked._asdict() | {"report": checked.report.to_dict()} for checked in found]
    write_json(folder / CHECKED, {"file": request.file, "flags": dataclasses.asdict(flags), "reports": reports})
    print(f"written to {folder}")
    return int(any(checked.report.headline != "right" for checked in found))


def _checked(
    request: Request, points: Sequence[str], precisions: Sequence[str], show_stage: Callable[[str], None]
) -> Iterator[Checked]:
    """The reports of all checks in all dtypes at all points, each as soon as it is made."""
    experiment, flags = request.experiment, request.flags
    start = start_of(experiment, flags.seed, "float32", request.init, request.data, quick_options())
    batch = first_batch(start.train, experiment.defaults.batch_size)
    extra = () if start.draw_key is None else (start.draw_key,)
    where = ""

    def show_where(stage: str) -> None:
        show_stage(f"{where}{stage}")

    made: dict[str, tuple[Params, PyTree]] = {}
    checks = None
    for precision in precisions:
        for point in points:
            where = f"{point}, {precision}: "
            if point == "trained" and point not in made:
                show_where(f"{flags.steps} steps of descent")
            if point not in made:
                made[point] = _point(point, request, start, batch)
            with jax.enable_x64(precision == "float64"):
                arguments = (*cast_floats(made[point], precision), *extra)
                if checks is None or (extra and point == points[0]):  # in another dtype other numbers are drawn
                    options: dict[str, Any] = {"order": flags.order, "seed": flags.seed, "tell": show_where}
                    checks = checks_of(experiment, arguments, also_jax=True, **options)
            if not checks:
                return
            for name, check in checks.items():
                with jax.enable_x64(precision == "float64"):
                    report = check(arguments)
                yield Checked(name, precision, point, report)


def _point(point: str, request: Request, start: Start, batch: PyTree) -> tuple[Params, PyTree]:
    """Parameters and a batch, by the name of the point."""
    factors = {"zeros": 0.0, "negated": -1.0, "times 1000": 1e3, "times 0.001": 1e-3}
    if point in factors:
        return jax.tree.map(lambda leaf: (factors[point] * leaf).astype(leaf.dtype), start.params), batch
    if point == "trained":
        return _trained(request, start, batch), batch
    if point == "repeated rows":
        batch = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), batch)
    return start.params, batch


def _trained(request: Request, start: Start, batch: PyTree) -> Params:
    """The parameters after some steps of descent."""
    experiment = request.experiment
    descent = gradient_descent(experiment.objective, experiment.defaults.learning_rate)

    def end(state: DescentState, batch: PyTree) -> Params:
        return descend(descent, state, batch, steps=request.flags.steps)[0].params

    return jax.jit(end, compiler_options=quick_options())(descent.init(start.params, start.draw_key), batch)


def _print_tables(experiment: str, found: Sequence[Checked]) -> None:
    """Print a table for each check, each report that is not right in full, and the number of verdicts."""
    for check in dict.fromkeys(checked.check for checked in found):
        cells = {(each.point, each.dtype): _cell(each.report) for each in found if each.check == check}
        points, dtypes = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
        rows = [(point, *(cells.get((point, dtype), "-") for dtype in dtypes)) for point in points]
        title = f"{check} against autodiff: verdict, and its rounding error over autodiff's"
        print(f"\n{text_table(('point', *dtypes), rows, title=title)}")
    for checked in found:
        if not checked.report.ok:
            print(f"\n--- {checked}\n{checked.report}")
    print(f"\n{experiment}: {count_of([checked.report.headline for checked in found])}")


def _cell(report: GradReport) -> str:
    ratios = [leaf.precision_ratio for leaf in report.leaves.values() if leaf.precision_ratio is not None]
    return report.headline + (f", {max(ratios):.2g}" if ratios else "")
