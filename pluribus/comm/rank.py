"""A rank process's side of its line to the launcher.

The launcher writes one JSON line to stdin (the rank's configuration), later perhaps messages;
the rank writes one JSON line per event to stdout. Everything else that prints lands in the
rank's log. When the launcher disappears, stdin ends and the rank leaves.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from pluribus.core.errors import PluribusError

PEER_LOST = "peer_lost"


class PeerLostError(Exception):
    """A collective failed because another rank went away; the launcher names the culprit."""


class RankLine:
    """The open line: `config` came in first, `messages` arrive while running."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
        os.dup2(2, 1)  # libraries that print to stdout must not corrupt the line
        self._lock = threading.Lock()
        self.config: dict[str, Any] = json.loads(sys.stdin.readline())
        self._messages: set[str] = set()
        threading.Thread(target=self._listen, daemon=True).start()

    def report(self, event: str, **fields: Any) -> None:
        """Sends one event to the launcher."""
        line = json.dumps({"event": event, **fields})
        with self._lock:
            self._out.write(line + "\n")

    def told(self, message: str) -> bool:
        """Whether the launcher has sent this message, e.g. ``"stop"``."""
        return message in self._messages

    def _listen(self) -> None:
        for line in sys.stdin:
            self._messages.add(line.strip())
        os._exit(3)  # the launcher is gone: nobody would read a checkpoint's completion


def rank_main(body: Callable[[RankLine], None]) -> None:
    """Runs ``body`` as a whole rank process: pins it to its cores, reports how it ended."""
    line = RankLine()
    cores = line.config["cores"]
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    try:
        body(line)
    except PluribusError as error:
        line.report("error", what=error.what, where=error.where, do=error.do)
        code = 2
    except PeerLostError as error:
        line.report(PEER_LOST, what=str(error))
        code = 4
    except Exception as error:  # the launcher shows one line; the traceback is in the log
        traceback.print_exc()
        line.report("error", what=f"{type(error).__name__}: {error}", where="", do="")
        code = 1
    else:
        line.report("done")
        code = 0
    sys.stderr.flush()
    os._exit(code)  # gloo's threads may abort a regular interpreter exit (pytorch#190489)
