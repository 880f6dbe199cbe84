"""The main job from end to end, given no time to train: it stops after the first steps."""

from __future__ import annotations

import json
from pathlib import Path

from .test_road import run


def test_the_demo_ends_with_a_report_and_a_checkpoint_when_its_time_is_up(tmp_path: Path) -> None:
    result = json.loads(run(tmp_path, "demo", "--folder", "demo", "--seconds", "1", "--json"))
    folder = tmp_path / "demo"
    assert "<svg" in (folder / "report.html").read_text()
    assert json.loads((folder / "trace.json").read_text())["traceEvents"]
    (checkpoint,) = (folder / "checkpoints").glob("step-*")
    assert (checkpoint / "config.json").exists()
    steps = [
        event for line in (folder / "events.jsonl").read_text().splitlines()
        if (event := json.loads(line))["event"] == "step"
    ]  # fmt: skip
    assert 1 <= len(steps) < 10
    measured = {row["role"] for row in result["rows"]}
    assert len(json.loads((folder / "plan.json").read_text())["cluster"]["pool"]) == 1 or (
        measured >= {"alone", "even"}
    )
