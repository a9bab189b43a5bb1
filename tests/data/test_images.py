"""Reading shards: pictures, captions, and what happens to damaged ones."""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import pytest
import webdataset
from PIL import Image

from unclip.data import CaptionedImages, ComposedScenes, render_svg
from unclip.data.images import on_background
from unclip.data.render import resize_rgba
from unclip.data.shards import read_tar, scan_tar, write_tar
from unclip.errors import UserError


def test_fixture_is_a_few_hundred_licensed_samples(fixture_path):
    ds = CaptionedImages(fixture_path, split=None)
    assert fixture_path.stat().st_size <= 2_000_000
    assert len(ds) >= 200
    assert ds.skipped == 0
    assert {record["split"] for record in ds.records} == {"train", "style", "tone", "attribute", "unseen"}
    free = {"MIT", "Apache-2.0", "CC-BY-4.0", "CC-BY-3.0"}
    assert {record["licence"] for record in ds.records} <= free
    notice = (fixture_path.parent / "NOTICE").read_text()
    assert all(record["source"] in notice and record["author"] in notice for record in ds.records)
    assert sum(ds.svg(i) is not None for i in range(len(ds))) >= 30
    styles: dict[str, set[str]] = {}
    for record in ds.records:
        styles.setdefault(record["subject"], set()).add(record["style"])
    assert sum(len(found) >= 5 for found in styles.values()) >= 10


def test_webdataset_reads_the_same_samples(fixture_path):
    ds = CaptionedImages(fixture_path, split=None)
    streamed = list(webdataset.WebDataset(str(fixture_path), shardshuffle=False).decode("rgb8"))
    assert [sample["json"] for sample in streamed] == ds.records
    assert streamed[0]["webp"].dtype == np.uint8


def test_pictures_have_any_size_and_weights_sum_to_one(real):
    assert real.rgba(0).shape == (256, 256, 4)
    assert real.rgba(0, 48).shape == (48, 48, 4)
    assert real.rgb(0, 32).shape == (32, 32, 3)
    assert real.rgba(0, 48).dtype == real.rgb(0, 32).dtype == np.uint8
    assert real.weights.shape == (len(real),)
    np.testing.assert_allclose(real.weights.sum(), 1.0)
    assert real.thumbnails(16).shape == (len(real), 16, 16, 4)


def test_captions_are_drawn_from_the_forms(real):
    drawn = {real.caption(0, np.random.default_rng(i)) for i in range(60)}
    assert drawn == set(real.captions(0)) == set(real.records[0]["captions"].values())


def test_background_shows_through_and_invisible_colours_do_not_bleed():
    half = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [0, 0, 0, 128]]], np.uint8)
    np.testing.assert_array_equal(on_background(half, (10, 20, 30))[0, :2], [[200, 100, 0], [10, 20, 30]])
    picture = np.zeros((8, 8, 4), np.uint8)
    picture[:, :4] = (255, 0, 0, 255)
    picture[:, 4:] = (0, 255, 0, 0)  # green, but invisible
    small = np.asarray(resize_rgba(Image.fromarray(picture), 4))
    assert small[..., 1].max() <= 2


def test_thumbnails_are_kept_beside_a_build_and_follow_the_captions(fixture_path, tmp_path, monkeypatch):
    (tmp_path / "shards").mkdir()
    shutil.copy(fixture_path, tmp_path / "shards" / "emoji-00000.tar")
    first = CaptionedImages(tmp_path, split="style").thumbnails(16)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    again = CaptionedImages(tmp_path / "shards", split="style")
    monkeypatch.setattr(again, "rgba", lambda *args: pytest.fail("the kept file is read"))
    np.testing.assert_array_equal(again.thumbnails(16), first)
    assert CaptionedImages(tmp_path, split="tone").fingerprint() != again.fingerprint()


def test_svg_crop_is_the_part_of_the_whole(real):
    i = next(i for i in range(len(real)) if real.svg(i) is not None)
    whole = render_svg(real.svg(i), 128).astype(int)
    part = render_svg(real.svg(i), 64, crop=(0.25, 0.5, 0.5)).astype(int)
    assert np.abs(part - whole[64:128, 32:96]).mean() < 1.0
    with pytest.raises(ValueError, match="viewBox"):
        render_svg("<svg></svg>", 16)


# What a user's own picture needs at least.
OWN = {
    "key": "x", "subject": "a boat", "style": "photo", "captions": {"plain": "a boat"}, "split": "train", "weight": 1
}  # fmt: skip


def test_own_pictures_need_no_more_than_a_caption(fixture_path, tmp_path):
    rewrite(fixture_path, tmp_path / "a.tar", lambda files: files.update(json=json.dumps(OWN).encode()))
    ds = CaptionedImages(tmp_path / "a.tar", split=None)
    assert (len(ds), ds.skipped) == (20, 0)
    own = next(record for record in ds.records if record["key"] == "x")
    assert (own["concept"], own["group"]) == ("a boat", "")
    with pytest.raises(UserError, match=r"do without scenes \(task.scenes=0"):
        ComposedScenes(CaptionedImages(only(own, fixture_path, tmp_path / "b.tar")), seed=0, length=1)


def only(record, fixture_path, target):
    """A shard of one picture, described by `record`."""
    files = next(read_tar(fixture_path))[1]
    write_tar(target, [("x", {"json": json.dumps(record).encode(), "webp": files["webp"]})])
    return target


