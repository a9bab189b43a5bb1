"""Made-up artworks: a few objects, people and colours in three styles, drawn as simple shapes."""

from __future__ import annotations

from pathlib import Path

import pytest

from unclip.data.artworks import Artwork
from unclip.data.concepts import Concept, describe
from unclip.data.sources import SOURCES
from unclip.data.splits import Pick

FIXTURE = Path(__file__).parents[1] / "fixtures" / "emoji-fixture.tar"
COLOURS = {
    "red": "#e33",
    "orange": "#f83",
    "yellow": "#fd3",
    "green": "#3b4",
    "blue": "#36e",
    "purple": "#83c",
}
TONES = {"light": "#fdc", "medium-light": "#eb9", "medium": "#c96", "medium-dark": "#964", "dark": "#532"}
STYLES = ("noto", "twemoji", "flat", "glossy", "blob")


def concepts() -> list[tuple[Concept, str]]:
    """(concept, fill): 40 objects, hearts and circles in six colours, eight roles in five tones and two genders."""
    found = [(describe(f"thing {i:02d}", "objects", "tool"), f"hsl({i * 9},80%,50%)") for i in range(40)]
    for thing in ("heart", "circle"):
        found += [
            (describe(f"{name} {thing}", "symbols", "geometric"), fill) for name, fill in COLOURS.items()
        ]
    for role in ("singer", "cook", "pilot", "judge", "farmer", "artist", "guard", "ninja"):
        for gender in ("man", "woman"):
            for tone, fill in TONES.items():
                found.append(
                    (describe(f"{gender} {role}: {tone} skin tone", "people-body", "person-role"), fill)
                )
    return found


def make_artworks() -> list[Artwork]:
    """Every concept in every style; no two pictures alike."""
    made = []
    for number, (concept, fill) in enumerate(concepts()):
        for row, style in enumerate(STYLES):
            x, y, side = 4 + number % 12 * 7, 4 + number // 12 * 7, 20 + 6 * row
            svg = (
                '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 128 128">'
                f'<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="{fill}"/></svg>'
            )
            source = SOURCES[style]
            made.append(Artwork(key=f"{style}_{number:03d}", concept=concept, source=source, svg=svg))
    return made


@pytest.fixture(scope="session")
def artworks() -> list[Artwork]:
    return make_artworks()


@pytest.fixture(scope="session")
def picks(artworks: list[Artwork]) -> list[Pick]:
    return [Pick(artwork.concept, artwork.source.family) for artwork in artworks]


@pytest.fixture(scope="session")
def fixture_path() -> Path:
    return FIXTURE
