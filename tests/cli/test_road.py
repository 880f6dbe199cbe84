"""The road in pieces, on this machine, as the README shows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .test_bad_input import CONFIG, ROOT

JOB = """
[model]
config = "config.json"
[data]
text = "text/*.txt"
[train]
sequence_length = 32
global_batch_tokens = 256
steps = 4
precision = "fp32"
[plan]
micro_batch_sizes = [1]
"""


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pluribus.cli.main", *arguments],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_probe_profile_plan_train_report(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    words = (ROOT / "README.md").read_text()
    (tmp_path / "text" / "a.txt").write_text(words * 20)
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 300}))
    (tmp_path / "job.toml").write_text(JOB)

    run(tmp_path, "probe")
    run(tmp_path, "profile", "job.toml")
    planned = json.loads(run(tmp_path, "plan", "job.toml", "--json"))
    assert planned["prediction"]["step_seconds"]["mid"] > 0
    trained = json.loads(run(tmp_path, "train", "plan.json", "--folder", "run", "--json"))
    assert trained["steps"] == 4
    assert (tmp_path / trained["checkpoint"] / "tokenizer.json").exists()
    found = json.loads(run(tmp_path, "calibrate", "run", "--json"))
    (fitted,) = found["runs"]
    assert abs(fitted["after"] - fitted["seconds"]) <= abs(fitted["before"] - fitted["seconds"])
    again = json.loads(
        run(tmp_path, "predict", "plan.json", "--calibration", "calibration.json", "--json")
    )
    assert again["step_seconds"]["mid"] == pytest.approx(fitted["after"])
    drawn = json.loads(run(tmp_path, "report", "run", "--json"))
    assert "<svg" in (tmp_path / drawn["report"]).read_text()
    trace = json.loads((tmp_path / drawn["trace"]).read_text())
    processes = {e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"}
    assert processes == {"predicted", "measured (step 2)"}
