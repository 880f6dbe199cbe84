"""Token shards: files of token ids, read through memory maps.

A shard is a header of 64 bytes, little-endian, then the ids:

    bytes 0–7    magic ``PLRBTOK1``
    bytes 8–11   bytes per id: 2 or 4 (unsigned)
    bytes 12–15  vocabulary size
    bytes 16–23  number of ids
    bytes 24–59  zero
    bytes 60–63  CRC-32 of the 60 bytes before
"""

from __future__ import annotations

import glob
import os
import struct
import tempfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from pluribus.core.errors import DataError, MissingFileError

MAGIC = b"PLRBTOK1"
HEADER_BYTES = 64
_HEADER = struct.Struct("<8sIIQ36x")
_CRC = struct.Struct("<I")
_DTYPES = {2: np.dtype("<u2"), 4: np.dtype("<u4")}


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenShard:
    """One file of token ids.

    Attributes:
        tokens: read-only memory map of unsigned 16- or 32-bit ids, shape [num_tokens].
    """

    path: Path
    vocab_size: int
    tokens: np.ndarray

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> TokenShard:
        """Maps a shard without reading its tokens.

        Raises:
            MissingFileError: no such file.
            DataError: not a shard, or its header is damaged, or it is longer or shorter than its
                header says.
        """
        path = Path(path)
        again = "Write it again."
        try:
            with path.open("rb") as file:
                header = file.read(HEADER_BYTES)
                size = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            raise MissingFileError(
                "no such token shard", where=str(path), do="Check the path."
            ) from None
        if len(header) < HEADER_BYTES or header[: len(MAGIC)] != MAGIC:
            raise DataError(
                f"is not a token shard (it begins with {header[: len(MAGIC)]!r})",
                where=str(path),
                do='Name files that Pluribus wrote as tokens, or text files as text = "…".',
            )
        if _CRC.unpack(header[-4:])[0] != zlib.crc32(header[:-4]):
            raise DataError("has a damaged header (checksum differs)", where=str(path), do=again)
        _, item, vocab_size, count = _HEADER.unpack(header[:-4])
        surplus = size - HEADER_BYTES - count * item
        if surplus:
            held = (size - HEADER_BYTES) // item
            change = f"cut by {-surplus}" if surplus < 0 else f"too long by {surplus}"
            raise DataError(
                f"holds {held} tokens, header says {count} (file {change} bytes)",
                where=str(path),
                do=again,
            )
        tokens = np.memmap(path, _DTYPES[item], "r", offset=HEADER_BYTES, shape=(count,))
        return cls(path=path, vocab_size=vocab_size, tokens=tokens)


class ShardWriter:
    """Writes a shard piece by piece; the file appears under its name when the block ends well.

    Ids are 16 bits wide where the vocabulary allows it.
    """

    def __init__(self, path: str | os.PathLike[str], vocab_size: int) -> None:
        self.path = Path(path)
        self.vocab_size = vocab_size
        self._item = 2 if vocab_size <= 2**16 else 4
        self._count = 0

    def __enter__(self) -> ShardWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, self._temporary = tempfile.mkstemp(
            dir=self.path.parent, prefix=f".{self.path.name}."
        )
        self._file = os.fdopen(handle, "wb")
        self._file.write(bytes(HEADER_BYTES))
        return self

    def append(self, tokens: np.ndarray) -> None:
        """Adds ids.

        Raises:
            DataError: an id is not in the vocabulary.
        """
        if tokens.size == 0:
            return
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.vocab_size:
            raise DataError(
                f"token id {low if low < 0 else high} is not in a vocabulary of {self.vocab_size}",
                where=str(self.path),
                do="Write the vocabulary size of the tokenizer that made the ids.",
            )
        self._file.write(np.ascontiguousarray(tokens, dtype=_DTYPES[self._item]).data)
        self._count += tokens.size

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        try:
            with self._file as file:
                if kind is None:
                    self._finish(file)
        except BaseException:
            os.unlink(self._temporary)
            raise
        if kind is not None:
            os.unlink(self._temporary)
        else:
            os.chmod(self._temporary, 0o644)
            os.replace(self._temporary, self.path)

    def _finish(self, file: IO[bytes]) -> None:
        if self._count == 0:
            raise DataError(
                "would hold no tokens", where=str(self.path), do="Name data that is not empty."
            )
        header = _HEADER.pack(MAGIC, self._item, self.vocab_size, self._count)
        file.seek(0)
        file.write(header + _CRC.pack(zlib.crc32(header)))
        file.flush()
        os.fsync(file.fileno())


