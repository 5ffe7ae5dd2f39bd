"""``minijaxnet run``: what is done, shown and written; and ``runs`` and ``show``, which look at it."""

import re
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kits.command import AUTODIFF, BY_HAND, call, control_characters, run, unboxed

import minijaxnet as mjn
from minijaxnet._trees import named_leaves
from minijaxnet.experiment import load_experiment


def line_errors(weights, batch):
    return weights["params/slope"] * batch.x + weights["params/offset"] - batch.y


# --- One run by hand, with a benchmark --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory):
    flags = ("--steps", 20, "--scale", 0.5, "--data-points", 12, "--bench-seconds", 0.05)
    return run(tmp_path_factory.mktemp("by-hand"), BY_HAND, *flags)


def test_a_run_leaves_its_settings_environment_metrics_parameters_and_result(by_hand):
    assert (by_hand.code, by_hand.err) == (0, "")
    folder = by_hand.folder
    assert re.fullmatch(r"line-\d{8}-\d{6}", folder.name)
    assert f"written to {folder}" in by_hand.out
    files = "checkpoints code comparison.json config.json environment.json log.txt metrics.jsonl params.safetensors"
    assert sorted(path.name for path in folder.iterdir()) == [
        *files.split(),
        "result.json",
        "timing.json",
        "timing.jsonl",
    ]
    assert (folder / "log.txt").read_text(encoding="utf-8") == by_hand.out
    file = folder.parents[1] / "my_experiment.py"
    assert (folder / "code" / "my_experiment.py").read_text() == file.read_text()

    config = by_hand.read("config.json")
    assert (config["experiment"], config["verb"], config["file"]) == ("line", "run", str(file))
    assert config["init"] == {"scale": 0.5, "offset": 2}
    assert config["data"] == {"points": 12, "noise": 0.0}
    set_here = {"steps": 20, "runs": str(folder.parent), "bench_seconds": 0.05, "report": False}
    defaults = {"learning_rate": 0.25, "batch_size": None, "seed": 7, "optimizer": "gd", "precision": "float32"}
    assert config["flags"].items() >= (set_here | defaults).items()
    assert by_hand.read("environment.json")["versions"]["jax"] == jax.__version__

    names = {"step", "loss", "gradient_norm", "train_loss", "latest_error", "test_loss", "test_latest_error"}
    names |= {"params/offset", "params/slope"}  # the weights, as they are but two
    rows = by_hand.rows()
    train, _ = load_experiment(file).data(points=12)
    assert rows[0]["loss"] == pytest.approx(np.mean(line_errors(rows[0], train) ** 2), rel=1e-5)
    assert [row["step"] for row in rows] == list(range(21))
    assert all(set(row) == names for row in rows)
    result = by_hand.read("result.json")
    assert (result["status"], result["steps_taken"]) == ("OUT_OF_STEPS", 20)
    assert result["metrics"] == rows[-1]
    assert result["gradient_check"]["ok"] is True
    timing = by_hand.read("timing.json")
    assert timing["compile_s"] > 0 and timing["step_us"] > 0
    arms = ["gradient descent, gradient by hand", "gradient descent, autodiff", "optax.sgd, autodiff"]
    comparison = by_hand.read("comparison.json")
    assert list(comparison["arms"]) == arms and comparison["baseline"] == arms[1]

    for words in (*arms, "descent: took all 20 steps; compiled in", "gradient by hand against autodiff: right"):
        assert words in by_hand.out
    assert by_hand.out.startswith("line: 20 steps of gradient descent, learning rate 0.25, float32 on")
    assert re.search(r"at the end +train +test\n-+\nloss +\S+ +\S+\nlatest_error +\S+ +\S+\n", by_hand.out)


def steps_shown(text):
    return [line.split()[0] for line in text.splitlines() if line[:2].strip().isdigit()]


def test_runs_and_show_print_the_state_of_a_run(by_hand, tmp_path):
    folder = by_hand.folder
    out = call("show", folder).out
    assert f"{folder}: done" in out and "my_experiment.py: steps 20, learning_rate 0.25" in out and "jax " in out
    assert steps_shown(out) == [*map(str, range(0, 20, 2)), "20"]  # each once
    assert "gradient by hand: right" in out
    called = call("runs", folder.parent)
    assert called.code == 0 and re.search(rf"{folder.name} +done +20 +.*train_loss", called.out)
    assert call("runs", tmp_path) == (0, f"{tmp_path}: no runs\n", "", None)
    for arguments, words in (
        (("show",), "the following arguments are required: folder"),
        (("show", tmp_path), "there is no config.json; expected the folder of a run"),
    ):
        called = call(*arguments)
        assert called.code == 2 and words in called.err


