"""A run that goes on for more steps, or at another rate or batch size; what has changed is on record."""

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
from kits.command import call, rows_in

import minijaxnet as mjn
from minijaxnet.run import folder as folder_module

TEXT = """
    import jax, jax.numpy as jnp, numpy as np, minijaxnet as mjn
    draw = np.random.default_rng(0)
    x = draw.normal(size=(24, 3)).astype(np.float32)
    train = mjn.Batch(x, x @ np.ones((3, 1), np.float32))
    network = mjn.mlp((3, 4, 1))
    experiment = mjn.Experiment(
        "net", network.init, mjn.objective(network, mjn.mean_squared_error), lambda: (train, train),
        defaults=mjn.Settings(steps=40, learning_rate=0.05, batch_size=6),
    )
"""
PLAIN = ["--bench-seconds", "0", "--no-report"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the experiment anew: its folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(textwrap.dedent(TEXT))

    def run(*flags, name="runs"):
        assert call("run", "net.py", *PLAIN, "--runs", name, *flags).code == 0
        [folder] = Path(name).iterdir()
        return folder

    return run


def weights(folder):
    return [np.asarray(leaf) for layer in mjn.load_params(folder) for leaf in layer.values()]


@pytest.mark.parametrize("every", [(), ("--log-every", "4")])
def test_a_run_that_is_done_goes_on_to_the_bits_of_a_longer_one(every, run):
    folder = run(*every)
    assert call("resume", folder).code == 2
    called = call("resume", folder, "--steps", "90")
    assert called.code == 0 and "took all 90 steps" in called.out and "went on from step 40" in called.out
    longer = run("--steps", "90", "--log-every", str(rows_in(folder)[1]["step"]), name="longer")
    for mine, other in zip(weights(folder), weights(longer), strict=True):
        np.testing.assert_array_equal(mine, other)
    assert rows_in(folder) == rows_in(longer)
    config = json.loads((folder / "config.json").read_text())
    assert config["flags"]["steps"] == 90
    assert config["changes"][0]["at_step"] == 40 and config["changes"][0]["steps"] == [40, 90]
    assert call("resume", folder).code == 2  # it is done


def test_another_rate_and_batch_size_hold_from_there_on_and_are_in_the_rows(run):
    folder = run()
    called = call("resume", folder, "--steps", "80", "--learning-rate", "0.001", "--batch-size", "12")
    assert called.code == 0, called.err
    rows = rows_in(folder)
    assert all("learning_rate" not in row for row in rows if row["step"] < 40)
    assert {(row["learning_rate"], row["batch_size"]) for row in rows if row["step"] >= 40} == {(0.001, 12.0)}
    far = [np.abs(a - b).max() for a, b in zip(weights(folder), weights(run(name="before")), strict=True)]
    assert 0 < max(far) < 0.05  # 40 steps at the small rate
    again = call("resume", folder, "--steps", "100")
    assert again.code == 0 and rows_in(folder)[-1]["learning_rate"] == 0.001
    assert len(json.loads((folder / "config.json").read_text())["changes"]) == 2


def test_killed_after_a_change_it_goes_on_with_it_to_the_same_bits(run, monkeypatch):
    whole, broken = run(name="whole"), run(name="broken")
    flags = ["--steps", "80", "--learning-rate", "0.01"]
    assert call("resume", whole, *flags).code == 0
    with monkeypatch.context() as patched:
        patched.setattr("minijaxnet.cli.execute.fit", lambda *given, **options: 1 / 0)
        assert call("resume", broken, *flags).code == 2
    assert call("resume", broken).code == 0
    for mine, other in zip(weights(whole), weights(broken), strict=True):
        np.testing.assert_array_equal(mine, other)
    assert rows_in(whole) == rows_in(broken)


def test_it_stays_ones_own_and_its_code_is_still_watched(run):
    folder = run()
    assert call("resume", folder, "--steps", "50").code == 0
    assert mjn.load_run(folder).experiment.name == "net"
    with open("net.py", "a", encoding="utf-8") as file:
        file.write("# changed\n")
    refused = call("resume", folder, "--steps", "60")
    assert refused.code == 2 and "other code" in refused.err
    assert json.loads((folder / "config.json").read_text())["flags"]["steps"] == 50


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--steps", "30"], "steps: got 30; expected more than the 40 that the run has taken"),
        (["--steps", "50", "--batch-size", "99"], "batch_size: got 99; expected at most 24"),
        (["--learning-rate", "0"], "learning_rate: got 0"),
        (["--patience", "3"], "patience: got 3, and a run without --keep-best"),
        (["--patience", "0"], "patience: got 0"),
    ],
)
def test_what_cannot_be_meant_is_said_and_changes_nothing(flags, words, run):
    folder = run()
    before = (folder / "config.json").read_text()
    refused = call("resume", folder, *flags)
    assert refused.code == 2 and words in refused.err
    assert (folder / "config.json").read_text() == before


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_killed_within_a_change_of_settings_it_stays_ones_own(at, run, monkeypatch):
    folder = run()
    left, replace = iter(range(at)), folder_module.replace_file

    def killed(path, content):
        if next(left, None) is None:
            raise SystemExit("killed")
        replace(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(folder_module, "replace_file", killed)
        call("resume", folder, "--steps", "60")
    called = call("resume", folder, "--steps", "60")
    assert called.code == 0 and "took all 60 steps" in called.out, called.err
    assert mjn.load_run(folder).experiment.name == "net"
    assert len(json.loads((folder / "environment.json").read_text())["mark"].split()) == 1


def test_more_steps_than_can_be_counted_are_refused_at_once(run):
    folder = run()
    refused = call("resume", folder, "--steps", "99999999999")
    assert refused.code == 2 and "steps: got 99,999,999,999; expected less than" in refused.err
    assert json.loads((folder / "config.json").read_text())["flags"]["steps"] == 40
