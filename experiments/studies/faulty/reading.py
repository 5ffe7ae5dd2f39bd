"""Checkpoints that are damaged, forged, or another's. What is one file to some tools is a folder of them to others."""

import io
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
from .setting import Setting
from .tool import Tool

_FLIPS = 200


class Saved:
    """A checkpoint, what it holds when nothing is wrong, and copies of it to be damaged."""

    def __init__(self, tool: Tool, setting: Setting, change: str = ""):
        """Save one."""
        self._tool, self._setting = tool, setting
        self.path = setting.folder("good") / f"step-00000001{tool.suffix}"
        tool.save(self.path, tool.tree(change))
        self.right = {} if change else tool.arrays(tool.load(self.path, tool.tree()))
        below = [self.path] if self.path.is_file() else sorted(p for p in self.path.rglob("*") if p.is_file())
        self.parts = [(file.relative_to(self.path), file.read_bytes()) for file in below]
        # One place for all copies: their number would fill a disk, and a name says nothing.
        self.copy = setting.folder("damaged") / self.path.name

    def size(self) -> int:
        """Bytes, all files together."""
        return sum(len(content) for _, content in self.parts)

    def with_part(self, at: int, damage: Callable[[bytes, int], bytes]) -> Path:
        """A copy in which the file that holds a byte, counted through all files, is damaged at that byte."""
        self.restore()
        for name, content in self.parts:
            if at < len(content):
                (self.copy / name).write_bytes(damage(content, at))
                break
            at -= len(content)
        return self.copy

    def restore(self) -> Path:
        """A copy as it was saved."""
        if self.copy.is_symlink() or self.copy.is_file() or not self.copy.exists():
            self.copy.unlink(missing_ok=True)
        elif self.copy.is_dir():
            shutil.rmtree(self.copy)
        else:
            self.copy.unlink()  # a pipe
        (shutil.copy if self.path.is_file() else shutil.copytree)(self.path, self.copy)
        return self.copy

    def trial(self, ours: str = r"got .*; expected", right: bool = True) -> Trial:
        """Load the copy."""
        expected = Expected(
            f"{re.escape(self.copy.name)}|{self._tool.leaf}", r"\w", f"(?s){re.escape(self.copy.name)}.*{ours}"
        )

        def act() -> Arrays:
            return self._tool.arrays(self._tool.load(self.copy, self._tool.tree()))

        return Trial(act, expected, self.right if right else None, untouched=(self.copy.parent,))


