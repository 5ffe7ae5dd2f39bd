"""The command line: what a user types, sees, and finds in the run's folder."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.flax import load_file

import minijaxnet as mjn
from minijaxnet.cli import main
from minijaxnet.experiment import load_experiment
from minijaxnet.pytrees import named_leaves

folder_module = sys.modules["minijaxnet.run.folder"]

HEAD = '''"""A line through a few points.

This second paragraph is no summary.
"""

import jax
import jax.numpy as jnp
import numpy as np

import minijaxnet as mjn

'''

LINE = """
def init(key, *, scale=1.0, offset=2):
    return {"slope": scale * jax.random.normal(key), "offset": jnp.asarray(offset, float)}

def loss(params, batch):
    return jnp.mean((params["slope"] * batch.x + params["offset"] - batch.y) ** 2)

def value_and_gradient(params, batch):
    errors = params["slope"] * batch.x + params["offset"] - batch.y
    return jnp.mean(errors**2), {"slope": 2 * jnp.mean(errors * batch.x), "offset": FACTOR * jnp.mean(errors)}

def data(*, points=8, noise=0.0):
    x = jnp.linspace(-1, 1, points)
    y = x / 3 + 0.1 + noise * jax.random.normal(jax.random.key(1), x.shape)
    return mjn.Batch(x, y), mjn.Batch(2 * x, 2 * x / 3 + 0.1)

def mean_error(params, batch):
    return jnp.mean(params["slope"] * batch.x + params["offset"] - batch.y)

