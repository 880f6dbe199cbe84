"""`pluribus calibrate`: from measured runs to plans whose intervals they set."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from pluribus.cli.main import main
from pluribus.predict.predict import step_seconds
from pluribus.predict.setting import Setting
from pluribus.spec.calibration import FACTORS, Calibration, CalibrationRecord
from pluribus.spec.plan import Plan

from .test_bad_input import folder  # noqa: F401 - the fixture

TRUTH = Calibration(matmul=1.2, memory=1.3, inter=1.2, overhead=1.1)
SURE = replace(TRUTH, covariance=(((0.0,) * len(FACTORS),) * len(FACTORS)), residual=0.05, runs=8)

WIDTH = math.exp(1.372 * 0.05)  # Student's t with ten degrees of freedom, 80 %


@pytest.fixture
def planned(folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:  # noqa: F811
    assert main(["plan", str(folder / "job.toml")]) == 0
    capsys.readouterr()
    return folder


def truly(plan: Plan) -> float:
    """What a plan takes on a machine with the factors of TRUTH."""
    return step_seconds(plan, Setting.of_plan(plan).calibrated(TRUTH))


def run_folder(root: Path, plan: Plan, seconds: float) -> Path:
    root.mkdir()
    plan.save(root / "plan.json")
    events = [
        {"event": "step", "step": i, "seconds": s} for i, s in enumerate((9.0, *[seconds] * 3))
    ]
    (root / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return root


def test_runs_of_plans_and_of_layouts_set_the_factors(
    planned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Plan.load(planned / "plan.json")
    cluster = plan.cluster["pool"][0]
    more = replace(plan, pipelines=tuple(replace(p, micro_batch_size=8) for p in plan.pipelines))
    more.save(planned / "more.json")
    first = run_folder(planned / "run", plan, truly(plan))
    (planned / "runs.toml").write_text(
        f'[[run]]\nplan = "more.json"\nseconds = {truly(more)}\n'
        f'[[run]]\njob = "job.toml"\ncluster = "cluster.toml"\npool = "{cluster["address"]}"\n'
        "seconds = 1.0\nlayout = { micro_batch = 1 }\n"
    )
    out = planned / "calibration.json"
    files = [str(first), str(planned / "runs.toml")]
    assert main(["calibrate", *files, "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in printed["runs"]] == [
        "run",
        "runs.toml run[0]",
        "runs.toml run[1]",
    ]
    record = CalibrationRecord.load(out)
    for run in record.runs[:2]:
        assert abs(run.after / run.seconds - 1) < abs(run.before / run.seconds - 1)
    assert main(["calibrate", *files, "--out", str(out)]) == 0
    assert "factors: matmul" in capsys.readouterr().out


def test_plans_carry_the_factors_and_their_interval(
    planned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = planned / "calibration.json"
    CalibrationRecord(factors=SURE, runs=()).save(file)
    job, out = str(planned / "job.toml"), planned / "calibrated.json"
    assert main(["plan", job, "--calibration", str(file), "--out", str(out)]) == 0
    plan, before = Plan.load(out), Plan.load(planned / "plan.json")
    assert plan.calibration == SURE
    assert plan.prediction is not None
    step = plan.prediction.step_seconds
    assert step.high == pytest.approx(WIDTH * step.mid)
    capsys.readouterr()
    # The same plan says the same again; another plan says it with the factors asked for.
    for name, options in (("calibrated.json", []), ("plan.json", ["--calibration", str(file)])):
        assert main(["predict", str(planned / name), "--json", *options]) == 0
        said = json.loads(capsys.readouterr().out)["step_seconds"]
        assert said["high"] == pytest.approx(WIDTH * said["mid"])
    assert said["mid"] == pytest.approx(truly(before))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not a list of measured runs"),
        ("[[run]]\nseconds = 1.0\n", "needs a plan"),
        ('[[run]]\nplan = "plan.json"\nseconds = -1.0\n', "seconds is -1.0"),
        ('[[run]]\nplan = "plan.json"\njob = "job.toml"\nseconds = 1.0\n', "both a plan and"),
        ('[[run]]\nplan = "plan.json"\nseconds = 1.0\nprogram = "megatorn"\n', "megatron"),
        ('[[run]]\nplan = "plan.json"\nsecond = 1.0\n', "seconds"),
        ('[[run]]\nplan = "plan.json"\nseconds = 1.0\n' * 9, "9 measured runs"),
        ('[[run]]\njob = "job.toml"\ncluster = "cluster.toml"\npool = "POOL"\nseconds = 1.0\n'
         "layout = { tp = 64 }\n", "takes 64 chips"),
        ('[[run]]\njob = "job.toml"\ncluster = "cluster.toml"\npool = "POOL"\nseconds = 1.0\n'
         "layout = { depth = 2 }\n", "unknown key 'depth'"),
    ],
)  # fmt: skip
def test_mistakes_in_a_file_of_runs_are_told(
    planned: Path, capsys: pytest.CaptureFixture[str], text: str, problem: str
) -> None:
    pool = Plan.load(planned / "plan.json").cluster["pool"][0]["address"]
    file = planned / "runs.toml"
    file.write_text(text.replace("POOL", pool))
    out = planned / "calibration.json"
    assert main(["calibrate", str(file), "--out", str(out)]) == 2
    assert problem in capsys.readouterr().err
    assert not out.exists()


def test_a_run_of_one_step_says_nothing(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = run_folder(planned / "run", Plan.load(planned / "plan.json"), 1.0)
    events = (root / "events.jsonl").read_text().splitlines()
    (root / "events.jsonl").write_text(events[0] + "\n")
    assert main(["calibrate", str(root)]) == 2
    assert "has 1 steps" in capsys.readouterr().err
