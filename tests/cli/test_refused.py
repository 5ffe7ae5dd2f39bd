"""What the command line refuses, with 2 and without a folder: experiments, flags and files."""

import re

import pytest
from kits.command import AUTODIFF, call, control_characters, run, unboxed

EXPERIMENT = """
network = {network}
x, y = {x}, {y}
experiment = mjn.Experiment(
    "bad", {init}, mjn.objective(network, mjn.{loss}), lambda: (mjn.Batch(x, y), {test}),
    defaults=mjn.Settings(steps=3), {more}
)
"""
PARTS = {
    "network": "mjn.mlp((3, 1))",
    "x": "np.ones((6, 3))",
    "y": "np.ones((6, 1))",
    "init": "network.init",
    "loss": "mean_squared_error",
    "test": "mjn.Batch(x, y)",
    "more": "",
}
CLASSES = {"network": "mjn.mlp((3, 2))", "loss": "softmax_cross_entropy"}
BAD_LABEL = CLASSES | {"y": "np.array([0, 1, 0, 1, 2, 0])"}
BY_HAND = "value_and_gradient=mjn.mlp_gradient((3, 2), activation=jax.nn.relu, loss=mjn.softmax_cross_entropy)"

# The experiment, and what the error must say: the argument, what it got, what it expected.
BAD_EXPERIMENTS = [
    ({"y": "np.ones(6)"}, "targets: got shape (6,); expected (6, 1), the shape of the predictions"),
    ({"y": "np.ones((5, 1))"}, "train.y: got 5 points; expected 6, as many as in train.x"),
    ({"x": "np.ones((6, 3)) * np.nan"}, "train.x[0, 0]: got nan (18 of 18 values are not finite)"),
    ({"init": "lambda key: jnp.zeros((3, 1), int)"}, "params: got dtype int32; expected a real floating dtype"),
    ({"init": "lambda key: ()"}, "params: got a tree without leaves; expected at least one array"),
    ({"init": "lambda key, *, steps=3: network.init(key)"}, "init: its number 'steps' has the name of a flag of run"),
    (BAD_LABEL, "labels[4]: got 2; expected a class of 2, from 0 to 1"),
    (BAD_LABEL | {"more": BY_HAND}, "labels[4]: got 2; expected a class of 2, from 0 to 1"),
    ({"test": "mjn.Batch(x[:, :2], y)"}, "x: got shape (6, 2); expected a last axis of 3"),
    ({"test": "mjn.Batch(x * np.nan, y)"}, "test.x[0, 0]: got nan (18 of 18 values are not finite)"),
    ({"test": "mjn.Batch(x[:0], y[:0])"}, "test.x: got an empty data set"),
    (CLASSES | {"y": "np.arange(6) % 2", "test": "mjn.Batch(x, y + 1)"}, "labels[1]: got 2"),
    ({"more": "metrics={'m': lambda p, b: b.y}"}, "m: got float32[6,1]; expected a scalar"),
    ({"more": "metrics={'train_loss': lambda p, b: 0.0}"}, "metrics: got the name 'train_loss'; expected another"),
    (
        {"test": "*3 * [mjn.Batch(x, y)]"},
        "data: it returns a tuple of 4; expected batches (train, test), or (train, validation, test)",
    ),
    ("experiment = 3", "got an experiment that is a int; expected a line `experiment ="),
    ("pass", "got no experiment; expected a line `experiment = Experiment(...)`"),
    ("import sys\nsys.exit(3)", "my_experiment.py: it does not import:\n"),
]


def text_of(parts):
    return parts if isinstance(parts, str) else EXPERIMENT.format(**PARTS | parts)


@pytest.mark.parametrize(("parts", "words"), BAD_EXPERIMENTS)
def test_a_bad_experiment_is_refused_with_2_and_leaves_no_folder(parts, words, tmp_path):
    called = run(tmp_path, text_of(parts))
    assert (called.code, called.folder) == (2, None)
    assert called.err.startswith("minijaxnet: error: ") and words in called.err
    assert "Traceback" not in called.err and "NOT RIGHT" not in called.out


