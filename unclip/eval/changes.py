"""Changes of real pictures that captions can ask for, and how each is judged.

A change is right if the picture becomes what the second caption says (`reached`) and else stays what it was (`kept`).
The kinds, each over real pictures:

    style        "SUBJECT, flat" -> "SUBJECT, 3D"; reached: the style of most of the ten nearest pictures of other
                 subjects, `nearest` that of the nearest; kept: the subject is among the five nearest
    generic      the same pictures, "a flat emoji" -> "a 3D emoji"
    colour       "red SUBJECT" -> "blue SUBJECT"; reached: by the pixels; kept: the thing, of any colour, is among the
                 five nearest
                 in both of these `style`: most of the ten nearest of other subjects are in the picture's own style
    expression   "HAPPY FACE" -> "crying face", and other faces -> "grinning face"; reached: that face is among the five
                 nearest; kept: most of the ten nearest are faces

Shapes: Q cases, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unclip.errors import UserError
from unclip.eval.attributes import COLOURS, asked_colour, colour_of
from unclip.eval.choice import Asked, Pictures, Record, choose_stratified
from unclip.eval.judge import VOTERS, Judge
from unclip.eval.model import Drawing

Hits = dict[str, np.ndarray]  # {"reached" | "kept" | …: bool [Q]}

SOURCE_STYLE, TARGET_STYLE = "flat", "3D"
FACES, NOT_FACES = "face", ("face-costume",)  # subgroups of Unicode that begin so, but these
HAPPY = ("face-smiling", "face-affection", "face-tongue", "face-glasses", "face-hat")
SAD_TARGET, HAPPY_TARGET = "crying face", "grinning face"
TARGET_COLOURS = ("blue", "red")  # the first that a picture does not have


@dataclass(frozen=True)
class Case:
    """A picture to change, what its captions say before and after, and what it is to become.

    Attributes:
        source: the picture. target: style, colour or subject to reach. true: row of a real picture of it, or None.
    """

    source: Asked
    before: str
    after: str
    target: str
    true: int | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of change: its cases, and how pictures [Q] with features [Q,F] of some of them are judged."""

    name: str
    cases: list[Case]
    judge: Callable[[Sequence[Case], np.ndarray, Any, Sequence[int] | None], Hits]


class Changes:
    """The kinds of change that real pictures offer.

    Args:
        judge: of the features of all of `data`.
    """

    def __init__(self, data: Pictures, judge: Judge, options: Drawing) -> None:
        self.data, self.judge, self.options = data, judge, options
        self.records: Sequence[Record] = data.records
        self.things = [_thing(record) for record in self.records]
        self.faces = np.array([_is_face(record) for record in self.records])
        self.rows = {
            (r["subject"], r["style"], r["concept"]): i for i, r in reversed([*enumerate(self.records)])
        }

    def kinds(self, share: int) -> list[Kind]:
        """All kinds, each of at most `share` pictures; those that the data has no pictures for are left out.

        Raises:
            UserError: that is all of them.
        """
        styles = self._style_cases(share)
        generic = [
            replace(case, before=f"a {SOURCE_STYLE} emoji", after=f"a {TARGET_STYLE} emoji")
            for case in styles
        ]
        found = [
            Kind("style", styles, self._judge_style),
            Kind("generic", generic, self._judge_style),
            Kind("colour", self._colour_cases(share), self._judge_colour),
            Kind("expression", self._expression_cases(share), self._judge_expression),
        ]
        present = [kind for kind in found if kind.cases]
        if not present:
            raise UserError("this data has no flat pictures, no coloured things and no faces to change")
        return present

    def _style_cases(self, count: int) -> list[Case]:
        chosen = self._choose(lambda i: self.records[i]["style"] == SOURCE_STYLE, count)
        return [
            Case(
                a,
                f"{a.concept}, {SOURCE_STYLE}",
                f"{a.concept}, {TARGET_STYLE}",
                TARGET_STYLE,
                self.rows.get((a.subject, TARGET_STYLE, a.concept)),
            )
            for a in chosen
        ]

    def _colour_cases(self, count: int) -> list[Case]:
        def is_so(i: int) -> bool:
            """In the colour that it is named for, by the pixels, and named by it in one word."""
            colour = asked_colour(self.records[i])
            named = colour is not None and colour in self.records[i]["subject"].split()
            return named and colour_of(self.data.rgb(i, self.options.size)) == colour

        cases = []
        for a in self._choose(is_so, count):
            colour = asked_colour(self.records[a.index])
            target = next(each for each in TARGET_COLOURS if each != colour)
            after = a.subject.replace(str(colour), target, 1)
            cases.append(Case(a, a.subject, after, target, self.rows.get((after, a.style, after))))
        return cases

    def _expression_cases(self, count: int) -> list[Case]:
        def target_of(i: int) -> str:
            return SAD_TARGET if self.records[i]["subgroup"] in HAPPY else HAPPY_TARGET

        there = {record["subject"] for record in self.records}
        chosen = self._choose(
            lambda i: (
                bool(self.faces[i]) and target_of(i) in there and target_of(i) != self.records[i]["subject"]
            ),
            count,
        )
        return [
            Case(a, a.subject, t, t, self.rows.get((t, a.style, t)))
            for a in chosen
            for t in (target_of(a.index),)
        ]

    def _choose(self, wanted: Callable[[int], bool], count: int) -> list[Asked]:
        """Up to `count` pictures, as evenly over the splits as there are such."""
        rows = [i for i in range(len(self.records)) if wanted(i)]
        chosen = choose_stratified([dict(self.records[i]) for i in rows], count, self.options.seed)
        return [replace(a, index=rows[a.index]) for group in chosen.values() for a in group]

    def _judge_style(self, cases: Sequence[Case], pictures: Any, features: Any, without: Any) -> Hits:
        asked = [replace(case.source, style=case.target) for case in cases]
        verdicts = self.judge.verdicts(features, asked, without)
        return {
            "reached": verdicts["style_vote"],
            "nearest": verdicts["style"],
            "kept": verdicts["subject_top5"],
        }

    def _judge_colour(self, cases: Sequence[Case], pictures: Any, features: Any, without: Any) -> Hits:
        near = self.judge.nearest(features, 5, without)
        kept = [
            any(self.things[i] == self.things[case.source.index] for i in row)
            for case, row in zip(cases, near, strict=True)
        ]
        reached = [colour_of(picture) == case.target for case, picture in zip(cases, pictures, strict=True)]
        return {
            "reached": np.array(reached),
            "kept": np.array(kept),
            "style": self._own_style(cases, features, without),
        }

    def _judge_expression(self, cases: Sequence[Case], pictures: Any, features: Any, without: Any) -> Hits:
        near = self.judge.nearest(features, VOTERS, without)
        reached = [
            any(self.records[i]["subject"] == case.target for i in row[:5])
            for case, row in zip(cases, near, strict=True)
        ]
        kept = 2 * self.faces[near].sum(1) > VOTERS
        return {
            "reached": np.array(reached),
            "kept": kept,
            "style": self._own_style(cases, features, without),
        }

    def _own_style(self, cases: Sequence[Case], features: Any, without: Any) -> np.ndarray:
        return self.judge.verdicts(features, [case.source for case in cases], without)["style_vote"]


def _thing(record: Record) -> str:
    """The subject without the name of its colour."""
    return " ".join(word for word in record["subject"].split() if word not in COLOURS)


def _is_face(record: Record) -> bool:
    subgroup = record.get("subgroup", "")
    return subgroup.startswith(FACES) and subgroup not in NOT_FACES
