"""What c10d's callers may ask for beside plain collectives: every op and dtype, coalescing, split
groups, other schedules and wrappers, compiled DDP, asynchronous checkpoints."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # heavy: once here instead of once per rank
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.pipelining import (
    PipelineStage,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from pluribus.comm.errors import CollectiveError

from .ranks import run_ranks
from .test_drop_in import alone, batch, close, model, train

R = dist.ReduceOp
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn,
          torch.float8_e5m2]  # fmt: skip
WHOLE = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16,
         torch.uint32, torch.uint64]  # fmt: skip
COMPLEX = [torch.complex64, torch.complex128]
PYTHON: dict[Any, Callable[[Any, Any], Any]] = {
    R.SUM: operator.add, R.AVG: operator.add, R.PRODUCT: operator.mul, R.MAX: max, R.MIN: min,
    R.BAND: operator.and_, R.BOR: operator.or_, R.BXOR: operator.xor,
}  # fmt: skip


def defined(op: Any, dtype: torch.dtype) -> bool:
    if dtype is torch.bool:
        return op != R.AVG
    if dtype in COMPLEX:
        return op in (R.SUM, R.AVG)
    return dtype in WHOLE or op not in (R.BAND, R.BOR, R.BXOR)


def wanted(op: Any, dtype: torch.dtype, n: int, size: int) -> list[Any]:
    """By Python, element by element."""
    found = []
    for at in range(size):
        each = [given(rank, at, dtype) for rank in range(n)]
        total = functools.reduce(PYTHON[op], each)
        if op == R.AVG:
            total = total // n if dtype in WHOLE else total / n
        found.append(total)
    exact = torch.float64 if dtype in FLOATS else torch.complex128 if dtype in COMPLEX else dtype
    return torch.tensor(found, dtype=exact).to(dtype).tolist()


def given(rank: int, at: int, dtype: torch.dtype) -> Any:
    """One or two: their sums and products are exact in every dtype."""
    number = 1 + (at + rank * rank) % 2
    return number == 2 if dtype is torch.bool else number


def numbers(rank: int, n: int) -> int:
    group: Any = dist.group.WORLD
    checked = 0
    for dtype in [*FLOATS, *WHOLE, *COMPLEX, torch.bool]:
        mine = torch.tensor([given(rank, at, dtype) for at in range(2 * n)]).to(dtype)
        for op in PYTHON:
            x, part = mine.clone(), torch.empty(2, dtype=dtype)
            options, scattered = dist.AllreduceOptions(), dist.ReduceScatterOptions()
            options.reduceOp = scattered.reduceOp = R(op)
            if not defined(op, dtype):
                with pytest.raises(CollectiveError, match="not defined"):
                    group.allreduce([x], options)
                with pytest.raises(CollectiveError, match="not defined"):
                    group.reduce_scatter_single(part, x, scattered)
                continue
            want = wanted(op, dtype, n, 2 * n)
            group.allreduce([x], options).wait()
            assert x.tolist() == want, (op, dtype)
            dist.reduce_scatter_tensor(part, mine, op=op)
            assert part.tolist() == want[2 * rank : 2 * rank + 2], (op, dtype)
            checked += 1
        x = mine.clone()
        dist.broadcast(x, 1)
        assert (
            x.tolist()
            == torch.tensor([given(1, at, dtype) for at in range(2 * n)]).to(dtype).tolist()
        )
    for factor in (0.5, torch.tensor([0.5])):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            part = torch.empty(2, dtype=dtype)
            long = torch.full((2 * n,), float(rank + 1), dtype=dtype)
            dist.reduce_scatter_tensor(part, long, op=dist._make_nccl_premul_sum(factor))
            assert part.tolist() == [n * (n + 1) / 4] * 2
    return checked


def test_every_op_on_every_dtype() -> None:
    assert set(run_ranks(numbers, 3).values()) == {6 * 5 + 8 * 8 + 2 * 2 + 7}


def coalesced(rank: int, n: int) -> None:
    cpu = torch.device("cpu")
    outs, ins = [torch.empty(4 * n) for _ in range(3)], [torch.ones(4) * rank + k for k in range(3)]
    with dist._coalescing_manager(device=cpu):
        for out, x in zip(outs, ins, strict=True):
            dist.all_gather_into_tensor(out, x)
    assert outs[2].view(n, 4)[:, 0].tolist() == [r + 2.0 for r in range(n)]
    into = torch.empty(3)
    with dist._coalescing_manager(device=cpu, async_ops=True) as manager:
        dist.isend(torch.full((3,), float(rank)), (rank + 1) % n)
        dist.irecv(into, (rank - 1) % n)
    manager.wait()
    assert into.tolist() == [(rank - 1.0) % n] * 3
    with pytest.raises(CollectiveError, match="dense"):
        dist.broadcast(torch.ones(3).to_sparse(), 0)
    dist.barrier()


def test_coalescing_for_a_device() -> None:
    run_ranks(coalesced, 3)


def split(rank: int, n: int) -> float:
    """As on a machine with an accelerator, which c10d asks for before it splits."""
    torch.accelerator.is_available = lambda: True
    torch.accelerator.current_accelerator = lambda: torch.device("cpu")
    torch.accelerator.current_device_index = lambda: 0
    dist.group.WORLD.bound_device_id = torch.device("cpu", 0)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    x = torch.tensor([float(rank)])
    dist.all_reduce(x, group=mesh["shard"].get_group())
    dist.all_reduce(x, group=mesh["replicate"].get_group())
    pair = dist.split_group(split_ranks=[[0, 3]])
    assert (pair is None) == (rank in (1, 2))
    if pair is not None:
        y = torch.tensor([float(rank)])
        dist.all_reduce(y, group=pair)
        assert y.item() == 3.0
        assert dist.get_process_group_ranks(pair) == [0, 3]
    return float(x)


def test_split_groups_and_meshes_made_of_them() -> None:
    assert set(run_ranks(split, 4).values()) == {6.0}


def wrappers(rank: int, n: int) -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns when it is imported

    net: Any = nn.parallel.DistributedDataParallel(model())
    train(torch.compile(net, backend="aot_eager"), net.parameters(), batch(rank))
    close(net.module, alone(n))
    net = nn.parallel.DistributedDataParallel(model(), static_graph=True)
    optimizer = ZeroRedundancyOptimizer(net.parameters(), torch.optim.AdamW, lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        net(batch(rank)).square().mean().backward()
        optimizer.step()
    close(net.module, alone(n))
    net = FullyShardedDataParallel(model(), device_id=torch.device("cpu"))
    train(net, net.parameters(), batch(rank))
    with FullyShardedDataParallel.summon_full_params(net):
        close(net.module, alone(n))
    net = model()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    parallelize_module(net, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(net, mesh=mesh["dp"])
    train(net, net.parameters(), batch(rank // 2))
    for (name, a), b in zip(net.named_parameters(), alone(2).parameters(), strict=True):
        assert torch.allclose(a.full_tensor(), b, atol=3e-5), name


def test_wrappers_beside_plain_ddp() -> None:
    run_ranks(wrappers, 4, environments=[{"PLURIBUS_COMM_ISLAND": i} for i in "aabb"])


def schedules(rank: int, n: int) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(16, 16) for _ in range(2 * n)]
    data = torch.randn(8, 16)
    whole = nn.Sequential(*copy.deepcopy(layers))
    (sum(whole(part).square().mean() for part in data.chunk(8)) / 8).backward()
    for schedule in (ScheduleInterleaved1F1B, ScheduleInterleavedZeroBubble, ScheduleZBVZeroBubble):
        back = 2 * n - 1 - rank if schedule is ScheduleZBVZeroBubble else rank + n
        stages = [
            PipelineStage(copy.deepcopy(layers[at]), at, 2 * n, torch.device("cpu"))
            for at in (rank, back)
        ]
        run = schedule(stages, 8, loss_fn=lambda out, target: (out - target).square().mean())
        last = {"target": torch.zeros(8, 16)} if back == 2 * n - 1 else {}
        run.step(*([data] if rank == 0 else []), **last)
        for stage, at in zip(stages, (rank, back), strict=True):
            grad = stage.submod.weight.grad
            assert torch.allclose(grad, whole[at].weight.grad, atol=1e-5), schedule


def test_interleaved_and_zero_bubble_pipelines() -> None:
    run_ranks(schedules, 3)


def saved(rank: int, n: int, folder: str) -> None:
    net = model()
    fully_shard(net, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    net(batch(rank)).square().mean().backward()
    optimizer.step()
    weights, state = get_state_dict(net, optimizer)
    before = {name: x.full_tensor().clone() for name, x in weights.items()}
    dcp.async_save({"net": weights, "optimizer": state}, checkpoint_id=folder).result()
    for x in weights.values():
        x.to_local().zero_()
    dcp.load({"net": weights, "optimizer": state}, checkpoint_id=folder)
    for name, x in weights.items():
        assert torch.equal(x.full_tensor(), before[name])


def test_checkpoints_of_fsdp_saved_beside_training(tmp_path: Path) -> None:
    run_ranks(saved, 2, str(tmp_path / "checkpoint"))
