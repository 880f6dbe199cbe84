"""Ranks of fake chips with a library, and ranks without, in one group: real processes."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pluribus.comm.algorithms import relay
from pluribus.comm.devices.base import Mark
from pluribus.core.units import MIB

from ..ranks import run_ranks

# Gloo, as the fake vendor's library, may not ask the network for this host's address.
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo"}


def places(chips: str, islands: str, **more: str) -> list[dict[str, str]]:
    """Per rank ``a`` … for a fake chip of that vendor, ``-`` for the host; and its island."""
    options = {f"PLURIBUS_COMM_{name.upper()}": value for name, value in more.items()}
    return [
        LOOPBACK
        | options
        | {"PLURIBUS_COMM_ISLAND": island}
        | ({"PLURIBUS_COMM_DEVICE": f"fake-{chip}"} if chip != "-" else {})
        for chip, island in zip(chips, islands, strict=True)
    ]


def part(rank: int, size: int) -> torch.Tensor:
    return torch.randint(-99, 99, (size,), generator=torch.Generator().manual_seed(rank)).float()


def collectives(rank: int, n: int) -> dict[str, Any]:
    group: Any = dist.group.WORLD
    for size in (1, 7, 70_000, 400_001):
        parts = [part(r, size) for r in range(n)]
        whole = torch.stack(parts).sum(0)
        x = parts[rank].clone()
        dist.all_reduce(x)
        assert torch.equal(x, whole)
        x = parts[rank].clone()
        dist.all_reduce(x, op=dist.ReduceOp.AVG)
        assert torch.allclose(x, whole / n)
        x = parts[rank].clone()
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
        assert torch.equal(x, torch.stack(parts).amax(0))
        x = parts[rank].bfloat16()  # the fake library does not add these up
        dist.all_reduce(x)
        assert torch.allclose(x.float(), whole, rtol=0.05, atol=4.0)
        x = parts[rank].clone() if rank == n - 1 else torch.zeros(size)
        dist.broadcast(x, n - 1)
        assert torch.equal(x, parts[-1])
        gathered = [torch.empty(size) for _ in range(n)]
        dist.all_gather(gathered, parts[rank])
        assert all(torch.equal(one, other) for one, other in zip(gathered, parts, strict=True))
        own = torch.empty(size)
        dist.reduce_scatter_tensor(own, torch.cat([parts[rank] + r for r in range(n)]))
        assert torch.equal(own, whole + n * rank)
        mixed = torch.empty(n * size)
        dist.all_to_all_single(mixed, torch.cat([parts[rank] + r for r in range(n)]))
        assert torch.equal(mixed, torch.cat([p + rank for p in parts]))
        requests = [dist.isend(parts[rank], (rank + 1) % n), None]
        x = torch.empty(size)
        dist.recv(x, (rank - 1) % n)
        requests[0].wait()
        assert torch.equal(x, parts[rank - 1])
    for root in range(n):
        x = parts[rank].clone()
        dist.broadcast(x, root)
        assert torch.equal(x, parts[root])
    mixed = []  # that end in another order than they begin
    for k in range(12):
        x, size = part(rank, 5000 * (1 + k % 3)), 5000 * (1 + k % 3)
        if k % 4 == 0:
            mixed.append((dist.all_reduce(x, async_op=True), x, None))
            want = torch.stack([part(r, size) for r in range(n)]).sum(0)
        elif k % 4 == 1:
            out = torch.empty(n * size)
            mixed.append((dist.all_gather_into_tensor(out, x, async_op=True), out, None))
            want = torch.cat([part(r, size) for r in range(n)])
        elif k % 4 == 2:
            mixed.append((dist.broadcast(x, k % n, async_op=True), x, None))
            want = part(k % n, size)
        else:
            out = torch.empty(size)
            mixed.append((dist.reduce_scatter_tensor(out, x.repeat(n), async_op=True), out, None))
            want = torch.stack([part(r, size) for r in range(n)]).sum(0)
        mixed[-1] = (*mixed[-1][:2], want)
    for work, x, want in reversed(mixed):
        work.wait()
        assert torch.equal(x, want)
    works = [dist.all_reduce(t := part(rank, 3000 + k), async_op=True) for k in range(8)]
    for k, work in enumerate(works):
        work.wait()
        want = torch.stack([part(r, 3000 + k) for r in range(n)]).sum(0)
        assert torch.equal(work.result()[0], want)
    assert t is not None
    dist.barrier()
    found: list[Any] = [None] * n
    dist.all_gather_object(found, {"rank": rank})
    assert [one["rank"] for one in found] == list(range(n))
    inside = group._collectives.island
    kinds = {plan.operation for plan in group._collectives._programs if plan.by_library}
    assert inside is None or kinds == set(relay.WRITTEN)
    return {"library inside": inside is not None, "library alone": group._whole is not None}


@pytest.mark.parametrize(
    ("chips", "islands", "inside", "alone"),
    [
        ("aa--", "aabb", "aa", ""),  # a vendor's island and the host's
        ("aabbb", "aabbb", "aabbb", ""),  # two vendors' islands of unequal size
        ("a-", "ab", "", ""),  # no island has two: copies alone
        ("ab", "aa", "", ""),  # unlike chips in one island: no library knows both
        ("aa", "aa", "", "aa"),  # one vendor: its library does it all
    ],
)
def test_unlike_chips_add_up_and_exchange(
    chips: str, islands: str, inside: str, alone: str
) -> None:
    given = places(chips, islands, algorithm="islands")
    found = run_ranks(collectives, len(chips), environments=given)
    for rank, chip in enumerate(chips):
        assert found[rank]["library inside"] == (chip in inside)
        assert found[rank]["library alone"] == (chip in alone)


def coded(rank: int, n: int) -> list[float]:
    size = 100_000
    x = torch.linspace(-1, 1, size) * (rank + 1)
    y = torch.empty(size)
    for _ in range(3):
        y.copy_(x)
        dist.all_reduce(y)
        bits = [torch.empty(size) for _ in range(n)]
        dist.all_gather(bits, y)
        assert all(torch.equal(bits[0], other) for other in bits)
    out, part_of = torch.empty(size), torch.stack([x * (r + 1) for r in range(n)]).view(-1)
    dist.reduce_scatter_tensor(out, part_of)
    whole = torch.linspace(-1, 1, size) * sum(range(1, n + 1)) * (rank + 1)
    assert 0 < float((out - whole).abs().max()) < 1.0
    group: Any = dist.group.WORLD
    exact = torch.linspace(-1, 1, size) * sum(range(1, n + 1))
    return [float((y - exact).abs().max()), float(len(group.residuals.state_dict()))]


def test_only_the_hop_between_islands_is_coded_and_all_have_equal_bits() -> None:
    found = run_ranks(coded, 5, environments=places("aa-bb", "aacbb", codec="int8"))
    for error, residuals in found.values():
        assert 0 < error < 0.2
        assert residuals == 2.0


class UntilSent(Mark):
    """Reached once a path has carried something."""

    def __init__(self, path: Any) -> None:
        self._path = path

    def wait(self) -> None:
        while self._path.traffic.sent < MIB:
            time.sleep(0.001)

    hold = wait


def overlapping(rank: int, n: int) -> bool:
    """Rank 0's copies after the first three wait until a chunk has left."""
    group: Any = dist.group.WORLD
    if rank == 0:
        engine = group._chips.own()._down
        plain, count = engine.start, [0]

        def start(target: torch.Tensor, source: torch.Tensor, after: Mark) -> Mark:
            count[0] += 1
            late = count[0] > 3
            return plain(
                target, source, UntilSent(group._engine._mesh.data[1][0]) if late else after
            )

        engine.start = start
    x = torch.full((4 * MIB,), float(rank))
    dist.broadcast(x, 0)
    return bool((x == 0).all())


def test_chunks_leave_while_later_ones_are_still_copied() -> None:
    assert run_ranks(overlapping, 2, environments=places("a-", "ab")) == {0: True, 1: True}


def dying(rank: int, n: int) -> str:
    x = torch.ones(1000)
    dist.all_reduce(x)
    if rank == n - 1:
        dist.destroy_process_group()
        return "left"
    with pytest.raises(RuntimeError) as caught:
        dist.all_reduce(torch.ones(1000))
    return str(caught.value)


def test_a_peer_that_leaves_ends_what_a_library_began() -> None:
    found = run_ranks(dying, 4, environments=places("aa--", "aabb", algorithm="islands"))
    assert all("rank" in found[rank] for rank in range(3)), found  # who saw whom go first varies
