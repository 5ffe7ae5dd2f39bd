"""How many lines one writes to train, to go on after a kill, to keep the best and stop, to sweep: ours and others'.

    pip install -e ".[all,peers]"
    python experiments/lines_compared.py            # runs each, and counts its lines
    python experiments/lines_compared.py --show best

Each program is as its tool's own guide would have it, on digits, 64-128-10, after a prelude that is the same for all
and not counted: ``x, y`` to train on, ``x_val, y_val`` to choose by, ``x_test, y_test``. It prints an accuracy on test
data, and is run in a folder of its own; "go on" is run, killed half-way, and run again by the same command.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from minijaxnet._tables import text_table

PRELUDE = """
import os
os.environ["KERAS_BACKEND"] = "jax"
import numpy as np, minijaxnet
_train, (x_test, y_test) = minijaxnet.digits()
x, y, x_val, y_val = _train.x[240:], _train.y[240:], _train.x[:240], _train.y[:240]
"""

OURS = """
import jax, minijaxnet as mjn
network = mjn.mlp((64, 128, 10))
loss, accuracy = (mjn.objective(network, f) for f in (mjn.softmax_cross_entropy, mjn.accuracy))
descent, key = mjn.gradient_descent(loss, 0.1), jax.random.key(0)
start = descent.init(network.init(key))
"""
EQUINOX = """
import equinox as eqx, jax, jax.numpy as jnp, optax
model = eqx.nn.MLP(64, 10, 128, 1, key=jax.random.key(0))
optimizer = optax.sgd(0.1)
opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
@eqx.filter_value_and_grad
def loss(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()
@eqx.filter_jit
def step(model, opt_state, x, y):
    value, grads = loss(model, x, y)
    updates, opt_state = optimizer.update(grads, opt_state)
    return eqx.apply_updates(model, updates), opt_state, value
@eqx.filter_jit
def accuracy(model, x, y):
    return jnp.mean(jnp.argmax(jax.vmap(model)(x), axis=-1) == y)
def rows(k):
    epoch, at = divmod(k, len(x) // 32)
    return np.random.default_rng(epoch).permutation(len(x))[32 * at : 32 * at + 32]
"""
FLAX = """
import jax, jax.numpy as jnp, optax
from flax import nnx
model = nnx.Sequential(nnx.Linear(64, 128, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(128, 10, rngs=nnx.Rngs(1)))
optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
def loss(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()
@nnx.jit
def step(model, optimizer, x, y):
    value, grads = nnx.value_and_grad(loss)(model, x, y)
    optimizer.update(model, grads)
    return value
@nnx.jit
def accuracy(model, x, y):
    return jnp.mean(jnp.argmax(model(x), axis=-1) == y)
def rows(k):
    epoch, at = divmod(k, len(x) // 32)
    return np.random.default_rng(epoch).permutation(len(x))[32 * at : 32 * at + 32]
"""
KERAS = """
import keras
keras.utils.set_random_seed(0)
model = keras.Sequential([keras.layers.Dense(128, "relu"), keras.layers.Dense(10)])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
"""

PROGRAMS = {
    ("train", "minijaxnet"): OURS
    + """
result = mjn.fit(descent, start, (x, y), steps=1_000, batch_size=32, key=key)
print(accuracy(result.state.params, (x_test, y_test)))
""",
    ("train", "keras"): KERAS
    + """
model.fit(x, y, batch_size=32, epochs=27, verbose=0)
print(model.evaluate(x_test, y_test, verbose=0)[1])
""",
    ("train", "equinox"): EQUINOX
    + """
for k in range(1_000):
    model, opt_state, value = step(model, opt_state, x[rows(k)], y[rows(k)])
print(accuracy(model, x_test, y_test))
""",
    ("train", "flax"): FLAX
    + """
for k in range(1_000):
    value = step(model, optimizer, x[rows(k)], y[rows(k)])
print(accuracy(model, x_test, y_test))
""",
    ("go on", "minijaxnet"): OURS
    + """
result = mjn.fit(descent, start, (x, y), steps=20_000, batch_size=32, key=key, run_dir="run", resume=True)
print(accuracy(result.state.params, (x_test, y_test)))
""",
    ("go on", "keras"): KERAS
    + """
model.build((None, 64))
backup = keras.callbacks.BackupAndRestore("backup", save_freq=100, delete_checkpoint=False)
model.fit(x, y, batch_size=32, epochs=540, verbose=0, callbacks=[backup])
print(model.evaluate(x_test, y_test, verbose=0)[1])
""",
    ("go on", "equinox"): EQUINOX
    + """
import orbax.checkpoint as ocp
manager = ocp.CheckpointManager(os.path.abspath("run"), options=ocp.CheckpointManagerOptions(save_interval_steps=500))
arrays, static = eqx.partition((model, opt_state), eqx.is_array)
first = manager.latest_step() or 0
if first:
    arrays = manager.restore(first, args=ocp.args.StandardRestore(arrays))
model, opt_state = eqx.combine(arrays, static)
for k in range(first, 20_000):
    model, opt_state, value = step(model, opt_state, x[rows(k)], y[rows(k)])
    manager.save(k + 1, args=ocp.args.StandardSave(eqx.filter((model, opt_state), eqx.is_array)))
manager.wait_until_finished()
print(accuracy(model, x_test, y_test))
""",
    ("go on", "flax"): FLAX
    + """
import orbax.checkpoint as ocp
manager = ocp.CheckpointManager(os.path.abspath("run"), options=ocp.CheckpointManagerOptions(save_interval_steps=500))
graph, state = nnx.split((model, optimizer))
first = manager.latest_step() or 0
if first:
    nnx.update((model, optimizer), manager.restore(first, args=ocp.args.StandardRestore(state)))
for k in range(first, 20_000):
    value = step(model, optimizer, x[rows(k)], y[rows(k)])
    manager.save(k + 1, args=ocp.args.StandardSave(nnx.state((model, optimizer))))
manager.wait_until_finished()
print(accuracy(model, x_test, y_test))
""",
    ("best", "minijaxnet"): OURS
    + """
measure = jax.jit(lambda params: {"accuracy": accuracy(params, (x_val, y_val))})
result = mjn.fit(descent, start, (x, y), steps=20_000, batch_size=32, key=key, measure=measure, log_every=100,
                 keep_best="accuracy", patience=10)
print(accuracy(result.best.params, (x_test, y_test)))
""",
    ("best", "keras"): KERAS
    + """
stop = keras.callbacks.EarlyStopping("val_accuracy", patience=10, restore_best_weights=True)
model.fit(x, y, batch_size=32, epochs=540, verbose=0, validation_data=(x_val, y_val), callbacks=[stop])
print(model.evaluate(x_test, y_test, verbose=0)[1])
""",
    ("best", "equinox"): EQUINOX
    + """
best, best_model, waited = -1.0, model, 0
for k in range(20_000):
    model, opt_state, value = step(model, opt_state, x[rows(k)], y[rows(k)])
    if k % 100 == 0:
        now = float(accuracy(model, x_val, y_val))
        best, best_model, waited = (now, model, 0) if now > best else (best, best_model, waited + 1)
        if waited == 10:
            break
print(accuracy(best_model, x_test, y_test))
""",
    ("best", "flax"): FLAX
    + """
best, best_state, waited = -1.0, nnx.state(model), 0
for k in range(20_000):
    value = step(model, optimizer, x[rows(k)], y[rows(k)])
    if k % 100 == 0:
        now = float(accuracy(model, x_val, y_val))
        waited += 1
        if now > best:
            best, best_state, waited = now, jax.tree.map(jnp.copy, nnx.state(model)), 0
        if waited == 10:
            break
nnx.update(model, best_state)
print(accuracy(model, x_test, y_test))
""",
    ("sweep", "minijaxnet"): OURS
    + """
def run(learning_rate):
    descent = mjn.gradient_descent(loss, learning_rate)
    state, trace = mjn.descend(descent, descent.init(start.params), (x, y), steps=300)
    return {"trace": trace, "metrics": {"accuracy": accuracy(state.params, (x_val, y_val))}, "params": state.params}
found = mjn.sweep(run, {"learning_rate": np.geomspace(0.01, 1, 8)})
best = jax.tree.map(lambda leaf: leaf[found.best("accuracy").place], found.output["params"])
print(accuracy(best, (x_test, y_test)))
""",
    ("sweep", "keras"): """
import keras
found = []
for rate in np.geomspace(0.01, 1, 8):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Dense(128, "relu"), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate), loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=len(x), epochs=300, verbose=0)
    found.append((model.evaluate(x_val, y_val, verbose=0)[1], model))
print(max(found, key=lambda each: each[0])[1].evaluate(x_test, y_test, verbose=0)[1])
""",
    ("sweep", "equinox"): EQUINOX
    + """
arrays, static = eqx.partition(model, eqx.is_inexact_array)
def run(rate):
    def one(_, carry):
        arrays = carry
        grads = loss(eqx.combine(arrays, static), jnp.asarray(x), jnp.asarray(y))[1]
        return jax.tree.map(lambda w, g: w - rate * g, arrays, grads)
    return jax.lax.fori_loop(0, 300, one, arrays)
each = jax.jit(jax.vmap(run))(jnp.geomspace(0.01, 1, 8))
scores = jax.vmap(lambda arrays: accuracy(eqx.combine(arrays, static), x_val, y_val))(each)
best = jax.tree.map(lambda leaf: leaf[jnp.argmax(scores)], each)
print(accuracy(eqx.combine(best, static), x_test, y_test))
""",
    ("sweep", "flax"): FLAX
    + """
graph, state = nnx.split(model)
def run(rate):
    def one(_, state):
        grads = jax.grad(lambda state: loss(nnx.merge(graph, state), x, y))(state)
        return jax.tree.map(lambda w, g: w - rate * g, state, grads)
    return jax.lax.fori_loop(0, 300, one, state)
each = jax.jit(jax.vmap(run))(jnp.geomspace(0.01, 1, 8))
scores = jax.vmap(lambda state: accuracy(nnx.merge(graph, state), x_val, y_val))(each)
best = jax.tree.map(lambda leaf: leaf[jnp.argmax(scores)], each)
print(accuracy(nnx.merge(graph, best), x_test, y_test))
""",
}
TASKS, TOOLS = ("train", "go on", "best", "sweep"), ("minijaxnet", "keras", "equinox", "flax")


def lines_of(program: str) -> int:
    """Lines with something on them.

    >>> lines_of("a = 1\\n\\nb = 2\\n")
    2
    """
    return sum(bool(line.strip()) for line in program.splitlines())


def accuracy_of(task: str, tool: str) -> float:
    """What a program prints last, run in a folder of its own; killed on the way and run again, if it is to go on."""
    code = PRELUDE + PROGRAMS[task, tool]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code]
        options = {"cwd": folder, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        if task == "go on":
            with subprocess.Popen(command, env=environment, **options) as process:
                try:
                    process.communicate(timeout=25)
                except subprocess.TimeoutExpired:
                    process.kill()
        done = subprocess.run(command, env=environment, **options)
    if done.returncode:
        raise RuntimeError(f"{tool}, {task}: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Run and count all programs, or show those of a task."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--show", choices=TASKS, help="print the programs of a task")
    parser.add_argument("--count", action="store_true", help="count only, and run nothing")
    asked = parser.parse_args()
    if asked.show:
        for tool in TOOLS:
            print(f"# --- {tool}\n{PROGRAMS[asked.show, tool].strip()}\n")
        return
    rows = []
    for task in TASKS:
        cells = []
        for tool in TOOLS:
            cell = str(lines_of(PROGRAMS[task, tool]))
            if not asked.count and (tool == "minijaxnet" or importlib.util.find_spec(tool)):
                cell += f" ({100 * accuracy_of(task, tool):.1f} %)"
            cells.append(cell)
        rows.append((task, *cells))
        print(rows[-1], flush=True)
    print(f"\n{text_table(('lines (accuracy)', *TOOLS), rows)}")


if __name__ == "__main__":
    main()
