"""The one exception that a user's mistake raises; the command line prints it as a single line."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user asked for cannot be done: says what was expected, what came and the remedy."""
