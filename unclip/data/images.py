"""The reading side: captioned pictures from shards, decoded when asked for."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
import zlib
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from unclip.data.progress import track
from unclip.data.render import resize_rgba
from unclip.data.shards import Member, scan_tar, to_json
from unclip.data.splits import SPLITS
from unclip.errors import UserError
from unclip.files import atomic_path

_FIELDS: dict[str, type | tuple[type, ...]] = {
    "key": str,
    "subject": str,
    "style": str,
    "captions": dict,
    "split": str,
    "weight": (int, float),
}


@dataclass(frozen=True)
class _Entry:
    shard: Path
    webp: Member
    svg: Member | None


class CaptionedImages:
    """Pictures with captions from webdataset shards; only their places and JSON are held in memory.

    Args:
        path: a built data set, its `shards` folder, or one `.tar`.
        split: one of train, style, tone, attribute, unseen, a list of them, or None for all.

    A sample with a damaged picture or JSON is left out and counted in `skipped`, with one warning.

    Raises:
        UserError: nothing at `path`, an unknown split, or no sample in it.
    """

    def __init__(self, path: str | Path, split: str | Sequence[str] | None = "train") -> None:
        wanted = [split] if isinstance(split, str) else list(SPLITS if split is None else split)
        for name in wanted:
            if name not in SPLITS:
                raise UserError(f"unknown split {name!r}; expected some of: {', '.join(SPLITS)}")
        self.path = Path(path)
        self.records: list[dict[str, Any]] = []
        self.skipped = 0
        self._entries: list[_Entry] = []
        for shard in _shards(self.path):
            self._load_shard(shard, set(wanted))
        if self.skipped:
            warnings.warn(f"{self.skipped} damaged samples under {path} were skipped", stacklevel=2)
        if not self.records:
            raise UserError(
                f"no sound sample of split {', '.join(wanted)} under {path}; choose another split or build"
            )
        self._settle()

    def _settle(self) -> None:
        """What follows from the records."""
        weights = np.array([record["weight"] for record in self.records], np.float64)
        self.weights = weights / weights.sum()  # [N], sums to 1
        self._thumbnails: dict[int, np.ndarray] = {}

    def only(self, split: str) -> CaptionedImages:
        """The pictures of one split, without reading the shards again.

        Raises:
            UserError: there is none.
        """
        rows = [i for i, record in enumerate(self.records) if record["split"] == split]
        if not rows:
            raise UserError(f"no picture of split {split} under {self.path}; choose another split or build")
        chosen = copy(self)
        chosen.records = [self.records[i] for i in rows]
        chosen._entries = [self._entries[i] for i in rows]
        chosen._settle()
        return chosen

    def __len__(self) -> int:
        return len(self.records)

    def rgba(self, i: int, size: int = 256) -> np.ndarray:
        """uint8 [size, size, 4] with straight alpha; resized with premultiplied alpha."""
        image = Image.open(io.BytesIO(self._read(i, self._entries[i].webp))).convert("RGBA")
        return np.asarray(resize_rgba(image, size))

    def rgb(self, i: int, size: int, background: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
        """uint8 [size, size, 3]: the picture on a plain background."""
        return on_background(self.rgba(i, size), background)

    def svg(self, i: int) -> str | None:
        """The drawing itself where the source has one; see `unclip.data.render_svg`."""
        member = self._entries[i].svg
        return None if member is None else self._read(i, member).decode("utf-8")

    def caption(self, i: int, rng: np.random.Generator) -> str:
        """One of the sample's caption forms, each as likely as the others."""
        forms = list(self.records[i]["captions"].values())
        return forms[int(rng.integers(len(forms)))]

    def captions(self, i: int) -> list[str]:
        """All distinct captions of a sample."""
        return list(dict.fromkeys(self.records[i]["captions"].values()))

    def thumbnails(self, size: int, progress: bool = False) -> np.ndarray:
        """uint8 [N, size, size, 4]: the whole set in memory; kept as `cache/*.npy` beside the shards of a build."""
        if size not in self._thumbnails:
            self._thumbnails[size] = self._load_thumbnails(size, progress)
        return self._thumbnails[size]

    def fingerprint(self) -> str:
        """A hash of all samples and their captions: changes whenever an embedding of them would."""
        digest = hashlib.sha256()
        for record in self.records:
            digest.update(to_json(record))
        return digest.hexdigest()

    def _load_thumbnails(self, size: int, progress: bool) -> np.ndarray:
        folder = None if self.path.suffix == ".tar" else _root(self.path) / "cache"
        memo = None if folder is None else folder / f"rgba{size}-{self.fingerprint()[:16]}.npy"
        shape = (len(self), size, size, 4)
        if memo is not None and memo.is_file():
            found = np.load(memo)
            if found.shape == shape:
                return found
        pictures = np.empty(shape, np.uint8)
        for i in track(range(len(self)), f"decode to {size} px", total=len(self), show=progress):
            pictures[i] = self.rgba(i, size)
        if memo is not None and os.access(_root(self.path), os.W_OK):
            with atomic_path(memo) as temporary:
                np.save(temporary, pictures)
        return pictures

    def _load_shard(self, shard: Path, wanted: set[str]) -> None:
        members, damage = scan_tar(shard)
        samples: dict[str, dict[str, Member]] = {}
        for member in members:
            samples.setdefault(member.key, {})[member.extension] = member
        broken = 0
        with shard.open("rb") as stream:
            for files in samples.values():
                record = _sound_record(stream, files)
                if record is None:
                    broken += 1
                elif record["split"] in wanted:
                    self.records.append(record)
                    self._entries.append(_Entry(shard, files["webp"], files.get("svg")))
        # A damaged header usually shows as an incomplete sample too; count each loss once.
        self.skipped += max(broken, damage)

    def _read(self, i: int, member: Member) -> bytes:
        with self._entries[i].shard.open("rb") as stream:
            return _content(stream, member)


