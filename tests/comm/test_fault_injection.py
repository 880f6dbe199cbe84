"""A fault at a random moment of random work: every survivor ends with the right error, none hangs.

Ranks are threads of this process with engines and sockets of their own, so that hundreds of cases
take seconds; `test_faults` does the same to processes. `FAULT_CASES=500` runs so many of each kind.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pluribus.comm import errors
from pluribus.comm.errors import CollectiveError
from pluribus.comm.group import Group
from pluribus.comm.mesh import Mesh
from pluribus.comm.options import Options

CASES = int(os.environ.get("FAULT_CASES", "6"))
LIMIT = 120.0  # what takes so long hangs


def connect(size: int, options: Options, store: dist.Store) -> list[Group]:
    with ThreadPoolExecutor(size) as pool:
        return list(
            pool.map(lambda rank: Group(store, rank, size, LIMIT, (), options), range(size))
        )


def work(group: Group, seed: int, rounds: float = float("inf")) -> None:
    """The same on all ranks; wrong sums and messages are found."""
    chance, rank, size = random.Random(seed), group.rank(), group.size()
    after, before = (rank + 1) % size, (rank - 1) % size
    done = 0
    while done < rounds:
        done += 1
        count = chance.choice([1, 300, 20_000, 400_000])
        sums = [torch.full((count,), float(rank + k)) for k in range(3)]
        works: list[Any] = [group.allreduce([x]) for x in sums]
        sent = torch.full((count,), float(done + rank))
        came = torch.empty(count)
        works.append(group.recv([came], before, 1))
        works.append(group.send([sent], after, 1))
        parts = torch.empty(size * 100)
        works.append(group.all_gather_single(parts, torch.full((100,), float(rank))))
        for one in works:
            one.wait()
        for k, x in enumerate(sums):
            assert (x == size * (size - 1) / 2 + k * size).all()
        assert (came == done + before).all()
        assert parts.view(size, 100)[:, 7].tolist() == list(range(size))


def ends(group: Group, seed: int) -> CollectiveError:
    try:
        work(group, seed)
    except CollectiveError as error:
        return error
    raise AssertionError("nothing happened")


def in_engine(group: Group, act: Callable[[], None]) -> None:
    done = threading.Event()
    group._engine.call(lambda: (act(), done.set()))
    assert done.wait(LIMIT)


def dies(group: Group) -> None:
    """All its connections end without a word, as after a SIGKILL."""
    engine = group._engine

    def vanish() -> None:
        for path in engine._mesh.paths():
            engine._watch.forget(path)
            path.close()
        engine._mesh = Mesh(engine._mesh.epoch)
        engine._health._mesh = engine._mesh
        engine._lanes.fail(errors.Aborted("killed"))
        engine._lanes.all.clear()
        engine._messages.fail(errors.Aborted("killed"))
        engine._failure = errors.Aborted("killed")

    in_engine(group, vanish)


def one_sum(group: Group) -> float:
    x = torch.full((1000,), float(group.rank() + 1))
    group.allreduce([x]).wait()
    return float(x[-1])


def still_talk(group: Group, others: list[int]) -> None:
    """Messages go on among those who stay."""
    x = torch.empty(5)
    works: list[Any] = [group.recv([x], other, 77) for other in others]
    for other in others:
        works.append(group.send([torch.ones(5)], other, 77))
    for one in works:
        one.wait()


def all_of(calls: list[Callable[[], Any]]) -> list[Any]:
    """Runs them side by side; every one must end."""
    found: list[Future] = []
    for call in calls:
        future: Future = Future()

        def run(call: Callable[[], Any] = call, future: Future = future) -> None:
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        found.append(future)
    return [future.result(LIMIT) for future in found]


class Case:
    """A group, who is struck, and when."""

    def __init__(self, seed: int, **options: Any) -> None:
        chance = random.Random(seed)
        self.seed, self.chance = seed, chance
        size = chance.choice([2, 3, 3, 4])
        given = Options(
            **{"shared_memory": chance.random() < 0.5, "streams": chance.choice([1, 1, 2]),
               "address": "127.0.0.1"} | options
        )  # fmt: skip
        self.store = dist.HashStore()
        self.groups = connect(size, given, self.store)
        self.victim = chance.randrange(size)
        self.moment = chance.choice([0.0, chance.uniform(0.0, 0.03)])

    @property
    def others(self) -> list[int]:
        return [rank for rank in range(len(self.groups)) if rank != self.victim]

    def strike(self, act: Callable[[Group], None]) -> list[CollectiveError]:
        """How all ranks' work ends when ``act`` happens to the victim."""

        def soon() -> None:
            time.sleep(self.moment)
            act(self.groups[self.victim])

        working = [lambda group=group: ends(group, self.seed) for group in self.groups]
        return all_of([*working, soon])[:-1]

    def goes_on(self, members: list[int]) -> None:
        def again(rank: int) -> float:
            self.groups[rank].reconfigure(members, 1)
            return one_sum(self.groups[rank])

        n = len(members)
        found = all_of([lambda rank=rank: again(rank) for rank in members])
        assert found == [n * (n + 1) / 2] * n
        all_of([group.shutdown for group in self.groups])


