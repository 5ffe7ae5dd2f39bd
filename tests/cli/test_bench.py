"""minijaxnet bench: what is printed of an experiment's step, and what stops it. No measured time is judged."""

import dataclasses
import json
import os
import textwrap

import pytest
from kits.lines import RIGHT, line
from kits.timings import comparison

import minijaxnet as mjn
from minijaxnet._machine import description
from minijaxnet.bench import Interval, roofline
from minijaxnet.cli import main
from minijaxnet.verify import GradReport, Verdict

ARMS = ["gradient descent, gradient by hand", "gradient descent, autodiff", "optax.sgd, autodiff"]


@pytest.fixture
def bench(tmp_path, monkeypatch, capsys):
    """Write a file and time it as briefly as can be: the exit code and what was printed."""

    def timed(*arguments, **options):
        # A slope of two blocks of a machine that is busy for a moment may be no time at all.
        return dataclasses.replace(mjn.time_step(*arguments, **options), fused_s=Interval(1e-6, 1e-6, 1e-6))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minijaxnet.cli.bench.time_step", timed)
    for name, few in (("_SIDES", (4,)), ("_ARRAYS", (2**10,)), ("_BLOCK_S", 0.001)):
        monkeypatch.setattr(roofline, name, few)

    def run(text, *flags):
        (tmp_path / "it.py").write_text(textwrap.dedent(text))
        code = main(["bench", "it.py", "--seconds", "0.001", *flags])
        return code, *capsys.readouterr()

    return run


def test_a_right_gradient_is_compared_with_autodiff_and_with_a_saved_result(bench, tmp_path, monkeypatch):
    comparison(dict.fromkeys(ARMS, 1), machine=description()).save(tmp_path / "then.json")
    calls = []
    monkeypatch.setattr(
        "minijaxnet.cli.bench.checked_devices", lambda text, batch: [1, int(text)] if text > "1" else []
    )
    monkeypatch.setattr(
        "minijaxnet.cli.bench.compare_devices",
        lambda descent, numbers, *rest, **options: calls.append((numbers, options)) or "a table of devices",
    )
    flags = ["--save", "now.json", "--since", "then.json", "--devices", "2"]
    code, out, _ = bench(line(RIGHT), "--batch-size", "3", "--start", "0.25", *flags)
    assert code == 0
    assert "line: a step of gradient descent on 3 points" in out
    for words in ("trace", "compile", "(latency)", "(fused)", *ARMS):
        assert words in out
    answer = out.splitlines()[2]
    assert answer.startswith("By hand: ") and "autodiff" in answer and answer.endswith("."), "the answer comes first"
    assert ", right, as precise, " in answer and answer.endswith(" memory.")
    for words in ("one native function", "other FLOPs, float32", "nearest limit:"):
        assert words in out
    assert "measured peak" not in out, "there is no matrix product"
    assert [row for row in out.splitlines() if len(row) > 110] == []
    saved = json.loads((tmp_path / "now.json").read_text())
    assert list(saved["arms"]) == ARMS and saved["baseline"] == ARMS[1] and saved["machine"]["versions"]["jax"]
    assert "now over then" in out and "(a fixed workload)" in out and "written to now.json" in out
    assert "\na table of devices\n" in out and calls == [([1, 2], {"seconds": 0.001, "same_result": True})]


def test_a_wrong_gradient_is_not_timed(bench, monkeypatch):
    wrong = GradReport({"algebra": Verdict("fail", "it is")}, {}, ("the sign is wrong",))
    monkeypatch.setattr("minijaxnet.cli.bench.check_grad", lambda *arguments, **options: wrong)
    code, out, _ = bench(line(f"-({RIGHT})"), "--batch-size", "3")
    assert code == 1
    assert "NOT RIGHT" in out and "the sign is wrong" in out and "(fused)" not in out


def test_without_a_gradient_by_hand_optax_is_the_rival(bench):
    code, out, _ = bench(line(RIGHT, by_hand=""), "--batch-size", "3")
    assert code == 0
    assert out.splitlines()[2].startswith("optax.sgd, autodiff: ") and "gradient descent" in out.splitlines()[2]
    assert "by hand" not in out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--since", "none.json"], "none.json"),
        (["--save", "none/here.json"], "none/here.json"),
        (["--devices", "1,0"], "devices: got '1,0'; expected whole numbers from 1 on"),
        (["--devices", "two"], "devices: got 'two'"),
    ],
)
def test_what_cannot_be_done_is_an_error_before_anything_is_timed(bench, flags, words):
    code, out, err = bench(line(RIGHT), *flags)
    assert code == 2 and words in err and "latency" not in out


def test_deterministic_kernels_are_chosen_before_jax_is_asked_for_anything(bench, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    assert bench(line(RIGHT), "--since", "none.json", "--deterministic")[0] == 2
    assert os.environ["XLA_FLAGS"] == "--xla_gpu_deterministic_ops=true"
