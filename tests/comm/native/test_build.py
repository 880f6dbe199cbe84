"""Compiling the kernel: once, by any number of ranks, or not at all."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pluribus.comm.native.build import load

ROOT = Path(__file__).resolve().parents[3]
CRC_OF_DIGITS = 0xE3069283

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler"
)


@needs_compiler
def test_ranks_that_start_together_all_get_a_whole_kernel(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pluribus.comm.native.build import load\n"
        "print(load(Path(sys.argv[1])).pluribus_crc32c(0, b'123456789', 9))"
    )
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "cache")],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    assert [int(rank.communicate(timeout=120)[0]) for rank in ranks] == [CRC_OF_DIGITS] * 3
    (made,) = (tmp_path / "cache").iterdir()  # one library and nothing half-made
    assert made.suffix == ".so"


@needs_compiler
def test_a_cache_others_can_write_to_is_not_used(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    loaded = load(tmp_path)
    assert loaded is not None
    assert loaded.pluribus_crc32c(0, b"123456789", 9) == CRC_OF_DIGITS
    assert list(tmp_path.iterdir()) == []


def test_without_a_compiler_there_is_no_kernel(tmp_path: Path) -> None:
    assert load(tmp_path, compilers=("no-such-compiler",)) is None


def test_a_compiler_that_fails_is_no_kernel(tmp_path: Path) -> None:
    assert load(tmp_path, compilers=("false",)) is None
    assert list(tmp_path.iterdir()) == []
