"""Fabric: how one rank reaches the others.

Ranks may sit on unlike devices. A group of like accelerators uses its own library; anything
else goes over gloo through host memory, which every chip can reach. Whoever needs to
communicate is handed a Fabric; nothing here is global but c10d's own default group.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist

from pluribus.comm.rank import PeerLostError

# Collective library by torch device type, where PyTorch (or the vendor's plugin) has one.
_NATIVE = {"cuda": "nccl", "npu": "hccl", "xpu": "xccl", "mlu": "cncl", "musa": "mccl"}


class Pending(NamedTuple):
    """A send in flight; keeps its buffer alive."""

    work: dist.Work
    buffer: torch.Tensor


class Group(NamedTuple):
    """Ranks that sum tensors together, and whether over the host."""

    ranks: tuple[int, ...]
    handle: dist.ProcessGroup
    through_host: bool


def host_store(timeout: float) -> tuple[dist.TCPStore, int]:
    """A rendezvous store that listens on loopback only, and its port; for the launcher."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    store = dist.TCPStore(
        "127.0.0.1",
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout),
        master_listen_fd=listener.detach(),
    )
    return store, port


class Fabric:
    """One rank's connections.

    Attributes:
        everyone: all ranks, over the host.

    Args:
        rank: of this process.
        devices: torch device type of every rank, e.g. ``("cuda", "cpu")``.
        device: this rank's own device.
        port: of the launcher's store on loopback.
        timeout: seconds after which an exchange counts as lost.
    """

    def __init__(
        self, rank: int, devices: Sequence[str], device: torch.device, port: int, timeout: float
    ) -> None:
        self.rank = rank
        self.device = device
        self._devices = tuple(devices)
        limit = timedelta(seconds=timeout)
        store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=limit)
        with _peers():
            dist.init_process_group(
                "gloo", store=store, rank=rank, world_size=len(devices), timeout=limit
            )
        self.everyone = Group(tuple(range(len(devices))), dist.group.WORLD, True)

    @property
    def world_size(self) -> int:
        return len(self._devices)

    def group(self, ranks: Sequence[int]) -> Group:
        """A group; every rank of the world must ask for the same groups in the same order."""
        ranks = tuple(sorted(ranks))
        kinds = {self._devices[rank] for rank in ranks}
        native = _NATIVE.get(next(iter(kinds))) if len(kinds) == 1 else None
        if native is not None:
            return Group(ranks, dist.new_group(list(ranks), backend=native), False)
        if ranks == self.everyone.ranks:
            return self.everyone
        return Group(ranks, dist.new_group(list(ranks), backend="gloo"), True)

    def send(self, tensor: torch.Tensor, to: int, tag: int) -> Pending:
        """Starts sending a tensor through the host; does not wait for the receiver."""
        buffer = tensor.detach().contiguous().cpu()
        with _peers():
            return Pending(dist.isend(buffer, dst=to, tag=tag), buffer)

    def receive(
        self, shape: Sequence[int], dtype: torch.dtype, source: int, tag: int
    ) -> torch.Tensor:
        """Waits for a tensor of this shape and returns it on this rank's device."""
        pinned = self.device.type == "cuda"
        buffer = torch.empty(tuple(shape), dtype=dtype, pin_memory=pinned)
        with _peers():
            dist.recv(buffer, src=source, tag=tag)
        return buffer.to(self.device, non_blocking=pinned)

    def finish(self, pending: Sequence[Pending]) -> None:
        """Waits until these sends have left."""
        with _peers():
            for send in pending:
                send.work.wait()

    def sum(self, tensor: torch.Tensor, group: Group) -> None:
        """Sums a tensor over a group, in place; the result is bit-identical on every member."""
        if len(group.ranks) == 1:
            return
        with _peers():
            if group.through_host and tensor.device.type != "cpu":
                staged = tensor.cpu()
                dist.all_reduce(staged, group=group.handle)
                tensor.copy_(staged)
            else:
                dist.all_reduce(tensor, group=group.handle)

    def largest(self, value: float) -> float:
        """The largest value any rank of the world calls this with; waits for all of them."""
        tensor = torch.tensor(value, dtype=torch.float64)
        with _peers():
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return float(tensor)

    def barrier(self) -> None:
        """Waits for every rank."""
        with _peers():
            dist.all_reduce(torch.zeros(1))

    def close(self) -> None:
        """Leaves the group."""
        dist.destroy_process_group()


@contextmanager
def _peers() -> Iterator[None]:
    """c10d reports a lost peer as RuntimeError; the launcher must tell it from a rank's own."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLostError(str(error).splitlines()[0]) from error
