"""`pluribus profile --import`: from measurements taken elsewhere to a plan."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pluribus.cli.main import main

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "imported"
MEASURED = EXAMPLE / "opt-350m.json"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    for name in ("job.toml", "cluster.toml", "config.json"):
        shutil.copy(EXAMPLE / name, tmp_path)
    return tmp_path / "job.toml"


def complaint(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_example_plans_on_imported_times(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", str(job), "--import", str(MEASURED)]) == 0
    assert "nvidia-gh200-96g" in capsys.readouterr().out
    assert main(["plan", str(job), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["profile"]["source"].startswith("excerpt of Sailor")
    # Sailor's planner takes the GH200 alone for 7.37 s a step by its own simulator.
    assert plan["prediction"]["step_seconds"]["mid"] < 7.37
    assert main(["predict", str(job.parent / "plan.json")]) == 0


def test_without_a_job_everything_to_plan_with_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new"
    assert main(["profile", "--import", str(MEASURED), "--out", str(folder)]) == 0
    assert sorted(file.name for file in folder.iterdir()) == [
        "cluster.toml", "config.json", "job.toml", "profile.json",
    ]  # fmt: skip
    assert json.loads((folder / "config.json").read_text()) == json.loads(
        (EXAMPLE / "config.json").read_text()
    )
    assert main(["plan", str(folder / "job.toml")]) == 0
    again = complaint(capsys, "profile", "--import", MEASURED, "--out", folder)
    assert "config.json: exists already" in again


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("job.toml", "length = 2048", "length = 1024", "'sequence_length' is 2048"),
        ("job.toml", '"fp32"', '"fp16"', "'precision' is fp32"),
        ("config.json", "51513344\n ", "51513344,\n  51513344\n ", "'num_layers' is 26"),
        ("cluster.toml", 'chip = "nvidia-', 'chip = "nvidia-', None),
    ],
)
def test_a_job_the_measurements_do_not_serve(
    job: Path, capsys: pytest.CaptureFixture[str], file: str, old: str, new: str, words: str | None
) -> None:
    if words is None:
        for kind in ("a100-40g", "v100-16g", "gh200-96g"):
            edit(job.parent / file, f'"nvidia-{kind}"', '"nvidia-h20-96g"')
        words = "The cluster has nvidia-h20-96g"
    else:
        edit(job.parent / file, old, new)
    message = complaint(capsys, "profile", job, "--import", MEASURED)
    assert words in message
    assert "opt-350m.json" in message


def test_a_chip_can_be_named(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(job.parent / "cluster.toml", '"nvidia-gh200-96g"', '"nvidia-h20-96g"')
    named = ["--chip", "nvidia-gh200-96g=nvidia-h20-96g"]
    assert main(["profile", str(job), "--import", str(MEASURED), *named, "--json"]) == 0
    profile = json.loads(capsys.readouterr().out)
    assert "nvidia-h20-96g" in {time["chip"] for time in profile["layers"]}
    message = complaint(capsys, "profile", job, "--import", MEASURED, "--chip", "GH-96")
    assert "'GH-96' is not NAME=KEY" in message


def test_an_imported_profile_is_checked_again_when_it_is_used(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", str(job), "--import", str(MEASURED)]) == 0
    edit(job, '"fp32"', '"fp16"')
    message = complaint(capsys, "plan", job)
    assert "profile.json [layers]: has no times for sequences of 2048 tokens in fp16" in message
    edit(job, '"fp16"', '"fp32"')
    for kind in ("a100-40g", "v100-16g", "gh200-96g"):
        edit(job.parent / "cluster.toml", f'"nvidia-{kind}"', '"nvidia-h20-96g"')
    assert "the cluster's chips are nvidia-h20-96g" in complaint(capsys, "plan", job)


def test_profile_needs_a_job_or_something_to_import(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no job file named" in complaint(capsys, "profile")
