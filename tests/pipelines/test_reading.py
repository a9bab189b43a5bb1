"""Any picture as tensors: orientations, modes, transparency, shapes, masks."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.testing import assert_close

from unclip.data.render import resize_rgba
from unclip.errors import UserError
from unclip.pipelines.reading import Picture, read_mask, read_picture, read_pictures, square

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def levels(picture: Picture) -> Tensor:
    """[3, H, W] as 0..255."""
    return (picture.rgb + 1) * 127.5


def colour(picture: Picture, x: int, y: int) -> tuple[int, ...]:
    return tuple(int(value) for value in levels(picture)[:, y, x].round())


def png(path: Path, kind: int, size: tuple[int, int], rows: np.ndarray) -> Path:
    """A PNG of 16 bits a channel, which Pillow does not write; kind 0 grey, 2 RGB, 4 LA, 6 RGBA."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", *size, 16, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


# ---- orientation -----------------------------------------------------------------------------------------------


def quarters() -> Image.Image:
    """48 x 32: red, green above, blue, white below."""
    picture = Image.new("RGB", (48, 32))
    for box, fill in zip(((0, 0), (24, 0), (0, 16), (24, 16)), (RED, GREEN, BLUE, WHITE), strict=True):
        picture.paste(fill, (*box, box[0] + 24, box[1] + 16))
    return picture


# What a camera that was held so has stored, by the EXIF standard: `stored` is turned so that `upright` is seen.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),  # shown after a quarter turn clockwise
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", STORED)
def test_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](np.asarray(quarters()))))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    stored.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {"quality": 95}))
    for source in (path, Image.open(path)):
        picture = read_picture(source)
        assert picture.size == (32, 48)
        # JPEG's errors lie at the edges of the quarters.
        seen = [np.array(colour(picture, x, y)) for x, y in ((4, 4), (44, 4), (4, 28), (44, 28))]
        assert np.abs(np.array(seen) - np.array([RED, GREEN, BLUE, WHITE])).max() <= 3


def test_a_users_picture_is_not_changed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    quarters().save(tmp_path / "a.png", exif=exif)
    given = Image.open(tmp_path / "a.png")
    assert read_picture(given).size == (48, 32)
    assert given.size == (48, 32)  # width, height
    assert given.getexif()[0x0112] == 6


def test_damaged_notes_do_not_hide_the_picture(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff", quality=95)
    assert read_picture(tmp_path / "a.jpg").size == (32, 48)


# ---- modes -----------------------------------------------------------------------------------------------------


def test_palette_with_transparency(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, *GREEN])
    picture.putdata([0, 1])
    picture.save(tmp_path / "index.gif", transparency=1)
    picture.save(tmp_path / "index.png", transparency=1)
    picture.save(tmp_path / "table.png", transparency=bytes((255, 51)))
    for name, alpha in (("index.gif", 0), ("index.png", 0), ("table.png", 51)):
        found = read_picture(tmp_path / name)
        assert_close(found.alpha, torch.tensor([[[1, alpha / 255]]]))
        mixed = (255 - alpha, 255, 255 - alpha)  # green on white
        assert [colour(found, 0, 0), colour(found, 1, 0)] == [RED, mixed]


def test_animations_show_their_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), fill) for fill in (RED, GREEN, BLUE)]
    for name in ("a.gif", "a.png", "a.webp"):
        frames[0].save(
            tmp_path / name,
            save_all=True,
            append_images=frames[1:],
            **({"lossless": True} if name == "a.webp" else {}),
        )
        assert colour(read_picture(tmp_path / name), 2, 2) == RED