def truncated(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """Cut off at every 64th byte."""
    saved = Saved(tool, setting)
    for at in range(0, saved.size(), 64):
        saved.with_part(at, lambda content, at: content[:at])
        yield saved.trial()


def flipped(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """One bit is another."""
    saved = Saved(tool, setting)
    for bit in setting.draw.integers(0, 8 * saved.size(), _FLIPS).tolist():

        def flip(content: bytes, at: int, bit: int = bit) -> bytes:
            changed = bytearray(content)
            changed[at] ^= 1 << bit % 8
            return bytes(changed)

        saved.with_part(bit // 8, flip)
        yield saved.trial()


def _damaged(damage: Callable[[bytes, np.random.Generator], bytes]) -> Callable[[Tool, Setting], Iterator[Trial]]:
    """The largest file is another."""

    def trials(tool: Tool, setting: Setting) -> Iterator[Trial]:
        saved = Saved(tool, setting)
        saved.restore()
        name, content = max(saved.parts, key=lambda part: len(part[1]))
        (saved.copy / name).write_bytes(damage(content, setting.draw))
        yield saved.trial()

    return trials


def _other_tree(change: str, ours: str) -> Callable[[Tool, Setting], Iterator[Trial]]:
    def trials(tool: Tool, setting: Setting) -> Iterator[Trial]:
        saved = Saved(tool, setting, change)
        whole = Saved(tool, setting._replace(scratch=setting.folder("whole")))
        saved.restore()
        # An extra leaf may be left out, if all others are right.
        yield saved.trial(ours)._replace(right=whole.right if change == "extra leaf" else None)

    return trials


class _Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str):
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._path,)


def a_pickle(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """A pickle that does something when it is loaded."""
    saved, sign = Saved(tool, setting), setting.scratch / "executed"
    saved.restore()
    for name, _ in saved.parts:
        (saved.copy / name).write_bytes(pickle.dumps(_Bomb(str(sign))))
    yield saved.trial()._replace(also=lambda: "executed what was in the file" if sign.exists() else "")


def _forged(kind: str, ours: str) -> Callable[[Tool, Setting], Iterator[Trial]]:
    """A file of the tool's own layout that says what cannot be."""

    def trials(tool: Tool, setting: Setting) -> Iterator[Trial]:
        saved = Saved(tool, setting)
        [[_, content]] = saved.parts if len(saved.parts) == 1 else [("", b"")]
        forged = _forge(tool.layout, kind, content)
        if forged is None:
            raise NotOffered(f"nothing in its files ({tool.layout}) can say so")
        saved.restore().write_bytes(forged)
        yield saved.trial(ours, right=False)

    return trials


def _forge(layout: str, kind: str, content: bytes) -> bytes | None:
    if layout == "safetensors":
        length = int.from_bytes(content[:8], "little")
        header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
        names = [name for name in header if name != "__metadata__"]
        if kind == "header":
            return struct.pack("<Q", 10**15) + content[8:]
        if kind == "shape":
            header[names[0]]["shape"] = [10**6, 10**6]
        else:
            header[names[1]]["data_offsets"][0] = header[names[0]]["data_offsets"][0]
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data
    if layout in ("npy", "npz"):
        forged = io.BytesIO()
        if kind == "header":
            array = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{'descr': '<f4'"
        elif kind == "shape":
            shape = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)}
            np.lib.format.write_array_header_2_0(forged, shape)  # pyright: ignore
            array = forged.getvalue() + b"\0" * 64
        else:
            return None
        return array if layout == "npy" else _zipped(content, array)
    if layout == "msgpack" and kind == "header":
        return b"\xdf\xff\xff\xff\xff" + content  # a map of 4 billion entries, the most that there can be
    if layout == "msgpack" and kind == "shape":
        import msgpack  # pyright: ignore[reportMissingImports]

        def huge(code: int, data: bytes) -> Any:
            _, dtype, raw = msgpack.unpackb(data, raw=False, strict_map_key=False)
            return msgpack.ExtType(code, msgpack.packb(([10**6, 10**6], dtype, raw)))

        return msgpack.packb(msgpack.unpackb(content, ext_hook=huge, strict_map_key=False))
    if layout == "pickle" and kind == "header":
        return b"\x80\x04\x8e" + struct.pack("<Q", 10**15) + content  # bytes of that length
    return None


def _zipped(content: bytes, array: bytes) -> bytes:
    """The archive with another first member."""
    import zipfile

    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for number, name in enumerate(old.namelist()):
            new.writestr(name, old.read(name) if number else array)
    return out.getvalue()


def a_folder(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """A folder in the place of the file; or a file in the place of the folder."""
    saved = Saved(tool, setting)
    if saved.path.is_dir():
        saved.copy.write_bytes(b"")
    else:
        saved.copy.mkdir()
    yield saved.trial("got a folder")


def missing(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """No file at all."""
    missing = Saved(tool, setting).trial()
    names, wrong, _ = missing.expected
    yield missing._replace(expected=Expected(names, wrong, "No such file"), right=None)


def a_link(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """A symbolic link to the same checkpoint elsewhere, and one to nowhere."""
    saved = Saved(tool, setting)
    saved.copy.symlink_to(saved.path)
    yield saved.trial("got a symbolic link")
    saved.copy.unlink()
    saved.copy.symlink_to(setting.scratch / "nowhere")
    yield saved.trial("got a symbolic link")._replace(right=None)


def a_pipe(tool: Tool, setting: Setting) -> Iterator[Trial]:
    """A pipe into which nobody writes."""
    saved = Saved(tool, setting)
    os.mkfifo(saved.copy)
    yield saved.trial("got a pipe", right=False)._replace(untouched=())


READING: dict[str, Callable[[Tool, Setting], Iterator[Trial]]] = {
    "cut off at every 64th byte": truncated,
    "an empty file": _damaged(lambda content, _: b""),
    "a file of zeros": _damaged(lambda content, _: bytes(len(content))),
    "random bytes": _damaged(lambda content, draw: draw.bytes(len(content))),
    "bytes after its end": _damaged(lambda content, draw: content + draw.bytes(9)),
    "each of 200 flipped bits": flipped,
    "an extra leaf": _other_tree("extra leaf", r"tree.params\[2\].*; expected nothing"),
    "a missing leaf": _other_tree("missing leaf", r"tree.params\[0\]\['bias'\]: got nothing"),
    "a leaf of another shape": _other_tree(
        "wrong shape", r"tree.params\[0\]\['weights'\]: got float32\[4,8\]; expected"
    ),
    "a renamed leaf": _other_tree("renamed key", r"tree.params\[0\]\['(bias|offset)'\]: got"),
    "a leaf of another dtype": _other_tree(
        "changed dtype", r"tree.params\[0\]\['bias'\]: got float16\[8\]; expected float32"
    ),
    "a pickle": a_pickle,
    "a header of 10^15 bytes": _forged("header", r"got .*; expected"),
    "a shape of 10^12 elements": _forged("shape", r"got .*; expected"),
    "overlapping offsets": _forged("offsets", r"got offsets .*; expected"),
    "a folder in its place": a_folder,
    "no file": missing,
    "a symbolic link": a_link,
    "a pipe": a_pipe,
}
