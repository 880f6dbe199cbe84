"""How our UDP shares a link with TCP cubic, TCP BBR and itself.

    python bench/congestion.py [--cases shared incast variants] [--seconds 10] [--json FILE]

`shared`: flows that start together over one link of 100 Mbit/s with 40 ms of round trip and 50 ms
of queue (`wan.py`). `incast`: three hosts send to a fourth, whose link carries 200 Mbit/s (veth and
`tc tbf`). `variants`: one UDP flow on the lossy link, reliable, with parity, and with bounded
loss. Goodput is of frames that came whole, over the last two thirds of the time; fairness is
Jain's index (1: equal shares, 1/n: one has all). Needs root, `ip` and `tc`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import links
import wan
from links import CENTRES, inside

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20
WAN_MBIT, WAN_DELAY = 100, 0.02
INCAST_MBIT, SENDERS = 200, 3
START_SECONDS = 6.0  # for all processes to meet

SHARED = (
    ("udp", "udp"), ("bbr", "bbr"), ("cubic", "cubic"),
    ("udp", "cubic"), ("udp", "bbr"), ("bbr", "cubic"),
    ("udp", "cubic", "cubic", "cubic"), ("bbr", "cubic", "cubic", "cubic"),
)  # fmt: skip
INCAST = (("udp",) * SENDERS, ("bbr",) * SENDERS, ("cubic",) * SENDERS, ("udp", "cubic", "cubic"),
          ("bbr", "cubic", "cubic"))  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "reliable": {},
    "parity every 16": {"parity_every": 16},
    "2 % may be lost": {"lossy": 0.02},
}
LOSSES = (0.001, 0.01, 0.05)


def worker(given: dict[str, Any]) -> None:
    """One end of one flow. The receiving end prints bytes and repeats of the measured time."""
    import torch.distributed as dist

    from pluribus.comm.transports.base import DATA, Header, Meeting
    from pluribus.comm.transports.flow import FlowOptions
    from pluribus.comm.transports.tcp import Tcp
    from pluribus.comm.transports.udp import UdpTransport

    rank = given["rank"]
    store = dist.TCPStore(given["store"], given["port"], 2, rank == 1)
    meeting = Meeting(store=store, rank=rank, peers=(1 - rank,), epoch=0, address=given["address"],
                      token=b"bench", timeout=20.0)  # fmt: skip
    if given["kind"] == "udp":
        transport: Any = UdpTransport(FlowOptions(ring_bytes=4 * MIB, **given["options"]))
    else:
        transport = Tcp(1, given["kind"])
    (path,) = transport.connect(meeting)[1 - rank]
    time.sleep(max(0.0, given["begin"] - time.time()))
    frame, waiting, came = memoryview(os.urandom(MIB // 4)), [0], 0
    measured, end = given["begin"] + given["seconds"] / 3, given["begin"] + given["seconds"]

    def gone() -> None:
        waiting[0] -= 1

    poll = select.poll()
    while (now := time.time()) < end:
        if rank == 0:
            while waiting[0] < 4:
                path.queue(Header(DATA, 0, 1, 0, len(frame)), frame, gone)
                waiting[0] += 1
            path.flush()
        poll.register(path.fileno(), select.POLLIN | (select.POLLOUT if path.wants_write else 0))
        poll.poll(20)
        while _has_frame(path):
            path.release()
            came += len(frame) if now >= measured else 0
    if rank == 1:
        print(json.dumps({"mbit": came * 8e-6 / (end - measured)}), flush=True)
    os._exit(0)


def _has_frame(path: Any) -> bool:
    """Whether a whole frame is here; the receiving end may be gone before the sending one."""
    from pluribus.comm.transports.base import PeerGone

    try:
        return path.peek() is not None and path.receive() is not None
    except PeerGone:
        os._exit(0)


def flows(
    kinds: Sequence[str], sources: Sequence[str], addresses: Sequence[str], target: str,
    target_address: str, seconds: float, options: dict[str, Any] | None = None,
) -> list[float]:  # fmt: skip
    """Mbit/s of flows that run at the same time."""
    begin = time.time() + START_SECONDS
    processes, receivers = [], []
    for number, (kind, source, address) in enumerate(zip(kinds, sources, addresses, strict=True)):
        for rank in (1, 0):
            given = {"rank": rank, "kind": kind, "store": target_address, "port": 29_900 + number,
                     "address": address if rank == 0 else target_address, "begin": begin,
                     "seconds": seconds, "options": options or {}}  # fmt: skip
            command = [sys.executable, __file__, "--worker", json.dumps(given)]
            process = subprocess.Popen(
                inside(source if rank == 0 else target, *command), stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": str(ROOT), "TORCH_CPP_LOG_LEVEL": "ERROR"},
            )  # fmt: skip
            processes.append(process)
            receivers += [process] if rank == 1 else []
    try:
        limit = START_SECONDS + seconds + 10
        return [json.loads(one.communicate(timeout=limit)[0])["mbit"] for one in receivers]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def jain(rates: Sequence[float]) -> float:
    """Jain, Chiu and Hawe 1984, eq. 1."""
    if not any(rates):  # a machine that paused: nobody had anything to share
        return math.nan
    return sum(rates) ** 2 / (len(rates) * sum(rate**2 for rate in rates))


def show(case: str, kinds: Sequence[str], rates: list[float], mbit: float) -> dict[str, Any]:
    row = {"case": case, "flows": list(kinds), "mbit": rates, "of_link": sum(rates) / mbit,
           "jain": jain(rates)}  # fmt: skip
    each = "  ".join(f"{kind} {rate:5.1f}" for kind, rate in zip(kinds, rates, strict=True))
    print(f"{case:34}{each}  Mbit/s  of the link {row['of_link']:.2f}  Jain {row['jain']:.2f}",
          flush=True)  # fmt: skip
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    cases = ("shared", "incast", "variants")
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the rows of a case")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.worker:
        worker(json.loads(given.worker))
        return
    if not links.possible():
        print("skipped: everything (it needs root, ip and tc)")
        return
    rows: list[dict[str, Any]] = []

    def chosen(which: Sequence[Any]) -> list[Any]:
        return [w for number, w in enumerate(which) if not given.only or number in given.only]

    known = (*links.congestion_controls(), "udp")
    for kinds in chosen(SHARED) if "shared" in given.cases else ():
        if set(kinds) <= set(known):
            with links.Wan(WAN_MBIT, WAN_DELAY, 0.0):
                rates = flows(kinds, CENTRES[:1] * len(kinds), wan.ADDRESSES[:1] * len(kinds),
                              CENTRES[1], wan.ADDRESSES[1], given.seconds)  # fmt: skip
            rows.append(show("shared, 100 Mbit/s, 40 ms", kinds, rates, WAN_MBIT))
    for kinds in chosen(INCAST) if "incast" in given.cases else ():
        if set(kinds) <= set(known):
            with links.Star(SENDERS + 1, INCAST_MBIT) as star:
                *sources, target = star.hosts
                *addresses, there = star.addresses
                rates = flows(kinds, sources, addresses, target, there, given.seconds)
            rows.append(show("incast, 200 Mbit/s", kinds, rates, INCAST_MBIT))
    for loss in LOSSES if "variants" in given.cases else ():
        for name, options in chosen(list(VARIANTS.items())):
            with links.Wan(WAN_MBIT, WAN_DELAY, loss):
                rates = flows(("udp",), CENTRES[:1], wan.ADDRESSES[:1], CENTRES[1],
                              wan.ADDRESSES[1], given.seconds, options)  # fmt: skip
            rows.append(show(f"{100 * loss:g} % loss, {name}", ("udp",), rates, WAN_MBIT))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
