"""Frameworks compared: each takes the same steps; those that agree take turns, the others have a reason."""

import functools
import importlib
import shutil

import numpy as np
import peers_compared
import pytest
from kits.marks import slow
from peers import OURS_LOOP, OURS_WHOLE, PEERS, SCAN, WORKLOADS, Arm, Workload, compare
from peers.compare import Comparison, PeerFailed, Row

from minijaxnet.bench.intervals import Interval

STEPS = 5
WORKLOAD = {"2-2-1": WORKLOADS["2-2-1"], "classes": Workload((5, 7, 7, 3), 6, 0.1)}


def arms_of(peer: str, workload: Workload) -> dict[str, Arm]:
    try:
        found = importlib.import_module(PEERS[peer]).arms(workload)
    except ImportError as error:
        pytest.skip(str(error))
    if isinstance(found, str):
        pytest.skip(found)
    return found


@functools.cache
def reference(workload: Workload) -> np.ndarray:
    """Losses of gradient descent in float64, with the gradient by finite differences of a loss written once more."""
    x, y = workload.data()
    leaves = [leaf.astype(np.float64) for layer in workload.weights() for leaf in layer]

    def loss() -> float:
        h = x.astype(np.float64)
        for number in range(0, len(leaves), 2):
            h = (np.maximum(h, 0) if number else h) @ leaves[number] + leaves[number + 1]
        if not workload.classifies:
            return np.mean((h - y) ** 2)
        return np.mean(np.log(np.sum(np.exp(h), axis=-1)) - h[np.arange(len(y)), y])

    def partial(leaf: np.ndarray, index: tuple[int, ...]) -> float:
        values, before = [], leaf[index]
        for shift in (-1e-6, 1e-6):
            leaf[index] = before + shift
            values.append(loss())
        leaf[index] = before
        return (values[1] - values[0]) / 2e-6

    losses = []
    for _ in range(STEPS):
        losses.append(loss())
        gradient = [np.array([partial(leaf, i) for i in np.ndindex(leaf.shape)]).reshape(leaf.shape) for leaf in leaves]
        leaves = [leaf - workload.learning_rate * slope for leaf, slope in zip(leaves, gradient, strict=True)]
    return np.array(losses)


@pytest.mark.filterwarnings("default::DeprecationWarning:torch")
@pytest.mark.parametrize("name", WORKLOAD)
@pytest.mark.parametrize("peer", ["numpy", "c", *slow(*(peer for peer in PEERS if peer not in ("numpy", "c")))])
def test_every_peer_takes_the_same_steps_from_the_same_start(peer, name):
    expected = reference(WORKLOAD[name])
    for label, arm in arms_of(peer, WORKLOAD[name]).items():
        if "compile" in label:
            continue  # takes a minute; the comparison itself checks it
        found = compare.losses_of(arm.start()(STEPS))
        assert found.shape == expected.shape, label
        assert (compare.loss_difference(found, expected) is None) == arm.same_rule, label
        np.testing.assert_array_equal(compare.losses_of(arm.start()(STEPS)), found, err_msg=f"{label}: a second start")


def test_rounding_is_the_same_result_and_a_rate_one_per_cent_off_is_not():
    for workload in WORKLOAD.values():
        found, other = (
            compare.losses_of(arm.start()(compare.CHECKED_STEPS))
            for factor in (1, 1.01)
            for arm in arms_of("numpy", workload._replace(learning_rate=factor * workload.learning_rate)).values()
        )
        assert compare.loss_difference(found * (1 + 1e-6), found) is None
        assert "the loss is" in (compare.loss_difference(other, found) or "")
    ones = np.ones(3, np.float32)
    assert "at step 1" in (compare.loss_difference(np.array([1, np.nan, 1]), ones) or "")
    assert compare.loss_difference(ones[:2], ones) == "losses of shape (2,); expected (3,)"


@pytest.mark.parametrize(("step_s", "steps"), [(1e-6, 30_000), (1e-3, 30), (1.0, 4), (1e-12, 2**22)])
def test_a_block_is_as_long_as_it_should_be(step_s, steps, monkeypatch):
    monkeypatch.setattr(compare, "timed", lambda arm, steps: (step_s * steps, None))
    assert 0.5 < compare.steps_of_a_block(Arm(lambda: lambda steps: [])) / steps < 2


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
def test_the_library_in_c_leaves_subnormal_numbers_to_the_process():
    arms_of("c", WORKLOADS["2-2-1"])["C, by hand, one thread"].start()(1)
    assert np.float64(5e-324) * np.float64(1) > 0


