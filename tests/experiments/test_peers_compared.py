"""The comparison of frameworks: those that agree take turns, and what cannot be timed is a row with its reason."""

import json
import sys

import numpy as np
import peers_compared
import pytest
from peers import LOOP, OURS_LOOP, OURS_WHOLE, SCAN
from peers import compare as bench_peers

from minijaxnet.bench.intervals import Interval


class Scripted:
    """A peer that is no process: what it opens with, answers at first, and how long its blocks take, and how many."""

    def __init__(self, opened, first=(1.0, 0.5), step_s=1e-4, blocks=99):
        self.opened, self.asked, self.closed = opened, {"first": first, "size": 4, "block": step_s}, False
        self.blocks = blocks

    def answer(self, verb):
        return self.ask(verb, "", self.opened)

    def ask(self, verb, label, answer=None):
        self.blocks -= verb == "block"
        answer = self.asked[verb] if answer is None else answer
        if isinstance(answer, Exception) or self.blocks < 0:
            raise answer if isinstance(answer, Exception) else bench_peers.PeerFailed("died")
        return (0.5, np.float32(answer), "a note") if verb == "first" else answer

    def close(self):
        self.closed = True


def no(words):
    return bench_peers.PeerFailed(words)


def test_those_that_agree_take_turns_and_the_others_have_a_reason(monkeypatch, tmp_path, capsys):
    scans = iter([1e-4, 3e-4])
    make = {
        "jax": lambda: Scripted({SCAN: (True, True)}, step_s=next(scans)),
        "good": lambda: Scripted({LOOP: (False, True)}, step_s=2e-4),
        "other": lambda: Scripted({"other": (True, True)}, first=(1.1, 0.5)),
        "another rule": lambda: Scripted({"another rule": (True, False)}, first=(1.1, 0.5)),
        "raises": lambda: Scripted({"raises": (True, True)}, first=no("RuntimeError: not today")),
        "dies later": lambda: Scripted({"dies later": (True, True)}, blocks=3),
        "absent": lambda: Scripted("not installed"),
        "broken": lambda: Scripted(no("died with exit code 1")),
    }
    started = []

    def start(module, arguments, scratch):
        assert module == "peers.worker" and arguments[1] == "2-2-1"
        started.append(make[arguments[0]]())
        return started[-1]

    monkeypatch.setattr(bench_peers, "sentinel", lambda: lambda: 1e-6)
    monkeypatch.setattr(peers_compared, "Peer", start)
    monkeypatch.setattr(peers_compared, "PEERS", {name: name for name in make})
    file = tmp_path / "samples.json"
    arguments = ["peers_compared.py", "--workloads", "2-2-1", "--only", ",".join(make), "--seconds", "0"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--json", str(file)])
    peers_compared.main()
    found = json.loads(file.read_text(encoding="utf-8"))["2-2-1"]
    assert list(found["rows"]) == [SCAN, LOOP, "another rule"]
    assert found["untimed"] == {
        "other": "another result: at step 0 the loss is 1.1; expected 1",
        "raises": "RuntimeError: not today",
        "dies later": "died",
        "absent": "not installed",
        "broken": "died with exit code 1",
    }
    good = found["rows"][LOOP]
    assert (good["whole"], good["compile_s"], good["note"]) == (False, 0.5, "a note")
    samples = (good["samples_s"], found["control_s"], found["sentinel_s"])
    assert [set(times) for times in samples] == [{2e-4}, {3e-4}, {1e-6}]
    assert len({len(times) for times in samples}) == 1 and len(good["samples_s"]) >= 9
    printed = capsys.readouterr().out
    assert all(f"not timed: {name}: {reason}" in printed for name, reason in found["untimed"].items())
    assert len(started) == len(make) + 1 and all(peer.closed for peer in started)


@pytest.mark.parametrize("scan", [{"opened": no("it is")}, {"opened": {SCAN: (True, True)}, "first": no("it is")}])
def test_without_the_reference_there_is_no_comparison(monkeypatch, scan):
    monkeypatch.setattr(bench_peers, "sentinel", lambda: lambda: 1e-6)
    peers = {"jax": Scripted(**scan), "good": Scripted({"good": (False, True)})}
    with pytest.raises(bench_peers.PeerFailed, match=r"raw lax\.scan: it is"):
        bench_peers.compare_peers(peers, Scripted({SCAN: (True, True)}), SCAN, seconds=0)
    assert all(peer.closed for peer in peers.values())


TINY = """
import sys
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[-1]))
pipe.send((True, sys.argv[1]))
while True:
    verb, label = pipe.recv()
    if verb == "first":
        pipe.send((False, "not today"))
    if verb == "size":
        sys.exit("out of ideas")
"""


def test_a_process_that_says_no_hangs_or_dies_is_told_apart(tmp_path, monkeypatch):
    (tmp_path / "tiny.py").write_text(TINY, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setitem(bench_peers.PATIENCE_S, "block", 0.2)  # for what never comes
    for verb, words in {
        "first": "not today",
        "size": "died with exit code 1: out of ideas",
        "block": r"took longer than 0.2 s \(block\)",
    }.items():
        peer = bench_peers.Peer("tiny", ["a word"], tmp_path)
        assert peer.answer("open") == "a word"
        with pytest.raises(bench_peers.PeerFailed, match=words):
            peer.ask(verb, "label")
        peer.close()


FAKE = """
from peers import Arm, SCAN

def arms(workload):
    return {SCAN: Arm(lambda: lambda steps: [1.0] * steps)}
"""


@pytest.mark.slow
def test_a_peers_file_is_opened_in_a_process_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "fake.py").write_text(FAKE, encoding="utf-8")
    (tmp_path / "broken.py").write_text("1 / 0", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(peers_compared, "PEERS", {"jax": "fake", "broken": "broken", "absent": "no_such_file"})
    found = peers_compared.compare("2-2-1", peers_compared.PEERS, 0.0, tmp_path)
    assert list(found.rows) == [SCAN]
    assert found.untimed["absent"].startswith("not installed (No module named")
    assert found.untimed["broken"] == "died with exit code 1: ZeroDivisionError: division by zero"


# --- The table ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "loop", "expected"),
    [
        ((0.5, 1.0), (0.1, 11.0), "from 1"),
        ((1.0, 1.0), (0.0, 1.25), "from 4"),
        ((1.0, 1.0), (0.0, 1.3), "from 4"),
        ((0.1, 1.0), (0.5, 2.0), "at once"),
        ((0.5, 2.0), (0.5, 1.0), "never"),
        ((0.5, 1.0), (0.5, 1.0), "never"),
        ((0.0, 2.0), (9.5, 1.0), "until 9"),
        ((0.0, 1e-6), (0.5, 0.5e-6), "until 1,000,000"),
    ],
)
def test_break_even(arm, loop, expected):
    assert peers_compared.break_even(*arm, *loop) == expected


def test_a_verdict_needs_an_interval_beyond_one_and_beyond_the_control():
    quiet, noisy = Interval(1.0, 0.99, 1.01), Interval(1.1, 1.05, 1.2)
    assert peers_compared.verdict(Interval(1.5, 1.1, 1.6), quiet) == "faster"
    assert peers_compared.verdict(Interval(1.5, 1.1, 1.6), noisy) == "tie"
    assert peers_compared.verdict(Interval(0.5, 0.4, 0.98), quiet) == "SLOWER"
    assert peers_compared.verdict(Interval(0.5, 0.4, 0.995), quiet) == "tie"
    assert peers_compared.verdict(Interval(1.0, 0.9, 1.1), quiet) == "tie"


def comparison(control: float) -> bench_peers.Comparison:
    drift = 1 + 0.3 * np.random.default_rng(0).random(30)  # the machine's, the same for all in a round
    steps_s = {SCAN: 1e-6, OURS_WHOLE: 2e-6, "quick": 0.5e-6, LOOP: 8e-6, OURS_LOOP: 9e-6, "like ours": 9e-6}
    whole = {SCAN, OURS_WHOLE, "quick"}
    rows = {label: bench_peers.Row(label in whole, 0.5, step_s * drift) for label, step_s in steps_s.items()}
    return bench_peers.Comparison(rows, 1e-6 * control * drift, drift, {"torch": "not installed (no)"})


def test_a_table_is_sorted_in_its_groups_marks_ours_and_tells_ties_from_losses():
    *lines, _, last = peers_compared.table("title", comparison(1.0)).splitlines()
    order = ["a step called", LOOP, OURS_LOOP, "like ours", "the whole loop", "quick", SCAN, OURS_WHOLE, "not timed"]
    assert [name for line in lines[3:] for name in order if name in line[:40]] == order
    cells = {line[2:].split("  ")[0]: line for line in lines}
    assert cells[OURS_LOOP].startswith("* ") and cells[OURS_WHOLE].startswith("* ")
    assert "tie" in cells["like ours"]
    assert "SLOWER" in cells["quick"] and "SLOWER" in cells[LOOP]
    assert "0.5 to 0.5" in cells["quick"]
    assert last == "30 rounds; the raw scan in a second process, times the first: 1 (1 to 1)"


def test_a_table_says_when_the_scan_differs_from_itself():
    text = peers_compared.table("title", comparison(4.5))
    assert "DIFFERS FROM ITSELF" in text
    assert "DIFFERS FROM ITSELF" not in peers_compared.table("title", comparison(1.0))


@pytest.mark.parametrize(("flag", "known"), [("--workloads", "2-2-1"), ("--only", "minijaxnet")])
def test_an_unknown_name_is_refused_with_those_that_are_known(flag, known, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["peers_compared.py", flag, "keras"])
    with pytest.raises(SystemExit):
        peers_compared.main()
    assert f"{flag}: got keras; expected some of {known}" in capsys.readouterr().err
