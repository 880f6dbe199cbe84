"""Training a tokenizer, encoding files, and the text that is always at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from pluribus.core.errors import ConfigError, DataError, MissingFileError
from pluribus.store.tokenizer import (
    END_OF_TEXT,
    encode_files,
    end_of_text,
    load_tokenizer,
    save_tokenizer,
    standard_library_text,
    train_bpe,
)


@pytest.fixture(scope="module")
def text() -> list[Path]:
    return standard_library_text(300_000, seed=0)


@pytest.fixture(scope="module")
def tokenizer(text: list[Path]) -> Tokenizer:
    return train_bpe(text, 600, max_bytes=300_000)


def test_library_text_is_the_same_again_and_within_its_budget(text: list[Path]) -> None:
    assert text == standard_library_text(300_000, seed=0)
    assert text != standard_library_text(300_000, seed=1)
    assert text == sorted(text)
    assert 200_000 < sum(path.stat().st_size for path in text) <= 300_000
    assert not any({"site-packages", "test"} & set(path.parts) for path in text)


def test_encoding_gives_the_text_back(
    tmp_path: Path, text: list[Path], tokenizer: Tokenizer
) -> None:
    seen = []
    shard = encode_files(
        tokenizer, text, tmp_path / "a.bin", progress=lambda done, total: seen.append((done, total))
    )
    assert shard.vocab_size == tokenizer.get_vocab_size() == 600
    assert shard.tokens.dtype == np.uint16
    ends = np.flatnonzero(shard.tokens == tokenizer.token_to_id(END_OF_TEXT))
    assert len(ends) == len(text)
    assert ends[-1] == len(shard.tokens) - 1
    for path, start, end in zip(text, [0, *(ends[:-1] + 1)], ends, strict=True):
        assert tokenizer.decode(shard.tokens[start:end]) == path.read_bytes().decode()
    assert seen[-1] == (sum(path.stat().st_size for path in text),) * 2
    # The merges learnt something: a byte per token would be as many tokens as bytes.
    assert len(shard.tokens) < 0.6 * seen[-1][1]


def test_a_file_longer_than_one_piece_is_encoded_whole(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    long = tmp_path / "long.txt"
    content = "é\r\nno end of line " * 9000 + "\n" + "x y\n" * 9000 + "end"
    long.write_bytes(content.encode())
    shard = encode_files(tokenizer, [long], tmp_path / "a.bin")
    assert tokenizer.decode(shard.tokens[:-1]) == content


def test_training_reads_no_more_than_it_may(tmp_path: Path, text: list[Path]) -> None:
    late = tmp_path / "late.txt"
    late.write_text("zqzqzq " * 50_000)
    small = train_bpe([*text, late], 600, max_bytes=300_000 // 2)
    assert len(small.encode("zqzqzq").ids) == 6


def test_users_mistakes(tmp_path: Path, text: list[Path], tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="vocab_size is 200"):
        train_bpe(text, 200, max_bytes=1000)
    with pytest.raises(MissingFileError, match="no such file"):
        load_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(ConfigError, match="is not a tokenizer"):
        load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(MissingFileError, match=r"gone\.txt"):
        encode_files(tokenizer, [tmp_path / "gone.txt"], tmp_path / "a.bin")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8 text"):
        encode_files(tokenizer, [tmp_path / "latin.txt"], tmp_path / "a.bin")
    assert not (tmp_path / "a.bin").exists()


def test_save_load_and_the_end_of_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    again = load_tokenizer(path)
    assert again.encode("def f(x): …").ids == tokenizer.encode("def f(x): …").ids
    assert end_of_text(again) == END_OF_TEXT
    path.write_text(path.read_text().replace("endoftext", "boundary"))
    with pytest.raises(DataError, match="no end-of-text token"):
        end_of_text(load_tokenizer(path))
