"""A run that is resumed with more steps, or at another rate or batch size; the changes are recorded."""

import json
import shutil

import pytest
from kits.command import call, rows_in
from kits.stopped import RUN, here, made, mark_again, only, results, stopping

import minijaxnet as mjn
from minijaxnet._files import replace_file

__all__ = ["here", "made"]  # fixtures


def settings(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("every", [(), ("--log-every", 4)])
def test_a_run_that_is_done_goes_on_to_the_bits_of_a_longer_one(every, here):
    assert call(*RUN, *every, "--runs", "first").code == 0
    folder = only("first")
    called = call("resume", folder, "--steps", 50)
    assert called.code == 0 and "took all 50 steps" in called.out and "went on from step 30" in called.out
    flags = ("--steps", 50, "--log-every", rows_in(folder)[1]["step"])
    assert call(*RUN, *flags, "--runs", "longer").code == 0
    assert results(folder) == results(only("longer"))
    changes = settings(folder)["changes"]
    assert settings(folder)["flags"]["steps"] == 50
    assert changes[0]["at_step"] == 30 and changes[0]["steps"] == [30, 50]
    assert call("resume", folder).code == 2  # it is done


def test_another_rate_and_batch_size_hold_from_there_on_and_are_in_the_rows(here):
    folder = only("whole")
    called = call("resume", folder, "--steps", 45, "--learning-rate", 0.001, "--batch-size", 4)
    assert called.code == 0, called.err
    rows = rows_in(folder)
    assert all("learning_rate" not in row for row in rows if row["step"] < 30)
    assert {(row["learning_rate"], row["batch_size"]) for row in rows if row["step"] >= 30} == {(0.001, 4.0)}
    last, before = (next(row for row in rows if row["step"] == step) for step in (45, 30))
    assert 0 < abs(last["params/offset"] - before["params/offset"]) < 0.05  # 15 steps at the small rate
    again = call("resume", folder, "--steps", 50)
    assert again.code == 0 and rows_in(folder)[-1]["learning_rate"] == 0.001
    assert len(settings(folder)["changes"]) == 2


@pytest.mark.parametrize("at", [0, 1, 2, 3, None])
def test_killed_within_a_change_or_stopped_after_it_it_goes_on_with_it_to_the_same_bits(at, here):
    folder, flags = only("whole"), ("--steps", 45, "--learning-rate", 0.01)
    changed = shutil.copytree(folder, here / "changed")
    mark_again(changed)
    assert call("resume", changed, *flags).code == 0
    left = iter(range(at or 0))

    def killed(path, content):
        if next(left, None) is None:
            raise SystemExit("killed")
        replace_file(path, content)

    with pytest.MonkeyPatch.context() as patched, stopping(37):
        if at is not None:
            patched.setattr("minijaxnet.run.folder.replace_file", killed)
        assert call("resume", folder, *flags).code != 0
    called = call("resume", folder, *(flags if at is not None else ()))
    assert called.code == 0 and "took all 45 steps" in called.out, called.err
    assert results(folder) == results(changed) and mjn.load_run(folder).experiment.name == "line"
    assert len(json.loads((folder / "environment.json").read_text())["mark"].split()) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--steps", "20"], "steps: got 20; expected more than the 30 that the run has taken"),
        (["--steps", "99999999999"], "steps: got 99,999,999,999; expected less than"),
        (["--steps", "50", "--batch-size", "99"], "batch_size: got 99; expected at most 8"),
        (["--learning-rate", "0"], "learning_rate: got 0"),
        (["--patience", "3"], "patience: got 3, and a run without --keep-best"),
        (["--patience", "0"], "patience: got 0"),
    ],
)
def test_a_change_that_is_refused_changes_nothing(flags, words, here):
    before = settings(only("whole"))
    refused = call("resume", only("whole"), *flags)
    assert refused.code == 2 and words in refused.err
    assert settings(only("whole")) == before
