"""sweep in several processes: the bits of one process, also after a kill."""

import contextlib

import numpy as np
import pytest
from kits.command import call
from kits.marks import SLOW
from kits.processes import LINE, MINIJAXNET, ended, in_time, output_of, started
from kits.stopped import only

GRID = ("--learning-rate", "0.05,0.1,0.3", "--seeds", "3", "--block", "2", "--steps", "40")


@pytest.fixture
def home(tmp_path):
    (tmp_path / "line.py").write_text(LINE)
    return tmp_path


def sweep(home, *arguments):
    return started([*MINIJAXNET, "sweep", "line.py", *GRID, *arguments], cwd=home)


def same(one, other):
    with np.load(only(one) / "sweep.npz") as a, np.load(only(other) / "sweep.npz") as b:
        assert set(a.files) == set(b.files)
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name], strict=True)
    assert (only(one) / "result.json").read_bytes() == (only(other) / "result.json").read_bytes()


@pytest.mark.parametrize("flags", [(), SLOW(("--batch-size", "16,32"))])
def test_two_processes_find_the_bits_of_one_and_one_of_them_speaks(flags, home):
    with contextlib.chdir(home):
        code, one, err, _ = call("sweep", "line.py", *GRID, *flags, "--runs", "one")
    assert code == 0, err
    two = output_of(sweep(home, *flags, "--runs", "two", "--processes", "2"))
    same(home / "one", home / "two")
    assert two.count("best: ") == 1 and "in 2 processes" in two
    assert one[one.index("best: ") :].splitlines()[:2] == two[two.index("best: ") :].splitlines()[:2]
    assert not (only(home / "two") / "blocks").exists()


@pytest.mark.slow
def test_killed_they_go_on_with_the_blocks_that_any_of_them_has_finished(home):
    with contextlib.chdir(home):
        call("sweep", "line.py", *GRID, "--runs", "one")
    process = sweep(home, "--runs", "two", "--processes", "2", "--learning-rate", "0.05,0.1,0.3", "--steps", "40")
    with in_time():
        while not list((home / "two").glob("*/blocks/*/from-*")):
            if process.poll() is not None:
                break
    process.kill()
    ended([process])
    if not (only(home / "two") / "result.json").exists():
        output_of(started([*MINIJAXNET, "resume", str(only(home / "two"))], cwd=home))
    same(home / "one", home / "two")
