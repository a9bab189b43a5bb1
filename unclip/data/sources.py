"""Where the art comes from: pinned npm packages, fetched once, checked by hash, read from the tarball.

Each `Source` is one drawing style. Sources of one `family` share their shapes (the three Fluent sets, the two
OpenMoji sets), so a held-out (subject, style) pair is held out for the whole family.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unclip.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Package:
    """One version of an npm package; `sha256` is that of the tarball, which the registry never changes."""

    name: str
    version: str
    sha256: str

    @property
    def spec(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def filename(self) -> str:
        """The name `npm pack` gives: `@scope/name` at 1.2.3 becomes `scope-name-1.2.3.tgz`."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


@dataclass(frozen=True, kw_only=True)
class Source:
    """One style: its short word, its package, how the package is laid out, and its licence."""

    style: str
    package: Package
    layout: str  # "iconify" (one JSON of SVG bodies) or a folder of files named by code point
    licence: str
    author: str
    url: str
    family: str
    weight: float = 1.0  # of a sample when training draws by weight
    share_alike: bool = False


EMOJIBASE = Package(
    name="emojibase-data",
    version="17.0.0",
    sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
)
EMOJILIB = Package(
    name="emojilib",
    version="4.0.3",
    sha256="7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303",
)
_OPENMOJI = Package(
    name="openmoji",
    version="17.0.0",
    sha256="55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
)
# The flat set alone says which code point each Fluent icon name stands for.
FLUENT_FLAT = Package(
    name="@iconify-json/fluent-emoji-flat",
    version="1.2.6",
    sha256="7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
)

_NOTO_URL = "https://github.com/googlefonts/noto-emoji"
_FLUENT_URL = "https://github.com/microsoft/fluentui-emoji"

SOURCES: dict[str, Source] = {
    source.style: source
    for source in (
        Source(
            style="noto",
            package=Package(
                name="@iconify-json/noto",
                version="1.2.9",
                sha256="3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
            ),
            layout="iconify",
            licence="Apache-2.0",
            author="Google Inc",
            url=_NOTO_URL,
            family="noto",
        ),
        Source(
            style="3D",
            package=Package(
                name="@lobehub/fluent-emoji-3d",
                version="1.1.0",
                sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
            ),
            layout="assets/*.webp",
            licence="MIT",
            author="Microsoft Corporation; packaged by LobeHub",
            url=_FLUENT_URL,
            family="fluent",
        ),
        Source(
            style="flat",
            package=FLUENT_FLAT,
            layout="iconify",
            licence="MIT",
            author="Microsoft Corporation",
            url=_FLUENT_URL,
            family="fluent",
        ),
        Source(
            style="glossy",
            package=Package(
                name="@iconify-json/fluent-emoji",
                version="1.2.7",
                sha256="8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
            ),
            layout="iconify",
            licence="MIT",
            author="Microsoft Corporation",
            url=_FLUENT_URL,
            family="fluent",
        ),
        Source(
            style="twemoji",
            package=Package(
                name="@twemoji/svg",
                version="15.0.0",
                sha256="1d2907557a422c7c4e3feca50ef915c39da1db3d76b4a4d7e73fb59bce4403c3",
            ),
            layout="*.svg",
            licence="CC-BY-4.0",
            author="Twitter, Inc and other contributors",
            url="https://github.com/jdecked/twemoji",
            family="twemoji",
        ),
        Source(
            style="blob",
            package=Package(
                name="@iconify-json/noto-v1",
                version="1.2.5",
                sha256="2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
            ),
            layout="iconify",
            licence="Apache-2.0",
            author="Google Inc",
            url=_NOTO_URL,
            family="blob",
            weight=0.5,
        ),
        Source(
            style="emojione",
            package=Package(
                name="@iconify-json/emojione",
                version="1.2.3",
                sha256="26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
            ),
            layout="iconify",
            licence="CC-BY-4.0",
            author="Emoji One (EmojiTwo)",
            url="https://github.com/EmojiTwo/emojitwo",
            family="emojione",
            weight=0.5,
        ),
        Source(
            style="firefox",
            package=Package(
                name="@iconify-json/fxemoji",
                version="1.2.2",
                sha256="f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
            ),
            layout="iconify",
            licence="Apache-2.0",
            author="Mozilla",
            url="https://github.com/mozilla/fxemoji",
            family="firefox",
            weight=0.5,
        ),
        Source(
            style="silhouette",
            package=Package(
                name="@iconify-json/game-icons",
                version="1.2.4",
                sha256="f5758efb34d91c4f50b941f355f16ee73938625e5996fabc25171288404460a4",
            ),
            layout="iconify",
            licence="CC-BY-3.0",
            author="GameIcons (game-icons.net contributors)",
            url="https://github.com/game-icons/icons",
            family="silhouette",
            weight=0.15,
        ),
        Source(
            style="outline",
            package=_OPENMOJI,
            layout="color/svg/*.svg",
            licence="CC-BY-SA-4.0",
            author="OpenMoji contributors",
            url="https://openmoji.org",
            family="openmoji",
            share_alike=True,
        ),
        Source(
            style="line art",
            package=_OPENMOJI,
            layout="black/svg/*.svg",
            licence="CC-BY-SA-4.0",
            author="OpenMoji contributors",
            url="https://openmoji.org",
            family="openmoji",
            weight=0.5,
            share_alike=True,
        ),
    )
}

