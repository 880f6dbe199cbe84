"""A rank that does what its configuration says: the ways a rank can end."""

from __future__ import annotations

import os
import time

from pluribus.comm.rank import PeerLostError, RankLine, rank_main
from pluribus.core.errors import DataError


def body(line: RankLine) -> None:
    line.report("pid", pid=os.getpid())
    match line.config["deed"]:
        case "fine":
            print("this goes to the log, not into the line")
        case "wait":
            while not line.told("go"):
                time.sleep(0.01)
        case "mistake":
            raise DataError("is empty", where="a.bin", do="Write it again.")
        case "bug":
            raise ValueError("seven")
        case "lost":
            raise PeerLostError("connection closed")
        case "exit":
            os._exit(7)


if __name__ == "__main__":
    rank_main(body)
