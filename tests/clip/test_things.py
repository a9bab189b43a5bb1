"""The things that a caption names beside one another."""

from __future__ import annotations

import pytest

from unclip.clip.things import things_in
from unclip.data.scenes import ComposedScenes


@pytest.mark.parametrize(
    ("caption", "things"),
    [
        ("a cat left of a dog", ["a cat", "a dog"]),
        ("a cat to the right of a red dog, 3D style", ["a cat, 3D style", "a red dog, 3D style"]),
        ("an ant above a joystick on a light blue background, noto", ["an ant, noto", "a joystick, noto"]),
        ("a cat and a dog", ["a cat", "a dog"]),
        ("a cat, a dog and a bee in a row on a pink background, flat", ["a cat, flat", "a dog, flat", "a bee, flat"]),
        ("a cat, a dog and a bee in a row", ["a cat", "a dog", "a bee"]),
        ("a large postal horn in the bottom right on a lavender background", []),
        ("cricket, insect, grasshopper, noto", []),
        ("a red apple, 3D", []),
        ("a and b and c and d", []),
        ("above", []),
        ("", []),
    ],
)  # fmt: skip
def test_things(caption: str, things: list[str]) -> None:
    assert things_in(caption) == things


def test_things_of_composed_scenes_are_those_that_they_show(real) -> None:
    scenes = ComposedScenes(real, 0, 40)
    for i in range(len(scenes)):
        scene, (caption,) = scenes.compose(i, 16), scenes.captions(i)
        names = [box[0] for box in scene.boxes]
        found = things_in(caption)
        if " and " in "".join(names):
            continue
        assert len(found) == (0 if len(names) == 1 else len(names))
        assert all(name in thing for name, thing in zip(names, found, strict=False))
