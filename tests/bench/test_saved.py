"""Saved results: nothing is lost on the way, and what cannot be held against another is refused with the reason."""

import dataclasses
import json

import numpy as np
import pytest

from minijaxnet import StepComparison
from minijaxnet.bench import ArmTiming
from minijaxnet.bench.saved import read_result


def comparison(step_s=2e-6, sentinel_s=1e-5, seed=0, machine=None, names=("a", "b")):
    """Forty rounds with a percent of noise; the arm "b" takes 1.5 times as long."""
    draw = np.random.default_rng(seed)

    def samples(value):
        return value * (1 + 0.01 * draw.random(40))

    arms = {name: ArmTiming(0.5, 1e-6, samples(step_s * (1 + 0.5 * i))) for i, name in enumerate(names)}
    given = {} if machine is None else {"machine": machine}
    return StepComparison(names[0], arms, samples(step_s), samples(sentinel_s), **given)


def test_what_was_saved_is_all_there(tmp_path):
    found = comparison()
    found.save(tmp_path / "result.json")
    content = read_result(tmp_path / "result.json")
    for name, arm in found.arms.items():
        np.testing.assert_array_equal(content["arms"][name]["samples_s"], arm.samples_s)
    np.testing.assert_array_equal(content["control_s"], found.control_s)
    np.testing.assert_array_equal(content["sentinel_s"], found.sentinel_s)
    assert content["machine"] == found.machine and content["found"]["verdicts"] == {"b": "slower"}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "undecided"), (1.2, "slower"), (0.8, "faster")])
def test_a_change_since_then_is_found(tmp_path, factor, verdict):
    comparison().save(tmp_path / "then.json")
    since = comparison(factor * 2e-6, seed=1).against(tmp_path / "then.json")
    assert since.verdicts == {"a": verdict, "b": verdict}
    assert since.ratios["a"].low <= factor <= since.ratios["a"].high
    assert "Weaker than arms timed side by side" in str(since)
    assert all(len(line) <= 120 for line in str(since).splitlines())


def test_what_the_machine_itself_changed_is_no_change_of_the_step(tmp_path):
    comparison().save(tmp_path / "then.json")
    since = comparison(1.2 * 2e-6, 1.25 * 1e-5, seed=1).against(tmp_path / "then.json")
    assert since.verdicts == {"a": "undecided", "b": "undecided"}


def test_nor_is_it_where_the_fixed_workload_was_timed_too_rarely_for_an_interval(tmp_path):
    few = comparison()
    dataclasses.replace(few, sentinel_s=few.sentinel_s[:3]).save(tmp_path / "then.json")
    now = comparison(1.2 * 2e-6, 1.25 * 1e-5, seed=1)
    since = dataclasses.replace(now, sentinel_s=now.sentinel_s[:3]).against(tmp_path / "then.json")
    assert since.verdicts == {"a": "undecided", "b": "undecided"}
    assert 1.2 < since.sentinel.low < since.sentinel.median < since.sentinel.high < 1.3


def test_another_machine_is_refused_and_accepted_if_told_so(tmp_path):
    here = comparison()
    comparison(machine=here.machine | {"processor": "abacus"}).save(tmp_path / "then.json")
    with pytest.raises(ValueError, match=r"another machine .processor was 'abacus'.*other_machine=True"):
        here.against(tmp_path / "then.json")
    assert here.against(tmp_path / "then.json", other_machine=True).changes["processor"][0] == "abacus"


def test_other_software_is_told(tmp_path):
    here = comparison()
    comparison(machine=here.machine | {"jax": "0.0.1"}).save(tmp_path / "then.json")
    assert "jax was 0.0.1" in str(here.against(tmp_path / "then.json"))


def test_no_arm_in_common_is_refused(tmp_path):
    comparison(names=("x", "y")).save(tmp_path / "then.json")
    with pytest.raises(ValueError, match="holds x, y; expected one of a, b"):
        comparison().against(tmp_path / "then.json")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: text[: len(text) // 2], "not a whole JSON file"),
        (lambda text: "[1, 2]", "got 'list'"),
        (lambda text: text.replace('"version": 1', '"version": 99'), "got version 99; expected version 1"),
        (lambda text: text.replace("comparison of steps", "shopping list"), "got 'shopping list'"),
        (lambda text: text.replace('"sentinel_s"', '"other"'), "a part is missing"),
        (lambda text: json.dumps(json.loads(text) | {"sentinel_s": []}), "a part is missing"),
    ],
    ids=["truncated", "another thing", "another version", "another kind", "a part less", "no samples"],
)
def test_a_file_that_is_no_result_is_refused(tmp_path, spoil, words):
    path = tmp_path / "then.json"
    comparison().save(path)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(ValueError, match=rf"then\.json: .*{words}"):
        comparison().against(path)


def test_no_file_is_an_error_of_its_own(tmp_path):
    with pytest.raises(FileNotFoundError):
        comparison().against(tmp_path / "none.json")


def test_a_result_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "result.json"
    comparison().save(path)
    before = path.read_text()
    with pytest.raises(ValueError):
        comparison(step_s=np.nan).save(path)
    assert path.read_text() == before and [found.name for found in tmp_path.iterdir()] == ["result.json"]


def test_what_was_measured_on_other_arrays_is_refused(tmp_path):
    one, other = (
        dataclasses.replace(comparison(), workload=f"params float32[3], batch float32[{n}]") for n in (128, 64)
    )
    one.save(tmp_path / "then.json")
    assert one.against(tmp_path / "then.json").verdicts
    with pytest.raises(ValueError, match=r"measured on .*batch float32\[128\]; expected .*float32\[64\]"):
        other.against(tmp_path / "then.json")
    comparison().save(tmp_path / "older.json")
    assert other.against(tmp_path / "older.json").verdicts