FAKES = {
    "jax": "{SCAN: Arm(lambda: lambda steps: [1.0] * steps, True)}",
    "other": "{'other': Arm(lambda: lambda steps: [1.1] * steps)}",
    "another_rule": "{'another rule': Arm(lambda: lambda steps: [1.1] * steps, same_rule=False)}",
    "raises": "{'raises': Arm(lambda: lambda steps: 1 / 0)}",
    "exits": "{'exits': Arm(lambda: lambda steps: os._exit(3))}",
    "not_offered": "'written for 2-2-1 only'",
}


@pytest.mark.slow
def test_those_that_agree_take_turns_and_the_others_have_a_reason(tmp_path, monkeypatch):
    for name, arms in FAKES.items():
        text = f"import os\nfrom peers import SCAN, Arm\n\ndef arms(workload):\n    return {arms}\n"
        (tmp_path / f"fake_{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    modules = {name: f"fake_{name}" for name in (*FAKES, "absent")}
    found = compare.compare_peers(modules, WORKLOADS["2-2-1"], seconds=0)
    assert {label: row.whole for label, row in found.rows.items()} == {SCAN: True, "another rule": False}
    assert len({len(found.control_s), *(len(row.samples_s) for row in found.rows.values())}) == 1
    assert found.untimed == {
        "other": "another result: at step 0 the loss is 1.1; expected 1",
        "raises": "ZeroDivisionError: division by zero",
        "exits": "died with exit code 3",
        "not_offered": "written for 2-2-1 only",
        "absent": "not installed (No module named 'fake_absent')",
    }
    with pytest.raises(PeerFailed, match=r"raw lax\.scan: ZeroDivisionError"):
        (tmp_path / "fake_jax.py").write_text(
            "from peers import SCAN, Arm\n\ndef arms(workload):\n    return {SCAN: Arm(lambda: lambda steps: 1 / 0)}\n"
        )
        compare.compare_peers({"jax": "fake_jax"}, WORKLOADS["2-2-1"], seconds=0)


def test_a_verdict_needs_an_interval_beyond_one_and_beyond_the_control():
    quiet, noisy = Interval(1.0, 0.99, 1.01), Interval(1.1, 1.05, 1.2)
    assert peers_compared.verdict(Interval(1.5, 1.1, 1.6), quiet) == "faster"
    assert peers_compared.verdict(Interval(1.5, 1.1, 1.6), noisy) == "tie"
    assert peers_compared.verdict(Interval(0.5, 0.4, 0.98), quiet) == "SLOWER"
    assert peers_compared.verdict(Interval(0.5, 0.4, 0.995), quiet) == "tie"


@pytest.mark.parametrize("control", [1.0, 4.5])
def test_a_table_is_sorted_in_its_groups_and_tells_ties_from_losses(control):
    drift = 1 + 0.3 * np.random.default_rng(0).random(30)  # the machine's, the same for all in a round
    steps_s = {SCAN: 1e-6, OURS_WHOLE: 2e-6, "quick": 0.5e-6, "loop": 8e-6, OURS_LOOP: 9e-6, "like ours": 9e-6}
    rows = {label: Row(step_s < 5e-6, 0.5, step_s * drift) for label, step_s in steps_s.items()}
    text = peers_compared.table("title", Comparison(rows, 1e-6 * control * drift, {"torch": "not installed"}))
    lines = text.splitlines()
    order = ["a step called", "loop", OURS_LOOP, "like ours", "the whole loop", "quick", SCAN, OURS_WHOLE, "not timed"]
    assert [name for line, name in zip(lines[3:], order, strict=False) if name in line[:40]] == order
    cells = {line[2:].split("  ")[0]: line for line in lines}
    assert "tie" in cells["like ours"]
    assert "SLOWER" in cells["quick"] and "0.5 to 0.5" in cells["quick"]
    assert ("DIFFERS FROM ITSELF" in text) == (control != 1)
