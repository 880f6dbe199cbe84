"""Collectives against gloo: between centres, over a WAN, in a star, on one host, after a death.

    python bench/comm.py [--cases host mpi death centres wan star] [--only WHO ...]
        [--rates 1000 100] [--losses 0.1 1] [--sizes 1 16] [--repeats 5] [--json FILE]

Two network namespaces are two centres of two ranks each. Their link is a veth pair that `tc tbf`
shapes (`centres`), or a TUN pair through `wan.py`: 100 Mbit/s, 40 ms round trip, random loss
(`wan`). In the star four namespaces of one rank each hang on a bridge, beside which the aggregator
runs. Bytes on the wire are the kernel's counters: exact on a noisy machine. Links need root, `ip`
and `tc`, OpenMPI needs `mpirun` and mpi4py; it says what it skips.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import links
import wan
from links import CENTRES, HUB, HUB_ADDRESS, inside

ROOT = Path(__file__).resolve().parents[1]
RANK = str(Path(__file__).with_name("comm_rank.py"))
MIB = 2**20
LIMIT = 300.0
WAN_LIMIT = 40.0  # gloo over cubic does not end
WAN_MBIT, WAN_DELAY = 100, 0.02
STAR_HOSTS, STAR_MBIT = 4, 1000
MPI_ALGORITHMS = {0: "its choice", 3: "recursive doubling", 4: "ring", 6: "Rabenseifner"}


class Rival(NamedTuple):
    """Who: a backend, each rank's namespace by letter, options, and the namespaces' TCP."""

    name: str
    backend: str
    places: str
    options: Mapping[str, str] = {}
    congestion: str = ""


BETWEEN_CENTRES = (
    Rival("gloo, good rank order", "gloo", "aabb"),
    Rival("gloo, interleaved ranks", "gloo", "abab"),
    Rival("pluribus fp32", "pluribus", "abab"),
    Rival("pluribus bf16 hop", "pluribus", "abab", {"CODEC": "bf16"}),
    Rival("pluribus int8+EF hop", "pluribus", "abab", {"CODEC": "int8"}),
)
OVER_WAN = (
    Rival("gloo, cubic", "gloo", "aabb", {}, "cubic"),
    Rival("gloo, bbr", "gloo", "aabb", {}, "bbr"),
    Rival("pluribus tcp fp32", "pluribus", "abab", {"TRANSPORT": "tcp"}),
    Rival("pluribus udp fp32", "pluribus", "abab", {"TRANSPORT": "udp"}),
    Rival("pluribus tcp int8+EF", "pluribus", "abab", {"TRANSPORT": "tcp", "CODEC": "int8"}),
    Rival("pluribus udp int8+EF", "pluribus", "abab", {"TRANSPORT": "udp", "CODEC": "int8"}),
    Rival("pluribus int8+EF, cubic, tcp", "pluribus", "abab",
          {"TRANSPORT": "tcp", "CONGESTION": "cubic", "CODEC": "int8"}),
    Rival("pluribus int8+EF, cubic, auto", "pluribus", "abab",
          {"TRANSPORT": "auto", "CONGESTION": "cubic", "CODEC": "int8"}),
    Rival("pluribus udp int8+EF, FEC 16", "pluribus", "abab",
          {"TRANSPORT": "udp", "CODEC": "int8", "FEC": "16"}),
)  # fmt: skip
IN_STAR = (
    Rival("gloo (ring)", "gloo", "abcd"),
    Rival("pluribus ring", "pluribus", "abcd", {"ALGORITHM": "ring"}),
    Rival("pluribus direct", "pluribus", "abcd", {"ALGORITHM": "direct"}),
    Rival("pluribus, tuner's choice", "pluribus", "abcd", {"AGGREGATOR": f"{HUB_ADDRESS}:29578"}),
    Rival("pluribus aggregator", "pluribus", "abcd",
          {"ALGORITHM": "aggregator", "AGGREGATOR": f"{HUB_ADDRESS}:29577"}),
)  # fmt: skip


class Bench:
    """What the command line asks for, and the rows found so far."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.sizes = [round(size * MIB) for size in given.sizes]
        self.repeats = given.repeats
        self.only = given.only
        self.rows: list[dict[str, Any]] = []
        self._port = 29_600

    def wanted(self, rivals: Sequence[Rival]) -> Iterator[Rival]:
        for rival in rivals:
            if not self.only or any(part in rival.name for part in self.only):
                yield rival

    def measure(
        self, case: str, rival: Rival, address: str, namespaces: Mapping[str, tuple[str, str]],
        mbit: float = 0.0, limit: float = LIMIT, **more: Any,
    ) -> None:  # fmt: skip
        """Runs all ranks and keeps a row per size.

        Args:
            address: of the store, on rank 0's host.
            namespaces: letter of a place → its namespace and network device.
        """
        self._port += 1
        ranks = [
            {"rank": rank, "size": len(rival.places), "backend": rival.backend, "sizes": self.sizes,
             "address": address, "port": self._port, "repeats": self.repeats} | more
            for rank in range(len(rival.places))
        ]  # fmt: skip
        found = start(ranks, [namespaces.get(p) for p in rival.places], rival.options, limit)
        if found is None:
            self.keep(case, rival.name, max(self.sizes), limit, note="not done in")
        for num_bytes, (seconds, wire, processor) in (found or {}).items():
            bound = int(num_bytes) * 8e-6 / mbit if mbit else 0.0
            self.keep(case, rival.name, int(num_bytes), seconds, wire, processor, bound)

    def keep(
        self, case: str, who: str, num_bytes: int, seconds: float, wire: float = 0.0,
        processor: float = 0.0, bound: float = 0.0, note: str = "",
    ) -> None:  # fmt: skip
        row = {"case": case, "who": who, "mib": num_bytes / MIB, "ms": 1e3 * seconds,
               "wire": wire, "cpu_ms": 1e3 * processor, "note": note,
               "of_bound": seconds / bound if bound else 0.0}  # fmt: skip
        self.rows.append(row)
        line = f"{case:32}{who:30}{row['mib']:9.3f} MiB {note} {row['ms']:10.2f} ms"
        if processor:
            line += f"  cpu {row['cpu_ms']:8.2f} ms"
        if wire:
            line += f"  wire {wire:5.2f} S"
        if bound:
            line += f"  {row['of_bound']:5.2f} × S at the link's rate"
        print(line, flush=True)