@pytest.mark.parametrize(
    ("mode", "fill", "rgb", "alpha"),
    [
        ("1", 1, WHITE, 1),
        ("1", 0, (0, 0, 0), 1),
        ("L", 77, (77, 77, 77), 1),
        ("LA", (100, 51), (224, 224, 224), 0.2),
        ("RGB", (1, 2, 3), (1, 2, 3), 1),
        ("RGBA", (0, 100, 200, 102), (153, 193, 233), 0.4),
        ("CMYK", (0, 255, 255, 0), RED, 1),
        ("YCbCr", (255, 128, 128), WHITE, 1),
        ("I;16", 257 * 77, (77, 77, 77), 1),
        ("I", 257 * 77, (77, 77, 77), 1),
        ("F", 0.2, (51, 51, 51), 1),
    ],
)
def test_modes(mode: str, fill: int | tuple[int, ...], rgb: tuple[int, ...], alpha: float) -> None:
    picture = read_picture(Image.new(mode, (3, 2), fill))  # type: ignore[arg-type]
    assert picture.size == (2, 3)
    assert_close(levels(picture), torch.tensor(rgb).float()[:, None, None].expand(3, 2, 3), atol=1e-4, rtol=0)
    assert_close(picture.alpha, torch.full((1, 2, 3), float(alpha)))


def test_sixteen_bits(tmp_path: Path) -> None:
    ramp = np.array([[0, 0x0102, 0x8000, 0xFFFF]])
    expected = torch.tensor(ramp / 65535 * 2 - 1).float()
    grey = png(tmp_path / "grey.png", 0, (4, 1), ramp)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "grey.tiff")
    for source in (grey, tmp_path / "grey.tiff", ramp.astype(np.uint16), ramp.astype(">u2")):
        assert_close(read_picture(source).rgb, expected.expand(3, 1, 4))
    # Of colours Pillow reads the upper eight bits.
    colours = png(tmp_path / "rgb.png", 2, (1, 1), np.array([[0x01FF, 0x80FF, 0xFF00]]))
    assert colour(read_picture(colours), 0, 0) == (1, 0x80, 255)
    clear = read_picture(png(tmp_path / "rgba.png", 6, (1, 1), np.array([[0, 0, 0, 0x3300]])))
    assert (colour(clear, 0, 0), round(clear.alpha.item() * 255)) == ((204, 204, 204), 0x33)
    faint = read_picture(png(tmp_path / "la.png", 4, (1, 1), np.array([[0, 0x3300]])))
    assert (colour(faint, 0, 0), round(faint.alpha.item() * 255)) == ((204, 204, 204), 0x33)


def test_arrays_and_tensors() -> None:
    values = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
    expected = torch.from_numpy(values).permute(2, 0, 1) / 127.5 - 1
    unit = torch.from_numpy(values).permute(2, 0, 1) / 255
    opaque = np.concatenate([values, np.full((2, 4, 1), 255, np.uint8)], axis=2)
    sources = [values, values[None], values / 255, (values / 255).astype(np.float32), opaque]
    sources += [unit, unit[None], unit.double(), torch.from_numpy(values).permute(2, 0, 1)]
    sources.append(torch.cat([unit, torch.ones(1, 2, 4)]))
    for source in sources:
        picture = read_picture(source)
        assert_close(picture.rgb, expected)
        assert_close(picture.alpha, torch.ones(1, 2, 4))
    assert_close(read_picture(values[..., ::-1]).rgb, expected.flip(0))  # BGR by a negative stride
    grey = expected[:1].expand(3, 2, 4)
    for source in (values[..., 0], values[..., :1], unit[0], unit[:1]):
        assert_close(read_picture(source).rgb, grey)
    assert_close(read_picture(values[..., 0] > 50).rgb, (expected[:1] > -0.6).float().expand(3, 2, 4) * 2 - 1)


def test_what_is_given_stays_as_it_is() -> None:
    tensor, array = torch.full((4, 2, 2), 0.5), np.full((2, 2, 4), 0.5, np.float32)
    read_picture(tensor), read_picture(array)
    assert_close(tensor, torch.full((4, 2, 2), 0.5))
    assert array.min() == array.max() == 0.5


def test_background() -> None:
    source = np.zeros((1, 2, 4), np.uint8)
    source[0, 1] = (255, 0, 0, 128)
    picture = read_picture(source, background=BLUE)
    assert [colour(picture, 0, 0), colour(picture, 1, 0)] == [BLUE, (128, 0, 127)]
    padded = square(picture, 4)
    assert (colour(padded, 0, 0), padded.alpha[0, 0, 0].item()) == (BLUE, 1)


# ---- square ----------------------------------------------------------------------------------------------------


