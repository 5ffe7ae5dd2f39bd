"""An experiment's own optimizer: run, resumed, swept and compared; its numbers are flags."""

import json
import shlex
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from kits.command import call as call_command

import minijaxnet as mjn

TEXT = """
    import jax.numpy as jnp, optax, minijaxnet as mjn

    def optimizer(learning_rate, *, steps, decay=0.5, warmup=2):
        schedule = optax.cosine_decay_schedule(learning_rate, steps, alpha=decay)
        ramp = optax.linear_schedule(0.0, 1.0, warmup)
        return optax.chain(
            optax.clip_by_global_norm(1.0), optax.scale_by_schedule(ramp), optax.sgd(schedule, momentum=0.5)
        )

    points = (jnp.ones(3), jnp.ones(3))
    experiment = mjn.Experiment(
        "line",
        init=lambda key, *, start=3.0: {"w": jnp.float32(start)},
        objective=lambda params, batch: jnp.mean((params["w"] * batch[0] - batch[1]) ** 2),
        data=lambda: (points, points),
        optimizer=OPTIMIZER,
        defaults=mjn.Settings(steps=30, learning_rate=0.1),
    )
"""
PLAIN = ["--bench-seconds", "0", "--no-report"]


def call(*arguments):
    """Call the command; the newest folder of a run."""
    called = call_command(*arguments)
    folders = sorted(Path("runs").glob("*"), key=lambda path: path.stat().st_mtime_ns)
    return called._replace(folder=folders[-1] if folders else None)


