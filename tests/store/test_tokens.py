"""Token shards: round trips, and every way a file can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pluribus.core.errors import DataError, MissingFileError
from pluribus.store.tokens import HEADER_BYTES, ShardWriter, TokenDataset, TokenShard, write_shard


@pytest.mark.parametrize(("vocab_size", "item"), [(2**16, 2), (2**16 + 1, 4)])
def test_round_trip_in_the_narrowest_width(tmp_path: Path, vocab_size: int, item: int) -> None:
    tokens = np.array([0, 7, vocab_size - 1])
    shard = write_shard(tmp_path / "a.bin", tokens, vocab_size)
    assert shard.tokens.tolist() == tokens.tolist()
    assert shard.vocab_size == vocab_size
    assert (tmp_path / "a.bin").stat().st_size == HEADER_BYTES + 3 * item


def test_a_cut_shard_says_how_much_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_shard(path, np.arange(100), 300)
    path.write_bytes(path.read_bytes()[:-51])
    with pytest.raises(DataError) as error:
        TokenShard.open(path)
    assert "holds 74 tokens, header says 100 (file cut by 51 bytes)" in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: b"PK\3\4" + raw[4:], "is not a token shard"),
        (lambda raw: raw[:20], "is not a token shard"),
        (lambda raw: raw[:16] + b"\xff" + raw[17:], "damaged header"),
        (lambda raw: raw + b"xx", "too long by 2"),
    ],
)
def test_a_damaged_shard_is_refused(tmp_path: Path, change, said: str) -> None:
    path = tmp_path / "a.bin"
    write_shard(path, np.arange(100), 300)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=said):
        TokenShard.open(path)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_shard(path, np.arange(10), 300)
    with pytest.raises(DataError, match="token id 300 is not in a vocabulary of 300"):
        write_shard(path, np.array([5, 300]), 300)
    with pytest.raises(DataError, match="would hold no tokens"):
        write_shard(path, np.array([], dtype=np.int64), 300)

    def write_in_two_pieces() -> None:
        with ShardWriter(path, 300) as writer:
            writer.append(np.arange(3))
            writer.append(np.array([-1]))

    with pytest.raises(DataError, match="token id -1"):
        write_in_two_pieces()
    assert len(TokenShard.open(path).tokens) == 10
    assert list(tmp_path.iterdir()) == [path]


def test_sequences_run_over_the_shards_in_path_order(tmp_path: Path) -> None:
    tokens = np.arange(50)
    write_shard(tmp_path / "b.bin", tokens[20:23], 300)
    write_shard(tmp_path / "a.bin", tokens[:20], 300)
    write_shard(tmp_path / "sub" / "c.bin", tokens[23:], 300)
    data = TokenDataset(str(tmp_path / "**" / "*.bin"))
    assert (data.num_tokens, data.vocab_size) == (50, 300)
    # 7 sequences of 7 inputs need 50 tokens: 49 inputs and the last target.
    assert data.num_sequences(7) == 7
    for index in range(7):
        assert data.sequence(index, 7).tolist() == list(range(7 * index, 7 * index + 8))
    assert data.sequence(0, 49).tolist() == tokens.tolist()
    assert data.sequence(0, 49).dtype == np.int64


def test_too_few_tokens_and_unlike_vocabularies(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", np.arange(8), 300)
    with pytest.raises(DataError, match="8 tokens are too few for one sequence of 8"):
        TokenDataset([tmp_path / "a.bin"]).num_sequences(8)
    write_shard(tmp_path / "b.bin", np.arange(8), 400)
    with pytest.raises(DataError, match="vocabulary of 400"):
        TokenDataset(str(tmp_path / "*.bin"))
    with pytest.raises(MissingFileError, match="no token shard"):
        TokenDataset(str(tmp_path / "*.tok"))
    with pytest.raises(MissingFileError, match="no such token shard"):
        TokenDataset([tmp_path / "c.bin"])


def test_a_damaged_id_is_found_before_it_reaches_the_model(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_shard(path, np.arange(20), 300)
    raw = bytearray(path.read_bytes())
    raw[HEADER_BYTES + 2 * 5 + 1] = 0xFF
    path.write_bytes(raw)
    data = TokenDataset([path])
    with pytest.raises(DataError, match="sequence 1 has token id 65285"):
        data.sequence(1, 4)
    assert data.sequence(0, 4).tolist() == [0, 1, 2, 3, 4]
