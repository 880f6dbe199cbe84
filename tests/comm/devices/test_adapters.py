"""Adapters are found, refuse what they do not know, and copy in order; CUDA where there is one."""

from __future__ import annotations

import importlib.metadata
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pluribus.comm.devices.base import Adapter
from pluribus.comm.devices.copies import Staging
from pluribus.comm.devices.fake import Done, Fake
from pluribus.comm.devices.registry import GROUP, Devices
from pluribus.core.errors import ConfigError

from ..ranks import run_ranks


def test_host_tensors_need_no_adapter_unless_a_chip_is_pretended() -> None:
    assert Devices().of(torch.device("cpu")) is None
    fake = Devices("fake-a").of(torch.device("cpu"))
    assert isinstance(fake, Fake)
    assert fake.library_name == "fake-a"
    for wrong in ("fake-a@fast", "fake-a@0", "npu"):
        with pytest.raises(ConfigError):
            Devices(wrong).of(torch.device("cpu"))


def test_a_vendors_package_registers_its_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint(
        "meta", "tests_vendor:adapter", GROUP
    )  # a device type that every PyTorch has
    made: list[torch.device] = []

    def adapter(device: torch.device) -> Adapter:
        made.append(device)
        return Fake("fake-meta")

    monkeypatch.setattr(type(point), "load", lambda self: adapter)
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group, name: [point] if name == "meta" else []
    )
    devices = Devices()
    assert devices.of(torch.device("meta")) is devices.of(torch.device("meta"))
    assert made == [torch.device("meta")]
    assert devices.of(torch.device("xpu:0")) is None  # nobody registered one


def test_copies_end_in_order_and_errors_reach_who_waits() -> None:
    said: list[Any] = []
    fake = Fake("fake-a@1000")
    staging = Staging(fake, lambda function: function())
    host, device = torch.zeros(10), torch.arange(10.0)
    fake.fetch(host, device, Done()).wait()
    assert torch.equal(host, torch.arange(10.0))
    fake.store(device, host + 1, Done()).wait()
    assert torch.equal(device, torch.arange(10.0) + 1)
    for _ in range(3):
        staging.fetch(host, device, Done(), said.append)
    staging.fetch(host, torch.zeros(3), Done(), said.append)  # does not fit
    last = fake.fetch(host, device, Done())
    last.wait()
    while len(said) < 4:
        time.sleep(0.001)
    assert said[:3] == [None] * 3
    assert isinstance(said[3], RuntimeError)


def on_cuda(rank: int, n: int) -> None:
    device = torch.device("cuda", 0) if rank == 0 else torch.device("cpu")
    for size in (5, 3_000_001):
        x = torch.full((size,), rank + 1.0, device=device)
        x = x * 2  # on the current stream; nobody synchronises
        dist.all_reduce(x)
        assert (x == 2 * sum(range(1, n + 1))).all()
        y = torch.full((size,), float(rank), device=device)
        dist.broadcast(y, n - 1)
        assert (y == n - 1).all()
        parts = [torch.empty(size, device=device) for _ in range(n)]
        dist.all_gather(parts, torch.full((size,), float(rank), device=device))
        assert all((part == r).all() for r, part in enumerate(parts))
        if rank == 0:
            dist.send(x + 1, 1)
        elif rank == 1:
            z = torch.empty(size)
            dist.recv(z, 0)
            assert (z == 2 * sum(range(1, n + 1)) + 1).all()


@pytest.mark.skipif(torch.cuda.device_count() < 1, reason="no CUDA device")
def test_a_cuda_rank_and_cpu_ranks_exchange() -> None:
    run_ranks(on_cuda, 3, environments=[{"PLURIBUS_COMM_ISLAND": name} for name in "abb"])


def on_two_cuda(rank: int, n: int) -> bool:
    device = torch.device("cuda" if rank < 2 else "cpu")
    group: Any = dist.group.WORLD
    for size in (5, 3_000_001):
        x = torch.full((size,), rank + 1.0, device=device)
        dist.all_reduce(x)
        assert (x == sum(range(1, n + 1))).all()
    return group._collectives.island is not None


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_nccl_adds_up_inside_an_island() -> None:
    def environment(rank: int) -> dict[str, str]:
        return {
            "PLURIBUS_COMM_ISLAND": "aab"[rank],
            "PLURIBUS_COMM_ALGORITHM": "islands",
            "CUDA_VISIBLE_DEVICES": str(rank) if rank < 2 else "",
        }

    found = run_ranks(on_two_cuda, 3, environments=[environment(rank) for rank in range(3)])
    assert found == {0: True, 1: True, 2: False}
