"""bench/sailor.py: measured runs become plans, odd rows are marked and stay."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pluribus.core.io import write_json

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data" / "sailor"
KEYS = ("params_floats", "act_mem_floats", "act_output_floats")
SEQUENCE, HIDDEN, VOCAB = 2048, 1000, 2000


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sailor_bench", ROOT / "bench" / "sailor.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def layers(block: float, update: float = 0.0) -> dict[str, list[float]]:
    """An embedding that takes nothing, two blocks, a head of half a block; thirds forward."""
    times = [0.0, block, block, block / 2]
    return {str(i): [t / 3 + 1e-9, t * 2 / 3, update] for i, t in enumerate(times)}


def row(name: str, stages: str, split: str, seconds: float, **extra: object) -> dict[str, object]:
    return {
        "source": f"validation/{name}.json", "cluster": "two kinds (a test)", "gbs": 8, "mbs": 1,
        "model": "Tiny-3B seq2048", "metric": "iteration_time", "value": seconds,
        "parallel_config": f"pp1 dp[1] layers/stage {split} stages {stages}",
        "extra": " ".join(f"{key}={value}" for key, value in extra.items()), "quality_note": "",
    }  # fmt: skip


# By hand: A100 has blocks of 1 s at tp 2 (a pass of 2.5 s), V100 of 2 s (5 s).
# Embedding and blocks have 10^6 parameters a rank at tp 2; sums cross at 1 MB/s for both ranks.
ROWS = [
    row("one", "[[('A100-40', 'tp2')]]", "[4]", 8 * 2.5, max_mem=20 * 10**9),
    row("mixed", "[[('A100-40', 'tp2'), ('V100-16', 'tp2')]]", "[4]", 52.0, grad_sync="30.5"),
    row("pipe", "[[('A100-40', 'tp2')], [('V100-16', 'tp2')]]", "[2, 2]", 60.0, max_mem=1000),
    row("copy", "[[('A100-40', 'tp2')], [('V100-16', 'tp2')]]", "[2, 2]", 60.0),
    row("short", "[[('V100-16', 'tp2')]]", "[4]", 8 * 2.5),
    row("odd", "[[('H100-80', 'tp2')]]", "[4]", 1.0),
]  # fmt: skip
AMP = {
    **row("amp", "", "", 2.0), "parallel_config": "tp1 dp16 pp1", "extra": "AMP_predicted=1.5",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_json(
        tmp_path / "times.json",
        {"Tiny-3": {"A100-40": {"1": {"2": layers(1.0)}}, "V100-16": {"1": {"2": layers(2.0)}}}},
    )
    sizes = [(10**6, 0, SEQUENCE * HIDDEN), (10**6, 10**6, SEQUENCE * HIDDEN)]
    sizes += [sizes[1], (10**6, 10**6, SEQUENCE * VOCAB // 2)]
    table = {str(i): dict(zip(KEYS, values, strict=True)) for i, values in enumerate(sizes)}
    write_json(tmp_path / "sizes.json", {"Tiny-3": {"2": table}})
    slow = [[0.0, 0.0, 0.001], 1e6]
    gpus = ("A100-40", "V100-16")
    zone = {a: {"2": {"z": {b: {"2": slow} for b in gpus}}} for a in gpus}
    write_json(tmp_path / "zones.json", {"z": zone})
    with (tmp_path / "measured.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows([*ROWS, AMP])
    return tmp_path


def scored(bench: ModuleType, folder: Path) -> dict[str, object]:
    rows, rivals, others = bench.read_rows(folder / "measured.csv")
    assert rivals["two kinds (a test)"].startswith("25.0% mean")
    assert sum(others.values()) == 1
    loaded = bench.Loaded(folder)
    items = [bench.score(row, loaded) for row in rows if row.name != "odd"]
    bench.mark_doubts(items)
    return {item.row.name: item for item in items}


def test_runs_are_predicted_through_plans(bench: ModuleType, folder: Path) -> None:
    found = scored(bench, folder)
    software = bench.MEGATRON_DEEPSPEED
    assert found["one"].seconds == pytest.approx(8 * 2.5, rel=1e-3)
    # Four micro-batches each; the slower replica's passes, then 16 MB around a ring of two: each
    # rank's part crosses once each way while the other rank's crosses too.
    sums = 4 * 4e6
    ring = 2 * (sums / 2) * 2 / 1e6
    assert found["mixed"].seconds == pytest.approx(4 * 5.0 + ring + software.sum_byte_s * sums)
    # The faster replica waits for the slower one in its sum, as the published sync times do.
    assert found["mixed"].sync == pytest.approx(found["mixed"].seconds - 4 * 2.5)
    # Stages of 1 s and 3 s with messages of 8 MB at 1 MB/s that hold both up.
    message = 4 * SEQUENCE * HIDDEN / 1e6 + software.message_byte_s * 4 * SEQUENCE * HIDDEN
    assert found["pipe"].seconds == pytest.approx(8 * (3 + 2 * message) + 1, rel=0.05)


def test_odd_rows_are_marked_and_stay(bench: ModuleType, folder: Path) -> None:
    found = scored(bench, folder)
    assert found["one"].row.doubts == found["mixed"].row.doubts == []
    assert "20.0 s, though" not in found["one"].row.doubts
    assert "passes alone take 40.00 s" in found["short"].row.doubts[0]
    assert found["pipe"].row.doubts == ["the very 60.0 s of copy: a copy?"]
    assert "peak memory 0.0 GB is below" in found["pipe"].row.memory_doubts[0]


def test_the_report_counts_every_row(
    bench: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = folder / "report.json"
    words = ["sailor.py", "--data", str(folder), "--calibrate", "1", "--rows", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    bench.main()
    printed = capsys.readouterr().out
    (line,) = json.loads(out.read_text())
    assert (line["rows"], line["clean"]) == (5, 3)
    assert "not predicted: odd: no times of H100-80" in printed
    assert printed.count("marked:") == 3
    assert "Sailor memory" in printed


@pytest.mark.skipif(not DATA.exists(), reason="Sailor's published measurements are not here")
def test_sailors_published_runs(bench: ModuleType) -> None:
    rows, _, _ = bench.read_rows(DATA / "measured.csv")
    loaded = bench.Loaded(DATA)
    items = [bench.score(row, loaded) for row in rows]
    bench.mark_doubts(items)
    clean = [item for item in items if not item.row.doubts]
    errors = bench.errors([item.seconds / item.row.seconds - 1 for item in clean])
    memory = [item.memory / item.row.memory - 1 for item in items if not item.row.memory_doubts]
    assert len(items) == 17
    assert errors["mean"] < 0.08
    assert errors["max"] < 0.20
    assert bench.errors(memory)["mean"] < 0.10
