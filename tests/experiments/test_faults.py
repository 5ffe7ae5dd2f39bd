"""Each fault of ``experiments/studies/faults.py`` ends in an error that names it, or in the right result; the judge.

Each worker of pytest has one process with minijaxnet in it: a fault ends no more than that.
"""

import time

import numpy as np
import pytest
from faulty import judge as judges
from faulty.faults import FAULTS
from faulty.worker import Worker

CASES = [(group, fault) for group in FAULTS for fault in FAULTS[group]]
# One of each kind; the others are slow.
QUICK = {
    "inputs": ("a label too high", "a label NaN", "labels in a column", "labels in words"),
    "numbers": ("NaN and infinity in a checkpoint", "the checkpoint of another optimizer"),
    "reading": ("cut off at every 64th byte", "an extra leaf", "a pickle", "overlapping offsets", "a pipe", "no file"),
    "writing": ("a read-only folder", "all checkpoints damaged"),
}
# These are random, and others with each seed.
RANDOM = {
    "numbers": ("a wrong gradient by hand",),
    "reading": ("random bytes", "bytes after its end", "each of 200 flipped bits"),
    "writing": (
        *("SIGKILL at random moments", "SIGKILL of the command", "a full disk at a save", "a full disk in a run"),
        *("the newest checkpoint damaged", "a torn log", "a log that lost rows"),
    ),
}


@pytest.fixture(scope="session")
def worker():
    found = Worker("minijaxnet")
    yield found
    found.close()


@pytest.mark.parametrize(
    ("group", "fault"),
    [pytest.param(*case, marks=[] if case[1] in QUICK[case[0]] else pytest.mark.slow) for case in CASES],
    ids=str,
)
def test_a_fault_is_survived(group, fault, worker):
    outcome = worker.ask(group, fault, seed=0, kills=6, limit_s=60)
    if outcome.survived is None:
        assert not outcome.here, outcome.why  # ours offers all
        pytest.skip(outcome.why)
    assert outcome.survived, f"{outcome.failed} of {outcome.trials}: {outcome.why}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("group", "fault"), [(group, fault) for group in RANDOM for fault in RANDOM[group]], ids=str)
def test_with_other_seeds_and_a_hundred_kills(group, fault, seed, worker):
    outcome = worker.ask(group, fault, seed=seed, kills=50, limit_s=60)
    assert outcome.survived is not False, f"{outcome.failed} of {outcome.trials}: {outcome.why}"


# --- The judge --------------------------------------------------------------------------------------------------------

RIGHT = {"a": np.arange(3.0)}
NAMED = judges.Expected("data", "nan", r"data\.x")


def raises(error):
    def act():
        raise error

    return act


@pytest.mark.parametrize(
    ("act", "right", "why"),
    [
        (lambda: {"a": np.arange(3.0)}, RIGHT, ""),
        (lambda: {"a": np.arange(3)}, RIGHT, "another result"),
        (lambda: {"a": np.array([0.0, 1.0, np.nan])}, RIGHT, "NaN or infinity"),
        (lambda: {"a": np.array([-0.0, 1.0, 2.0])}, RIGHT, "another result"),
        (lambda: {}, RIGHT, "in one of them only"),
        (lambda: RIGHT, None, "a result, without an error"),
        (raises(ValueError("data.x: got nan")), None, ""),
        (raises(ValueError("data: got nan")), None, "in other words"),
        (raises(ValueError("data.x: bad")), None, "does not say what is wrong"),
        (raises(ZeroDivisionError("division by zero")), None, "does not name it"),
    ],
)
def test_the_judge_tells_survived_from_not(act, right, why):
    outcome = judges.judge([judges.Trial(act, NAMED, right)], ours=True)
    assert outcome.survived == (not why) and why in outcome.why and outcome.trials == 1
    if "other words" in why:
        assert judges.judge([judges.Trial(act, NAMED, right)], ours=False).survived  # a peer need not use our words


def test_the_judge_sees_a_damaged_file_a_slow_answer_and_a_hang(tmp_path, monkeypatch):
    def write():
        (tmp_path / "a").write_bytes(bytes([len(list(tmp_path.iterdir()))]))
        raise ValueError("data.x: got nan")

    def why(act, limit_s=60, **options):
        return judges.judge([judges.Trial(act, NAMED, RIGHT, **options)], ours=True, limit_s=limit_s).why

    assert why(write, untouched=(tmp_path,)) == "damaged a file"
    assert why(lambda: RIGHT, also=lambda: "lost") == "lost"
    assert why(lambda: time.sleep(0.05) or RIGHT, limit_s=0.01).startswith("took ")
    monkeypatch.setitem(judges.HANGS_S, True, 1)
    assert why(lambda: time.sleep(60)) == "hung for 1 s"


def test_what_is_not_offered_is_not_counted_and_a_fault_that_cannot_be_injected_is_no_success():
    def trials(error):
        raise error
        yield

    assert judges.judge(trials(judges.NotOffered("it trains nothing")), ours=False).survived is None
    assert judges.judge(trials(ArithmeticError("of the study")), ours=False).survived is False
