"""Every c10d call against what one process computes, on each transport and layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pluribus.comm import tuner
from pluribus.comm.algorithms.layout import Layout
from pluribus.comm.corrections import Corrections
from pluribus.comm.costs import TYPICAL
from pluribus.comm.meeting import host_identity

from .ranks import run_ranks

ISLANDS = {
    "shared": ({}, None),
    "tcp": ({"PLURIBUS_COMM_SHARED_MEMORY": "0"}, None),
    "streams": ({"PLURIBUS_COMM_SHARED_MEMORY": "0", "PLURIBUS_COMM_STREAMS": "3"}, None),
    "islands": ({}, "aabb"),
    "unequal": ({"PLURIBUS_COMM_SHARED_MEMORY": "0"}, "abbb"),
    "sites": ({}, ["a/x", "a/x", "a/y", "b/z"]),
    "verified": ({"PLURIBUS_COMM_VERIFY": "1"}, "aabb"),
}


def environments(case: str, size: int = 4) -> list[dict[str, str]]:
    common, islands = ISLANDS[case]
    places = [{"PLURIBUS_COMM_ISLAND": island} for island in islands] if islands else [{}] * size
    return [common | place for place in places]


def given(rank: int, size: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """What a rank starts with: small whole numbers, so that every sum is exact."""
    numbers = torch.Generator().manual_seed(1000 * seed + rank)
    return torch.randint(1, 5, (size,), generator=numbers).to(dtype)


def everything(rank: int, n: int) -> None:
    """All calls, several sizes."""
    for seed, size in enumerate((1, 7, 1000, 300_000)):
        mine = [given(r, size, torch.float32, seed) for r in range(n)]
        reductions(rank, n, size, seed)
        x = mine[rank].clone() if rank == 1 else torch.zeros(size)
        dist.broadcast(x, src=1)
        assert torch.equal(x, mine[1])
        parts = [torch.empty(size) for _ in range(n)]
        dist.all_gather(parts, mine[rank])
        assert all(torch.equal(a, b) for a, b in zip(parts, mine, strict=True))
        whole = torch.empty(n * size)
        dist.all_gather_into_tensor(whole, mine[rank])
        assert torch.equal(whole, torch.cat(mine))
        dist.all_gather_into_tensor(x := torch.cat(mine), x[rank * size : (rank + 1) * size])
        assert torch.equal(x, torch.cat(mine))
        scattering(rank, n, size, seed)


def reductions(rank: int, n: int, size: int, seed: int) -> None:
    op = dist.ReduceOp
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        mine = [given(r, size, dtype, seed) for r in range(n)]
        stack = torch.stack(mine)
        wanted = {op.SUM: stack.sum(0), op.MAX: stack.amax(0), op.MIN: stack.amin(0),
                  op.PRODUCT: stack.prod(0)}  # fmt: skip
        if dtype is not torch.int64:
            wanted[op.AVG] = stack.sum(0) / n
        for kind, want in wanted.items():
            x = mine[rank].clone()
            dist.all_reduce(x, op=kind)
            assert torch.equal(x, want.to(dtype)), (kind, dtype, size)
        x = mine[rank].clone()
        dist.reduce(x, dst=n - 1)
        assert torch.equal(x, stack.sum(0).to(dtype) if rank == n - 1 else mine[rank])
    x = given(rank, size, torch.float32, seed)
    dist.all_reduce(x, op=dist._make_nccl_premul_sum(0.5))
    assert torch.equal(x, sum(given(r, size, torch.float32, seed) for r in range(n)) / 2)


def scattering(rank: int, n: int, size: int, seed: int) -> None:
    long = [given(r, n * size, torch.float32, seed) for r in range(n)]
    out = torch.empty(size)
    keep = long[rank].clone()
    dist.reduce_scatter_tensor(out, long[rank])
    assert torch.equal(out, torch.stack(long).sum(0).view(n, size)[rank])
    assert torch.equal(keep, long[rank])
    dist.reduce_scatter(out, list(long[rank].chunk(n)), op=dist.ReduceOp.AVG)
    assert torch.equal(out, torch.stack(long).sum(0).view(n, size)[rank] / n)
    whole = torch.empty(n * size)
    dist.all_to_all_single(whole, long[rank])
    assert torch.equal(whole, torch.cat([x.view(n, size)[rank] for x in long]))
    dist.scatter(out, list(long[2].chunk(n)) if rank == 2 else None, src=2)
    assert torch.equal(out, long[2].view(n, size)[rank])
    parts = [torch.empty(size) for _ in range(n)] if rank == 0 else None
    dist.gather(long[rank][:size].contiguous(), parts, dst=0)
    if parts is not None:
        assert all(torch.equal(p, x[:size]) for p, x in zip(parts, long, strict=True))
    # Rank r sends (r + t) % 3 rows to rank t.
    rows = [[(r + t) % 3 for t in range(n)] for r in range(n)]
    sent = torch.cat([torch.full((rows[rank][t], 5), 10.0 * rank + t) for t in range(n)])
    got = torch.empty(sum(rows[r][rank] for r in range(n)), 5)
    dist.all_to_all_single(got, sent, [rows[r][rank] for r in range(n)], rows[rank])
    assert torch.equal(
        got, torch.cat([torch.full((rows[r][rank], 5), 10.0 * r + rank) for r in range(n)])
    )


@pytest.mark.parametrize("case", ISLANDS)
def test_collectives_equal_one_process(case: str) -> None:
    run_ranks(everything, 4, environments=environments(case))


def odd_shapes(rank: int, n: int) -> None:
    x = torch.arange(12.0).view(3, 4).t() * (rank + 1)
    dist.all_reduce(x)
    assert torch.equal(x, torch.arange(12.0).view(3, 4).t() * 6)
    z = torch.full((3,), 1 + 2j) * (rank + 1)
    dist.all_reduce(z)
    assert torch.equal(z, torch.full((3,), 6 + 12j))
    flags = torch.tensor([rank == 0, False, True])
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    assert flags.tolist() == [True, False, True]
    bits = torch.tensor([1 << rank])
    dist.all_reduce(bits, op=dist.ReduceOp.BOR)
    assert bits.item() == 7
    small = torch.ones(5).to(torch.float8_e4m3fn)
    dist.all_reduce(small)
    assert small.float().tolist() == [3.0] * 5
    parts = [torch.empty(r + 1) for r in range(n)]
    dist.all_gather(parts, torch.full((rank + 1,), float(rank)))
    assert [p.tolist() for p in parts] == [[float(r)] * (r + 1) for r in range(n)]
    empty = torch.empty(0)
    dist.all_reduce(empty)
    works = [dist.all_reduce(torch.full((50_000,), float(i)), async_op=True) for i in range(20)]
    for i, work in enumerate(works):
        work.wait()
        assert work.is_completed()
        assert work.get_future().value()[0][0] == 3 * i
    tensors = [torch.ones(4) * i for i in range(3)]
    with dist._coalescing_manager(device=None) as manager:  # noqa: F841
        for tensor in tensors:
            dist.all_reduce(tensor)
    assert [t[0].item() for t in tensors] == [0.0, 3.0, 6.0]
    kept: list[Any] = [None] * n
    dist.all_gather_object(kept, {"rank": rank, "text": "x" * 1000 * rank})
    assert [k["rank"] for k in kept] == list(range(n))
    told = [("hello", 3)] if rank == 0 else [None]
    dist.broadcast_object_list(told, src=0)
    assert told == [("hello", 3)]
    pair = dist.new_group([0, 2])
    if rank != 1:
        y = torch.tensor([float(rank)])
        dist.all_reduce(y, group=pair)
        assert y.item() == 2.0
    dist.barrier()


def test_dtypes_shapes_objects_and_groups() -> None:
    run_ranks(odd_shapes, 3)


def messages(rank: int, n: int) -> None:
    big = 3_000_000
    if rank == 0:
        sends = [dist.isend(torch.full((big,), float(tag)), 1, tag=tag) for tag in (1, 2, 3)]
        for send in sends:
            send.wait()
        dist.send(torch.tensor([7.0]), 2)
    elif rank == 1:
        for tag in (3, 1, 2):  # another order than they were sent in
            x = torch.empty(big)
            dist.recv(x, 0, tag=tag)
            assert x[0] == x[-1] == tag
        dist.send(torch.tensor([8.0]), 2)
    else:
        found = {}
        for _ in range(2):
            x = torch.empty(1)
            source = dist.recv(x)
            found[source] = x.item()
        assert found == {0: 7.0, 1: 8.0}
    right, left = (rank + 1) % n, (rank - 1) % n
    out, into = torch.full((100_000,), float(rank)), torch.empty(100_000)
    for work in dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, out, right), dist.P2POp(dist.irecv, into, left)]
    ):
        work.wait()
    assert into[5] == left
    own = torch.empty(3)
    receive = dist.irecv(own, rank, tag=9)
    dist.isend(torch.ones(3), rank, tag=9).wait()
    receive.wait()
    assert own.sum() == 3


@pytest.mark.parametrize("case", ["shared", "tcp"])
def test_messages(case: str) -> None:
    run_ranks(messages, 3, environments=environments(case, 3))


def coded(rank: int, n: int, codec: str) -> tuple[list[float], float, float]:
    """(the bits as a sum of words, error of one sum, error of the mean of twenty)."""
    numbers = torch.Generator().manual_seed(0)
    x = torch.randn(n, 200_000, generator=numbers)
    want = x.sum(0)
    y = torch.empty(200_000)
    total = torch.zeros(200_000)
    for step in range(20):
        y.copy_(x[rank])
        dist.all_reduce(y)
        if step == 0:
            first = float((y - want).norm() / want.norm())
        total += y
    bits = y.view(torch.int32).to(torch.int64).sum().item()
    return bits, first, float((total / 20 - want).norm() / want.norm())


@pytest.mark.parametrize(
    ("codec", "islands", "one", "mean"),
    [
        ("bf16", "aabb", 4e-3, 4e-3),
        ("int8", "aabb", 1.2e-2, 1e-3),
        ("int8", "abbb", 1.2e-2, 1e-3),
        ("int8", "abc", 2e-2, 2e-3),
        ("int4", "aabb", 0.25, 3e-2),
    ],
)
def test_compressed_sums_are_close_and_equal_on_all_ranks(
    codec: str, islands: str, one: float, mean: float
) -> None:
    places = [{"PLURIBUS_COMM_ISLAND": i, "PLURIBUS_COMM_CODEC": codec} for i in islands]
    found = run_ranks(coded, len(islands), codec, environments=places)
    assert len({bits for bits, _, _ in found.values()}) == 1
    assert 1e-5 < found[0][1] < one
    assert found[0][2] < mean


def scattered(rank: int, n: int) -> tuple[float, float, int, list[int]]:
    """Errors of one scattered sum and of the mean of twenty, residuals that are kept, and the
    bits of a gathered whole as a sum of words per dtype."""
    group = dist.group.WORLD
    size = 50_000
    numbers = torch.Generator().manual_seed(0)
    x = torch.randn(n, n * size, generator=numbers)
    want = x.view(n, n, size).sum(0)[rank]
    out, total, errors = torch.empty(size), torch.zeros(size), []
    mine = x[rank].clone()
    for _ in range(20):
        mine.copy_(x[rank])
        dist.reduce_scatter_tensor(out, mine)
        errors.append(float((out - want).norm() / want.norm()))
        total += out
    kept = len(group.residuals.state_dict())
    del mine
    dist.reduce_scatter_tensor(out, x[rank].clone())  # a tensor of its own: nothing is owed to it
    errors.append(float((out - want).norm() / want.norm()))
    assert errors[-1] == errors[0] != errors[1]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    optimizer.step()  # from now on places in a step count
    mean = torch.zeros(size)
    for _ in range(20):
        dist.reduce_scatter_tensor(out, x[rank].clone())
        optimizer.step()
        mean += out / 20
    assert float((mean - want).norm() / want.norm()) < 1e-3
    bits = []
    for dtype in (torch.float32, torch.bfloat16):
        whole = torch.empty(n * size, dtype=dtype)
        own = x[rank, :size].to(dtype)
        dist.all_gather_into_tensor(whole, own)
        near = torch.cat([row[:size].to(dtype) for row in x])
        assert 1e-5 < float((whole - near).norm() / near.norm()) < 1.2e-2
        bits.append(whole.view(torch.uint8).view(torch.int16).to(torch.int64).sum().item())
    words = torch.arange(n * size)
    whole = torch.empty_like(words)
    dist.all_gather_into_tensor(whole, words.view(n, size)[rank])
    assert torch.equal(whole, words)
    return errors[0], float((total / 20 - want).norm() / want.norm()), kept, bits


@pytest.mark.parametrize("islands", [["a", "a", "b", "b"], ["a/x", "a/y", "b"]])
def test_scattered_sums_and_gathered_parts_may_be_compressed(islands: list[str]) -> None:
    places = [
        {"PLURIBUS_COMM_ISLAND": island, "PLURIBUS_COMM_CODEC": "int8",
         "PLURIBUS_COMM_GATHER_CODEC": "int8"}
        for island in islands
    ]  # fmt: skip
    found = run_ranks(scattered, len(islands), environments=places)
    for once, mean, kept, bits in found.values():
        assert 1e-4 < once < 1.2e-2
        assert mean < 1e-3
        assert kept == 1
        assert bits == found[0][3]


def sparse(rank: int, n: int, far: list[list[int]]) -> tuple[float, list[int]]:
    """Share of the buffer that left this rank's island by its own paths, and the result's bits."""
    paths = [lane for peer in far[rank] for lane in dist.group.WORLD._engine._mesh.data[peer]]
    size = 300_017
    x = torch.zeros(n, size)
    numbers = torch.Generator().manual_seed(0)
    for row in x:  # as an embedding's gradient: a few rows that hold something
        for at in torch.randint(0, size // 1000, (8,), generator=numbers).tolist():
            row[at * 1000 : at * 1000 + 500] = torch.randn(500, generator=numbers)
    x[:, -1] = 1.0
    before = sum(path.traffic.sent for path in paths)
    y = x[rank].clone()
    dist.all_reduce(y)
    share = (sum(path.traffic.sent for path in paths) - before) / (4 * size)
    torch.testing.assert_close(y, x.sum(0), rtol=1e-6, atol=1e-6)
    full = torch.randn(n, size, generator=numbers)
    z = full[rank].clone()
    dist.all_reduce(z)
    torch.testing.assert_close(z, full.sum(0), rtol=1e-5, atol=1e-5)
    out = torch.empty(20_000)
    dist.reduce_scatter_tensor(out, x[rank, : n * 20_000].clone())
    torch.testing.assert_close(out, x.sum(0)[rank * 20_000 :][:20_000], rtol=1e-6, atol=1e-6)
    short = y.to(torch.bfloat16)
    dist.all_reduce(short)  # of another type: as it is
    assert torch.equal(short, n * y.to(torch.bfloat16))
    bits = [t.view(torch.int32).to(torch.int64).sum().item() for t in (y, z)]
    return share, bits


@pytest.mark.parametrize("islands", ["aabb", "abc"])
def test_blocks_of_zeros_do_not_cross(islands: str) -> None:
    found, n = {}, len(islands)
    far = [[p for p in range(n) if islands[p] != islands[r]] for r in range(n)]
    for codec in ("none", "sparse"):
        places = [
            {"PLURIBUS_COMM_ISLAND": i, "PLURIBUS_COMM_CODEC": codec,
             "PLURIBUS_COMM_ALGORITHM": "islands"}
            for i in islands
        ]  # fmt: skip
        found[codec] = run_ranks(sparse, n, far, environments=places)
    assert all(bits == found["sparse"][0][1] for _, bits in found["sparse"].values())
    if len(set(islands)) == 2:  # more add up in an order that depends on where pieces end
        assert found["sparse"][0][1] == found["none"][0][1]
    crossed = sum(share for share, _ in found["sparse"].values())
    dense = sum(share for share, _ in found["none"].values())
    assert crossed < 0.2 * dense


def by_rails(rank: int, n: int) -> float:
    """Share of the buffer that left this rank's island by its own paths."""
    group = dist.group.WORLD
    paths = [group._engine._mesh.data[peer][0] for peer in ((2, 3) if rank < 2 else (0, 1))]
    x = torch.full((400_000,), rank + 1.0)
    before = sum(path.traffic.sent for path in paths)
    dist.all_reduce(x)
    assert torch.equal(x, torch.full((400_000,), 10.0))
    share = (sum(path.traffic.sent for path in paths) - before) / x.nbytes
    assert group.layout.rates == (4e8, 1e8, 1e8, 1e8)
    group.probe()  # on one host all links are alike
    dist.all_reduce(x)
    assert torch.equal(x, torch.full((400_000,), 40.0))
    return share


def test_what_was_measured_of_rails_is_what_they_carry(tmp_path: Path) -> None:
    islands = ["a", "a", "b", "b"]
    name = tuner.digest(Layout.of(islands), [host_identity()] * 4)
    known = tuner.to_json(TYPICAL, Corrections(), (4e8, 1e8, 1e8, 1e8))
    tuner.save(known, tmp_path / ".cache" / "pluribus" / "comm", name)
    places = [
        {"HOME": str(tmp_path), "PLURIBUS_COMM_ISLAND": i, "PLURIBUS_COMM_ALGORITHM": "islands"}
        for i in islands
    ]
    found = run_ranks(by_rails, 4, environments=places)
    assert [found[rank] for rank in range(4)] == pytest.approx([0.8, 0.2, 0.5, 0.5], abs=0.01)


def wrong(rank: int, n: int) -> str:
    try:
        dist.all_reduce(torch.ones(100 if rank else 200))
    except RuntimeError as error:
        return str(error)
    return ""


def test_different_calls_are_told_apart() -> None:
    found = run_ranks(wrong, 3)
    assert all("same collectives" in text for text in found.values()), found