experiment = mjn.Experiment(
    "line", init, loss, data, MORE metrics={"mean_error": mean_error},
    defaults=mjn.Settings(steps=30, learning_rate=0.25, seed=7),
)
"""
AUTODIFF_LINE = LINE.replace("MORE", "").replace("FACTOR", "2")
BY_HAND_LINE = LINE.replace("MORE", "value_and_gradient=value_and_gradient,").replace("FACTOR", "2")
WRONG_LINE = LINE.replace("MORE", "value_and_gradient=value_and_gradient,").replace("FACTOR", "1.999")


class Called(NamedTuple):
    code: int
    out: str
    err: str
    folders: list[Path]

    def read(self, name):
        [folder] = self.folders
        return json.loads((folder / name).read_text(encoding="utf-8"), parse_constant=pytest.fail)

    def rows(self):
        [folder] = self.folders
        return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

    def params(self):
        [folder] = self.folders
        return load_file(folder / "params.safetensors")


@pytest.fixture
def command(tmp_path, capsys):
    """Call the command in this process; its exit code, output and the run folders there are."""

    def call(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            code = exit_.code
        return Called(code, *capsys.readouterr(), sorted((tmp_path / "runs").glob("*")))

    return call


# Without what takes long and these tests do not look at.
QUICK = ("--bench-seconds", 0, "--no-report")


@pytest.fixture
def run(command, tmp_path):
    """``minijaxnet run`` of an experiment with this text, without its benchmark."""

    def call(text, *flags, head=HEAD, name="my_experiment.py"):
        (tmp_path / name).write_text(head + textwrap.dedent(text), encoding="utf-8")
        return command("run", tmp_path / name, "--runs", tmp_path / "runs", *QUICK, *flags)

    return call


def control_characters(text):
    return {character for character in text if ord(character) < 0x20 or ord(character) == 0x7F} - {"\n"}


def unboxed(text):
    """Words only, one blank between them: without the frames that errors about flags are drawn in."""
    return " ".join(re.sub(r"[^\x20-\x7e]", " ", text).split())


# --- run: what is done, shown and written ----------------------------------------------------------------------------


def test_a_run_leaves_its_settings_environment_metrics_parameters_and_result(run, tmp_path):
    called = run(BY_HAND_LINE, "--steps", 20, "--scale", 0.5, "--data-points", 12)
    assert called.code == 0
    assert called.err == ""
    [folder] = called.folders
    assert re.fullmatch(r"line-\d{8}-\d{6}", folder.name)
    assert f"written to {folder}" in called.out
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints",
        "code",
        "config.json",
        "environment.json",
        "log.txt",
        "metrics.jsonl",
        "params.safetensors",
        "result.json",
        "timing.json",
        "timing.jsonl",
    ]
    assert (folder / "log.txt").read_text(encoding="utf-8") == called.out
    assert (folder / "code" / "my_experiment.py").read_text() == (tmp_path / "my_experiment.py").read_text()

    config = called.read("config.json")
    assert config["experiment"] == "line"
    assert Path(config["file"]).name == "my_experiment.py"
    assert config["init"] == {"scale": 0.5, "offset": 2}
    assert config["data"] == {"points": 12, "noise": 0.0}
    assert config["flags"] == {
        "steps": 20,
        "learning_rate": 0.25,
        "batch_size": None,
        "until_flat": 0.0,
        "seed": 7,
        "optimizer": "gd",
        "precision": "float32",
        "runs": str(tmp_path / "runs"),
        "bench_seconds": 0.0,
        "log_every": None,
        "checkpoint_every": None,
        "checkpoint_seconds": 60.0,
        "on_divergence": "stop",
        "diagnose": False,
        "unchecked": False,
        "tensorboard": False,
        "devices": None,
        "processes": 1,
        "report": False,
    }
    assert called.read("environment.json")["versions"]["jax"] == jax.__version__

    names = {"step", "loss", "gradient_norm", "train_loss", "mean_error", "test_loss", "test_mean_error"}
    names |= {"params/offset", "params/slope"}  # the weights, as they are but two
    rows = called.rows()
    assert [row["step"] for row in rows] == list(range(21))
    assert all(set(row) == names for row in rows)
    result = called.read("result.json")
    assert (result["status"], result["steps_taken"]) == ("OUT_OF_STEPS", 20)
    assert result["metrics"] == rows[-1]
    assert result["gradient_check"]["ok"] is True
    timing = called.read("timing.json")
    assert timing["compile_s"] > 0 and timing["step_us"] > 0 and timing["step_comparison"] is None


def test_the_run_is_the_descent_that_its_settings_say(run, tmp_path):
    called = run(AUTODIFF_LINE)
    experiment = load_experiment(tmp_path / "my_experiment.py")
    train, test = experiment.data()
    start_key, _, _ = jax.random.split(jax.random.key(7), 3)
    descent = mjn.gradient_descent(experiment.objective, 0.25)
    params = jax.jit(experiment.init)(start_key)
    state, _ = mjn.descend(descent, descent.init(params), train, steps=30)
    chex.assert_trees_all_close(called.params(), named_leaves(state.params), rtol=1e-6)
    last = called.rows()[-1]
    assert last["loss"] == pytest.approx(float(experiment.objective(state.params, train)), rel=1e-4)
    assert last["test_loss"] == pytest.approx(float(experiment.objective(state.params, test)), rel=1e-4)
    mean_error = float(experiment.metrics["mean_error"](state.params, train))
    assert last["mean_error"] == pytest.approx(mean_error, abs=1e-6)
    assert called.rows()[0]["loss"] == pytest.approx(float(experiment.objective(params, train)), rel=1e-6)


def test_what_is_shown_names_the_experiment_its_end_and_its_gradients_verdict(run):
    called = run(BY_HAND_LINE)
    first, *_ = called.out.splitlines()
    assert first.startswith("line: 30 steps of gradient descent, learning rate 0.25, float32 on")
    assert "descent: took all 30 steps; compiled in" in called.out
    assert re.search(r"at the end +train +test\n-+\nloss +\S+ +\S+\nmean_error +\S+ +\S+\n", called.out)
    assert "gradient by hand against autodiff: right" in called.out


def test_numbers_of_init_and_data_are_flags_that_reach_them(run):
    called = run(AUTODIFF_LINE, "--scale", 0, "--offset", -3, "--data-noise", 1.0, "--data-points", 50, "--steps", 0)
    assert called.code == 0
    assert called.params() == {"['slope']": 0, "['offset']": -3}
    start = called.rows()[0]
    # Errors of y = x / 3 + 0.1 + noise against -3: their mean is near -3.1, and the noise adds its variance.
    assert start["mean_error"] == pytest.approx(-3.1, abs=0.5)
    assert start["loss"] > start["mean_error"] ** 2 + 0.5


def test_the_seed_decides_the_start(run):
    starts = [run(AUTODIFF_LINE, "--steps", 0, "--seed", seed).folders for seed in (1, 2)][-1]
    slopes = {float(load_file(folder / "params.safetensors")["['slope']"]) for folder in starts}
    assert len(starts) == len(slopes) == 2


def test_minibatches_are_drawn_in_the_order_of_the_seed(run, tmp_path):
    called = run(AUTODIFF_LINE, "--batch-size", 3, "--steps", 20)
    experiment = load_experiment(tmp_path / "my_experiment.py")
    start_key, order_key, _ = jax.random.split(jax.random.key(7), 3)
    descent = mjn.gradient_descent(experiment.objective, 0.25)
    start = descent.init(jax.jit(experiment.init)(start_key))
    state, _ = mjn.descend_epochs(descent, start, experiment.data()[0], order_key, batch_size=3, epochs=10)
    chex.assert_trees_all_close(called.params(), named_leaves(state.params), rtol=1e-6)


def test_the_loss_at_the_end_is_that_of_all_training_points(run, tmp_path):
    called = run(AUTODIFF_LINE, "--batch-size", 2, "--steps", 3, "--data-noise", 1.0)
    [shown] = re.findall(r"^loss +(\S+) ", called.out, re.MULTILINE)
    experiment = load_experiment(tmp_path / "my_experiment.py")
    params = {name.strip("[']"): leaf for name, leaf in called.params().items()}
    train, _ = experiment.data(noise=1.0)
    assert float(shown) == pytest.approx(float(experiment.objective(params, train)), rel=1e-3)


def test_float64_is_float64_and_ends_with_the_run(run):
    called = run(AUTODIFF_LINE, "--precision", "float64", "--steps", 2000, "--until-flat", 1e-14)
    assert called.code == 0
    assert "flat after" in called.out
    assert called.read("environment.json")["x64"] is True
    assert jnp.asarray(1.0).dtype == jnp.float32
    with jax.enable_x64(True):
        params = called.params()
        assert {leaf.dtype for leaf in params.values()} == {jnp.dtype("float64")}
        # Out of float32's reach: the answer to more digits than it has.
        assert float(params["['slope']"]) == pytest.approx(1 / 3, rel=1e-12)
    assert called.rows()[-1]["loss"] < 1e-24


def test_float64_ends_with_a_run_that_fails_too(run):
    called = run(AUTODIFF_LINE, "--precision", "float64", "--steps", -1)
    assert called.code == 2
    assert jnp.asarray(1.0).dtype == jnp.float32


def test_bfloat16_runs(run):
    called = run(BY_HAND_LINE, "--precision", "bfloat16")
    assert called.code == 0
    assert {leaf.dtype for leaf in called.params().values()} == {jnp.dtype("bfloat16")}
    assert called.rows()[-1]["loss"] < 0.01 * called.rows()[0]["loss"]


def test_an_optimizer_of_optax_runs_by_its_name(run):
    called = run(AUTODIFF_LINE, "--optimizer", "adam", "--steps", 5, "--learning-rate", 0.125)
    assert called.code == 0
    assert "5 steps of optax.adam, learning rate 0.125" in called.out
    assert called.read("config.json")["flags"]["optimizer"] == "adam"
    # Adam's first steps have about the length of the rate in each parameter, whatever the slope.
    offset = called.params()["['offset']"]
    assert float(offset) == pytest.approx(2 - 5 * 0.125, abs=0.1)


def test_until_flat_ends_early(run):
    called = run(AUTODIFF_LINE, "--until-flat", 0.5)
    assert called.code == 0
    result = called.read("result.json")
    assert result["status"] == "FLAT"
    assert 0 < result["steps_taken"] < 30
    assert result["metrics"]["gradient_norm"] <= 0.5
    assert f"flat after {result['steps_taken']} steps" in called.out


def test_no_steps_are_a_run(run):
    called = run(AUTODIFF_LINE, "--steps", 0)
    assert called.code == 0
    assert called.read("timing.json")["step_us"] is None
    assert len(called.rows()) == 1


def test_an_objective_with_a_key_gets_one(run):
    called = run(
        """
        def noisy(params, batch, key):
            return jnp.mean((params - batch.x) ** 2) * jax.random.uniform(key, minval=0.5, maxval=1.5)

        points = mjn.Batch(jnp.ones((4, 2)), jnp.ones((4, 1)))
        experiment = mjn.Experiment(
            "noisy", lambda key: jnp.zeros(2), noisy, lambda: (points, points), defaults=mjn.Settings(steps=9)
        )
        """
    )
    assert called.code == 0
    losses = [row["loss"] for row in called.rows()]
    assert losses[-1] < losses[0]


def test_the_benchmark_names_its_arms_and_is_kept(run):
    called = run(BY_HAND_LINE, "--bench-seconds", 0.2)
    assert called.code == 0
    comparison = called.read("timing.json")["step_comparison"]
    arms = ["gradient descent, gradient by hand", "gradient descent, autodiff", "optax.sgd, autodiff"]
    assert list(comparison["arms"]) == arms
    assert comparison["baseline"] == arms[1]
    assert all(arm in called.out for arm in arms)
    assert "interleaved rounds; the baseline against itself" in called.out


def test_two_runs_in_the_same_second_have_a_folder_each(run, monkeypatch):
    from datetime import UTC, datetime

    moment = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    monkeypatch.setattr(folder_module, "datetime", SimpleNamespace(now=lambda zone: moment))
    run(AUTODIFF_LINE, "--steps", 1)
    called = run(AUTODIFF_LINE, "--steps", 2)
    assert [folder.name for folder in called.folders] == ["line-20300102-030405", "line-20300102-030405-2"]
    assert [json.loads((f / "result.json").read_text())["steps_taken"] for f in called.folders] == [1, 2]


def test_a_descent_that_diverges_exits_1_with_a_hint_and_keeps_what_is_finite(run):
    called = run(AUTODIFF_LINE, "--learning-rate", 1e6, "--steps", 500)
    assert called.code == 1
    result = called.read("result.json")
    assert result["status"] == "DIVERGED"
    assert 0 < result["steps_taken"] < 500
    assert f"DIVERGED at step {result['steps_taken']}" in called.out
    assert "hint: " in called.out
    assert "--learning-rate 100000" in called.out
    chex.assert_tree_all_finite(called.params())


def test_a_wrong_hand_gradient_is_refused_before_the_descent(run):
    called = run(WRONG_LINE)
    assert called.code == 1
    assert called.folders == []
    assert "gradient by hand against autodiff: NOT RIGHT" in called.out
    assert "wrong beyond rounding in ['offset']" in called.out
    assert "worst: ['offset']: by hand" in called.out
    assert "The descent was not started" in called.out
    assert "took all" not in called.out


def test_a_hand_gradient_of_another_shape_is_refused_too(run):
    called = run(BY_HAND_LINE.replace('"slope": 2 * jnp.mean(errors * batch.x)', '"slope": errors'))
    assert called.code == 1
    assert called.folders == []
    assert "['slope']: got float32[8]; expected float32[]" in " ".join(called.out.split())


def test_a_hand_gradient_of_a_keyed_objective_runs(run):
    called = run(
        """
        def noisy(params, batch, key):
            return jnp.mean((params - batch.x) ** 2) * jax.random.uniform(key, minval=0.5, maxval=1.5)

        def by_hand(params, batch, key):
            u = jax.random.uniform(key, minval=0.5, maxval=1.5)
            return jnp.mean((params - batch.x) ** 2) * u, jnp.mean(params - batch.x, axis=0) * u

        points = mjn.Batch(jnp.ones((4, 2)), jnp.ones((4, 1)))
        experiment = mjn.Experiment(
            "noisy", lambda key: jnp.zeros(2), noisy, lambda: (points, points), value_and_gradient=by_hand
        )
        """,
        "--steps",
        9,
    )
    assert called.code == 0


def test_an_optional_third_argument_of_an_objective_is_not_a_key(run):
    called = run(
        """
        def loss(params, batch, decay=0.01):
            return jnp.mean((params - batch.x) ** 2) + decay * jnp.sum(params**2)

        points = mjn.Batch(jnp.ones((4, 2)), jnp.ones((4, 1)))
        experiment = mjn.Experiment("decay", lambda key: jnp.zeros(2), loss, lambda: (points, points))
        """,
        "--steps",
        9,
    )
    assert called.code == 0


def test_a_metric_of_any_name_is_shown(run):
    called = run(AUTODIFF_LINE.replace('"mean_error"', '"latest_error"'))
    assert re.search(r"^latest_error +\S+ +\S+$", called.out, re.MULTILINE)


# --- run: help -------------------------------------------------------------------------------------------------------


def test_help_of_an_experiment_shows_its_summary_its_own_defaults_and_flags(run):
    called = run(AUTODIFF_LINE, "--help")
    assert called.code == 0
    assert called.folders == []
    assert not control_characters(called.out)
    text = unboxed(called.out)
    assert "A line through a few points." in text
    assert "second paragraph" not in text
    for flag, default in {
        "--steps INT": 30,
        "--learning-rate FLOAT": 0.25,
        "--seed INT": 7,
        "--optimizer STR": "gd",
        "--scale FLOAT": 1.0,
        "--offset INT": 2,
        "--data-points INT": 8,
        "--data-noise FLOAT": 0.0,
        "--bench-seconds FLOAT": 1.0,
    }.items():
        assert re.search(rf"{flag} [^()]*\(default: {default}\)", text), flag
    assert "{float32,float64,bfloat16}" in text


@pytest.mark.parametrize("arguments", [(), ("-h",), ("--help",)])
def test_help_shows_the_verbs(arguments, command):
    called = command(*arguments)
    assert called.code == 0
    assert called.err == ""
    assert re.search(
        r"^  run +\S.*\n  check +\S.*\n  bench +\S.*\n  sweep +\S.*\n  tune +\S.*\n  list +\S", called.out, re.MULTILINE
    )


def test_help_of_run_needs_no_file(command):
    called = command("run", "--help")
    assert called.code == 0
    assert "--learning-rate FLOAT" in unboxed(called.out)


def test_version_is_the_packages(command):
    from importlib.metadata import version

    assert command("--version").out == f"minijaxnet {version('minijaxnet')}\n"


# --- run: what is refused --------------------------------------------------------------------------------------------

DATA_LINE = """
network = {network}
x, y = {x}, {y}
experiment = mjn.Experiment(
    "bad", {init}, mjn.objective(network, {loss}), lambda: (mjn.Batch(x, y), mjn.Batch(x, y)),
    defaults=mjn.Settings(steps=3),
)
"""


def experiment_text(
    x="jnp.ones((6, 3))",
    y="jnp.ones((6, 1))",
    network="mjn.mlp((3, 1))",
    init="network.init",
    loss="mean_squared_error",
):
    return DATA_LINE.format(x=x, y=y, network=network, init=init, loss=f"mjn.{loss}")


def classifier_text(y, network="mjn.mlp((3, 2))"):
    return experiment_text(y=y, network=network, loss="softmax_cross_entropy")


# Each: the experiment, and what the error must say: the argument, what it got, what it expected.
BAD_EXPERIMENTS = {
    "y (n,) against predictions (n, 1)": (
        experiment_text(y="jnp.ones(6)"),
        "targets: got shape (6,); expected (6, 1), the shape of the predictions",
    ),
    "y (n, 1) against predictions (n,)": (
        experiment_text(network="mjn.Network(lambda key: jnp.zeros(3), lambda params, x: x @ params)"),
        "targets: got shape (6, 1); expected (6,), the shape of the predictions",
    ),
    "a column short": (
        experiment_text(x="jnp.ones((6, 2))"),
        "x: got shape (6, 2); expected a last axis of 3",
    ),
    "sizes that do not fit the data": (
        experiment_text(network="mjn.mlp((5, 4, 1))"),
        "x: got shape (6, 3); expected a last axis of 5",
    ),
    "too many outputs": (
        experiment_text(network="mjn.mlp((3, 2))"),
        "targets: got shape (6, 1); expected (6, 2), the shape of the predictions",
    ),
    "fewer y than x": (
        experiment_text(y="jnp.ones((5, 1))"),
        "train.y: got 5 points; expected 6, as many as in train.x",
    ),
    "NaN in x": (
        experiment_text(x="jnp.ones((6, 3)).at[2, 1].set(jnp.nan)"),
        "train.x[2, 1]: got nan (1 of 18 values are not finite); expected finite numbers",
    ),
    "infinity in NumPy's y": (
        experiment_text(y="np.full((6, 1), -np.inf)"),
        "train.y[0, 0]: got -inf (6 of 6 values are not finite); expected finite numbers",
    ),
    "no points": (
        experiment_text(x="jnp.ones((0, 3))", y="jnp.ones((0, 1))"),
        "train.x: got an empty data set; expected at least one point",
    ),
    "integer params": (
        experiment_text(init="lambda key: jnp.zeros((3, 1), int)"),
        "params: got dtype int32; expected a real floating dtype",
    ),
    "NaN in params": (
        experiment_text(init="lambda key: jax.tree.map(lambda leaf: leaf * jnp.nan, network.init(key))"),
        "state.params[0]['bias']: got NaN or infinity; expected finite numbers",
    ),
    "no params": (
        experiment_text(init="lambda key: ()"),
        "params: got a tree without leaves; expected at least one array",
    ),
    "a label too high": (
        classifier_text("jnp.array([0, 1, 0, 1, 2, 0])"),
        "labels[4]: got 2; expected a class of 2, from 0 to 1",
    ),
    "a negative label": (
        classifier_text("jnp.array([0, -1, 0, 1, 1, 0])"),
        "labels[1]: got -1; expected a class of 2, from 0 to 1",
    ),
    "labels that are floats": (
        classifier_text("jnp.array([0.0, 1, 0, 1, 1, 0])"),
        "labels: got shape (6,); expected (6, 2), the shape of the logits",
    ),
    "a number with the name of a flag": (
        experiment_text(init="lambda key, *, steps=3: network.init(key)"),
        "init: its number 'steps' has the name of a flag of run; expected another name",
    ),
    "an experiment of the wrong type": ("experiment = 3", "its experiment is a int; expected a line `experiment ="),
    "no experiment": ("pass", "defines no experiment; expected a line `experiment = Experiment(...)`"),
}


@pytest.mark.parametrize("name", BAD_EXPERIMENTS)
def test_a_bad_experiment_is_refused_with_2_and_leaves_no_folder(name, run):
    text, message = BAD_EXPERIMENTS[name]
    called = run(text)
    assert called.code == 2
    assert called.err.startswith("minijaxnet: error: ")
    assert message in called.err
    assert "Traceback" not in called.err
    assert called.folders == []


def test_the_users_own_lines_are_shown_and_nobody_elses(run):
    called = run(experiment_text(init="lambda key: jnp.zeros(3) + jnp.zeros(2)"))
    assert called.code == 2
    assert "in your code:" in called.err
    assert "my_experiment.py" in called.err
    assert "jnp.zeros(3) + jnp.zeros(2)" in called.err
    assert "site-packages" not in called.err
    assert called.folders == []


def test_the_whole_traceback_can_be_asked_for(run, monkeypatch):
    monkeypatch.setenv("MINIJAXNET_TRACEBACK", "1")
    with pytest.raises(ValueError, match="steps: got -1"):
        run(AUTODIFF_LINE, "--steps", -1)


BAD_FLAGS = {
    "batch size 0": (("--batch-size", 0), "batch_size: got 0; expected at least 1"),
    "batch size negative": (("--batch-size", -4), "batch_size: got -4; expected at least 1"),
    "batch size beyond the points": (
        ("--batch-size", 9),
        "batch_size: got 9; expected at most 8, the points there are",
    ),
    "batch size float": (("--batch-size", 2.5), "--batch-size: no type matching {None}|INT .* '2.5'"),
    "rate negative": (("--learning-rate", -1), "learning_rate: got -1.0; expected a positive, finite float32"),
    "rate 0": (("--learning-rate", 0), "learning_rate: got 0.0; expected a positive, finite float32"),
    "rate NaN": (("--learning-rate", "nan"), "learning_rate: got nan; expected a positive, finite float32"),
    "rate infinite": (("--learning-rate", "inf"), "learning_rate: got inf; expected a positive, finite float32"),
    "rate 0 of optax": (
        ("--optimizer", "adam", "--learning-rate", 0),
        "learning_rate: got 0.0; expected a positive, finite float32",
    ),
    "rate in words": (("--learning-rate", "fast"), "--learning-rate: .*'fast'.* --learning-rate FLOAT"),
    "steps negative": (("--steps", -3), "steps: got -3; expected at least 0"),
    "steps float": (("--steps", 1.5), "--steps: .*'1.5'.* --steps INT"),
    "steps in words": (("--steps", "many"), "--steps: .*'many'.* --steps INT"),
    "steps without a number": (("--steps",), "--steps"),
    "flatness negative": (("--until-flat", -1), "until_flat: got -1.0; expected a gradient norm, at least 0"),
    "flatness NaN": (("--until-flat", "nan"), "until_flat: got nan; expected a gradient norm, at least 0"),
    "seed float": (("--seed", 1.5), "--seed: .*'1.5'.* --seed INT"),
    "unknown precision": (
        ("--precision", "float16"),
        "'float16' .*'--precision'.* one of ('float32', 'float64', 'bfloat16')",
    ),
    "unknown optimizer": (
        ("--optimizer", "adm"),
        "optimizer: got 'adm'; expected gd or the name of an optimizer of optax (did you mean adam or",
    ),
    "an optimizer that is none": (("--optimizer", "1"), "optimizer: got '1'; expected gd or the name of an optimizer"),
    "unknown flag": (("--bogus", 3), "Unrecognized options: --bogus"),
    "misspelt flag": (("--scal", 3), "Unrecognized options: --scal.* Perhaps you meant: .*--scale FLOAT"),
    "one argument too many": (("more.py",), "Unrecognized options: more.py"),
    "init's number NaN": (("--scale", "nan"), "state.params['slope']: got NaN or infinity; expected finite numbers"),
    "data's number NaN": (("--data-noise", "nan"), "train.y[0]: got nan (8 of 8 values are not finite)"),
    "no points": (("--data-points", 0), "train.x: got an empty data set; expected at least one point"),
}


def pattern(text):
    """A literal text, but for its ``.*``."""
    return ".*".join(map(re.escape, text.split(".*")))


@pytest.mark.parametrize("name", BAD_FLAGS)
def test_a_bad_flag_is_refused_with_2_and_leaves_no_folder(name, run):
    flags, message = BAD_FLAGS[name]
    called = run(AUTODIFF_LINE, *flags)
    assert called.code == 2
    assert re.search(pattern(message), unboxed(called.err)), called.err
    assert "Traceback" not in called.err
    assert "descent:" not in called.out
    assert not control_characters(called.err)
    assert called.folders == []


@pytest.mark.parametrize("seconds", ["-1", "nan"])
def test_bench_seconds_that_are_none_are_refused(seconds, run):
    called = run(AUTODIFF_LINE, "--steps", 1, "--bench-seconds", seconds)
    assert called.code == 2
    assert "bench_seconds: got" in called.err


@pytest.mark.parametrize("seed", [-1, 2**32, 10**20])
def test_a_seed_that_no_key_can_have_is_refused(seed, run):
    called = run(AUTODIFF_LINE, "--steps", 1, "--seed", seed)
    assert called.code == 2
    assert f"seed: got {seed}; expected a number from 0 to {2**32 - 1}" in called.err


def test_any_error_in_the_users_code_is_shown_with_its_line(run):
    called = run('experiment = mjn.Experiment("a", lambda key: 1.0, lambda params, batch: params, lambda: 1 / 0)')
    assert called.code == 2
    assert "division by zero" in called.err
    assert "in your code:" in called.err


PLAIN_FUNCTION = """
def loss(params, batch):
    return mjn.mean_squared_error(batch.x @ params, batch.y)