def start(
    ranks: list[dict[str, Any]], places: Sequence[tuple[str, str] | None],
    options: Mapping[str, str], limit: float,
) -> dict[str, Any] | None:  # fmt: skip
    """Runs the ranks; rank 0's results, or None if they are not done in time."""
    processes = []
    for given, place in zip(ranks, places, strict=True):
        command = [sys.executable, RANK, json.dumps(given)]
        if place is not None:
            command = inside(place[0], *command)
        more = {f"PLURIBUS_COMM_{key}": value for key, value in options.items()}
        more["GLOO_SOCKET_IFNAME"] = "lo" if place is None else place[1]
        more |= {"PYTHONPATH": str(ROOT), "TORCH_CPP_LOG_LEVEL": "ERROR"}
        processes.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | more)
        )
    try:
        said, _ = processes[0].communicate(timeout=limit)
        return json.loads(said)
    except subprocess.TimeoutExpired:
        for process in processes:
            process.kill()
        return None
    finally:
        for process in processes:
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
            process.wait()


def between_centres(bench: Bench, rates: Sequence[int], mpi_python: str) -> None:
    places = {letter: (name, f"{name}0") for letter, name in zip("ab", CENTRES, strict=True)}
    with links.Centres() as centres:
        for rate in rates:
            centres.shape(rate)
            for rival in bench.wanted(BETWEEN_CENTRES):
                bench.measure(f"{rate} Mbit/s", rival, links.ADDRESSES[0], places, rate)
            if not bench.only or "OpenMPI" in bench.only:
                openmpi_between_centres(bench, mpi_python, rate)


