"""What ``minijaxnet run`` refuses, with 2 and without a folder: experiments, flags and files."""

import re

import pytest
from kits.command import AUTODIFF, call, control_characters, run, unboxed

DATA_LINE = """
network = {network}
x, y = {x}, {y}
experiment = mjn.Experiment(
    "bad", {init}, mjn.objective(network, {loss}), lambda: (mjn.Batch(x, y), mjn.Batch(x, y)),
    defaults=mjn.Settings(steps=3),
)
"""


def experiment_text(
    x="np.ones((6, 3))",
    y="np.ones((6, 1))",
    network="mjn.mlp((3, 1))",
    init="network.init",
    loss="mean_squared_error",
):
    return DATA_LINE.format(x=x, y=y, network=network, init=init, loss=f"mjn.{loss}")


def classifier_text(y, network="mjn.mlp((3, 2))"):
    return experiment_text(y=y, network=network, loss="softmax_cross_entropy")


PLAIN_FUNCTION = """
def loss(params, batch):
    return mjn.mean_squared_error(batch.x @ params, batch.y)

points = mjn.Batch(np.ones((4, 2)), np.ones((4, 1)))
experiment = mjn.Experiment("plain", lambda key: jnp.zeros(2), loss, lambda: (points, points))
"""
RETURNED = """
points = np.ones((4, 2)), np.ones((4, 1))
experiment = mjn.Experiment("a", lambda key: jnp.zeros(2), lambda p, b: jnp.sum(p), lambda: {returned})
"""

# Each: the experiment, and what the error must say: the argument, what it got, what it expected.
BAD_EXPERIMENTS = {
    "y (n,) against predictions (n, 1)": (
        experiment_text(y="np.ones(6)"),
        "targets: got shape (6,); expected (6, 1), the shape of the predictions",
    ),
    "y (n, 1) against predictions (n,)": (
        experiment_text(network="mjn.Network(lambda key: jnp.zeros(3), lambda params, x: x @ params)"),
        "targets: got shape (6, 1); expected (6,), the shape of the predictions",
    ),
    "a column short": (
        experiment_text(x="np.ones((6, 2))"),
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
        experiment_text(y="np.ones((5, 1))"),
        "train.y: got 5 points; expected 6, as many as in train.x",
    ),
    "NaN in x": (
        experiment_text(x="np.where(np.arange(18).reshape(6, 3) == 7, np.nan, 1)"),
        "train.x[2, 1]: got nan (1 of 18 values are not finite); expected finite numbers",
    ),
    "infinity in NumPy's y": (
        experiment_text(y="np.full((6, 1), -np.inf)"),
        "train.y[0, 0]: got -inf (6 of 6 values are not finite); expected finite numbers",
    ),
    "no points": (
        experiment_text(x="np.ones((0, 3))", y="np.ones((0, 1))"),
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
        classifier_text("np.array([0, 1, 0, 1, 2, 0])"),
        "labels[4]: got 2; expected a class of 2, from 0 to 1",
    ),
    "a negative label": (
        classifier_text("np.array([0, -1, 0, 1, 1, 0])"),
        "labels[1]: got -1; expected a class of 2, from 0 to 1",
    ),
    "labels that are floats": (
        classifier_text("np.array([0.0, 1, 0, 1, 1, 0])"),
        "labels: got float32[6]; expected classes, integers of shape (6,): labels.astype(int), or",
    ),
    "a number with the name of a flag": (
        experiment_text(init="lambda key, *, steps=3: network.init(key)"),
        "init: its number 'steps' has the name of a flag of run; expected another name",
    ),
    "test data a column short": (
        experiment_text().replace("mjn.Batch(x, y))", "mjn.Batch(x[:, :2], y))"),
        "x: got shape (6, 2); expected a last axis of 3",
    ),
    "NaN in the test data": (
        experiment_text().replace("mjn.Batch(x, y))", "mjn.Batch(x * np.nan, y))"),
        "test.x[0, 0]: got nan (18 of 18 values are not finite)",
    ),
    "no points in the test data": (
        experiment_text().replace("mjn.Batch(x, y))", "mjn.Batch(x[:0], y[:0]))"),
        "test.x: got an empty data set",
    ),
    "a test label that is no class": (
        classifier_text("np.arange(6) % 2").replace("mjn.Batch(x, y))", "mjn.Batch(x, y + 1))"),
        "labels[1]: got 2",
    ),
    "a metric that is no scalar": (
        experiment_text().replace("steps=3),", "steps=3), metrics={'m': lambda p, b: b.y},"),
        "m: got float32[6,1]; expected a scalar",
    ),
    "a plain function's shapes": (
        PLAIN_FUNCTION,
        "targets: got shape (4, 1); expected (4,), the shape of the predictions\nin your code:",
    ),
    "no batches": (
        RETURNED.format(returned="None"),
        "data: it returns a NoneType; expected batches (train, test), or (train, validation, test)",
    ),
    "four batches": (
        RETURNED.format(returned="(points, points, points, points)"),
        "data: it returns a tuple of 4; expected batches (train, test), or (train, validation, test)",
    ),
    "an experiment of the wrong type": ("experiment = 3", "its experiment is a int; expected a line `experiment ="),
    "no experiment": ("pass", "defines no experiment; expected a line `experiment = Experiment(...)`"),
}