# --- The descent that the settings say --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run(tmp_path_factory.mktemp("plain"), AUTODIFF)


def test_the_run_is_the_descent_that_its_settings_say(plain):
    train, test = load_experiment(plain.folder.parents[1] / "my_experiment.py").data()
    start_key, _, _ = jax.random.split(jax.random.key(7), 3)
    weights = {"params/slope": float(jax.random.normal(start_key)), "params/offset": 2.0}
    for row in plain.rows():
        errors, of_test = line_errors(weights, train), line_errors(weights, test)
        expected = weights | {"loss": np.mean(errors**2), "train_loss": np.mean(errors**2)}
        expected |= {"test_loss": np.mean(of_test**2)}
        expected |= {"latest_error": np.mean(errors), "test_latest_error": np.mean(of_test)}
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)
        weights["params/slope"] -= 0.25 * np.mean(2 * errors * train.x)
        weights["params/offset"] -= 0.25 * np.mean(2 * errors)
    last = {f"['{name}']": np.float32(row[f"params/{name}"]) for name in ("slope", "offset")}
    chex.assert_trees_all_equal(plain.params(), last)
    assert plain.read("result.json")["gradient_check"] is None and not (plain.folder / "comparison.json").exists()


def test_numbers_of_init_and_data_are_flags_that_reach_them_and_no_steps_are_a_run(tmp_path):
    called = run(tmp_path, AUTODIFF, "--help")
    assert (called.code, called.folder) == (0, None) and not control_characters(called.out)
    text = unboxed(called.out)
    assert "A line through a few points." in text and "second paragraph" not in text
    for flag, default in {"--steps INT": 30, "--scale FLOAT": 1.0, "--data-points INT": 8}.items():
        assert re.search(rf"{flag} [^()]*\(default: {default}\)", text), flag
    called = run(tmp_path, AUTODIFF, "--scale", 0, "--offset", -3, "--data-noise", 1.0, "--steps", 0)
    assert called.code == 0
    assert called.params() == {"['slope']": 0, "['offset']": -3}
    [start] = called.rows()
    # Errors of y = x / 3 + 0.1 + noise against -3: their mean is near -3.1, and the noise adds its variance.
    assert start["latest_error"] == pytest.approx(-3.1, abs=0.5)
    assert start["loss"] > start["latest_error"] ** 2 + 0.5
    assert called.read("timing.json")["step_us"] is None


def test_minibatches_are_drawn_in_the_order_of_the_seed_and_the_loss_at_the_end_is_of_all_points(tmp_path):
    called = run(tmp_path, AUTODIFF, "--batch-size", 3, "--steps", 20, "--data-noise", 1.0)
    experiment = load_experiment(tmp_path / "my_experiment.py")
    train, _ = experiment.data(noise=1.0)
    start_key, order_key, _ = jax.random.split(jax.random.key(7), 3)
    descent = mjn.gradient_descent(experiment.objective, 0.25)
    start = descent.init(jax.jit(experiment.init)(start_key))
    state, _ = mjn.descend_epochs(descent, start, train, order_key, batch_size=3, epochs=10)
    chex.assert_trees_all_close(called.params(), named_leaves(state.params), rtol=1e-6)
    [printed] = re.findall(r"^loss +(\S+) ", called.out, re.MULTILINE)
    errors = line_errors(called.rows()[-1], train)
    assert float(printed) == pytest.approx(np.mean(errors**2), rel=1e-3)


def test_float64_is_float64_and_ends_with_the_run(tmp_path):
    called = run(tmp_path, AUTODIFF, "--precision", "float64", "--steps", 2000, "--until-flat", 1e-14)
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
    assert run(tmp_path, AUTODIFF, "--precision", "float64", "--steps", -1).code == 2
    assert jnp.asarray(1.0).dtype == jnp.float32


NOISY = """
def noisy(params, batch, key):
    return jnp.mean((params - batch.x) ** 2) * jax.random.uniform(key, minval=0.5, maxval=1.5)


points = mjn.Batch(np.ones((4, 2), np.float32), np.ones((4, 1), np.float32))
experiment = mjn.Experiment(
    "noisy", lambda key: jnp.zeros(2), noisy, lambda: (points, points), defaults=mjn.Settings(steps=9)
)
"""


def test_an_objective_with_a_key_gets_one(tmp_path):
    called = run(tmp_path, NOISY)
    assert called.code == 0
    losses = [row["loss"] for row in called.rows()]
    assert losses[-1] < losses[0]


# --- What goes wrong --------------------------------------------------------------------------------------------------


