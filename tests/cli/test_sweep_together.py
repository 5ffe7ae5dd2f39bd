"""``sweep`` in several processes: the bits of one process, be it killed on the way."""

import importlib
import socket

import numpy as np
import pytest
from kits.marks import SLOW
from kits.processes import LINE, MINIJAXNET, ended, in_time, started

sweep_module = importlib.import_module("minijaxnet.cli.sweep")
GRID = ("--learning-rate", "0.05,0.1,0.3", "--seeds", "3", "--block", "2", "--steps", "40")


@pytest.fixture
def home(tmp_path):
    (tmp_path / "line.py").write_text(LINE)
    return tmp_path


def sweep(home, *arguments):
    return started([*MINIJAXNET, "sweep", "line.py", *GRID, *arguments], cwd=home)


def done(process):
    [(code, out, err)] = ended([process])
    assert code == 0, out + err
    return out


def only(folder):
    [found] = folder.glob("*")
    return found


def same(one, other):
    with np.load(only(one) / "sweep.npz") as a, np.load(only(other) / "sweep.npz") as b:
        assert set(a.files) == set(b.files)
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name], strict=True)
    assert (only(one) / "result.json").read_bytes() == (only(other) / "result.json").read_bytes()


@pytest.mark.parametrize("devices", [(), SLOW(("--devices", "4")), SLOW(("--batch-size", "16,32"))])
def test_two_processes_find_the_bits_of_one_and_one_of_them_speaks(devices, home):
    own = [word for word in devices if word not in ("--devices", "4")]
    one = done(sweep(home, *own, "--runs", "one"))
    two = done(sweep(home, *devices, "--runs", "two", "--processes", "2"))
    same(home / "one", home / "two")
    assert two.count("best: ") == 1 and "in 2 processes" in two
    assert one[one.index("best: ") :].splitlines()[:2] == two[two.index("best: ") :].splitlines()[:2]
    assert not (only(home / "two") / "blocks").exists()


def test_processes_take_turns_at_blocks_and_have_to_agree_on_their_size(monkeypatch):
    monkeypatch.setattr(sweep_module.jax, "process_count", lambda: 3)
    monkeypatch.setattr(sweep_module, "told", lambda numbers: np.array([numbers] * 3))
    mine = {}
    for rank in range(3):
        monkeypatch.setattr(sweep_module.jax, "process_index", lambda rank=rank: rank)
        mine[rank] = [first for first in range(0, 14, 2) if sweep_module._mine(first, 2)]
    assert mine == {0: [0, 6, 12], 1: [2, 8], 2: [4, 10]}
    monkeypatch.setattr(sweep_module, "told", lambda numbers: np.array([[2], [3], [2]]))
    with pytest.raises(ValueError, match="block: got 2 and 3 in the processes"):
        sweep_module._mine(0, 2)


@pytest.mark.slow
def test_killed_they_go_on_with_the_blocks_that_any_of_them_has_finished(home):
    done(sweep(home, "--runs", "one"))
    process = sweep(home, "--runs", "two", "--processes", "2", "--learning-rate", "0.05,0.1,0.3", "--steps", "40")
    with in_time():
        while not list((home / "two").glob("*/blocks/*/from-*")):
            if process.poll() is not None:
                break
    process.kill()
    ended([process])
    if not (only(home / "two") / "result.json").exists():
        done(started([*MINIJAXNET, "resume", str(only(home / "two"))], cwd=home))
    same(home / "one", home / "two")


@pytest.mark.slow
def test_processes_that_are_started_one_by_one_find_the_same(home):
    done(sweep(home, "--runs", "one"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    place = ["--runs", "two", "--coordinator", address, "--num-processes", "2", "--process-id"]
    processes = [sweep(home, *place, str(rank)) for rank in range(2)]
    for process in processes:
        done(process)
    same(home / "one", home / "two")
