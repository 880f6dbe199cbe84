"""Whole runs: the same weights whatever the plan, going on from a checkpoint, and ending badly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pluribus.core.errors import CheckpointError, ConfigError, DataError, PlanError, RankError
from pluribus.spec.plan import Plan
from pluribus.store.checkpoint import load_residuals, load_tensors
from pluribus.store.manifest import latest, verify
from pluribus.train.run import RunOptions, RunResult, train

from .tiny import config, make_plan, write_job

ONE = [{"ends": [6], "count": 4}]
TWO_STAGES = [{"ends": [2, 6], "count": 4}]
TWO_PIPELINES = [{"ends": [6], "count": 3}, {"ends": [6], "count": 1}]


def weights(result: RunResult) -> dict[str, torch.Tensor]:
    assert result.checkpoint is not None
    index = load_file(result.checkpoint / "model.safetensors") if (
        result.checkpoint / "model.safetensors"
    ).exists() else json.loads(
        (result.checkpoint / "model.safetensors.index.json").read_text()
    )["weight_map"]  # fmt: skip
    return load_tensors(result.checkpoint, list(index))


def assert_same_weights(a: RunResult, b: RunResult) -> None:
    ours, theirs = weights(a), weights(b)
    for name, tensor in ours.items():
        # Adam divides by the square root of the second moment, which magnifies rounding.
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("pipelines", [TWO_STAGES, TWO_PIPELINES], ids=["layers", "batches"])
def test_three_steps_end_in_the_same_weights_as_one_chip(pipelines, tmp_path: Path) -> None:
    job = write_job(tmp_path, sequences=4)
    alone = train(make_plan(job, ONE), tmp_path / "alone")
    mixed = train(make_plan(job, pipelines), tmp_path / "mixed")
    assert [s.loss for s in mixed.steps] == pytest.approx([s.loss for s in alone.steps], rel=1e-5)
    assert_same_weights(alone, mixed)


def test_a_run_goes_on_under_another_plan_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    job = write_job(tmp_path, sequences=4)
    straight = train(make_plan(job, ONE), tmp_path / "straight")
    first = train(make_plan(job, TWO_STAGES), tmp_path / "run", options=RunOptions(steps=2))
    assert first.checkpoint is not None
    assert first.checkpoint.name == "step-00000002"
    second = train(make_plan(job, TWO_PIPELINES), tmp_path / "run")
    assert [step.step for step in second.steps] == [3]
    assert_same_weights(straight, second)
    with pytest.raises(CheckpointError, match="has made all its 3 steps"):
        train(make_plan(job, ONE), tmp_path / "run")


def test_residuals_of_the_slow_hop_are_part_of_the_checkpoint(tmp_path: Path) -> None:
    """Stopped and gone on, a run whose sums cross in 8 bits ends in the very same weights."""
    job = write_job(tmp_path, sequences=4)
    plan = make_plan(job, TWO_PIPELINES)
    coded = RunOptions(backend="pluribus", codec="int8")
    straight = train(plan, tmp_path / "straight", options=coded)
    train(plan, tmp_path / "run", options=replace(coded, steps=2))
    held = latest(tmp_path / "run" / "checkpoints")
    assert held is not None
    verify(held, deep=True)
    for rank in range(2):
        residuals = load_residuals(held, rank)
        assert residuals
        assert all(tensor.abs().max() > 0 for tensor in residuals.values())
    second = train(plan, tmp_path / "run", options=coded)
    ours, theirs = weights(straight), weights(second)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    plain = train(plan, tmp_path / "plain")
    assert any(not torch.equal(ours[name], tensor) for name, tensor in weights(plain).items())
    with pytest.raises(ConfigError, match="gloo has no codec"):
        RunOptions(codec="int8", backend="gloo")


def test_a_dead_rank_is_named_and_the_last_checkpoint_is_whole(tmp_path: Path) -> None:
    job = write_job(tmp_path, sequences=4, steps=10_000, checkpoint_every=1)
    plan = make_plan(job, TWO_STAGES)
    pids: dict[int, int] = {}

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "ready":
            pids[event["rank"]] = event["pid"]
        if event["event"] == "checkpoint" and event["step"] == 2:
            os.kill(pids[1], signal.SIGKILL)

    with pytest.raises(RankError) as caught:
        train(plan, tmp_path / "run", listener=listen)
    message = str(caught.value)
    assert "rank 1 (here/p1/0/0) was killed by SIGKILL" in message
    newest = latest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert str(newest) in message
    verify(newest, deep=True)
    for pid in pids.values():  # nobody is left behind
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_ctrl_c_leaves_a_checkpoint_that_the_same_command_goes_on_from(tmp_path: Path) -> None:
    job = write_job(tmp_path, sequences=4, steps=100_000)
    make_plan(job, TWO_PIPELINES).save(tmp_path / "plan.json")
    command = [sys.executable, "-m", "pluribus.cli.main", "train", "plan.json", "--folder", "run"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    events = tmp_path / "run" / "events.jsonl"
    while not (events.exists() and '"event": "step"' in events.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "stopped on request" in out
    newest = latest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    verify(newest, deep=True)
    done = subprocess.run(
        [*command, "--steps", "1", "--json"], cwd=tmp_path, env=environment, text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    result = json.loads(done.stdout)
    assert result["steps"] == 1
    assert Path(result["checkpoint"]).name > newest.name


def test_starting_from_a_hugging_face_folder_takes_its_weights(tmp_path: Path) -> None:
    job = write_job(tmp_path, sequences=4)
    first = train(make_plan(job, ONE), tmp_path / "first", options=RunOptions(steps=1))
    assert first.checkpoint is not None
    table = {**job.to_table(), "model": {"config": str(first.checkpoint)}}
    again = type(job).from_table(table, file="job.toml", directory=str(tmp_path))
    second = train(make_plan(again, TWO_STAGES), tmp_path / "second", options=RunOptions(steps=1))
    fresh = first.steps[0].loss
    assert second.steps[0].loss < fresh - 0.01, "one step on the same batch lowers its loss"


def _broken(plan: Plan, tmp_path: Path) -> str:
    """The message of a plan that cannot be run."""
    with pytest.raises((PlanError, DataError)) as caught:
        train(plan, tmp_path / "run")
    return str(caught.value)


def test_a_truncated_token_shard_is_named_before_any_rank_starts(tmp_path: Path) -> None:
    job = write_job(tmp_path, sequences=4)
    plan = make_plan(job, ONE)
    shard = tmp_path / "tokens.bin"
    shard.write_bytes(shard.read_bytes()[:-100])
    message = _broken(plan, tmp_path)
    assert "tokens.bin" in message
    assert "3950" in message
    assert "4000" in message


def test_tokens_of_a_larger_vocabulary_are_refused(tmp_path: Path) -> None:
    job = write_job(tmp_path, sequences=4)
    (tmp_path / "config.json").write_text(json.dumps({**config(), "vocab_size": 50}))
    assert "vocabulary of 97, the model has 50" in _broken(make_plan(job, ONE), tmp_path)


def test_a_plan_changed_by_hand_is_refused(tmp_path: Path) -> None:
    plan = make_plan(write_job(tmp_path, sequences=4), ONE)
    plan.job["train"]["learning_rate"] = 5.0
    message = _broken(plan, tmp_path)
    assert "job was changed after planning" in message
    assert "plan again" in message


def test_a_schedule_that_is_only_predicted_is_refused(tmp_path: Path) -> None:
    plan = make_plan(write_job(tmp_path, sequences=4), TWO_STAGES)
    pipeline = replace(plan.pipelines[0], schedule="zb-h1")
    message = _broken(replace(plan, pipelines=(pipeline,)), tmp_path)
    assert "pipeline 0 has the schedule zb-h1; this version predicts it but runs" in message
