"""`pluribus predict` says of a plan what planning said of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pluribus.cli.main import main
from pluribus.spec.calibration import Calibration, CalibrationRecord

from .test_bad_input import folder  # noqa: F401 - the fixture


def test_other_facts_change_what_the_pools_deliver_alone(
    folder: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Twice as slow a cluster aggregates as before; a plan without prediction gets one."""
    assert main(["plan", str(folder / "job.toml"), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    slow = CalibrationRecord(factors=Calibration(overhead=2.0), runs=())
    slow.save(folder / "slow.json")
    plan = folder / "plan.json"
    assert main(["predict", str(plan), "--calibration", str(folder / "slow.json"), "--json"]) == 0
    said, before = json.loads(capsys.readouterr().out), planned["prediction"]
    assert said["tokens_per_s"] == pytest.approx(before["tokens_per_s"] / 2)
    assert said["aggregation"] == pytest.approx(before["aggregation"])
    bare = {key: value for key, value in planned.items() if key != "prediction"}
    plan.write_text(json.dumps(bare))
    assert main(["predict", str(plan), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == before


def test_predict_repeats_the_plan_and_draws_it(
    folder: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", str(folder / "job.toml"), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    page, trace = folder / "page.html", folder / "trace.json"
    words = ["predict", str(folder / "plan.json"), "--html", str(page), "--trace", str(trace)]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == planned["prediction"]
    assert "<svg" in page.read_text()
    assert json.loads(trace.read_text())["traceEvents"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    for words in ("Who does what", "The busiest chip's step", "Memory of each chip", "bound"):
        assert words in shown
