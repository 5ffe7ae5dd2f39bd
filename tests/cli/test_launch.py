"""--processes N: N processes are started and stopped together, and the first failure is reported."""

import os
import signal
import stat
import sys
import threading
import time
from pathlib import Path

import pytest
from kits.command import call
from kits.processes import in_time

from minijaxnet.cli import launcher

SLEEPS = "pathlib.Path('asleep').write_text(str(os.getpid())); time.sleep(600)"
SAYS = "sys.stderr.write('minijaxnet: error: no data\\n'); sys.exit(2)"
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
ABORTS = "os.kill(os.getpid(), signal.SIGABRT)"
LOST = "pathlib.Path('lost').touch(); sys.exit(3)"
LATER = "time.sleep(0.3); "  # than what it waits for


@pytest.fixture
def launched(tmp_path, monkeypatch, capfd):
    """Launch small programs in the place of minijaxnet's: the exit code, and what is said."""
    monkeypatch.chdir(tmp_path)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >>arguments\nfor last; do :; done\nexec {sys.executable} -S $last.py\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(python))
    start, found = launcher._start, []
    monkeypatch.setattr(
        launcher, "_start", lambda *words, **options: found.append(start(*words, **options)) or found[-1]
    )

    def started(*programs, grace_s=120.0):
        monkeypatch.setattr(launcher, "_GRACE_S", grace_s)
        for rank, program in enumerate(programs):
            Path(f"{rank}.py").write_text(f"import os, pathlib, signal, sys, time\n{program}\n")
        before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
        with in_time():
            code = launcher.launch(["run", "line.py"], len(programs))
        assert before == {each: signal.getsignal(each) for each in before}
        return code, capfd.readouterr().err

    yield started
    for each in found:
        if each.errors is not None:
            each.errors.close()


def test_each_process_has_its_number_and_only_the_first_prints(launched, capfd):
    assert launched("sys.stderr.write('I am the first')", "print('I too'); sys.stderr.write('and I')") == (
        0,
        "I am the first",
    )
    arguments = sorted(Path("arguments").read_text().splitlines())
    [address] = {line.split()[6] for line in arguments}
    assert address.startswith("127.0.0.1:")
    assert arguments == [
        f"-P -m minijaxnet run line.py --coordinator {address} --num-processes 2 --process-id {rank}" for rank in (0, 1)
    ]


@pytest.mark.parametrize(
    ("programs", "expected", "words"),
    [
        (("sys.exit(0)", "sys.exit(1)"), 1, ""),
        (("sys.exit(143)", "sys.exit(143)"), 143, ""),
        ((SLEEPS, SAYS), 2, "minijaxnet: process 1 failed with exit code 2; its errors:\nminijaxnet: error: no data\n"),
        ((SLEEPS, KILLED), 3, "minijaxnet: process 1 was ended by SIGKILL\n"),
        # What others make of it is not why: they lost a process, or JAX aborted them.
        ((LOST, LATER + KILLED), 3, "minijaxnet: process 1 was ended by SIGKILL\n"),
        ((ABORTS, LOST, LATER + SAYS), 2, "minijaxnet: process 2 failed with exit code 2; its errors:\n"),
        ((LOST, LATER + "sys.exit(3)"), 3, "minijaxnet: process 0 failed with exit code 3\n"),
    ],
)
def test_the_exit_code_is_that_of_the_first_that_failed_which_is_named(launched, programs, expected, words):
    for name, program in (("asleep", SLEEPS), ("lost", LOST)):
        if program in programs:
            wait = f"while not pathlib.Path('{name}').exists(): time.sleep(0.01)\n"
            programs = [each if each == program else wait + each for each in programs]
    code, err = launched(*programs, grace_s=0.5 if SLEEPS in programs else 120.0)
    assert code == expected and err.startswith(words) and bool(err) == bool(words)
    if SLEEPS in programs:
        assert not Path(f"/proc/{Path('asleep').read_text()}").exists()


HEEDS = """
def leave(signum, frame):
    sys.exit(128 + signum)
for each in (signal.SIGINT, signal.SIGTERM):
    signal.signal(each, leave)
pathlib.Path(f"ready-{os.getpid()}").touch()
time.sleep(600)
"""
FAILS = HEEDS.replace("128 + signum", "2")
DEAF = HEEDS.replace("sys.exit(128 + signum)", "pass")


@pytest.mark.parametrize(
    ("signum", "programs", "grace_s"),
    [(signal.SIGINT, (HEEDS, HEEDS), 120), (signal.SIGINT, (HEEDS, FAILS), 120), (signal.SIGTERM, (HEEDS, DEAF), 0.5)],
    ids=["SIGINT", "one fails then", "SIGTERM, which one does not hear"],
)
def test_signals_are_passed_on_and_no_process_is_left(launched, signum, programs, grace_s):
    def ask():
        while len(ready := [*Path().glob("ready-*")]) < 2:
            time.sleep(0.01)
        pids.extend(int(path.name.removeprefix("ready-")) for path in ready)
        os.kill(os.getpid(), signum)

    pids = []
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    assert launched(*programs, grace_s=grace_s) == (128 + signum, "")
    asking.join(120)
    assert len(pids) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_wrong_numbers_of_processes_are_refused(tmp_path):
    for arguments, words in {
        ("--processes", "0"): "processes: got 0; expected at least 1",
        ("--processes", "2", "--coordinator", "h:1"): "processes: got 2, and a coordinator; expected one of the two",
        ("--heartbeat-seconds", "0"): "heartbeat_seconds: got 0; expected at least 1",
        ("--coordinator", "h:1", "--num-processes", 2, "--process-id", 0, "--devices", 3): "expected a multiple of 2",
    }.items():
        called = call("run", tmp_path / "line.py", *arguments)
        assert called.code == 2 and words in called.err
