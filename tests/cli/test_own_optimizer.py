"""An experiment's own optimizer: run, resumed, swept and compared; its numbers are flags."""

import shlex
import textwrap

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from kits.command import call, run

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


def optimizer(learning_rate, steps=30, decay=0.5, warmup=2):
    schedule = optax.cosine_decay_schedule(learning_rate, steps, alpha=decay)
    ramp = optax.linear_schedule(0.0, 1.0, warmup)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_schedule(ramp), optax.sgd(schedule, momentum=0.5))


@pytest.fixture
def verb(tmp_path, monkeypatch):
    """Calls a verb on the experiment with an optimizer."""
    monkeypatch.chdir(tmp_path)

    def called(verb, *flags, of="optimizer"):
        return run(tmp_path, textwrap.dedent(TEXT).replace("OPTIMIZER", of), *flags, verb=verb, head="")

    return called


def expected(optimizer, steps=30):
    descent = mjn.optax_descent(lambda params, batch: jnp.mean((params["w"] * batch[0] - batch[1]) ** 2), optimizer)
    points = (jnp.ones(3), jnp.ones(3))
    return mjn.descend(descent, descent.init({"w": jnp.float32(3)}), points, steps=steps)[0].params["w"]


def weight(called):
    assert called.code == 0, called.err
    return mjn.load_params(called.folder)["w"]


def test_it_is_run_with_the_steps_its_numbers_are_flags_and_it_goes_on_to_the_same_bits(verb):
    called = verb("run", "--checkpoint-every", "7")
    assert "30 steps of its own optimizer" in called.out and "--warmup INT" in verb("run", "--help").out
    np.testing.assert_array_equal(whole := weight(called), expected(optimizer(0.1)))
    for name in ("checkpoints/step-00000030.safetensors", "result.json", "params.safetensors"):
        (called.folder / name).unlink()  # as if it had been killed
    assert "went on from step 28" in call("resume", called.folder).out
    np.testing.assert_array_equal(weight(called), whole)
    assert (
        "its own optimizer is made anew, for 40 steps in place of 30"
        in call("resume", called.folder, "--steps", 40).out
    )
    called = verb("run", "--warmup", "9", "--decay", "0.1", "--steps", "25")
    np.testing.assert_allclose(weight(called), expected(optimizer(0.1, 25, decay=0.1, warmup=9), 25), rtol=1e-6)
    assert called.read("config.json")["optimizer"] == {"decay": 0.1, "warmup": 9}


def test_its_numbers_are_swept_and_the_table_ends_with_the_command_that_runs_the_best(verb, tmp_path):
    swept = verb("sweep", "--warmup", "2,9", "--decay", "0.0,0.5", "--steps", "20")
    assert swept.code == 0 and "4 descents of 20 steps" in swept.out
    line = swept.out[swept.out.index("minijaxnet run ") :].splitlines()[0]
    assert "--warmup 9" not in line and "--steps 20" in line
    again = verb("run", *shlex.split(line)[3:])
    best = swept.read("result.json")["loss"]
    assert again.read("result.json")["metrics"]["train_loss"] == pytest.approx(best, rel=1e-3)


def test_a_transformation_is_taken_whole_and_compared_by_bench(verb):
    np.testing.assert_array_equal(weight(verb("run", of="optax.adam(0.05)")), expected(optax.adam(0.05)))
    called = verb("bench", "--seconds", "0.01", of="optax.adam(0.05)")
    assert called.code == 0 and "its own optimizer" in called.out


@pytest.mark.parametrize(
    ("name", "options", "made"),
    [
        ("adam", "b1=0.8 nesterov=True", lambda: optax.adam(0.1, b1=0.8, nesterov=True)),
        ("polyak_sgd", "", lambda: optax.polyak_sgd(0.1)),  # its rate is only the largest
    ],
)
def test_a_name_stands_for_optaxs_optimizer_and_its_numbers_are_options(name, options, made, verb):
    called = verb("run", "--optimizer", name, "--optimizer-options", options)
    assert f"30 steps of optax.{name}, learning rate 0.1" in called.out
    np.testing.assert_allclose(weight(called), expected(made()), rtol=1e-6)


@pytest.mark.parametrize(
    ("of", "flags", "words"),
    [
        ("None", ["--optimizer", "own"], "got 'own'; expected an experiment with one"),
        ("optax.adam(0.05)", ["--learning-rate", "0.3"], "learning_rate: got 0.3; expected none"),
        ("None", ["--optimizer", "adam", "--optimizer-options", "b1"], "got 'b1'; expected name=number"),
        ("None", ["--optimizer", "adam", "--optimizer-options", "b1=many"], "b1: got 'many'; expected a number"),
        ("None", ["--optimizer", "adam", "--optimizer-options", "c1=0.8"], "adam takes no 'c1'; expected some of b1"),
        ("None", ["--optimizer", "adam", "--optimizer-options", "learning_rate=1"], "adam takes no 'learning_rate'"),
        ("lambda learning_rate: 3", [], "optimizer: it returns a int; expected a transformation of optax"),
        ("optimizer", ["--optimizer-options", "b1=0.8"], "its own takes no 'b1'; expected some of decay"),
        ("lambda *, steps: optax.sgd(0.1)", [], "optimizer: too many positional arguments; expected optimizer("),
        ("'adam'", [], "optimizer: got str; expected a transformation of optax"),
        ("lambda learning_rate, *, start=1.0: optax.sgd(start)", [], "'start' has the name of a flag"),
        (
            "optax.adam(0.1)",
            ["--optimizer-options", "b1=0.8"],
            "optimizer: got b1; expected an optimizer(learning_rate",
        ),
    ],
)
def test_a_wrong_optimizer_is_refused(of, flags, words, verb):
    refused = verb("run", *flags, of=of)
    assert refused.code == 2 and words in refused.err, refused.err
