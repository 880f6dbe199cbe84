"""The job's data as token shards on this machine, tokenised on first use."""

from __future__ import annotations

import glob
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pluribus.core.errors import DataError
from pluribus.core.io import read_json, write_json
from pluribus.spec.job import Job
from pluribus.store.tokenizer import encode_files, load_tokenizer, save_tokenizer, train_bpe
from pluribus.store.tokens import TokenDataset

# Enough text to learn a small vocabulary's merges from; more changes them little.
_TOKENIZER_BYTES = 4_000_000


@dataclass(frozen=True)
class PreparedData:
    """Where the tokens are.

    Attributes:
        shards: a glob pattern of token shards.
        tokenizer: the tokenizer.json they were made with, if known.
    """

    shards: str
    tokenizer: Path | None

    def open(self) -> TokenDataset:
        return TokenDataset(self.shards)


def prepare_data(
    job: Job, vocab_size: int, folder: Path, progress: Callable[[str], None]
) -> PreparedData:
    """Finds or makes the job's token shards.

    Args:
        vocab_size: of the model; a tokenizer trained here gets this size.
        folder: of the run; tokenised text is kept in its ``data`` folder and reused.

    Raises:
        DataError: no data, damaged shards, or token ids beyond the model's vocabulary.
    """
    if job.data.tokens is not None:
        tokenizer = job.resolve(job.data.tokenizer) if job.data.tokenizer else None
        if tokenizer is not None:
            load_tokenizer(tokenizer)
        prepared = PreparedData(str(job.resolve(job.data.tokens)), tokenizer)
    else:
        prepared = _tokenise(job, vocab_size, folder / "data", progress)
    dataset = prepared.open()
    if dataset.vocab_size > vocab_size:
        raise DataError(
            f"its tokens come from a vocabulary of {dataset.vocab_size}, the model has "
            f"{vocab_size}",
            where=prepared.shards,
            do="Tokenise with the model's own tokenizer, or choose the model's vocab_size.",
        )
    length = job.train.sequence_length
    if dataset.num_sequences(length) < job.train.global_batch:
        raise DataError(
            f"holds {dataset.num_sequences(length)} sequences of {length} tokens, less than one "
            f"global batch of {job.train.global_batch}",
            where=prepared.shards,
            do="Give more data or ask for a smaller global_batch_tokens.",
        )
    return prepared


def _tokenise(
    job: Job, vocab_size: int, folder: Path, progress: Callable[[str], None]
) -> PreparedData:
    assert job.data.text is not None
    pattern = str(job.resolve(job.data.text))
    files = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    files = [file for file in files if file.is_file()]
    if not files:
        raise DataError("matches no file", where=pattern, do="Check [data] text in the job file.")
    given = job.resolve(job.data.tokenizer) if job.data.tokenizer else None
    shard, tokenizer_file = folder / "tokens.bin", folder / "tokenizer.json"
    source_file, source = folder / "source.json", _source(files, given, vocab_size)
    prepared = PreparedData(str(shard), tokenizer_file)
    if source_file.exists() and read_json(source_file) == source and shard.exists():
        progress("the text is tokenised already")
        return prepared
    folder.mkdir(parents=True, exist_ok=True)
    source_file.unlink(missing_ok=True)
    if given is not None:
        tokenizer = load_tokenizer(given)
    else:
        progress(f"training a byte-level BPE of {vocab_size} tokens")
        tokenizer = train_bpe(files, vocab_size, max_bytes=_TOKENIZER_BYTES)
    progress(f"tokenising {len(files)} files")
    save_tokenizer(tokenizer, tokenizer_file)
    encode_files(tokenizer, files, shard)
    write_json(source_file, source)
    return prepared


def _source(files: list[Path], tokenizer: Path | None, vocab_size: int) -> dict[str, Any]:
    """What the tokens are made of; when it changes they are made anew."""
    stats = [(file, file.stat()) for file in [*files, *([tokenizer] if tokenizer else [])]]
    return {
        "vocab_size": vocab_size,
        "files": [[str(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats],
    }
