"""Death, stall, abort and corruption end every operation on every rank with the reason, and the
group can be made anew in the same processes. Never a hang, wherever it strikes."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pluribus.comm import errors
from pluribus.comm.job import Job
from pluribus.comm.program import Kind
from pluribus.comm.pulse import Watched
from pluribus.comm.transports.base import DATA, Header

from .ranks import run_ranks

TCP = {"PLURIBUS_COMM_SHARED_MEMORY": "0"}


def busy(steps: int = 10_000) -> None:
    x = torch.ones(400_000)
    for _ in range(steps):
        dist.all_reduce(x, op=dist.ReduceOp.AVG)


def goes_on(members: list[int], epoch: int) -> float:
    """Makes the group anew and sums over it."""
    group: Any = dist.group.WORLD
    group.reconfigure(members, epoch)
    x = torch.full((1_000_000,), float(dist.get_rank() + 1))
    dist.all_reduce(x)
    assert dist.get_world_size() == len(members)
    return float(x[123])


def death(rank: int, n: int, seed: int) -> tuple[str, tuple[int, ...], float]:
    if rank == 1:
        wait = random.Random(seed).uniform(0.02, 0.2)
        threading.Timer(wait, os.kill, (os.getpid(), signal.SIGKILL)).start()
    try:
        busy()
    except errors.CollectiveError as error:
        return type(error).__name__, error.ranks, goes_on([0, 2, 3], 1)
    raise AssertionError("nobody died")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("environment", [{}, TCP], ids=["shared", "tcp"])
def test_a_death_is_named_by_all_and_the_rest_go_on(seed: int, environment: dict) -> None:
    found = run_ranks(death, 4, seed, environments=[environment] * 4, silent=[1])
    assert set(found) == {0, 2, 3}
    assert set(found.values()) == {("PeerDied", (1,), 6.0)}


def idle_death(rank: int, n: int) -> tuple[int, ...]:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.3)
    with pytest.raises(errors.PeerDied) as caught:
        dist.all_reduce(torch.ones(3))
    return caught.value.ranks


def test_a_death_between_operations_ends_the_next_one() -> None:
    assert run_ranks(idle_death, 3, silent=[1]) == {0: (1,), 2: (1,)}


def stall(rank: int, n: int, folder: str) -> tuple[str, tuple[int, ...]]:
    if rank == 2:
        pid = os.getpid()
        if os.fork() == 0:
            time.sleep(0.1)
            os.kill(pid, signal.SIGSTOP)
            until = time.monotonic() + 120
            while len(os.listdir(folder)) < 2 and time.monotonic() < until:
                time.sleep(0.05)
            os.kill(pid, signal.SIGCONT)  # so that it ends
            os._exit(0)
    try:
        busy()
    except errors.CollectiveError as error:
        (Path(folder) / str(rank)).touch()
        return type(error).__name__, error.ranks
    raise AssertionError("nobody stalled")


def test_a_stalled_peer_is_told_from_a_slow_one(tmp_path: Path) -> None:
    settings = [{"PLURIBUS_COMM_STALL_SECONDS": "4"}] * 3
    found = run_ranks(stall, 3, str(tmp_path), environments=settings)
    assert found[0] == found[1] == ("PeerStalled", (2,))


def slow(rank: int, n: int) -> float:
    x = torch.ones(10)
    if rank == 1:
        time.sleep(7.0)  # computing: its engine answers
    dist.all_reduce(x)
    return float(x[0])


def test_a_peer_that_computes_long_has_not_stalled() -> None:
    found = run_ranks(slow, 2, environments=[{"PLURIBUS_COMM_STALL_SECONDS": "3"}] * 2)
    assert found == {0: 2.0, 1: 2.0}


def absent(rank: int, n: int) -> tuple[int, ...] | None:
    group: Any = dist.new_group(list(range(n)))
    if rank == 2:
        dist.barrier()
        return None
    from datetime import timedelta

    group.set_timeout(timedelta(seconds=5))
    with pytest.raises(errors.CollectiveTimeout) as caught:
        dist.all_reduce(torch.ones(3), group=group)
    dist.barrier()
    return caught.value.ranks


def test_who_never_joins_in_is_named_after_the_timeout() -> None:
    everybody_to_everybody = {"PLURIBUS_COMM_ALGORITHM": "direct"}
    found = run_ranks(absent, 3, environments=[everybody_to_everybody] * 3)
    assert found[0] == found[1] == (2,)


def dies_with_a_worker(rank: int, n: int, folder: str) -> str:
    """Rank 1 is killed; a process that it forked lives on until the others have seen it."""
    if rank == 1:
        if os.fork() == 0:
            until = time.monotonic() + 120
            while len(os.listdir(folder)) < 2 and time.monotonic() < until:
                time.sleep(0.02)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        busy()
    except errors.CollectiveError as error:
        (Path(folder) / str(rank)).touch()
        return type(error).__name__
    raise AssertionError("nobody died")


@pytest.mark.parametrize("environment", [{}, TCP], ids=["shared", "tcp"])
def test_a_death_is_seen_while_the_dead_have_children(tmp_path: Path, environment: dict) -> None:
    found = run_ranks(
        dies_with_a_worker, 3, str(tmp_path), environments=[environment] * 3, silent=[1]
    )
    assert set(found.values()) == {"PeerDied"}


def dies_while_meeting(rank: int, n: int, moment: int) -> tuple[str, float]:
    """Rank 1 dies at work, rank 3 when it has waited for so many words of the others."""
    if rank == 1:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()
    with pytest.raises(errors.PeerDied):
        busy()
    if rank == 3:
        get, heard = Watched.get, [0]

        def counted(self: Watched, key: str) -> bytes:
            if heard[0] == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            heard[0] += 1
            return get(self, key)

        Watched.get = counted  # type: ignore[method-assign]
    group: Any = dist.group.WORLD
    if rank == 3 and moment < 0:
        time.sleep(0.1)  # as who takes longer to see that there is something to see
        os.kill(os.getpid(), signal.SIGKILL)

    def meets() -> None:
        group.reconfigure([0, 2, 3], 1)
        busy()  # if all the others had been met already

    with pytest.raises(errors.PeerDied) as caught:
        meets()
    assert caught.value.ranks == (2,), caught.value
    return type(caught.value).__name__, goes_on([0, 1], 2)


@pytest.mark.parametrize("environment", [{}, TCP], ids=["shared", "tcp"])
@pytest.mark.parametrize("moment", [-1, 0, 2, 4, 6])
def test_a_death_while_the_others_meet_is_seen_at_once(moment: int, environment: dict) -> None:
    found = run_ranks(dies_while_meeting, 4, moment, environments=[environment] * 4, silent=[1, 3])
    assert found == {0: ("PeerDied", 3.0), 2: ("PeerDied", 3.0)}


def abort(rank: int, n: int) -> tuple[str, float]:
    group: Any = dist.group.WORLD
    if rank == 0:
        work = dist.all_reduce(torch.ones(3_000_000), async_op=True)  # rank 2 never joins in
        receive = dist.irecv(torch.empty(3), 1)
        time.sleep(0.1)
        group.abort()
        with pytest.raises(errors.Aborted):
            receive.wait()
        with pytest.raises(errors.Aborted) as caught:
            work.wait()
    elif rank == 1:
        with pytest.raises(errors.Aborted) as caught:
            dist.all_reduce(torch.ones(3_000_000))
    else:
        time.sleep(0.3)
        with pytest.raises(errors.Aborted) as caught:
            dist.all_reduce(torch.ones(3_000_000))
    return str(caught.value).split(" (")[0], goes_on([0, 1, 2], 5)


@pytest.mark.parametrize("environment", [{}, TCP], ids=["shared", "tcp"])
def test_abort_interrupts_all_ranks_and_all_operations(environment: dict) -> None:
    found = run_ranks(abort, 3, environments=[environment] * 3)
    assert set(found.values()) == {("rank 0 aborted the group", 6.0)}


def old_epoch(rank: int, n: int) -> float:
    group: Any = dist.group.WORLD
    group.reconfigure([0, 1], 7)
    if rank == 0:
        engine = group._engine
        stale = torch.full((25,), 99.0)
        header = Header(DATA, 0, 1, 0, 100)
        path = engine._mesh.data[1][0]
        engine.call(lambda: path.queue(header, memoryview(stale.numpy()).cast("B")))
    x = torch.ones(25)
    dist.all_reduce(x)
    return float(x.sum())


def test_chunks_of_an_old_epoch_are_dropped() -> None:
    assert run_ranks(old_epoch, 2) == {0: 50.0, 1: 50.0}


def flips(rank: int, n: int) -> tuple[int, ...]:
    """Rank 2's memory turns over a bit of the result."""
    run = Job.run

    def run_with_a_flip(self: Job, step: Any) -> None:
        if rank == 2 and step.kind is Kind.DIGEST and self.number == 3:
            self.task.output.view(torch.int32)[77] ^= 1 << 20
        run(self, step)

    Job.run = run_with_a_flip  # type: ignore[method-assign]
    x = torch.ones(100_000)
    for _ in range(2):
        dist.all_reduce(x, op=dist.ReduceOp.AVG)
    with pytest.raises(errors.SilentCorruption) as caught:
        dist.all_reduce(x, op=dist.ReduceOp.AVG)
    return caught.value.ranks


