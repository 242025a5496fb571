"""How a command ends otherwise than well; `bptt_trainers.cli` turns these into exit codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Misuse(Exception):
    """The command line asks for what cannot be; the message names the argument and what would be right."""


class Interrupted(Exception):
    """Ctrl-C; the message says what stands and which command goes on."""


@contextmanager
def checking_arguments() -> Iterator[None]:
    """Turn a ValueError about what the user asked for into `Misuse`; for set-up only, where nothing runs yet."""
    try:
        yield
    except ValueError as error:
        raise Misuse(str(error)) from error
