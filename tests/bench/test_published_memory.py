"""Published runs that ran out of memory are read, predicted and scored, however they are noted."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from published import load, memory, terms_of
from published_memory import ran_out
from published_programs import by_driver, program_of
from published_rows import parse_row

BENCH = Path(__file__).parents[2] / "bench"
FITS = {
    "source": "somebody arXiv:2401.00001", "table": "1", "model": "GPT 7B",
    "layers": "32", "hidden": "4096", "heads": "32", "kv_heads": "32", "ffn": "16384",
    "vocab": "51200", "seq": "2048", "gpu": "A100-80GB-SXM", "n_gpu": "16", "tp": "2", "pp": "2",
    "vpp": "1", "dp": "4", "cp": "1", "ep": "1", "zero": "1", "micro_batch": "2",
    "global_batch": "64", "precision": "bf16", "recompute": "full", "iter_time_s": "3.1",
    "tokens_per_s": "", "peak_mem_gb": "", "note": "Megatron-LM",
}  # fmt: skip
# 16 bytes for each of 6.9e9 parameters are more than 80 GiB.
TOO_LARGE = {**FITS, "tp": "1", "pp": "1", "dp": "16", "zero": "0", "iter_time_s": ""}

NOTATIONS = (
    {"peak_mem_gb": "OOM"},
    {"iter_time_s": "oom"},
    {"tokens_per_s": "OOM", "iter_time_s": "-"},
    {"note": "Megatron-LM; CUDA out of memory"},
    {"note": "OutOfMemoryError"},
    {"peak_mem_gb": ">80"},
    {"peak_mem_gb": "inf"},
    {"status": "OOM"},
    {"result": "out-of-memory"},
    {"oom": "True"},
)


def written(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("said", NOTATIONS)
def test_every_notation_of_running_out_is_read(said: dict[str, str]) -> None:
    row = parse_row({**TOO_LARGE, "file": "runs", **said})
    assert row.memory_gb == math.inf
    assert row.seconds is None


@pytest.mark.parametrize(
    "note", ["no OOM seen", "recompute to avoid OOM", "stable, never ran out of memory", "zoom"]
)
def test_a_run_that_did_not_come_to_it_is_none(note: str) -> None:
    assert not ran_out({**TOO_LARGE, "note": note}, [], timed=False)


def test_what_contradicts_itself_is_flagged() -> None:
    flags: list[str] = []
    assert ran_out({**FITS, "peak_mem_gb": "OOM"}, flags, timed=True)
    assert "though a time is given" in flags[0]
    # What a note says of another run does not undo a time.
    assert not ran_out({**FITS, "note": "OOM at micro-batch 4"}, flags, timed=True)


def test_runs_out_of_memory_are_foreseen_and_scored(tmp_path: Path) -> None:
    """Ten that cannot fit, one that ran out for another reason, three that ran."""
    rows = [{**TOO_LARGE, **said} for said in NOTATIONS]
    rows += [FITS] * 3 + [{**FITS, "iter_time_s": "OOM"}]
    found, skipped = load([written(tmp_path / "runs.csv", rows)])
    assert len(found) == 14
    assert not skipped
    line = memory(found, [terms_of(row) for row in found])[-1]
    assert (line["rows"], line["foreseen"], line["of"]) == (11, 10, 14)
    assert line["precision"] == 1.0
    assert line["recall"] == pytest.approx(10 / 11)


def test_a_run_that_leaves_out_what_decides_is_not_scored(tmp_path: Path) -> None:
    rows = [{**TOO_LARGE, "peak_mem_gb": "OOM", **changes}
            for changes in ({"recompute": ""}, {"gpu": "A100 (80GB?)"})]  # fmt: skip
    found, _ = load([written(tmp_path / "runs.csv", rows)])
    line = memory(found, [terms_of(row) for row in found])[-1]
    assert (line["rows"], line["of"]) == (0, 0)
    assert {"no recompute given, taken as none", "chip given with a question mark"} <= {
        flag for row in found for flag in row.flags
    }


def test_odd_files_are_reported_without_a_traceback(tmp_path: Path) -> None:
    """Other columns, other case, ragged lines, chips and precisions nobody knows."""
    header, cells = list(FITS), list(FITS.values())
    lines = [
        [f" {name.upper()} " for name in header],
        cells,
        [*cells, "more", "cells"],
        cells[:5],
        [],
        [{"A100-80GB-SXM": "abacus"}.get(cell, cell) for cell in cells],
        [{"bf16": "posit16"}.get(cell, cell) for cell in cells],
        [{"3.1": "3100 ms"}.get(cell, cell) for cell in cells],
    ]
    path = tmp_path / "odd.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    (tmp_path / "empty.csv").write_text("", encoding="utf-8")
    (tmp_path / "header.csv").write_text(",".join(header), encoding="utf-8")
    (tmp_path / "bytes.csv").write_bytes(b"source,tp\n\xff\xfe,2\n")
    found, skipped = load([path])
    assert len(found) == 4
    assert sum(skipped.values()) == 2
    assert any("unknown chip 'abacus'" in reason for reason in skipped)
    assert found[3].seconds == pytest.approx(3.1)
    flags = [flag for row in found for flag in row.flags]
    assert "precision 'posit16' unknown, taken as bf16" in flags
    files = [option for name in ("odd", "empty", "header", "bytes")
             for option in ("--data", str(tmp_path / f"{name}.csv"))]  # fmt: skip
    for options in (files, files[2:]):
        run = subprocess.run(
            [sys.executable, str(BENCH / "published.py"), *options, "--calibrate", "2", "--rows"],
            capture_output=True, text=True, check=False, cwd=BENCH.parent,
            env={"PYTHONPATH": str(BENCH.parent)},
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert "skipped:" in run.stdout


def test_programs_go_by_what_a_row_says_not_by_its_source() -> None:
    def program(precision: str = "bf16", *, sharded: bool = False, gated: bool = False,
                tp: int = 1, **cells: str):  # fmt: skip
        flags: list[str] = []
        found = program_of(
            cells, precision, sharded=sharded, gated=gated, tp=tp, flags=flags
        )  # fmt: skip
        return found, flags

    unnamed, flags = program(source="somebody", gpu="A100")
    assert flags == ["no program named, taken as Megatron"]
    assert not unnamed.flash_attention, "an undated GPT on an A100 is of 2021"
    assert program(source="somebody", gpu="A100", gated=True)[0].flash_attention
    assert program(source="somebody", gpu="H100")[0].flash_attention
    assert not program("fp16", source="X MICRO24", gpu="A100")[0].sequence_parallel
    driven, flags = program(note="Megatron-DeepSpeed ZeRO-1", gpu="A100")
    assert by_driver(driven)
    assert not flags
    eager = program(sharded=True, source="torchtitan")[0]
    compiled = program(sharded=True, source="torchtitan", note="torch.compile", table="x_202412")[0]
    later = program(sharded=True, source="torchtitan", note="torch.compile", table="x_202506")[0]
    assert eager.selective_kept > compiled.selective_kept
    assert eager.logit_bytes == compiled.logit_bytes > later.logit_bytes
    divided = program(sharded=True, tp=8, source="torchtitan")[0]
    joined = program(sharded=True, tp=8, source="torchtitan", note="AsyncTP")[0]
    assert divided.loss_copies > eager.loss_copies
    assert divided.gathered > joined.gathered