def test_pad() -> None:
    picture = square(read_picture(np.zeros((10, 30), np.uint8)), 24)
    expected = torch.ones(24, 24)
    expected[8:16] = -1
    assert_close(picture.rgb, expected.expand(3, 24, 24))
    assert_close(picture.alpha, torch.ones(1, 24, 24))
    assert_close(square(read_picture(np.zeros((30, 10), np.uint8)), 24).rgb, expected.T.expand(3, 24, 24))


def test_crop_and_stretch() -> None:
    thirds = np.repeat(np.array([0, 128, 255], np.uint8), 8)[None].repeat(8, 0)
    middle = square(read_picture(thirds), 16, "crop")
    assert_close(levels(middle), torch.full((3, 16, 16), 128.0), atol=1e-3, rtol=0)
    whole = levels(square(read_picture(thirds), 24, "stretch"))
    assert_close(whole[0, :, [4, 12, 20]], torch.tensor([0, 128, 255.0]).expand(24, 3), atol=1e-3, rtol=0)


def test_a_square_of_that_size_stays_as_it_is() -> None:
    source = torch.rand(4, 9, 9, generator=torch.Generator().manual_seed(0))
    picture = read_picture(source)
    for fit in ("pad", "crop", "stretch"):
        same = square(picture, 9, fit)
        assert_close((same.rgb, same.alpha), (picture.rgb, picture.alpha), rtol=0, atol=0)


def test_resizing_is_antialiased() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), 128)[None].repeat(256, 0)
    small = square(read_picture(stripes), 32).rgb
    assert small[:, 2:-2, 2:-2].abs().max() < 0.01  # an even grey; picking every eighth pixel would give -1
    noise = np.random.default_rng(0).random((64, 96), np.float32) / 2 + 0.25  # so that nothing is clipped
    pillows = np.asarray(Image.fromarray(noise).resize((32, 32), Image.Resampling.BICUBIC))
    ours = square(read_picture(noise), 32, "stretch").rgb[0]
    assert_close(ours / 2 + 0.5, torch.from_numpy(pillows.copy()), atol=1e-5, rtol=0)


def test_hidden_colours_do_not_bleed() -> None:
    disc = Image.new("RGBA", (90, 90), (0, 255, 0, 0))  # green that nobody is to see
    ImageDraw.Draw(disc).ellipse((10, 10, 80, 80), fill=(255, 0, 0, 255))
    hidden = np.asarray(disc).copy()
    hidden[hidden[..., 3] == 0] = (90, 60, 200, 0)
    ours, other = (square(read_picture(each), 20) for each in (disc, hidden))
    assert_close((ours.rgb, ours.alpha), (other.rgb, other.alpha), rtol=0, atol=0)
    # Red on white: no channel but red may differ from white's part.
    assert_close(ours.rgb[0], torch.ones(20, 20))
    share = square(read_picture(disc.getchannel("A")), 20).rgb[0]  # of red, resized as colours are
    assert_close(ours.rgb[1], -share, atol=1e-5, rtol=0)
    # Near what the training data are resized by, which is Lanczos at eight bits.
    rgba = np.asarray(resize_rgba(disc, 20), np.float32) / 255
    assert np.abs(rgba[..., 3] - (share.numpy() + 1) / 2).max() < 0.06


def test_alpha_does_not_overshoot() -> None:
    """It says where holes are: beside an edge it is neither above 1 nor below 0, and opaque stays opaque."""
    clear = np.full((40, 40, 4), 255, np.uint8)
    clear[:, :20, 3] = 0
    alpha = square(read_picture(clear), 10).alpha[0]
    assert_close(alpha[:, :4], torch.zeros(10, 4), rtol=0, atol=0)
    assert_close(alpha[:, 6:], torch.ones(10, 4))
    assert bool((alpha.diff(dim=1) >= 0).all())


