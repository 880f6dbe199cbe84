"""What users put on top of torch.distributed runs on this backend and gives the same numbers."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # heavy: once here instead of once per rank
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from .ranks import run_ranks


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(),
                         nn.Linear(32, 8))  # fmt: skip


def batch(rank: int) -> torch.Tensor:
    return torch.randn(4, 16, generator=torch.Generator().manual_seed(100 + rank))


def train(net: Callable[[torch.Tensor], torch.Tensor], parameters: Any, data: torch.Tensor) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        net(data).square().mean().backward()
        optimizer.step()


def alone(n: int) -> nn.Module:
    """The same training in one process: the mean over ranks is the mean over the whole batch."""
    net = model()
    train(net, net.parameters(), torch.cat([batch(r) for r in range(n)]))
    return net


def close(one: nn.Module, other: nn.Module, tolerance: float = 2e-5) -> None:
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(a.data, b.data, atol=tolerance), name


def ddp(rank: int, n: int) -> None:
    net = nn.parallel.DistributedDataParallel(model(rank))  # rank 0's weights go to all
    train(net, net.parameters(), batch(rank))
    close(net.module, alone(n))
    net = nn.parallel.DistributedDataParallel(model())
    net.register_comm_hook(None, default_hooks.fp16_compress_hook)
    train(net, net.parameters(), batch(rank))
    close(net.module, alone(n), 2e-2)
    net = nn.parallel.DistributedDataParallel(model())
    state = powerSGD_hook.PowerSGDState(
        None, matrix_approximation_rank=4, start_powerSGD_iter=2, min_compression_rate=1
    )
    net.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    train(net, net.parameters(), batch(rank))
    bits = [torch.empty_like(p) for p in [next(net.parameters()).data] for _ in range(n)]
    dist.all_gather(bits, next(net.parameters()).data)
    assert all(torch.equal(bits[0], other) for other in bits)


def fsdp(rank: int, n: int) -> None:
    for shape, names in (((n,), ("dp",)), ((2, n // 2), ("replicate", "shard"))):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        net = model()
        for layer in net:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(net, mesh=mesh)
        train(net, net.parameters(), batch(rank))
        for (name, a), b in zip(net.named_parameters(), alone(n).parameters(), strict=True):
            assert torch.allclose(a.full_tensor(), b, atol=2e-5), name


def tensor_parallel(rank: int, n: int) -> None:
    mesh = init_device_mesh("cpu", (n,))
    net = model()
    whole = copy.deepcopy(net)
    parallelize_module(net, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    out, want = net(batch(0)), whole(batch(0))
    assert torch.allclose(out, want, atol=1e-5)
    out.sum().backward()
    want.sum().backward()
    full = next(net.parameters()).grad.full_tensor()
    assert torch.allclose(full, next(whole.parameters()).grad, atol=1e-5)
    x = torch.arange(24.0).view(6, 4)
    split = distribute_tensor(x, mesh, [Shard(0)])
    assert torch.equal(split.redistribute(placements=[Shard(1)]).full_tensor(), x)
    assert torch.equal(split.redistribute(placements=[Replicate()]).to_local(), x)


def pipelining(rank: int, n: int) -> None:
    layers = [nn.Linear(16, 16) for _ in range(n)]
    torch.manual_seed(0)
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.2)
        nn.init.zeros_(layer.bias)
    data = torch.randn(8, 16)
    whole = nn.Sequential(*copy.deepcopy(layers))
    (sum(whole(part).square().mean() for part in data.chunk(4)) / 4).backward()
    for schedule in (ScheduleGPipe, Schedule1F1B):
        layer = copy.deepcopy(layers[rank])
        stage = PipelineStage(layer, rank, n, torch.device("cpu"))
        run = schedule(stage, 4, loss_fn=lambda out, target: (out - target).square().mean())
        if rank == 0:
            run.step(data)
        elif rank == n - 1:
            run.step(target=torch.zeros(8, 16))
        else:
            run.step()
        assert torch.allclose(layer.weight.grad, whole[rank].weight.grad, atol=1e-6)


def functional(rank: int, n: int) -> None:
    group = dist.group.WORLD
    ranks = list(range(n))

    def several(x: torch.Tensor) -> torch.Tensor:
        total = funcol.all_reduce(x, "sum", group)
        whole = funcol.all_gather_tensor(total, 0, group)
        part = funcol.reduce_scatter_tensor(whole, "avg", 0, group)
        moved = funcol.all_to_all_single(part.view(n, -1), None, None, group)
        return funcol.broadcast(moved, 0, group)

    x = torch.arange(4.0 * n) + rank
    want = sum(torch.arange(4.0 * n) + r for r in ranks)
    out = several(x)
    assert torch.equal(several(x), out)
    assert torch.equal(out.view(-1)[:4], want[:4])
    compiled = torch.compile(several, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), out)
    outs = funcol.all_reduce_coalesced([x, 2 * x], "sum", group)
    assert torch.equal(outs[1], 2 * want)
    outs = funcol.all_gather_into_tensor_coalesced([x, 2 * x], group)
    assert outs[0].numel() == n * x.numel()
    outs = funcol.reduce_scatter_tensor_coalesced([x, 2 * x], "sum", [0, 0], group)
    assert torch.equal(outs[0], want.view(n, -1)[rank])


def checkpoint(rank: int, n: int, folder: str) -> None:
    mesh = init_device_mesh("cpu", (n,))
    x = torch.arange(40.0).view(8, 5)
    dcp.save({"x": distribute_tensor(x, mesh, [Shard(0)])}, checkpoint_id=folder)
    other = {"x": distribute_tensor(torch.zeros(8, 5), mesh, [Shard(1)])}
    dcp.load(other, checkpoint_id=folder)
    assert torch.equal(other["x"].full_tensor(), x)


@pytest.mark.parametrize(
    ("body", "islands"),
    [(ddp, "aaaa"), (ddp, "abbb"), (fsdp, "aabb"), (tensor_parallel, "abab"),
     (pipelining, "aabb"), (functional, "aabb")],
)  # fmt: skip
def test_on_top_of(body: Callable[[int, int], None], islands: str) -> None:
    run_ranks(body, 4, environments=[{"PLURIBUS_COMM_ISLAND": island} for island in islands])


def test_checkpoints() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run_ranks(checkpoint, 2, str(Path(folder) / "checkpoint"))


def training(rank: int, n: int, seed: int, sharded: bool) -> tuple[float, list[str]]:
    """(loss at the end, residuals kept) of a small regression, sums going through the codec."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(32, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(),
                        nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 4))  # fmt: skip
    target = nn.Linear(32, 4)
    wrapped: Any = net
    if sharded:
        for layer in net[::2]:
            fully_shard(layer)
        fully_shard(net)
    else:
        wrapped = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    numbers = torch.Generator().manual_seed(1000 * seed + rank)
    group: Any = dist.group.WORLD
    early: list[str] = []
    for step in range(60):
        x = torch.randn(32, 32, generator=numbers)
        loss = (wrapped(x) - target(x).detach().sin()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 20:
            early = sorted(group.residuals.state_dict())
    assert sorted(group.residuals.state_dict()) == early, "their number grows"
    x = torch.randn(512, 32, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        end = (wrapped(x) - target(x).sin()).square().mean()
    ends = [torch.empty_like(end) for _ in range(n)]
    dist.all_gather(ends, end)
    assert all(torch.equal(ends[0], other) for other in ends), "ranks have drifted apart"
    return float(end), early


@pytest.mark.parametrize(("sharded", "kept"), [(False, 1), (True, 2)], ids=["ddp", "fsdp2"])
def test_training_through_int8_with_feedback_ends_within_the_noise_of_seeds(
    sharded: bool, kept: int
) -> None:
    ends: dict[str, list[float]] = {}
    for codec in ("none", "int8"):
        places = [{"PLURIBUS_COMM_ISLAND": i, "PLURIBUS_COMM_CODEC": codec} for i in "ab"]
        found = [run_ranks(training, 2, seed, sharded, environments=places)[0] for seed in range(3)]
        ends[codec] = [end for end, _ in found]
        assert all(len(names) == (kept if codec == "int8" else 0) for _, names in found), found
    noise = max(ends["none"]) - min(ends["none"])
    for plain, coded in zip(ends["none"], ends["int8"], strict=True):
        assert plain != coded
        assert abs(plain - coded) < 0.5 * noise
