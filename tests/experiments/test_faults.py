"""One case a fault: each ends in an error that names it, or in the right result; see ``experiments/studies/faults.py``.

The faults and the judge are in ``experiments/studies/faulty``, for the peers go through the same. Each worker of pytest has one
process in which ours is; a fault cannot end more than that.
"""

import importlib
from collections.abc import Iterator

import numpy as np
import pytest

FAULTS = importlib.import_module("faulty.faults").FAULTS
judges = importlib.import_module("faulty.judge")
Worker = importlib.import_module("faulty.worker").Worker
CASES = [(group, fault) for group in FAULTS for fault in FAULTS[group]]
# One of each kind; the others are slow.
QUICK = {
    "inputs": ("a label too high", "a label NaN", "labels in a column", "labels in words"),
    "numbers": ("NaN and infinity in a checkpoint", "the checkpoint of another optimizer"),
    "reading": ("cut off at every 64th byte", "an extra leaf", "a pickle", "overlapping offsets", "a pipe", "no file"),
    "writing": ("a read-only folder", "all checkpoints damaged"),
}

# What is not survived yet: a reason each; strict, so that what is mended must leave this list.
OPEN: dict[tuple[str, str], str] = {}


@pytest.fixture(scope="session")
def survived(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], bool]]:
    """Which faults were; how many is said at the end, where one process runs all tests."""
    found: dict[tuple[str, str], bool] = {}
    yield found
    capture = request.config.pluginmanager.getplugin("capturemanager")
    if capture is not None and not hasattr(request.config, "workerinput"):
        with capture.global_and_fixture_disabled():
            print(f"\nfaults survived: {sum(found.values())}/{len(found)}")


@pytest.fixture(scope="session")
def worker():
    found = Worker("minijaxnet")
    yield found
    found.close()


def marks(group, fault):
    slow = [] if fault in QUICK[group] else [pytest.mark.slow]
    reason = OPEN.get((group, fault))
    return [*slow, pytest.mark.xfail(reason=reason, strict=True)] if reason else slow


@pytest.mark.parametrize(
    ("group", "fault"),
    [pytest.param(*case, marks=marks(*case)) for case in CASES],
    ids=str,
)
def test_a_fault_is_survived(group, fault, worker, survived, record_property):
    outcome = worker.ask(group, fault, seed=0, kills=6)
    if outcome.survived is None:
        assert not outcome.here, outcome.why  # ours offers all
        pytest.skip(outcome.why)
    survived[group, fault] = outcome.survived
    record_property("fault survived", outcome.survived)
    assert outcome.survived, f"{outcome.failed} of {outcome.trials}: {outcome.why}"


# What is drawn in them is another with each seed.
DRAWN = {
    "numbers": ("a wrong gradient by hand",),
    "reading": ("random bytes", "bytes after its end", "each of 200 flipped bits"),
    "writing": (
        *("SIGKILL at random moments", "SIGKILL of the command", "a full disk at a save", "a full disk in a run"),
        *("the newest checkpoint damaged", "a torn log", "a log that lost rows"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("group", "fault"), [(group, fault) for group in DRAWN for fault in DRAWN[group]], ids=str)
def test_with_other_seeds_and_a_hundred_kills(group, fault, seed, worker):
    outcome = worker.ask(group, fault, seed=seed, kills=50)
    assert outcome.survived is not False, f"{outcome.failed} of {outcome.trials}: {outcome.why}"


# --- The judge -------------------------------------------------------------------------------------------------------

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
        (lambda: {"a": np.arange(3.0) + 1e-15}, RIGHT, "another result"),
        (lambda: {"a": np.array([0.0, 1.0, np.nan])}, RIGHT, "NaN or infinity"),
        (lambda: {"a": np.array([-0.0, 1.0, 2.0])}, RIGHT, "another result"),
        (lambda: {}, RIGHT, "in one of them only"),
        (lambda: RIGHT, None, "a result, in silence"),
        (raises(ValueError("data.x: got nan")), None, ""),
        (raises(ValueError("data: got nan")), None, "in other words"),
        (raises(ValueError("data.x: bad")), None, "does not say what is wrong"),
        (raises(ZeroDivisionError("division by zero")), None, "does not name it"),
    ],
)
def test_the_judge_tells_survived_from_not(act, right, why):
    outcome = judges.judge(iter([judges.Trial(act, NAMED, right)]), ours=True)
    assert outcome.survived == (not why) and why in outcome.why and outcome.trials == 1


def test_the_judge_is_milder_with_a_peer_but_not_with_silence():
    def outcome(act):
        return judges.judge(iter([judges.Trial(act, NAMED)]), ours=False)

    assert outcome(raises(KeyError("data: got nan"))).survived
    assert not outcome(lambda: RIGHT).survived


def test_the_judge_sees_a_damaged_file_a_slow_answer_and_a_hang(tmp_path, monkeypatch):
    def write():
        (tmp_path / "a").write_bytes(bytes([len(list(tmp_path.iterdir()))]))
        raise ValueError("data.x: got nan")

    def slow():
        import time

        time.sleep(0.05)
        return RIGHT

    def hang():
        import time

        while True:
            time.sleep(0.1)

    def why(act, **options):
        return judges.judge(iter([judges.Trial(act, NAMED, RIGHT, **options)]), ours=True).why

    assert why(write, untouched=(tmp_path,)) == "damaged a file"
    assert why(lambda: RIGHT, also=lambda: "lost") == "lost"
    monkeypatch.setattr(judges, "LIMIT_S", 0.01)
    assert why(slow).startswith("took ")
    monkeypatch.setitem(judges.HANGS_S, True, 1)
    assert why(hang) == "hung for 1 s"


def test_what_does_not_apply_is_not_counted_and_a_fault_that_fails_to_happen_is_no_success():
    def not_offered():
        raise judges.NotOffered("it trains nothing")
        yield

    def broken():
        raise ArithmeticError("of the experiment")
        yield

    assert judges.judge(not_offered(), ours=False).survived is None
    assert judges.judge(broken(), ours=False).survived is False
