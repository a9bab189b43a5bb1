"""Pictures as files: metadata, names, grids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from unclip.pipelines import demo
from unclip.pipelines.gallery import draw, draw_grid
from unclip.pipelines.pictures import file_for, grid, read_png, save_png, slug
from unclip.pipelines.text_to_image import UnCLIPTextToImagePipeline

FACTS = {"prompt": "ein roter Äpfel, 林檎", "seed": 3, "settings": {"steps": 2}, "negative_prompt": None}


def test_png_holds_its_facts(tmp_path: Path) -> None:
    save_png(Image.new("RGB", (8, 8), "red"), tmp_path / "new" / "a.png", FACTS)
    facts = read_png(tmp_path / "new" / "a.png")
    assert facts.pop("Software").startswith("unclip ")
    assert facts == {"prompt": "ein roter Äpfel, 林檎", "seed": "3", "settings": '{"steps": 2}'}
    assert Image.open(tmp_path / "new" / "a.png").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("prompt", "name"),
    [("A red apple, 3D", "a-red-apple-3d"), ("Äpfel/../x", "apfel-x"), ("林檎", ""), ("a" * 200, "a" * 60)],
)
def test_slug(prompt: str, name: str) -> None:
    assert slug(prompt) == name


def test_files_take_no_others_place(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8))
    first = file_for(tmp_path, "a cat", 0, FACTS)
    assert first == tmp_path / "a-cat-seed0.png"
    save_png(picture, first, FACTS)
    assert file_for(tmp_path, "a cat", 0, FACTS) == first  # the same picture again
    other = file_for(tmp_path, "a cat", 0, {**FACTS, "settings": {"steps": 3}})
    assert other == tmp_path / "a-cat-seed0-2.png"
    other.write_text("no picture")
    assert file_for(tmp_path, "a cat", 0, {**FACTS, "seed": 4}) == tmp_path / "a-cat-seed0-3.png"
    assert file_for(tmp_path, "林檎", 0, FACTS) == tmp_path / "picture-seed0.png"


def test_grid() -> None:
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue", "black", "red")]
    captions = ["a", "a caption of many words that goes on", "b", "Wordwithoutanyspaceatallthatislong", ""]
    sheet = grid(pictures, captions)
    assert sheet.getpixel((10, 10)) == (255, 0, 0)
    assert sheet.getpixel((10 + 2 * 68, 10)) == (0, 0, 255)
    assert sheet.width == 3 * 68 + 4
    assert sheet.height > 2 * 64 + 2 * 10
    assert grid(pictures, captions, columns=1).width == 72
    below = sheet.crop((4, 68, 68, 78))
    assert min(band[0] for band in below.getextrema()) < 200  # the caption's ink


def test_gallery(tiny_pipeline: UnCLIPTextToImagePipeline, tmp_path: Path) -> None:
    settings = tiny_pipeline.settings(decoder_num_inference_steps=1)
    options = {"settings": settings, "facts": {"model": "tiny"}, "report": lambda each: None, "size": 16}
    drawn = draw(
        tiny_pipeline,
        ["a cat", "a red heart"],
        tmp_path,
        seed=7,
        images_per_prompt=2,
        batch_size=3,
        **options,
    )
    assert [each.path.name for each in drawn] == [
        "a-cat-seed7.png", "a-cat-seed8.png", "a-red-heart-seed7.png", "a-red-heart-seed8.png"
    ]  # fmt: skip
    facts = read_png(drawn[3].path)
    assert (facts["prompt"], facts["seed"], facts["size"], facts["model"]) == (
        "a red heart",
        "8",
        "16",
        "tiny",
    )
    assert json.loads(facts["settings"])["decoder_num_inference_steps"] == 1
    # The seed of a file draws it again, alone.
    (again,) = draw(
        tiny_pipeline, ["a red heart"], tmp_path, seed=8, images_per_prompt=1, batch_size=1, **options
    )
    assert again.path == drawn[3].path
    difference = max(
        abs(a - b) for a, b in zip(again.picture.tobytes(), drawn[3].picture.tobytes(), strict=True)
    )
    assert difference <= 1
    sheet = draw_grid(drawn, tmp_path, 2, {"model": "tiny"})
    assert sheet.name == "grid-a-cat-seed7.png"
    assert json.loads(read_png(sheet)["seeds"]) == [7, 8, 7, 8]


def test_demo(
    tiny_pipeline: UnCLIPTextToImagePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(set(demo.PROMPTS)) >= 12
    monkeypatch.setattr(demo, "PROMPTS", demo.PROMPTS[:3])
    said: list[str] = []
    overview, large = demo.draw_demo(tiny_pipeline, tmp_path / "out", said.append)
    assert (overview.name, large.name) == ("demo.png", "demo-256.png")
    assert Image.open(overview).width > 2 * 256
    assert Image.open(large).size == (256, 256)
    assert read_png(large)["prompt"] == demo.PROMPTS[0]
    assert len(said) == 2
