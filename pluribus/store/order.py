"""Which sequences a step trains on: a function of the step, with nothing to store or restore.

Every rank computes the order itself and takes its slice of the step, so unequal slices, a changed
number of ranks and a resumed run all walk the same order.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

_ROUNDS = 8


def sample_indices(step: int, global_batch: int, num_sequences: int, seed: int) -> np.ndarray:
    """The sequence numbers of one optimiser step.

    Each epoch is a pseudo-random permutation of the sequences; a step may end one epoch and begin
    the next. A rank's samples are a slice of the result.

    Args:
        step: optimiser step, from 0.
        global_batch: sequences per step.
        num_sequences: sequences in the data.
        seed: of the whole order.

    Returns:
        int64 of shape [global_batch], each in [0, num_sequences).
    """
    positions = np.arange(step * global_batch, (step + 1) * global_batch, dtype=np.int64)
    epochs, offsets = np.divmod(positions, num_sequences)
    result = np.empty(global_batch, dtype=np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        result[chosen] = _permute(offsets[chosen], num_sequences, _keys(seed, int(epoch)))
    return result


def _permute(index: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """A keyed permutation of [0, size), evaluated at `index` alone.

    The generalised Feistel network of Black & Rogaway 2002, "Ciphers with Arbitrary Finite
    Domains": with ``side² >= size``, write x as (left, right) in base `side`; a round maps it to
    (right, left + F(right) mod side), which can be undone whatever F is. Results outside the
    domain are mapped again until they fall inside (their "cycle walking"), which keeps it a
    permutation. side² exceeds size by less than 2·√size + 1, so few walk.
    """
    side = np.uint64(math.isqrt(size - 1) + 1)
    result = _feistel(index.astype(np.uint64), side, keys)
    while (outside := result >= size).any():
        result[outside] = _feistel(result[outside], side, keys)
    return result.astype(np.int64)


def _feistel(x: np.ndarray, side: np.uint64, keys: np.ndarray) -> np.ndarray:
    left, right = np.divmod(x, side)
    for key in keys:
        left, right = right, (left + _mix(right ^ key) % side) % side
    return left * side + right


def _mix(x: np.ndarray) -> np.ndarray:
    """The 64-bit finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _keys(seed: int, epoch: int) -> np.ndarray:
    key = hashlib.sha512(f"{seed}:{epoch}".encode()).digest()
    return np.frombuffer(key, dtype="<u8", count=_ROUNDS)
