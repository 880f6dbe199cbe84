"""The bench on published runs takes any file of its format: it flags, it skips, it never falls."""

from __future__ import annotations

import csv
import math
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from published import load, score, summarise, terms_of
from published_rows import Row, UnusableError, parse_row

from pluribus.predict.regular import regular_terms

LARGE = Path(__file__).parents[2] / "bench" / "large_runs.csv"

RUN = {
    "file": "runs", "source": "somebody arXiv:2401.00001", "table": "1", "model": "GPT 7B",
    "layers": "32", "hidden": "4096", "heads": "32", "kv_heads": "32", "ffn": "16384",
    "vocab": "51200", "seq": "2048", "gpu": "A100-80GB-SXM", "n_gpu": "16", "tp": "2", "pp": "2",
    "vpp": "1", "dp": "4", "cp": "1", "ep": "1", "zero": "1", "micro_batch": "2",
    "global_batch": "64", "precision": "bf16", "recompute": "none", "iter_time_s": "3.1",
    "tokens_per_s": "", "peak_mem_gb": "60", "note": "",
}  # fmt: skip

ODD = (
    "",
    "?",
    "0",
    "-3",
    "OOM",
    "1,024",
    "3(FSDP2)",
    "n/a",
    "1e999",
    "𝟛",
    "full?",
    "7.5",
    "1000000",
)


def parsed(**changes: str) -> Row:
    return parse_row({**RUN, **changes})


def flagged(row: Row, words: str) -> bool:
    return any(words in flag for flag in row.flags)


def predictable(row: dict[str, str]) -> Row | None:
    try:
        return parse_row(row)
    except UnusableError:
        return None


@pytest.mark.parametrize("key", [key for key in RUN if key != "file"])
def test_odd_and_missing_cells_are_flagged_or_skipped(key: str) -> None:
    without = {name: cell for name, cell in RUN.items() if name != key}
    for row in (without, *({**RUN, key: value} for value in ODD)):
        if found := predictable(row):
            terms = regular_terms(
                found.model, found.pool, found.layout, found.sequence_length, found.precision,
                found.software,
            )  # fmt: skip
            assert 0 < terms.seconds() < math.inf
    assert predictable(RUN)


def test_a_program_that_cannot_recompute_does_not() -> None:
    single = {"source": "vTrain MICRO24", "table": "data/ground_truth_single.csv", "vocab": ""}
    row = parsed(**single, recompute="full (use_checkpoint in config)")
    assert row.layout.recompute == "none"
    assert flagged(row, "does not recompute")
    assert row.model.vocab_size == 50256  # 50,257 in two equal shares
    multi = parsed(**{**single, "table": "data/ground_truth_multi.csv"}, recompute="full")
    assert multi.layout.recompute == "full"
    assert multi.model.vocab_size == 51200


def test_a_run_that_ran_out_of_memory_has_no_time() -> None:
    row = parsed(peak_mem_gb="OOM", iter_time_s="")
    assert row.memory_gb == math.inf
    assert row.seconds is None
    assert parsed(note="OOM at micro-batch 4").seconds == 3.1


def test_what_a_row_leaves_out_is_guessed_and_flagged() -> None:
    assert parsed(dp="").layout.dp == 4
    micro = parsed(micro_batch="", peak_mem_gb="")
    assert flagged(micro, "quickest")
    # 16 bytes for each of 6.9e9 parameters do not fit: the optimiser must have been divided.
    row = parsed(zero="", tp="1", pp="1", dp="16", peak_mem_gb="")
    assert row.layout.zero >= 1
    assert flagged(row, "lowest that fits")
    assert parsed(iter_time_s="", tokens_per_s="65536").seconds == pytest.approx(2.0)


def test_programs_are_told_apart_by_their_date_and_notes() -> None:
    assert not parsed(source="X arXiv:2104.04473").software.flash_attention
    assert not parsed(source="X ICLR24").software.flash_attention
    assert parsed(source="X arXiv:2401.00001").software.flash_attention
    assert parsed(note="LoRA").software.frozen
    assert parsed(model="GPT 7B ZB-1p").layout.schedule == "zb-h1"
    assert parsed(note="interleaved schedule", vpp="").layout.virtual_stages == 2


def test_a_link_rate_is_not_a_memory_size() -> None:
    assert parsed(gpu="H200-SXM (CX-7 400Gb/s per GPU)").pool.chip.memory_gib == 141


