"""Collectives against gloo: over shaped links between two centres, on one host, after a death.

    python bench/comm.py [--rates 1000 100] [--sizes 1 16] [--repeats 5] [--json FILE]

Two network namespaces are two centres of two ranks each, joined by a veth pair that `tc tbf`
shapes in both directions. Bytes on the wire are the kernel's counters of that link: exact on a
noisy machine. Needs root and `ip`; without them the shaped cases are skipped, and it says so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[1]
CENTRES = ("plca", "plcb")
ADDRESSES = ("10.231.77.1", "10.231.77.2")
MIB = 2**20
LIMIT = 300.0

# name → (backend, centre of each rank, options)
RIVALS: dict[str, tuple[str, str, dict[str, str]]] = {
    "gloo, good rank order": ("gloo", "aabb", {}),
    "gloo, interleaved ranks": ("gloo", "abab", {}),
    "pluribus fp32": ("pluribus", "abab", {}),
    "pluribus bf16 hop": ("pluribus", "abab", {"CODEC": "bf16"}),
    "pluribus int8+EF hop": ("pluribus", "abab", {"CODEC": "int8"}),
}


def worker(given: dict[str, Any]) -> None:
    """One rank: times every size and prints a line of JSON."""
    rank, size = given["rank"], given["size"]
    torch.set_num_threads(1)
    if given["backend"] == "pluribus":
        import pluribus.comm.backend  # noqa: F401
    store = dist.TCPStore(given["address"], given["port"], size, rank == 0)
    dist.init_process_group(given["backend"], store=store, rank=rank, world_size=size)
    results = {}
    for num_bytes in given["sizes"]:
        x = torch.randn(num_bytes // 4)
        dist.all_reduce(x.clone())
        seconds, wire, processor = [], [], time.process_time()
        for _ in range(given["repeats"]):
            y = x.clone()
            dist.barrier()
            before, start = _sent(), time.perf_counter()
            dist.all_reduce(y)
            seconds.append(time.perf_counter() - start)
            dist.barrier()
            wire.append(_sent() - before)
        processor = (time.process_time() - processor) / given["repeats"]
        results[num_bytes] = (statistics.median(seconds), min(wire) / num_bytes, processor)
    if given.get("kill"):
        results = {"after_death": _after_death(rank, size)}
    print(json.dumps({"rank": rank, "results": results}), flush=True)
    if not given.get("kill"):
        dist.barrier()
    os._exit(0)


def _after_death(rank: int, size: int) -> float:
    """Seconds from a SIGKILL of the last rank to the end of the next 16 MiB all-reduce."""
    x = torch.ones(4 * MIB)
    if rank == size - 1:
        dist.all_reduce(x)
        dist.distributed_c10d._get_default_store().set("died", str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        while True:
            dist.all_reduce(x, op=dist.ReduceOp.MAX)
    except RuntimeError:
        dist.group.WORLD.reconfigure(list(range(size - 1)), 1)
    dist.all_reduce(x, op=dist.ReduceOp.MAX)
    ended = time.time()
    if rank:
        os._exit(0)
    return ended - float(dist.distributed_c10d._get_default_store().get("died"))


def _sent() -> int:
    """Bytes sent over this centre's link."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip().startswith("plc"):
            return int(counters.split()[8])
    return 0


def start(ranks: list[dict[str, Any]], centres: str | None, environment: dict[str, str]) -> dict:
    """Runs the ranks; returns rank 0's results."""
    processes = []
    for given in ranks:
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(given)]
        if centres is not None:
            name = CENTRES["ab".index(centres[given["rank"]])]
            command = ["ip", "netns", "exec", name, *command]
            interface = f"{name}0"
        else:
            interface = "lo"
        more = {f"PLURIBUS_COMM_{key}": value for key, value in environment.items()}
        processes.append(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, text=True,
                env=os.environ | {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": interface,
                                  "TORCH_CPP_LOG_LEVEL": "ERROR"} | more,
            )
        )  # fmt: skip
    try:
        said, _ = processes[0].communicate(timeout=LIMIT)
        return json.loads(said)["results"]
    finally:
        for process in processes:
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
            process.wait()


def run(*arguments: str) -> None:
    subprocess.run(arguments, check=True, capture_output=True)


