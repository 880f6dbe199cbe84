"""Whether a published run ended for want of memory, in whatever words its row says so."""

from __future__ import annotations

import re
from collections.abc import Mapping

# Columns of prose: they may speak of another run's end.
_PROSE = frozenset({"source", "table", "model", "note", "gpu", "file"})

_RAN_OUT = re.compile(r"\bOOM\b|\bout[\s_-]*of[\s_-]*memory|\b(does|did)(n.t| not) fit\b", re.I)
_DID_NOT = re.compile(
    r"\b(no|not|without|never|avoid\w*|prevent\w*|before|until|or|else|otherwise)\s+"
    r"((an?|the|r[au]n\w*|go\w*|went)\s+)*(OOM\b|out[\s_-]*of[\s_-]*memory)",
    re.I,
)
_YES = re.compile(r"\s*(1|1\.0|true|yes|y)\s*", re.I)
_MORE_THAN = re.compile(r"\s*([>≥∞]|\+?inf)", re.I)


def ran_out(row: Mapping[str, object], flags: list[str], *, timed: bool) -> bool:
    """Whether the row is of a run that did not fit its chips.

    Any cell of any column of facts may say so (``OOM``, ``oom``, ``CUDA out of memory``), a column
    of that name may say yes, and a peak may be given as more than a number. Prose counts only for
    a run without a time, and not where it says that it did not come to that.

    Args:
        timed: whether the row gives a time or a rate.
        flags: gets what contradicts itself.
    """
    cells = {str(key or ""): str(cell or "") for key, cell in row.items()}
    facts = {key: cell for key, cell in cells.items() if key not in _PROSE}
    said = any(_tells(cell) for cell in facts.values())
    said |= any(_YES.fullmatch(cell) for key, cell in facts.items() if _RAN_OUT.search(key))
    if not timed:
        said |= bool(_MORE_THAN.match(cells.get("peak_mem_gb", "")))
        said |= _tells(cells.get("note", ""))
    elif said:
        flags.append("ran out of memory, though a time is given")
    return said


def _tells(cell: str) -> bool:
    return bool(_RAN_OUT.search(_DID_NOT.sub(" ", cell)))
