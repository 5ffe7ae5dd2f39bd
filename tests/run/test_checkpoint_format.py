"""The file of a checkpoint: it is whole, or it is refused."""

import os
import pickle
import random
import re
import socket
import struct
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.flax
import safetensors.numpy
from kits.checkpoints import TREE, good_file, parts
from kits.marks import slow
from kits.processes import in_time

from minijaxnet.run import CheckpointError, checkpoint_step, load_checkpoint, save_checkpoint
from minijaxnet.run import checkpoint_format as format_module

# --- What is no checkpoint --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good():
    return good_file()


def test_safetensors_itself_reads_it(tmp_path):
    tree = {
        "w": jax.device_put(np.arange(6.0).reshape(2, 3)),
        "h": jax.device_put(np.ones(2, jnp.bfloat16)),
        "z": np.complex64([1 + 2j]),
        "f": np.ones((2, 3)).T,
    }
    save_checkpoint(tmp_path / "a", tree, step=41)
    arrays = safetensors.flax.load_file(tmp_path / "a")
    assert jnp.array_equal(arrays["tree['w']"], tree["w"])
    assert arrays["tree['h']"].dtype == jnp.bfloat16
    assert arrays["tree['z']"].tolist() == [[1, 2]]
    with safetensors.safe_open(tmp_path / "a", "flax") as file:
        assert (file.metadata()["step"], file.metadata()["tree['z']"]) == ("41", "complex64")


def test_the_same_tree_is_the_same_file(good, tmp_path):
    save_checkpoint(tmp_path / "a", dict(reversed(TREE.items())), step=41)
    assert (tmp_path / "a").read_bytes() == good


def refused(content, path):
    """The error that reading such a file gives, the same whoever reads it."""
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: ") as caught:
        load_checkpoint(path, TREE)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: "):
        checkpoint_step(path)
    text = str(caught.value).removeprefix(f"{path}: ")
    assert re.search("got .*; expected |got .*, ", text, re.DOTALL), text
    return text


def pickled(path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(path / "it went off"),)

    return pickle.dumps({"weights": np.ones(3), "bomb": Bomb()})


