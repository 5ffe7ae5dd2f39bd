"""``minijaxnet draw``: one picture of an experiment."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from minijaxnet.cli.arms import compare_with_rivals, differentiated, make_descent
from minijaxnet.cli.begin import begin, first_batch
from minijaxnet.cli.errors import UsageError
from minijaxnet.cli.flags import DrawFlags, parse, split_file
from minijaxnet.cli.measured import log_every_of, measure_of
from minijaxnet.experiment import Experiment, load_experiment
from minijaxnet.loop import descend
from minijaxnet.pytrees import cast_floats, number_of
from minijaxnet.report import shown, timing
from minijaxnet.report.curves import draw_curves
from minijaxnet.report.gradients import difference_errors, draw_difference_errors, draw_errors
from minijaxnet.report.rates import draw_sweep
from minijaxnet.report.story import Known, Told, end_of
from minijaxnet.report.style import figure as empty_figure
from minijaxnet.report.style import save, styled
from minijaxnet.report.weight import animate
from minijaxnet.run import fit
from minijaxnet.run.log import MOST_WATCHED
from minijaxnet.sweeps import sweep
from minijaxnet.verify import check_grad

_SEEDS, _RATES = 8, 25
_MOST_CURVED = 200  # weights, of whose Hessian the largest eigenvalue is found
_MOMENTS = 100


class Task(NamedTuple):
    """What is to be drawn, and from where it begins."""

    experiment: Experiment
    flags: DrawFlags
    init: dict[str, Any]
    params: Any
    train: Any
    test: Any
    order_key: Any
    key: Any

    @property
    def batch(self) -> Any:
        """What the first step looks at."""
        return first_batch(self.train, self.flags.batch_size)

    @property
    def extra(self) -> tuple[Any, ...]:
        """The objective's third argument, if it draws numbers."""
        return () if self.key is None else (self.key,)


def main(arguments: Sequence[str]) -> int:
    """Draw one picture of the experiment of a file."""
    file, rest = split_file("draw", arguments)
    experiment = None if file is None else load_experiment(file)
    flags, init, data = parse(DrawFlags, "draw", experiment, file or "FILE", rest)
    assert experiment is not None and file is not None, "without a file only help is shown"
    path = Path(flags.output or f"{experiment.name}-{flags.what}.png")
    suffixes = (".png", ".svg", ".pdf", ".gif") if flags.what == "weight" else (".png", ".svg", ".pdf")
    if path.suffix not in suffixes:
        raise UsageError(f"output: got {path}; expected a file that ends in {', '.join(suffixes)}")
    if not path.parent.is_dir():
        raise UsageError(f"output: got {path}; expected a file in a folder that is there")
    made = empty_figure(height=flags.height)
    with jax.enable_x64(flags.precision == "float64"), styled():
        params, train, test, order_key, key = begin(experiment, flags.seed, flags.precision, init, data)
        task = Task(experiment, flags, init, params, train, test, order_key, key)
        if path.suffix == ".gif":
            _animate(task, path)
        else:
            _DRAW[flags.what](task, made)
            save(made, path)
    print(f"picture: {path}")
    return 0


def _descended(task: Task) -> tuple[Told, Known, list[Any]]:
    """Descend: what a run's folder would tell, what is known of its end, and the params on the way."""
    experiment, flags, params = task.experiment, task.flags, task.params
    descent = make_descent(differentiated(experiment), flags.optimizer, flags.learning_rate)
    measure, path = measure_of(experiment, params, task.train, task.test, task.key), []

    def seen(params: Any) -> dict[str, Any]:
        path.append(jax.tree.map(np.asarray, params))
        return measure(params)

    result = fit(
        descent,
        descent.init(params, task.key),
        task.train,
        steps=flags.steps,
        until_flat=flags.until_flat,
        batch_size=flags.batch_size,
        key=task.order_key if flags.batch_size is not None else None,
        log_every=log_every_of(params, flags.steps) or max(1, flags.steps // _MOMENTS),
        measure=seen,
    )
    status = {"status": result.status.name, "steps_taken": result.steps_taken}
    told = Told(Path(), "done", {"flags": {"learning_rate": flags.learning_rate}}, {}, status, {}, {}, result.rows)
    return told, Known(experiment, result.state.params, task.train, task.test, task.key), path


def _pick(see: Callable[..., Any], title: str) -> Callable[[Task, Any], None]:
    """Draws one of the pictures that a run's page has."""

    def draw(task: Task, figure: Any) -> None:
        told, known, _ = _descended(task)
        seen = see(told, known)
        found = [picture for picture in (seen.wanted if seen else ()) if picture.title == title]
        if not found:
            raise UsageError(f"what: got {task.flags.what}; {task.experiment.name} has nothing to draw there")
        found[0].draw(figure if found[0].whole else figure.subplots())

    return draw


def _animate(task: Task, path: Path) -> None:
    told, known, _ = _descended(task)
    animate(path, shown.bowl(told, known))


def _surface(view: str) -> Callable[[Task, Any], None]:
    """The descent on its loss surface: over its two weights, or over the principal plane of its path."""

    def draw(task: Task, figure: Any) -> None:
        if number_of(task.params) <= MOST_WATCHED:
            return _pick(shown.stops, view)(task, figure)
        _, known, path = _descended(task)
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *path)
        surface, stops, names = shown.over_path(known, stacked)
        [picture] = [picture for picture in shown.views(surface, stops, names) if picture.title == view]
        return picture.draw(figure if picture.whole else figure.subplots())

    return draw


