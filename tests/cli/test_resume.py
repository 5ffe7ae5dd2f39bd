"""``resume`` and ``run --resume-latest``: a stopped run goes on to the same files, and to no others."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from kits.command import call
from kits.processes import ended, python
from kits.stopped import RUN, TEXT, at, forget, here, made, mark_again, only, results, stopping

__all__ = ["here", "made"]  # fixtures

from minijaxnet._files import Lines, replace_file
from minijaxnet.run.lock import hold, owner


def state(runs="runs"):
    return call("runs", runs).out.splitlines()[-1].split()[1]


# --- resume -----------------------------------------------------------------------------------------------------------


def test_a_stopped_run_is_resumed_to_the_same_files_though_it_was_moved_and_one_is_elsewhere(here):
    assert state() == "interrupted"
    moved = shutil.move(only("runs"), here / "another name")
    (moved / "environment.json").write_text("{}")
    mark_again(moved)
    (here / "elsewhere").mkdir()
    with contextlib.chdir("elsewhere"):
        called = call("resume", f"{moved}/")
    assert called.code == 0 and "went on from step 21" in called.out and called.err == ""
    assert results(moved) == results(only("whole"))


def test_minibatches_go_on_to_the_same_files(here):
    flags = ("--optimizer", "adam", "--batch-size", 3)
    assert call(*RUN, *flags, "--runs", "unstopped").code == 0
    with stopping(17, signal.SIGTERM):
        called = call(*RUN, *flags, "--runs", "stopped")
    assert called.code == 143 and "stopped by SIGTERM after 17 steps" in called.out
    folder = only("stopped")
    with hold(folder):  # by another process
        assert state("stopped") == "running"
        for arguments in (("resume", folder, "--force"), (*RUN, *flags, "--runs", "stopped", "--resume-latest")):
            called = call(*arguments)
            assert called.code == 2 and f"process {os.getpid()}" in called.err
    called = call("resume", folder)
    assert called.code == 0 and "went on from step 17" in called.out
    assert results(folder) == results(only("unstopped"))


def test_a_run_that_is_done_is_not_resumed_unless_forced_and_stays_as_it_is(here):
    before = results(only("whole"))
    called = call("resume", only("whole"))
    assert called.code == 2 and "this run is done" in called.err
    assert call("resume", only("whole"), "--force").code == 0
    assert before == results(only("whole"))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("line.py", "0.1 + noise", "0.2 + noise"),
        ("beside.py", "1 / 3", "1 / 4"),
        ("config.json", '"steps": 30', '"steps": 40'),
    ],
)
def test_other_code_or_another_config_is_refused_with_a_diff(file, old, new, here):
    path = here / file if file != "config.json" else only("runs") / file
    path.write_text(path.read_text().replace(old, new), encoding="utf-8")
    ways = [("resume", only("runs"))]
    if file != "config.json":  # which would be another run
        ways += [(*RUN, "--resume-latest")]
    for arguments in ways:
        forget()
        called = call(*arguments)
        assert called.code == 2
        assert "got changed code or a changed config" in called.err
        assert any(line.startswith("-") and old in line for line in called.err.splitlines())
        assert any(line.startswith("+") and new in line for line in called.err.splitlines())
    assert call("resume", only("runs"), "--force").code == 0
    only("runs")  # and no other was begun


def test_other_data_is_refused_unless_forced(here):
    (here / "y.txt").write_text("3")
    text = TEXT.replace("y = THIRD", "y = float(__import__('pathlib').Path('y.txt').read_text()) * THIRD")
    (here / "line.py").write_text(text)
    with stopping(11):
        call(*RUN, "--runs", "stopped")
    (here / "y.txt").write_text("4")
    called = call("resume", only("stopped"))
    assert called.code == 2 and "got other data than it was started with" in called.err
    assert call("resume", only("stopped"), "--force").code == 0


def test_other_versions_are_a_warning_and_settings_that_change_numbers_are_refused_unless_forced(here):
    path = only("runs") / "environment.json"
    found = json.loads(path.read_text())
    found["versions"]["jax"], found["xla_flags"], found["processor"] = "0.1", "--xla_odd", "Another"
    found["settings"]["jax_default_matmul_precision"] = "another"
    path.write_text(json.dumps(found))
    called = call("resume", only("runs"))
    assert called.code == 2 and re.search("jax_default_matmul_precision: got .*; expected 'another'", called.err)
    called = call("resume", only("runs"), "--force")
    assert called.code == 0
    for words in ("jax was 0.1, now it is", "xla_flags was --xla_odd, now it is : bits", "processor was Another"):
        assert f"warning: {words}" in called.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere: there is no config.json; expected the folder of a run"),
        (["broken"], "broken/config.json: got other content; expected the settings of a run"),
        (["lost"], "lost: its experiment gone.py is not there"),
    ],
)
def test_what_is_no_run_is_not_resumed(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "broken": "{",
        "lost": '{"verb": "run", "file": "gone.py", "flags": {}, "init": {}, "data": {}}',
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    called = call("resume", *arguments)
    assert called.code == 2 and re.search(words, called.err), called.err


def test_a_run_that_fails_midway_says_so_and_is_resumed(here):
    def fail():
        raise RuntimeError("no more")

    with at(20, fail):
        called = call(*RUN, "--runs", "failed")
    assert called.code == 2
    failed = {"status": "FAILED", "error": "RuntimeError: no more"}
    assert json.loads((only("failed") / "result.json").read_text()) == failed
    assert state("failed") == "failed" and "no more" in call("runs", "failed").out
    assert "RuntimeError: no more" in call("show", only("failed")).out
    assert call(*RUN, "--runs", "failed", "--resume-latest").code == 0
    assert results(only("failed")) == results(only("whole"))


def test_the_run_is_locked_until_all_of_it_is_written(here, monkeypatch):
    owners = {}

    def spied(path, content):
        owners[path.name] = owner(path.parent)
        replace_file(path, content)

    monkeypatch.setattr("minijaxnet.run.folder.replace_file", spied)
    assert call(*RUN, "--runs", "held").code == 0
    assert owners["result.json"]["pid"] == owners["timing.json"]["pid"] == os.getpid()
    assert owner(only("held")) is None


@pytest.mark.parametrize(("name", "line"), [("metrics.jsonl", 0), ("timing.jsonl", 2), ("log.txt", 2)])
def test_a_full_disk_is_named_with_the_first_file_that_it_cost(name, line, here, monkeypatch):
    write, written = Lines.write, []

    def full(file, content):
        if Path(file.name).name == name or len(written) > line:
            written.append(content)
        if len(written) > line:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, content)

    def nothing_more(path, content):
        if len(written) > line:
            raise OSError(errno.ENOSPC, f"file not written: {os.strerror(errno.ENOSPC)}", str(path))
        replace_file(path, content)

    monkeypatch.setattr(Lines, "write", full)
    monkeypatch.setattr("minijaxnet.run.folder.replace_file", nothing_more)
    called = call(*RUN, "--runs", "full")
    assert called.code == 2 and f"line not written: No space left on device: '{Path('full')}/line-" in called.err
    assert f"{name}'" in called.err and "result.json" not in called.err
    assert not called.err.count("Traceback")


# --- run --resume-latest ----------------------------------------------------------------------------------------------


def test_it_starts_where_there_is_no_run_goes_on_where_one_was_stopped_and_leaves_alone_what_is_done(here):
    with stopping(11):
        first = call(*RUN, "--runs", "latest", "--resume-latest")
    assert first.code == 130 and "went on" not in first.out
    folder = only("latest")
    with stopping(25):
        assert call(*RUN, "--runs", "latest", "--resume-latest").code == 130
    last = call(*RUN, "--runs", "latest", "--resume-latest")
    assert last.code == 0 and "went on from step 25" in last.out
    assert results(folder) == results(only("whole"))
    again = call(*RUN, "--runs", "latest", "--resume-latest")
    assert again.code == 0 and again.out.startswith(f"{folder}: this run is done already; without --resume-latest")
    assert only("latest") == folder and results(folder) == results(only("whole"))


def test_other_settings_are_another_run(here):
    others = ("--seed", 1), ("--data-noise", 0.5), ("--scale", 2)
    for number, flags in enumerate(others, start=2):
        called = call(*RUN, *flags, "--resume-latest")
        assert called.code == 0 and "went on" not in called.out
        assert len([*Path("runs").iterdir()]) == number
    # Where it is carried out anew at each start is none of them.
    called = call(*RUN, "--resume-latest", "--heartbeat-seconds", 9)
    assert called.code == 0 and "went on from step 21" in called.out


def test_of_several_of_the_same_settings_the_latest_goes_on_and_a_broken_one_is_passed_over(here):
    older = only("runs")
    with stopping(5):
        assert call(*RUN).code == 130
    [newer] = {*Path("runs").iterdir()} - {older}
    os.utime(older / "config.json", (1e9, 1e9))
    Path("runs/line-broken").mkdir()
    Path("runs/line-broken/config.json").write_text("{")
    called = call(*RUN, "--resume-latest")
    assert called.code == 0 and "went on from step 5" in called.out
    assert results(newer) == results(only("whole")) != results(older)


KILLED = """
import os, signal, sys
from minijaxnet.cli import main
from minijaxnet.run.keeper import Keeper

keep = Keeper.keep

def killed(self, step, state, *rest):
    if step == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    keep(self, step, state, *rest)

Keeper.keep = killed
main(sys.argv[1:])
"""


def test_a_process_that_was_killed_is_started_again_by_the_same_command_to_the_same_bits(here):
    arguments = (*RUN, "--runs", "killed", "--checkpoint-every", 5, "--resume-latest")
    [(code, _, err)] = ended([python(KILLED, *arguments)])
    assert code == -signal.SIGKILL and err == ""
    folder = only("killed")
    assert state("killed") == "interrupted" and not (folder / "result.json").exists()
    early = shutil.copytree(folder, here / "early" / folder.name)
    damaged = [*(early / "checkpoints").iterdir()]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:100])
    called = call("resume", early)
    assert called.code == 2 and "got no valid checkpoint" in called.err
    shutil.rmtree(early / "checkpoints")  # as if it had been killed before the first one
    mark_again(early)
    for again, how, step in ((folder, arguments, 15), (early, ("resume", early), 0)):
        called = call(*how)
        assert called.code == 0 and f"went on from step {step}" in called.out
        assert results(again) == results(only("whole"))
