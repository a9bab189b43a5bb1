"""Tar shards: written with the same bytes for the same samples, read as far as they are sound."""

from __future__ import annotations

import io
import json
import mmap
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unclip.errors import UserError
from unclip.files import atomic_path

Sample = dict[str, bytes]  # extension -> content
_BLOCK = tarfile.BLOCKSIZE
_LONGEST_KEY = 90  # a tar header has room for 100 bytes, extension included


@dataclass(frozen=True)
class Member:
    """Where one file of a tar lies."""

    key: str
    extension: str
    offset: int
    size: int


def write_tar(path: Path, samples: Iterable[tuple[str, Sample]]) -> None:
    """Write (key, {extension: bytes}) as webdataset does, whole or not at all, with nothing of time or user in it.

    Raises:
        UserError: a key with a dot or a slash (what follows would be read as the extension), or a long one.
    """
    with atomic_path(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, files in samples:
            if not key or "." in key or "/" in key or len(key.encode()) > _LONGEST_KEY:
                raise UserError(
                    f"the key {key!r} of a sample must be 1 to {_LONGEST_KEY} bytes without dots and slashes; "
                    "name it otherwise"
                )
            for extension in sorted(files):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(files[extension])
                info.mode = 0o644
                tar.addfile(info, io.BytesIO(files[extension]))


def scan_tar(path: Path) -> tuple[list[Member], int]:
    """(files in the tar, places of damage). A bad header or a cut-off end costs what it hits, not the whole shard.

    Python's tarfile ends silently at the first bad header; this goes on at the next block that is a sound one.

    Raises:
        UserError: the file is missing or empty.
    """
    if not path.is_file() or path.stat().st_size == 0:
        raise UserError(
            f"expected a tar shard at {path}, found none or an empty file; build or copy it again"
        )
    members: list[Member] = []
    damage = 0
    lost = ended = False  # lost: between a bad header and the next sound one
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        offset = 0
        while offset + _BLOCK <= len(data) and not ended:
            block = data[offset : offset + _BLOCK]
            offset += _BLOCK
            if not lost and block.count(0) == _BLOCK:
                ended = True
                continue
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                damage += not lost
                lost = True
                continue
            lost = False
            if info.isreg():
                if offset + info.size > len(data):
                    break
                key, _, extension = Path(info.name).name.partition(".")
                members.append(Member(key, extension, offset, info.size))
            offset += -(-info.size // _BLOCK) * _BLOCK
    return members, damage + (not ended and not lost)


def read_tar(path: Path) -> Iterator[tuple[str, Sample]]:
    """Samples of one sound tar in order; consecutive files with the same key make a sample.

    Raises:
        UserError: the tar is damaged.
    """
    members, damage = scan_tar(path)
    if damage:
        raise UserError(f"{path} is damaged; delete it and run the same command again")
    key: str | None = None
    files: Sample = {}
    with path.open("rb") as stream:
        for member in members:
            if key is not None and member.key != key:
                yield key, files
                files = {}
            key = member.key
            stream.seek(member.offset)
            files[member.extension] = stream.read(member.size)
    if key is not None:
        yield key, files


def to_json(record: Any) -> bytes:
    """Compact UTF-8 JSON with sorted keys: the same record gives the same bytes."""
    return json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
