"""Fabric: how one rank reaches the others.

Ranks may sit on unlike devices. Over gloo, a group of like accelerators uses its own library and
anything else goes through host memory, which every chip can reach. Over our own backend all that
is the backend's business. Whoever needs to communicate is handed a Fabric; nothing here is global
but c10d's own default group.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from pluribus.comm.backend import NAME as PLURIBUS
from pluribus.comm.options import Options
from pluribus.comm.rank import PeerLostError

BACKENDS = ("gloo", PLURIBUS)
BACKEND = "gloo"  # of runs that name none

# Collective library by torch device type, where PyTorch (or the vendor's plugin) has one.
_NATIVE = {"cuda": "nccl", "npu": "hccl", "xpu": "xccl", "mlu": "cncl", "musa": "mccl"}


class Pending(NamedTuple):
    """A send in flight; keeps its buffer alive."""

    work: dist.Work
    buffer: torch.Tensor


class Group(NamedTuple):
    """Ranks that sum tensors together, and whether they do it in host memory."""

    ranks: tuple[int, ...]
    handle: dist.ProcessGroup
    on_host: bool


@dataclass(frozen=True, kw_only=True)
class Hops:
    """How sums travel, if over our own backend.

    Attributes:
        island: of this rank; ranks of one name are near each other. Empty: its host.
        codec: of sums between islands, "none" or one of `codecs.registry`.
    """

    island: str = ""
    codec: str = "none"


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
        backend: one of `BACKENDS`.
    """

    def __init__(
        self,
        rank: int,
        devices: Sequence[str],
        device: torch.device,
        port: int,
        timeout: float,
        backend: str = BACKEND,
        hops: Hops | None = None,
    ) -> None:
        assert backend in BACKENDS, backend
        hops = hops or Hops()
        self.rank = rank
        self.device = device
        self._devices = tuple(devices)
        self._own = backend == PLURIBUS
        self._more: dict[str, Any] = {"backend": backend}
        if self._own:
            self._more["pg_options"] = Options(island=hops.island, codec=hops.codec)
        limit = timedelta(seconds=timeout)
        store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=limit)
        with _peers():
            dist.init_process_group(
                store=store, rank=rank, world_size=len(devices), timeout=limit, **self._more
            )
        self.everyone = Group(tuple(range(len(devices))), dist.group.WORLD, not self._own)
        self._groups = [self.everyone]

    @property
    def world_size(self) -> int:
        return len(self._devices)

    def group(self, ranks: Sequence[int]) -> Group:
        """A group; every rank of the world must ask for the same groups in the same order."""
        ranks = tuple(sorted(ranks))
        kinds = {self._devices[rank] for rank in ranks}
        native = _NATIVE.get(next(iter(kinds))) if len(kinds) == 1 and not self._own else None
        if native is not None:
            return Group(ranks, dist.new_group(list(ranks), backend=native), False)
        if ranks == self.everyone.ranks:
            return self.everyone
        with _peers():
            group = Group(ranks, dist.new_group(list(ranks), **self._more), not self._own)
        if self.rank in ranks:
            self._groups.append(group)
        return group

    def send(self, tensor: torch.Tensor, to: int, tag: int) -> Pending:
        """Starts sending a tensor; does not wait for the receiver."""
        buffer = tensor.detach().contiguous()
        if not self._own:
            buffer = buffer.cpu()
        with _peers():
            return Pending(dist.isend(buffer, to, self.everyone.handle, tag), buffer)

    def receive(
        self, shape: Sequence[int], dtype: torch.dtype, source: int, tag: int
    ) -> torch.Tensor:
        """Waits for a tensor of this shape and returns it on this rank's device."""
        if self._own:
            buffer = torch.empty(tuple(shape), dtype=dtype, device=self.device)
            with _peers():
                dist.recv(buffer, source, self.everyone.handle, tag)
            return buffer
        pinned = self.device.type == "cuda"
        buffer = torch.empty(tuple(shape), dtype=dtype, pin_memory=pinned)
        with _peers():
            dist.recv(buffer, source, self.everyone.handle, tag)
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
            if group.on_host and tensor.device.type != "cpu":
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

    def residuals(self) -> dict[str, torch.Tensor]:
        """What the codec has not said yet, by names that are the same in every run of a plan."""
        if not self._own:
            return {}
        return {
            f"{_name(group)}/{key}": tensor
            for group in self._groups
            for key, tensor in group.handle.residuals.state_dict().items()
        }

    def load_residuals(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes up what `residuals` of the same rank and plan returned."""
        for group in self._groups if self._own else ():
            start = f"{_name(group)}/"
            own = {k.removeprefix(start): t for k, t in state.items() if k.startswith(start)}
            group.handle.residuals.load_state_dict(own)

    def close(self) -> None:
        """Leaves the group."""
        dist.destroy_process_group()


def _name(group: Group) -> str:
    return "-".join(map(str, group.ranks))


@contextmanager
def _peers() -> Iterator[None]:
    """c10d reports a lost peer as RuntimeError; the launcher must tell it from a rank's own."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLostError(str(error).splitlines()[0]) from error
