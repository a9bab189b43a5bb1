"""Files and folders that are written whole or not at all: a temporary sibling, then a rename."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unclip.errors import UserError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    Raises:
        UserError: the disk is full; nothing half-written is left behind.
    """
    path = Path(path)
    with disk_full_is_a_user_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix is kept, since writers such as PIL choose the format by it.
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    temporary = Path(name)
    try:
        with disk_full_is_a_user_error(path):
            yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes files private; a written picture is not
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all; its last line ends with a newline.

    Raises:
        UserError: the disk is full.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; on success it takes its place, on failure it is removed.

    Raises:
        UserError: the disk is full; what stood at `path` before is still there.
    """
    path = Path(path)
    with disk_full_is_a_user_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        with disk_full_is_a_user_error(path):
            yield temporary
        temporary.chmod(0o777 & ~_umask())
        for file in filter(Path.is_file, temporary.rglob("*")):  # safetensors makes its files private too
            file.chmod(0o666 & ~_umask())
        if (
            path.exists()
        ):  # moved aside, not removed first: a kill in between loses neither the old nor the new
            os.replace(path, replaced := temporary.with_name(f"{temporary.name}-old"))
            os.replace(temporary, path)
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(folder: str | Path) -> None:
    """See that files can be written to `folder`, there or yet to be made, before slow work; nothing is left.

    Raises:
        NotADirectoryError, PermissionError: the path leads through a file, or is not the user's.
    """
    path = Path(folder).absolute()
    there = next(each for each in (path, *path.parents) if each.exists())
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
    try:  # making a folder tells most: some, such as /proc, say that they can be written and cannot
        Path(tempfile.mkdtemp(prefix=".unclip-", dir=there)).rmdir()
    except OSError as error:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there)) from error


@contextmanager
def disk_full_is_a_user_error(path: Path) -> Iterator[None]:
    """Turn the system's "no space left" while `path` is written into one line with the remedy."""
    try:
        yield
    # safetensors and torch report a full disk as their own exceptions, with the system's words inside.
    except Exception as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or any(
            words in str(error)
            for words in ("No space left on device", "requested and")  # numpy's words
        )
        if not full:
            raise
        there = next(folder for folder in path.absolute().parents if folder.is_dir())
        free = shutil.disk_usage(there).free
        raise UserError(
            f"no space left to write {path}: {free / 1e6:.0f} MB free; free some space or choose another "
            "folder, then run the same command again (a training run that has begun: with --resume)"
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
