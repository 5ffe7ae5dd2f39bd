"""The comparison of frameworks: those that agree take turns, and what cannot be timed is a row with its reason."""

import json
import sys
import textwrap

import numpy as np
import peers_compared
import pytest
from peers import LOOP, OURS_LOOP, OURS_WHOLE, SCAN
from peers import compare as bench_peers

from minijaxnet.bench.intervals import Interval


class Scripted:
    """A peer that is no process: what it answers, an exception to be raised, or the seconds of its blocks."""

    def __init__(self, opened, losses=(1.0, 0.5), step_s=1e-4, first=None, blocks=99):
        self.opened, self.losses, self.step_s, self.first, self.blocks = opened, losses, step_s, first, blocks
        self.closed = False

    def answer(self, verb):
        assert verb == "open"
        if isinstance(self.opened, Exception):
            raise self.opened
        return self.opened

    def ask(self, verb, label):
        if verb == "first":
            if self.first:
                raise self.first
            return 0.5, np.float32(self.losses), "a note"
        if verb == "size":
            return 4
        self.blocks -= 1
        if self.blocks < 0:
            raise bench_peers.PeerFailed("died")
        return self.step_s

    def close(self):
        self.closed = True


def test_those_that_agree_take_turns_and_the_others_have_a_reason(monkeypatch):
    monkeypatch.setattr(bench_peers, "sentinel", lambda: lambda: 1e-6)
    peers = {
        "jax": Scripted({SCAN: (True, True)}),
        "good": Scripted({"good": (False, True)}, step_s=2e-4),
        "other": Scripted({"other": (True, True)}, losses=(1.1, 0.5)),
        "another rule": Scripted({"another rule": (True, False)}, losses=(1.1, 0.5)),
        "raises": Scripted({"raises": (True, True)}, first=bench_peers.PeerFailed("RuntimeError: not today")),
        "dies later": Scripted({"dies later": (True, True)}, blocks=3),
        "absent": Scripted("not installed"),
        "broken": Scripted(bench_peers.PeerFailed("died with exit code 1")),
    }
    again = Scripted({SCAN: (True, True)}, step_s=3e-4)
    found = bench_peers.compare_peers(peers, again, SCAN, seconds=0)
    assert list(found.rows) == [SCAN, "good", "another rule"]
    assert found.untimed == {
        "other": "another result: at step 0 the loss is 1.1; expected 1",
        "raises": "RuntimeError: not today",
        "dies later": "died",
        "absent": "not installed",
        "broken": "died with exit code 1",
    }
    good = found.rows["good"]
    assert (good.whole, good.compile_s, good.note) == (False, 0.5, "a note")
    assert set(good.samples_s) == {2e-4} and set(found.control_s) == {3e-4} and set(found.sentinel_s) == {1e-6}
    assert len(good.samples_s) == len(found.control_s) == len(found.sentinel_s) >= 9
    assert all(peer.closed for peer in (*peers.values(), again))


@pytest.mark.parametrize("where", ["opened", "first"])
def test_without_the_reference_there_is_no_comparison(monkeypatch, where):
    monkeypatch.setattr(bench_peers, "sentinel", lambda: lambda: 1e-6)
    scan = {"opened": {SCAN: (True, True)}} | {where: bench_peers.PeerFailed("died with exit code 1")}
    peers = {"jax": Scripted(**scan), "good": Scripted({"good": (False, True)})}
    with pytest.raises(bench_peers.PeerFailed, match=r"raw lax\.scan: died with exit code 1"):
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


FAKE = '''
"""Arms that need no framework: they wait, as long as real ones take."""
import os, sys, time
from peers import LOOP, OURS_LOOP, SCAN, Arm

def arms(workload):
    blocks = []
    def arm(step_s, whole=False, factor=1.0, when=lambda steps: None):
        def run(steps):
            when(steps)
            time.sleep(step_s * steps)
            return [factor / (1 + k) for k in range(min(steps, 20))]
        return Arm(lambda: run, whole=whole)
    def dies(steps):
        if steps != 20:
            print("out of ideas", file=sys.stderr, flush=True)
            os._exit(7)
    def raises(steps):
        raise RuntimeError("not today\\nnor tomorrow")
    return {KIND}
'''
BASE = '{SCAN: arm(1e-4, True), LOOP: arm(3e-4), OURS_LOOP: arm(3e-4), "other": arm(1e-4, factor=1.1)}'
KINDS = {
    "base": BASE,
    "dying": '{"dies later": arm(1e-4, when=dies)}',
    "raising": '{"raises": arm(1e-3, when=raises)}',
    "hanging": '{"hangs": arm(60.0)}',
    "unable": '"too small a framework"',
}


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    for kind, arms in KINDS.items():
        (tmp_path / f"fake_{kind}.py").write_text(textwrap.dedent(FAKE).replace("{KIND}", arms), encoding="utf-8")
    (tmp_path / "fake_broken.py").write_text("1 / 0", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    answer = bench_peers.Peer.answer

    def hasty(peer, verb):
        with monkeypatch.context() as patch:
            if "fake_hanging" in peer.process.args and verb == "first":
                patch.setitem(bench_peers.PATIENCE_S, verb, 1.0)
            return answer(peer, verb)

    monkeypatch.setattr(bench_peers.Peer, "answer", hasty)
    return tmp_path


@pytest.mark.slow
def test_a_comparison_of_peers_of_which_some_fail(fakes, monkeypatch, capsys):
    kinds = {"jax": "base", **{kind: kind for kind in (*KINDS, "broken", "absent") if kind != "base"}}
    monkeypatch.setattr(peers_compared, "PEERS", {name: f"fake_{kind}" for name, kind in kinds.items()})
    file = fakes / "samples.json"
    arguments = ["peers_compared.py", "--workloads", "2-2-1", "--only", ",".join(kinds), "--seconds", "0"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--json", str(file)])
    peers_compared.main()
    found = json.loads(file.read_text(encoding="utf-8"))["2-2-1"]
    assert set(found["rows"]) == {SCAN, LOOP, OURS_LOOP}
    untimed = found["untimed"]
    assert untimed.pop("absent").startswith("not installed (No module named")
    assert untimed == {
        "other": "another result: at step 0 the loss is 1.1; expected 1",
        "dies later": "died with exit code 7: out of ideas",
        "raises": "RuntimeError: not today",
        "hangs": "took longer than 1 s (first)",
        "unable": "too small a framework",
        "broken": "died with exit code 1: ZeroDivisionError: division by zero",
    }
    rounds = {len(row["samples_s"]) for row in found["rows"].values()} | {len(found["control_s"])}
    assert len(rounds) == 1
    assert min(rounds) >= 8
    printed = capsys.readouterr().out
    assert all(f"not timed: {name}: {reason}" in printed for name, reason in untimed.items())


@pytest.mark.slow
def test_without_the_scan_there_is_no_comparison(fakes, monkeypatch):
    monkeypatch.setattr(peers_compared, "PEERS", {"jax": "fake_broken"})
    with pytest.raises(bench_peers.PeerFailed, match=r"raw lax\.scan: died with exit code 1"):
        peers_compared.compare("2-2-1", ["jax"], 0.0, fakes)


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
