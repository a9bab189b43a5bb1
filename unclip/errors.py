"""The one exception that a user's mistake raises; the command line prints it as a single line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something the user asked for cannot be done: says what was expected, what came and the remedy."""


def one_line(message: object) -> str:
    """A message without line breaks."""
    return " ".join(str(message).split())


@contextmanager
def mistakes_end_the_program() -> Iterator[None]:
    """For a command line: a UserError, or a path that cannot be used, is one line and exit code 2; Ctrl-C gives 130."""
    try:
        yield
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        print(f"error: {error.strerror}: {error.filename}; choose another path", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
