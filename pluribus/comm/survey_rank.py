"""One rank of a survey: started by `pluribus comm`, or one of torchrun's processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pluribus.comm import survey
from pluribus.comm.backend import NAME, register
from pluribus.comm.options import Options
from pluribus.comm.rank import RankLine, rank_main

_TIMEOUT = timedelta(seconds=120)


def run(given: Mapping[str, Any], say: Callable[..., None]) -> None:
    """Takes part with the default group.

    Args:
        given: ``what`` ("probe" or "bench"), and for a bench ``operations``, ``sizes``,
            ``repeats``, ``every``.
        say: gets ("links", links=…) or ("row", row=…); only rank 0's is of interest.
    """
    group: Any = dist.group.WORLD
    if given["what"] == "probe":
        say("links", links=survey.links(group))
        return
    group.probe()
    measured = survey.algorithms(
        group, given["operations"], given["sizes"], given["repeats"], given["every"]
    )
    for row in measured:
        say("row", row=asdict(row))


def join(rank: int, size: int, store: dist.Store | None, options: Options) -> None:
    """Makes the default group; without a store by torchrun's environment."""
    register()
    torch.set_num_threads(1)
    more: dict[str, Any] = {} if store is None else {"store": store, "rank": rank}
    dist.init_process_group(
        NAME,
        timeout=_TIMEOUT,
        pg_options=options,
        **(more | ({"world_size": size} if more else {})),
    )


def _main(line: RankLine) -> None:
    config = line.config
    store = dist.TCPStore("127.0.0.1", config["port"], is_master=False, timeout=_TIMEOUT)
    options = Options(**config["options"])
    join(config["rank"], config["size"], store, options)
    run(config, line.report if config["rank"] == 0 else lambda *_, **__: None)
    dist.destroy_process_group()


if __name__ == "__main__":
    rank_main(_main)
