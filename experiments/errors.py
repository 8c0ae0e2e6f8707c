"""What went wrong, in one line for the user."""

from __future__ import annotations


class UserError(ValueError):
    """The request was wrong: the message says what was given, what is allowed and what to do.

    The command line prints it as one line and exits with status 2.
    """