def on_background(rgba: np.ndarray, background: ArrayLike = (255, 255, 255)) -> np.ndarray:
    """uint8 [..., H, W, 4] straight alpha on a colour or a picture [..., 3] (0..255) -> uint8 [..., H, W, 3]."""
    alpha = rgba[..., 3:].astype(np.uint16)
    mixed = rgba[..., :3] * alpha + np.asarray(background, np.uint16) * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def _root(path: Path) -> Path:
    return path.parent if path.name == "shards" else path


def _shards(path: Path) -> list[Path]:
    if path.suffix == ".tar":
        return [path]
    root = _root(path)
    # A name with a dot in front is what a killed build left of a shard.
    found = sorted(path for path in (root / "shards").glob("*.tar") if not path.name.startswith("."))
    manifest = root / "manifest.json"
    if manifest.is_file():
        try:
            names = json.loads(manifest.read_text(encoding="utf-8"))["shards"]
            listed = [root / "shards" / name for name in names]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{manifest} is damaged ({error!r}); delete it to read all shards, or build again"
            ) from error
        missing = [shard.name for shard in listed if shard not in found]
        if missing:
            raise UserError(
                f"{root} lacks {', '.join(missing)}, which its manifest lists; build it again elsewhere"
            )
    if not found:
        raise UserError(
            f"no shards at {path}; expected a folder of `unclip data build emoji --out …`, or a .tar"
        )
    return found


def _content(stream: Any, member: Member) -> bytes:
    stream.seek(member.offset)
    return stream.read(member.size)


def _sound_record(stream: Any, files: dict[str, Member]) -> dict[str, Any] | None:
    """The JSON of a sample whose picture is as it was written, else None.

    What only our own builds know has a default: the concept is the subject, and nothing else is known of it.
    """
    if "json" not in files or "webp" not in files:
        return None
    try:
        record = json.loads(_content(stream, files["json"]))
    except ValueError:
        return None
    if not isinstance(record, dict) or not _complete(record):
        return None
    picture = _content(stream, files["webp"])
    if not (zlib.crc32(picture) == record["crc32"] if "crc32" in record else _is_picture(picture)):
        return None
    return {"concept": record["subject"], "group": "", "subgroup": "", "attributes": {}} | record


def _complete(record: dict[str, Any]) -> bool:
    """Whether all that training needs is there, and at least one caption."""
    typed = all(isinstance(record.get(field), kind) for field, kind in _FIELDS.items())
    return typed and bool(record["captions"]) and all(isinstance(t, str) for t in record["captions"].values())


def _is_picture(content: bytes) -> bool:
    try:
        Image.open(io.BytesIO(content)).load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return True
