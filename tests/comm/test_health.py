"""Silence is told from a standstill of this process, a loss from a leaving, a late word counts."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from pluribus.comm import errors, health
from pluribus.comm.costs import LinkCost, Links
from pluribus.comm.health import Health, stall_deadline
from pluribus.comm.mesh import Mesh
from pluribus.comm.transports.base import ABORT, GOODBYE, PeerGone
from pluribus.comm.transports.stream import TcpPath


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(health, "time", clock)
    return clock


@pytest.fixture
def two(clock: Clock) -> Iterator[tuple[Health, Health]]:
    """Rank 0's view of rank 1, and rank 1's of rank 0."""
    ends = socket.socketpair()
    paths = [TcpPath(1 - rank, end) for rank, end in enumerate(ends)]
    meshes = [Mesh(0, {}, {}, {1 - rank: path}) for rank, path in enumerate(paths)]
    yield tuple(Health(mesh, 2.0, "rank {}".format) for mesh in meshes)
    for path in paths:
        path.close()


def read(one: Health, peer: int) -> None:
    one.read(one._mesh.control[peer])


def test_what_this_process_slept_through_is_no_silence(
    two: tuple[Health, Health], clock: Clock
) -> None:
    one, _ = two
    one.starts_waiting()
    clock.now += 100.0
    one.check(pending=True)
    for _ in range(3):
        clock.now += 0.4
        one.check(pending=True)
    one.hears(1)
    for _ in range(8):
        clock.now += 0.25
        one.check(pending=True)
    clock.now += 0.25
    with pytest.raises(errors.PeerStalled, match="rank 1 has not answered") as caught:
        one.check(pending=True)
    assert caught.value.ranks == (1,)


def test_an_answer_is_a_sign_of_life(two: tuple[Health, Health], clock: Clock) -> None:
    one, other = two
    for _ in range(40):
        clock.now += 0.25
        one.check(pending=True)
        read(other, 0)
        path = one._mesh.control[1]
        if path.peek() is not None:
            one.hears(1)
        read(one, 1)


def test_a_goodbye_that_is_read_after_the_ends_of_paths_is_no_death(
    two: tuple[Health, Health], clock: Clock
) -> None:
    one, other = two
    other.tell_all(GOODBYE)
    one.lose(1, PeerGone(1, "closed"))
    assert one.until is not None
    read(one, 1)
    assert one.verdict() is None
    assert isinstance(one.left[1], errors.PeerLeft)


def test_the_word_of_who_closes_counts_and_a_death_without_one_is_a_death(
    two: tuple[Health, Health], clock: Clock
) -> None:
    one, other = two
    other.tell_all(ABORT, health.reason(errors.Mismatch("all_reduce, broadcast", [1])))
    one.lose(1, PeerGone(1, "closed"))
    read(one, 1)
    assert isinstance(one.verdict(), errors.Mismatch)
    other.lose(0, PeerGone(0, "closed"))
    verdict = other.verdict()
    assert isinstance(verdict, errors.PeerDied)
    assert verdict.ranks == (0,)


def test_the_deadline_is_the_slowest_links() -> None:
    quick, slow = LinkCost(1e-4, 1.25e8), LinkCost(0.1, 1.25e6)
    assert stall_deadline(Links(quick, quick)) == pytest.approx(10.67, abs=0.01)
    assert stall_deadline(Links(quick, slow)) == pytest.approx(78.1, abs=0.1)
    assert stall_deadline(None) == 20.0
