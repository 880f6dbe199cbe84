"""Runs a function in several processes and compares what they return."""

from __future__ import annotations

import multiprocessing as mp
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

LIMIT = 240.0  # what takes so long hangs


def _main(
    body: Callable[..., Any], rank: int, size: int, folder: str, environment: Mapping[str, str],
    results: Any, arguments: Sequence[Any],
) -> None:  # fmt: skip
    os.environ.update(environment)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of torch's own, whose names change between versions
    import pluribus.comm.backend  # noqa: F401

    try:
        store = dist.FileStore(str(Path(folder) / "store"), size)
        dist.init_process_group("pluribus", store=store, rank=rank, world_size=size)
        results.put((rank, body(rank, size, *arguments), None))
        if dist.is_initialized():
            dist.destroy_process_group()
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
    results.close()
    results.join_thread()
    os._exit(0)


def run_ranks(
    body: Callable[..., Any],
    size: int,
    *arguments: Any,
    environments: Sequence[Mapping[str, str]] | None = None,
    silent: Sequence[int] = (),
) -> dict[int, Any]:
    """``body(rank, size, *arguments)`` in each of ``size`` processes with a pluribus group.

    Args:
        silent: ranks that end without a word.

    Returns:
        Results by rank.
    """
    context = mp.get_context("fork")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(
                target=_main,
                args=(body, rank, size, folder, (environments or [{}] * size)[rank], results,
                      arguments),
                daemon=True,
            )
            for rank in range(size)
        ]  # fmt: skip
        for process in processes:
            process.start()
        found: dict[int, Any] = {}
        try:
            for _ in range(size - len(silent)):
                rank, value, error = results.get(timeout=LIMIT)
                assert error is None, f"rank {rank}:\n{error}"
                found[rank] = value
        finally:
            for process in processes:
                if len(found) < size - len(silent):
                    process.kill()
                process.join(30.0)
                process.kill()
    return found
