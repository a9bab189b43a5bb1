"""The commands that work on pictures: what they write, that they read any picture, and what they say to bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from diffusers.utils import logging
from PIL import Image
from safetensors.torch import load_file

from unclip import cli


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(each) for each in arguments])
    return int(end.value.code or 0)


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Path]:
    """A picture of each awkward kind."""
    ramp = np.arange(48 * 32, dtype=np.uint16).reshape(48, 32)
    colours = np.random.default_rng(0).integers(0, 256, (20, 64, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    paths = {name: tmp_path / name for name in ("alpha.png", "wide.jpg", "grey16.png", "palette.gif")}
    Image.fromarray(colours).save(paths["alpha.png"])
    Image.fromarray(colours[..., :3]).save(paths["wide.jpg"], exif=exif)
    Image.fromarray(ramp * 40).save(paths["grey16.png"])
    Image.fromarray(colours[..., :3]).convert("P").save(paths["palette.gif"])
    return paths


@pytest.fixture
def common(tiny_model: Path, tmp_path: Path) -> list[object]:
    return [
        "--model",
        tiny_model,
        "-o",
        tmp_path / "out",
        "--seed",
        3,
        "--size",
        16,
        "--json",
        "--no-progress",
    ]


COMMANDS: dict[str, list[object]] = {
    "vary": ["-n", 2, "--steps", 2],
    "diff": ["--from", "red apple", "--to", "green apple", "--frames", 3, "--steps", 2],
    "redraw": ["--to", "green apple", "--frames", 3, "--steps", 2],
    "edit": ["a red apple", "--strength", 0.5, "--steps", 2],
}


@pytest.mark.parametrize("kind", ["alpha.png", "wide.jpg", "grey16.png", "palette.gif"])
@pytest.mark.parametrize("command", COMMANDS)
def test_any_picture_will_do(command: str, kind: str, pictures, common, capsys) -> None:
    options = COMMANDS[command]
    command = {"redraw": "diff"}.get(command, command)
    assert call(command, pictures[kind], *options, *common) == 0
    said = json.loads(capsys.readouterr().out)
    count = {"vary": 2, "diff": 3, "edit": 1}[command]
    assert [each["seed"] for each in said["images"]] == ([3, 4] if command == "vary" else [3] * count)
    for each in said["images"]:
        with Image.open(each["path"]) as made:
            assert made.size == (16, 16)
            assert made.info["operation"] == command
            assert made.info["image"] == kind  # its name, no path of this machine
    first = Path(said["images"][0]["path"]).read_bytes()
    assert call(command, pictures[kind], *options, *common) == 0
    assert Path(said["images"][0]["path"]).read_bytes() == first


def test_a_blend_of_all_kinds(pictures, common, capsys, tmp_path: Path) -> None:
    inputs = [*pictures.values(), "prompt:a red apple"]
    assert call("blend", *inputs, "--frames", 5, "--steps", 2, "--gif", *common) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["images"]) == 5
    with Image.open(*said["grids"]) as strip:
        assert strip.width > 5 * 16
    assert [Path(each) for each in said["gifs"]] == list((tmp_path / "out").glob("*.gif"))
    with Image.open(*said["gifs"]) as film:
        assert film.n_frames == 8  # there and back
    assert call("blend", *inputs, "--weights", "1,0,2,0,1", "--steps", 2, *common) == 0
    assert len(json.loads(capsys.readouterr().out)["images"]) == 1


@pytest.mark.parametrize("command", ["vary", "diff", "upscale"])
def test_json_is_one_object_of_all_pictures(command: str, pictures, common, capsys) -> None:
    given = [each if each != 16 or command != "upscale" else 64 for each in common]
    assert call(command, *pictures.values(), *COMMANDS.get(command, []), *given) == 0
    made = json.loads(capsys.readouterr().out)["images"]
    assert list(dict.fromkeys(each["image"] for each in made)) == [*pictures]


def test_options_that_would_do_nothing_are_not_offered(capsys) -> None:
    ignored = {"vary": ["--prior"], "upscale": ["--prior", "--steps", "--fit", "--noise-level", "--grid"]}
    for command, options in ignored.items():
        for option in options:
            assert call(command, "picture.png", option, "1") == 2
            assert f"No such option: {option}" in capsys.readouterr().err


def test_upscaling_keeps_the_shape(pictures, tiny_model: Path, tmp_path: Path, capsys) -> None:
    options = ["--model", tiny_model, "-o", tmp_path / "out", "--json", "--no-progress", "--size", 64]
    assert call("upscale", pictures["alpha.png"], *options) == 0
    made = json.loads(capsys.readouterr().out)["images"][0]
    assert (made["width"], made["height"]) == (64, 20)
    assert logging.is_progress_bar_enabled()  # as it was: nothing is left silent for what comes after


def test_a_latent_closes_the_circle(pictures, common, tiny_model: Path, tmp_path: Path, capsys) -> None:
    latent = tmp_path / "latent.safetensors"
    options = ["--model", tiny_model, "--no-progress"]
    assert call("invert", *pictures.values(), "-o", latent, "--steps", 2, *options) == 0
    tensors = load_file(latent)
    assert tensors["noise"].shape == (4, 3, 16, 16)
    capsys.readouterr()
    assert call("generate", "--image-embeds", latent, *common) == 0
    assert len(json.loads(capsys.readouterr().out)["images"]) == 4
    assert call("vary", latent, "--eta", 0, "-n", 1, *common) == 0
    said = json.loads(capsys.readouterr().out)
    assert {each["image"] for each in said["images"]} == {"latent.safetensors"}
    assert len({each["path"] for each in said["images"]}) == 4


def test_own_captions_are_chosen_from(pictures, tiny_model: Path, tmp_path: Path, capsys) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("a red apple\na blue house\n")
    assert (
        call("describe", pictures["wide.jpg"], "--captions", captions, "--model", tiny_model, "--json") == 0
    )
    (described,) = json.loads(capsys.readouterr().out)["images"]
    assert {caption for caption, _ in described["captions"]} == {"a red apple", "a blue house"}


def bad(pictures: dict[str, Path], tmp_path: Path) -> dict[str, tuple[list[object], str]]:
    """Command lines that cannot work, and what has to be said of them."""
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "text.safetensors").write_text("no picture")
    black, small = tmp_path / "black.png", tmp_path / "small.png"
    Image.new("L", (64, 20)).save(black)
    Image.new("L", (8, 8), 255).save(small)
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    image, opaque = pictures["alpha.png"], pictures["palette.gif"]
    diff: list[object] = ["diff", image, "--from", "red apple", "--to", "green apple"]
    return {
        "missing": (["vary", tmp_path / "none.png"], "no picture at"),
        "folder": (["upscale", tmp_path], "is a folder"),
        "zero bytes": (["vary", tmp_path / "empty.png"], "is empty"),
        "text": (["edit", tmp_path / "text.png", "a"], "no picture that can be read"),
        "huge": (["vary", tmp_path / "huge.png"], "20000 x 20000"),
        "mask of another size": (["edit", image, "a red apple", "--mask", small], "8 x 8"),
        "empty mask": (["edit", image, "a red apple", "--mask", black], "the mask marks nothing"),
        "no hole": (["edit", opaque, "a red apple"], "there is nothing to fill"),
        "mask and strength": (["edit", image, "a", "--mask", black, "--strength", 0.5], "leave out --mask"),
        "weights that sum to zero": (["blend", image, opaque, "--weights", "0,0"], "sum to zero"),
        "negative weight": (["blend", image, opaque, "--weights", "1,-1"], "0 or more"),
        "weights of another number": (["blend", image, opaque, "--weights", "1,1,1"], "for 2 inputs"),
        "no numbers": (["blend", image, opaque, "--weights", "a,b"], "--weights takes numbers"),
        "one input": (["blend", image], "two inputs or more"),
        "theta": ([*diff, "--theta", 0.6], "theta must lie between 0 and 0.5"),
        "several targets": (
            ["diff", image, "--to", "red apple", "--to", "house"],
            "there is one target caption, got 2",
        ),
        "strength of a difference": ([*diff, "--strength", 0.5], "strength is of redrawing"),
        "difference of one": (["diff", image, "--to", "house", "--via", "text"], "give a source caption"),
        "same texts": (["diff", image, "--from", "red apple", "--to", "red apple"], "mean the same"),
        "unequal diffs": ([*diff, "--to", "blue house"], "1 source and 2 target"),
        "eta": (["vary", image, "--eta", 2], "eta must lie between 0 and 1"),
        "strength": (["edit", image, "a", "--strength", 0], "strength 0"),
        "noise": (["vary", image, "--noise", "loud"], "noise must be one of"),
        "prior": ([*diff, "--prior", "nobody"], "no prior 'nobody'"),
        "latent to vary": (["vary", image, tmp_path / "none.safetensors"], "no file at"),
        "latent to diff": (
            [*diff[:1], tmp_path / "text.safetensors", *diff[2:]],
            "no picture that can be read",
        ),
        "resamplings": (
            ["edit", image, "a", "--strength", 0.5, "--resamplings", 2],
            "leave it out with --strength",
        ),
        "prior and embeds": (
            ["generate", "--image-embeds", tmp_path / "a", "--prior", "ar"],
            "leave --prior out",
        ),
        "latent": (["generate", "--image-embeds", tmp_path / "none.safetensors"], "no file at"),
    }


def test_bad_input_is_one_line(pictures, common, tmp_path: Path, capsys) -> None:
    for name, (arguments, expected) in bad(pictures, tmp_path).items():
        given = [each for each in common if not (arguments[0] == "upscale" and each in ("--size", 16))]
        assert call(*arguments, *given) == 2, name
        said = capsys.readouterr()
        assert said.out == "", name
        assert len(said.err.splitlines()) == 1, (name, said.err)
        assert expected in said.err, (name, said.err)
    assert not list((tmp_path / "out").glob("*"))


def test_a_latent_takes_no_pictures_place(pictures, tmp_path: Path, capsys) -> None:
    before = pictures["alpha.png"].read_bytes()
    assert call("invert", pictures["alpha.png"], "-o", pictures["alpha.png"]) == 2
    assert "must be a file that ends with .safetensors" in capsys.readouterr().err
    assert pictures["alpha.png"].read_bytes() == before


def test_a_latent_is_no_picture_to_invert(tmp_path: Path, capsys) -> None:
    (tmp_path / "latent.safetensors").write_bytes(b"whatever it holds")
    assert call("invert", tmp_path / "latent.safetensors") == 2
    assert "no picture that can be read" in capsys.readouterr().err


# ---- names of files ----------------------------------------------------------------------------------------------


def made(capsys) -> list[str]:
    return [each["path"] for each in json.loads(capsys.readouterr().out)["images"]]


def test_no_picture_takes_the_place_of_another(pictures, common, tmp_path: Path, capsys) -> None:
    """However long the names are, whatever folder a picture is in, and whatever else was asked for before."""
    long = "a very large red apple on a small blue house with a cat"
    assert call("blend", f"prompt:{long}", f"prompt:{long} again", "--frames", 4, "--steps", 2, *common) == 0
    paths = made(capsys)
    assert len(set(paths)) == 4
    other = tmp_path / "other" / "alpha.png"
    other.parent.mkdir()
    Image.open(pictures["alpha.png"]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(other)
    for images in ([pictures["alpha.png"], other], [other]):
        for fit in ("pad", "crop"):
            assert call("vary", *images, "-n", 1, "--steps", 2, "--fit", fit, *common) == 0
            paths += made(capsys)
    # The same once more: those of `other` alone are there already, so that they are not made a second time.
    assert len(set(paths)) == len(paths) - 2
    for path in set(paths):
        assert Path(path).is_file()
    gifs = []
    for theta in (0.1, 0.2):
        options = [
            "--from",
            "red apple",
            "--to",
            "green apple",
            "--frames",
            2,
            "--steps",
            2,
            "--theta",
            theta,
        ]
        assert call("diff", other, *options, "--gif", *common) == 0
        gifs += json.loads(capsys.readouterr().out)["gifs"]
    assert len(set(gifs)) == 2


def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    pictures, tiny_model: Path, tmp_path, capsys
) -> None:
    (tmp_path / "file").write_text("no folder")
    given = ["-o", tmp_path / "file" / "out", "--model", tmp_path / "no-model"]
    for command in (["vary"], ["upscale"], ["blend", pictures["wide.jpg"]], ["diff", "--to", "a house"]):
        assert call(*command, pictures["alpha.png"], *given) == 2
        assert "Not a directory" in capsys.readouterr().err
