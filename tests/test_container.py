"""The artifact file: the same sections give the same bytes, and nothing else is read back."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest

from graphc import container
from graphc.errors import ArtifactError

CONTENTS = {name: bytes([index]) * (37 * index) for index, name in enumerate(container.SECTIONS)}
PACKED = container.pack(CONTENTS)
ENTRIES = 48  # where the section table starts


def rehashed(data: bytes) -> memoryview:
    """The same content with a hash that matches it."""
    digest = hashlib.sha256(data[:16] + data[48:]).digest()
    return memoryview(data[:16] + digest + data[48:])


def patched(offset: int, content: bytes) -> memoryview:
    return rehashed(PACKED[:offset] + content + PACKED[offset + len(content) :])


def test_round_trip() -> None:
    assert {name: bytes(content) for name, content in container.unpack(memoryview(PACKED)).items()} == CONTENTS


def test_coded_weights_take_the_place_of_the_others() -> None:
    coded = {name: CONTENTS.get(name, b"coded") for name in container.CODED_SECTIONS}
    assert {name: bytes(part) for name, part in container.unpack(memoryview(container.pack(coded))).items()} == coded
    with pytest.raises(ArtifactError, match="an artifact has the sections code, weights"):
        container.pack(coded | {"weights": b""})


def test_same_sections_give_same_bytes() -> None:
    assert container.pack(dict(reversed(CONTENTS.items()))) == PACKED


def test_sections_are_aligned() -> None:
    for index in range(len(CONTENTS)):
        _, offset, _ = struct.unpack_from("<16sQQ", PACKED, ENTRIES + 32 * index)
        assert offset % 64 == 0


def test_content_hash_is_sha256_of_everything_else() -> None:
    assert container.content_hash(memoryview(PACKED)) == hashlib.sha256(PACKED[:16] + PACKED[48:]).hexdigest()


def test_pack_wants_all_sections() -> None:
    with pytest.raises(ArtifactError, match="got code, weights"):
        container.pack({"code": b"", "weights": b""})


def test_every_truncation_is_found() -> None:
    for length in range(len(PACKED)):
        with pytest.raises(ArtifactError, match="cut off"):
            container.unpack(memoryview(PACKED[:length]))


def test_every_changed_byte_is_found() -> None:
    for position in range(len(PACKED)):
        changed = bytearray(PACKED)
        changed[position] ^= 0x10
        with pytest.raises(ArtifactError):
            container.unpack(memoryview(changed))


def test_appended_bytes_are_found() -> None:
    with pytest.raises(ArtifactError, match="hash"):
        container.unpack(memoryview(PACKED + b"\0"))
    with pytest.raises(ArtifactError, match="outside"):
        container.unpack(rehashed(PACKED + b"\0"))


def test_other_version() -> None:
    with pytest.raises(ArtifactError, match="format version 2, this graphc reads 1: compile the model again"):
        container.unpack(patched(8, struct.pack("<I", 2)))


def test_unknown_section() -> None:
    with pytest.raises(ArtifactError, match="this one has code, secrets, plan"):
        container.unpack(patched(ENTRIES + 32, b"secrets".ljust(16, b"\0")))


@pytest.mark.parametrize("count", [0, 5, 7, 0xFFFFFFFF])
def test_wrong_number_of_sections(count: int) -> None:
    with pytest.raises(ArtifactError, match="section"):
        container.unpack(patched(12, struct.pack("<I", count)))


@pytest.mark.parametrize("offset", [0, 64, 1 << 62])
@pytest.mark.parametrize("size", [37, 0, (1 << 64) - 1])
def test_section_elsewhere(offset: int, size: int) -> None:
    with pytest.raises(ArtifactError, match="outside"):
        container.unpack(patched(ENTRIES + 32 + 16, struct.pack("<QQ", offset, size)))


def test_file_round_trip(tmp_path: Path) -> None:
    container.write(tmp_path / "model.graphc", PACKED)
    assert bytes(container.read(tmp_path / "model.graphc")) == PACKED
    assert [path.name for path in tmp_path.iterdir()] == ["model.graphc"]


def test_write_into_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot write the artifact .*nowhere"):
        container.write(tmp_path / "nowhere" / "model.graphc", PACKED)


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.graphc"
    container.write(path, b"old")

    def full_disk(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(ArtifactError, match="disk full"):
        container.write(path, PACKED)
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["model.graphc"]


@pytest.mark.parametrize("content", [None, b""])
def test_read_of_nothing(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.graphc"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match="cannot read the artifact"):
        container.read(path)
