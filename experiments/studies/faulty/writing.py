"""What ends or disturbs a run that keeps checkpoints, and what must come of it when it goes on."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np

from .judge import Arrays, Expected, NotHere, NotOffered, Trial, difference
from .setting import Setting
from .tool import Forked, Tool, in_fork

_NAMED = r"step-0|metrics|timing|checkpoint|(?<!I)/\w"
_STOPPED_AT = 9
_SAME = Expected("^$")  # no error will do


def _whole(tool: Tool, setting: Setting) -> Arrays:
    """What a run comes to that nothing disturbs."""
    if not tool.cold:
        tool.warm(setting.folder("warm"))
    folder = setting.folder("whole")
    return in_fork(lambda: tool.run(folder)).value()


def _resumed(tool: Tool, folder: Path) -> Callable[[], Arrays]:
    return lambda: in_fork(lambda: tool.run(folder, resume=True)).value()


def killed(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """SIGKILL at random moments, once or twice; then it goes on to the same end."""
    right = _whole(tool, setting)
    timed = setting.folder("timed")
    process = Forked(lambda: tool.run(timed))
    while process.lives() and not any(timed.iterdir()):
        time.sleep(0.002)
    start = time.monotonic()
    process.ended()
    whole_s = time.monotonic() - start
    for number in range(setting.few(setting.kills)):
        folder = setting.folder(f"killed-{number}")
        since = folder if tool.cold else None
        in_fork(lambda folder=folder: tool.run(folder), kill_after_s=setting.draw.uniform(0, whole_s), since=since)
        if setting.draw.uniform() < 0.3:
            moment = setting.draw.uniform(0, whole_s)
            in_fork(lambda folder=folder: tool.run(folder, resume=True), kill_after_s=moment)
        yield Trial(_resumed(tool, folder), _SAME, right)
        shutil.rmtree(folder)


def full_disk_at_save(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """No file may grow beyond a limit while a checkpoint is written over another, which must stay."""
    path = setting.folder("one") / f"step-00000001{tool.suffix}"
    if not tool.cold:
        tool.warm(setting.folder("warm"))
        tool.step(tool.tree(), 0)
    in_fork(lambda: tool.save(path, tool.tree()) or {})
    right = in_fork(lambda: tool.arrays(tool.load(path, tool.tree()))).value()
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    largest = max(file.stat().st_size for file in files)
    for limit in sorted([*setting.draw.integers(0, largest, setting.few(8)).tolist(), 0, largest - 1]):

        def act(limit: int = limit) -> Arrays:
            return in_fork(lambda: tool.save(path, tool.step(tool.tree(), 0)) or {}, most_bytes=limit).value()

        def kept() -> str:
            found = in_fork(lambda: tool.arrays(tool.load(path, tool.tree())))
            what = found.text if found.arrays is None else difference(found.arrays, right)
            return f"the checkpoint that was there is lost: {what[:80]}" if what else ""

        yield Trial(act, Expected(_NAMED, r"(?i)large|space|write|ENOSPC", r"step-00000001.*"), also=kept)


def full_disk_in_a_run(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """No file may grow beyond a limit during a run; with room again it goes on to the same end."""
    right = _whole(tool, setting)
    sizes = [file.stat().st_size for file in setting.scratch.rglob("*") if file.is_file()]
    for number, limit in enumerate(setting.draw.integers(1, max(sizes), setting.few(6)).tolist()):
        folder = setting.folder(f"full-{number}")

        def act(folder: Path = folder, limit: int = limit) -> Arrays:
            return in_fork(lambda: tool.run(folder), most_bytes=limit).value()

        yield Trial(act, Expected(_NAMED, r"(?i)large|space|write"), right, also=_goes_on(tool, folder, right))


def _goes_on(tool: Tool, folder: Path, right: Arrays) -> Callable[[], str]:
    def check() -> str:
        found = in_fork(lambda: tool.run(folder, resume=True))
        what = f"{found.kind}: {found.text}" if found.arrays is None else difference(found.arrays, right)
        return f"does not go on: {' '.join(what.split())[:110]}" if what else ""

    return check


def _mount(folder: Path, *flags: str) -> None:
    done = subprocess.run(["mount", *flags, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotHere(f"mount: {done.stderr.strip()[:60]}")


def small_disk(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """A file system that is full after some checkpoints; with more room it goes on to the same end."""
    right = _whole(tool, setting)
    folder = setting.folder("small")
    whole_bytes = sum(file.stat().st_size for file in (setting.scratch / "whole").rglob("*") if file.is_file())
    kept = whole_bytes if tool.ours else whole_bytes // 3
    _mount(folder, "-t", "tmpfs", "-o", f"size={max(kept * 2 // 3 // 4096, 2) * 4096}", "none")
    try:

        def more_room() -> str:
            _mount(folder, "-o", "remount,size=64m")
            return _goes_on(tool, folder, right)()

        yield Trial(
            lambda: in_fork(lambda: tool.run(folder)).value(), Expected(_NAMED, "(?i)space|write"), None, also=more_room
        )
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def read_only(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """A folder that is read-only: in the middle of a run, and from the start."""
    right = _whole(tool, setting)
    folder = setting.folder("sealed")
    _mount(folder, "-t", "tmpfs", "none")
    try:
        in_fork(lambda: tool.run(folder, until=_STOPPED_AT)).value()
        _mount(folder, "-o", "remount,ro")
        named = Expected(_NAMED, r"(?i)read-only|permission")
        yield Trial(lambda: in_fork(lambda: tool.run(folder)).value(), named, untouched=(folder,))

        def writable() -> str:
            _mount(folder, "-o", "remount,rw")
            return _goes_on(tool, folder, right)()

        yield Trial(lambda: in_fork(lambda: tool.run(folder, resume=True)).value(), named, right, also=writable)
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def two_at_once(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """A second run on the folder of one that is under way: refused, and the first comes to its end."""
    if not tool.ours:
        raise NotOffered("it knows nothing of runs")
    right = _whole(tool, setting)
    folder = setting.folder("shared")
    first = Forked(lambda: tool.run(folder, pause_s=0.05))
    while not (folder / "lock").exists():
        time.sleep(0.002)
    held = Expected(str(folder), "holds this run", rf"process {first.pid} on .* holds this run")
    for resume in (True, False):
        yield Trial(lambda resume=resume: in_fork(lambda: tool.run(folder, resume=resume)).value(), held)
    yield Trial(lambda: first.ended().value(), _SAME, right)


def clock_set_back(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """It goes on ten years earlier, with files whose times are the wrong way round."""
    right = _whole(tool, setting)
    folder = setting.folder("earlier")
    in_fork(lambda: tool.run(folder, until=_STOPPED_AT)).value()
    for number, path in enumerate(tool.checkpoints(folder)):
        os.utime(path, (1e9 + number, 1e9 + number))
    now = time.time

    def act() -> Arrays:
        with mock.patch("time.time", lambda: now() - 10 * 365 * 86400):
            return tool.run(folder, resume=True)

    yield Trial(lambda: in_fork(act).value(), _SAME, right)


def moved(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """The folder is moved between stop and going on."""
    right = _whole(tool, setting)
    folder = setting.folder("here")
    in_fork(lambda: tool.run(folder, until=_STOPPED_AT)).value()
    there = setting.folder("there") / "other name"
    shutil.move(folder, there)
    yield Trial(_resumed(tool, there), _SAME, right)


def newest_damaged(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """The newest checkpoint is damaged, in several ways: the one before it serves, or the file is named."""
    right = _whole(tool, setting)
    for number in range(3 if setting.starts_anew else 6):
        folder = setting.folder(f"damaged-{number}")
        in_fork(lambda folder=folder: tool.run(folder))
        newest = tool.checkpoints(folder)[0]
        files = [newest] if newest.is_file() else [p for p in newest.rglob("*") if p.stat().st_size > 0 and p.is_file()]
        file = max(files, key=lambda path: path.stat().st_size)
        content = bytearray(file.read_bytes())
        at = int(setting.draw.integers(0, len(content)))
        content[at] ^= 1 << int(setting.draw.integers(8))
        file.write_bytes((bytes(content), bytes(content[:at]), b"")[number % 3])
        expected = Expected(f"{re.escape(newest.name)}|{tool.leaf}")

        def act(folder: Path = folder, name: str = newest.name) -> Arrays:
            found = tool.run(folder, resume=True)
            if tool.ours and not any(name in note for note in tool.notes):  # pyright: ignore
                raise RuntimeError("no warning")
            return found

        yield Trial(lambda act=act: in_fork(act).value(), expected, right)


def all_damaged(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """No checkpoint is whole: to start anew in silence would throw them away."""
    _whole(tool, setting)
    folder = setting.scratch / "whole"
    for path in tool.checkpoints(folder):
        for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
            file.write_bytes(file.read_bytes()[:-1])
    expected = Expected(f"step-0|{tool.leaf}", r"\w", r"got no checkpoint that is whole")
    kept = tuple(tool.checkpoints(folder))
    yield Trial(_resumed(tool, folder), expected, untouched=kept)


def torn_log(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """The log ends within a line that a later checkpoint would have made whole."""
    yield from _cut_log(tool, setting, "after the checkpoint")


def lost_rows(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """The log lacks rows from before the checkpoint, which cannot come again: that must be said."""
    for trial in _cut_log(tool, setting, "before the checkpoint"):
        yield trial._replace(expected=Expected(r"metrics\.jsonl"))


def _cut_log(tool: Tool, setting: Setting, where: str) -> Iterator[Trial]:
    if not tool.ours:
        raise NotOffered("it keeps no log")
    right = _whole(tool, setting)
    for number in range(4):
        folder = setting.folder(f"torn-{number}")
        in_fork(lambda folder=folder: tool.run(folder))
        for path in tool.checkpoints(folder)[:2]:
            path.unlink()
        [checkpoint] = tool.checkpoints(folder)
        log = folder / "metrics.jsonl"
        content = log.read_bytes()
        rows = content.splitlines(keepends=True)
        before = len(b"".join(row for row in rows if json.loads(row)["step"] < int(checkpoint.name[5:13])))
        least, most = (before, len(content)) if where == "after the checkpoint" else (0, before)
        log.write_bytes(content[: int(setting.draw.integers(least, most))])
        yield Trial(_resumed(tool, folder), _SAME, right)


def _changed_between(what: str) -> Callable[[Tool, Setting], Iterator[Trial]]:
    """Code or config is another when a run of the command line goes on: refused with a diff, unless forced."""

    def trials(tool: Tool, setting: Setting) -> Iterator[Trial]:
        if not tool.ours:
            raise NotOffered("it keeps neither code nor config")
        from .ours import command

        file, old, new = {
            "code": ("line.py", "3 * x + 1), mjn", "3 * x + 2), mjn"),
            "imported code": ("beside.py", "2", "2.0"),
            "config": ("runs/config.json", '"steps": 40', '"steps": 60'),
        }[what]
        tool.called(setting.scratch, "run")  # pyright: ignore
        code, said, folder = command(setting.scratch, "run")
        assert code == 0, said
        (folder / "result.json").unlink()  # as if it had been killed before its end
        path = folder / "config.json" if what == "config" else setting.scratch / file
        path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
        diff = rf"(?s)other code or another config.*\n-[^\n]*{re.escape(old)}.*\n\+[^\n]*{re.escape(new)}"
        refused = Expected(path.name, r"\n[+-]", diff)
        yield Trial(tool.called(setting.scratch, "resume", str(folder)), refused, untouched=(folder,))  # pyright: ignore

        def forced() -> Arrays:
            code, said, _ = command(setting.scratch, "resume", str(folder), "--force")
            if code:
                raise RuntimeError(said)
            return {"went on": np.array((folder / "result.json").exists())}

        yield Trial(forced, _SAME, {"went on": np.array(True)})

    return trials


def killed_command(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """``minijaxnet run``, a process of its own, killed at random moments; ``resume`` comes to the same files."""
    if not tool.ours:
        raise NotOffered("it has no command line")
    flags = ("--steps", "300000", "--batch-size", "6", "--log-every", "5000", "--checkpoint-every", "2000")
    right = tool.called(setting.folder("whole"), "run", *flags)()  # pyright: ignore
    command = [sys.executable, "-m", "minijaxnet", "run", "line.py", "--bench-seconds", "0", "--no-report", *flags]
    for number in range(max(1, setting.kills // 20)):
        here = setting.folder(f"here-{number}")
        tool.called(here, "run")  # pyright: ignore
        process = subprocess.Popen(command, cwd=here, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list(here.glob("runs/*/checkpoints/step-*")):
            time.sleep(0.005)
        time.sleep(setting.draw.uniform(0, 0.3))
        process.kill()
        process.wait()
        [folder] = here.glob("runs/*")
        if (folder / "result.json").exists():
            continue  # killed after its end
        yield Trial(tool.called(here, "resume", str(folder)), _SAME, right)  # pyright: ignore


WRITING: dict[str, Callable[[Tool, Setting], Iterator[Trial]]] = {
    "SIGKILL at random moments": killed,
    "SIGKILL of the command": killed_command,
    "a full disk at a save": full_disk_at_save,
    "a full disk in a run": full_disk_in_a_run,
    "a small file system": small_disk,
    "a read-only folder": read_only,
    "two runs on one folder": two_at_once,
    "the clock set back": clock_set_back,
    "the folder moved": moved,
    "the newest checkpoint damaged": newest_damaged,
    "all checkpoints damaged": all_damaged,
    "a torn log": torn_log,
    "a log that lost rows": lost_rows,
    "code that has changed": _changed_between("code"),
    "imported code that has changed": _changed_between("imported code"),
    "a config that has changed": _changed_between("config"),
}
