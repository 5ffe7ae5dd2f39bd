"""The lock of a run folder: held by one live process."""

import errno
import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import filelock
import pytest

from minijaxnet.run import lock
from minijaxnet.run.folder import run_state
from minijaxnet.run.lock import RunInUse, hold, owner

HOLDER = """
import multiprocessing, os, subprocess, sys, time
from minijaxnet.run.lock import hold

def wait():
    time.sleep(600)

with hold(sys.argv[1]):
    begun, begins = os.pipe()
    def wait_as_helper():
        os.write(begins, b"x")  # from here on it has let go of what it was forked with
        wait()
    if sys.argv[2] == "os.fork" and os.fork() == 0:
        wait_as_helper()
    if sys.argv[2] == "multiprocessing":
        multiprocessing.get_context("fork").Process(target=wait_as_helper).start()
    if sys.argv[2] in ("os.fork", "multiprocessing"):
        os.read(begun, 1)
    if sys.argv[2] == "subprocess":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    if sys.argv[2] == "a helper that ends":
        if (child := os.fork()) == 0:
            sys.exit()  # through the end of the with
        os.waitpid(child, 0)
    print("held", flush=True)
    wait()
"""


@contextmanager
def holder(folder, helper="none"):
    """A process that holds a folder, with a helper of some kind; what is left of both is killed at the end."""
    command = [sys.executable, "-c", HOLDER, folder, helper]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_second_process_is_refused_and_told_who_holds_the_run_until_the_first_is_dead(tmp_path):
    with holder(tmp_path) as process:
        who = rf"process {process.pid} on .* since 20.*; expected a run that is not running"
        with pytest.raises(RunInUse, match=who), hold(tmp_path):
            pass
        found = owner(tmp_path)
        assert found is not None and found["pid"] == process.pid and found["host"] == platform.node()
    assert (tmp_path / "lock").exists() and owner(tmp_path) is None
    with hold(tmp_path) as held:
        assert owner(tmp_path)["pid"] == os.getpid()
        with hold(held) as again:  # by who has it already: nothing is taken, and nothing let go
            assert again is held and held.folder == tmp_path
        assert owner(tmp_path)["pid"] == os.getpid()
    assert owner(tmp_path) is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize("helper", ["os.fork", "multiprocessing", "subprocess"])
def test_helpers_of_a_process_that_was_killed_do_not_keep_it(helper, tmp_path):
    with holder(tmp_path, helper) as process:
        assert owner(tmp_path)["pid"] == process.pid
        process.kill()  # the helper alone is left
        process.wait()
        assert owner(tmp_path) is None
        with hold(tmp_path):
            assert owner(tmp_path)["pid"] == os.getpid()


def test_a_helper_that_ends_does_not_let_it_go(tmp_path):
    with holder(tmp_path, "a helper that ends") as process:
        assert owner(tmp_path)["pid"] == process.pid
        with pytest.raises(RunInUse, match=f"process {process.pid} on"), hold(tmp_path):
            pass


def test_this_process_does_not_hold_it_twice_and_lets_go_when_it_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), hold(tmp_path):
        with pytest.raises(RunInUse), hold(tmp_path):
            pass
        1 / 0  # noqa: B018
    with hold(tmp_path):
        pass


@pytest.mark.parametrize("name", ["lock", "lock.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1, "host": "elsewhere"}', 200_000 * "["])
def test_a_lock_that_names_nobody_alive_is_free(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert owner(tmp_path) is None
    with hold(tmp_path):
        assert owner(tmp_path)["pid"] == os.getpid()


# --- Those who look ---------------------------------------------------------------------------------------------------


@pytest.fixture
def looked_at(tmp_path):
    """A run that was killed, and somebody who just looks at it."""
    (tmp_path / "lock").touch()
    with open(tmp_path / "lock") as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield tmp_path, file


def test_two_that_look_at_once_do_not_see_each_other(looked_at):
    folder, _ = looked_at
    assert owner(folder) is None and run_state(folder) == "interrupted"


def test_somebody_who_only_looks_is_waited_for(looked_at, monkeypatch):
    folder, file = looked_at
    monkeypatch.setattr(lock, "_WAIT_S", 60)
    done = threading.Timer(0.1, file.close)
    done.start()
    with hold(folder):
        assert file.closed and owner(folder)["pid"] == os.getpid()


# --- Without the kernel's locks ---------------------------------------------------------------------------------------


def test_where_the_file_system_has_no_locks_that_is_said_and_who_lives_holds_it(tmp_path, monkeypatch):
    def has_none(*arguments):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", has_none)
    monkeypatch.setattr(filelock._native._unix.fcntl, "flock", has_none)
    with pytest.warns(UserWarning, match="flock not supported"):
        with hold(tmp_path):
            assert owner(tmp_path)["pid"] == os.getpid()
            with pytest.raises(RunInUse, match=f"process {os.getpid()} on"), hold(tmp_path):
                pass
            marker = (tmp_path / "lock").read_text()
        assert owner(tmp_path) is None
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        (tmp_path / "lock").write_text(marker.replace(str(os.getpid()), str(dead.pid), 1))
        assert owner(tmp_path) is None
        with hold(tmp_path):
            pass
        (tmp_path / "lock").write_text(marker.replace(platform.node(), "elsewhere", 1))
        (tmp_path / "lock.json").write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
        with pytest.raises(RunInUse, match="process 7 on elsewhere"), hold(tmp_path):  # nobody here can tell
            pass