def write_shard(path: str | os.PathLike[str], tokens: np.ndarray, vocab_size: int) -> TokenShard:
    """Writes ids (any integer dtype, one dimension) as one shard, atomically.

    Raises:
        DataError: no ids, or an id outside the vocabulary.
    """
    with ShardWriter(path, vocab_size) as writer:
        writer.append(tokens)
    return TokenShard.open(path)


class TokenDataset:
    """Several shards as one long run of tokens, in the order of their sorted paths.

    Args:
        paths: the shards, or one glob pattern (``**`` spans folders).

    Raises:
        MissingFileError: nothing matches.
        DataError: a shard is damaged, or their vocabularies differ.
    """

    def __init__(self, paths: str | Iterable[str | os.PathLike[str]]) -> None:
        found = glob.glob(paths, recursive=True) if isinstance(paths, str) else paths
        self.shards = tuple(TokenShard.open(path) for path in sorted(Path(p) for p in found))
        if not self.shards:
            raise MissingFileError(
                "no token shard is there", where=str(paths), do="Check the path or pattern."
            )
        first = self.shards[0]
        for shard in self.shards:
            if shard.vocab_size != first.vocab_size:
                raise DataError(
                    f"has a vocabulary of {shard.vocab_size}, but {first.path} one of "
                    f"{first.vocab_size}",
                    where=str(shard.path),
                    do="Train on shards of one tokenizer.",
                )
        self._ends = np.cumsum([len(shard.tokens) for shard in self.shards])

    @property
    def vocab_size(self) -> int:
        return self.shards[0].vocab_size

    @property
    def num_tokens(self) -> int:
        return int(self._ends[-1])

    def num_sequences(self, sequence_length: int) -> int:
        """How many sequences there are.

        A sequence is `sequence_length` inputs and as many targets, which are the inputs moved by
        one; neighbours share one token.

        Raises:
            DataError: not even one.
        """
        count = (self.num_tokens - 1) // sequence_length
        if count < 1:
            raise DataError(
                f"{self.num_tokens} tokens are too few for one sequence of {sequence_length} "
                "and its targets",
                where=str(self.shards[0].path),
                do=f"Give at least {sequence_length + 1} tokens, or a shorter sequence_length.",
            )
        return count

    def sequence(self, index: int, sequence_length: int) -> np.ndarray:
        """Inputs and targets of one sequence: int64 of shape [sequence_length + 1].

        Raises:
            DataError: an id in it is not in the vocabulary.
        """
        assert 0 <= index < self.num_sequences(sequence_length), f"no sequence {index}"
        start = index * sequence_length
        stop = start + sequence_length + 1
        parts = []
        shard = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            begin = self._ends[shard] - len(self.shards[shard].tokens)
            end = min(stop, self._ends[shard])
            parts.append(self.shards[shard].tokens[start - begin : end - begin])
            start, shard = end, shard + 1
        tokens = np.concatenate(parts).astype(np.int64)
        # On a GPU an id too large stops the process with a message that names no cause.
        if tokens.max() >= self.vocab_size:
            raise DataError(
                f"sequence {index} has token id {tokens.max()}, but the vocabulary is "
                f"{self.vocab_size}",
                where=str(self.shards[shard - 1].path),
                do="The shard is damaged: write it again.",
            )
        return tokens
