"""minijaxnet, through ``fit``, ``save_checkpoint`` and ``load_checkpoint``, and its command line."""

import contextlib
import functools
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
from minijaxnet.run import Progress

from .judge import Arrays, NotOffered
from .tool import CLASSES, FEATURES, HIDDEN, RUN_BATCH, RUN_STEPS, Call, Tool, good_call

NETWORKS = {
    True: mjn.mlp((FEATURES, HIDDEN, CLASSES), activation=jnp.tanh),
    False: mjn.mlp((FEATURES, HIDDEN, 1), activation=jnp.tanh),
}
OBJECTIVES = {
    True: mjn.objective(NETWORKS[True], mjn.softmax_cross_entropy),
    False: mjn.objective(NETWORKS[False], mjn.mean_squared_error),
}
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


@functools.cache
def plain_descent() -> mjn.Descent:
    """Gradient descent; not made by the import, for its learning rate is an array, which starts JAX's threads."""
    return mjn.gradient_descent(OBJECTIVES[True], 0.1)


class Ours(Tool):
    """minijaxnet.

    Attributes:
        notes: what the last run said beside its result.
    """

    ours = True
    suffix = ".safetensors"
    leaf = r"tree\["
    notes: tuple[str, ...] = ()

    def train(self, call: Call) -> Arrays:
        """By ``fit``, in minibatches."""
        params = call.change_params(NETWORKS[call.classes].init(jax.random.key(0)))
        descent = mjn.gradient_descent(OBJECTIVES[call.classes], call.learning_rate)
        key = jax.random.key(call.seed) if isinstance(call.seed, int) else call.seed
        data = mjn.Batch(call.x, call.y)
        result = mjn.fit(descent, descent.init(params), data, steps=call.steps, batch_size=call.batch_size, key=key)
        return self.arrays(result.state.params)

    def diverge(self, how: str, scratch: Path) -> Arrays:
        """By ``minijaxnet run``, which says how it ended; its checkpoints must stay finite."""
        call = self.called(scratch, "run", "--learning-rate", "1e30" if how == "overflow" else "2.5", limit="100.0")
        try:
            return call()
        finally:
            experiment = mjn.load_experiment(scratch / "line.py")
            state = mjn.gradient_descent(experiment.objective, 0.1).init(experiment.init(jax.random.key(0)))
            for path in max(scratch.glob("runs/*")).glob("checkpoints/*"):
                kept = mjn.load_checkpoint(path, {"state": state, "turns": np.zeros((32, 2), np.int64)})
                if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept["state"].params)):
                    raise AssertionError(f"{path}: got NaN; expected that only finite params are kept")

    def called(
        self, scratch: Path, verb: str, *flags: str, limit: str = "1e30", more: str = "", bent: str = STEEP
    ) -> Callable[[], Arrays]:
        """A call of the command line in a folder, where ``line.py`` is made if it is not there."""
        if not (scratch / "line.py").exists():
            text = EXPERIMENT.replace("BENT", bent).replace("LIMIT", limit).replace("MORE", more)
            (scratch / "line.py").write_text(text, encoding="utf-8")
            (scratch / "beside.py").write_text("FACTOR = 2\n", encoding="utf-8")

        def answer() -> Arrays:
            code, text, folder = self.command(scratch, verb, *flags)
            if code:
                raise RuntimeError(f"exit code {code}: {text}")
            kept = (folder / name for name in ("metrics.jsonl", "params.safetensors", "result.json"))
            return {path.name: np.frombuffer(path.read_bytes(), np.uint8) for path in kept if path.exists()}

        return answer

    def command(self, scratch: Path, verb: str, *flags: str) -> tuple[int, str, Path]:
        """Call the command line in a folder: its exit code, what it prints, and the newest run folder there."""
        first = ["line.py", "--bench-seconds", "0"] if verb == "run" else []
        printed, before = io.StringIO(), list(sys.path)
        for name in ("beside", "_experiment_line"):
            sys.modules.pop(name, None)
        try:
            with contextlib.chdir(scratch), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                code = main([verb, *first, *flags])
        except SystemExit as error:
            code = int(error.code or 0)
        finally:
            sys.path[:] = before
        return code, printed.getvalue(), max(scratch.glob("runs/*"), default=scratch)

    def tree(self, change: str = "") -> Any:
        """A state of Adam: dictionaries and tuples, float32 and int32."""
        params: Any = NETWORKS[True].init(jax.random.key(0))
        first = params[0]
        if change == "extra leaf":
            params = (*params, {"weights": jnp.ones((2, 2)), "bias": jnp.zeros(2)})
        elif change == "missing leaf":
            params = ({"weights": first["weights"]}, params[1])
        elif change == "wrong shape":
            params = (first | {"weights": jnp.ones((FEATURES + 1, HIDDEN))}, params[1])
        elif change == "renamed key":
            params = ({"weights": first["weights"], "offset": first["bias"]}, params[1])
        elif change == "changed dtype":
            params = (first | {"bias": jnp.zeros(HIDDEN, jnp.float16)}, params[1])
        elif change == "other optimizer":
            return mjn.optax_descent(OBJECTIVES[True], optax.sgd(0.01, momentum=0.9)).init(params)
        return ADAM.init(params)

    def save(self, path: Path, tree: Any) -> None:
        """``save_checkpoint``."""
        mjn.save_checkpoint(path, tree, step=1)

    def load(self, path: Path, like: Any) -> Any:
        """``load_checkpoint``."""
        return mjn.load_checkpoint(path, like)

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

        result = mjn.fit(
            plain_descent(),
            plain_descent().init(NETWORKS[True].init(jax.random.key(0))),
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
        self.notes = tuple(result.notes)
        found = self.arrays(result.state) | {"steps": np.array(result.steps_taken)}
        return found | {"metrics": np.frombuffer((folder / "metrics.jsonl").read_bytes(), np.uint8)}


def only_ours(tool: Tool, why: str) -> Ours:
    """The tool, where it is ours; no other one has what the fault is about."""
    if not isinstance(tool, Ours):
        raise NotOffered(why)
    return tool
