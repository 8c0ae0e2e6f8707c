"""What went wrong, in one line for the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """The request was wrong: the message says what was given, what is allowed and what to do.

    The command line prints it as one line and exits with status 2.
    """


@contextmanager
def told_to_the_user() -> Iterator[None]:
    """A ValueError of code that knows no UserError, such as a data set's, becomes one."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error