def over_wan(bench: Bench, losses: Sequence[float]) -> None:
    places = {letter: (name, f"{name}w") for letter, name in zip("ab", CENTRES, strict=True)}
    for loss in losses:
        for rival in bench.wanted(OVER_WAN):
            if rival.congestion not in ("", *links.congestion_controls()):
                print(f"skipped: {rival.name} (this kernel has none)")
                continue
            with links.Wan(WAN_MBIT, WAN_DELAY, loss / 100, rival.congestion):
                case = f"{WAN_MBIT} Mbit/s, {2e3 * WAN_DELAY:.0f} ms, {loss:g} % loss"
                # gloo over cubic takes long: its first all-reduce is all there is time for.
                more = {"warm": 0, "repeats": 1} if rival.congestion == "cubic" else {}
                bench.measure(case, rival, wan.ADDRESSES[0], places, WAN_MBIT, WAN_LIMIT, **more)


def in_star(bench: Bench) -> None:
    with links.Star(STAR_HOSTS, STAR_MBIT) as star:
        places = {p: (h, f"{h}0") for p, h in zip("abcd", star.hosts, strict=True)}
        for rival in bench.wanted(IN_STAR):
            serving = None
            if "AGGREGATOR" in rival.options:
                serving = _aggregator(rival.options["AGGREGATOR"])
            try:
                case = f"star, {STAR_HOSTS} hosts, {STAR_MBIT} Mbit/s"
                bench.measure(case, rival, star.addresses[0], places, STAR_MBIT)
            finally:
                if serving is not None:
                    serving.kill()
                    serving.wait()