points = mjn.Batch(jnp.ones((4, 2)), jnp.ones((4, 1)))
experiment = mjn.Experiment("plain", lambda key: jnp.zeros(2), loss, lambda: (points, TEST))
"""


def test_a_plain_functions_shapes_are_refused_where_it_raises(run):
    called = run(PLAIN_FUNCTION.replace("TEST", "points"))
    assert called.code == 2
    assert "targets: got shape (4, 1); expected (4,)" in called.err
    assert "in loss" in called.err
    assert called.folders == []


LATE = {
    "test data a column short": experiment_text().replace("mjn.Batch(x, y))", "mjn.Batch(x[:, :2], y))"),
    "a metric that is no scalar": experiment_text().replace("steps=3),", "steps=3), metrics={'m': lambda p, b: b.y},"),
}


@pytest.mark.parametrize("name", LATE)
def test_what_tracing_finds_leaves_no_folder(name, run):
    called = run(LATE[name])
    assert called.code == 2
    assert called.folders == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (experiment_text().replace("mjn.Batch(x, y))", "mjn.Batch(x * jnp.nan, y))"), "nan"),
        (experiment_text().replace("mjn.Batch(x, y))", "mjn.Batch(x[:0], y[:0]))"), "empty"),
    ],
    ids=["NaN", "no points"],
)
def test_bad_test_data_is_refused(text, message, run):
    called = run(text)
    assert called.code == 2
    assert "test" in called.err
    assert message in called.err


def test_a_test_label_that_is_no_class_is_refused(run):
    called = run(classifier_text("jnp.arange(6) % 2").replace("mjn.Batch(x, y))", "mjn.Batch(x, y + 1))"))
    assert called.code == 2
    assert "labels[1]: got 2" in called.err


BY_HAND_CLASSES = classifier_text("jnp.array([0, 1, 0, 1, 2, 0])").replace(
    "defaults=",
    "value_and_gradient=mjn.mlp_gradient((3, 2), activation=jax.nn.relu, loss=mjn.softmax_cross_entropy), defaults=",
)


def test_a_bad_label_is_not_blamed_on_a_right_hand_gradient(run):
    called = run(BY_HAND_CLASSES)
    assert "NOT RIGHT" not in called.out
    assert called.code == 2
    assert "labels[4]: got 2; expected a class of 2, from 0 to 1" in called.err


def test_a_metric_does_not_hide_the_loss(run):
    called = run(AUTODIFF_LINE.replace('{"mean_error": mean_error}', '{"train_loss": lambda p, b: jnp.float32(-7)}'))
    assert called.code == 2 or called.rows()[-1]["train_loss"] != -7


@pytest.mark.parametrize("returned", ["None", "(points, points, points)"])
def test_data_that_returns_no_two_batches_is_named(returned, run):
    called = run(
        f"""
        points = jnp.ones((4, 2)), jnp.ones((4, 1))
        experiment = mjn.Experiment("a", lambda key: jnp.zeros(2), lambda p, b: jnp.sum(p), lambda: {returned})
        """
    )
    assert called.code == 2
    assert re.search(r"data: it returns a \w+; expected a pair of batches \(train, test\)", called.err)


# --- run: files that are none ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no such file; expected a Python file"),
        (lambda path: path.mkdir(), "is a folder; expected a Python file"),
    ],
    ids=["missing", "folder"],
)
def test_a_file_that_is_none_is_named(make, message, command, tmp_path):
    path = tmp_path / "nowhere.py"
    make(path)
    called = command("run", path, "--runs", tmp_path / "runs")
    assert called.code == 2
    assert called.err == f"minijaxnet: error: {path}: {message}\n"
    assert called.folders == []


BROKEN = {
    "syntax error": ("x = = 1", ["x = = 1", "SyntaxError: invalid syntax"]),
    "raises": ("def f():\n    raise RuntimeError('boom')\n\nf()", ["f()", "in f", "RuntimeError: boom"]),
    "missing module": ("import no_such_module_anywhere", ["No module named 'no_such_module_anywhere'"]),
    "exits": ("import sys\nsys.exit(3)", ["sys.exit(3)", "SystemExit: 3"]),
    "recurses": ("def f():\n    f()\n\nf()", ["RecursionError"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_does_not_import_shows_its_own_short_traceback(name, run):
    text, parts = BROKEN[name]
    called = run(text, head="")
    assert called.code == 2
    assert "my_experiment.py: it does not import:" in called.err
    assert all(part in called.err for part in parts)
    assert "importlib" not in called.err
    assert "minijaxnet/" not in called.err
    assert len(called.err.splitlines()) <= 15
    assert called.folders == []


def test_run_wants_its_file_first(command):
    called = command("run", "--steps", 3)
    assert called.code == 2
    assert "run: got --steps; expected the file of an experiment first" in called.err


@pytest.mark.parametrize("verb", ["walk", "--bogus", "Run"])
def test_an_unknown_verb_is_named_with_those_there_are(verb, command):
    called = command(verb)
    assert called.code == 2
    verbs = "run, check, bench, sweep, tune, list, runs, show, report, draw, resume"
    assert called.err == f"minijaxnet: error: got the verb '{verb}'; expected one of {verbs}\n"
    assert called.out == ""


# --- Processes: python -m, pipes, Ctrl-C, what is imported -----------------------------------------------------------


def environment_of_a_pipe():
    colours = {"FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "MINIJAXNET_TRACEBACK"}
    return {name: value for name, value in os.environ.items() if name not in colours}


def test_piped_output_is_plain_text(tmp_path):
    (tmp_path / "line.py").write_text(HEAD + BY_HAND_LINE, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "minijaxnet", "run", "line.py", *map(str, QUICK)],
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
        env=environment_of_a_pipe(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    text = done.stdout.decode()
    assert "took all 30 steps" in text
    assert not control_characters(text)
    assert len(list((tmp_path / "runs").glob("line-*/result.json"))) == 1


def test_ctrl_c_ends_a_long_run_with_130_and_a_result(tmp_path):
    (tmp_path / "line.py").write_text(HEAD + AUTODIFF_LINE, encoding="utf-8")
    # So small a rate that it never gets anywhere, so many steps that it never ends.
    flags = ["--steps", str(10**8), "--learning-rate", "1e-9", "--runs", "runs"]
    process = subprocess.Popen(
        [sys.executable, "-m", "minijaxnet", "run", "line.py", *flags],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment_of_a_pipe(),
    )
    with process:
        try:
            # Its first row is written from within the part that Ctrl-C may end.
            deadline = time.monotonic() + 100
            while not any(path.stat().st_size for path in tmp_path.glob("runs/*/metrics.jsonl")):
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=100)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    assert process.returncode == 130, err
    assert "stopped by SIGINT after" in out
    assert err == ""
    [result] = tmp_path.glob("runs/line-*/result.json")
    found = json.loads(result.read_text())
    assert found["status"] == "INTERRUPTED"
    assert 0 < found["steps_taken"] < 10**8
    chex.assert_tree_all_finite(load_file(result.with_name("params.safetensors")))


def test_ctrl_c_elsewhere_says_stopped(run):
    called = run("raise KeyboardInterrupt")
    assert (called.code, called.err) == (130, "stopped\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("seconds: got 0; expected more")])
def test_a_benchmark_that_fails_does_not_lose_the_result(error, run, monkeypatch):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(sys.modules["minijaxnet.cli.arms"], "compare_steps", fails)
    called = run(AUTODIFF_LINE, "--bench-seconds", 1)
    assert called.read("result.json")["steps_taken"] == 30


def test_import_takes_in_no_extra_and_nothing_slow():
    slow = ["optax", "sklearn", "matplotlib", "tyro", "rich", "chex", "scipy.stats"]
    program = textwrap.dedent(f"""
        import sys, minijaxnet
        print([name for name in {slow} if name in sys.modules])
        import minijaxnet.cli.run
        print([name for name in {slow} if name in sys.modules])
        """)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, env=environment_of_a_pipe()
    )
    assert done.stdout == "[]\n[]\n", done.stderr


# --- list ------------------------------------------------------------------------------------------------------------


def test_list_shows_experiments_and_scripts_and_runs_neither(command, tmp_path):
    folder = tmp_path / "experiments"
    folder.mkdir()
    texts = {
        "b_experiment.py": '"""Crashes when it is run.\n\nMore."""\nraise SystemExit(9)\nexperiment = 1 / 0\n',
        "a_script.py": '"""A script."""\nopen("touched", "w")\nif __name__ == "__main__":\n    1 / 0\n',
        "annotated.py": '"""Says its type."""\nexperiment: "Experiment" = None\n',
        "helper.py": '"""Meant for others."""\nraise SystemExit(9)\n',
        "silent.py": "experiment = 3\n",
        "broken.py": "x = = 1\n",
        "notes.txt": "experiment = 3\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "latin.py").write_bytes(b"experiment = '\xe9'\n")
    called = command("list", folder)
    assert (called.code, called.err) == (0, "")
    shown = [re.split(r"\s{2,}", line) for line in called.out.splitlines()]
    assert shown == [
        [f"python {folder / 'a_script.py'}", "A script."],
        [f"minijaxnet run {folder / 'annotated.py'}", "Says its type."],
        [f"minijaxnet run {folder / 'b_experiment.py'}", "Crashes when it is run."],
        [str(folder / "broken.py"), "(cannot be read: SyntaxError)"],
        [str(folder / "latin.py"), "(cannot be read: UnicodeDecodeError)"],
        [f"minijaxnet run {folder / 'silent.py'}", "(no summary)"],
    ]
    starts = {line.index(summary) for line, (_, summary) in zip(called.out.splitlines(), shown, strict=True)}
    assert len(starts) == 1, "the summaries stand in one column"
    assert not Path("touched").exists()


def test_list_looks_into_experiments_if_no_folder_is_named(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    assert command("list").out == "experiments: no experiments\n"
    (tmp_path / "experiments" / "one.py").write_text('"""One."""\nexperiment = 1\n')
    assert command("list").out == f"minijaxnet run {Path('experiments/one.py')}  One.\n"


@pytest.mark.parametrize("arguments", [(), ("nowhere",), ("file.py",)])
def test_list_names_a_folder_that_is_none(arguments, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.py").touch()
    called = command("list", *arguments)
    assert called.code == 2
    assert f"list: got {(*arguments, 'experiments')[0]}; expected a folder" in called.err


def test_list_takes_one_folder(command):
    called = command("list", "a", "b")
    assert called.code == 2
    assert "list: got a b; expected one folder at most" in called.err


def test_list_has_help(command):
    called = command("list", "--help")
    assert called.code == 0
    assert "usage: minijaxnet list [FOLDER]" in called.out


@pytest.mark.parametrize("kind", ["folder", "dangling link"])
def test_list_passes_over_what_is_no_file(kind, command, tmp_path):
    (tmp_path / "one.py").write_text("experiment = 1\n")
    odd = tmp_path / "odd.py"
    if kind == "folder":
        odd.mkdir()
    else:
        odd.symlink_to(tmp_path / "nowhere.py")
    called = command("list", tmp_path)
    assert called.code == 0
    assert "one.py" in called.out


def test_the_experiments_that_ship_are_listed_and_load(command):
    folder = Path(__file__).parents[2] / "experiments"
    called = command("list", folder)
    runnable = re.findall(r"^minijaxnet run (\S+\.py) {2,}\S", called.out, re.MULTILINE)
    assert str(folder / "digits.py") in runnable
    assert "(no summary)" not in called.out
    names = [load_experiment(path).name for path in runnable]
    assert len(set(names)) == len(names) >= 5
    assert np.all([re.fullmatch(r"[a-z_-]+", name) for name in names])
