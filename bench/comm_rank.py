"""One rank of `bench/comm.py`: times all-reduces in a process group or in MPI."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MIB = 2**20
DEVICES = ("plc", "plh")  # of the namespaces in `links.py`


def torch_rank(given: dict[str, Any]) -> dict[Any, Any]:
    import torch
    import torch.distributed as dist

    rank, size = given["rank"], given["size"]
    torch.set_num_threads(1)
    if given["backend"] == "pluribus":
        import pluribus.comm.backend  # noqa: F401
    store = dist.TCPStore(given["address"], given["port"], size, rank == 0)
    dist.init_process_group(given["backend"], store=store, rank=rank, world_size=size)
    if given.get("kill"):
        return after_death(rank, size)
    generator = torch.Generator().manual_seed(rank)

    def tensor(num_bytes: int) -> torch.Tensor:
        return torch.randn(num_bytes // 4, generator=generator)

    found = timed(given, tensor, dist.all_reduce, dist.barrier)
    print(json.dumps(found), flush=True)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)


def mpi_rank(given: dict[str, Any]) -> dict[Any, Any]:
    from mpi4py import MPI

    world = MPI.COMM_WORLD

    def array(num_bytes: int) -> np.ndarray:
        generator = np.random.default_rng(world.rank)
        return generator.standard_normal(num_bytes // 4).astype(np.float32)

    found = timed(given, array, lambda x: world.Allreduce(MPI.IN_PLACE, x), world.Barrier)
    if world.rank:
        sys.exit()
    return found


def timed(
    given: dict[str, Any], make: Callable[[int], Any], reduce: Callable[[Any], object],
    barrier: Callable[[], object],
) -> dict[int, tuple[float, float, float]]:  # fmt: skip
    """Per size: median seconds, bytes on the wire ÷ size, processor seconds of one operation."""
    results = {}
    for num_bytes in given["sizes"]:
        x = make(num_bytes)
        y = x.copy() if isinstance(x, np.ndarray) else x.clone()
        for _ in range(given.get("warm", 1)):
            reduce(y)
        seconds, wire, processor = [], [], time.process_time()
        for _ in range(given["repeats"]):
            y[...] = x
            barrier()
            before, start = sent(), time.perf_counter()
            reduce(y)
            seconds.append(time.perf_counter() - start)
            barrier()
            wire.append(sent() - before)
        processor = (time.process_time() - processor) / given["repeats"]
        results[num_bytes] = (statistics.median(seconds), min(wire) / num_bytes, processor)
    return results


def after_death(rank: int, size: int) -> dict[str, float]:
    """Seconds from a SIGKILL of the last rank until every survivor has the error, and until the
    next 16 MiB all-reduce among them is done."""
    import torch
    import torch.distributed as dist

    store = dist.distributed_c10d._get_default_store()
    x = torch.ones(4 * MIB)
    if rank == size - 1:
        dist.all_reduce(x)
        store.set("died", str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        while True:
            dist.all_reduce(x, op=dist.ReduceOp.MAX)
    except RuntimeError:
        raised = time.time()
        dist.group.WORLD.reconfigure(list(range(size - 1)), 1)
    dist.all_reduce(x, op=dist.ReduceOp.MAX)
    ended = time.time()
    store.set(f"raised/{rank}", str(raised))
    if rank:
        with contextlib.suppress(RuntimeError):  # rank 0, whose store it is, has ended
            store.get("over")
        os._exit(0)
    died = float(store.get("died"))
    last = max(float(store.get(f"raised/{each}")) for each in range(size - 1))
    store.set("over", "")
    return {"raised": last - died, "after_death": ended - died}


def sent() -> int:
    """Bytes sent over this namespace's link."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip().startswith(DEVICES):
            return int(counters.split()[8])
    return 0


if __name__ == "__main__":
    said = json.loads(sys.argv[1])
    print(json.dumps((mpi_rank if said["backend"] == "mpi" else torch_rank)(said)), flush=True)
    if said["backend"] != "mpi":
        os._exit(0)
