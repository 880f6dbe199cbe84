"""Text to tokens: byte-level BPE, trained here or brought along as a tokenizer.json."""

from __future__ import annotations

import os
import random
import shutil
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pluribus.core.errors import ConfigError, DataError, MissingFileError
from pluribus.core.io import read_text, write_json, write_text
from pluribus.core.units import MIB, format_bytes
from pluribus.store.tokens import ShardWriter, TokenShard

END_OF_TEXT = "<|endoftext|>"

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

# Ends of text of the families in use; a tokenizer may have several, and the first is meant.
_ENDS_OF_TEXT = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<|im_end|>", "<eos>")

_PIECE_CHARACTERS = 2**16
_BATCH_PIECES = 32


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Reads a tokenizer.json.

    Raises:
        MissingFileError, ConfigError: no such file, or not a tokenizer.
    """
    text = read_text(path)
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise ConfigError(
            f"is not a tokenizer: {error}",
            where=str(path),
            do="Name a tokenizer.json of Hugging Face tokenizers, or leave the key out to train "
            "one.",
        ) from None


def save_tokenizer(tokenizer: Tokenizer, path: str | os.PathLike[str]) -> Path:
    """Writes a tokenizer.json, atomically."""
    return write_text(path, tokenizer.to_str(pretty=True))


def end_of_text(tokenizer: Tokenizer) -> str:
    """The token that separates documents.

    Raises:
        DataError: the tokenizer has none that we know.
    """
    for token in _ENDS_OF_TEXT:
        if tokenizer.token_to_id(token) is not None:
            return token
    raise DataError(
        "the tokenizer has no end-of-text token",
        do=f"Add one of these to its tokenizer.json: {', '.join(_ENDS_OF_TEXT)}.",
    )


def export_tokenizer(source: Path, directory: Path) -> list[Path]:
    """Puts a tokenizer into a Hugging Face directory, so that AutoTokenizer loads it.

    Args:
        source: a tokenizer.json. A tokenizer_config.json beside it goes along, otherwise a small
            one is written.

    Returns:
        The files written.

    Raises:
        MissingFileError, ConfigError, DataError: not a tokenizer, or without an end of text.
    """
    token = end_of_text(load_tokenizer(source))
    copy = Path(shutil.copyfile(source, directory / "tokenizer.json"))
    settings = directory / "tokenizer_config.json"
    if (source.parent / settings.name).is_file():
        shutil.copyfile(source.parent / settings.name, settings)
    else:
        write_json(settings, {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": token})
    return [copy, settings]


def train_bpe(
    files: Sequence[Path], vocab_size: int, *, max_bytes: int, progress: Progress | None = None
) -> Tokenizer:
    """Byte-level BPE (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

    Args:
        files: UTF-8 text, read in the given order.
        vocab_size: ids wanted: 256 bytes, `END_OF_TEXT` and merges. A small text gives fewer.
        max_bytes: text beyond this is not read; a few MiB make a good small vocabulary.

    Raises:
        ConfigError: vocab_size has no room for the bytes.
        MissingFileError, DataError: a file is not there or not UTF-8.
    """
    if vocab_size < 257:
        raise ConfigError(
            f"vocab_size is {vocab_size}",
            do="Write at least 257: one id per byte and one for the end of a text.",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    total = min(max_bytes, _total_bytes(files))

    def text() -> Iterator[str]:
        done = 0
        for path in files:
            for piece in _pieces(path):
                yield piece
                done += len(piece.encode())
                if progress is not None:
                    progress(min(done, total), total)
                if done >= max_bytes:
                    return

    tokenizer.train_from_iterator(text(), trainer)
    return tokenizer


def encode_files(
    tokenizer: Tokenizer,
    files: Sequence[Path],
    out_path: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
) -> TokenShard:
    """Encodes text files into one shard, each file followed by the end-of-text token.

    A file is encoded in pieces of 64 Ki characters that end at a line's end, so memory stays
    small whatever its size; at the seams, blank lines may be tokenised otherwise than in one go.

    Raises:
        MissingFileError, DataError: a file is not there or not UTF-8; no text at all; or the
            tokenizer has no end-of-text token.
    """
    separator = np.array([tokenizer.token_to_id(end_of_text(tokenizer))])
    total, done = _total_bytes(files), 0
    with ShardWriter(out_path, tokenizer.get_vocab_size()) as writer:
        for path in files:
            for batch in _batches(path):
                for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                    writer.append(np.array(encoding.ids, dtype=np.int64))
                done += sum(len(piece.encode()) for piece in batch)
                if progress is not None:
                    progress(done, total)
            writer.append(separator)
    return TokenShard.open(out_path)


def standard_library_text(max_bytes: int, seed: int) -> list[Path]:
    """Text that every machine with Python has: the sources and documents of its library.

    Files of its test suite are used only when the rest is less than `max_bytes`.

    Args:
        max_bytes: of all chosen files together.
        seed: of which files are chosen.

    Returns:
        UTF-8 files, sorted.

    Raises:
        DataError: this Python carries less than 1 MB of it.
    """
    root = Path(sysconfig.get_path("stdlib"))
    sources: list[Path] = []
    tests: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - {"site-packages", "dist-packages", "__pycache__"})
        in_tests = {"test", "tests", "idle_test"} & set(Path(folder).relative_to(root).parts)
        paths = (Path(folder, name) for name in sorted(names))
        kept = [path for path in paths if path.suffix in (".py", ".rst", ".txt")]
        (tests if in_tests else sources).extend(kept)
    generator = random.Random(seed)
    generator.shuffle(sources)
    generator.shuffle(tests)
    candidates = sources if _total_bytes(sources) >= max_bytes else sources + tests
    if (found := _total_bytes(candidates)) < MIB:
        raise DataError(
            f"this Python carries only {format_bytes(found)} of its library as text",
            where=str(root),
            do='Name your own text files: [data] text = "path/**/*.txt".',
        )
    chosen, size = [], 0
    for path in candidates:
        if size + path.stat().st_size <= max_bytes and _is_utf8(path):
            chosen.append(path)
            size += path.stat().st_size
    return sorted(chosen)


def _is_utf8(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _total_bytes(files: Sequence[Path]) -> int:
    try:
        return sum(path.stat().st_size for path in files)
    except FileNotFoundError as error:
        raise MissingFileError(
            "no such text file", where=str(error.filename), do="Check the path."
        ) from None


def _pieces(path: Path) -> Iterator[str]:
    rest = ""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            while block := file.read(_PIECE_CHARACTERS):
                text = rest + block
                cut = text.rfind("\n") + 1 or len(text)
                yield text[:cut]
                rest = text[cut:]
    except UnicodeDecodeError as error:
        raise DataError(
            f"is not UTF-8 text ({error.reason})", where=str(path), do="Convert it to UTF-8."
        ) from None
    if rest:
        yield rest


def _batches(path: Path) -> Iterator[list[str]]:
    batch = []
    for piece in _pieces(path):
        batch.append(piece)
        if len(batch) == _BATCH_PIECES:
            yield batch
            batch = []
    if batch:
        yield batch
