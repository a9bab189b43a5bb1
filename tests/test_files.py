"""Files and folders are written whole or not at all."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path

import pytest

from unclip.errors import UserError
from unclip.files import atomic_dir, atomic_path, check_writable


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_path_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with atomic_path(target) as temporary:
        assert temporary.suffix == ".txt"
        assert temporary.parent == target.parent
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert names(target.parent) == ["a.txt"]
    assert target.stat().st_mode & 0o044  # others may read it, unlike a temporary file


def test_failure_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with suppress(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_folder_takes_the_old_ones_place(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old.txt").write_text("old")
    with suppress(RuntimeError), atomic_dir(target) as temporary:
        (temporary / "half.txt").write_text("half")
        raise RuntimeError
    assert names(target) == ["old.txt"]
    with atomic_dir(target) as temporary:
        (temporary / "new.txt").write_text("new")
        (temporary / "new.txt").chmod(0o600)
        assert names(target) == ["old.txt"]
    assert names(target) == ["new.txt"]
    (tmp_path / "usual").touch()
    assert (target / "new.txt").stat().st_mode == (tmp_path / "usual").stat().st_mode
    (tmp_path / "usual").unlink()
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device"),
        OSError("1000 requested and 10 written"),  # numpy's
    ],
)
@pytest.mark.parametrize("writer", [atomic_path, atomic_dir])
def test_a_full_disk_is_the_users_affair(tmp_path: Path, writer: object, error: Exception) -> None:
    message = r"no space left to write .*target.*free some space"
    with pytest.raises(UserError, match=message) as caught, writer(tmp_path / "target"):  # type: ignore[operator]
        raise error
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("writer", [atomic_path, atomic_dir])
def test_other_errors_stay_what_they_are(tmp_path: Path, writer: object) -> None:
    with pytest.raises(PermissionError), writer(tmp_path / "target"):  # type: ignore[operator]
        raise PermissionError(errno.EACCES, "denied")


def test_a_folder_is_tried_before_slow_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder")
    assert names(tmp_path) == []
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(NotADirectoryError):
            check_writable(path)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no folder that says it can be written and cannot")
def test_a_folder_that_only_says_it_can_be_written() -> None:
    with pytest.raises(PermissionError):
        check_writable("/proc/nowhere")
