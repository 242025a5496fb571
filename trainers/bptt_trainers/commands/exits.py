"""How a command ends otherwise than well; `bptt_trainers.cli` turns these into exit codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bptt_trainers.host.user_code import raised_by_user


class Misuse(Exception):
    """The command line asks for what cannot be; the message names the argument and what would be right."""


class Failed(Exception):
    """What was looked at is not as it should be; the message says how much is wrong."""


class Interrupted(Exception):
    """Ctrl-C.

    Args:
        message: what stands.
        resume: the command that goes on; None: the same command again.
    """

    def __init__(self, message: str, resume: str | None = None) -> None:
        super().__init__(message)
        self.resume = resume


@contextmanager
def checking_arguments() -> Iterator[None]:
    """Turn a ValueError about what was asked for into `Misuse`; for set-up only, where nothing runs yet.

    One that code of the user's raises is none of ours, and stays what it is.
    """
    try:
        yield
    except ValueError as error:
        if raised_by_user(error):
            raise
        raise Misuse(str(error)) from error
