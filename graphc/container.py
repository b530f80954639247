"""The artifact file: named sections behind a hash.

Little endian; graphc/runtime/graphc.c reads the same:

  0   8 bytes   magic "\\x89GRAPHC\\n"
  8   u32       format version
  12  u32       number of sections
  16  32 bytes  sha256 of bytes [0, 16) and [48, end)
  48  per section: name (16 bytes, zero padded), u64 offset, u64 size
  ..  the sections, each at a multiple of 64, zeros between

The same sections give the same bytes, and only those bytes are read back.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path

from graphc.errors import ArtifactError

MAGIC = b"\x89GRAPHC\n"
FORMAT_VERSION = 1
# code: ELF shared object; weights: packed tensors; plan, report, manifest: JSON; graph: IR text.
SECTIONS = ("code", "weights", "plan", "graph", "report", "manifest")
# coded_weights: the packed tensors by graphc.entropy.
CODED_SECTIONS = tuple("coded_weights" if name == "weights" else name for name in SECTIONS)

_HEADER = struct.Struct("<8sII32s")
_ENTRY = struct.Struct("<16sQQ")
_ALIGNMENT = 64


def pack(sections: Mapping[str, bytes]) -> bytes:
    """The file of these sections; all of SECTIONS or of CODED_SECTIONS must be given."""
    order = next((names for names in (SECTIONS, CODED_SECTIONS) if set(sections) == set(names)), None)
    if order is None:
        raise ArtifactError(f"an artifact has the sections {', '.join(SECTIONS)}; got {', '.join(sections)}")
    offsets, end = _layout([len(sections[name]) for name in order])
    data = bytearray(end)
    _HEADER.pack_into(data, 0, MAGIC, FORMAT_VERSION, len(order), bytes(32))
    for index, (name, offset) in enumerate(zip(order, offsets, strict=True)):
        content = sections[name]
        _ENTRY.pack_into(data, _HEADER.size + index * _ENTRY.size, name.encode(), offset, len(content))
        data[offset : offset + len(content)] = content
    data[16:48] = _digest(memoryview(data))
    return bytes(data)


def unpack(data: memoryview) -> dict[str, memoryview]:
    """The sections of a file, in place. Raises ArtifactError where it is not exactly what `pack` writes."""
    if len(data) < _HEADER.size or bytes(data[:8]) != MAGIC:
        raise ArtifactError("not a graphc artifact, or cut off in its first bytes")
    _, version, count, digest = _HEADER.unpack_from(data)
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"the artifact has format version {version}, this graphc reads {FORMAT_VERSION}: compile the model again"
        )
    if _digest(data) != digest:
        raise ArtifactError("the artifact is cut off or was changed: its content does not match its hash")
    if count > (len(data) - _HEADER.size) // _ENTRY.size:
        raise ArtifactError("the artifact's section table is longer than the file")
    entries = [_ENTRY.unpack_from(data, _HEADER.size + index * _ENTRY.size) for index in range(count)]
    names = tuple(name.rstrip(b"\0").decode(errors="replace") for name, _, _ in entries)
    if names not in (SECTIONS, CODED_SECTIONS):
        raise ArtifactError(f"an artifact has the sections {', '.join(SECTIONS)}; this one has {', '.join(names)}")
    sizes = [size for _, _, size in entries]
    offsets, end = _layout(sizes)
    if offsets != [offset for _, offset, _ in entries] or end != len(data):
        raise ArtifactError("the artifact's sections overlap, or lie outside of the file")
    return {name: data[start : start + size] for name, start, size in zip(names, offsets, sizes, strict=True)}


def content_hash(data: memoryview) -> str:
    """The hash that a packed file carries, in hexadecimal."""
    return bytes(data[16:48]).hex()


def read(path: str | os.PathLike[str]) -> memoryview:
    """A file's content, mapped into memory. Raises ArtifactError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise ArtifactError(f"cannot read the artifact '{os.fspath(path)}': {error}") from None


def write(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write beside, then rename: whoever reads `path` sees the old content or the new, never a part."""
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        try:
            beside.write_bytes(data)
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise ArtifactError(f"cannot write the artifact '{target}': {error}") from None


def _layout(sizes: list[int]) -> tuple[list[int], int]:
    """Offset of each section, and the file's size."""
    offsets, end = [], _HEADER.size + len(sizes) * _ENTRY.size
    for size in sizes:
        offsets.append(-(-end // _ALIGNMENT) * _ALIGNMENT)
        end = offsets[-1] + size
    return offsets, end


def _digest(data: memoryview) -> bytes:
    digest = hashlib.sha256(data[:16])
    digest.update(data[48:])
    return digest.digest()