def test_the_users_own_lines_are_shown_and_nobody_elses(tmp_path):
    for init, words in (("jnp.zeros(3) + jnp.zeros(2)", "jnp.zeros(3) + jnp.zeros(2)"), ("1 / 0", "division by zero")):
        called = run(tmp_path, text_of({"init": f"lambda key: {init}"}))
        assert (called.code, called.folder) == (2, None)
        assert "in your code:" in called.err and "my_experiment.py" in called.err and words in called.err
        assert "site-packages" not in called.err


def test_a_variable_of_the_environment_shows_the_whole_traceback(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIJAXNET_TRACEBACK", "1")
    with pytest.raises(ValueError, match="steps: got -1"):
        run(tmp_path, AUTODIFF, "--steps", -1)


BAD_FLAGS = [
    ("run", "--batch-size -4", "batch_size: got -4; expected at least 1"),
    ("run", "--batch-size 9", "batch_size: got 9; expected at most 8, the points there are"),
    ("run", "--batch-size 2.5", "--batch-size: no type matching {None}|INT .* '2.5'"),
    ("run", "--learning-rate 0", "learning_rate: got 0.0; expected a positive, finite float32"),
    ("run", "--learning-rate nan", "learning_rate: got nan; expected a positive, finite float32"),
    ("run", "--optimizer adam --learning-rate 0", "learning_rate: got 0.0; expected a positive, finite float32"),
    ("run", "--learning-rate fast", "--learning-rate: .*'fast'.* --learning-rate FLOAT"),
    *((verb, "--steps -5", "steps: got -5; expected at least 0") for verb in ("run", "sweep", "check")),
    ("run", "--steps", "--steps"),
    ("run", "--log-every 0", "log_every: got 0; expected at least 1"),
    ("run", "--checkpoint-every 0", "checkpoint_every: got 0; expected at least 1"),
    ("run", "--checkpoint-seconds inf", "checkpoint_seconds: got inf; expected a finite number, at least 0"),
    ("run", "--until-flat nan", "until_flat: got nan; expected a finite number, at least 0"),
    ("sweep", "--until-flat -1", "until_flat: got -1.0; expected a finite number, at least 0"),
    ("sweep", "--block 0", "block: got 0; expected at least 1"),
    ("run", "--seed -1", "seed: got -1; expected a number from 0 to 4294967295"),
    ("run", f"--seed {10**20}", f"seed: got {10**20}; expected a number from 0 to 4294967295"),
    ("run", "--bench-seconds -1", "bench_seconds: got -1.0; expected a finite number, at least 0"),
    ("bench", "--seconds 0", "seconds: got 0.0; expected a positive number"),
    ("bench", "--save=", "save: got ''; expected a path"),
    ("run", "--runs=", "runs: got ''; expected a path"),
    ("run", "--precision float16", "'float16' .*'--precision'.* one of ('float32', 'float64', 'bfloat16')"),
    ("run", "--optimizer adm", "optimizer: got 'adm'; expected gd or the name of an optimizer of optax (did you mean"),
    ("run", "--optimizer scale_by_zoom_linesearch", "expected gd or the name of an optimizer"),
    ("run", "--bogus 3", "Unrecognized options: --bogus"),
    ("run", "--scal 3", "Unrecognized options: --scal.* Perhaps you meant: .*--scale FLOAT"),
    ("run", "more.py", "Unrecognized options: more.py"),
    ("run", "--scale nan", "state.params['slope']: got NaN or infinity; expected finite numbers"),
    ("run", "--data-noise nan", "train.y[0]: got nan (8 of 8 values are not finite)"),
    ("run", "--data-points 0", "train.x: got an empty data set; expected at least one point"),
]


@pytest.mark.parametrize(("verb", "flags", "words"), BAD_FLAGS)
def test_a_bad_flag_is_refused_with_2_before_anything_is_announced(verb, flags, words, tmp_path):
    called = run(tmp_path, AUTODIFF, *flags.split(), verb=verb)
    assert (called.code, called.out, called.folder) == (2, "", None)
    assert re.search(".*".join(map(re.escape, words.split(".*"))), unboxed(called.err)), called.err
    assert "Traceback" not in called.err and not control_characters(called.err)


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
    assert (called.code, called.err) == (2, f"minijaxnet: error: {path}: {message}\n")
    assert not (tmp_path / "runs").exists()
