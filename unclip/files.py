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
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept, since writers such as PIL choose the format by it.
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with _disk_full_is_a_user_error(path):
            yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes files private; a written picture is not
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; on success it takes its place, on failure it is removed.

    Raises:
        UserError: the disk is full; what stood at `path` before is still there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        with _disk_full_is_a_user_error(path):
            yield temporary
        temporary.chmod(0o777 & ~_umask())
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


@contextmanager
def _disk_full_is_a_user_error(path: Path) -> Iterator[None]:
    try:
        yield
    # safetensors and torch report a full disk as their own exceptions, with the system's words inside.
    except Exception as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error)
        if not full:
            raise
        free = shutil.disk_usage(path.parent).free
        raise UserError(
            f"no space left to write {path}: {free / 1e6:.0f} MB free; free some space or choose another "
            "folder, then run the same command again"
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
