"""The checkpoint's file: whatever happens to it, to the disk or to the process, it is whole or it is refused."""

import errno
import hashlib
import json
import os
import pickle
import random
import re
import signal
import socket
import stat
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
from kits.checkpoints import TREE, assert_same_bits, run_python

from minijaxnet.run import CheckpointError, checkpoint_step, load_checkpoint, save_checkpoint
from minijaxnet.run import checkpoint_format as format_module

ZEROS = 64 * "0"


# --- What is no checkpoint --------------------------------------------------------------------------------------------


def parts(content):
    """Length, header's text and data of a file."""
    length = struct.unpack("<Q", content[:8])[0]
    return content[:8], content[8 : 8 + length], content[8 + length :]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "good.safetensors"
    save_checkpoint(path, TREE, step=41)
    return path.read_bytes()


def test_safetensors_itself_reads_it(tmp_path):
    tree = {
        "w": jnp.arange(6.0).reshape(2, 3),
        "h": jnp.ones(2, jnp.bfloat16),
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


def test_the_checksums_are_what_the_metadata_says(good):
    length, text, data = parts(good)
    metadata = json.loads(text)["__metadata__"]
    assert metadata["data_sha256"] == hashlib.sha256(data).hexdigest()
    without = text.replace(metadata["header_sha256"].encode(), ZEROS.encode())
    assert metadata["header_sha256"] == hashlib.sha256(length + without).hexdigest()
    assert (len(length) + len(text)) % 8 == 0


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
    assert re.search("got .*; expected ", text), text
    return text


def forged(good, change):
    """A file with another header, whose checksum is right: what damages no checksum sees."""
    _, text, data = parts(good)
    content = json.loads(text)
    content["__metadata__"]["header_sha256"] = ZEROS
    changed = change(content)
    text = changed if isinstance(changed, bytes) else json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    length = struct.pack("<Q", len(text))
    return length + text.replace(ZEROS.encode(), hashlib.sha256(length + text).hexdigest().encode(), 1) + data


def dumped(content):
    return json.dumps(content, separators=(",", ":")).encode()


def test_a_forger_who_changes_nothing_makes_the_same_file(good):
    assert forged(good, lambda content: None) == good


W = "tree['weights']"


def array(**change):
    return lambda content: content[W].update(change)


def metadata(**change):
    return lambda content: content["__metadata__"].update(change)


def text(old, new):
    return lambda content: dumped(content).replace(old, new, 1)


def without(place, name):
    return lambda content: (content[place] if place else content).pop(name)


def fewer_arrays(content):
    del content[W], content["__metadata__"][W]


def more_arrays(content):
    content["__metadata__"]["treeX"] = "int8"
    content["treeX"] = {"dtype": "I8", "shape": [9], "data_offsets": [78, 87]}


META = "__metadata__"
OURS = "got a header that differs from its SHA-256, or is written in another way than ours"
NO_ARRAY = r"tree\['weights'\]: got dtype .* and shape .*; expected an array"
FORGED = {
    "a shape of 10^12 elements": (array(shape=[10**12]), r"got offsets \[30, 78\]; expected \[30, 40{10}30\]"),
    "a shape of 10^300 elements": (array(shape=[10**15] * 20), r"got offsets \[30, 78\]; expected"),
    "a size beyond 64 bits": (array(shape=[10**4000]), NO_ARRAY),
    "70 axes": (array(shape=[1] * 70), NO_ARRAY),
    "a negative size": (array(shape=[-3, -4]), r"got dtype 'F32' and shape \[-3, -4\]; expected an array"),
    "a fractional size": (array(shape=[3.0, 4]), NO_ARRAY),
    "a size of true": (array(shape=[True, 12]), NO_ARRAY),
    "a shape that is a number": (array(shape=12), NO_ARRAY),
    "no shape": (without(W, "shape"), NO_ARRAY),
    "an unknown dtype": (array(dtype="F31"), NO_ARRAY),
    "a dtype that is a list": (array(dtype=["F32"]), NO_ARRAY),
    "an array that is a number": (lambda content: content.update({W: 3}), NO_ARRAY),
    "overlapping offsets": (array(data_offsets=[26, 74]), r"got offsets \[26, 74\]; expected \[30, 78\]"),
    "a hole": (array(data_offsets=[38, 86]), r"got offsets \[38, 86\]; expected \[30, 78\]"),
    "negative offsets": (array(data_offsets=[-30, 18]), r"got offsets \[-30, 18\]; expected"),
    "backward offsets": (array(data_offsets=[78, 30]), r"got offsets \[78, 30\]; expected"),
    "float offsets": (array(data_offsets=[30.0, 78.0]), OURS),
    "offsets of text": (array(data_offsets="30"), "got offsets '30'; expected"),
    "three offsets": (array(data_offsets=[30, 78, 78]), "got offsets .*; expected"),
    "no offsets": (without(W, "data_offsets"), "got offsets None; expected"),
    "more of an array": (array(extra=1), OURS),
    "an array twice": (lambda content: dumped(content)[:-1] + f',"{W}":'.encode() + dumped(content[W]) + b"}", OURS),
    "a step twice": (text(b'"step":"41"', b'"step":"40","step":"41"'), OURS),
    "spaces": (lambda content: json.dumps(content).encode(), OURS),
    "spaces at the end": (lambda content: dumped(content) + b" " * 16, OURS),
    "another order": (lambda content: dumped(dict(reversed(content.items()))), "got offsets .*; expected"),
    "a name in escapes": (text(b"weights", b"w\\u0065ights"), OURS),
    "a step that is no text": (metadata(step=41), OURS),
    "a step of zeros": (metadata(step="041"), OURS),
    "a step in other digits": (metadata(step="٤١"), "got step '٤١'; expected a count"),
    "a negative step": (metadata(step="-1"), "got step '-1'; expected a count"),
    "a step of NaN": (metadata(step=float("nan")), "got step 'nan'; expected a count"),
    "a step of 5,000 digits": (metadata(step="9" * 5000), "got step '9{40,50}; expected a count"),
    "no step": (without(META, "step"), "got step 'None'; expected a count"),
    "no checksum of the data": (without(META, "data_sha256"), OURS),
    "no checksum of the header": (without(META, "header_sha256"), OURS),
    "another checksum of the data": (
        metadata(data_sha256=64 * "A"),
        "got data with SHA-256 [0-9a-f]{64}; expected A{64}",
    ),
    "a leaf without a name": (without(META, W), r"tree\['weights'\]: got an array that the metadata does not name"),
    "a kind that is no text": (metadata(**{W: ["float32"]}), OURS),
    "another kind": (metadata(**{W: "int32"}), r"tree\['weights'\]: got int32\[3,4\]; expected float32\[3,4\]"),
    "more metadata": (metadata(author="me"), OURS),
    "another version": (metadata(version="2"), "got format version '2'; expected '1'"),
    "no version": (without(META, "version"), "got format version None; expected '1'"),
    "another format": (metadata(format="pt"), "expected a checkpoint of minijaxnet"),
    "no metadata": (without(None, META), "expected a checkpoint of minijaxnet"),
    "metadata that is a list": (lambda content: content.update({META: []}), "expected a checkpoint of minijaxnet"),
    "a list": (lambda _: b"[1, 2, 3]", "expected a checkpoint of minijaxnet"),
    "a number": (lambda _: b"7", "expected a checkpoint of minijaxnet"),
    "an empty object": (lambda _: b"{}", "expected a checkpoint of minijaxnet"),
    "nothing": (lambda _: b"", "got a header that is no JSON"),
    "lists in lists": (lambda _: b"[" * 100_000, "got a header that is no JSON .RecursionError"),
    "objects in objects": (lambda _: b'{"a":' * 100_000, "got a header that is no JSON .RecursionError"),
    "a number of 100,000 digits": (lambda _: b"9" * 100_000, "got a header that is no JSON"),
    "a byte order mark": (lambda content: b"\xef\xbb\xbf" + dumped(content), "no JSON .UnicodeDecodeError"),
    "no UTF-8": (text(b"weights", b"w\xff\xfeghts"), "no JSON .UnicodeDecodeError"),
    "UTF-16": (lambda content: dumped(content).decode().encode("utf-16"), "no JSON .UnicodeDecodeError"),
    "more data than arrays": (fewer_arrays, "got 78 bytes of data; expected 30"),
    "less data than arrays": (more_arrays, "got 78 bytes of data; expected 87"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_header_that_we_would_not_write_is_refused_though_its_checksum_is_right(name, good, tmp_path):
    change, expected = FORGED[name]
    (tmp_path / "a").write_bytes(forged(good, change))
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(tmp_path / 'a'))}: .*{expected}"):
        load_checkpoint(tmp_path / "a", TREE)
    if name != "another kind":  # which only the template tells
        with pytest.raises(CheckpointError, match=f"^{re.escape(str(tmp_path / 'a'))}: .*{expected}"):
            checkpoint_step(tmp_path / "a")


def pickled(path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(path / "it went off"),)

    return pickle.dumps({"weights": np.ones(3), "bomb": Bomb()})


OTHERS = {
    "empty": (lambda good: b"", r"got 0 bytes that begin with b''; expected a checkpoint"),
    "seven bytes": (lambda good: good[:7], "got 7 bytes that begin with .*; expected a checkpoint"),
    "a pickle": (lambda good: pickled(Path.cwd()), r"got \d+ bytes that begin with b'.x80.*; expected a checkpoint"),
    "a header of 10^15 bytes": (lambda good: struct.pack("<Q", 10**15) + good[8:], "expected a checkpoint"),
    "a header of 2^64 - 1 bytes": (lambda good: b"\xff" * 8 + good[8:], "expected a checkpoint"),
    "zeros": (lambda good: bytes(len(good)), "got a header that is no JSON"),
    "text": (lambda good: b"the quick brown fox jumps over the lazy dog", "expected a checkpoint"),
    "a NumPy archive": (lambda good: b"PK\x03\x04" + good, "expected a checkpoint"),
    "somebody else's safetensors": (
        lambda good: safetensors.numpy.save({"tree['weights']": np.ones(3)}, {"format": "pt"}),
        'got a file without "format": "minijaxnet.checkpoint"; expected a checkpoint of minijaxnet',
    ),
    "safetensors without metadata": (lambda good: safetensors.numpy.save({"a": np.ones(3)}), "of minijaxnet"),
    "one byte more": (lambda good: good + b"\0", "got 79 bytes of data; expected 78"),
    "twice": (lambda good: good + good, r"got \d+ bytes of data; expected 78"),
    "one byte less": (lambda good: good[:-1], "got 77 bytes of data; expected 78"),
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


def test_the_data_of_one_under_the_header_of_another_is_refused(good, tmp_path):
    other = jax.tree.map(lambda leaf: leaf + 1, TREE)
    save_checkpoint(tmp_path / "b", other, step=41)
    mixed = b"".join((*parts(good)[:2], parts((tmp_path / "b").read_bytes())[2]))
    assert "got data with SHA-256" in refused(mixed, tmp_path / "a")


def test_cut_off_anywhere_it_is_refused(good, tmp_path):
    for length in [*range(0, len(good), 64), *range(16), *range(len(good) - 140, len(good), 3)]:
        refused(good[:length], tmp_path / "a")


def test_every_bit_counts(good, tmp_path):
    """Each byte of the file with one bit flipped."""
    draw = random.Random(0)
    for at in range(len(good)):
        damaged = bytearray(good)
        damaged[at] ^= 1 << draw.randrange(8)
        refused(bytes(damaged), tmp_path / "a")


def mutated(good, draw):
    """A file damaged in one to three ways; what happens to be the same again is damaged once more."""
    content = bytearray(good)
    while bytes(content) == good:
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            at, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
            near = min(end, at + draw.randrange(1, 17))
            match draw.randrange(10):
                case 0 | 1 | 2:
                    if content:
                        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
                case 3:
                    if content:
                        content[draw.randrange(len(content))] = draw.randrange(256)
                case 4:
                    del content[at:]
                case 5:
                    del content[at:near]
                case 6:
                    content[at:at] = draw.randbytes(draw.randrange(1, 17))
                case 7:
                    content[at:near] = bytes(near - at)
                case 8:
                    content[at:at] = content[at:end]
                case 9:
                    content[:8] = struct.pack("<Q", draw.choice((0, 1, 8, len(content), 1 << draw.randrange(64))))
            content = content or bytearray(b"\0")
    return bytes(content)


def check_mutations(good, path, seeds):
    for seed in seeds:
        content = mutated(good, random.Random(seed))
        path.write_bytes(content)
        for read in (lambda: load_checkpoint(path, TREE), lambda: checkpoint_step(path)):
            try:
                read()
            except CheckpointError as error:
                assert re.match(f"{re.escape(str(path))}: .*got ", str(error), re.DOTALL), (seed, error)
            else:
                pytest.fail(f"seed {seed}: a damaged file was taken for a good one")


def test_damaged_in_any_way_it_is_refused(good, tmp_path):
    check_mutations(good, tmp_path / "a", range(300))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_100_000_damaged_files_are_refused(part, good, tmp_path):
    memory = Path("/dev/shm")
    path = (memory if memory.is_dir() else tmp_path) / f"mutated-{os.getpid()}"
    try:
        check_mutations(good, path, range(1000 + 10_000 * part, 11_000 + 10_000 * part))
    finally:
        path.unlink(missing_ok=True)


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


# --- What stands in place of the file --------------------------------------------------------------------------------


@pytest.fixture
def no_waiting():
    """An error where a pipe would be waited for without end."""

    def too_long(signum, frame):
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refused_kind(path):
    for read in (lambda: load_checkpoint(path, TREE), lambda: checkpoint_step(path)):
        with pytest.raises(
            CheckpointError, match=f"^{re.escape(str(path))}: got .*; expected the checkpoint's own"
        ) as it:
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


@pytest.mark.parametrize("target", ["inside", "outside", "gone"])
def test_a_symbolic_link_is_refused(target, good, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "inside").write_bytes(good)
    (tmp_path / "outside").write_bytes(good)
    link = tmp_path / "run" / "link"
    link.symlink_to("inside" if target == "inside" else tmp_path / target)
    assert refused_kind(link) == "a symbolic link"


@pytest.mark.parametrize("other", ["link", "pipe", "folder"])
def test_another_kind_of_file_that_takes_the_name_before_it_is_opened_is_refused(
    other, good, no_waiting, tmp_path, monkeypatch
):
    path = tmp_path / "a"
    path.write_bytes(good)
    seen = os.lstat(path)
    path.unlink()
    (tmp_path / "good").write_bytes(good)
    {"link": lambda p: p.symlink_to(tmp_path / "good"), "pipe": os.mkfifo, "folder": Path.mkdir}[other](path)
    monkeypatch.setattr(format_module.os, "lstat", lambda path: seen)
    descriptors = len(os.listdir("/dev/fd"))
    with pytest.raises((CheckpointError, OSError), match=re.escape(str(path))):
        load_checkpoint(path, TREE)
    assert len(os.listdir("/dev/fd")) == descriptors


@pytest.mark.parametrize("name", ["gone", "no folder/gone"])
def test_a_file_that_is_not_there_is_named(name, tmp_path):
    for read in (lambda: load_checkpoint(tmp_path / name, TREE), lambda: checkpoint_step(tmp_path / name)):
        with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / name))) as caught:
            read()
        assert caught.value.filename == str(tmp_path / name)


