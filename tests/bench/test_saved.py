"""Saved comparisons: nothing is lost, and what cannot be compared with another is refused with the reason."""

import dataclasses
import json

import numpy as np
import pytest

from minijaxnet import StepComparison
from minijaxnet.bench import ArmTiming
from minijaxnet.bench.saved import read_result

MACHINE = {"processor": "one", "cores": 2, "devices": ["cpu: cpu"], "versions": {"jax": "0.0.2"}}


def comparison(step_s=2e-6, sentinel_s=1e-5, seed=0, names=("a", "b"), **fields):
    """Forty rounds with a per cent of noise; the arm "b" takes 1.5 times as long."""
    draw = np.random.default_rng(seed)

    def samples(value):
        return value * (1 + 0.01 * draw.random(40))

    arms = {name: ArmTiming(0.5, 1e-6, samples(step_s * (1 + 0.5 * i))) for i, name in enumerate(names)}
    return StepComparison(names[0], arms, samples(step_s), samples(sentinel_s), **{"machine": MACHINE} | fields)


def test_all_that_was_saved_is_there(tmp_path):
    found = comparison()
    found.save(tmp_path / "result.json")
    content = read_result(tmp_path / "result.json")
    for name, arm in found.arms.items():
        np.testing.assert_array_equal(content["arms"][name]["samples_s"], arm.samples_s)
    np.testing.assert_array_equal(content["control_s"], found.control_s)
    np.testing.assert_array_equal(content["sentinel_s"], found.sentinel_s)
    assert content["machine"] == MACHINE and content["found"]["verdicts"] == {"b": "slower"}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_comparison_of_too_few_rounds_is_saved_without_its_bounds(tmp_path):
    few = comparison()
    few = dataclasses.replace(
        few,
        arms={name: arm._replace(samples_s=arm.samples_s[:2]) for name, arm in few.arms.items()},
        control_s=few.control_s[:2],
    )
    few.save(tmp_path / "result.json")
    assert read_result(tmp_path / "result.json")["found"]["ratios"]["b"]["low"] is None


@pytest.mark.parametrize(
    ("factor", "machine_factor", "rarely", "verdict"),
    [
        (1.0, 1.0, False, "undecided"),
        (1.2, 1.0, False, "slower"),
        (0.8, 1.0, False, "faster"),
        (1.2, 1.25, False, "undecided"),  # a slower machine is no slower step
        (1.2, 1.25, True, "undecided"),
    ],
)
def test_a_change_since_then_is_found_unless_it_is_the_machines(tmp_path, factor, machine_factor, rarely, verdict):
    then, now = comparison(), comparison(factor * 2e-6, machine_factor * 1e-5, seed=1)
    if rarely:  # too few samples of the fixed workload for an interval
        then, now = (dataclasses.replace(found, sentinel_s=found.sentinel_s[:3]) for found in (then, now))
    then.save(tmp_path / "then.json")
    since = now.against(tmp_path / "then.json")
    assert since.verdicts == {"a": verdict, "b": verdict}
    assert since.ratios["a"].low <= factor <= since.ratios["a"].high
    assert since.sentinel.low <= machine_factor <= since.sentinel.high
    assert "weaker than timing side by side" in str(since)
    assert all(len(line) <= 120 for line in str(since).splitlines())


def test_other_software_is_named(tmp_path):
    comparison(machine=MACHINE | {"versions": {"jax": "0.0.1"}}).save(tmp_path / "then.json")
    since = comparison().against(tmp_path / "then.json")
    assert since.changes == {"jax": ("0.0.1", "0.0.2")} and "jax was 0.0.1, is 0.0.2" in str(since)


@pytest.mark.parametrize(
    ("then", "words"),
    [
        ({"machine": MACHINE | {"processor": "abacus"}}, "got another machine, its processor was 'abacus'"),
        ({"names": ("x", "y")}, "got the arms x, y; expected one of a, b"),
        ({"workload": "batch float32[128]"}, r"got a result for batch float32\[128\]; expected batch float32\[64\]"),
    ],
)
def test_another_machine_other_arms_and_other_arrays_are_refused(tmp_path, then, words):
    comparison(**then).save(tmp_path / "then.json")
    with pytest.raises(ValueError, match=rf"then\.json: {words}"):
        comparison(workload="batch float32[64]").against(tmp_path / "then.json")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: text[: len(text) // 2], "got another file, or a part of one"),
        (lambda text: "[1, 2]", "got another file, or a part of one"),
        (lambda text: text.replace('"version": 1', '"version": 99'), ".*version 99; expected .*version 1"),
        (lambda text: text.replace("comparison of steps", "shopping list"), "got 'shopping list'"),
        (lambda text: json.dumps(json.loads(text) | {"sentinel_s": []}), "got no or a wrong part"),
        (lambda text: json.dumps(json.loads(text) | {"machine": 3}), "got no or a wrong part"),
    ],
    ids=["truncated", "another type", "another version", "another kind", "no samples", "no machine"],
)
def test_a_file_that_is_no_result_is_refused(tmp_path, spoil, words):
    path = tmp_path / "then.json"
    with pytest.raises(FileNotFoundError):
        comparison().against(path)
    comparison().save(path)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(ValueError, match=rf"then\.json: {words}"):
        comparison().against(path)
