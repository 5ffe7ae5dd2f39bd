"""The comparison of frameworks: every peer takes the same steps, and what cannot be timed is a row with its reason."""

import functools
import importlib
import json
import shutil
import sys
import textwrap

import numpy as np
import pytest
from peers import arms as worker
from peers import compare as bench_peers

from minijaxnet.bench.intervals import Interval

peers = importlib.import_module("peers")
open_peer = importlib.import_module("peers.worker").open_peer
peers_compared = importlib.import_module("peers_compared")

Arm, Workload, PEERS, WORKLOADS = peers.Arm, peers.Workload, peers.PEERS, peers.WORKLOADS
LOOP, OURS_LOOP, OURS_WHOLE, SCAN = peers.LOOP, peers.OURS_LOOP, peers.OURS_WHOLE, peers.SCAN

NEEDS = {"optax": "optax", "equinox": "equinox", "flax": "flax", "torch": "torch"}
CLASSES = Workload((5, 7, 7, 3), 6, 0.1)
COPIES = WORKLOADS["1000x2-2-1"]._replace(copies=24)
STEPS = 5


def arms_of(peer: str, workload: Workload) -> dict[str, Arm]:
    if peer in NEEDS:
        pytest.importorskip(NEEDS[peer])
    if peer == "c" and shutil.which("gcc") is None:
        pytest.skip("no gcc")
    found = open_peer(PEERS[peer], workload)
    if peer == "c" and workload.sizes != (2, 2, 1):
        assert found == "written for 2-2-1 only"
        pytest.skip(found)
    assert isinstance(found, dict), found
    return found


def losses(arm: Arm, steps: int = STEPS) -> np.ndarray:
    return worker.losses_of(arm.start()(steps))


@functools.cache
def reference(workload: Workload, steps: int = STEPS) -> np.ndarray:
    """Gradient descent in float64, the slope by finite differences of the loss: written once more from it."""
    x, y = workload.data()
    layers = [leaf.astype(np.float64) for layer in workload.weights() for leaf in layer]

    def loss(leaves: list[np.ndarray]) -> np.ndarray:
        h = x.astype(np.float64)
        for number in range(0, len(leaves), 2):
            h = (np.maximum(h, 0) if number else h) @ leaves[number] + leaves[number + 1][..., None, :]
        if not workload.classifies:
            return np.mean((h - y) ** 2, axis=(-2, -1))
        return np.mean(np.log(np.sum(np.exp(h), axis=-1)) - h[np.arange(len(y)), y])

    seen = []
    for _ in range(steps):
        seen.append(loss(layers))
        slopes = [np.zeros_like(leaf) for leaf in layers]
        stacked = 0 if workload.copies is None else 1
        for number, leaf in enumerate(layers):
            for index in np.ndindex(leaf.shape[stacked:]):
                place = (..., *index)
                moved = {}
                for shift in (-1e-6, 1e-6):
                    shifted = [other.copy() for other in layers]
                    shifted[number][place] += shift
                    moved[shift] = loss(shifted)
                slopes[number][place] = (moved[1e-6] - moved[-1e-6]) / 2e-6
        layers = [leaf - workload.learning_rate * slope for leaf, slope in zip(layers, slopes, strict=True)]
    return np.array(seen)


EXPECTED = {"2-2-1": WORKLOADS["2-2-1"], "classes": CLASSES, "copies": COPIES}


# --- The peers ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("default::DeprecationWarning:torch")
@pytest.mark.parametrize("workload", EXPECTED.values(), ids=EXPECTED)
@pytest.mark.parametrize("peer", PEERS)
def test_every_peer_takes_the_same_steps_from_the_same_start(peer, workload):
    expected = reference(workload)
    assert np.all(np.mean(expected.reshape(STEPS, -1), axis=1)[1:] < np.mean(expected[0]))
    for label, arm in arms_of(peer, workload).items():
        if "compile" in label:
            continue  # takes a minute; the comparison itself holds it against the others
        found = losses(arm)
        assert found.shape == expected.shape, label
        if arm.same_rule:
            assert bench_peers.loss_difference(found, expected) is None, label
            np.testing.assert_array_equal(losses(arm), found, err_msg=f"{label}: a second start is not the first")
        else:
            assert bench_peers.loss_difference(found, expected) is not None, label


