"""The things that a caption names beside one another."""

from __future__ import annotations

import pytest

from unclip.clip.things import things_in
from unclip.data.scenes import ComposedScenes


@pytest.mark.parametrize(
    ("caption", "things"),
    [
        ("a cat left of a dog", {"left": "a cat", "right": "a dog"}),
        (
            "a cat to the right of a red dog, 3D style",
            {"left": "a red dog, 3D style", "right": "a cat, 3D style"},
        ),
        (
            "an ant above a joystick on a light blue background, noto",
            {"upper": "an ant, noto", "lower": "a joystick, noto"},
        ),
        ("a cat  on the left of\na dog", {"left": "a cat", "right": "a dog"}),
        ("a black and white icon of a bison", {}),
        ("cat" + " " * 100_000 + "and a dog", {"left": "cat", "right": "a dog"}),
        ("A cat below a dog", {"upper": "a dog", "lower": "A cat"}),
        ("a cat and a dog, flat", {"left": "a cat, flat", "right": "a dog, flat"}),
        ("a cat, a dog and a bee in a row", {}),
        ("a large postal horn in the bottom right on a lavender background", {}),
        ("cricket, insect, grasshopper, noto", {}),
        ("a red apple, 3D", {}),
        ("a and b and c", {}),
        ("above", {}),
        (" and ", {}),
        ("", {}),
        ("a " * 3000 + "and" + " b" * 3000, {}),
    ],
)
def test_things(caption: str, things: dict[str, str]) -> None:
    assert things_in(caption) == things


def test_things_of_composed_scenes_are_where_they_are_shown(real) -> None:
    scenes = ComposedScenes(real, 0, 60)
    pairs = 0
    for i in range(len(scenes)):
        scene, (caption,) = scenes.compose(i, 16), scenes.captions(i)
        found = things_in(caption)
        if len(scene.boxes) != 2:
            assert not found
        elif not any(" and " in name for name, *_ in scene.boxes):
            pairs += 1
            axis = 1 if "left" in found else 2
            ordered = [name for name, *_ in sorted(scene.boxes, key=lambda box: box[axis] + box[axis + 2])]
            assert all(name in thing for name, thing in zip(ordered, found.values(), strict=True))
    assert pairs > 10
