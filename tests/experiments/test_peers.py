"""The peers that are compared: every one takes the same steps, and a process that holds one does as it is told."""

import functools
import importlib
import itertools
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from kits.marks import slow
from peers import LOOP, OURS_LOOP, OURS_WHOLE, PEERS, SCAN, WORKLOADS, Arm, Workload
from peers import arms as worker
from peers import compare as bench_peers
from peers.worker import open_peer

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
QUICK = {*itertools.product(["numpy"], EXPECTED), ("minijaxnet", "2-2-1"), ("c", "2-2-1")}
OTHERS = {*itertools.product(PEERS, EXPECTED)} - QUICK


# --- The peers ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("default::DeprecationWarning:torch")
@pytest.mark.parametrize(("peer", "name"), [*sorted(QUICK), *slow(*sorted(OTHERS))])
def test_every_peer_takes_the_same_steps_from_the_same_start(peer, name):
    workload = EXPECTED[name]
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


@pytest.mark.parametrize(("name", "steps"), [("2-2-1", 500), ("1000x2-2-1", 100), *slow(("64-128-10", 25))])
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


def counting_down(steps):
    return [1 / (1 + k) for k in range(steps)]


def raising(steps):
    raise RuntimeError("not today\nnor tomorrow")


def test_a_worker_answers_until_its_pipe_is_closed_and_says_what_goes_wrong(monkeypatch):
    monkeypatch.setattr(worker, "timed", lambda start, steps: (1e-4 * steps, start()(steps)))
    arms = {"a": Arm(lambda: counting_down, note=lambda: "so it is"), "b": Arm(lambda: raising, True, False)}
    told, said = iter([("first", "a"), ("size", "a"), ("block", "a"), ("first", "b")]), []
    with pytest.raises(StopIteration):  # as a pipe that is closed raises EOFError
        worker.serve(SimpleNamespace(recv=told.__next__, send=said.append), arms)
    opened, (done, (compile_s, losses, note)), size, (_, step_s), wrong = said
    assert opened == (True, {"a": (False, True), "b": (True, False)})
    assert done and (compile_s, note) == (0, "so it is") and losses.tolist() == counting_down(20)
    assert size == (True, 300) and step_s == pytest.approx(1e-4)
    assert wrong == (False, "RuntimeError: not today")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
def test_the_library_in_c_leaves_subnormal_numbers_to_the_process():
    importlib.import_module("peers.c_by_hand").arms(WORKLOADS["2-2-1"])["C, by hand, one thread"].start()(1)
    smallest = np.float64(5e-324)
    assert smallest * np.float64(1) > 0 and np.float64(sys.float_info.min) / 2 > 0
