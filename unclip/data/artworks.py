"""List every picture of the chosen sources, in a fixed order: key, concept, style and the drawing itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unclip.data.concepts import Concept, emoji_concepts, hexcode, icon_concept
from unclip.data.sources import EMOJIBASE, EMOJILIB, FLUENT_FLAT, Source, fetch, read_files, read_json

# Slow to render (filters) and the same shapes as the flat and the 3D set, which carry the tones.
_SKIN_VARIANT = re.compile(r"-(?:light|medium-light|medium|medium-dark|dark)(?:-skin-tone)?(?:$|-)")
_INK = "#222222"  # for icons drawn in `currentColor`


@dataclass(frozen=True, kw_only=True)
class Artwork:
    """One picture to render; exactly one of `svg` (its viewBox a square) and `webp` is there."""

    key: str
    concept: Concept
    source: Source
    svg: str | None = None
    webp: bytes | None = None


def load_concepts(cache: Path) -> dict[str, Concept]:
    """The emoji table by code point; fetches its two word lists when they are not in `cache`."""
    words = fetch(EMOJIBASE, cache)
    return emoji_concepts(
        read_json(words, "en/data.json"),
        read_json(words, "en/messages.json"),
        read_json(fetch(EMOJILIB, cache), "dist/emoji-en-US.json"),
    )


def list_artworks(sources: list[Source], cache: Path) -> list[Artwork]:
    """All artworks of the sources, one per (style, emoji), sorted by key."""
    concepts = load_concepts(cache)
    found: dict[str, Artwork] = {}
    for source in sources:
        for artwork in _of_source(source, concepts, cache):
            found.setdefault(artwork.key, artwork)
    return [found[key] for key in sorted(found)]


def _of_source(source: Source, concepts: dict[str, Concept], cache: Path) -> Iterator[Artwork]:
    if source.layout == "iconify":
        yield from _iconify(source, concepts, cache)
        return
    for stem, data in read_files(fetch(source.package, cache), source.layout):
        concept = concepts.get(hexcode(stem))
        if concept is None or (source.style == "line art" and concept.tone is not None):
            continue  # not an emoji of Unicode, or a tone, which vanishes in line art
        key = _key(source, hexcode(stem))
        if source.layout.endswith(".webp"):
            yield Artwork(key=key, concept=concept, source=source, webp=data)
        else:
            yield Artwork(key=key, concept=concept, source=source, svg=_minify(data.decode("utf-8")))


def _iconify(source: Source, concepts: dict[str, Concept], cache: Path) -> Iterator[Artwork]:
    icons = read_json(fetch(source.package, cache), "icons.json")
    codes = _codes_by_name(source, concepts, cache)
    names: dict[str, list[str]] = {name: [name] for name in icons["icons"]}
    for alias, target in icons.get("aliases", {}).items():
        if set(target) == {"parent"} and target["parent"] in names:  # a second name, not a flipped drawing
            names[target["parent"]].append(alias)
    for name, icon in sorted(icons["icons"].items()):
        if icon.get("hidden") or (source.style == "glossy" and _SKIN_VARIANT.search(name)):
            continue
        code = next((codes[_squash(alias)] for alias in names[name] if _squash(alias) in codes), None)
        if source.style == "silhouette":
            if re.search(r"\d", name):
                continue
            spoken = name.replace("-", " ")
            concept = concepts[code] if code and _squash(concepts[code].label) == _squash(name) else None
            key, concept = _key(source, name), concept or icon_concept(spoken)
        elif code:
            key, concept = _key(source, code), concepts[code]
        else:
            continue
        yield Artwork(key=key, concept=concept, source=source, svg=_square_svg(icon, icons))


def _codes_by_name(source: Source, concepts: dict[str, Concept], cache: Path) -> dict[str, str]:
    """Squashed icon name -> code point: by the package's own table where it has one, else by the emoji's name."""
    codes: dict[str, str] = {}
    if source.package.name.startswith(("@iconify-json/fluent-emoji", "@iconify-json/noto")):
        package = FLUENT_FLAT if source.family == "fluent" else source.package
        for code, name in read_json(fetch(package, cache), "chars.json").items():
            if hexcode(code) in concepts:
                codes.setdefault(_squash(name), hexcode(code))
    for code, concept in concepts.items():
        codes.setdefault(_squash(concept.label), code)
        if concept.subject.startswith("flag of "):
            country = concept.subject.removeprefix("flag of ")
            codes.setdefault(_squash(f"flag for {country}"), code)
    return codes


def _square_svg(icon: dict[str, Any], icons: dict[str, Any]) -> str:
    """An iconify icon as an SVG document whose viewBox is the smallest square around it."""
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    side = max(width, height)
    left = icon.get("left", 0) - (side - width) / 2
    top = icon.get("top", 0) - (side - height) / 2
    body = icon["body"].replace("currentColor", _INK)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left:g} {top:g} {side:g} {side:g}">{body}</svg>'
    )


def _minify(svg: str) -> str:
    svg = re.sub(r"<\?xml.*?\?>|<!--.*?-->|<!DOCTYPE.*?>", "", svg, flags=re.S)
    return re.sub(r">\s+<", "><", svg).strip()


def _key(source: Source, name: str) -> str:
    return f"{source.style.lower().replace(' ', '-')}_{name}"


def _squash(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
