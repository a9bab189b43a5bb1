"""Held-out combinations and the duplicates that would give them away."""

from __future__ import annotations

from collections import Counter

import numpy as np

from unclip.data.splits import assign_splits, drop_duplicates, near_duplicates, orphans


def test_only_the_combination_is_unseen(picks):
    splits = assign_splits(picks)
    assert set(splits) == {"train", "style", "tone", "attribute", "unseen"}
    train = [pick for pick, split in zip(picks, splits, strict=True) if split == "train"]
    for pick, split in zip(picks, splits, strict=True):
        concept = pick.concept
        roles = [other for other in train if other.concept.role == concept.role]
        if split == "unseen":
            assert not roles
        if split == "style":
            assert roles
            assert all(other.family != pick.family for other in roles)
            assert any(other.family == pick.family for other in train)
        if split == "tone":
            assert any(other.concept.tone == concept.tone for other in train)
            assert roles
            assert all(other.concept.tone != concept.tone for other in roles)
        if split == "attribute":
            same_thing = [other for other in train if other.concept.thing == concept.thing]
            assert same_thing
            assert all(other.concept.colour != concept.colour for other in same_thing)
            assert any(other.concept.colour == concept.colour for other in train)


def test_sets_with_the_same_shapes_are_held_out_together(picks):
    splits = assign_splits(picks)
    held = {
        (pick.concept.role, pick.family)
        for pick, split in zip(picks, splits, strict=True)
        if split == "style"
    }
    assert any(family == "fluent" for _, family in held)
    for pick, split in zip(picks, splits, strict=True):
        assert not (split == "train" and (pick.concept.role, pick.family) in held)


def test_a_held_out_sample_that_lost_its_parts_is_an_orphan(picks):
    splits = assign_splits(picks)
    assert orphans(picks, splits) == set()
    held = next(i for i, split in enumerate(splits) if split == "style")
    role = picks[held].concept.role
    left = [i for i, pick in enumerate(picks) if pick.concept.role != role or i == held]
    lost = orphans([picks[i] for i in left], [splits[i] for i in left])
    assert lost == {left.index(held)}


def test_near_duplicates_finds_planted_pairs_across_blocks():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (60, 768), dtype=np.uint8)
    pictures[50] = np.clip(pictures[3].astype(int) + rng.integers(-4, 5, 768), 0, 255)
    pictures[51] = pictures[7]
    pictures[51, 100] ^= 128  # alike but for one place: the hand of a clock
    assert near_duplicates(pictures, 4, block=16) == [(3, 50)]


def test_one_of_each_repeated_picture_stays_and_the_held_out_one_is_preferred():
    splits = ["train", "train", "tone", "train", "train"]
    styles = ["noto", "noto", "noto", "noto", "flat"]
    chain = [(0, 1), (1, 2), (0, 4)]
    repeated, leaking = drop_duplicates(splits, styles, same=chain, alike=chain)
    # 0, 1 and 2 are one picture: the held-out one stays. 4 is of another style and alike no held-out picture.
    assert repeated == {0, 1}
    assert leaking == set()


def test_no_training_picture_is_alike_a_held_out_one_in_any_source():
    splits = ["tone", "train", "train", "style"]
    styles = ["noto", "noto", "flat", "flat"]
    repeated, leaking = drop_duplicates(splits, styles, same=[], alike=[(0, 1), (0, 2), (0, 3)])
    assert repeated == set()
    assert leaking == {1, 2}  # another tone that looks the same, and the same drawing in another set


def test_fixture_keeps_the_rules(real, fixture_path):
    from unclip.data import CaptionedImages

    held = CaptionedImages(fixture_path, split=["style", "tone", "attribute", "unseen"])
    assert min(Counter(record["split"] for record in held.records).values()) >= 5
    roles = {record["role"] for record in real.records}
    pairs = {(record["role"], record["style"]) for record in real.records}
    for record in held.records:
        assert (record["role"] in roles) == (record["split"] != "unseen" and record["split"] != "attribute")
        if record["split"] == "style":
            assert (record["role"], record["style"]) not in pairs