class Centres:
    """Two namespaces and the link between them; removed on the way out."""

    def __enter__(self) -> Centres:
        self.__exit__()
        for name in CENTRES:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        a, b = CENTRES
        run("ip", "link", "add", f"{a}0", "netns", a, "type", "veth", "peer", f"{b}0", "netns", b)
        for name, address in zip(CENTRES, ADDRESSES, strict=True):
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", f"{name}0")
            run("ip", "-n", name, "link", "set", f"{name}0", "up")
        return self

    def shape(self, mbit: int) -> None:
        for name in CENTRES:
            run("ip", "netns", "exec", name, "tc", "qdisc", "replace", "dev", f"{name}0", "root",
                "tbf", "rate", f"{mbit}mbit", "burst", "256kb", "latency", "50ms")  # fmt: skip

    def __exit__(self, *_: object) -> None:
        for name in CENTRES:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def shaped(rates: list[int], sizes: list[int], repeats: int) -> list[dict[str, Any]]:
    rows = []
    with Centres() as centres:
        port = 29_600
        for rate in rates:
            centres.shape(rate)
            for name, (backend, places, options) in RIVALS.items():
                port += 1
                # Rank 0 hosts the store and sits in the first centre.
                ranks = [
                    {"rank": rank, "size": 4, "backend": backend, "address": ADDRESSES[0],
                     "port": port, "sizes": sizes, "repeats": repeats}
                    for rank in range(4)
                ]  # fmt: skip
                for num_bytes, (seconds, wire, processor) in start(ranks, places, options).items():
                    bound = int(num_bytes) / (rate * 1e6 / 8)
                    rows.append({
                        "case": f"{rate} Mbit/s", "who": name, "mib": int(num_bytes) / MIB,
                        "ms": 1e3 * seconds, "wire": wire, "cpu_ms": 1e3 * processor,
                        "of_bound": seconds / bound,
                    })  # fmt: skip
                    show(rows[-1])
    return rows


def on_one_host(sizes: list[int], repeats: int) -> list[dict[str, Any]]:
    rows = []
    for number, backend in enumerate(("gloo", "pluribus", "gloo", "pluribus")):
        ranks = [
            {"rank": rank, "size": 4, "backend": backend, "address": "127.0.0.1",
             "port": 29_700 + number, "sizes": [1024, *sizes], "repeats": repeats}
            for rank in range(4)
        ]  # fmt: skip
        for num_bytes, (seconds, _, processor) in start(ranks, None, {}).items():
            rows.append({"case": "one host", "who": backend, "mib": int(num_bytes) / MIB,
                         "ms": 1e3 * seconds, "wire": 0.0, "cpu_ms": 1e3 * processor,
                         "of_bound": 0.0})  # fmt: skip
            show(rows[-1])
    return rows


def after_death(times: int) -> list[dict[str, Any]]:
    rows = []
    for number in range(times):
        ranks = [
            {"rank": rank, "size": 4, "backend": "pluribus", "address": "127.0.0.1",
             "port": 29_800 + number, "sizes": [], "repeats": 1, "kill": True}
            for rank in range(4)
        ]  # fmt: skip
        seconds = start(ranks, None, {})["after_death"]
        rows.append({"case": "SIGKILL → next all-reduce done", "who": "pluribus", "mib": 16.0,
                     "ms": 1e3 * seconds, "wire": 0.0, "cpu_ms": 0.0, "of_bound": 0.0})  # fmt: skip
        show(rows[-1])
    return rows


def show(row: dict[str, Any]) -> None:
    line = f"{row['case']:32}{row['who']:26}{row['mib']:9.3f} MiB {row['ms']:10.2f} ms"
    if row["cpu_ms"]:
        line += f"  cpu {row['cpu_ms']:8.2f} ms"
    if row["wire"]:
        line += f"  wire {row['wire']:5.2f} S  {row['of_bound']:5.2f} × S at the link's rate"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--rates", type=int, nargs="*", default=[1000, 100], help="Mbit/s")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 16], help="MiB")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.worker:
        worker(json.loads(given.worker))
        return
    sizes = [size * MIB for size in given.sizes]
    rows = on_one_host(sizes, given.repeats)
    rows += after_death(5)
    if os.geteuid() == 0 and shutil.which("ip") and shutil.which("tc"):
        rows += shaped(given.rates, sizes, given.repeats)
    else:
        print("skipped: links between centres (they need root, ip and tc)")
    print("skipped: OpenMPI (no mpi4py), lossy links, aggregator, NCCL: not part of this bench yet")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
