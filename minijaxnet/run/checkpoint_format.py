"""The file format of a checkpoint: a safetensors file with checksums.

One checksum covers the header, which contains the checksum of the data. So a damaged header is found before any data is
read, and memory is allocated only for the sizes of a valid header that the reader expects.

A header is valid only if it equals, byte for byte, the output of ``encode``. This refuses everything that a JSON parser
would accept: duplicate names, 8.0 for 8, spaces, a step "007".
"""

import contextlib
import hashlib
import io
import json
import math
import os
import re
import secrets
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from minijaxnet._files import NotAFile, naming, open_own, replacing

FORMAT, VERSION = "minijaxnet.checkpoint", "1"
# The longest header that is written or read: about 100,000 leaves, which are parsed within seconds.
MOST_HEADER_BYTES = 1 << 24
# Steps have at most 18 digits, also in names of files.
MOST_STEPS = 10**18
# The name of a temporary file: of a save that is running, or that was killed.
UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.part")

_CHUNK = 1 << 20  # small enough to stay in the cache while it is hashed and written
_NO_DIGEST = 64 * "0"
_LARGEST_RANK = 64
_ITEM_BYTES: dict[str, int] = (
    {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1}
    | {"U16": 2, "I16": 2, "F16": 2, "BF16": 2}
    | {"U32": 4, "I32": 4, "F32": 4}
    | {"U64": 8, "I64": 8, "F64": 8}
)


class CheckpointError(ValueError):
    """An error: a checkpoint is damaged, is not a checkpoint, or has another tree. The text names the file."""


class Stored(NamedTuple):
    """How an array is stored: the format's code for its dtype, and its shape in the file."""

    code: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return math.prod(self.shape) * _ITEM_BYTES[self.code]


class Header(NamedTuple):
    """The content of a file before its data.

    Attributes:
        step: the step at which it was saved.
        kinds: for each node of the tree, by name: the dtype of a leaf, or the type of a container.
        arrays: how each leaf is stored, in the order of the data, without gaps.
        data_sha256: of all data, 64 hexadecimal digits.
        rows_sha256: of the rows that were logged before the step; empty if there are none.
        read: how many batches of a stream had been read; 0 if the data is not a stream.
    """

    step: int
    kinds: dict[str, str]
    arrays: dict[str, Stored]
    data_sha256: str = _NO_DIGEST
    rows_sha256: str = ""
    read: int = 0

    @property
    def data_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())


def encode(header: Header) -> bytes:
    """The bytes of the file before the data. Their number does not depend on the checksums.

    Source: the safetensors format: the length of the JSON, 8 bytes with the lowest first; the JSON; then the data.
    """
    return _encode(header, hashlib.sha256(_encode(header, _NO_DIGEST)).hexdigest())


def _encode(header: Header, header_sha256: str) -> bytes:
    content: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT,
            "version": VERSION,
            "step": str(header.step),
            "header_sha256": header_sha256,
            "data_sha256": header.data_sha256,
            **({"rows_sha256": header.rows_sha256} if header.rows_sha256 else {}),
            **({"read": str(header.read)} if header.read else {}),
            **header.kinds,
        }
    }
    begin = 0
    for name, array in header.arrays.items():
        end = begin + array.nbytes
        content[name] = {"dtype": array.code, "shape": array.shape, "data_offsets": (begin, end)}
        begin = end
    text = json.dumps(content, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)  # aligns the data, for programs that map the file into memory
    return struct.pack("<Q", len(text)) + text


def write(path: Path, header: Header, arrays: Iterable[memoryview]) -> None:
    """Write a file, and flush it to the disk; after an error the old file is unchanged.

    Args:
        path: of the file, in a folder that exists.
        header: without ``data_sha256``, which is computed while the data is written.
        arrays: the bytes of each array, in the header's order; only one at a time is in memory.

    Raises:
        OSError: the file cannot be written (a full disk, a folder that is read-only or missing); it names the path.
    """
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    with naming(path, "checkpoint not written"), replacing(path, part) as file:
        file.write(encode(header))
        digest = hashlib.sha256()
        for chunk in (array[at : at + _CHUNK] for array in arrays for at in range(0, len(array), _CHUNK)):
            digest.update(chunk)
            file.write(chunk)
        file.seek(0)
        file.write(encode(header._replace(data_sha256=digest.hexdigest())))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[io.BufferedReader, int]]:
    """Open a regular file to read; yield it and its size.

    Raises:
        CheckpointError: it is not a regular file.
        OSError: it cannot be opened; it names the path.
    """
    with naming(path, "checkpoint not read"):
        try:
            file = open(path, "rb", opener=open_own)
        except NotAFile as error:
            raise CheckpointError(str(error)) from None
        with file:
            yield file, os.fstat(file.fileno()).st_size


