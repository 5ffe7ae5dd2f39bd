"""Checkpoints that are damaged, forged, or another's. What is one file to some tools is a folder of them to others."""

import functools
import json
import os
import pickle
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .judge import Arrays, Expected, NotOffered, Trial
from .tool import Fault, Setting, Tool

_FLIPS = 200


class Saved:
    """A checkpoint, what it holds when nothing is wrong, and a copy of it to be damaged."""

    def __init__(self, tool: Tool, setting: Setting, change: str = ""):
        """Save one, and copy it."""
        self._tool = tool
        self.path = setting.folder("good") / f"step-00000001{tool.suffix}"
        tool.save(self.path, tool.tree(change))
        self.right = {} if change else tool.arrays(tool.load(self.path, tool.tree()))
        below = [self.path] if self.path.is_file() else sorted(p for p in self.path.rglob("*") if p.is_file())
        self.parts = [(file.relative_to(self.path), file.read_bytes()) for file in below]
        self.size = sum(len(content) for _, content in self.parts)
        self.copy = setting.folder("damaged") / self.path.name
        self.restore()

    def remove(self) -> Path:
        """Remove the copy."""
        if self.copy.is_dir() and not self.copy.is_symlink():
            shutil.rmtree(self.copy)
        else:
            self.copy.unlink(missing_ok=True)
        return self.copy

    def restore(self) -> None:
        """Make the copy anew, as it was saved."""
        self.remove()
        (shutil.copy if self.path.is_file() else shutil.copytree)(self.path, self.copy)

    def damage(self, at: int, change: Callable[[bytes, int], bytes]) -> None:
        """Damage the file of the copy that holds a byte, counted through all files, at that byte."""
        self.restore()
        for name, content in self.parts:
            if at < len(content):
                (self.copy / name).write_bytes(change(content, at))
                break
            at -= len(content)

    def trial(self, ours: str = r"got .*; expected", right: bool = True) -> Trial:
        """Load the copy."""
        name = re.escape(self.copy.name)
        expected = Expected(f"{name}|{self._tool.leaf}", r"\w", f"(?s){name}.*{ours}")

        def act() -> Arrays:
            return self._tool.arrays(self._tool.load(self.copy, self._tool.tree()))

        return Trial(act, expected, self.right if right else None, untouched=(self.copy.parent,))


def truncated(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """Cut off at every 64th byte."""
    saved = Saved(tool, setting)
    for at in range(0, saved.size, 64):
        saved.damage(at, lambda content, at: content[:at])
        yield saved.trial()


def flipped(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """One bit is another."""
    saved = Saved(tool, setting)
    for bit in setting.draw.integers(0, 8 * saved.size, _FLIPS).tolist():

        def flip(content: bytes, at: int, bit: int = bit) -> bytes:
            return content[:at] + bytes([content[at] ^ 1 << bit % 8]) + content[at + 1 :]

        saved.damage(bit // 8, flip)
        yield saved.trial()


def _replaced(change: Callable[[bytes, np.random.Generator], bytes], tool: Tool, setting: Setting) -> Iterator[Trial]:
    """The largest file is another."""
    saved = Saved(tool, setting)
    name, content = max(saved.parts, key=lambda part: len(part[1]))
    (saved.copy / name).write_bytes(change(content, setting.draw))
    yield saved.trial()


def _other_tree(change: str, ours: str, tool: Tool, setting: Setting) -> Iterator[Trial]:
    """The checkpoint of another tree. An extra leaf may be left out, if all others are right."""
    saved = Saved(tool, setting, change)
    whole = Saved(tool, setting._replace(scratch=setting.folder("whole")))
    yield saved.trial(ours)._replace(right=whole.right if change == "extra leaf" else None)


class _Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: str):
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._path,)


def a_pickle(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """A pickle that runs code when it is loaded."""
    saved, sign = Saved(tool, setting), setting.scratch / "executed"
    for name, _ in saved.parts:
        (saved.copy / name).write_bytes(pickle.dumps(_Bomb(str(sign))))
    yield saved.trial()._replace(also=lambda: "executed what was in the file" if sign.exists() else "")


def _forged(what: str, ours: str, tool: Tool, setting: Setting) -> Iterator[Trial]:
    """A file of safetensors whose header says what cannot be."""
    if tool.suffix != ".safetensors":
        raise NotOffered("its files are not safetensors")
    saved = Saved(tool, setting)
    content = saved.path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    first, second, *_ = [name for name in header if name != "__metadata__"]
    if what == "shape":
        header[first]["shape"] = [10**6, 10**6]
    elif what == "offsets":
        header[second]["data_offsets"][0] = header[first]["data_offsets"][0]
    text = json.dumps(header).encode()
    saved.copy.write_bytes(struct.pack("<Q", 10**15 if what == "length" else len(text)) + text + data)
    yield saved.trial(ours, right=False)


def a_folder(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """A folder in the place of the file; or a file in the place of the folder."""
    saved = Saved(tool, setting)
    saved.remove()
    if saved.path.is_dir():
        saved.copy.write_bytes(b"")
    else:
        saved.copy.mkdir()
    yield saved.trial("got a folder")


def missing(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """No file at all."""
    saved = Saved(tool, setting)
    saved.remove()
    trial = saved.trial(right=False)
    yield trial._replace(expected=trial.expected._replace(ours="No such file"))


def a_link(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """A symbolic link to the same checkpoint elsewhere, and one to nothing."""
    saved = Saved(tool, setting)
    saved.remove().symlink_to(saved.path)
    yield saved.trial("got a symbolic link")
    saved.remove().symlink_to(setting.scratch / "nowhere")
    yield saved.trial("got a symbolic link", right=False)


def a_pipe(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """A pipe into which nobody writes."""
    saved = Saved(tool, setting)
    os.mkfifo(saved.remove())
    yield saved.trial("got a pipe", right=False)._replace(untouched=())


_CHANGES = {
    "an extra leaf": ("extra leaf", r"tree.params\[2\].*; expected nothing"),
    "a missing leaf": ("missing leaf", r"tree.params\[0\]\['bias'\]: got nothing"),
    "a leaf of another shape": ("wrong shape", r"tree.params\[0\]\['weights'\]: got float32\[4,8\]; expected"),
    "a renamed leaf": ("renamed key", r"tree.params\[0\]\['(bias|offset)'\]: got"),
    "a leaf of another dtype": ("changed dtype", r"tree.params\[0\]\['bias'\]: got float16\[8\]; expected float32"),
}

FAULTS: dict[str, Fault] = {
    "cut off at every 64th byte": truncated,
    "an empty file": functools.partial(_replaced, lambda content, _: b""),
    "a file of zeros": functools.partial(_replaced, lambda content, _: bytes(len(content))),
    "random bytes": functools.partial(_replaced, lambda content, draw: draw.bytes(len(content))),
    "bytes after its end": functools.partial(_replaced, lambda content, draw: content + draw.bytes(9)),
    "each of 200 flipped bits": flipped,
    **{name: functools.partial(_other_tree, *change) for name, change in _CHANGES.items()},
    "a pickle": a_pickle,
    "a header of 10^15 bytes": functools.partial(_forged, "length", r"got .*; expected"),
    "a shape of 10^12 elements": functools.partial(_forged, "shape", r"got .*; expected"),
    "overlapping offsets": functools.partial(_forged, "offsets", r"got offsets .*; expected"),
    "a folder in its place": a_folder,
    "no file": missing,
    "a symbolic link": a_link,
    "a pipe": a_pipe,
}