OTHERS = {
    "empty": (lambda good: b"", r"got 0 bytes that begin with b''; expected a checkpoint"),
    "a pickle": (lambda good: pickled(Path.cwd()), r"got \d+ bytes that begin with b'.x80.*; expected a checkpoint"),
    "a header of 10^15 bytes": (lambda good: struct.pack("<Q", 10**15) + good[8:], "expected a checkpoint"),
    "zeros": (lambda good: bytes(len(good)), "got a header that is no JSON"),
    "somebody else's safetensors": (
        lambda good: safetensors.numpy.save({"tree['weights']": np.ones(3)}, {"format": "pt"}),
        'got a file without "format": "minijaxnet.checkpoint"; expected a checkpoint of minijaxnet',
    ),
    "one byte more": (lambda good: good + b"\0", "got 79 bytes of data; expected 78"),
    "data gone": (lambda good: b"".join(parts(good)[:2]), "got 0 bytes of data; expected 78"),
    "the data's last bit": (
        lambda good: good[:-1] + bytes([good[-1] ^ 1]),
        "got data with SHA-256 .{64}; expected .{64}",
    ),
    "a step more": (
        lambda good: good.replace(b'"step":"41"', b'"step":"42"'),
        "got a header that differs from its SHA-256",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_whole_checkpoint_is_refused(name, good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change, text = OTHERS[name]
    assert re.search(text, found := refused(change(good), tmp_path / "a")), found
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def damaged(good, draw):
    """A file damaged in one to three ways; what happens to be the same again is damaged once more."""
    content = bytearray(good)
    while bytes(content) == good:
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            at, length = draw.randrange(len(content)), draw.randrange(1, 17)
            match draw.randrange(6):
                case 0 | 1:
                    content[at] ^= 1 << draw.randrange(8)
                case 2:
                    del content[max(1, at) :]
                case 3:
                    content[at:at] = draw.randbytes(length)
                case 4:
                    content[at : at + length] = content[at + length : at + 2 * length]
                case 5:
                    content[:8] = struct.pack("<Q", draw.choice((0, 1, 8, len(content), 1 << draw.randrange(64))))
    return bytes(content)


@pytest.mark.parametrize("part", [0, *slow(*range(1, 100))])
def test_damaged_in_any_way_it_is_refused(part, good, tmp_path):
    for at in range(len(good)) if part == 0 else ():
        refused(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :], tmp_path / "a")
    for seed in range(300 * part, 300 * (part + 1)):
        refused(damaged(good, random.Random(seed)), tmp_path / "a")


def test_a_header_too_long_for_the_template_is_not_read(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(struct.pack("<Q", 3_000_000) + b"[" + b"[]," * 1_000_000)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"got a header of 3000000 bytes; expected at most 1\d{6}"):
        load_checkpoint(path, TREE)
    assert tracemalloc.get_traced_memory()[1] < 200_000
    tracemalloc.stop()
    path.write_bytes(struct.pack("<Q", 1 << 25))
    os.truncate(path, 1 << 26)
    with pytest.raises(CheckpointError, match=r"got a header of 33554432 bytes; expected at most 16777216"):
        checkpoint_step(path)


def test_a_huge_array_is_neither_allocated_nor_read(tmp_path):
    header = format_module.Header(1, {"tree": "float32"}, {"tree": format_module.Stored("F32", (10**11,))})
    start = format_module.encode(header)
    (tmp_path / "a").write_bytes(start)
    with pytest.raises(CheckpointError, match="got 0 bytes of data; expected 400000000000"):
        load_checkpoint(tmp_path / "a", jax.ShapeDtypeStruct((10**11,), np.float32))
    os.truncate(tmp_path / "a", len(start) + 4 * 10**11)  # as large as it says, and not on the disk
    with pytest.raises(CheckpointError, match=r"tree: got float32\[100000000000\]; expected float32\[3\]"):
        load_checkpoint(tmp_path / "a", np.zeros(3, np.float32))


def test_no_copies_of_the_data_are_made(tmp_path):
    tree = [np.ones((1 << 20, 4), np.float32), jnp.ones((1 << 20, 2))]
    size = sum(leaf.nbytes for leaf in tree)

    def most_memory(call):
        tracemalloc.start()
        call()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert most_memory(lambda: save_checkpoint(tmp_path / "a", tree, step=0)) < 1 << 20
    assert most_memory(lambda: checkpoint_step(tmp_path / "a")) < 2 << 20
    assert most_memory(lambda: load_checkpoint(tmp_path / "a", tree)) < size + (1 << 20)


# --- What stands in place of the file ---------------------------------------------------------------------------------


@pytest.fixture
def no_waiting():
    with in_time():  # not for a pipe
        yield


def refused_kind(path):
    for read in (lambda: load_checkpoint(path, TREE), lambda: checkpoint_step(path)):
        with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: got .*; expected the file itself") as it:
            read()
    return str(it.value).removeprefix(f"{path}: got ").split(";")[0]


def test_only_a_regular_file_is_opened(good, no_waiting, tmp_path):
    (tmp_path / "folder").mkdir()
    assert refused_kind(tmp_path / "folder") == "a folder"
    os.mkfifo(tmp_path / "pipe")  # would wait for a writer for ever
    assert refused_kind(tmp_path / "pipe") == "a pipe"
    assert refused_kind(Path("/dev/zero")) == "a device"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
        assert refused_kind(tmp_path / "socket") == "a socket"
    (tmp_path / "good").write_bytes(good)
    for target in (tmp_path / "good", tmp_path / "gone"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(target)
        assert refused_kind(tmp_path / "link") == "a symbolic link"


@pytest.mark.parametrize("name", ["gone", "no folder/gone"])
def test_a_file_that_is_not_there_is_named(name, tmp_path):
    for read in (lambda: load_checkpoint(tmp_path / name, TREE), lambda: checkpoint_step(tmp_path / name)):
        with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / name))) as caught:
            read()
        assert caught.value.filename == str(tmp_path / name)
