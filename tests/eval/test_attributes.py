"""Colours by name, and skin tones by how a style paints them."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest

from unclip.eval.attributes import COLOURS, TONES, SkinTones, asked_colour, asked_tone, colour_of

RGB = {
    "black": (20, 20, 25), "brown": (121, 85, 61), "pink": (250, 150, 190), "red": (221, 46, 68),
    "orange": (244, 144, 12), "yellow": (253, 203, 88), "green": (120, 177, 89), "blue": (85, 172, 238),
    "purple": (170, 142, 214),
}  # fmt: skip


def disc(colour: tuple[int, int, int], radius: float = 0.8, side: int = 96) -> np.ndarray:
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    picture = np.full((side, side, 3), 255, np.uint8)
    picture[x**2 + y**2 < radius**2] = colour
    return picture


@pytest.mark.parametrize("name", RGB)
def test_the_colour_of_a_disc(name: str) -> None:
    assert set(RGB) == set(COLOURS)
    assert colour_of(disc(RGB[name])) == name


def test_the_colour_is_that_of_most_of_the_object() -> None:
    picture = disc(RGB["blue"])
    picture[:30] = disc(RGB["red"])[:30]
    assert colour_of(picture) == "blue"
    picture[:60] = disc(RGB["red"])[:60]
    assert colour_of(picture) == "red"
    assert colour_of(np.full((64, 64, 3), 255, np.uint8)) is None
    assert colour_of(disc((200, 200, 200))) is None  # grey is no hue
    assert colour_of(disc(RGB["red"], radius=0.05)) is None  # a speck


def test_what_is_asked() -> None:
    assert asked_colour({"attributes": {"colour": "light blue"}}) == "blue"
    assert asked_colour({"attributes": {"colour": "white"}}) is None  # as the background
    assert asked_colour({"attributes": {}}) is None
    assert asked_tone({"attributes": {"tone": "medium-dark"}}) == "medium-dark"
    assert asked_tone({"attributes": {"tone": "dark and light"}}) is None


class People:
    """Three roles in two styles and five tones: a round face over a body whose clothes are the role's."""

    PAINTS: ClassVar = {
        "flat": [(255, 220, 190), (230, 190, 150), (190, 140, 110), (150, 100, 70), (90, 60, 50)],
        "noto": [(250, 200, 180), (220, 170, 140), (180, 130, 100), (130, 90, 60), (80, 50, 40)],
    }
    CLOTHES: ClassVar = [(40, 80, 200), (30, 160, 60), (200, 40, 60)]

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = [
            {"style": style, "role": f"role {role}", "split": "train", "attributes": {"tone": tone}}
            for style in self.PAINTS
            for role in range(3)
            for tone in TONES
        ]

    def __len__(self) -> int:
        return len(self.records)

    def rgb(self, i: int, size: int) -> np.ndarray:
        style, role, tone = list(self.PAINTS)[i // 15], i // 5 % 3, i % 5
        picture = disc(self.PAINTS[style][tone], 0.5, size)
        picture[size * 3 // 4 :] = self.CLOTHES[role]
        return picture

    def fingerprint(self) -> str:
        return "people"


def test_skin_is_what_differs_between_tones() -> None:
    people = People()
    people.records[10]["split"] = "tone"  # a role that is not whole in training is left out
    tones = SkinTones.measure(people, progress=False)
    for style, paints in people.PAINTS.items():
        np.testing.assert_allclose(tones.paints[style] * 255, paints, atol=1)
    for i, record in enumerate(people.records):
        # Slightly off, as a generated picture would be.
        picture = np.clip(people.rgb(i, 64).astype(int) + 6, 0, 255).astype(np.uint8)
        assert tones.tone_of(picture, record["style"]) == record["attributes"]["tone"]


def test_a_picture_without_skin_has_no_tone() -> None:
    tones = SkinTones.measure(People(), progress=False)
    assert tones.tone_of(disc((40, 80, 200)), "flat") is None
    assert tones.tone_of(disc((255, 220, 190)), "line art") is None  # a style without tones
