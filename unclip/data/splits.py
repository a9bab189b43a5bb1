"""Held-out splits that ask for a *combination* never seen in training, and the duplicates that would give it away.

    style      a role in one family of styles (the three Fluent sets share shapes, so they go together)
    tone       a role with one skin tone, for all genders and styles
    attribute  a colour with a thing, in all styles
    unseen     a role never seen at all: the upper bound of difficulty

In the first three each part is seen in training, only the combination is not. The choice is by a fixed hash, not by
the build's seed, so that figures of differently seeded builds compare.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from unclip.data.concepts import Concept

SPLITS = ("train", "style", "tone", "attribute", "unseen")
UNSEEN_RATE, STYLE_RATE, TONE_RATE = 0.02, 0.04, 0.10
COLOURS_PER_THING, HELD_OF_COLOURS = (
    3,
    5,
)  # of a thing in >= 3 colours one colour in five is held out, rounded up
_NO_HOLD_OUT = frozenset({"flags", "icon"})  # a flag never seen cannot be drawn; icons have one style only


@dataclass(frozen=True)
class Pick:
    """What the split rules need to know of a sample."""

    concept: Concept
    family: str


def assign_splits(picks: Sequence[Pick]) -> list[str]:
    """The split of each sample, decided on the whole list, so that each part of a combination stays in train."""
    unseen = _unseen_roles(picks)
    rest = [pick for pick in picks if pick.concept.role not in unseen]
    attribute = _held_colours(rest)
    tone = _held_tones([pick for pick in rest if _colour_pair(pick.concept) not in attribute])
    style = _held_styles(
        [
            pick
            for pick in rest
            if _colour_pair(pick.concept) not in attribute and _tone_pair(pick.concept) not in tone
        ]
    )

    def split_of(pick: Pick) -> str:
        concept = pick.concept
        if concept.role in unseen:
            return "unseen"
        if _colour_pair(concept) in attribute:
            return "attribute"
        if _tone_pair(concept) in tone:
            return "tone"
        return "style" if (concept.role, pick.family) in style else "train"

    return [split_of(pick) for pick in picks]


def orphans(picks: Sequence[Pick], splits: Sequence[str]) -> set[int]:
    """Held-out samples with a part that no training sample shows (any more): they would test something else."""
    trained = [pick for pick, split in zip(picks, splits, strict=True) if split == "train"]
    roles = {pick.concept.role for pick in trained}
    seen: dict[str, set[Hashable]] = {
        "family": {pick.family for pick in trained},
        "tone": {pick.concept.tone for pick in trained},
        "colour": {pick.concept.colour for pick in trained},
        "thing": {pick.concept.thing for pick in trained},
    }

    def complete(pick: Pick, split: str) -> bool:
        concept = pick.concept
        if split == "style":
            return concept.role in roles and pick.family in seen["family"]
        if split == "tone":
            return concept.role in roles and concept.tone in seen["tone"]
        if split == "attribute":
            return concept.colour in seen["colour"] and concept.thing in seen["thing"]
        return True

    return {i for i, (pick, split) in enumerate(zip(picks, splits, strict=True)) if not complete(pick, split)}


def near_duplicates(fingerprints: np.ndarray, tolerance: int, block: int = 1024) -> list[tuple[int, int]]:
    """Pairs i < j of pictures in which no coarse value differs by more than `tolerance`.

    Args:
        fingerprints: uint8 [N, D], coarse pictures (16x16 RGB on white, see `render.fingerprint`).
        tolerance: 0..255. A maximum, not a mean: the hands of two clock faces differ in few places, but there much.
    """
    coarse = fingerprints.astype(np.float32)
    norms = (coarse**2).sum(1)
    limit = float(fingerprints.shape[1] * tolerance**2) * 1.001 + 1.0  # float32 slack; the exact test follows
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(coarse), block):
        rows = coarse[start : start + block]
        squared = norms[start : start + block, None] + norms[None, start:] - 2.0 * rows @ coarse[start:].T
        near_rows, near_columns = np.nonzero(squared <= limit + 1e-5 * norms[None, start:])
        for i, j in zip((near_rows + start).tolist(), (near_columns + start).tolist(), strict=True):
            if i < j and np.abs(fingerprints[i].astype(int) - fingerprints[j]).max() <= tolerance:
                pairs.append((i, j))
    return pairs


def drop_duplicates(
    splits: Sequence[str],
    styles: Sequence[str],
    same: Iterable[tuple[int, int]],
    alike: Iterable[tuple[int, int]],
) -> tuple[set[int], set[int]]:
    """(repeated, leaking): samples to leave out.

    Within a style one of each group of the `same` pictures stays: a held-out one if there is any, else the first in
    the given order. After that no training sample may be `alike` (a wider tolerance, any source) a held-out one.
    """
    repeated: set[int] = set()
    for group in _groups((i, j) for i, j in same if styles[i] == styles[j]):
        stays = min(group, key=lambda i: (splits[i] == "train", i))
        repeated |= set(group) - {stays}
    leaking = {
        i if splits[i] == "train" else j
        for i, j in alike
        # A held-out sample counts even if it was itself dropped as a repetition of another.
        if (splits[i] == "train") != (splits[j] == "train")
    }
    return repeated, leaking - repeated


def _unseen_roles(picks: Sequence[Pick]) -> set[str]:
    roles = {pick.concept.role for pick in picks if pick.concept.group not in _NO_HOLD_OUT}
    coloured = {pick.concept.role for pick in picks if pick.concept.colour}  # these serve the attribute split
    return {role for role in roles - coloured if _unit("unseen", role) < UNSEEN_RATE}


def _held_colours(picks: Sequence[Pick]) -> set[tuple[str, str]]:
    colours: dict[str, set[str]] = defaultdict(set)
    for pick in picks:
        pair = _colour_pair(pick.concept)
        if pair and pick.concept.group not in _NO_HOLD_OUT:
            colours[pair[1]].add(pair[0])
    things_of: dict[str, int] = defaultdict(int)
    for found in colours.values():
        for colour in found:
            things_of[colour] += 1
    held: set[tuple[str, str]] = set()
    for thing, found in sorted(colours.items()):
        if len(found) < COLOURS_PER_THING:
            continue
        count = math.ceil(len(found) / HELD_OF_COLOURS)
        for colour in sorted(found, key=lambda name: _unit("colour", f"{name}|{thing}")):
            # The colour must stay on some other thing that is drawn in training.
            if count and things_of[colour] >= 2:
                held.add((colour, thing))
                things_of[colour] -= 1
                count -= 1
    return held


def _held_tones(picks: Sequence[Pick]) -> set[tuple[str, str]]:
    tones: dict[str, set[str]] = defaultdict(set)
    roles_of: dict[str, set[str]] = defaultdict(set)
    for pick in picks:
        pair = _tone_pair(pick.concept)
        if pair:
            tones[pair[0]].add(pair[1])
            roles_of[pair[1]].add(pair[0])
    held: set[tuple[str, str]] = set()
    for role, found in sorted(tones.items()):
        left = set(found)
        for tone in sorted(found):
            # The role keeps two tones and the tone another role.
            if _unit("tone", f"{role}|{tone}") < TONE_RATE and len(left) > 2 and len(roles_of[tone]) > 1:
                held.add((role, tone))
                left.discard(tone)
                roles_of[tone].discard(role)
    return held


def _held_styles(picks: Sequence[Pick]) -> set[tuple[str, str]]:
    families: dict[str, set[str]] = defaultdict(set)
    for pick in picks:
        if pick.concept.group not in _NO_HOLD_OUT:
            families[pick.concept.role].add(pick.family)
    held: set[tuple[str, str]] = set()
    for role, found in sorted(families.items()):
        left = set(found)
        for family in sorted(found):
            # The role keeps two families, so that losing one to duplicates does not make it unseen.
            if _unit("style", f"{role}|{family}") < STYLE_RATE and len(left) > 2:
                held.add((role, family))
                left.discard(family)
    return held


def _colour_pair(concept: Concept) -> tuple[str, str] | None:
    return (concept.colour, concept.thing) if concept.colour and concept.thing else None


def _tone_pair(concept: Concept) -> tuple[str, str] | None:
    """(role, tone) of one person; two-toned couples are never held out."""
    return (concept.role, concept.tone) if concept.tone and " and " not in concept.tone else None


def _groups(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Connected components of the pairs, each sorted, in the order of their first members."""
    parent: dict[int, int] = {}

    def root(i: int) -> int:
        while parent.setdefault(i, i) != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in pairs:
        a, b = sorted((root(i), root(j)))
        parent[b] = a
    members: dict[int, list[int]] = defaultdict(list)
    for i in sorted(parent):
        members[root(i)].append(i)
    return [members[first] for first in sorted(members)]


def _unit(kind: str, name: str) -> float:
    """A fixed number in [0, 1) for a name."""
    return int.from_bytes(hashlib.sha256(f"{kind}|{name}".encode()).digest()[:6], "big") / 2**48