@pytest.mark.parametrize("what", ["replaced", "overwritten", "cut off", "longer"])
def test_a_file_changed_while_it_is_read_is_an_error_or_the_old_one(what, good, tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(good)
    save_checkpoint(tmp_path / "b", jax.tree.map(lambda leaf: leaf + 1, TREE), step=42)
    other = (tmp_path / "b").read_bytes()
    read_data = format_module.read_data

    def changed_first(*arguments):
        if what == "replaced":
            os.replace(tmp_path / "b", path)
        elif what == "cut off":
            os.truncate(path, len(good) - 60)
        else:
            path.write_bytes(other if what == "overwritten" else good + good)
        return read_data(*arguments)

    # Nothing of the data may have been read ahead.
    monkeypatch.setattr(format_module, "open", lambda file, mode: open(file, mode, buffering=0), raising=False)
    monkeypatch.setattr("minijaxnet.run.checkpoint.read_data", changed_first)
    if what in ("replaced", "longer"):
        assert_same_bits(load_checkpoint(path, TREE), TREE)
    else:
        text = {"overwritten": "got data with SHA-256", "cut off": "got an end while it was read"}[what]
        with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: {text}"):
            load_checkpoint(path, TREE)


def test_a_failing_disk_is_named(good, tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(good)

    def fails(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("minijaxnet.run.checkpoint.read_header", fails)
    with pytest.raises(OSError, match=f"checkpoint not read: .*{re.escape(str(tmp_path / 'a'))}") as caught:
        load_checkpoint(tmp_path / "a", TREE)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(tmp_path / "a"))


# --- Writing ---------------------------------------------------------------------------------------------------------


def test_the_disk_has_the_data_before_the_name_and_the_name_before_it_returns(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor):
        [file] = tmp_path.iterdir()
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        done.append(("folder" if is_folder else "file", file.name == "a", file.read_bytes()))
        fsync(descriptor)

    def recorded_replace(part, path):
        done.append("rename")
        replace(part, path)

    monkeypatch.setattr(format_module.os, "fsync", recorded_fsync)
    monkeypatch.setattr(format_module.os, "replace", recorded_replace)
    save_checkpoint(tmp_path / "a", TREE, step=1)
    content = (tmp_path / "a").read_bytes()
    assert done == [("file", False, content), "rename", ("folder", True, content)]


def test_where_fsync_is_not_enough_the_drive_is_flushed_too(tmp_path, monkeypatch):
    import fcntl

    asked = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda descriptor, command: asked.append(command))
    monkeypatch.setattr(format_module.os, "fsync", lambda descriptor: pytest.fail("fsync keeps the drive's cache back"))
    save_checkpoint(tmp_path / "a", TREE, step=1)
    assert asked == [51, 51]


def test_where_the_drive_cannot_be_flushed_fsync_is(tmp_path, monkeypatch):
    import fcntl

    def unsupported(descriptor, command):
        raise OSError(errno.ENOTSUP, "not supported")

    synced = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", unsupported)
    monkeypatch.setattr(format_module.os, "fsync", synced.append)
    save_checkpoint(tmp_path / "a", TREE, step=1)
    assert len(synced) == 2


def test_a_folder_that_has_nothing_to_flush_is_no_failure(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(descriptor, number=errno.EINVAL):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(format_module.os, "fsync", fsync)
    save_checkpoint(tmp_path / "a", TREE, step=1)
    monkeypatch.setattr(format_module.os, "fsync", lambda descriptor: fsync(descriptor, errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        save_checkpoint(tmp_path / "a", TREE, step=2)
    assert checkpoint_step(tmp_path / "a") == 2


FAILURES = {
    "open": OSError(errno.EACCES, "Permission denied"),
    "fsync": OSError(errno.EIO, "Input/output error"),
    "replace": OSError(errno.EPERM, "Operation not permitted"),
    "interrupt": KeyboardInterrupt(),
}


@pytest.mark.parametrize("before", [True, False], ids=["over an older one", "the first"])
@pytest.mark.parametrize("name", FAILURES)
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(name, before, good, tmp_path, monkeypatch):
    path, error = tmp_path / "a", FAILURES[name]
    if before:
        path.write_bytes(good)

    def fails(*arguments):
        raise error

    room = format_module.Path if name == "open" else format_module.os
    monkeypatch.setattr(room, "fsync" if name == "interrupt" else name, fails)
    with pytest.raises(type(error)) as caught:
        save_checkpoint(path, [np.ones(1000)], step=2)
    monkeypatch.undo()
    if name != "interrupt":
        assert caught.value.errno == error.errno
        assert caught.value.filename == str(path)
        assert "checkpoint not written: " in str(caught.value)
    assert [found.name for found in tmp_path.iterdir()] == (["a"] if before else [])
    assert not before or path.read_bytes() == good


def test_a_leaf_that_fails_when_its_data_is_asked_for_leaves_nothing(good, tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(good)

    def fails(leaf):
        raise RuntimeError("a device was lost")

    monkeypatch.setattr("minijaxnet.run.checkpoint._bytes", fails)
    with pytest.raises(RuntimeError, match="a device was lost"):
        save_checkpoint(tmp_path / "a", TREE, step=2)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == good


def test_a_folder_that_is_not_there_or_a_folder_in_place_of_the_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"checkpoint not written: .*{re.escape(str(tmp_path / 'no' / 'a'))}"):
        save_checkpoint(tmp_path / "no" / "a", TREE, step=1)
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError, match=f"checkpoint not written: .*{re.escape(str(tmp_path / 'a'))}"):
        save_checkpoint(tmp_path / "a", TREE, step=1)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_read_only_folder_is_named():
    code = """
    import os, tempfile
    from minijaxnet.run import save_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        root = os.geteuid() == 0  # who may write anywhere
        if root:
            os.seteuid(65534)
        try:
            save_checkpoint(f"{folder}/a", 1.0, step=1)
        except PermissionError as error:
            assert "checkpoint not written: Permission denied" in str(error) and f"{folder}/a" in str(error), error
        else:
            raise AssertionError("it was written")
        finally:
            if root:
                os.seteuid(0)
            os.chmod(folder, 0o700)
        assert not os.listdir(folder)
    """
    run_python(code)


def test_a_link_is_replaced_and_what_it_points_to_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run" / "a").symlink_to(tmp_path / "precious")
    save_checkpoint(tmp_path / "run" / "a", TREE, step=1)
    assert (tmp_path / "precious").read_text() == "mine"
    assert checkpoint_step(tmp_path / "run" / "a") == 1


def test_others_may_read_it_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        save_checkpoint(tmp_path / "a", TREE, step=1)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_relative_path_and_one_of_text_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint("a.safetensors", TREE, step=1)
    assert_same_bits(load_checkpoint("a.safetensors", TREE), TREE)


def test_a_disk_that_is_full_at_any_write(tmp_path):
    """A child process may write files of so many bytes and no more: for each limit up to the whole."""
    code = """
    import errno, os, resource, sys
    from pathlib import Path
    import numpy as np
    from minijaxnet.run import checkpoint_step, load_checkpoint, save_checkpoint

    folder = Path(sys.argv[1])
    path = folder / "a.safetensors"
    small, large = {"a": np.ones(4)}, {"a": np.ones(300_000), "b": np.ones(5)}
    save_checkpoint(folder / "whole", large, step=2)
    whole = os.path.getsize(folder / "whole")
    (folder / "whole").unlink()
    save_checkpoint(path, small, step=1)
    before = path.read_bytes()
    limits = [0, 1, 7, 8, 100, 500, 4096, 8191, 8192, 65536, 1 << 20, (1 << 20) + 700, 2 << 20, whole - 41, whole - 1]
    for limit in [*limits, *range(9, whole, whole // 40)]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            save_checkpoint(path, large, step=2)
        except OSError as error:
            assert error.errno == errno.EFBIG and error.filename == str(path), error
            assert "checkpoint not written: File too large" in str(error), error
        else:
            raise AssertionError(f"{limit} bytes were enough")
        assert os.listdir(folder) == ["a.safetensors"], os.listdir(folder)
        assert path.read_bytes() == before
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole, resource.RLIM_INFINITY))
    save_checkpoint(path, large, step=2)
    assert checkpoint_step(path) == 2
    """
    run_python(code, tmp_path)


def test_killed_at_any_moment_the_newest_is_whole_and_one_that_was_completed(tmp_path):
    """A process saves one after the other, tells when each is done, and is killed; twenty times."""
    code = """
    import os, random, signal, sys, time
    from pathlib import Path
    import numpy as np
    from minijaxnet.run.checkpoint_folder import checkpoint_path, checkpoints, keep_newest, load_latest
    from minijaxnet.run.checkpoint import save_checkpoint

    def tree(step):
        return {"a": np.full(1 << 18, step), "b": [np.full(7, step, np.float32)]}

    def save_for_ever(folder, first, done):
        for step in range(first, 1 << 30):
            save_checkpoint(checkpoint_path(folder, step), tree(step), step=step)
            os.write(done, b"%d\\n" % step)
            keep_newest(folder, 3)

    folder, draw, newest, kills, unfinished = Path(sys.argv[1]), random.Random(0), -1, 0, 0
    # The moment is drawn within one save of however long; at least one of the kills shall hit a write.
    began = time.monotonic()
    save_checkpoint(folder / "probe", tree(0), step=0)
    duration = time.monotonic() - began
    while kills < 20 or (not unfinished and kills < 500):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                save_for_ever(folder, newest + 1, writer)
            finally:
                os._exit(1)
        os.close(writer)
        with open(reader, "rb") as told:
            completed = [int(told.readline()) for _ in range(draw.randrange(4))]
            time.sleep(draw.uniform(0, duration))
            os.kill(child, signal.SIGKILL)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
            completed += [int(line) for line in told.read().split()]
        kills += 1
        last = completed[-1] if completed else newest
        unfinished += len(list(folder.glob(".*.part")))
        found = load_latest(folder, tree(0))
        if found is None:
            assert last == -1
            continue
        # The one under way may have got its name before anybody was told.
        assert found.step in (last, last + 1) and found.skipped == [], (found.step, last, found.skipped)
        assert (found.tree["a"] == found.step).all() and (found.tree["b"][0] == found.step).all()
        newest = found.step
    assert newest > 0 and unfinished, (newest, unfinished)
    keep_newest(folder, 3)  # kills between a save and this left more
    assert [step for step, _ in checkpoints(folder)][:1] == [newest] and len(checkpoints(folder)) == min(3, newest + 1)
    """
    run_python(code, tmp_path)
