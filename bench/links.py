"""Network namespaces joined by shaped links, for benchmarks; root only, gone when left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

CENTRES = ("plca", "plcb")
ADDRESSES = ("10.231.77.1", "10.231.77.2")
HUB = "plhub"
HUB_ADDRESS = "10.231.79.254"


def possible() -> bool:
    """Whether namespaces and shaped links can be made here."""
    return os.geteuid() == 0 and bool(shutil.which("ip")) and bool(shutil.which("tc"))


def run(*arguments: str) -> None:
    subprocess.run(arguments, check=True, capture_output=True)


def inside(namespace: str, *arguments: str) -> list[str]:
    """The command in a namespace."""
    return ["ip", "netns", "exec", namespace, *arguments]


def congestion_controls() -> list[str]:
    path = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
    return path.read_text().split() if path.exists() else []


def tbf(namespace: str, device: str, mbit: int, burst_kib: int = 256) -> None:
    """Shapes what leaves by a device; after a rest a burst passes at once."""
    run(*inside(namespace, "tc", "qdisc", "replace", "dev", device, "root", "tbf", "rate",
                f"{mbit}mbit", "burst", f"{burst_kib}kb", "latency", "50ms"))  # fmt: skip


class Namespaces:
    """Some namespaces with a loopback; what is in them goes with them."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def __enter__(self) -> Namespaces:
        self._remove()
        for name in self.names:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        self.join()
        return self

    def join(self) -> None:
        """Makes the links."""

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    @staticmethod
    def prefer(namespace: str, subnet: str, device: str, congestion: str) -> None:
        """TCP connections that do not choose use this congestion control."""
        run("ip", "-n", namespace, "route", "replace", subnet, "dev", device, "congctl", congestion)


class Centres(Namespaces):
    """Two namespaces and a veth pair between them."""

    def __init__(self) -> None:
        super().__init__(CENTRES)

    def join(self) -> None:
        a, b = CENTRES
        run("ip", "link", "add", f"{a}0", "netns", a, "type", "veth", "peer", f"{b}0", "netns", b)
        for name, address in zip(CENTRES, ADDRESSES, strict=True):
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", f"{name}0")
            run("ip", "-n", name, "link", "set", f"{name}0", "up")

    def shape(self, mbit: int, burst_kib: int = 256) -> None:
        for name in CENTRES:
            tbf(name, f"{name}0", mbit, burst_kib)


class Wan(Namespaces):
    """Two namespaces and a long, lossy, narrow link between them; see `wan.py`."""

    def __init__(self, mbit: float, delay: float, loss: float, congestion: str = "") -> None:
        super().__init__(CENTRES)
        self._link = [f"--mbit={mbit}", f"--delay={delay}", f"--loss={loss}"]
        self._congestion = congestion

    def join(self) -> None:
        script = str(Path(__file__).with_name("wan.py"))
        command = ["nice", "-n", "-10", sys.executable, script, *CENTRES, *self._link]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise RuntimeError("the link did not come up")
        if self._congestion:
            for name in CENTRES:
                self.prefer(name, "10.231.78.0/24", f"{name}w", self._congestion)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        super().__exit__()


class Star(Namespaces):
    """Hosts, each with a shaped link to a bridge, beside which sits another namespace's address."""

    def __init__(self, hosts: int, mbit: int) -> None:
        self.hosts = tuple(f"plh{number}" for number in range(hosts))
        self.addresses = tuple(f"10.231.79.{number + 1}" for number in range(hosts))
        self._mbit = mbit
        super().__init__((*self.hosts, HUB))

    def join(self) -> None:
        run("ip", "-n", HUB, "link", "add", "bridge0", "type", "bridge")
        run("ip", "-n", HUB, "address", "add", f"{HUB_ADDRESS}/24", "dev", "bridge0")
        run("ip", "-n", HUB, "link", "set", "bridge0", "up")
        for name, address in zip(self.hosts, self.addresses, strict=True):
            run("ip", "link", "add", f"{name}0", "netns", name, "type", "veth",
                "peer", name, "netns", HUB)  # fmt: skip
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", f"{name}0")
            run("ip", "-n", name, "link", "set", f"{name}0", "up")
            run("ip", "-n", HUB, "link", "set", name, "master", "bridge0", "up")
            tbf(name, f"{name}0", self._mbit)
            tbf(HUB, name, self._mbit)
