"""Building: the same bytes, resuming, clear errors. Made-up artworks, no network."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat

import pytest
from typer.testing import CliRunner

from unclip.data import CaptionedImages, build, build_emoji
from unclip.data.cli import app
from unclip.data.sources import Package, choose_sources, fetch
from unclip.errors import UserError


@pytest.fixture
def fake_art(monkeypatch, artworks):
    """40 objects, hearts and some people; one repeated picture and one that cannot be drawn."""
    chosen = [artwork for artwork in artworks if int(artwork.key.split("_")[1]) < 60]
    chosen.append(dataclasses.replace(chosen[0], key="noto_again", concept=chosen[5].concept))
    broken = '<svg viewBox="0 0 8 8"><path d='
    chosen.append(dataclasses.replace(chosen[1], key="twemoji_broken", svg=broken))
    monkeypatch.setattr(build, "list_artworks", lambda sources, cache: list(chosen))
    monkeypatch.setattr(build, "SIZE", 32)
    monkeypatch.setattr(build, "CHUNK", 64)
    monkeypatch.setattr(build, "SHARD", 80)
    return chosen


def hashes(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes_in_one_process_or_two(fake_art, tmp_path):
    first = build_emoji(tmp_path / "a", seed=3, processes=1, progress=False)
    build_emoji(tmp_path / "b", seed=3, processes=2, progress=False)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    build_emoji(tmp_path / "c", seed=4, processes=1, progress=False)
    assert hashes(tmp_path / "a") != hashes(tmp_path / "c")
    assert list(first["failures"]) == ["twemoji_broken"]
    assert first["left_out"]["repeated"] == 1
    assert len(first["shards"]) == 4
    assert not (tmp_path / "a" / ".build").exists()
    ds = CaptionedImages(tmp_path / "a", split=None)
    assert len(ds) == first["samples"] == sum(first["splits"].values())
    assert ds.skipped == 0
    assert ds.rgba(0, 32).shape == (32, 32, 4)
    assert ds.svg(0).startswith("<svg")


def test_an_interrupted_build_goes_on_and_gives_the_same_bytes(fake_art, tmp_path, monkeypatch):
    build_emoji(tmp_path / "whole", processes=1, progress=False)
    drawn = []
    render = build.render

    def count(svg, webp, size):
        if len(drawn) == 150:
            raise KeyboardInterrupt
        drawn.append(svg)
        return render(svg, webp, size)

    monkeypatch.setattr(build, "render", count)
    with pytest.raises(KeyboardInterrupt):
        build_emoji(tmp_path / "cut", processes=1, progress=False)
    assert not (tmp_path / "cut" / "manifest.json").exists()
    with pytest.raises(UserError, match="other arguments"):
        build_emoji(tmp_path / "cut", seed=1, processes=1, progress=False)
    drawn.clear()
    monkeypatch.setattr(build, "render", lambda *args, **kw: drawn.append(1) or render(*args, **kw))
    build_emoji(tmp_path / "cut", processes=1, progress=False)
    assert len(drawn) == len(fake_art) - 2 * build.CHUNK  # two chunks were kept
    assert hashes(tmp_path / "cut") == hashes(tmp_path / "whole")


def test_a_finished_build_is_returned_and_never_overwritten(fake_art, tmp_path, monkeypatch):
    manifest = build_emoji(tmp_path / "a", processes=1, progress=False)
    monkeypatch.setattr(build, "list_artworks", lambda sources, cache: pytest.fail("nothing is left to do"))
    assert build_emoji(tmp_path / "a", processes=1, progress=False) == json.loads(json.dumps(manifest))
    with pytest.raises(UserError, match="choose another --out"):
        build_emoji(tmp_path / "a", limit=10, processes=1, progress=False)


def test_a_damaged_manifest_is_named(fake_art, tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest.json is damaged .* build again"):
        build_emoji(tmp_path, progress=False)


def test_limit_takes_subjects_in_several_styles(fake_art, tmp_path):
    manifest = build_emoji(tmp_path / "a", limit=40, processes=1, progress=False)
    ds = CaptionedImages(tmp_path / "a", split=None)
    assert 36 <= manifest["samples"] <= 40
    styles: dict[str, set[str]] = {}
    for record in ds.records:
        styles.setdefault(record["subject"], set()).add(record["style"])
    assert sum(len(found) >= 3 for found in styles.values()) >= len(styles) - 2
    assert {record["group"] for record in ds.records} == {"objects", "symbols", "people-body"}


def test_people_and_tones_are_weighted_down(fake_art, tmp_path):
    build_emoji(tmp_path / "a", processes=1, progress=False)
    weight = {
        (record["group"], record["style"]): record["weight"]
        for record in CaptionedImages(tmp_path / "a", split=None).records
    }
    assert weight["people-body", "noto"] < 0.2 * weight["objects", "noto"]
    assert weight["objects", "blob"] == 0.5 * weight["objects", "noto"]


def test_nothing_is_written_before_the_art_is_there(tmp_path, monkeypatch):
    def offline(sources, cache):
        raise UserError("npm is needed")

    monkeypatch.setattr(build, "list_artworks", offline)
    with pytest.raises(UserError, match="npm"):
        build_emoji(tmp_path / "a", progress=False)
    assert not (tmp_path / "a").exists()


def test_source_names_are_checked_and_share_alike_is_off_by_default():
    assert [source.style for source in choose_sources(["3d", "noto"])] == ["noto", "3D"]
    assert not any(source.share_alike for source in choose_sources(None))
    with pytest.raises(UserError, match=r"unknown source 'cubist'; expected some of: noto, 3D"):
        choose_sources(["cubist"])


CONTENT = b"a tarball"
PACKAGE = Package(name="@scope/art", version="1.2.3", sha256=hashlib.sha256(CONTENT).hexdigest())


def fake_npm(folder, body):
    folder.mkdir()
    npm = folder / "npm"
    npm.write_text(f"#!/bin/sh\n{body}\n")
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_fetch_keeps_a_sound_copy_only(tmp_path, monkeypatch):
    # npm's arguments: pack SPEC --silent --pack-destination FOLDER
    monkeypatch.setenv("PATH", fake_npm(tmp_path / "good", 'printf "a tarball" > "$5/scope-art-1.2.3.tgz"'))
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / PACKAGE.filename).write_bytes(CONTENT[:4])  # cut off: fetched again
    assert fetch(PACKAGE, cache).read_bytes() == CONTENT
    monkeypatch.setenv("PATH", "")
    assert fetch(PACKAGE, cache).read_bytes() == CONTENT  # needs no npm
    assert [path.name for path in cache.iterdir()] == [PACKAGE.filename]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('printf "another" > "$5/scope-art-1.2.3.tgz"', "expected " + PACKAGE.sha256),
        ("echo 'network is down' >&2; exit 1", r"failed \(network is down\); check the network"),
    ],
)
def test_fetch_says_what_went_wrong_and_leaves_nothing(tmp_path, monkeypatch, body, message):
    monkeypatch.setenv("PATH", fake_npm(tmp_path / "bad", body))
    with pytest.raises(UserError, match=message):
        fetch(PACKAGE, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_missing_npm_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"npm is needed to fetch @scope/art@1\.2\.3.*install Node\.js"):
        fetch(PACKAGE, tmp_path / "cache")


def test_command_builds_and_counts(fake_art, tmp_path):
    result = CliRunner().invoke(app, ["build", "emoji", "--out", str(tmp_path / "a"), "--processes", "1"])
    assert result.exit_code == 0, result.output
    assert "pictures in 4 shards" in result.output
    assert "1 repeated" in result.output
    assert (tmp_path / "a" / "ATTRIBUTION.md").read_text().count("MIT") >= 2
