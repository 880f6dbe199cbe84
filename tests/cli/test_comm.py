"""`pluribus comm` on ranks of this machine, and as one of torchrun's processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pluribus.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


def test_probe_measures_every_pair(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "links.html"
    assert main(["comm", "probe", "--ranks", "3", "--json", "--picture", str(page)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [link["ranks"] for link in found["links"]] == [[0, 1], [0, 2], [1, 2]]
    for link in found["links"]:
        assert 0 < link["latency_s"] < 1
        assert 1e5 < link["bytes_per_s"] < 1e13
    assert all(rank["add_bytes_per_s"] > 0 for rank in found["ranks"])
    written = page.read_text()
    assert written.count('class="heat') == 6
    assert "rank 2, island 0" in written


def test_bench_times_every_algorithm_and_marks_the_tuners(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["comm", "bench", "--ranks", "2", "--mib", "0.01", "0.2", "--repeats", "2", "--json",
               "--operations", "all_reduce", "all_to_all"]  # fmt: skip
    assert main(command) == 0
    rows = json.loads(capsys.readouterr().out)
    sizes = {(row["operation"], row["num_bytes"]) for row in rows}
    assert len(sizes) == 4
    for operation, num_bytes in sizes:
        alike = [r for r in rows if (r["operation"], r["num_bytes"]) == (operation, num_bytes)]
        assert sum(row["chosen"] for row in alike) == 1
        for row in alike:
            share = 1.0 if operation == "all_reduce" else 0.5  # of two ranks
            assert row["bus_bytes_per_s"] == pytest.approx(share * num_bytes / row["seconds"])
    assert {row["algorithm"] for row in rows} >= {"ring", "direct", "doubling"}


def test_it_joins_the_ranks_that_somebody_else_started() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pluribus.cli.main", "comm", "bench", "--mib", "0.01",
               "--repeats", "1", "--chosen"]  # fmt: skip
    processes = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "RANK": str(rank), "WORLD_SIZE": "2",
                              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert "all_reduce" in said[0]
    assert said[1] == ""


@pytest.mark.parametrize("wrong", [["--ranks", "1"], ["--mib", "0"], ["--codec", "int7"]])
def test_mistakes_are_told(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["comm", "bench", *wrong]) == 2
    assert "pluribus:" in capsys.readouterr().err