def test_a_batch_is_its_pictures(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.png")
    clear = np.zeros((5, 7, 4), np.uint8)
    batch = read_pictures([tmp_path / "a.png", clear, str(tmp_path / "a.png")], 16, "crop")
    assert (batch.rgb.shape, batch.alpha.shape) == ((3, 3, 16, 16), (3, 1, 16, 16))
    alone = square(read_picture(tmp_path / "a.png"), 16, "crop")
    assert_close((batch.rgb[2], batch.alpha[2]), (alone.rgb, alone.alpha), rtol=0, atol=0)
    assert_close((batch.rgb[1], batch.alpha[1]), (torch.ones(3, 16, 16), torch.zeros(1, 16, 16)))
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert_close(read_pictures(pixels, 8).rgb, pixels * 2 - 1)
    assert_close(read_pictures(pixels.permute(0, 2, 3, 1).numpy(), 8).rgb, pixels * 2 - 1)
    assert_close(read_pictures(pixels[0], 8).rgb, pixels[:1] * 2 - 1)
    again = square(batch, 8)
    assert_close(again.rgb[1:2], square(Picture(batch.rgb[1:2], batch.alpha[1:2]), 8).rgb)
    with pytest.raises(UserError, match="empty list"):
        read_pictures([], 16)


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1), (1, 1)])
def test_strips(shape: tuple[int, int], fit: str) -> None:
    picture = square(read_picture(np.zeros(shape, np.uint8)), 64, fit)  # type: ignore[arg-type]
    assert picture.rgb.shape == (3, 64, 64)
    black = 64 if fit == "pad" and max(shape) > 1 else 64 * 64  # a line of one pixel, or all
    assert int((picture.rgb[0] < -0.99).sum()) == black


# ---- masks -----------------------------------------------------------------------------------------------------


def half(mode: str = "L") -> Image.Image:
    """8 x 4, the right half white."""
    mask = Image.new("L", (8, 4), 20)  # not quite black, as JPEG leaves it
    mask.paste(240, (4, 0, 8, 4))
    return mask.convert(mode)


def test_mask() -> None:
    expected = torch.zeros(1, 4, 8)
    expected[..., 4:] = 1
    for source in (half(), half("RGB"), half("1"), half("RGBA"), np.asarray(half()), np.asarray(half()) > 99):
        assert_close(read_mask(source, like=(4, 8)), expected, rtol=0, atol=0)  # type: ignore[arg-type]
    assert_close(read_mask(Image.new("L", (4, 4), "white"), like=(4, 4)), torch.ones(1, 4, 4))


def test_a_mask_is_white_or_black() -> None:
    ramp = np.linspace(0, 255, 16).astype(np.uint8)[None].repeat(3, 0)
    assert_close(read_mask(ramp, like=(3, 16))[0, 0], (torch.arange(16) > 7).float())
    colours = np.zeros((1, 3, 3), np.uint8)
    colours[0, range(3), range(3)] = 255  # a third as bright as white
    colours[0, 2] = (255, 255, 0)
    assert_close(read_mask(colours, like=(1, 3)), torch.tensor([[[0.0, 0.0, 1.0]]]))


def test_transparent_parts_of_a_mask_are_kept() -> None:
    strokes = np.full((4, 4, 4), 255, np.uint8)
    strokes[:2, :, 3] = 0
    assert_close(read_mask(strokes, like=(4, 4))[0, :, 0], torch.tensor([0.0, 0, 1, 1]))


def test_a_mask_lies_as_its_picture_does(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the left third of what is stored is the upper third of what is seen
    photo = Image.new("L", (60, 40))
    photo.paste(255, (0, 0, 20, 40))
    photo.save(tmp_path / "a.png", exif=exif)
    picture = read_picture(tmp_path / "a.png")
    assert picture.size == (60, 40)
    mask = read_mask(tmp_path / "a.png", like=picture.size)
    assert_close(mask * 2 - 1, picture.rgb[:1])
    assert_close(mask.mean(2), (torch.arange(60) < 20).float()[None])


def test_masks_that_do_not_do() -> None:
    with pytest.raises(UserError, match=r"the mask has 8 x 4 pixels and its picture 8 x 8: give a mask"):
        read_mask(half(), like=(8, 8))
    with pytest.raises(UserError, match="marks nothing: paint white"):
        read_mask(Image.new("L", (8, 4), 90), like=(4, 8))
    with pytest.raises(UserError, match="the mask is an array of shape"):
        read_mask(np.zeros((4, 4, 2)), like=(4, 4))