def read_header(path: Path, file: io.BufferedReader, size: int, most_bytes: int = MOST_HEADER_BYTES) -> Header:
    """Read and check the header.

    Args:
        path: for errors.
        file: at its start.
        size: of the file.
        most_bytes: a longer header is refused and not read.

    Raises:
        CheckpointError: the header is not an output of ``encode``, or the file is shorter or longer than it says.
    """
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if length > size - 8:
        raise CheckpointError(
            f"{path}: got {size} bytes that begin with {start!r}; expected a checkpoint (it is cut off, or is none)"
        )
    if length > most_bytes:
        raise CheckpointError(f"{path}: got a header of {length} bytes; expected at most {most_bytes}")
    text = file.read(length)
    try:
        content = json.loads(text.decode("ascii"))
    except (ValueError, RecursionError) as error:
        kind = type(error).__name__
        raise CheckpointError(f"{path}: got a header that is no JSON ({kind}: {error}); expected JSON") from None
    header = _header(path, content)
    if encode(header) != start + text:
        raise CheckpointError(
            f"{path}: got a header that differs from its SHA-256, or is written in another way; expected an "
            "unchanged checkpoint"
        )
    if size - 8 - length != header.data_bytes:
        raise CheckpointError(f"{path}: got {size - 8 - length} bytes of data; expected {header.data_bytes}")
    return header


def _header(path: Path, content: Any) -> Header:
    """Convert a parsed header. Errors that this does not check are found by the comparison with ``encode``."""
    metadata = content.pop("__metadata__", None) if isinstance(content, dict) else None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        expected = "expected a checkpoint of minijaxnet (load_params reads other safetensors files)"
        raise CheckpointError(f'{path}: got a file without "format": "{FORMAT}"; {expected}')
    if metadata.get("version") != VERSION:
        raise CheckpointError(f"{path}: got format version {metadata.get('version')!r}; expected {VERSION!r}")
    arrays, begin = {}, 0
    for name, entry in content.items():
        entry = entry if isinstance(entry, dict) else {}
        code, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if not isinstance(code, str) or code not in _ITEM_BYTES or not isinstance(shape, list) or not _is_shape(shape):
            raise CheckpointError(
                f"{path}: {name:.80}: got dtype {code!r:.50} and shape {shape!r:.50}; expected an array"
            )
        arrays[name] = Stored(code, tuple(shape))
        end = begin + arrays[name].nbytes
        if offsets != [begin, end]:
            raise CheckpointError(f"{path}: {name:.80}: got offsets {offsets!r:.50}; expected {[begin, end]}")
        begin = end
    kinds = {name: str(kind) for name, kind in metadata.items() if name.startswith("tree")}
    step, read, data_sha256 = str(metadata.get("step")), str(metadata.get("read", 0)), str(metadata.get("data_sha256"))
    for name, count in (("step", step), ("read", read)):
        if not re.fullmatch("[0-9]{1,18}", count):
            raise CheckpointError(f"{path}: got {name} {count!r:.50}; expected a count")
    if nameless := arrays.keys() - kinds.keys():
        raise CheckpointError(
            f"{path}: {min(nameless):.80}: got an array that the metadata does not name; expected its dtype"
        )
    return Header(int(step), kinds, arrays, data_sha256, str(metadata.get("rows_sha256", "")), int(read))


def _is_shape(shape: list[Any]) -> bool:
    """Whether this is a shape. The limits keep the product of the sizes fast to compute."""
    return len(shape) <= _LARGEST_RANK and all(type(size) is int and 0 <= size < 1 << 63 for size in shape)


def read_data(path: Path, file: io.BufferedReader, header: Header, into: Iterable[memoryview]) -> None:
    """Read the data into memory, and then compare its checksum.

    Args:
        path: for errors.
        file: after its header.
        header: of the file.
        into: memory for each array in turn.

    Raises:
        CheckpointError: the data differs from its SHA-256.
    """
    digest = hashlib.sha256()
    for view in (array[at : at + _CHUNK] for array in into for at in range(0, len(array), _CHUNK)):
        if file.readinto(view) != len(view):
            raise CheckpointError(f"{path}: got a file that became shorter; expected {header.data_bytes} bytes of data")
        digest.update(view)
    if digest.hexdigest() != header.data_sha256:
        raise CheckpointError(f"{path}: got data with SHA-256 {digest.hexdigest()}; expected {header.data_sha256}")


def check_data(path: Path, file: io.BufferedReader, header: Header) -> None:
    """Check the data without keeping it; raise as ``read_data`` does."""
    room = memoryview(bytearray(_CHUNK))
    sizes = (min(_CHUNK, header.data_bytes - at) for at in range(0, header.data_bytes, _CHUNK))
    read_data(path, file, header, (room[:size] for size in sizes))
