"""What a report says, in print and in JSON."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from minijaxnet.verify import GradReport, LeafReport, Verdict, check_grad, check_grad_at


def bowls(w, factor):
    return jnp.sum(w["a"] ** 2) + jnp.sum(w["b"] ** 2)


def gradient(w, factor):
    return {"a": 2 * factor * w["a"], "b": 2 * w["b"]}


@functools.cache
def report(kind):
    w = {"a": np.float32([1, 2]), "b": np.float32([[0.1, -2, 3]])}
    factors = {"right": np.ones(2), "wrong": np.array([1, 1.5]), "infinite": np.array([1, np.inf])}
    points = {name: (w, np.float32(factor)) for name, factor in factors.items()}
    return check_grad_at(bowls, gradient, points)[kind]


def test_a_report_is_neither_true_nor_false():
    with pytest.raises(TypeError, match=r"neither true nor false: use its \.ok"):
        bool(report("right"))
    with pytest.raises(TypeError):
        assert report("right")


def test_ok_is_false_for_any_failure_and_where_the_algebra_is_unchecked():
    def ok(**states):
        return GradReport({name: Verdict(state, "") for name, state in states.items()}, {}).ok

    assert ok(structure="pass", algebra="pass", precision="pass")
    assert ok(structure="pass", algebra="pass", precision="unchecked")
    assert not ok(structure="pass", algebra="unchecked", precision="unchecked")
    assert not ok(structure="pass", algebra="pass", precision="fail")
    assert not ok(structure="pass", primal="fail", algebra="pass")
    assert not ok(structure="pass", algebra="fail")
    assert not ok(structure="pass")


def lines_too_long(report):
    return [line for line in str(report).splitlines() if len(line) > 100]


def test_a_printed_report_says_the_verdict_first_and_keeps_to_100_columns():
    assert str(report("right")).splitlines()[0].endswith(": right")
    assert str(report("wrong")).splitlines()[0].endswith(": NOT RIGHT")
    for found in (report("right"), report("wrong")):
        assert lines_too_long(found) == []
        assert all(path in str(found) for path in found.leaves)


def test_long_paths_keep_to_100_columns():
    path = "['params']['encoder_block_0']['multi_head_attention']['query_projection']['kernel']"
    note = "a remark as long as it takes to say something of weight about a comparison at a kink, and a little more"
    leaf = LeafReport(path, (3, 3), 1.0, 1e-13, 1e-12, (0, 2), 2.0, 1.0, 0.999, 8388608.0, 1 / 9, None, note)
    verdicts = {"structure": Verdict("pass", ""), "algebra": Verdict("fail", f"wrong beyond rounding in {path}")}
    hint = f"{path}: " + "a sentence that goes on for quite some time " * 4
    assert lines_too_long(GradReport(verdicts, {path: leaf}, (hint,))) == []
    args = ({"encoder": {"weights": jnp.ones(2), "bias": jnp.ones(2)}},)
    other_tree = check_grad(lambda w: jnp.sum(w["encoder"]["bias"]), lambda w: w["encoder"], args)
    assert lines_too_long(other_tree) == []


def test_a_report_as_a_dict_survives_json():
    found = json.loads(json.dumps(report("wrong").to_dict(), allow_nan=False))
    assert found["ok"] is False
    assert found["verdicts"]["algebra"]["state"] == "fail"
    assert set(found["leaves"]) == {"['a']", "['b']"}
    leaf = found["leaves"]["['a']"]
    assert (leaf["index"], leaf["shape"]) == ([1], [2])
    assert leaf["blind"] >= leaf["tolerance"] > 0
    assert leaf["error"] > leaf["tolerance"]
    assert found["hints"] == list(report("wrong").hints) and report("wrong").hints


def test_a_report_with_infinite_errors_as_a_dict_survives_json():
    found = json.loads(json.dumps(report("infinite").to_dict(), allow_nan=False))
    assert found["leaves"]["['a']"]["error"] is None
    assert found["ok"] is False
