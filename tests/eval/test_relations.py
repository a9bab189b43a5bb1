"""Relations: a sprite is found where it was put; directions; real scenes are right, swapped ones are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from unclip.errors import UserError
from unclip.eval.model import Model, Options
from unclip.eval.relations import Place, RelationTest, find, holds, relation_part

OPTIONS = Options(size=64, relations=6, progress=False)


@pytest.fixture(scope="module")
def relation_test(real) -> RelationTest:
    return RelationTest.make(real, OPTIONS)


def drawing_model(pictures: dict[str, np.ndarray]) -> Model:
    """Draws each caption's picture."""
    return Model(
        encode_image=lambda pixels: torch.zeros(len(pixels), 4),
        encode_text=lambda texts: torch.zeros(len(texts), 4),
        make_embeds=lambda prompts, seeds: torch.zeros(len(prompts), 4),
        generate=lambda prompts, seeds: [Image.fromarray(pictures[prompt]) for prompt in prompts],
        decode=lambda z, prompts, seeds: pytest.fail("nothing is drawn from embeddings"),
        fingerprint="drawing",
        clip_fingerprint="none",
    )


def test_a_sprite_is_found_at_its_place_and_size(relation_test):
    scene = relation_test.scenes[0]
    for sprite, (_, x0, y0, x1, y1) in zip(scene.sprites, scene.boxes, strict=True):
        place = find(sprite, scene.background, scene.image)
        assert place.score > 0.9
        assert (place.x, place.y) == pytest.approx(((x0 + x1) / 2, (y0 + y1) / 2), abs=0.08)
        enlarged = np.asarray(Image.fromarray(scene.image).resize((256, 256)))
        assert find(sprite, scene.background, enlarged).score > 0.85
        assert find(sprite, scene.background, np.full((64, 64, 3), 200, np.uint8)).score == pytest.approx(
            0, abs=1e-3
        )


@pytest.mark.parametrize(
    ("relation", "second", "expected"),
    [
        ("left of", (0.8, 0.5), True),
        ("right of", (0.8, 0.5), False),
        ("right of", (0.2, 0.5), True),
        ("above", (0.5, 0.8), True),
        ("below", (0.5, 0.8), False),
        ("below", (0.5, 0.2), True),
        ("left of", (0.6, 0.5), False),  # hardly apart
        ("left of", (0.7, 0.8), False),  # rather below than beside
    ],
)
def test_relations_are_directions(relation, second, expected):
    assert holds(relation, Place(1, 0.5, 0.5), Place(1, *second)) is expected


def test_real_scenes_are_right_and_swapped_ones_are_not(relation_test, tmp_path):
    chosen = relation_test.scenes
    model = drawing_model({scene.caption: scene.image for scene in chosen})
    figures = relation_part(relation_test, model, tmp_path, OPTIONS)
    assert figures["generated"] == figures["real"]
    assert figures["real"]["relation"]["value"] >= 5 / 6
    assert figures["other"]["relation"]["value"] <= 1 / 6
    assert (tmp_path / "grids" / "relations.png").is_file()
    flipped = {
        scene.caption: np.ascontiguousarray(
            scene.image[:, ::-1] if scene.relation in ("left of", "right of") else scene.image[::-1]
        )
        for scene in chosen
    }
    figures = relation_part(relation_test, drawing_model(flipped), tmp_path / "flipped", OPTIONS)
    assert figures["generated"]["relation"]["value"] == 0


def test_a_faint_sprite_scores_little(relation_test):
    """Contrast down to a tenth does not matter, below it does."""
    scene = relation_test.scenes[0]
    picture = scene.image.astype(np.float32)
    scores = [
        find(
            scene.sprites[0], scene.background, (128 + (picture - 128) * contrast).round().astype(np.uint8)
        ).score
        for contrast in (1.0, 0.5, 0.04)
    ]
    assert scores[1] == pytest.approx(scores[0], abs=0.02)
    assert scores[2] < 0.6 * scores[0]


def test_prompts_name_their_style_and_show_two_things(relation_test, real):
    assert len(relation_test.scenes) == 6
    for scene in relation_test.scenes:
        assert f", {scene.style}" in scene.caption
        assert len(scene.sprites) == len(scene.boxes) == len(set(scene.subjects)) == 2
    assert 0.3 < relation_test.threshold < 0.95
    with pytest.raises(UserError, match="for 0"):
        RelationTest.make(real, Options(relations=1))
