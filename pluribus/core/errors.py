"""The exception tree. A user's mistake is a `PluribusError`; our own impossibility an `assert`.

PluribusError            exit code 2: one message, no traceback
├── ConfigError          a file or value the user wrote is wrong
├── MissingFileError     a file the user named is not there
├── UnsupportedModelError  a config.json we cannot read
├── PlanError            no plan is possible, or a plan does not fit its cluster
├── DataError            token data is damaged or too small
├── CheckpointError      a checkpoint is incomplete or belongs to another model
├── MeasureError         a chip or link could not be measured
└── RankError            a rank died or reported an error while training
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PluribusError(Exception):
    """A mistake the user can mend.

    Args:
        what: what is wrong, with the offending value.
        where: the file and key, or the rank and chip, it was found at.
        do: the next action for the user.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", do: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.do = do

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  {self.do}" if self.do else head


class ConfigError(PluribusError):
    """A file or value the user wrote is wrong."""


class MissingFileError(PluribusError):
    """A file the user named is not there."""


class UnsupportedModelError(PluribusError):
    """A config.json of an architecture we do not know, or with numbers that contradict."""


class PlanError(PluribusError):
    """No plan is possible, or a plan does not fit its job or cluster."""


class DataError(PluribusError):
    """Token data is damaged, of another vocabulary, or too small for the job."""


class CheckpointError(PluribusError):
    """A checkpoint is incomplete, damaged, or of another model."""


class MeasureError(PluribusError):
    """A chip or a link could not be measured."""


class RankError(PluribusError):
    """A rank died or reported an error; the others were stopped."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint naming the closest known word, or the whole (short) list.

    Returns:
        ``did you mean 'x'?`` when something is close, otherwise ``known: a, b, c``.
    """
    words = sorted(known)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    shown = ", ".join(words[:12])
    return f"known: {shown}" + (f", … ({len(words)} in all)" if len(words) > 12 else "")


def sentence(hint: str) -> str:
    """A hint with a capital and a full stop, its other letters as they are."""
    return hint[0].upper() + hint[1:] + ("" if hint.endswith("?") else ".")
