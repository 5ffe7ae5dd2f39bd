"""A run that was stopped, in a folder to work in, and functions that stop one."""

import contextlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from kits.command import AUTODIFF, HEAD, QUICK, call
from kits.fits import chunks_of

from minijaxnet.run.folder import own_mark
from minijaxnet.run.keeper import Keeper

TEXT = HEAD + "from beside import THIRD\n" + AUTODIFF.replace("x / 3", "THIRD * x")
RUN = ("run", "line.py", *QUICK)


@contextlib.contextmanager
def at(steps, act):
    """Runs within do something when they have come so far."""
    is_due = Keeper.is_due

    def look(self, step):
        if step == steps:
            act()
        return is_due(self, step)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Keeper, "is_due", look)
        yield


def stopping(steps, signum=signal.SIGINT):
    return at(steps, lambda: os.kill(os.getpid(), signum))


@contextlib.contextmanager
def working_in(folder):
    """A folder whose modules are imported anew, and whose runs look up after each step."""
    with pytest.MonkeyPatch.context() as patched, contextlib.chdir(folder), chunks_of(0.0):
        patched.setattr(sys, "path", [*sys.path])
        forget()
        yield
        forget()


def forget():
    for name in ("beside", "late"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An experiment, a run of it that came to its end, and one that was stopped."""
    home = tmp_path_factory.mktemp("home")
    (home / "line.py").write_text(TEXT, encoding="utf-8")
    (home / "beside.py").write_text("THIRD = 1 / 3\n", encoding="utf-8")
    with working_in(home):
        assert call(*RUN, "--runs", "whole").code == 0
        with stopping(21):
            called = call(*RUN)
        assert called.code == 130 and "stopped by SIGINT after 21 steps" in called.out
        assert f"minijaxnet resume {only('runs')} goes on" in called.out
    return home


@pytest.fixture
def here(made, tmp_path):
    """A copy of all that to work in."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.rglob("config.json"):  # which says where the experiment is
        path.write_text(path.read_text(encoding="utf-8").replace(str(made), str(tmp_path)), encoding="utf-8")
    for folder in (path.parent for path in tmp_path.glob("*/*/environment.json")):
        mark_again(folder)
    with working_in(tmp_path):
        yield tmp_path


def mark_again(folder):
    """Make a run one's own again whose config has been edited."""
    found = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps(found | {"mark": own_mark(folder)}))


def only(parent):
    [found] = Path(parent).glob("*")
    return found


def results(folder):
    """The files of a run that are the same to the bit whenever it was stopped."""
    return [(Path(folder) / name).read_bytes() for name in ("metrics.jsonl", "params.safetensors", "result.json")]
