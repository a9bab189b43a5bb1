"""Plain words measured: does a prompt come out in the captions' words, and does CLIP then find the subject?

Each row is one way to say what a caption says: a sentence, a typing error, another spelling, a plural, a language.
A case is a prompt, the text that it should be understood as (None where there is no single one), and its subject.

    exact       the understood text is the caption, capitals aside
    top-1, -5   CLIP's text embedding finds the subject among one picture of each subject, before and after
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unclip.clip.retrieval import paraphrases
from unclip.data.phrases import fold, words_of
from unclip.data.spelling import SHORTEST, edits, plurals
from unclip.data.words import Lexicon, Understood
from unclip.errors import UserError
from unclip.eval.bootstrap import bootstrap
from unclip.eval.model import EMBED_BATCH
from unclip.eval.retrieval import ranks
from unclip.eval.tables import Table, percent

Record = Mapping[str, Any]
Names = Mapping[str, Mapping[str, tuple[str, str]]]  # language -> code point -> (name, our subject)

# {a}: the subject with its article; none of them is a pattern of `unclip.data.words` letter by letter.
_SENTENCES = (
    "I would love to see {a}",
    "could you please draw {a} for me?",
    "Please make me a picture of {a}",
    "show me {a}, please",
    "I need an icon of {a}",
    "an illustration of {a}",
    "Hello! Can you generate an image of {a}?",
    "I want you to paint {a}",
    "let's have {a}!",
    "{a} please",
)
_STYLED = (
    ("I want {a}, like a 3D toy", "3D"),
    ("draw {a} in 3D", "3D"),
    ("{a} that looks like a google emoji", "noto"),
    ("{a} drawn in the style of a classic blob", "blob"),
    ("please give me a 3D render of {a}", "3D"),
    ("{a}, flat vector art", "flat"),
)
# Sentences of languages that the author of these lines knows; {x} is the emoji's name in that language.
_FOREIGN = {
    "es": ("quiero {x} por favor", "dibuja {x}", "una imagen de {x}"),
    "fr": ("je voudrais {x}", "dessine-moi {x} s'il te plaît", "une image de {x}"),
    "de": ("zeichne mir bitte {x}", "ich möchte {x}", "ein Bild von {x}"),
    "it": ("vorrei {x}", "disegna {x} per favore", "un'immagine di {x}"),
    "pt": ("quero {x} por favor", "desenhe {x}", "uma imagem de {x}"),
    "nl": ("ik wil graag {x}", "een tekening van {x}", "teken {x} alsjeblieft"),
}


@dataclass(frozen=True)
class Case:
    """A prompt, the text it should be understood as (None: no single one) and the subject that it names."""

    prompt: str
    text: str | None
    subject: str


def make_cases(records: Sequence[Record], lexicon: Lexicon, names: Names, count: int, seed: int
               ) -> dict[str, list[Case]]:  # fmt: skip
    """Up to `count` seeded cases a row: {"sentences": …, "es": …, "es, no accents": …, "es, sentence": …}."""
    if count < 1:
        raise UserError(f"prompts must be at least 1, got {count}")
    rng = np.random.default_rng(seed)
    plain = {r["subject"]: r["captions"]["article"] for r in records if r["concept"] == r["subject"]}
    subjects = [str(each) for each in rng.permutation(sorted(plain))]
    held_out = sorted({r["subject"] for r in records if r["split"] != "train"} & plain.keys())
    rows = {
        "sentences": _sentences(plain, subjects[:count]),
        "typing errors": _typos([str(each) for each in rng.permutation(held_out)], count, rng),
        "spelling": _spellings(subjects, lexicon)[:count],
        "plurals": _plurals(subjects, lexicon)[:count],
        "paraphrases": [Case(p["text"], None, p["subject"]) for p in paraphrases() if p["subject"] in plain],
    }
    for code, by_emoji in names.items():
        pairs = [(name, subject) for name, subject in by_emoji.values() if subject in plain]
        chosen = [pairs[i] for i in rng.permutation(len(pairs))[:count]]
        rows[code] = [Case(name, subject, subject) for name, subject in chosen]
        rows[f"{code}, lower case, no accents"] = [
            Case(bare, subject, subject)
            for name, subject in chosen
            if (bare := without_accents(name)) != name
        ]
        rows[f"{code}, sentence"] = [
            Case(form.format(x=name), subject, subject)
            for (name, subject), i in zip(chosen, range(len(chosen)), strict=True)
            for form in _FOREIGN.get(code, ())[i % 3 : i % 3 + 1]
        ]
    return {row: cases for row, cases in rows.items() if cases}


def measure(
    cases: Mapping[str, Sequence[Case]],
    understand: Callable[[Sequence[str]], list[Understood]],
    embed: Callable[[Sequence[str]], Tensor],
    gallery: Tensor,
    subjects: Sequence[str],
    seed: int = 0,
) -> dict[str, dict[str, dict[str, float]]]:
    """{row: {measure: estimate with its 95 % interval}}; "exact" is absent where there is no single right text.

    Args:
        understand: prompts -> how they are understood.
        embed: N texts -> CLIP embeddings [N,D].
        gallery: embeddings [G,D], unit norm, of one picture for each of the G `subjects`.
    """
    understood = {row: understand([case.prompt for case in row_cases]) for row, row_cases in cases.items()}
    texts = {text for row in understood.values() for each in row for text in (each.prompt, each.text)}
    ordered = sorted(texts, key=lambda text: (len(text), text))  # like lengths together: less padding
    parts = [embed(ordered[i : i + EMBED_BATCH]) for i in range(0, len(ordered), EMBED_BATCH)]
    embeds = dict(zip(ordered, F.normalize(torch.cat(parts).float().cpu(), dim=-1), strict=True))
    report = {}
    for row, row_cases in cases.items():
        found: dict[str, Any] = {}
        if all(case.text is not None for case in row_cases):
            exact = [
                each.text.lower() == (case.text or "").lower()  # the tokenizer of our CLIP sees no capitals
                for each, case in zip(understood[row], row_cases, strict=True)
            ]
            found["exact"] = np.array(exact)
        wanted = [case.subject for case in row_cases]
        for name, asked in (
            ("typed", [each.prompt for each in understood[row]]),
            ("plain", [each.text for each in understood[row]]),
        ):
            rank = ranks(torch.stack([embeds[text] for text in asked]), gallery, wanted, subjects)
            found |= {f"{name}_top1": rank <= 1, f"{name}_top5": rank <= 5}
        report[row] = {name: bootstrap(hits, seed=seed).as_dict() for name, hits in found.items()}
    return report


def unknown_tags(
    tags: Mapping[str, Sequence[str]], understand: Callable[[Sequence[str]], list[Understood]], seed: int = 0
) -> dict[str, dict[str, float]]:
    """{language: share of its keywords, none of them in the lexicon as a name, that are understood at all}."""
    return {
        code: bootstrap(
            [each.language is not None and not each.unknown for each in understand(words)], seed=seed
        ).as_dict()
        for code, words in tags.items()
        if words
    }


def one_picture_each(records: Sequence[Record]) -> tuple[list[int], list[str]]:
    """(row, subject) of the first picture without a skin tone of every subject, or its first."""
    first: dict[str, int] = {}
    for i, record in enumerate(records):
        if record["concept"] == record["subject"]:
            first.setdefault(record["subject"], i)
    for i, record in enumerate(records):
        first.setdefault(record["subject"], i)
    return list(first.values()), list(first)


def without_accents(text: str) -> str:
    """Lower case, without accents on Latin letters; other scripts keep their marks."""
    parts = unicodedata.normalize("NFD", text.lower())
    return unicodedata.normalize("NFC", "".join(c for c in parts if not "\u0300" <= c <= "\u036f"))


def table(
    report: Mapping[str, Mapping[str, Mapping[str, float]]], tags: Mapping[str, Mapping[str, float]]
) -> Table:
    """The report as a table; the last column is `unknown_tags`."""
    rows = []
    for row, found in report.items():
        shares = [percent(found[name]) if name in found else "–" for name in
                  ("exact", "typed_top1", "plain_top1", "typed_top5", "plain_top5")]  # fmt: skip
        rows.append((row, str(found["plain_top1"]["n"]), *shares, percent(tags[row]) if row in tags else "–"))
    return Table(
        "Plain words",
        ("prompts", "n", "exact", "top-1 as typed", "top-1", "top-5 as typed", "top-5", "keywords"),
        tuple(rows),
        "Exact: understood as the caption it stands for, capitals aside; the sentences were written by whoever wrote "
        "the rules, and the mistyped words are among those that the lexicon has. Top-k: CLIP finds the subject among "
        "one picture of each subject, with the prompt as typed and as understood. The names in other languages are in "
        "the lexicon, so those rows measure the mechanism and say nothing of other words; keywords, which are not "
        "in it, do: the share of a language's keywords that is understood at all. In brackets: 95 % bootstrap "
        "intervals.",
    )


def _sentences(plain: Mapping[str, str], subjects: Sequence[str]) -> list[Case]:
    cases: list[Case] = []
    for i, subject in enumerate(subjects):
        said = plain[subject]
        if i % 2:
            form, style = _STYLED[i // 2 % len(_STYLED)]
            cases.append(Case(form.format(a=said), f"{said}, {style}", subject))
        else:
            cases.append(Case(_SENTENCES[i // 2 % len(_SENTENCES)].format(a=said), said, subject))
    return cases


def _typos(subjects: Sequence[str], count: int, rng: np.random.Generator) -> list[Case]:
    """One random edit in one word of at least four letters."""
    cases: list[Case] = []
    for subject in subjects:
        words = [word for word in words_of(subject) if len(word.key) >= SHORTEST and word.key.isalpha()]
        if words and len(cases) < count:
            word = words[int(rng.integers(len(words)))]
            made = sorted(set(edits(word.key)) - {word.key})
            typo = made[int(rng.integers(len(made)))]
            cases.append(Case(subject[: word.start] + typo + subject[word.end :], subject, subject))
    return cases


def _spellings(subjects: Sequence[str], lexicon: Lexicon) -> list[Case]:
    cases: list[Case] = []
    for subject in subjects:
        for word in words_of(subject):
            if (other := lexicon.spellings.get(word.key)) and other != word.key:
                cases.append(Case(subject[: word.start] + other + subject[word.end :], subject, subject))
    return cases


def _plurals(subjects: Sequence[str], lexicon: Lexicon) -> list[Case]:
    """Subjects of one word whose plural no caption has."""
    made = [
        (plurals(subject)[0], subject)
        for subject in subjects
        if fold(subject).isalpha() and " " not in subject
    ]
    return [Case(many, one, one) for many, one in made if fold(many) not in lexicon.words and one[-1:] != "s"]