@pytest.mark.parametrize("key", ["my.boat", "boats/mine", "", "b" * 200])
def test_keys_that_a_shard_cannot_hold_are_refused(tmp_path, key):
    with pytest.raises(UserError, match="without dots and slashes"):
        write_tar(tmp_path / "a.tar", [(key, {"json": b"{}"})])
    assert not list(tmp_path.iterdir())


def rewrite(fixture_path, target, change, count=20):
    """The first samples of the fixture with one changed."""
    samples = list(read_tar(fixture_path))[:count]
    change(samples[5][1])
    write_tar(target, samples)


@pytest.mark.parametrize(
    "change",
    [
        lambda files: files.update(webp=files["webp"][:100] + b"\0\0\0" + files["webp"][103:]),
        lambda files: files.update(webp=files["webp"][:-50]),
        lambda files: files.update(json=files["json"][:-20]),
        lambda files: files.update(json=b"[]"),
        lambda files: files.pop("webp"),
        lambda files: files.update(json=json.dumps({"key": "x"}).encode()),
        lambda files: files.update(json=json.dumps(OWN | {"captions": ["a boat"]}).encode()),
        lambda files: files.update(json=json.dumps(OWN | {"weight": "much"}).encode()),
        lambda files: files.update(json=json.dumps(OWN).encode(), webp=b"no picture"),
    ],
)
def test_a_damaged_sample_is_skipped_and_counted(fixture_path, tmp_path, change):
    rewrite(fixture_path, tmp_path / "a.tar", change)
    with pytest.warns(UserWarning, match="1 damaged samples"):
        ds = CaptionedImages(tmp_path / "a.tar", split=None)
    assert (len(ds), ds.skipped) == (19, 1)
    assert ds.thumbnails(8).shape[0] == 19


def test_a_cut_off_shard_gives_what_it_holds_and_the_others_go_on(fixture_path, tmp_path):
    (tmp_path / "shards").mkdir()
    rewrite(fixture_path, tmp_path / "shards" / "a.tar", lambda files: None)
    shutil.copy(fixture_path, tmp_path / "shards" / "b.tar")
    whole = (tmp_path / "shards" / "a.tar").read_bytes()
    members, _ = scan_tar(tmp_path / "shards" / "a.tar")
    cut = next(member for member in members[30:] if member.extension == "webp").offset + 10
    (tmp_path / "shards" / "a.tar").write_bytes(whole[:cut])
    with pytest.warns(UserWarning, match="1 damaged samples"):
        ds = CaptionedImages(tmp_path, split=None)
    sound = len(list(read_tar(fixture_path)))
    assert sound < len(ds) < sound + 20
    assert ds.skipped == 1


def test_a_damaged_header_costs_one_sample(fixture_path, tmp_path):
    path = tmp_path / "a.tar"
    rewrite(fixture_path, path, lambda files: None)
    data = bytearray(path.read_bytes())
    members, _ = scan_tar(path)
    header = next(member for member in members[30:] if member.extension == "webp").offset - 512
    data[header : header + 64] = b"\xff" * 64
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="1 damaged samples"):
        ds = CaptionedImages(path, split=None)
    assert (len(ds), ds.skipped) == (19, 1)


def test_a_sound_shard_warns_of_nothing(fixture_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CaptionedImages(fixture_path)


def test_mistakes_are_named(tmp_path, fixture_path):
    with pytest.raises(UserError, match="unknown split 'test'; expected some of: train, style"):
        CaptionedImages(fixture_path, split="test")
    with pytest.raises(UserError, match="no shards at"):
        CaptionedImages(tmp_path)
    with pytest.raises(UserError, match="expected a tar shard"):
        CaptionedImages(tmp_path / "missing.tar")
    (tmp_path / "shards").mkdir()
    shutil.copy(fixture_path, tmp_path / "shards" / "a.tar")
    (tmp_path / "manifest.json").write_text('{"shards": ["a.tar", "b.tar"]}')
    with pytest.raises(UserError, match=r"lacks b.tar"):
        CaptionedImages(tmp_path)
    (tmp_path / "manifest.json").write_text('{"shards"')
    with pytest.raises(UserError, match=r"manifest.json is damaged"):
        CaptionedImages(tmp_path)


def test_what_a_killed_build_left_is_not_read(fixture_path, tmp_path):
    (tmp_path / "shards").mkdir()
    shutil.copy(fixture_path, tmp_path / "shards" / "a.tar")
    shutil.copy(fixture_path, tmp_path / "shards" / ".a-x1.tar")
    assert len(CaptionedImages(tmp_path)) == len(CaptionedImages(fixture_path))


def test_a_split_of_an_open_set_is_what_opening_it_gives(fixture_path):
    whole = CaptionedImages(fixture_path, split=None)
    for split in ("train", "style"):
        chosen, opened = whole.only(split), CaptionedImages(fixture_path, split=split)
        assert chosen.records == opened.records
        assert chosen.fingerprint() == opened.fingerprint() != whole.fingerprint()
        np.testing.assert_allclose(chosen.weights, opened.weights)
        np.testing.assert_array_equal(chosen.rgba(1, 32), opened.rgba(1, 32))
        np.testing.assert_array_equal(chosen.thumbnails(16), opened.thumbnails(16))
    with pytest.raises(UserError, match="no picture of split style"):
        whole.only("train").only("style")
