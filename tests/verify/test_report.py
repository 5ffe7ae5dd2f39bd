"""What a report says, in print and in JSON."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from kits.reports import check_grad_at

from minijaxnet.verify import GradientMismatch, GradReport, LeafReport, Verdict, check_grad
from minijaxnet.verify.report import GRADIENT_BY_HAND, Subject


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


def leaf(path, hand=2.0, reference=1.0, **more):
    return LeafReport(path, (3,), abs(hand - reference), 1e-13, 1e-12, (0,), hand, reference, **more)


def report_of(*leaves, hints=(), subject=GRADIENT_BY_HAND, **states):
    verdicts = {name: Verdict(state, f"so {name} is") for name, state in states.items()}
    return GradReport(verdicts, {each.path: each for each in leaves}, hints, subject)


def test_where_nothing_was_judged_the_headline_says_unchecked():
    unchecked = report_of(structure="pass", algebra="unchecked")
    assert str(unchecked).splitlines()[0] == "gradient by hand against autodiff: unchecked"
    assert unchecked.to_dict()["headline"] == "unchecked" and not unchecked.ok
    assert report_of(structure="pass", algebra="unchecked", linearity="fail").headline == "NOT RIGHT"


def test_a_hint_that_holds_for_several_leaves_is_told_once():
    leaves = [leaf(name, share_wrong=1.0) for name in "abcde"]
    hints = ("a: twice", "b: twice", "psum: forgotten", "c: thrice", "d: twice", "e: twice")
    found = report_of(*leaves, hints=hints, algebra="fail")
    assert found.hints == ("a, b, d and 1 more: twice", "psum: forgotten", "c: thrice")


def test_the_two_sides_go_by_their_names():
    by_hand = report_of(leaf("w", share_wrong=1.0, precision_ratio=2.0), algebra="fail")
    assert "worst: w[0]: 2 by hand, 1 by autodiff; " in str(by_hand)
    assert "rounding / autodiff's" in str(by_hand)
    differences = report_of(
        leaf("w", share_wrong=1.0), algebra="fail", subject=Subject("autodiff", "finite differences")
    )
    assert "worst: w[0]: 2 by autodiff, 1 by finite differences; " in str(differences)
    assert "rounding / autodiff's" not in str(differences)


@pytest.mark.parametrize(
    ("report", "line"),
    [
        (report_of(leaf("w", 9.0, 27.0, share_wrong=1.0), algebra="fail"), "w[0]: 9 by hand, 27 by autodiff"),
        (
            report_of(
                leaf("far", 9.0, share_wrong=1.0), leaf("near", share_wrong=1.0), hints=("near: twice",), algebra="fail"
            ),
            "near[0]: 2 by hand, 1 by autodiff: twice",
        ),
        (
            report_of(leaf("w"), structure="pass", linearity="fail", hints=("a hint",)),
            "linearity: so linearity is: a hint",
        ),
        (report_of(structure="pass", algebra="unchecked"), "algebra: so algebra is"),
    ],
    ids=["a leaf", "the leaf with a hint", "no leaf", "unchecked"],
)
def test_an_error_says_on_its_first_line_what_is_wrong_and_then_the_whole(report, line):
    assert str(GradientMismatch(report)) == f"{line}\n\n{report}"


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
