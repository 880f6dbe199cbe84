"""A survey's ranks: on this machine, started here, or this process among those torchrun started."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pluribus.comm import survey
from pluribus.comm.backend import NAME, register
from pluribus.comm.fabric import host_store
from pluribus.comm.launch import RankProcess, Ranks
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


def here(
    ranks: int, given: Mapping[str, Any], options: Mapping[str, Any], folder: Path
) -> Iterator[dict[str, Any]]:
    """Surveys ranks on this machine; yields what rank 0 says, as `run` would.

    Args:
        options: fields of `Options`.
        folder: for the ranks' logs.

    Raises:
        RankError: a rank died.
    """
    store, port = host_store(_TIMEOUT.total_seconds())
    config = {**given, "size": ranks, "port": port, "options": dict(options)}
    processes = [
        RankProcess(rank=rank, chip=f"rank {rank}", config=config) for rank in range(ranks)
    ]
    with Ranks("pluribus.comm.survey_rank", processes, folder) as running:
        for _, event in running.events(timeout=2 * _TIMEOUT.total_seconds()):
            yield event
    del store  # held until the last rank has left


def everywhere(given: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Surveys the ranks that torchrun or its like started; yields on rank 0 only."""
    join(0, 0, None, Options(**options))
    said: list[dict[str, Any]] = []
    run(given, lambda event, **fields: said.append({"event": event, **fields}))
    yield from said if dist.get_rank() == 0 else ()
    dist.destroy_process_group()


def _main(line: RankLine) -> None:
    config = line.config
    store = dist.TCPStore("127.0.0.1", config["port"], is_master=False, timeout=_TIMEOUT)
    options = Options(**config["options"])
    join(config["rank"], config["size"], store, options)
    run(config, line.report if config["rank"] == 0 else lambda *_, **__: None)
    dist.destroy_process_group()


if __name__ == "__main__":
    rank_main(_main)
