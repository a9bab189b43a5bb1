"""Composed scenes: repeatable, boxes that fit, held-out combinations, tints of free colours only."""

from __future__ import annotations

import re

import numpy as np
import pytest

from unclip.data import ComposedScenes
from unclip.data.scenes import BACKGROUNDS, is_held_out
from unclip.data.tint import TINTS, colour_is_free, main_hue, tint
from unclip.errors import UserError


def layouts(scenes, count):
    """The layouts of the first scenes, and the scenes."""
    return [scenes._plan(i)[0] for i in range(count)], [scenes[i] for i in range(count)]


def test_the_same_seed_and_index_give_the_same_scene_in_any_order(real):
    scenes, again = (ComposedScenes(real, seed=1, length=20, size=32) for _ in range(2))
    third = scenes[3]
    for scene in (again[3], scenes[3]):
        np.testing.assert_array_equal(scene.image, third.image)
        assert (scene.caption, scene.boxes, scene.relation) == (third.caption, third.boxes, third.relation)
    assert scenes.captions(3) == [third.caption]
    np.testing.assert_array_equal(scenes.rgb(3, 32), third.image)
    assert scenes.rgb(3, 48).shape == (48, 48, 3)
    other = ComposedScenes(real, seed=2, length=20, size=32)
    assert any(other[i].caption != scenes[i].caption for i in range(5))
    assert len(scenes) == 20
    with pytest.raises(IndexError):
        scenes[20]


def test_training_never_shows_a_held_out_combination_and_testing_always_does(real):
    for split, held in (("train", False), ("test", True)):
        caught, _ = layouts(ComposedScenes(real, seed=0, length=60, split=split, size=16), 60)
        assert {is_held_out(layout) for layout in caught} == {held}


def test_every_part_of_a_held_out_combination_is_seen_in_training(real):
    train, _ = layouts(ComposedScenes(real, seed=0, length=400, split="train", size=8), 400)
    test, _ = layouts(ComposedScenes(real, seed=0, length=30, split="test", size=16), 30)
    seen = {thing.subject for layout in train for thing in layout.objects}
    colours = {thing.colour for layout in train for thing in layout.objects}
    for layout in test:
        assert {thing.subject for thing in layout.objects} <= seen
        assert {thing.colour for thing in layout.objects} <= colours
    assert {layout.relation for layout in train} == {None, "left of", "above", "in a row"}


def test_captions_boxes_and_pictures_agree(real):
    caught, drawn = layouts(ComposedScenes(real, seed=5, length=80, size=64), 80)
    counts = set()
    for layout, scene in zip(caught, drawn, strict=True):
        counts.add(len(scene.boxes))
        assert scene.image.shape == (64, 64, 3)
        assert scene.image.dtype == np.uint8
        assert all(0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 for _, x0, y0, x1, y1 in scene.boxes)
        names = [name for name, *_ in scene.boxes]
        places = [re.search(rf"\b{re.escape(name)}\b", scene.caption).start() for name in names]
        assert places == sorted(places), scene.caption
        (_, ax0, ay0, ax1, ay1), (_, bx0, by0, bx1, by1) = scene.boxes[0], scene.boxes[-1]
        a, b = ((ax0 + ax1) / 2, (ay0 + ay1) / 2), ((bx0 + bx1) / 2, (by0 + by1) / 2)
        if scene.relation in ("left of", "in a row"):
            assert a[0] < b[0]
        if scene.relation == "right of":
            assert a[0] > b[0]
        if scene.relation == "above":
            assert a[1] < b[1]
        if scene.relation == "below":
            assert a[1] > b[1]
        assert tuple(scene.image[0, 0]) == BACKGROUNDS[layout.background]
        if layout.background != "white":
            assert f"{layout.background} background" in scene.caption
    assert counts == {1, 2, 3}
    assert 0.25 < np.mean([layout.background == "white" for layout in caught]) < 0.55


def test_only_objects_of_free_colour_are_tinted(real):
    caught, _ = layouts(ComposedScenes(real, seed=7, length=150, size=16), 150)
    tinted = [thing for layout in caught for thing in layout.objects if thing.colour]
    assert len(tinted) >= 5
    assert all(colour_is_free(real.records[thing.index]) for thing in tinted)
    for record in real.records:
        if record["group"] in ("people-body", "smileys-emotion", "flags", "food-drink", "animals-nature"):
            assert not colour_is_free(record)


@pytest.mark.parametrize("colour", list(TINTS))
def test_tint_turns_the_main_paint_and_leaves_the_rest(colour):
    sprite = np.zeros((16, 16, 4), np.uint8)
    sprite[2:14, 2:14] = (220, 40, 40, 255)
    sprite[6:9, 6:9] = (255, 255, 255, 255)
    main = main_hue(sprite)
    turned = tint(sprite, colour, main)
    target = TINTS[colour][0]
    assert abs((main_hue(turned) - target + 0.5) % 1 - 0.5) < 0.05
    np.testing.assert_array_equal(turned[7, 7], [255, 255, 255, 255])
    np.testing.assert_array_equal(turned[..., 3], sprite[..., 3])


def test_a_sprite_of_many_colours_has_no_main_hue():
    stripes = np.full((12, 12, 4), 255, np.uint8)
    stripes[:4, :, :3], stripes[4:8, :, :3], stripes[8:, :, :3] = (230, 30, 30), (30, 200, 30), (30, 30, 230)
    assert main_hue(stripes) is None
    assert main_hue(np.full((12, 12, 4), 128, np.uint8)) is None


def test_mistakes_are_named(real):
    with pytest.raises(UserError, match="expected train or test"):
        ComposedScenes(real, seed=0, length=1, split="val")
