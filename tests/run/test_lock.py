"""The lock of a run folder: one owner that is alive, and none that is dead."""

import json
import os
import platform
import subprocess
import sys
import threading

import pytest

from minijaxnet.run import lock
from minijaxnet.run.lock import RunInUse, hold, owner

HOLDER = """
import sys, time
from minijaxnet.run.lock import hold
with hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_and_told_who_holds_the_run_until_the_first_is_dead(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    with holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            who = rf"process {holder.pid} on .* since 20.*; expected a run that nobody"
            with pytest.raises(RunInUse, match=who), hold(tmp_path):
                pass
            found = owner(tmp_path)
            assert found is not None and found["pid"] == holder.pid and found["started"] == lock.started(holder.pid)
        finally:
            holder.kill()
    assert (tmp_path / "lock").exists() and owner(tmp_path) is None
    with hold(tmp_path) as held:
        assert owner(tmp_path)["pid"] == os.getpid()
        with hold(held) as again:  # by who has it already: nothing is taken, and nothing let go
            assert again is held and held.folder == tmp_path
        assert owner(tmp_path)["pid"] == os.getpid()
    assert owner(tmp_path) is None and not list(tmp_path.iterdir())


def test_this_process_does_not_hold_it_twice_and_lets_go_when_it_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), hold(tmp_path):
        with pytest.raises(RunInUse), hold(tmp_path):
            pass
        1 / 0  # noqa: B018
    with hold(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"pid": "x"}', '{"pid": 1}', '{"pid": 99999999}'])
def test_a_lock_that_names_nobody_alive_is_free(tmp_path, content):
    (tmp_path / "lock").write_text(content)
    with hold(tmp_path):
        pass


def written(tmp_path, **changed):
    me = {"pid": os.getppid(), "started": lock.started(os.getppid()), "host": platform.node()} | changed
    (tmp_path / "lock").write_text(json.dumps(me))


def test_who_lives_holds_it_where_the_kernel_has_no_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_lock", lambda descriptor: None)
    written(tmp_path)
    with pytest.raises(RunInUse), hold(tmp_path):
        pass
    written(tmp_path, started="another process of that pid")
    with hold(tmp_path):
        pass
    written(tmp_path, host="elsewhere")
    with pytest.raises(RunInUse, match="on elsewhere"), hold(tmp_path):
        pass


def test_a_run_that_came_from_another_machine_is_free_if_the_kernel_says_so(tmp_path):
    written(tmp_path, host="elsewhere")
    with hold(tmp_path):
        pass


def test_of_many_at_once_one_holds_it(tmp_path):
    inside, most = [], []

    def enter():
        for _ in range(30):
            try:
                with hold(tmp_path):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except RunInUse:
                pass

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}


def test_a_run_that_is_gone_or_no_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), hold(tmp_path / "none"):
        pass
    assert owner(tmp_path / "none") is None


def test_a_process_that_ended_and_was_not_waited_for_is_dead():
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert lock.started(child.pid) is None
    child.wait()


def test_a_lock_file_that_was_removed_in_between_is_made_anew(tmp_path, monkeypatch):
    look, looks = lock._living_owner, []

    def removed_at_first(descriptor):
        looks.append(look(descriptor))
        if len(looks) == 1:
            (tmp_path / "lock").unlink()  # as its last owner does
        return looks[-1]

    monkeypatch.setattr(lock, "_living_owner", removed_at_first)
    with hold(tmp_path):
        assert len(looks) == 2
        monkeypatch.undo()
        assert owner(tmp_path)["pid"] == os.getpid()


def test_somebody_who_only_looks_is_waited_for(tmp_path, monkeypatch):
    look, looks = lock._living_owner, []

    def busy_at_first(descriptor):
        looks.append(descriptor)
        return {"pid": 1} if len(looks) < 3 else look(descriptor)

    monkeypatch.setattr(lock, "_living_owner", busy_at_first)
    with hold(tmp_path):
        assert len(looks) == 3