def _loss(task: Task, figure: Any) -> None:
    told, _, _ = _descended(task)
    draw_curves(figure.subplots(), told.rows, ["train_loss", "test_loss"], **end_of(told.result))


def _rates(task: Task, figure: Any) -> None:
    """Final losses over learning rates from a hundredth of the experiment's to a hundred times it, on all points."""
    flags = task.flags

    def run(learning_rate: Any, key: Any) -> Any:
        descent = make_descent(differentiated(task.experiment), flags.optimizer, learning_rate)
        params = cast_floats(task.experiment.init(key, **task.init), jnp.dtype(flags.precision))
        state, trace = descend(descent, descent.init(params, task.key), task.train, steps=flags.steps)
        return {"trace": trace, "loss": task.experiment.objective(state.params, task.train, *task.extra)}

    rates = flags.learning_rate * jnp.logspace(-2, 2, _RATES)
    found = sweep(run, {"learning_rate": rates, "key": jax.random.split(task.order_key, _SEEDS)})
    draw_sweep(figure.subplots(), found, edge=_edge(task))


def _edge(task: Task) -> float | None:
    """The rate from which on gradient descent diverges near where it ends: 2 over the largest curvature there."""
    if number_of(task.params) > _MOST_CURVED or task.flags.optimizer != "gd":
        return None
    _, known, _ = _descended(task)
    flat, unravel = ravel_pytree(known.params)
    hessian = jax.hessian(lambda flat: task.experiment.objective(unravel(flat), task.train, *task.extra))(flat)
    largest = float(np.linalg.eigvalsh(np.asarray(hessian, np.float64))[-1])
    return 2 / largest if np.isfinite(largest) and largest > 0 else None


def _check(task: Task, figure: Any) -> None:
    by_hand = task.experiment.value_and_gradient
    if by_hand is None:
        raise UsageError(f"what: got check; {task.experiment.name} has no gradient by hand")
    arguments = (task.params, task.batch, *task.extra)
    draw_errors(figure.subplots(), check_grad(task.experiment.objective, by_hand, arguments, has_value=True))


def _differences(task: Task, figure: Any) -> None:
    def loss(params: Any, batch: Any) -> Any:
        return task.experiment.objective(params, batch, *task.extra)

    direction = jax.grad(loss)(task.params, task.batch)
    draw_difference_errors(figure.subplots(), difference_errors(loss, task.params, task.batch, direction))


def _comparison(name: str) -> Callable[[Task, Any], None]:
    def draw(task: Task, figure: Any) -> None:
        flags = task.flags
        found = compare_with_rivals(
            task.experiment, flags.optimizer, flags.learning_rate, task.params, task.batch, task.key,
            seconds=flags.seconds,
        )  # fmt: skip
        if found is None:
            raise UsageError(f"what: got {flags.what}; there is nothing to compare its step with")
        getattr(timing, name)(figure.subplots(), found)

    return draw


_DRAW: dict[str, Callable[[Task, Any], None]] = {
    "weight": _pick(shown.stops, "Moments of the descent"),
    "surface": _surface("From above"),
    "hills": _surface("From the side"),
    "network": _pick(shown.predictions, "The network at a point"),
    "loss": _loss,
    "rates": _rates,
    "check": _check,
    "differences": _differences,
    "comparison": _comparison("draw_forest"),
    "samples": _comparison("draw_samples"),
    "compile": _comparison("draw_compile_and_steady"),
    "regions": _pick(shown.predictions, "Predictions in the plane"),
    "confusion": _pick(shown.predictions, "Confusion on test data"),
    "mistakes": _pick(shown.predictions, "The worst mistakes"),
}
