"""The step of an experiment in other frameworks, each in a process of its own: ``minijaxnet bench FILE --against``.

optax, Equinox and Flax take the experiment's own objective. PyTorch and NumPy cannot, and need it in their own words:
``Experiment(..., peers={"torch": objective, "numpy": value_and_gradient})``. All start from the same params, see the
same batch and take plain gradient descent at the same rate; their losses agree before anything is timed.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minijaxnet.bench import ArmTiming, StepComparison
from minijaxnet.bench.peers import Peer, compare_peers
from minijaxnet.bench.worker import Arm, Run, connected, python_loop, serve, torch_loop
from minijaxnet.cli.arms import differentiated
from minijaxnet.descent import gradient_descent
from minijaxnet.experiment import Experiment, load_experiment
from minijaxnet.loop import descend

_OURS = "minijaxnet, descend"


class Task(NamedTuple):
    """What every peer does: gradient descent on an experiment's objective, from params, on one batch."""

    experiment: Experiment
    params: Any
    batch: Any
    learning_rate: float


def check_peers(names: Sequence[str], optimizer: str, precision: str, key: Any) -> None:
    """Say what peers can't be asked before anything is timed.

    Raises:
        ValueError: a name that no peer has; steps that not all of them can take.
    """
    known = [peer for peer in PEERS if peer != "minijaxnet"]
    for name in names:
        if name not in known:
            raise ValueError(
                f"against: got {name!r}; expected some of {', '.join(known)} (an earlier result goes with --since)"
            )
    if names and optimizer != "gd":
        raise ValueError(f"against: got an experiment whose optimizer is {optimizer}; expected gradient descent, gd")
    if names and precision == "bfloat16":
        raise ValueError("against: got the precision bfloat16; expected float32 or float64, which all frameworks know")
    if names and key is not None:
        raise ValueError("against: got an objective that draws numbers; expected one whose losses can be compared")


def compare_with_peers(
    names: Sequence[str], file: str, params: Any, batch: Any, learning_rate: float, *, seconds: float
) -> tuple[StepComparison, dict[str, str]]:
    """``descend`` and the jitted step against the same in other frameworks, and ``{who was not timed: why}``."""
    x64 = jnp.result_type(float) == jnp.float64
    task = (str(Path(file).resolve()), x64, learning_rate), jax.tree.map(np.asarray, (params, batch))

    with tempfile.TemporaryDirectory() as scratch:

        def start(name: str) -> Peer:
            peer = Peer("minijaxnet.cli.peers", (), Path(scratch))
            for part in (name, *task):
                peer.pipe.send(part)
            return peer

        peers = {name: start(name) for name in ("minijaxnet", *names)}
        found = compare_peers(peers, start("minijaxnet"), _OURS, seconds=seconds)
    arms = {label: ArmTiming(row.compile_s, row.samples_s) for label, row in found.rows.items()}
    return StepComparison(_OURS, arms, found.control_s, found.sentinel_s), found.untimed


def _minijaxnet(task: Task) -> dict[str, Arm]:
    descent = gradient_descent(differentiated(task.experiment), task.learning_rate)
    start, batch = descent.init(task.params), task.batch

    def descend_whole(steps: int) -> Any:
        return jax.block_until_ready(descend(descent, start, batch, steps=steps))[1].loss

    @jax.jit
    def step(state: Any, batch: Any) -> tuple[Any, jax.Array]:
        state, info = descent.step(state, batch)
        return state, info.loss

    return {
        _OURS: Arm(lambda: descend_whole, whole=True),
        "minijaxnet, jitted step": Arm(python_loop(step, lambda: (start,), (batch,))),
    }


def _optax(task: Task) -> dict[str, Arm]:
    import optax

    optimizer = optax.sgd(task.learning_rate)

    @jax.jit
    def step(params: Any, opt_state: Any, batch: Any) -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(task.experiment.objective)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    states = (task.params, optimizer.init(task.params))
    return {"optax.sgd, jitted step": Arm(python_loop(step, lambda: states, (task.batch,)))}