def test_a_flipped_bit_is_traced_to_its_rank() -> None:
    found = run_ranks(flips, 3, environments=[{"PLURIBUS_COMM_VERIFY": "1"}] * 3)
    assert set(found.values()) == {(2,)}


class BadWire:
    """A socket that turns over a bit of a few payloads, or of all."""

    def __init__(self, connection: Any, always: bool) -> None:
        self._connection, self._always, self._sends = connection, always, 0

    def sendmsg(self, parts: list[memoryview]) -> int:
        self._sends += 1
        if len(parts) == 1 or not (self._always or self._sends in (1, 5, 6)):
            return self._connection.sendmsg(parts)
        data = bytearray(b"".join(parts))
        data[100] ^= 4
        return self._connection.send(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def corrupt(rank: int, n: int, always: bool) -> Any:
    """Bits are changed on the way from rank 0 to rank 1."""
    group: Any = dist.group.WORLD
    dist.barrier()
    path = group._engine._mesh.data[1][0] if rank == 0 else None
    if path is not None:
        path._socket = BadWire(path._socket, always)
    try:
        for step in range(4):
            x = torch.full((400_000,), float(rank + step))
            dist.all_reduce(x)
            assert (x == n * step + n * (n - 1) / 2).all()
    except errors.CollectiveError as error:
        return "other bits" in str(error), error.ranks
    return rank != 0 or path.traffic.resent > 0


def test_what_is_changed_on_the_wire_is_sent_again() -> None:
    assert set(run_ranks(corrupt, 3, False, environments=[TCP] * 3).values()) == {True}


def test_a_wire_that_changes_everything_is_named_by_all() -> None:
    found = run_ranks(corrupt, 3, True, environments=[TCP] * 3)
    assert set(found.values()) == {(True, (0,))}


def leaves(rank: int, n: int) -> float:
    pair = dist.new_group([1, 2])
    dist.barrier()
    if rank == 0:
        dist.destroy_process_group()
        return 3.0
    time.sleep(0.2)
    x = torch.ones(1)
    for _ in range(2):  # over the world's group, which rank 0 has left
        dist.send(x * rank, 3 - rank) if rank == 1 else dist.recv(x, 1)
    with pytest.raises(errors.PeerLeft, match="rank 0 has left"):
        dist.all_reduce(x)
    y = torch.full((5,), float(rank))
    dist.all_reduce(y, group=pair)
    return float(y[0])


def test_who_leaves_is_missed_only_by_who_needs_it() -> None:
    assert set(run_ranks(leaves, 3).values()) == {3.0}


def any_fault(rank: int, n: int, seeds: list[int]) -> int:
    """A fault at a random moment of random work, again and again in the same processes."""
    group: Any = dist.group.WORLD
    ended = 0
    for epoch, seed in enumerate(seeds, start=1):
        chance = random.Random(seed)
        culprit, kind = chance.randrange(n), chance.choice(["abort", "close", "data"])
        moment = chance.uniform(0.0, 0.03)
        if rank == culprit:
            threading.Timer(moment, _strike, (group, kind, chance.randrange(n))).start()
        try:
            _random_work(seed, rank, n)
        except errors.CollectiveError:
            ended += 1
        group.reconfigure(list(range(n)), epoch)
        x = torch.ones(1000)
        dist.all_reduce(x)
        assert x.sum() == 1000 * n
        _all_there(group, epoch, n)  # or the next fault would strike this sum at a slower rank
    return ended


def _all_there(group: Any, epoch: int, n: int) -> None:
    group._store.add(f"there{epoch}", 1)
    while group._store.add(f"there{epoch}", 0) < n:
        time.sleep(0.001)


def _strike(group: Any, kind: str, peer: int) -> None:
    engine = group._engine
    mesh = engine._mesh
    peer = next(iter(mesh.control)) if peer not in mesh.control else peer
    if kind == "abort":
        group.abort()
    elif kind == "close":  # as a broken cable looks
        mesh.control[peer]._socket.shutdown(2)
    else:
        mesh.data[peer][0]._socket.shutdown(2)


def _random_work(seed: int, rank: int, n: int) -> None:
    chance = random.Random(seed + 1)
    while True:
        size = chance.choice([10, 5_000, 400_000])
        works = [dist.all_reduce(torch.ones(size), async_op=True) for _ in range(3)]
        works.append(dist.isend(torch.ones(size), (rank + 1) % n))
        works.append(dist.irecv(torch.empty(size), (rank - 1) % n))
        out = torch.empty(n * 100)
        dist.all_gather_into_tensor(out, torch.ones(100))
        for work in works:
            work.wait()


@pytest.mark.parametrize("environment", [{}, TCP], ids=["shared", "tcp"])
def test_random_faults_never_hang(environment: dict) -> None:
    rounds = 50
    found = run_ranks(any_fault, 3, list(range(rounds)), environments=[environment] * 3)
    assert set(found.values()) == {rounds}
