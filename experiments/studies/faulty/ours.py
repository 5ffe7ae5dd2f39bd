"""minijaxnet, through ``fit``, ``save_checkpoint`` and ``load_checkpoint``, and its command line."""

import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import minijaxnet as mjn
from minijaxnet.cli import main
from minijaxnet.run import Progress, fit, load_checkpoint, save_checkpoint

from .judge import Arrays
from .tool import CLASSES, FEATURES, HIDDEN, RUN_BATCH, RUN_STEPS, Call, Tool, good_call

NETWORKS = {
    True: mjn.mlp((FEATURES, HIDDEN, CLASSES), activation=jnp.tanh),
    False: mjn.mlp((FEATURES, HIDDEN, 1), activation=jnp.tanh),
}
OBJECTIVES = {
    True: mjn.objective(NETWORKS[True], mjn.softmax_cross_entropy),
    False: mjn.objective(NETWORKS[False], mjn.mean_squared_error),
}
PLAIN = mjn.gradient_descent(OBJECTIVES[True], 0.1)
ADAM = mjn.optax_descent(OBJECTIVES[True], optax.adam(0.01))

STEEP = 'jnp.where(jnp.abs(params["slope"]) > LIMIT, jnp.nan, 1.0)'
LOGARITHM = 'jnp.log(LIMIT - jnp.abs(params["slope"]))'
EXPERIMENT = """
"A line through points."
import jax, jax.numpy as jnp
import minijaxnet as mjn
from beside import FACTOR

def init(key):
    return {"slope": jax.random.normal(key), "offset": jnp.zeros(())}

def loss(params, batch):
    bent = BENT
    return bent * jnp.mean((params["slope"] * batch.x + params["offset"] - batch.y) ** 2)

def value_and_gradient(params, batch):
    errors = params["slope"] * batch.x + params["offset"] - batch.y
    return jnp.mean(errors**2), {"slope": FACTOR * jnp.mean(errors * batch.x), "offset": 2 * jnp.mean(errors)}

def data():
    x = jnp.linspace(-1, 1, 20)
    return mjn.Batch(x, 3 * x + 1), mjn.Batch(x, 3 * x + 1)

experiment = mjn.Experiment("line", init, loss, data, MORE defaults=mjn.Settings(steps=40, learning_rate=0.1))
"""
BY_HAND = "value_and_gradient=value_and_gradient,"


