"""The plan of a sweep: the numbers of its flags, its axes, and the function of one descent."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet._trees import cast_floats
from minijaxnet.cli.measure import measured
from minijaxnet.cli.optimizers import differentiated, optimizer_of
from minijaxnet.cli.parsing import parse_options, parse_range, whole_numbers
from minijaxnet.cli.request import Request
from minijaxnet.cli.start import Start, keys_of
from minijaxnet.descent import Descent
from minijaxnet.experiment import OWN, number_options, optimizer_options
from minijaxnet.loop import descend, descend_minibatches


class Plan(NamedTuple):
    """The numbers and the programs of a sweep.

    Attributes:
        values: the numbers of each name.
        options: the names that are numbers of the optimizer.
        axes: the names with several numbers that one program runs at once, and the seeds.
        program_axes: the names whose numbers need a program each: sizes, and numbers that Python code compares.
    """

    values: dict[str, list[Any]]
    options: tuple[str, ...]
    axes: dict[str, np.ndarray]
    program_axes: dict[str, list[Any]]

    def programs(self) -> list[dict[str, Any]]:
        """The numbers of each program."""
        return [
            dict(zip(self.program_axes, some, strict=True)) for some in itertools.product(*self.program_axes.values())
        ]


def plan_of(request: Request) -> Plan:
    """The plan of a request.

    Raises:
        UsageError: a range that is not one, or fractions where whole numbers are needed.
        ValueError: no such optimizer or option of it, or a rate that is not positive.
    """
    flags, experiment = request.flags, request.experiment
    options = (request.optimizer if flags.optimizer == OWN else {}) | parse_options(flags.optimizer_options)
    texts = {"learning_rate": flags.learning_rate} | request.init | options
    values: dict[str, list[Any]] = {name: parse_range(name, text) for name, text in texts.items()}
    first = {name: values[name][0] for name in options}
    for rate in values["learning_rate"]:
        _descent(request, first | {"learning_rate": rate}, tuple(options))
    own_numbers = number_options(experiment.init) | optimizer_options(experiment.optimizer)
    for name, own in own_numbers.items():
        if name in values and isinstance(own, int):
            values[name] = whole_numbers(name, values[name])
    program_axes = {name: values[name] for name in options if isinstance(values[name][0], int)}
    for name in ("learning_rate", *options):
        if len(values[name]) > 1 and not _can_be_traced(request, values, name, tuple(options)):
            program_axes[name] = values[name]
    for name in request.init:
        if len(values[name]) > 1 and not _can_init(request, values, name):
            program_axes[name] = values[name]
    if flags.batch_size != "all":
        program_axes["batch_size"] = whole_numbers("batch_size", parse_range("batch_size", flags.batch_size))
    axes = {name: np.array(some) for name, some in values.items() if len(some) > 1 and name not in program_axes}
    axes["seed"] = np.arange(flags.seeds, dtype=np.uint32)
    return Plan(values, tuple(options), axes, program_axes)


def _descent(request: Request, numbers: dict[str, Any], options: tuple[str, ...]) -> Descent:
    """The descent with some numbers, which are checked here: a compiled program cannot raise errors."""
    experiment, flags = request.experiment, request.flags
    optimizer = optimizer_of(experiment, flags.optimizer, flags.steps, {name: numbers[name] for name in options})
    return optimizer.descent(differentiated(experiment), numbers["learning_rate"])


def _can_be_traced(request: Request, values: dict[str, list[Any]], name: str, options: tuple[str, ...]) -> bool:
    """Whether an optimizer can be made with a traced number; some schedules of optax compare theirs in Python."""
    numbers = {other: values[other][0] for other in ("learning_rate", *options)}
    if isinstance(numbers[name], int):
        return False

    def traced(number: Any) -> None:
        _descent(request, numbers | {name: number}, options)

    try:
        jax.eval_shape(traced, numbers[name])
    except jax.errors.ConcretizationTypeError:
        return False
    return True


def _can_init(request: Request, values: dict[str, list[Any]], name: str) -> bool:
    """Whether params can be made with a traced number; not where it is the size of an array."""
    numbers = {other: values[other][0] for other in request.init}
    key = jax.random.key(0)
    try:
        jax.eval_shape(lambda number: request.experiment.init(key, **numbers | {name: number}), numbers[name])
    except (TypeError, ValueError, jax.errors.ConcretizationTypeError):
        return False
    return True


def run_of(request: Request, plan: Plan, program: dict[str, Any], start: Start) -> Callable[..., dict[str, Any]]:
    """``run(seed, **numbers)``, one descent of a program: its trace, and the loss and metrics where it ended."""
    experiment, flags = request.experiment, request.flags
    fixed = {name: some[0] for name, some in plan.values.items() if len(some) == 1} | program
    batch_size = fixed.pop("batch_size", None)

    def run(seed: Any, **swept: Any) -> dict[str, Any]:
        numbers = fixed | swept
        start_key, order_key, draw_key = keys_of(seed)
        params = experiment.init(start_key, **{name: numbers[name] for name in request.init})
        params = cast_floats(params, jnp.dtype(flags.precision))
        descent = _descent(request, numbers, plan.options)
        key = None if start.draw_key is None else draw_key
        state = descent.init(params, key)
        rest = {"steps": flags.steps, "until_flat": flags.until_flat}
        if batch_size is None:
            state, trace = descend(descent, state, start.train, **rest)
        else:
            state, trace = descend_minibatches(descent, state, start.train, order_key, batch_size=batch_size, **rest)
        extra = () if key is None else (key,)
        metrics = measured(experiment, state.params, start.held_out, extra)
        return {"trace": trace, "loss": experiment.objective(state.params, start.train, *extra), "metrics": metrics}

    return run
