"""What ends or disturbs a run that saves checkpoints, and what must come of it when it continues."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np

from .judge import Arrays, Expected, NotHere, Trial, difference
from .ours import Ours, only_ours
from .tool import Fault, Forked, Setting, Tool, in_fork

_NAMED = r"step-0|metrics|timing|checkpoint|(?<!I)/\w"
_STOPPED_AT = 9
_NO_ERROR = Expected("^$")  # no error will do
_FULL = Expected(_NAMED, r"(?i)large|space|write|ENOSPC")


class Runs:
    """Runs of a tool in forked processes.

    Attributes:
        whole: the folder of a run that nothing disturbs.
        right: its result.
    """

    def __init__(self, tool: Tool, setting: Setting):
        """Let the whole run take place."""
        self._tool = tool
        tool.warm(setting.folder("warm"))
        self.whole = setting.folder("whole")
        self.right = in_fork(lambda: tool.run(self.whole)).value()

    def start(self, folder: Path, *, resume: bool = False, **options: float) -> Forked:
        """Start a run, or let one continue."""
        return Forked(lambda: self._tool.run(folder, resume=resume, **options))  # pyright: ignore[reportArgumentType]

    def stopped(self, folder: Path) -> None:
        """A run that is stopped in an orderly way."""
        in_fork(lambda: self._tool.run(folder, until=_STOPPED_AT)).value()

    def resumed(self, folder: Path, expected: Expected = _NO_ERROR) -> Trial:
        """The run continues to the same end, or ends with the expected error."""
        return Trial(lambda: self.start(folder, resume=True).ended().value(), expected, self.right)

    def continues(self, folder: Path) -> str:
        """Why the run does not continue to the same end; nothing if it does."""
        found = self.start(folder, resume=True).ended()
        what = found.error if found.arrays is None else difference(found.arrays, self.right)
        return f"does not continue: {' '.join(what.split())[:110]}" if what else ""


def _few(tool: Tool, count: int) -> int:
    """How often to do what starts a process each time: fewer times with a tool that takes seconds to start."""
    return -(-count // 4) if tool.cold else count


def _files(path: Path) -> list[Path]:
    """The file, or all files in the folder."""
    return [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]


def killed(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """SIGKILL at random moments, once or twice; then it continues to the same end."""
    runs = Runs(tool, setting)
    timed = setting.folder("timed")
    process = runs.start(timed)
    process.wait_for(lambda: any(timed.iterdir()))
    start = time.monotonic()
    process.ended()
    whole_s = time.monotonic() - start
    for number in range(_few(tool, setting.kills)):
        folder = setting.folder(f"killed-{number}")
        for resume in (False, True) if setting.draw.uniform() < 0.3 else (False,):
            process = runs.start(folder, resume=resume)
            if tool.cold and not resume:  # the moment counts from its first file
                process.wait_for(lambda folder=folder: any(folder.iterdir()))
            time.sleep(setting.draw.uniform(0, whole_s))
            process.kill()
            process.ended()
        yield runs.resumed(folder)
        shutil.rmtree(folder)


def full_disk_at_save(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """No file may grow beyond a limit while a checkpoint is written over another one, which must stay."""
    path = setting.folder("one") / f"step-00000001{tool.suffix}"
    tool.warm(setting.folder("warm"))
    in_fork(lambda: tool.save(path, tool.tree()) or {}).value()
    right = in_fork(lambda: tool.arrays(tool.load(path, tool.tree()))).value()
    largest = max(file.stat().st_size for file in _files(path))
    for limit in sorted([*setting.draw.integers(0, largest, _few(tool, 8)).tolist(), 0, largest - 1]):

        def act(limit: int = limit) -> Arrays:
            return in_fork(lambda: tool.save(path, tool.step(tool.tree(), 0)) or {}, most_bytes=limit).value()

        def kept() -> str:
            found = in_fork(lambda: tool.arrays(tool.load(path, tool.tree())))
            what = found.error if found.arrays is None else difference(found.arrays, right)
            return f"the checkpoint that was there is lost: {what[:80]}" if what else ""

        yield Trial(act, _FULL._replace(ours=r"step-00000001.*"), also=kept)


def full_disk_in_a_run(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """No file may grow beyond a limit during a run; with room again it continues to the same end."""
    runs = Runs(tool, setting)
    sizes = [file.stat().st_size for file in _files(setting.scratch)]
    for number, limit in enumerate(setting.draw.integers(1, max(sizes), _few(tool, 6)).tolist()):
        folder = setting.folder(f"full-{number}")

        def act(folder: Path = folder, limit: int = limit) -> Arrays:
            return in_fork(lambda: tool.run(folder), most_bytes=limit).value()

        yield Trial(act, _FULL, runs.right, also=functools.partial(runs.continues, folder))


def _mount(folder: Path, *flags: str) -> None:
    done = subprocess.run(["mount", *flags, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotHere(f"mount: {done.stderr.strip()[:60]}")


@contextmanager
def _mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A file system in memory."""
    _mount(folder, "-t", "tmpfs", *options, "none")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def small_disk(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """A file system that is full after some checkpoints; with more room it continues to the same end."""
    runs = Runs(tool, setting)
    whole_bytes = sum(file.stat().st_size for file in _files(runs.whole))
    room = (whole_bytes if tool.ours else whole_bytes // 3) * 2 // 3  # ours keeps only some of its checkpoints
    with _mounted(setting.folder("small"), "-o", f"size={max(room // 4096, 2) * 4096}") as folder:

        def more_room() -> str:
            _mount(folder, "-o", "remount,size=64m")
            return runs.continues(folder)

        yield Trial(lambda: runs.start(folder).ended().value(), _FULL, also=more_room)


def read_only(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """A folder that is read-only: in the middle of a run, and from the start."""
    runs = Runs(tool, setting)
    with _mounted(setting.folder("sealed")) as folder:
        runs.stopped(folder)
        _mount(folder, "-o", "remount,ro")
        named = Expected(_NAMED, r"(?i)read-only|permission")
        yield Trial(lambda: runs.start(folder).ended().value(), named, untouched=(folder,))

        def writable() -> str:
            _mount(folder, "-o", "remount,rw")
            return runs.continues(folder)

        yield runs.resumed(folder, named)._replace(also=writable)


def two_at_once(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """A second run on the folder of one that is under way: refused, and the first comes to its end."""
    only_ours(tool, "it knows nothing of runs")
    runs = Runs(tool, setting)
    folder = setting.folder("shared")
    first = runs.start(folder, pause_s=0.05)
    first.wait_for((folder / "lock").exists)
    held = Expected(str(folder), "holds this run", rf"process {first.pid} on .* holds this run")
    for resume in (True, False):
        yield Trial(lambda resume=resume: runs.start(folder, resume=resume).ended().value(), held)
    yield Trial(lambda: first.ended().value(), _NO_ERROR, runs.right)


def clock_set_back(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """It continues ten years earlier, with files whose times are in the wrong order."""
    runs = Runs(tool, setting)
    folder = setting.folder("earlier")
    runs.stopped(folder)
    for number, path in enumerate(tool.checkpoints(folder)):
        os.utime(path, (1e9 + number, 1e9 + number))
    now = time.time

    def act() -> Arrays:
        with mock.patch("time.time", lambda: now() - 10 * 365 * 86400):
            return tool.run(folder, resume=True)

    yield Trial(lambda: in_fork(act).value(), _NO_ERROR, runs.right)


def moved(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """The folder is moved before it continues."""
    runs = Runs(tool, setting)
    folder, there = setting.folder("here"), setting.folder("there") / "other name"
    runs.stopped(folder)
    shutil.move(folder, there)
    yield runs.resumed(there)


def newest_damaged(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """The newest checkpoint is damaged, in several ways: the one before it is used, or the file is named."""
    runs = Runs(tool, setting)
    for number in range(3 if tool.cold else 6):
        folder = setting.folder(f"damaged-{number}")
        runs.start(folder).ended()
        newest = tool.checkpoints(folder)[0]
        file = max(_files(newest), key=lambda path: path.stat().st_size)
        content = file.read_bytes()
        at = int(setting.draw.integers(0, len(content)))
        flipped = content[:at] + bytes([content[at] ^ 1 << int(setting.draw.integers(8))]) + content[at + 1 :]
        file.write_bytes((flipped, content[:at], b"")[number % 3])

        def act(folder: Path = folder, name: str = newest.name) -> Arrays:
            found = tool.run(folder, resume=True)
            if isinstance(tool, Ours) and not any(name in note for note in tool.notes):
                raise RuntimeError("no warning")
            return found

        yield Trial(lambda act=act: in_fork(act).value(), Expected(f"{re.escape(newest.name)}|{tool.leaf}"), runs.right)


def all_damaged(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """No checkpoint is whole: to start anew without an error would discard them."""
    runs = Runs(tool, setting)
    kept = tuple(tool.checkpoints(runs.whole))
    for file in (file for path in kept for file in _files(path)):
        file.write_bytes(file.read_bytes()[:-1])
    expected = Expected(f"step-0|{tool.leaf}", r"\w", r"got no valid checkpoint")
    yield runs.resumed(runs.whole, expected)._replace(right=None, untouched=kept)


def _cut_log(after_checkpoint: bool, expected: Expected, tool: Tool, setting: Setting) -> Iterator[Trial]:
    """The log ends early: after the checkpoint, whose rows come again; or before it, whose rows cannot."""
    only_ours(tool, "it keeps no log")
    runs = Runs(tool, setting)
    for number in range(4):
        folder = setting.folder(f"torn-{number}")
        runs.start(folder).ended()
        for path in tool.checkpoints(folder)[:2]:
            path.unlink()
        [checkpoint] = tool.checkpoints(folder)
        log = folder / "metrics.jsonl"
        content = log.read_bytes()
        rows = content.splitlines(keepends=True)
        before = len(b"".join(row for row in rows if json.loads(row)["step"] < int(checkpoint.name[5:13])))
        least, most = (before, len(content)) if after_checkpoint else (0, before)
        log.write_bytes(content[: int(setting.draw.integers(least, most))])
        yield runs.resumed(folder, expected)


def _changed(what: str, old: str, new: str, tool: Tool, setting: Setting) -> Iterator[Trial]:
    """Code or config is another when a run of the command line continues: refused with a diff, unless forced."""
    ours = only_ours(tool, "it keeps neither code nor config")
    ours.called(setting.scratch, "run")
    code, printed, folder = ours.command(setting.scratch, "run")
    assert code == 0, printed
    (folder / "result.json").unlink()  # as if it had been killed before its end
    path = (folder if what == "config.json" else setting.scratch) / what
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    diff = rf"(?s)changed code or a changed config.*\n-[^\n]*{re.escape(old)}.*\n\+[^\n]*{re.escape(new)}"
    refused = Expected(path.name, r"\n[+-]", diff)
    yield Trial(ours.called(setting.scratch, "resume", str(folder)), refused, untouched=(folder,))

    def forced() -> Arrays:
        code, printed, _ = ours.command(setting.scratch, "resume", str(folder), "--force")
        if code:
            raise RuntimeError(printed)
        return {"continued": np.array((folder / "result.json").exists())}

    yield Trial(forced, _NO_ERROR, {"continued": np.array(True)})


def killed_command(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """``minijaxnet run``, a process of its own, killed at random moments; ``resume`` comes to the same files."""
    ours = only_ours(tool, "it has no command line")
    flags = ("--steps", "300000", "--batch-size", "6", "--log-every", "5000", "--checkpoint-every", "2000")
    right = ours.called(setting.folder("whole"), "run", *flags)()
    command = [sys.executable, "-m", "minijaxnet", "run", "line.py", "--bench-seconds", "0", "--no-report", *flags]
    for number in range(max(1, setting.kills // 20)):
        here = setting.folder(f"here-{number}")
        ours.called(here, "run")
        process = subprocess.Popen(command, cwd=here, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list(here.glob("runs/*/checkpoints/step-*")):
            time.sleep(0.005)
        time.sleep(setting.draw.uniform(0, 0.3))
        process.kill()
        process.wait()
        [folder] = here.glob("runs/*")
        if not (folder / "result.json").exists():  # killed before its end
            yield Trial(ours.called(here, "resume", str(folder)), _NO_ERROR, right)


_DATA = ("3 * x + 1), mjn", "3 * x + 2), mjn")
_LOST_ROWS = Expected(r"metrics\.jsonl")

FAULTS: dict[str, Fault] = {
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
    "a torn log": functools.partial(_cut_log, True, _NO_ERROR),
    "a log that lost rows": functools.partial(_cut_log, False, _LOST_ROWS),
    "code that has changed": functools.partial(_changed, "line.py", *_DATA),
    "imported code that has changed": functools.partial(_changed, "beside.py", "2", "2.0"),
    "a config that has changed": functools.partial(_changed, "config.json", '"steps": 40', '"steps": 60'),
}
