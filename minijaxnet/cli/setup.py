"""An experiment made ready to run: its start, its devices, its descent and the check of its gradient."""

import functools
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from minijaxnet._types import PyTree
from minijaxnet.batches import minibatches_of
from minijaxnet.cli.checks import report_on
from minijaxnet.cli.measure import log_every_of, measure_of
from minijaxnet.cli.optimizers import Optimizer, differentiated, optimizer_of_request
from minijaxnet.cli.placement import mesh_of, placed_data
from minijaxnet.cli.request import Request
from minijaxnet.cli.start import Start, first_batch, start_of
from minijaxnet.descent import Descent, DescentState
from minijaxnet.experiment import loads_its_share
from minijaxnet.parallel import on_mesh, replicate, shard_batch
from minijaxnet.parallel.processes import broadcast_arrays
from minijaxnet.run import FitResult, check_values, fit
from minijaxnet.streams import first_batch_of, is_read
from minijaxnet.verify import GradReport


class Setup(NamedTuple):
    """An experiment made ready to run.

    Attributes:
        request: what to run.
        start: its parameters, data and keys.
        batch: the training data; the first batch where they are read.
        mesh: the devices to run on; None for a single one.
        optimizer: of the request.
        descent: on these devices.
        state: the descent's first state.
        has_share: whether this process has only its own share of the data, and others have the rest.
    """

    request: Request
    start: Start
    batch: PyTree
    mesh: Mesh | None
    optimizer: Optimizer
    descent: Descent
    state: DescentState
    has_share: bool


def set_up(request: Request) -> Setup:
    """The setup of a request, its values checked."""
    experiment, flags = request.experiment, request.flags
    start = start_of(experiment, flags.seed, flags.precision, request.init, request.data)
    mesh, optimizer = mesh_of(flags), optimizer_of_request(request)
    descent = optimizer.descent(differentiated(experiment), flags.learning_rate)
    descent = descent if mesh is None else on_mesh(mesh, descent)
    state = descent.init(start.params, start.draw_key)
    batch = first_batch_of(start.train)
    for name, each in {"train": batch, **start.held_out}.items():
        check_values(descent, state, each, name)
    has_share = jax.process_count() > 1 and loads_its_share(experiment)
    if flags.batch_size is not None and not has_share:
        minibatches_of(batch, flags.batch_size)
    return Setup(request, start, batch, mesh, optimizer, descent, state, has_share)


def placed_fit(setup: Setup) -> Callable[..., FitResult]:
    """``fit`` with all arguments but those of the run folder, its arrays placed on the devices."""
    flags, mesh, state, order_key = setup.request.flags, setup.mesh, setup.state, setup.start.order_key
    shares = loads_its_share(setup.request.experiment)
    train, held_out = placed_data(mesh, setup.start.train, setup.start.held_out, flags.batch_size, shares=shares)
    if mesh is not None:  # from the state of the first process: others may have rounded otherwise
        state, order_key = replicate(mesh, broadcast_arrays(state, state)), replicate(mesh, order_key)
    batches = held_out if is_read(train) else {"train": train, **held_out}
    changed = {name: getattr(flags, name) for name in setup.request.changed}
    return functools.partial(
        fit,
        setup.descent,
        state,
        train,
        steps=flags.steps,
        until_flat=flags.until_flat,
        batch_size=flags.batch_size,
        key=None if flags.batch_size is None else order_key,
        log_every=log_every_of(state.params, flags.steps) if flags.log_every is None else flags.log_every,
        measure=measure_of(setup.request.experiment, state.params, batches, state.key, changed),
        keep_best=flags.keep_best,
        patience=flags.patience,
        checkpoint_every=flags.checkpoint_every or timedelta(seconds=flags.checkpoint_seconds),
        on_interrupt="return",
    )


def check_gradient(setup: Setup) -> GradReport | None:
    """The report on the first part by hand that is wrong, or else on the last one; None where nothing is by hand.

    The arguments are placed as in the descent, if all of them are in this process.
    """
    key, mesh = setup.start.draw_key, setup.mesh
    batch, keys = first_batch(setup.batch, setup.request.flags.batch_size), () if key is None else (key,)
    arguments = (setup.start.params, batch, *keys)
    if mesh is not None and jax.process_count() == 1:
        arguments = (replicate(mesh, setup.start.params), shard_batch(mesh, batch), *replicate(mesh, keys))
    return report_on(setup.request.experiment, arguments)