def test_a_descent_that_diverges_exits_1_with_a_hint_and_keeps_what_is_finite(tmp_path):
    called = run(tmp_path, AUTODIFF, "--learning-rate", 1e6, "--steps", 500)
    assert called.code == 1
    result = called.read("result.json")
    assert result["status"] == "DIVERGED"
    assert 0 < result["steps_taken"] < 500
    assert f"DIVERGED at step {result['steps_taken']}" in called.out
    assert "hint: " in called.out
    assert "--learning-rate 100000" in called.out
    chex.assert_tree_all_finite(called.params())
    assert re.search(r"diverged +\d+", call("runs", tmp_path / "runs").out)


def test_a_wrong_hand_gradient_is_reported_after_the_loss_unless_unchecked(tmp_path):
    wrong = BY_HAND.replace("2 * jnp.mean(errors)}", "1.999 * jnp.mean(errors)}")
    called = run(tmp_path, wrong)
    assert called.code == 1 and called.read("result.json")["gradient_check"]["ok"] is False
    assert called.out.index("took all") < called.out.index("gradient by hand against autodiff: NOT RIGHT")
    assert "wrong beyond rounding in ['offset']" in called.out and "The result cannot be relied on" in called.out
    assert "wrong gradient" in call("runs", called.folder.parent).out
    called = run(tmp_path, wrong, "--unchecked")
    assert called.code == 0 and called.read("result.json")["gradient_check"]["ok"] is False


def test_a_check_that_raises_is_said_and_the_run_is_kept(tmp_path, monkeypatch):
    def fails(setup):
        raise RuntimeError("no")

    monkeypatch.setattr("minijaxnet.cli.execute.check_gradient", fails)
    called = run(tmp_path, BY_HAND)
    assert called.code == 1 and "not checked: RuntimeError: no" in called.out
    assert called.read("result.json")["status"] == "OUT_OF_STEPS"


def test_a_wrong_hand_gradient_ends_a_long_descent(tmp_path, monkeypatch):
    monkeypatch.setattr("minijaxnet.cli.execute._LONG_S", 0.0)
    wrong = BY_HAND.replace("2 * jnp.mean(errors)}", "1.999 * jnp.mean(errors)}")
    called = run(tmp_path, wrong, "--steps", 10_000_000, "--learning-rate", 1e-6)
    assert called.code == 1
    assert "gradient by hand against autodiff: NOT RIGHT" in called.out and "The descent was stopped" in called.out
    assert called.read("result.json")["status"] == "FAILED"


def test_a_hand_gradient_of_another_shape_is_refused(tmp_path):
    called = run(tmp_path, BY_HAND.replace('"slope": 2 * jnp.mean(errors * batch.x)', '"slope": errors'))
    assert (called.code, called.folder) == (2, None)
    assert "['slope']: got float32[8]; expected float32[]" in " ".join(called.err.split())


DIVERGING = ("--learning-rate", 1e6, "--steps", 500)


@pytest.mark.parametrize(
    ("part", "error", "flags", "code", "words"),
    [
        ("compare_steps", RuntimeError("no"), ("--bench-seconds", 1), 0, "not timed: RuntimeError: no"),
        ("diagnose", RuntimeError("no"), (*DIVERGING, "--diagnose"), 1, "not diagnosed: RuntimeError: no"),
        ("run_page", RuntimeError("no"), ("--report",), 0, "no report.html: RuntimeError: no"),
        ("compare_steps", KeyboardInterrupt(), ("--bench-seconds", 1), 130, "stopped"),
    ],
    ids=["benchmark", "diagnosis", "page", "Ctrl-C"],
)
def test_what_is_measured_on_the_side_never_fails_a_run(part, error, flags, code, words, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise error

    for name, module in [*sys.modules.items()]:
        if name.startswith("minijaxnet.cli.") and callable(getattr(module, part, None)):
            monkeypatch.setattr(module, part, fails)
    called = run(tmp_path, AUTODIFF, *flags)
    assert called.code == code and words in called.out + called.err
    result = called.read("result.json")
    assert (result["status"], result["metrics"]) == ("DIVERGED" if code == 1 else "OUT_OF_STEPS", called.rows()[-1])
    assert code == 130 or f"written to {called.folder}" in called.out
    assert called.err == ("stopped\n" if code == 130 else "")
    assert code == 130 or words in (called.folder / "log.txt").read_text()
    assert not Path(called.folder / "report.html").exists()


LOGARITHM = 'jnp.log(100 - jnp.abs(params["slope"]))'


def test_diagnose_names_the_operation_that_is_not_finite(tmp_path):
    text = AUTODIFF.replace("return jnp.mean((", f"return {LOGARITHM} + jnp.mean((")
    called = run(tmp_path, text, "--diagnose", "--steps", 300, "--learning-rate", 2)
    assert called.code == 1 and "DIVERGED at step" in called.out and "DIVERGED at step 0" not in called.out
    assert "the first operation whose result is not finite is log, my_experiment.py:" in called.out