# Those that compile what no other does.
SLOW = ("a column short", "sizes that do not fit the data", "too many outputs", "NaN in params")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in BAD_EXPERIMENTS]
)
def test_a_bad_experiment_is_refused_with_2_and_leaves_no_folder(name, tmp_path):
    text, message = BAD_EXPERIMENTS[name]
    called = run(tmp_path, text)
    assert (called.code, called.folder) == (2, None)
    assert called.err.startswith("minijaxnet: error: ")
    assert message in called.err
    assert "Traceback" not in called.err


def test_the_users_own_lines_are_shown_and_nobody_elses(tmp_path):
    called = run(tmp_path, experiment_text(init="lambda key: jnp.zeros(3) + jnp.zeros(2)"))
    assert (called.code, called.folder) == (2, None)
    assert "in your code:" in called.err
    assert "my_experiment.py" in called.err
    assert "jnp.zeros(3) + jnp.zeros(2)" in called.err
    assert "site-packages" not in called.err
    text = 'experiment = mjn.Experiment("a", lambda key: 1.0, lambda params, batch: params, lambda: 1 / 0)'
    called = run(tmp_path, text)
    assert called.code == 2
    assert "division by zero" in called.err
    assert "in your code:" in called.err


def test_the_whole_traceback_can_be_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIJAXNET_TRACEBACK", "1")
    with pytest.raises(ValueError, match="steps: got -1"):
        run(tmp_path, AUTODIFF, "--steps", -1)


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
    "seed negative": (("--seed", -1), "seed: got -1; expected a number from 0 to 4294967295"),
    "seed too large": (("--seed", 2**32), "seed: got 4294967296; expected a number from 0 to 4294967295"),
    "seed beyond 64 bits": (("--seed", 10**20), f"seed: got {10**20}; expected a number from 0 to 4294967295"),
    "bench seconds negative": (
        ("--bench-seconds", "-1"),
        "bench_seconds: got -1.0; expected a finite number, at least 0",
    ),
    "bench seconds NaN": (("--bench-seconds", "nan"), "bench_seconds: got nan; expected a finite number, at least 0"),
    "checkpoint seconds infinite": (
        ("--checkpoint-seconds", "inf"),
        "checkpoint_seconds: got inf; expected a finite number",
    ),
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
def test_a_bad_flag_is_refused_with_2_and_leaves_no_folder(name, tmp_path):
    flags, message = BAD_FLAGS[name]
    called = run(tmp_path, AUTODIFF, *flags)
    assert (called.code, called.folder) == (2, None)
    assert re.search(pattern(message), unboxed(called.err)), called.err
    assert "Traceback" not in called.err
    assert "descent:" not in called.out
    assert not control_characters(called.err)


BY_HAND_CLASSES = classifier_text("np.array([0, 1, 0, 1, 2, 0])").replace(
    "defaults=",
    "value_and_gradient=mjn.mlp_gradient((3, 2), activation=jax.nn.relu, loss=mjn.softmax_cross_entropy), defaults=",
)


def test_a_bad_label_is_not_blamed_on_a_right_hand_gradient(tmp_path):
    called = run(tmp_path, BY_HAND_CLASSES)
    assert "NOT RIGHT" not in called.out
    assert called.code == 2
    assert "labels[4]: got 2; expected a class of 2, from 0 to 1" in called.err


# --- Files that are none ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no such file; expected a Python file"),
        (lambda path: path.mkdir(), "is a folder; expected a Python file"),
    ],
    ids=["missing", "folder"],
)
def test_a_file_that_is_none_is_named(make, message, tmp_path):
    path = tmp_path / "nowhere.py"
    make(path)
    called = call("run", path, "--runs", tmp_path / "runs")
    assert called.code == 2
    assert called.err == f"minijaxnet: error: {path}: {message}\n"
    assert not (tmp_path / "runs").exists()


BROKEN = {
    "syntax error": ("x = = 1", ["x = = 1", "SyntaxError: invalid syntax"]),
    "raises": ("def f():\n    raise RuntimeError('boom')\n\nf()", ["f()", "in f", "RuntimeError: boom"]),
    "missing module": ("import no_such_module_anywhere", ["No module named 'no_such_module_anywhere'"]),
    "exits": ("import sys\nsys.exit(3)", ["sys.exit(3)", "SystemExit: 3"]),
    "recurses": ("def f():\n    f()\n\nf()", ["RecursionError"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_does_not_import_shows_its_own_short_traceback(name, tmp_path):
    text, parts = BROKEN[name]
    called = run(tmp_path, text, head="")
    assert (called.code, called.folder) == (2, None)
    assert "my_experiment.py: it does not import:" in called.err
    assert all(part in called.err for part in parts)
    assert "importlib" not in called.err
    assert "minijaxnet/" not in called.err
    assert len(called.err.splitlines()) <= 15


LOGARITHM = 'jnp.log(100 - jnp.abs(params["slope"]))'
OF_THE_FIRST_POINT = 'jnp.sum(jnp.log(1 - (batch.x == -1))) * params["slope"]'


@pytest.mark.parametrize(
    ("broken", "flags"),
    [
        (LOGARITHM, ("--steps", 300, "--learning-rate", 2)),
        pytest.param(OF_THE_FIRST_POINT, ("--batch-size", 2, "--seed", 2), marks=pytest.mark.slow),
    ],
    ids=["of all points", "of the step's own minibatch"],
)
def test_diagnose_names_the_operation_that_is_not_finite(broken, flags, tmp_path):
    called = run(tmp_path, AUTODIFF.replace("return jnp.mean((", f"return {broken} + jnp.mean(("), "--diagnose", *flags)
    assert called.code == 1 and "DIVERGED at step" in called.out and "DIVERGED at step 0" not in called.out
    assert "the first operation whose result is not finite is log, my_experiment.py:" in called.out
