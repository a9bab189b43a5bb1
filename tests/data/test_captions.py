"""Words: from Unicode's names to captions."""

from __future__ import annotations

import re

import pytest

from unclip.data.captions import caption_forms, with_article
from unclip.data.concepts import describe, emoji_concepts, hexcode, role_of
from unclip.data.sources import SOURCES


@pytest.mark.parametrize(
    ("label", "subject", "tone", "role"),
    [
        ("woman firefighter: dark skin tone", "woman firefighter", "dark", "firefighter"),
        ("man: light skin tone, red hair", "man with red hair", "light", "with red hair"),
        ("woman: bald", "bald woman", None, "bald"),
        ("man walking: medium skin tone, facing right", "man walking facing right", "medium", "walking"),
        (
            "kiss: woman, man, light skin tone, dark skin tone",
            "woman and man kissing",
            "light and dark",
            "kiss",
        ),
        ("family: man, woman, boy, boy", "family of a man, a woman and two boys", None, "family"),
        ("flag: Côte d’Ivoire", "flag of Côte d'Ivoire", None, "flag côte d'ivoire"),
        ("Japanese “bargain” button", "Japanese bargain button", None, "japanese bargain button"),
        ("automobile", "car", None, "automobile"),
    ],
)
def test_names_become_subject_tone_and_role(label, subject, tone, role):
    people = label.split(":")[0] in ("kiss", "family")
    concept = describe(label, "people-body", "family" if people else "person")
    assert (concept.subject, concept.tone, concept.role) == (subject, tone, role)


def test_attributes_are_read_from_the_name():
    assert describe("green apple", "food-drink", "food-fruit").attributes == {"colour": "green"}
    assert describe("light blue heart", "symbols", "heart").thing == "heart"
    assert describe("two o’clock", "travel-places", "time").subject == "clock showing two o'clock"
    assert describe("two o’clock", "travel-places", "time").attributes == {"number": 2}
    assert describe("women holding hands", "people-body", "family").gender == "woman"
    assert describe("orange", "food-drink", "food-fruit").attributes == {}


def test_gender_and_direction_do_not_make_a_role():
    assert role_of("person surfing") == role_of("woman surfing") == role_of("man surfing facing right")
    assert role_of("mermaid") == role_of("merman")
    assert role_of("woman") == "person"


def test_table_takes_tones_tags_and_leaves_swatches_out():
    entries = [
        {
            "label": "cook",
            "hexcode": "1F9D1-200D-1F373",
            "emoji": "c",
            "group": 1,
            "subgroup": 25,
            "tags": ["chef", "lol"],
            "skins": [{"label": "cook: dark skin tone", "hexcode": "1F9D1-1F3FF-200D-1F373", "tone": 5}],
        },
        {"label": "light skin tone", "hexcode": "1F3FB", "emoji": "s", "group": 2, "subgroup": 32},
    ]
    messages = {
        "groups": [{"order": 1, "key": "people-body"}],
        "subgroups": [{"order": 25, "key": "person-role"}],
    }
    table = emoji_concepts(entries, messages, {"c": ["cook", "kitchen_hat", "5"]})
    assert sorted(table) == ["1f9d1-1f3ff-200d-1f373", "1f9d1-200d-1f373"]
    assert table["1f9d1-1f3ff-200d-1f373"].concept == "cook with dark skin tone"
    assert table["1f9d1-1f3ff-200d-1f373"].tags == ("chef", "kitchen hat")
    assert hexcode("0023-FE0F-20E3") == "23-20e3"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("apple", "an apple"),
        ("unicorn", "a unicorn"),
        ("hourglass", "an hourglass"),
        ("SOS button", "an SOS button"),
        ("T-Rex", "a T-Rex"),
        ("grapes", "grapes"),
        ("glass of milk", "a glass of milk"),
        ("cactus", "a cactus"),
        ("smiling face with heart-eyes", "a smiling face with heart-eyes"),
        ("two hearts", "two hearts"),
        ("bread", "bread"),
        ("flag of Chad", "the flag of Chad"),
        ("man lifting weights", "a man lifting weights"),
        ("8 ball", "an 8 ball"),
    ],
)
def test_articles(name, expected):
    assert with_article(name) == expected


@pytest.mark.parametrize("style", list(SOURCES))
def test_five_to_eight_forms_some_with_the_style(style):
    concept = describe("woman firefighter: dark skin tone", "people-body", "person-role")
    forms = caption_forms(concept, style, "some_key", seed=0)
    assert 5 <= len(forms) <= 8
    assert forms["bare"] == "woman firefighter with dark skin tone"
    assert forms["reordered"] == "dark-skinned woman firefighter"
    styled = [text for form, text in forms.items() if form.startswith("style")]
    assert len(styled) >= 3
    assert all("firefighter" in text for text in forms.values())
    assert not any(re.search(r"\ba [aeiou](?!ni|u)", text) for text in forms.values()), forms


def test_style_free_forms_are_shared_between_styles_and_drawing_is_repeatable():
    concept = describe("red apple", "food-drink", "food-fruit")
    noto = caption_forms(concept, "noto", "noto_1f34e", seed=0)
    flat = caption_forms(concept, "3D", "3d_1f34e", seed=0)
    assert {form: noto[form] for form in ("bare", "article", "reordered")} == {
        form: flat[form] for form in ("bare", "article", "reordered")
    }
    assert flat["style_article"] == "a 3D red apple"
    assert flat["reordered"] == "apple that is red"
    assert caption_forms(concept, "noto", "noto_1f34e", seed=0) == noto
