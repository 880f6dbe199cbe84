"""The job's data as token shards on this machine, tokenised on first use."""

from __future__ import annotations

import glob
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pluribus.core.errors import DataError
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
    shard, tokenizer_file = folder / "tokens.bin", folder / "tokenizer.json"
    prepared = PreparedData(str(shard), tokenizer_file)
    if shard.exists() and tokenizer_file.exists():
        progress("tokens are there already")
        return prepared
    assert job.data.text is not None
    pattern = str(job.resolve(job.data.text))
    files = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    files = [file for file in files if file.is_file()]
    if not files:
        raise DataError("matches no file", where=pattern, do="Check [data] text in the job file.")
    folder.mkdir(parents=True, exist_ok=True)
    if job.data.tokenizer is not None:
        tokenizer = load_tokenizer(job.resolve(job.data.tokenizer))
    else:
        progress(f"training a byte-level BPE of {vocab_size} tokens")
        tokenizer = train_bpe(files, vocab_size, max_bytes=_TOKENIZER_BYTES)
    progress(f"tokenising {len(files)} files")
    save_tokenizer(tokenizer, tokenizer_file)
    encode_files(tokenizer, files, shard)
    return prepared
