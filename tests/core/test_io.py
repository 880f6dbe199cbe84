from __future__ import annotations

import os
from pathlib import Path

import pytest

from pluribus.core import io
from pluribus.core.errors import ConfigError, MissingFileError, nearest, sentence


def test_a_file_comes_back_and_its_folders_are_made(tmp_path: Path) -> None:
    path = io.write_json(tmp_path / "a" / "b.json", {"é": [1, 2.5, None]})
    assert io.read_json(path) == {"é": [1, 2.5, None]}
    assert path.read_text().endswith("\n")
    assert [entry.name for entry in path.parent.iterdir()] == ["b.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = io.write_text(tmp_path / "x.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        io.write_text(path, "new \ud800")  # a lone surrogate cannot be encoded: fails half-way
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_the_old_file_or_the_new(tmp_path: Path) -> None:
    path = io.write_text(tmp_path / "x.txt", "old and long")
    with path.open() as reader:
        io.write_text(path, "new")
        assert reader.read() == "old and long"
    assert path.read_text() == "new"


def test_numbers_that_json_does_not_know_are_never_written(tmp_path: Path) -> None:
    path = io.write_json(tmp_path / "x.json", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        io.write_json(path, {"seconds": float("inf")})
    assert io.read_json(path) == 1


def test_a_new_file_can_be_read_by_others(tmp_path: Path) -> None:
    assert io.write_text(tmp_path / "x", "").stat().st_mode & 0o777 == 0o644


def test_a_missing_file_names_the_nearest_folder_there_is(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError) as caught:
        io.read_toml(tmp_path / "no" / "where" / "job.toml")
    assert str(caught.value) == (
        f"{tmp_path}/no/where/job.toml: no such file\n  Check the path; {tmp_path} exists."
    )


def test_a_file_taken_for_a_folder_is_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text("")
    with pytest.raises(MissingFileError, match="no such file"):
        io.read_text(tmp_path / "job.toml" / "config.json")


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory, not a file"):
        io.read_text(tmp_path)
    with pytest.raises(ConfigError, match="is a directory, not a file"):
        io.write_text(tmp_path, "")


def test_writing_below_a_file_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        io.write_text(tmp_path / "a" / "b.json", "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_permissions_are_the_users_to_give(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("")
    path.chmod(0)
    with pytest.raises(ConfigError, match="may not be read"):
        io.read_text(path)


def test_text_of_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match=r"is not UTF-8 text \(byte 5\)"):
        io.read_toml(tmp_path / "x.toml")


def test_a_syntax_mistake_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("a = 1\nb = = 2\n")
    with pytest.raises(ConfigError, match=r"x\.toml: not valid TOML: .*line 2"):
        io.read_toml(tmp_path / "x.toml")
    (tmp_path / "x.json").write_text('{\n"a": 1,,\n}')
    with pytest.raises(ConfigError, match=r"x\.json: not valid JSON: .*line 2"):
        io.read_json(tmp_path / "x.json")


def test_a_digest_knows_values_not_order() -> None:
    assert io.digest({"a": 1, "b": [2]}) == io.digest({"b": [2], "a": 1})
    assert io.digest({"a": 1}) != io.digest({"a": 2})
    assert len(io.digest({})) == 16


def test_the_nearest_word() -> None:
    assert nearest("stps", ["steps", "tokens"]) == "did you mean 'steps'?"
    assert nearest("zzz", ["b", "a"]) == "known: a, b"
    many = [f"word{i:02}" for i in range(20)]
    assert nearest("x", many).endswith("word11, … (20 in all)")
    assert sentence("known: a, B") == "Known: a, B."
    assert sentence("did you mean 'X'?") == "Did you mean 'X'?"