def _aggregator(where: str) -> subprocess.Popen[bytes]:
    host, _, port = where.partition(":")
    script = f"""
import threading
from pluribus.comm.aggregator import Aggregator
Aggregator({host!r}, {port}, "bench").serve(threading.Event())
"""
    os.environ["PLURIBUS_COMM_AGGREGATOR_TOKEN"] = "bench"
    serving = subprocess.Popen(
        inside(HUB, sys.executable, "-c", script), env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    time.sleep(1.0)
    return serving


def on_one_host(bench: Bench) -> None:
    rivals = [Rival("gloo", "gloo", "aaaa"), Rival("pluribus", "pluribus", "aaaa")]
    bench.sizes = [1024, *bench.sizes]
    for rival in [*rivals, *rivals]:
        if not bench.only or rival.name in bench.only:
            bench.measure("one host", rival, "127.0.0.1", {})
    bench.sizes = bench.sizes[1:]


def openmpi(
    bench: Bench, python: str, case: str = "one host", start: Sequence[str] = ("mpirun",),
    where: Sequence[str] = (), mbit: float = 0.0,
) -> None:  # fmt: skip
    """OpenMPI, each size by the best of its all-reduce algorithms."""
    asks = [python, "-c", "import mpi4py.MPI"]
    if shutil.which("mpirun") is None or subprocess.run(asks, capture_output=True).returncode:
        print(f"skipped: {case}, OpenMPI (it needs mpirun, and mpi4py in --mpi-python)")
        return
    best: dict[str, tuple[float, str, float, float]] = {}
    sizes = bench.sizes if where else [1024, *bench.sizes]
    given = {"backend": "mpi", "sizes": sizes, "repeats": bench.repeats}
    tuned = [
        "--mca",
        "coll_tuned_use_dynamic_rules",
        "1",
        "--mca",
        "coll_tuned_allreduce_algorithm",
    ]
    ways = {name: [*tuned, str(number)] for number, name in MPI_ALGORITHMS.items()}
    if where:
        ways["HAN (two levels)"] = ["--mca", "coll_han_priority", "100"]  # 4.1.4 may crash in it
    for name, way in ways.items():
        command = [*start, "--allow-run-as-root", "--oversubscribe", "-n", "4", *where, *way,
                   python, RANK, json.dumps(given)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
        if done.returncode:
            print(f"skipped: {case}, OpenMPI {name} (it left with {done.returncode})")
            continue
        for size, (seconds, wire, processor) in json.loads(done.stdout).items():
            best[size] = min(
                best.get(size, (LIMIT, "", 0.0, 0.0)), (seconds, name, wire, processor)
            )
    for size, (seconds, name, wire, processor) in best.items():
        bound = int(size) * 8e-6 / mbit if mbit else 0.0
        bench.keep(case, f"OpenMPI, {name}", int(size), seconds, wire, processor, bound)


def openmpi_between_centres(bench: Bench, python: str, rate: int) -> None:
    """Two ranks in each namespace; every namespace has a host name of its own, by which OpenMPI
    tells hosts apart, and a program in place of ssh enters it."""
    first, second = CENTRES
    subnet = links.ADDRESSES[0].rpartition(".")[0] + ".0/24"
    with tempfile.TemporaryDirectory() as folder:
        agent = Path(folder) / "agent"
        agent.write_text(
            "#!/bin/sh\nhost=$1\nshift\n"
            'exec ip netns exec $host unshare --uts sh -c "hostname $host; $*"\n'
        )
        agent.chmod(0o700)
        enter = f'hostname {first} && exec mpirun "$@"'
        start = inside(first, "unshare", "--uts", "sh", "-c", enter, "mpirun")
        where = ["--host", f"{first}:2,{second}:2", "--mca", "plm_rsh_agent", str(agent)]
        for layer in ("oob_tcp", "btl_tcp"):
            where += ["--mca", f"{layer}_if_include", subnet]
        openmpi(bench, python, f"{rate} Mbit/s", start, where, rate)


def after_death(bench: Bench, times: int) -> None:
    ways = (("shared memory", {}), ("TCP", {"SHARED_MEMORY": "0"}))
    for number, (way, options) in enumerate(way for way in ways for _ in range(times)):
        ranks = [
            {"rank": rank, "size": 4, "backend": "pluribus", "address": "127.0.0.1",
             "port": 29_800 + number, "sizes": [], "repeats": 1, "kill": True}
            for rank in range(4)
        ]  # fmt: skip
        found = start(ranks, [None] * 4, options, LIMIT) or {"raised": LIMIT, "after_death": LIMIT}
        who = f"pluribus, {way}"
        bench.keep("SIGKILL → raised on every survivor", who, 16 * MIB, found["raised"])
        bench.keep("SIGKILL → next all-reduce done", who, 16 * MIB, found["after_death"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    cases = ("host", "mpi", "death", "centres", "wan", "star")
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases)
    parser.add_argument("--only", nargs="+", help="parts of the rivals' names")
    parser.add_argument("--rates", type=int, nargs="*", default=[1000, 100], help="Mbit/s")
    parser.add_argument("--losses", type=float, nargs="*", default=[0.1, 1.0], help="per cent")
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 16], help="MiB")
    parser.add_argument("--mpi-python", default=sys.executable, help="interpreter with mpi4py")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    bench = Bench(given)
    if "host" in given.cases:
        on_one_host(bench)
    if "mpi" in given.cases:
        openmpi(bench, given.mpi_python)
    if "death" in given.cases:
        after_death(bench, 5)
    if links.possible():
        if "centres" in given.cases:
            between_centres(bench, given.rates, given.mpi_python)
        if "wan" in given.cases:
            over_wan(bench, given.losses)
        if "star" in given.cases:
            in_star(bench)
    else:
        print("skipped: links between centres, WAN, star (they need root, ip and tc)")
    if given.json:
        given.json.write_text(json.dumps(bench.rows, indent=1))


if __name__ == "__main__":
    main()
