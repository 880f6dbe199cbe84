"""A long, lossy, narrow link between two network namespaces, where the kernel has no netem.

    python bench/wan.py NAMESPACE NAMESPACE --mbit 100 --delay 0.02 --loss 0.01

Two TUN devices (10.231.78.1 and .2, MTU 1500) whose packets pass through this process: a rate, a
queue that overflows, a delay, and loss of single packets at random. Prints "ready", runs until it
is killed; its devices go with it. Needs root.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import random
import select
import struct
import subprocess
import time
from collections import deque

ADDRESSES = ("10.231.78.1", "10.231.78.2")
_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_IFF_TUN, _IFF_NO_PI = 1, 0x1000
_QUEUE_SECONDS = 0.05
_PACKETS = 64  # taken from one side before the other has its turn


def tun(namespace: str, address: str) -> int:
    """Descriptor of a new TUN device inside a namespace."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    name = f"{namespace}w"
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    for command in (
        ["ip", "link", "set", name, "netns", namespace],
        ["ip", "-n", namespace, "address", "add", f"{address}/24", "dev", name],
        ["ip", "-n", namespace, "link", "set", name, "txqueuelen", "10000", "up"],
    ):
        subprocess.run(command, check=True)
    return device


class Direction:
    """From one device to the other; FIFO, as every packet is delayed alike."""

    def __init__(self, source: int, target: int, given: argparse.Namespace, seed: int) -> None:
        self.source, self.target = source, target
        self._seconds_per_byte = 8 / (given.mbit * 1e6)
        self._delay, self._loss = given.delay, given.loss
        self._chance = random.Random(seed)
        self._free = 0.0
        self._on_the_way: deque[tuple[float, bytes]] = deque()

    def take(self, now: float) -> None:
        for _ in range(_PACKETS):
            try:
                packet = os.read(self.source, 2048)
            except BlockingIOError:
                return
            if self._free - now > _QUEUE_SECONDS:
                continue  # the queue is full
            self._free = max(now, self._free) + len(packet) * self._seconds_per_byte
            if self._chance.random() >= self._loss:
                self._on_the_way.append((self._free + self._delay, packet))

    def deliver(self, now: float) -> float:
        """Seconds until the next packet is due."""
        while self._on_the_way and self._on_the_way[0][0] <= now:
            os.write(self.target, self._on_the_way.popleft()[1])
        return self._on_the_way[0][0] - now if self._on_the_way else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("namespaces", nargs=2)
    parser.add_argument("--mbit", type=float, default=100.0)
    parser.add_argument("--delay", type=float, default=0.02, help="seconds, one way")
    parser.add_argument("--loss", type=float, default=0.0, help="share of packets")
    given = parser.parse_args()
    devices = [tun(*where) for where in zip(given.namespaces, ADDRESSES, strict=True)]
    ways = [Direction(devices[i], devices[1 - i], given, i) for i in range(2)]
    print("ready", flush=True)
    wait = 1.0
    while True:
        select.select(devices, [], [], max(wait, 1e-4))
        now = time.monotonic()
        for way in ways:
            way.take(now)
        now = time.monotonic()
        wait = min(way.deliver(now) for way in ways)


if __name__ == "__main__":
    main()
