"""A rank that sums through an aggregator over a link that loses datagrams both ways."""

from __future__ import annotations

import hashlib
import random
import sys

import numpy as np

from pluribus.comm.aggregator_client import AggregatorClient


class LossyClient(AggregatorClient):
    """Loses a share of all datagrams, damages as many."""

    def __init__(self, *arguments, loss: float, seed: int, **options) -> None:
        super().__init__(*arguments, **options)
        self._loss, self._chance = loss, random.Random(seed)

    def _transmit(self, data: bytes) -> None:
        if self._chance.random() >= self._loss:
            super()._transmit(self._spoil(data))

    def _receive(self) -> bytes:
        data = super()._receive()
        while self._chance.random() < self._loss:
            data = super()._receive()
        return self._spoil(data)

    def _spoil(self, data: bytes) -> bytes:
        if self._chance.random() >= self._loss:
            return data
        spoilt = bytearray(data)
        spoilt[self._chance.randrange(len(data))] ^= 0x10
        return bytes(spoilt)


def values(rank: int, operation: int, size: int) -> np.ndarray:
    return np.random.default_rng([rank, operation]).standard_normal(size).astype(np.float32)


def main() -> None:
    rank, port, loss, operations, size = sys.argv[1:]
    client = LossyClient(
        ("127.0.0.1", int(port)), int(rank), loss=float(loss), seed=int(rank), timeout=20.0
    )
    client.join()
    digest = hashlib.sha256()
    for operation in range(int(operations)):
        data = values(int(rank), operation, int(size))
        client.all_reduce(data)
        digest.update(data.tobytes())
    print(digest.hexdigest(), client.resent)


if __name__ == "__main__":
    main()