def test_no_two_peers_share_a_label_and_the_tables_find_theirs():
    labels = [label for peer in ("minijaxnet", "jax", "optax", "numpy") for label in arms_of(peer, WORKLOADS["2-2-1"])]
    assert len(set(labels)) == len(labels)
    assert {SCAN, LOOP, OURS_LOOP, OURS_WHOLE} <= set(labels)


@pytest.mark.parametrize(("name", "steps"), [("2-2-1", 500), ("64-128-10", 25), ("1000x2-2-1", 100)])
def test_losses_fall_and_stay_finite(name, steps):
    (arm,) = arms_of("numpy", WORKLOADS[name]).values()
    means = losses(arm, steps).reshape(steps, -1).mean(axis=1)
    assert np.all(np.isfinite(means))
    assert np.all(np.diff(means) < 0)


@pytest.mark.parametrize("peer", NEEDS)
def test_a_peer_that_is_not_installed_says_so(peer, monkeypatch):
    monkeypatch.delitem(sys.modules, PEERS[peer], raising=False)
    monkeypatch.setitem(sys.modules, NEEDS[peer], None)
    assert str(open_peer(PEERS[peer], WORKLOADS["2-2-1"])).startswith("not installed (")


def test_a_missing_compiler_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert open_peer(PEERS["c"], WORKLOADS["2-2-1"]) == "not installed (no gcc)"


# --- What is the same result ----------------------------------------------------------------------------------------


def test_rounding_is_the_same_result_and_a_rate_one_per_cent_off_is_not():
    for workload in EXPECTED.values():
        (arm,) = arms_of("numpy", workload).values()
        (other,) = arms_of("numpy", workload._replace(learning_rate=1.01 * workload.learning_rate)).values()
        found, steps = losses(arm, worker.CHECKED_STEPS), worker.CHECKED_STEPS
        assert bench_peers.loss_difference(found * (1 + 1e-6), found) is None
        assert "the loss is" in (bench_peers.loss_difference(losses(other, steps), found) or "")


def test_a_loss_that_is_not_a_number_or_of_another_shape_is_another_result():
    ones = np.ones(3, np.float32)
    assert "at step 1" in (bench_peers.loss_difference(np.array([1, np.nan, 1]), ones) or "")
    assert bench_peers.loss_difference(ones[:2], ones) == "losses of shape (2,); expected (3,)"


# --- The worker -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step_s", "steps"), [(1e-6, 30_000), (1e-3, 30), (1.0, 4), (1e-12, 2**22)])
def test_a_block_is_as_long_as_it_should_be(step_s, steps, monkeypatch):
    monkeypatch.setattr(worker, "timed", lambda start, steps: (step_s * steps, None))
    assert 0.5 < worker.steps_of_a_block(Arm(lambda: lambda steps: [])) / steps < 2


def test_compilation_is_what_the_first_run_takes_longer(monkeypatch):
    times = iter([3.0, 1.25, 1.0])
    monkeypatch.setattr(worker, "timed", lambda start, steps: (next(times), [0.0] * steps))
    assert worker.first(Arm(lambda: lambda steps: []))[0] == 2.0


def test_a_block_that_ends_in_nan_is_refused():
    with pytest.raises(FloatingPointError, match="after 2 steps the loss is not finite"):
        worker.block(Arm(lambda: lambda steps: [1.0, float("nan")]), 2)


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
    monkeypatch.setitem(bench_peers.PATIENCE_S, "first", 1.0)
    return tmp_path


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


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
def test_the_library_in_c_leaves_subnormal_numbers_to_the_process():
    importlib.import_module("peers.c_by_hand").arms(WORKLOADS["2-2-1"])["C, by hand, one thread"].start()(1)
    smallest = np.float64(5e-324)
    assert smallest * np.float64(1) > 0 and np.float64(sys.float_info.min) / 2 > 0