class Ours(Tool):
    """What this repository makes."""

    ours = True
    suffix = ".safetensors"
    layout = "safetensors"
    leaf = r"tree\["

    def train(self, call: Call) -> Arrays:
        """By ``fit``, in minibatches."""
        params = NETWORKS[call.classes].init(jax.random.key(0))
        if call.change_params is not None:
            params = call.change_params(params)
        descent = mjn.gradient_descent(OBJECTIVES[call.classes], call.learning_rate)
        key = jax.random.key(call.seed) if isinstance(call.seed, int) else call.seed
        data = mjn.Batch(call.x, call.y)
        result = fit(descent, descent.init(params), data, steps=call.steps, batch_size=call.batch_size, key=key)
        return self.arrays(result.state.params)

    def diverge(self, how: str, scratch: Path) -> Arrays:
        """By ``minijaxnet run``, which says how it ended; its checkpoints must stay finite."""
        call = self.called(scratch, "run", "--learning-rate", "1e30" if how == "overflow" else "2.5", limit="100.0")
        try:
            return call()
        finally:
            self._check_kept(scratch)

    def _check_kept(self, scratch: Path) -> None:
        """Raise if a checkpoint is not finite."""
        folder = max(scratch.glob("runs/*"))
        for path in folder.glob("checkpoints/*"):
            kept = load_checkpoint(path, _state_of_line(mjn.load_experiment(scratch / "line.py")))
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept["state"].params)):
                raise AssertionError(f"{path}: got NaN; expected that only what is finite is kept")

    def called(
        self, scratch: Path, verb: str, *flags: str, limit: str = "1e30", more: str = "", bent: str = STEEP
    ) -> Callable[[], Arrays]:
        """A call of the command line in a folder, where ``line.py`` is made if it is not there."""
        if not (scratch / "line.py").exists():
            text = EXPERIMENT.replace("BENT", bent).replace("LIMIT", limit).replace("MORE", more)
            (scratch / "line.py").write_text(text, encoding="utf-8")
            (scratch / "beside.py").write_text("FACTOR = 2\n", encoding="utf-8")

        def answer() -> Arrays:
            code, text, folder = command(scratch, verb, *flags)
            if code:
                raise RuntimeError(f"exit code {code}: {text}")
            kept = (folder / name for name in ("metrics.jsonl", "params.safetensors", "result.json"))
            return {path.name: np.frombuffer(path.read_bytes(), np.uint8) for path in kept if path.exists()}

        return answer

    def tree(self, change: str = "") -> Any:
        """A state of Adam; dictionaries and tuples, float32 and int32."""
        params = NETWORKS[True].init(jax.random.key(0))
        if change == "extra leaf":
            params = (*params, {"weights": jnp.ones((2, 2)), "bias": jnp.zeros(2)})
        elif change == "missing leaf":
            params = ({"weights": params[0]["weights"]}, params[1])
        elif change == "wrong shape":
            params = (params[0] | {"weights": jnp.ones((FEATURES + 1, HIDDEN))}, params[1])
        elif change == "renamed key":
            params = ({"weights": params[0]["weights"], "offset": params[0]["bias"]}, params[1])
        elif change == "changed dtype":
            params = (params[0] | {"bias": jnp.zeros(HIDDEN, jnp.float16)}, params[1])
        elif change == "other optimizer":
            return mjn.optax_descent(OBJECTIVES[True], optax.sgd(0.01, momentum=0.9)).init(params)
        return ADAM.init(params)

    def arrays(self, tree: Any) -> Arrays:
        """By JAX's names."""
        found = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}

    def save(self, path: Path, tree: Any) -> None:
        """Whole or not at all."""
        save_checkpoint(path, tree, step=1)

    def load(self, path: Path, like: Any) -> Any:
        """Held against the template."""
        return load_checkpoint(path, like)

    def step(self, tree: Any, number: int) -> Any:
        """One step of Adam."""
        call = good_call(classes=True)
        return ADAM.step(tree, mjn.Batch(call.x, call.y))[0]

    def checkpoints(self, folder: Path) -> list[Path]:
        """Those of the run folder."""
        return super().checkpoints(folder / "checkpoints")

    def run(self, folder: Path, *, resume: bool = False, pause_s: float = 0.0, until: int = RUN_STEPS) -> Arrays:
        """By ``fit``, in minibatches, with a checkpoint at each step; the log belongs to the result."""
        call = good_call(classes=True)

        def on_progress(progress: Progress) -> None:
            time.sleep(pause_s)
            if progress.step == until < RUN_STEPS:
                os.kill(os.getpid(), signal.SIGINT)

        result = fit(
            PLAIN,
            PLAIN.init(NETWORKS[True].init(jax.random.key(0))),
            mjn.Batch(call.x, call.y),
            steps=RUN_STEPS,
            batch_size=RUN_BATCH,
            key=jax.random.key(1),
            log_every=2,
            checkpoint_every=1,
            run_dir=folder,
            resume=resume,
            sink=mjn.Sink(lambda row: None, progress=on_progress),
            on_interrupt="return",
        )
        self.notes = result.notes
        found = self.arrays(result.state) | {"steps": np.array(result.steps_taken)}
        return found | {"metrics": np.frombuffer((folder / "metrics.jsonl").read_bytes(), np.uint8)}


def command(scratch: Path, verb: str, *flags: str) -> tuple[int, str, Path]:
    """Call the command line in a folder: its exit code, what it says, and the newest run folder there."""
    first = {"run": ["line.py", "--bench-seconds", "0"]}.get(verb, [])
    said, before = io.StringIO(), list(sys.path)
    for name in ("beside", "_experiment_line"):
        sys.modules.pop(name, None)
    try:
        with contextlib.chdir(scratch), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                code = main([verb, *first, *flags])
            except SystemExit as error:
                code = int(error.code or 0)
    finally:
        sys.path[:] = before
    folders = sorted(scratch.glob("runs/*"))
    return code, said.getvalue(), folders[-1] if folders else scratch


def _state_of_line(experiment: Any) -> Any:
    descent = mjn.gradient_descent(experiment.objective, 0.1)
    return {"state": descent.init(experiment.init(jax.random.key(0))), "turns": np.zeros((32, 2), np.int64)}