PERMISSIVE = tuple(style for style, source in SOURCES.items() if not source.share_alike)


def choose_sources(styles: list[str] | None) -> list[Source]:
    """The sources of the named styles, in the table's order; all permissive ones for None.

    Raises:
        UserError: a style that no source has.
    """
    wanted = styles or list(PERMISSIVE)
    known = {style.lower(): style for style in SOURCES}
    for style in wanted:
        if style.lower() not in known:
            raise UserError(f"unknown source {style!r}; expected some of: {', '.join(SOURCES)}")
    chosen = {known[style.lower()] for style in wanted}
    return [source for style, source in SOURCES.items() if style in chosen]


def default_cache() -> Path:
    """The folder of fetched packages: `$XDG_CACHE_HOME/unclip/npm`, else `~/.cache/unclip/npm`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unclip" / "npm"


def fetch(package: Package, cache: Path) -> Path:
    """Path of the package's tarball in `cache`, fetched with `npm pack` unless a sound copy is there.

    The copy is moved into place only after its hash is right, so an interrupted fetch leaves nothing behind.

    Raises:
        UserError: npm is missing or fails, or what it fetched has another hash than the pinned one.
    """
    target = cache / package.filename
    if target.is_file() and _sha256(target) == package.sha256:
        return target
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"npm is needed to fetch {package.spec} and is not on PATH; install Node.js (for example "
            f"`apt-get install npm`), or put {package.filename} into {cache}"
        )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as folder:
        command = [npm, "pack", package.spec, "--silent", "--pack-destination", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        fetched = Path(folder) / package.filename
        if done.returncode != 0 or not fetched.is_file():
            reason = (done.stderr or done.stdout).strip().splitlines()
            raise UserError(
                f"`npm pack {package.spec}` failed ({reason[-1] if reason else 'no message'}); "
                "check the network and npm's registry setting, then run the same command again"
            )
        digest = _sha256(fetched)
        if digest != package.sha256:
            raise UserError(
                f"{package.spec} has sha256 {digest}, expected {package.sha256}; the registry gave another "
                f"file, fetch {package.filename} from a trusted one into {cache}"
            )
        os.replace(fetched, target)
    return target


def read_json(tarball: Path, name: str) -> Any:
    """The JSON file `name` (relative to the package's root) of a fetched tarball."""
    with tarfile.open(tarball) as tar:
        member = tar.extractfile(f"package/{name}")
        assert member is not None, f"{name} is a folder in {tarball}"
        return json.load(member)


def read_jsons(tarball: Path, names: Collection[str]) -> dict[str, Any]:
    """Several JSON files of a fetched tarball, in one pass: {name: content}; a name that is not there is left out."""
    wanted = {f"package/{name}": name for name in names}
    found = {}
    with tarfile.open(tarball) as tar:
        for member in tar:
            if member.name in wanted and (stream := tar.extractfile(member)) is not None:
                found[wanted[member.name]] = json.load(stream)
    return found


def read_files(tarball: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """(stem, bytes) of each file of one folder, in name order; `pattern` is like `color/svg/*.svg`."""
    folder, _, suffix = f"package/{pattern}".rpartition("*")
    with tarfile.open(tarball) as tar:
        found = [
            member
            for member in tar.getmembers()
            if member.name.startswith(folder)
            and member.name.endswith(suffix)
            and "/" not in member.name[len(folder) :]
        ]
        # Read in archive order (a gzip stream cannot seek back cheaply), give in name order.
        files = {}
        for member in found:
            stream = tar.extractfile(member)
            assert stream is not None
            files[member.name[len(folder) : -len(suffix)]] = stream.read()
    yield from sorted(files.items())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