def test_a_file_is_scored_from_end_to_end(tmp_path: Path) -> None:
    """Runs that take 1.2 times what the formulas say are predicted after four of them."""
    draw, rows = random.Random(0), []
    for micro in (1, 2, 4, 8):
        for tp, pp, dp in ((1, 4, 4), (2, 2, 4), (4, 2, 2), (2, 4, 2)):
            row = {**RUN, "tp": str(tp), "pp": str(pp), "dp": str(dp), "micro_batch": str(micro)}
            found = parse_row(row)
            terms = regular_terms(
                found.model, found.pool, found.layout, 2048, "bf16", found.software
            )
            seconds = 1.2 * terms.seconds() * math.exp(draw.gauss(0, 0.01))
            rows.append({**row, "iter_time_s": str(seconds)})
    path = tmp_path / "runs.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [key for key in RUN if key != "file"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows([*rows, {**RUN, "gpu": "abacus"}])
    found, skipped = load([path])
    assert len(found) == 16
    assert sum(skipped.values()) == 1
    terms = [
        regular_terms(r.model, r.pool, r.layout, r.sequence_length, r.precision, r.software)
        for r in found
    ]
    before, after = (
        summarise(found, score(found, terms, count, 2, 0, False))[0] for count in (0, 4)
    )
    assert before["mape"] > 0.15
    assert after["mape"] < 0.04


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ("TPU v5e", "google-tpu-v5e"), ("TPUv4", "google-tpu-v4"), ("RTX 3090", "nvidia-rtx-3090"),
        ("DGX-GB200", "nvidia-gb200-186g"), ("Intel Gaudi 3", "intel-gaudi3"),
        ("A100-SXM4-40GB", "nvidia-a100-40g"), ("Iluvatar BI-V100", "iluvatar-bi-v100"),
    ],
)  # fmt: skip
def test_a_chip_is_known_by_its_whole_name(said: str, key: str) -> None:
    precision = "fp16" if key.startswith("iluvatar") else "bf16"
    assert parsed(gpu=said, precision=precision, zero="1").pool.chip.key == key


def test_a_family_of_chips_is_flagged() -> None:
    row = parsed(gpu="Ascend Atlas 800T A2 64GB")
    assert row.pool.chip.key.startswith("ascend-910b")
    assert flagged(row, "of a family")
    assert flagged(parsed(gpu="GPU (A100/A800 class)"), "several chips")


def test_networks_in_other_words() -> None:
    assert parsed(gpu="A100-80GB (4x Omni-Path 100)").pool.nic_gbps == 50
    assert parsed(gpu="A100-80GB (Omni-Path 4x100Gb/s)").pool.nic_gbps == 50


def test_words_for_degrees() -> None:
    assert parsed(zero="FSDP").layout.zero == 3
    assert parsed(zero="none").layout.zero == 0
    assert parsed(recompute="uniform 1").layout.recompute == "full"
    assert parsed(recompute="False").layout.recompute == "none"
    assert parsed(seq="4k").sequence_length == 4096
    assert parsed(global_batch="131072 tokens").layout.global_batch == 64
    assert parsed(iter_time_s="2 min").seconds == 120
    assert parsed(peak_mem_gb="61440 MiB").memory_gb == 60


def test_what_is_left_out_is_inferred() -> None:
    row = parsed(global_batch="", tokens_per_s="42283")
    assert row.layout.global_batch == 64
    assert flagged(row, "no global batch")
    row = parsed(cp="", dp="2")
    assert row.layout.cp == 2
    assert parsed(tp="", pp="", dp="16", vpp="").layout.tp == 1
    row = parsed(
        model="Llama-3.1 8B", layers="", hidden="", heads="", kv_heads="", ffn="", vocab=""
    )
    assert row.model.hidden_size == 4096
    assert flagged(row, "looked up")
    assert flagged(parsed(model="Some MoE 8x7B"), "experts not described")


def test_virtual_stages_left_out_keep_the_bubble_low() -> None:
    deep = {"layers": "64", "pp": "8", "dp": "1", "vpp": ""}
    for micro_batch, chunks in (("2", 1), ("4", 2), ("8", 4)):  # 32, 16 and 8 micro-batches
        assert parsed(**deep, micro_batch=micro_batch).layout.virtual_stages == chunks
    named = {**deep, "micro_batch": "8", "note": "1F1B"}
    assert parsed(**named).layout.virtual_stages == 1
    assert parsed(**{**named, "note": "Megatron-DeepSpeed"}).layout.virtual_stages == 1


def test_what_cannot_be_true_is_flagged() -> None:
    assert flagged(parsed(iter_time_s="0.01"), "peak allows")
    assert not flagged(parsed(), "peak allows")
    assert flagged(parsed(tokens_per_s="1000"), "disagree")


def test_any_encoding_and_separator(tmp_path: Path) -> None:
    names = [name for name in RUN if name != "file"]
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        for delimiter in ",;\t":
            path = tmp_path / "runs.csv"
            with path.open("w", newline="", encoding=encoding) as file:
                writer = csv.DictWriter(file, names, extrasaction="ignore", delimiter=delimiter)
                writer.writeheader()
                writer.writerow(RUN)
            (row,), skipped = load([path])
            assert not skipped
            assert row.layout == parsed().layout


def test_copies_of_calibration_rows_are_not_scored() -> None:
    rows = [parsed(iter_time_s=str(seconds)) for seconds in (3.0, 3.0, 3.0, 3.0)]
    terms = [
        regular_terms(r.model, r.pool, r.layout, r.sequence_length, r.precision, r.software)
        for r in rows
    ]
    assert not score(rows, terms, 1, 1, 0, False)
    assert len(score(rows, terms, 0, 1, 0, False)) == 4


def test_runs_of_thousands_of_chips_that_nothing_was_fitted_on() -> None:
    rows, skipped = load([LARGE])
    assert len(rows) == 6
    assert not skipped
    for row in rows:
        assert terms_of(row).seconds() == pytest.approx(row.seconds, rel=0.08)
