"""The script for an accelerator, on a CPU at a small size: each part gives rows, and what fails is printed."""

import subprocess
import sys
from pathlib import Path

import gpu
import pytest
from kits.marks import SLOW


@pytest.mark.parametrize("parts", [SLOW("rates,replicas"), SLOW("steps,bits,tests,compared,checker")])
def test_all_that_is_judged_holds_on_a_cpu(parts):
    command = [sys.executable, Path(gpu.__file__), "--tiny", "--minutes", "6", "--only", parts]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for part in parts.split(","):
        assert f"| {part} | " in done.stdout
    assert "All that is judged holds." in done.stdout


def test_a_part_that_fails_and_what_does_not_hold_are_printed():
    rows = [*gpu.part_in_process("no such part", gpu.Size(True, 9.0))]
    assert rows[-1].holds is False and "no such part" in rows[-1].found
    rows.append(gpu.Row("bits", "a descent", "other bits", "the same bits", False))
    text = gpu.markdown([*rows, gpu.Row("rates", "memory", "1 TB/s")])
    assert "DOES NOT HOLD" in text and "- bits, a descent: other bits; expected the same bits" in text