@pytest.mark.parametrize("seed", range(CASES))
def test_death(seed: int) -> None:
    case = Case(seed)
    found = case.strike(dies)
    for rank in case.others:
        assert type(found[rank]) is errors.PeerDied, found[rank]
        assert found[rank].ranks == (case.victim,)
    case.goes_on(case.others)


@pytest.mark.parametrize("seed", range(CASES))
def test_death_while_the_others_meet(seed: int) -> None:
    """Who was to come dies instead, at any moment: they say so, and meet without it."""
    case = Case(900_000 + seed)
    ranks = list(range(len(case.groups)))

    def meets(rank: int) -> CollectiveError:
        try:
            case.groups[rank].reconfigure(ranks, 1)
        except CollectiveError as error:
            case.groups[rank].reconfigure(case.others, 2)
            assert one_sum(case.groups[rank]) == len(case.others) * (len(case.others) + 1) / 2
            return error
        raise AssertionError("nobody was missed")

    def dies_soon() -> None:
        time.sleep(case.moment)
        case.groups[case.victim]._porter.close()
        dies(case.groups[case.victim])

    found = all_of([*(lambda rank=rank: meets(rank) for rank in case.others), dies_soon])[:-1]
    for error in found:
        assert type(error) is errors.PeerDied, error
        assert error.ranks == (case.victim,)
    all_of([group.shutdown for group in case.groups])


@pytest.mark.parametrize("seed", range(CASES))
def test_abort(seed: int) -> None:
    case = Case(100_000 + seed)
    for error in case.strike(Group.abort):
        assert type(error) is errors.Aborted
        assert f"rank {case.victim} aborted the group" in str(error)
    case.goes_on(list(range(len(case.groups))))


@pytest.mark.parametrize("seed", range(CASES))
def test_leaving_in_the_middle(seed: int) -> None:
    """Those who stay miss the leaver in collectives, all of them, and can still send messages."""
    case = Case(200_000 + seed)
    found = case.strike(Group.shutdown)
    for rank in case.others:
        assert type(found[rank]) is errors.PeerLeft, found[rank]
        assert found[rank].ranks == (case.victim,)
    talking = [(case.groups[r], [o for o in case.others if o != r]) for r in case.others]
    all_of([lambda group=group, to=to: still_talk(group, to) for group, to in talking])
    case.goes_on(case.others)


@pytest.mark.parametrize("root", [0, 1, 2])
def test_who_waits_for_one_that_stays_learns_that_another_has_left(root: int) -> None:
    """Whoever gave up over a message to the leaver starts no collective any more: one that waits
    only for it must not wait till its time is over."""
    groups = connect(3, Options(address="127.0.0.1"), dist.HashStore())
    leaver, waits = (root + 1) % 3, (root + 2) % 3
    opts = dist.BroadcastOptions()
    opts.rootRank = root
    work = groups[waits].broadcast([torch.zeros(1)], opts)
    groups[leaver].shutdown()
    with pytest.raises(errors.PeerLeft) as late:
        work.wait()
    assert late.value.ranks == (leaver,)
    with pytest.raises(errors.PeerLeft):
        groups[root].broadcast([torch.zeros(1)], opts).wait()
    for rank in (root, waits):
        groups[rank].shutdown()


