"""What cannot be read as a picture ends in one line, before it takes memory."""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unclip.errors import UserError
from unclip.pipelines.reading import MAX_PIXELS, read_mask, read_picture, read_pictures, square


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def with_size(path: Path, width: int, height: int) -> Path:
    """A PNG whose header alone claims that size."""
    Image.new("L", (1, 1)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    return path


def line(call: object, *arguments: object, **options: object) -> str:
    """The message of the UserError, which is one line and comes without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError) as caught:
            call(*arguments, **options)  # type: ignore[operator]
    message = str(caught.value)
    assert "\n" not in message
    assert ": " in message  # what is wrong: the remedy
    return message


@pytest.mark.parametrize("side", [8_100, 10_000, 20_000, 60_000])  # below, beyond Pillow's warning, its error
def test_too_large(tmp_path: Path, side: int) -> None:
    path = with_size(tmp_path / "big.png", side, side)
    before = Image.MAX_IMAGE_PIXELS
    message = line(read_picture, path)
    assert message.startswith(f"{path} has {side} x {side} pixels, more than the 64 megapixels")
    assert "make it smaller" in message
    assert before == Image.MAX_IMAGE_PIXELS


def test_the_limit(tmp_path: Path) -> None:
    """At the limit a picture is decoded (here: found to be cut off), beyond it its header alone is read."""
    assert MAX_PIXELS == 8000 * 8000
    assert "cannot be read" in line(read_picture, with_size(tmp_path / "at.png", 8000, 8000))
    assert "8001 x 8000" in line(read_picture, with_size(tmp_path / "beyond.png", 8001, 8000))
    huge = Image.new("1", (8001, 8000))
    assert "the picture has 8001 x 8000 pixels" in line(read_picture, huge)


def test_large_jpegs_are_decoded_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unclip.pipelines.reading.MAX_PIXELS", 1000)
    ramp = np.linspace(0, 255, 96).astype(np.uint8)[None].repeat(64, 0)
    Image.fromarray(ramp).save(tmp_path / "a.jpg", quality=95)
    picture = read_picture(tmp_path / "a.jpg")  # 6144 pixels; a quarter is 1536, a sixteenth 384
    means = torch.from_numpy(ramp[:1].astype(np.float32).reshape(1, 24, 4).mean(-1)).expand(3, 16, 24)
    torch.testing.assert_close((picture.rgb + 1) * 127.5, means, atol=3, rtol=0)
    Image.fromarray(ramp[:20, :50]).save(tmp_path / "b.jpg")  # 1000
    assert read_picture(tmp_path / "b.jpg").size == (20, 50)
    Image.fromarray(ramp).save(tmp_path / "c.jpg", progressive=True)
    assert "96 x 64 pixels" in line(read_picture, tmp_path / "c.jpg")
    assert "96 x 64 pixels" in line(
        read_picture, Image.open(tmp_path / "a.jpg")
    )  # which is not ours to change


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    missing, text, empty = tmp_path / "none.png", tmp_path / "notes.png", tmp_path / "empty.png"
    text.write_text("a red apple\n")
    empty.touch()
    drawing = tmp_path / "a.eps"
    noise(8, 8).save(drawing)
    assert line(read_picture, missing) == f"no picture at {missing}: give the path of a file"
    assert line(read_picture, str(tmp_path)) == f"{tmp_path} is a folder: name a picture in it"
    assert line(read_picture, empty).startswith(f"{empty} is empty (0 bytes)")
    for path in (text, drawing):  # an EPS would be handed to another program
        assert line(read_picture, path).startswith(f"{path} is no picture that can be read: give a PNG")
    assert line(read_pictures, [Image.new("L", (1, 1)), missing], 8).startswith("no picture at")
    assert line(read_mask, missing, like=(1, 1)).startswith("no picture at")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_damaged_files(tmp_path: Path, suffix: str) -> None:
    """Cut off anywhere, or with a wrong byte anywhere: a picture or a line that names the file."""
    whole, path = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    noise(20, 30).save(whole)
    content = whole.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert line(read_picture, path).startswith(str(path))
    for i in range(0, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:i] + bytes((content[i] ^ 0xFF,)) + content[i + 1 :])
        try:
            assert read_picture(path).rgb.abs().max() <= 1
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017 - either is right


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (np.zeros((0, 4, 3)), "has 4 x 0 pixels"),
        (torch.zeros(3, 4, 0), "has 0 x 4 pixels"),
        (Image.new("RGB", (0, 5)), "has 0 x 5 pixels"),
        (np.zeros((4, 4, 2)), r"shape \[4, 4, 2\]: expected \[H, W\]"),
        (np.zeros((3, 5, 5)), r"shape \[3, 5, 5\]: expected \[H, W\], \[H, W, 3\]"),
        (np.zeros(5), r"shape \[5\]"),
        (torch.zeros(4, 4, 3)[..., None], r"shape \[4, 4, 3, 1\]: expected \[1, H, W\]"),
        (torch.zeros(2, 3, 4, 4), r"shape \[2, 3, 4, 4\]"),
        (torch.zeros(5, 4, 4), r"shape \[5, 4, 4\]"),
        (np.zeros((4, 4), np.int64), "type (torch.)?int64: give uint8 with 0 to 255"),
        (np.array([["a"]]), "type <U1: give uint8"),
        (np.zeros((4, 4), complex), "type .*complex128: give uint8"),
        (torch.zeros(1, 4, 4, dtype=torch.int32), "type torch.int32"),
        (torch.full((3, 2, 2), -0.5), r"values from -0.5 to -0.5: floats lie in \[0, 1\]"),
        (np.full((2, 2), 200.0), r"values from 200 to 200: floats lie in \[0, 1\]"),
        (np.full((2, 2), np.nan), "values from nan to nan"),
        (Image.new("I", (2, 2), 70_000), "values from 70000 to 70000, expected 0 to 65535"),
        (Image.new("F", (2, 2), 7), "values from 7 to 7"),
        (None, "is of type NoneType: give a path, a PIL picture"),
        (7, "is of type int: give a path"),
    ],
)
def test_wrong_kinds(source: object, said: str) -> None:
    message = line(read_picture, source)
    assert message.startswith("the picture ")
    assert re.search(said, message)


def test_unknown_fit() -> None:
    assert line(square, read_picture(noise(8, 8)), 8, "fill") == (
        "unknown fit 'fill': choose one of pad, crop, stretch"
    )