def optimizer(learning_rate, steps=30, decay=0.5, warmup=2):
    schedule = optax.cosine_decay_schedule(learning_rate, steps, alpha=decay)
    ramp = optax.linear_schedule(0.0, 1.0, warmup)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_schedule(ramp), optax.sgd(schedule, momentum=0.5))


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Writes the experiment with an optimizer, in a folder of its own that one is in."""
    monkeypatch.chdir(tmp_path)

    def write(of="optimizer"):
        (tmp_path / "line.py").write_text(textwrap.dedent(TEXT).replace("OPTIMIZER", of))
        return "line.py"

    return write


def expected(steps=30, **numbers):
    descent = mjn.optax_descent(
        lambda params, batch: jnp.mean((params["w"] * batch[0] - batch[1]) ** 2), optimizer(0.1, steps, **numbers)
    )
    points = (jnp.ones(3), jnp.ones(3))
    return mjn.descend(descent, descent.init({"w": jnp.float32(3)}), points, steps=steps)[0].params["w"]


def test_it_is_run_with_the_steps_and_its_numbers_are_flags(file):
    called = call("run", file(), *PLAIN)
    assert called.code == 0 and "30 steps of its own optimizer" in called.out
    np.testing.assert_array_equal(mjn.load_params(called.folder)["w"], expected())
    called = call("run", "line.py", *PLAIN, "--warmup", "9", "--decay", "0.1", "--steps", "25")
    np.testing.assert_allclose(mjn.load_params(called.folder)["w"], expected(25, warmup=9, decay=0.1), rtol=1e-6)
    assert json.loads((called.folder / "config.json").read_text())["optimizer"] == {"decay": 0.1, "warmup": 9}
    assert "--warmup INT" in call("run", "line.py", "--help").out
    called = call("run", "line.py", *PLAIN, "--optimizer", "gd")
    assert called.code == 0 and "30 steps of gradient descent" in called.out


def test_stopped_and_gone_on_with_it_comes_to_the_same_bits(file):
    folder = call("run", file(), *PLAIN, "--checkpoint-every", "7", "--warmup", "4").folder
    whole = mjn.load_params(folder)
    for path in (folder / "checkpoints").iterdir():
        if "00000030" in path.name:
            path.unlink()
    (folder / "result.json").unlink()
    (folder / "params.safetensors").unlink()
    called = call("resume", folder)
    assert called.code == 0 and "went on from step 28" in called.out
    np.testing.assert_array_equal(mjn.load_params(folder)["w"], whole["w"])


def test_its_numbers_are_swept_and_the_table_ends_with_the_command_that_runs_the_best(file):
    called = call("sweep", file(), "--warmup", "2,9", "--decay", "0.1:0.5:2", "--steps", "20")
    assert called.code == 0
    swept = called.folder
    line = called.out[called.out.index("minijaxnet run line.py") :].splitlines()[0]
    assert "--warmup 9" not in line and "--steps 20" in line
    again = call(*shlex.split(line)[1:], *PLAIN)
    assert again.code == 0, again.err
    best = json.loads((swept / "result.json").read_text())["loss"]
    assert again.read("result.json")["metrics"]["train_loss"] == pytest.approx(best, rel=1e-3)


def test_a_transformation_is_taken_whole_and_compared_by_bench(file):
    called = call("run", file("optax.adam(0.05)"), *PLAIN)
    assert called.code == 0
    descent = mjn.optax_descent(
        lambda params, batch: jnp.mean((params["w"] * batch[0] - batch[1]) ** 2), optax.adam(0.05)
    )
    points = (jnp.ones(3), jnp.ones(3))
    want = mjn.descend(descent, descent.init({"w": jnp.float32(3)}), points, steps=30)[0].params["w"]
    np.testing.assert_array_equal(mjn.load_params(called.folder)["w"], want)
    called = call("bench", "line.py", "--seconds", "0.05")
    assert called.code == 0 and "its own optimizer" in called.out
    refused = call("run", "line.py", *PLAIN, "--learning-rate", "0.3")
    assert refused.code == 2 and "learning_rate: got 0.3; expected none" in refused.err


def test_the_numbers_of_optaxs_optimizers_are_options(file):
    called = call("run", file("None"), *PLAIN, "--optimizer", "adam", "--optimizer-options", "b1=0.8 nesterov=True")
    assert called.code == 0
    for options, words in (
        ("b1", "got 'b1'; expected name=number"),
        ("b1=many", "b1: got 'many'; expected a number"),
        ("c1=0.8", "adam takes no 'c1'; expected some of b1"),
    ):
        refused = call("run", "line.py", *PLAIN, "--optimizer", "adam", "--optimizer-options", options)
        assert refused.code == 2 and words in refused.err


@pytest.mark.parametrize(
    ("of", "flags", "words"),
    [
        ("None", ["--optimizer", "own"], "got 'own'; expected an experiment with one"),
        ("lambda learning_rate: 3", [], "optimizer: it returns a int; expected a transformation of optax"),
        ("optimizer", ["--optimizer-options", "b1=0.8"], "its own takes no 'b1'; expected some of its numbers: decay"),
        (
            "lambda *, steps: optax.sgd(0.1)",
            [],
            "optimizer: too many positional arguments; expected optimizer(",
        ),
        ("'adam'", [], "optimizer: got str; expected a transformation of optax"),
        ("lambda learning_rate, *, start=1.0: optax.sgd(start)", [], "'start' has the name of a flag"),
        (
            "optax.adam(0.1)",
            ["--optimizer-options", "b1=0.8"],
            "optimizer: got b1; expected an optimizer(learning_rate",
        ),
    ],
)
def test_what_is_no_optimizer_is_said(of, flags, words, file):
    refused = call("run", file(of), *PLAIN, *flags)
    assert refused.code == 2 and words in refused.err, refused.err


def test_a_schedule_is_sent_to_optax():
    with pytest.raises(TypeError, match="a schedule: optax_descent"):
        mjn.gradient_descent(lambda params, batch: params, optax.constant_schedule(0.1))


def test_a_sweep_over_numbers_that_the_optimizer_looks_at(file):
    """optax's warmup_cosine_decay_schedule asks whether its peak is 0, which no compiled program can say."""
    of = "lambda rate, *, steps, decay=0.1: optax.sgd(optax.warmup_cosine_decay_schedule(0.0, rate, 2, steps, decay))"
    found = call("sweep", file(of), "--learning-rate", "0.001,0.1", "--decay", "0.0,0.1")
    assert found.code == 0, found
    assert "4 descents of 30 steps" in found.out and "best: learning_rate 0.1" in found.out


def test_more_steps_make_it_anew_and_that_is_said(file):
    folder = call("run", file(), *PLAIN).folder
    called = call("resume", folder, "--steps", "40")
    assert called.code == 0 and "its own optimizer is made anew, for 40 steps in place of 30" in called.out
