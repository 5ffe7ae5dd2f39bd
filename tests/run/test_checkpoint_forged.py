"""Headers that we would not write are refused, though their checksums are right."""

import hashlib
import json
import re
import struct

import pytest
from kits.checkpoints import TREE, good_file, parts

from minijaxnet.run import CheckpointError, checkpoint_step, load_checkpoint

ZEROS = 64 * "0"


@pytest.fixture(scope="module")
def good():
    return good_file()


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
OURS = "got a header that differs from its SHA-256, or is written in another way"
NO_ARRAY = r"tree\['weights'\]: got dtype .* and shape .*; expected an array"
FORGED = {
    "a shape of 10^12 elements": (array(shape=[10**12]), r"got offsets \[30, 78\]; expected \[30, 40{10}30\]"),
    "a size beyond 64 bits": (array(shape=[10**4000]), NO_ARRAY),
    "a negative size": (array(shape=[-3, -4]), r"got dtype 'F32' and shape \[-3, -4\]; expected an array"),
    "a size of true": (array(shape=[True, 12]), NO_ARRAY),
    "a dtype that is a list": (array(dtype=["F32"]), NO_ARRAY),
    "a hole": (array(data_offsets=[38, 86]), r"got offsets \[38, 86\]; expected \[30, 78\]"),
    "negative offsets": (array(data_offsets=[-30, 18]), r"got offsets \[-30, 18\]; expected"),
    "float offsets": (array(data_offsets=[30.0, 78.0]), OURS),
    "offsets of text": (array(data_offsets="30"), "got offsets '30'; expected"),
    "an array twice": (lambda content: dumped(content)[:-1] + f',"{W}":'.encode() + dumped(content[W]) + b"}", OURS),
    "a step twice": (text(b'"step":"41"', b'"step":"40","step":"41"'), OURS),
    "spaces at the end": (lambda content: dumped(content) + b" " * 16, OURS),
    "another order": (lambda content: dumped(dict(reversed(content.items()))), "got offsets .*; expected"),
    "a name in escapes": (text(b"weights", b"w\\u0065ights"), OURS),
    "a step that is no text": (metadata(step=41), OURS),
    "a step in other digits": (metadata(step="٤١"), "got step '٤١'; expected a count"),
    "a step of NaN": (metadata(step=float("nan")), "got step 'nan'; expected a count"),
    "a step of 5,000 digits": (metadata(step="9" * 5000), "got step '9{40,50}; expected a count"),
    "no checksum of the data": (without(META, "data_sha256"), OURS),
    "another checksum of the data": (
        metadata(data_sha256=64 * "A"),
        "got data with SHA-256 [0-9a-f]{64}; expected A{64}",
    ),
    "a leaf without a name": (without(META, W), r"tree\['weights'\]: got an array that the metadata does not name"),
    "another kind": (metadata(**{W: "int32"}), r"tree\['weights'\]: got int32\[3,4\]; expected float32\[3,4\]"),
    "more metadata": (metadata(author="me"), OURS),
    "another version": (metadata(version="2"), "got format version '2'; expected '1'"),
    "another format": (metadata(format="pt"), "expected a checkpoint of minijaxnet"),
    "no metadata": (without(None, META), "expected a checkpoint of minijaxnet"),
    "metadata that is a list": (lambda content: content.update({META: []}), "expected a checkpoint of minijaxnet"),
    "a number": (lambda _: b"7", "expected a checkpoint of minijaxnet"),
    "nothing": (lambda _: b"", "got a header that is no JSON"),
    "lists in lists": (lambda _: b"[" * 100_000, "got a header that is no JSON .RecursionError"),
    "a number of 100,000 digits": (lambda _: b"9" * 100_000, "got a header that is no JSON"),
    "no UTF-8": (text(b"weights", b"w\xff\xfeghts"), "no JSON .UnicodeDecodeError"),
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
