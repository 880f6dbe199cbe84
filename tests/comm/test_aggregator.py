"""The aggregator with four processes, lost datagrams, and a rank that starts again."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pluribus.comm.aggregator import Aggregator
from pluribus.comm.aggregator_client import AggregatorClient, GroupMovedError
from pluribus.core.errors import ConfigError
from tests.comm.aggregator_rank import values

ROOT = Path(__file__).resolve().parents[2]
SIZE = 700_001  # more chunks than slots, and an odd end


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[str, int]]]:
    stop, threads = threading.Event(), []

    def begin(num_ranks: int, token: str = "") -> tuple[str, int]:
        aggregator = Aggregator(num_ranks, token=token)
        address = aggregator.address
        threads.append(threading.Thread(target=aggregator.serve, args=(stop,)))
        threads[-1].start()
        return address

    yield begin
    stop.set()
    for thread in threads:
        thread.join()


def together(deeds: list[Callable[[], object]]) -> list[object]:
    with ThreadPoolExecutor(len(deeds)) as pool:
        return [future.result(timeout=60) for future in [pool.submit(deed) for deed in deeds]]


@pytest.mark.parametrize("loss", [0.0, 0.02])
def test_four_processes_get_the_sum_in_rank_order(start, loss: float) -> None:
    _, port = start(4)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.comm.aggregator_rank", *map(str, row)],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )
        for row in [(rank, port, loss, 2, SIZE) for rank in range(4)]
    ]  # fmt: skip
    printed = [rank.communicate(timeout=90)[0].split() for rank in ranks]
    digest = hashlib.sha256()
    for operation in range(2):
        total = values(0, operation, SIZE)
        for rank in range(1, 4):
            total += values(rank, operation, SIZE)
        digest.update(total.tobytes())
    assert [words[0] for words in printed] == [digest.hexdigest()] * 4
    if loss:
        assert all(int(words[1]) > 0 for words in printed)


def test_integers_of_any_shape(start) -> None:
    address = start(2)
    clients = [AggregatorClient(address, rank, timeout=20) for rank in range(2)]
    together([client.join for client in clients])
    data = [np.arange(12, dtype=np.int32).reshape(3, 4) * (rank + 1) for rank in range(2)]
    together([lambda c=c, d=d: c.all_reduce(d) for c, d in zip(clients, data, strict=True)])
    for one, client in zip(data, clients, strict=True):
        assert np.array_equal(one, 3 * np.arange(12).reshape(3, 4))
        client.close()


def test_a_rank_that_starts_again_moves_the_group_and_all_go_on(start) -> None:
    address = start(2)
    old = [AggregatorClient(address, rank, timeout=20) for rank in range(2)]
    together([client.join for client in old])
    old[1].close()  # dies between operations
    new = AggregatorClient(address, 1, timeout=20)

    def survivor() -> np.ndarray:
        data = np.ones(20_000, np.float32)
        with pytest.raises(GroupMovedError):
            old[0].all_reduce(data.copy())
        old[0].join()
        old[0].all_reduce(data)
        return data

    def newcomer() -> np.ndarray:
        new.join()
        data = np.full(20_000, 2.0, np.float32)
        new.all_reduce(data)
        return data

    for data in together([survivor, newcomer]):
        assert np.array_equal(data, np.full(20_000, 3.0, np.float32))
    old[0].close()
    new.close()


def test_a_wrong_token_is_not_heard(start) -> None:
    address = start(1, token="right")
    stranger = AggregatorClient(address, 0, token="wrong", timeout=0.3)
    with pytest.raises(TimeoutError):
        stranger.join()
    stranger.close()
    friend = AggregatorClient(address, 0, token="right", timeout=20)
    friend.join()
    friend.close()


def test_beyond_loopback_it_wants_a_token() -> None:
    with pytest.raises(ConfigError, match="Give a token"):
        Aggregator(2, host="0.0.0.0")
