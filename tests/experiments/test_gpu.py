"""The script for an accelerator, on a CPU at a small size: each part says something, and what fails is told."""

import json
import subprocess
import sys
from pathlib import Path

import gpu
import pytest
from kits.marks import SLOW

SCRIPT = Path(gpu.__file__)


@pytest.mark.parametrize("parts", ["rates,replicas", SLOW("steps,buffers,bits,tests,compared,checker")])
def test_all_that_is_judged_holds_on_a_cpu(parts):
    command = [sys.executable, SCRIPT, "--tiny", "--minutes", "6", "--only", parts]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for part in parts.split(","):
        assert f"| {part} | " in done.stdout
    assert "All that is judged holds." in done.stdout


def test_a_part_that_fails_and_what_does_not_hold_are_told():
    rows = [*gpu.part_in_process("no such part", gpu.Size(True, 9.0))]
    assert rows[-1].holds is False and "no such part" in rows[-1].found
    rows.append(gpu.Row("bits", "a descent", "other bits", "the same bits", False))
    told = gpu.markdown([*rows, gpu.Row("rates", "memory", "1 TB/s")])
    assert "DOES NOT HOLD" in told and "- bits, a descent: other bits; expected the same bits" in told
    assert json.loads(json.dumps(rows[-1])) == [*rows[-1]]


def test_what_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "NEEDS", ("jax", "no_such_package"))
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 2
    assert "missing here: no_such_package" in capsys.readouterr().err