def _equinox(task: Task) -> dict[str, Arm]:
    import equinox as eqx  # pyright: ignore[reportMissingImports]
    import optax

    class Model(eqx.Module):
        params: Any

        def __call__(self, batch: Any) -> jax.Array:
            return task.experiment.objective(self.params, batch)

    optimizer = optax.sgd(task.learning_rate)

    @eqx.filter_jit
    def step(model: Any, opt_state: Any, batch: Any) -> tuple[Any, Any, jax.Array]:
        loss, grads = eqx.filter_value_and_grad(lambda model: model(batch))(model)
        updates, opt_state = optimizer.update(grads, opt_state, model)
        return eqx.apply_updates(model, updates), opt_state, loss

    model = Model(task.params)
    states = (model, optimizer.init(eqx.filter(model, eqx.is_array)))
    return {"Equinox, filter_jit": Arm(python_loop(step, lambda: states, (task.batch,)))}


def _flax(task: Task) -> dict[str, Arm]:
    import optax
    from flax import nnx  # pyright: ignore[reportMissingImports]

    leaves, tree = jax.tree.flatten(task.params)

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.leaves = nnx.List([nnx.Param(jnp.copy(leaf)) for leaf in leaves])

        def __call__(self, batch: Any) -> jax.Array:
            return task.experiment.objective(jax.tree.unflatten(tree, [leaf[...] for leaf in self.leaves]), batch)

    optimizer = optax.sgd(task.learning_rate)  # one for all starts: with another, nnx.jit would compile again

    @nnx.jit
    def step(model: Any, optimizer: Any, batch: Any) -> jax.Array:
        loss, grads = nnx.value_and_grad(lambda model: model(batch))(model)
        optimizer.update(model, grads)
        return loss

    def start() -> Run:
        model = Model()
        state = nnx.Optimizer(model, optimizer, wrt=nnx.Param)

        def run(steps: int) -> Any:
            losses = [step(model, state, task.batch) for _ in range(steps)]
            return jax.block_until_ready((nnx.state(model), losses))[1]

        return run

    return {"Flax NNX, nnx.jit": Arm(start)}


def _torch(task: Task) -> dict[str, Arm] | str:
    if (objective := task.experiment.peers.get("torch")) is None:
        return 'the experiment has no peers["torch"], its objective in PyTorch'
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(os.cpu_count() or 1)  # as many as XLA and BLAS take
    batch = jax.tree.map(torch.from_numpy, task.batch)

    def make(objective: Callable[..., Any]) -> Callable[[], Run]:
        def start() -> Run:
            params = jax.tree.map(lambda leaf: torch.tensor(leaf, requires_grad=True), task.params)
            optimizer = torch.optim.SGD(jax.tree.leaves(params), lr=task.learning_rate)
            return torch_loop(optimizer, lambda: objective(params, batch))

        return start

    return {"PyTorch, eager": Arm(make(objective)), "PyTorch, torch.compile": Arm(make(torch.compile(objective)))}


def _numpy(task: Task) -> dict[str, Arm] | str:
    if (value_and_gradient := task.experiment.peers.get("numpy")) is None:
        return 'the experiment has no peers["numpy"], its value and gradient in NumPy'

    def start() -> Run:
        params = jax.tree.map(np.copy, task.params)
        leaves = jax.tree.leaves(params)
        rate = leaves[0].dtype.type(task.learning_rate)

        def run(steps: int) -> Any:
            losses = []
            for _ in range(steps):
                loss, gradient = value_and_gradient(params, task.batch)
                for weight, slope in zip(leaves, jax.tree.leaves(gradient), strict=True):
                    weight -= rate * slope
                losses.append(loss)
            return losses

        return run

    return {"NumPy, by hand": Arm(start)}


PEERS: dict[str, Callable[[Task], dict[str, Arm] | str]] = {
    "minijaxnet": _minijaxnet,
    "optax": _optax,
    "equinox": _equinox,
    "flax": _flax,
    "torch": _torch,
    "numpy": _numpy,
}
_WITH_NUMPY_ARRAYS = ("torch", "numpy")


def open_peer(name: str, task: Task) -> dict[str, Arm] | str:
    """A peer's arms, or why there are none."""
    try:
        if name not in _WITH_NUMPY_ARRAYS:
            task = task._replace(params=jax.device_put(task.params), batch=jax.device_put(task.batch))
        return PEERS[name](task)
    except ImportError as error:
        return f"not installed ({error})"


if __name__ == "__main__":
    with connected(sys.argv[1]) as pipe:
        name, (file, x64, learning_rate) = pipe.recv(), pipe.recv()
        jax.config.update("jax_enable_x64", x64)
        experiment = load_experiment(file)  # before its params: their containers may be its own classes
        params, batch = pipe.recv()
        serve(pipe, open_peer(name, Task(experiment, params, batch, learning_rate)))