@pytest.mark.parametrize("seed", range(CASES))
def test_leaving_when_all_is_done_disturbs_nobody(seed: int) -> None:
    case = Case(300_000 + seed)
    rounds = case.chance.randrange(1, 4)

    def to_the_end(group: Group) -> None:
        work(group, seed, rounds)
        group.shutdown()

    all_of([lambda group=group: to_the_end(group) for group in case.groups])


@pytest.mark.parametrize("seed", range(CASES))
def test_going_on_to_a_new_epoch_disturbs_nobody(seed: int) -> None:
    """Who is first there does not end what the others still do in the old one."""
    case = Case(400_000 + seed)
    members = list(range(len(case.groups)))

    def on(group: Group) -> None:
        for epoch in range(1, 4):
            work(group, seed, 1)
            group.reconfigure(members, epoch)

    all_of([lambda group=group: on(group) for group in case.groups])
    all_of([group.shutdown for group in case.groups])


@pytest.mark.parametrize("seed", range(CASES))
def test_a_broken_connection(seed: int) -> None:
    """One connection of many ends, as by a broken cable: both its ends may be blamed."""
    case = Case(500_000 + seed)
    peer = case.chance.choice(case.others)
    kind = case.chance.choice(["data", "messages", "control"])

    def cut(group: Group) -> None:
        mesh = group._engine._mesh
        path = {
            "data": lambda: mesh.data[peer][0],
            "messages": lambda: mesh.messages[peer],
            "control": lambda: mesh.control[peer],
        }[kind]()
        path._socket.shutdown(2)

    for error in case.strike(cut):
        assert type(error) is errors.PeerDied, error
        assert set(error.ranks) <= {case.victim, peer}
    case.goes_on(list(range(len(case.groups))))


class BadWire:
    """A socket that turns over a bit of some sends."""

    def __init__(self, connection: Any, seed: int) -> None:
        self._connection, self._chance = connection, random.Random(seed)

    def sendmsg(self, parts: list[memoryview]) -> int:
        data = bytearray(b"".join(parts))
        if self._chance.random() < 0.02:
            data[self._chance.randrange(len(data))] ^= 1 << self._chance.randrange(8)
        return self._connection.send(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@pytest.mark.parametrize("seed", range(CASES))
def test_changed_bits(seed: int) -> None:
    """On connections of all kinds; nobody notices but the paths."""
    case = Case(800_000 + seed, shared_memory=False)
    for group in case.groups:

        def spoil(group: Group = group) -> None:
            for path in group._engine._mesh.paths():
                path._socket = BadWire(path._socket, case.chance.randrange(1000))

        in_engine(group, spoil)
    all_of([lambda group=group: work(group, seed, 10) for group in case.groups])
    case.goes_on(list(range(len(case.groups))))


@pytest.mark.parametrize("seed", range(max(1, CASES // 10)))
def test_standing_still(seed: int) -> None:
    case = Case(600_000 + seed, stall_seconds=2.0)
    woken = threading.Event()

    def stop(group: Group) -> None:
        group._engine.call(lambda: woken.wait(LIMIT))

    def waits_for(rank: int) -> CollectiveError:
        error = ends(case.groups[rank], case.seed)
        with lock:
            ended.append(rank)
            if len(ended) == len(case.others):
                woken.set()
        return error

    lock, ended = threading.Lock(), list[int]()
    found = all_of(
        [
            *(lambda rank=rank: waits_for(rank) for rank in case.others),
            lambda: ends(case.groups[case.victim], case.seed),
            lambda: stop(case.groups[case.victim]),
        ]
    )[:-2]
    for error in found:
        assert type(error) is errors.PeerStalled
        assert error.ranks == (case.victim,)
    case.goes_on(list(range(len(case.groups))))


@pytest.mark.parametrize("seed", range(CASES))
def test_another_collective(seed: int) -> None:
    """One rank calls something else than the others: all are told."""
    case = Case(700_000 + seed)

    def wrong(rank: int) -> CollectiveError:
        try:
            work(case.groups[rank], seed, 1)
            x = torch.ones(999 if rank == case.victim else 1000)
            case.groups[rank].allreduce([x]).wait()
            work(case.groups[rank], seed)
        except CollectiveError as error:
            return error
        raise AssertionError("nobody noticed")

    ranks = range(len(case.groups))
    for error in all_of([lambda rank=rank: wrong(rank) for rank in ranks]):
        assert type(error) is errors.Mismatch
    case.goes_on(list(ranks))
