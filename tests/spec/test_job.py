from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pluribus.core.errors import ConfigError
from pluribus.spec.job import DataSpec, Deadline, Job, ModelSpec, PlanSpec, TrainSpec

TEXT = """
[model]
config = "models/tiny"
[data]
tokens = "corpus/*.bin"
[train]
sequence_length = 4096
global_batch_tokens = 32768
steps = 10
"""


def train(**changes: Any) -> TrainSpec:
    given = {"sequence_length": 100, "global_batch_tokens": 800, "steps": 5}
    given = {key: value for key, value in {**given, **changes}.items() if value is not None}
    return TrainSpec(**given)


def mistake(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        train(**changes)
    return str(caught.value)


def test_a_job_file(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(TEXT)
    job = Job.load(tmp_path / "job.toml")
    assert job.train.global_batch == 8
    assert job.train.num_steps == 10
    assert job.plan.objective == "time"
    assert job.resolve(job.model.config) == tmp_path / "models/tiny"
    assert job.resolve("/abs/olute") == Path("/abs/olute")


def test_a_mistake_names_file_table_and_key(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(TEXT.replace("steps = 10", "stepz = 10"))
    with pytest.raises(ConfigError) as caught:
        Job.load(tmp_path / "job.toml")
    assert f"{tmp_path}/job.toml [train]: unknown key 'stepz'" in str(caught.value)
    (tmp_path / "job.toml").write_text(TEXT.replace("tokens =", 'text = "a"\ntokens ='))
    with pytest.raises(ConfigError, match=r"job\.toml \[data\]: needs exactly one of 'tokens'"):
        Job.load(tmp_path / "job.toml")


def test_the_folder_of_a_job_is_not_the_users_to_set() -> None:
    with pytest.raises(ConfigError, match="unknown key 'directory'"):
        Job.from_table({"directory": "/"}, file="job.toml")


def test_a_batch_between_two_multiples_offers_both() -> None:
    assert "Write global_batch_tokens = 800 or 900." in mistake(global_batch_tokens=850)


def test_a_batch_below_one_sequence_offers_one() -> None:
    text = mistake(global_batch_tokens=99)
    assert "99 is not a multiple of sequence_length 100" in text
    assert "Write global_batch_tokens = 100." in text


def test_steps_or_tokens_but_not_both() -> None:
    assert "exactly one of 'steps' and 'tokens'" in mistake(tokens=8000)
    assert "exactly one of 'steps' and 'tokens'" in mistake(steps=None)
    assert train(steps=None, tokens=8799).num_steps == 10


def test_a_job_of_no_steps() -> None:
    assert "stops before the first step" in mistake(steps=0)
    assert "at least one step of 800 tokens" in mistake(steps=None, tokens=799)


@pytest.mark.parametrize(
    "changes",
    [
        {"sequence_length": 0}, {"global_batch_tokens": -800}, {"learning_rate": 0.0},
        {"learning_rate": float("nan")}, {"learning_rate": float("inf")}, {"weight_decay": -0.1},
        {"weight_decay": float("nan")}, {"clip_gradient_norm": float("inf")}, {"seed": -1},
        {"warmup_steps": -1}, {"adam_beta1": 1.0}, {"adam_beta2": -0.1},
        {"adam_beta2": float("nan")},
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_named(changes: dict) -> None:
    (name,) = changes
    assert name in mistake(**changes)


@pytest.mark.parametrize("given", [{}, {"tokens": "a", "text": "b"}])
def test_data_is_one_of_two(given: dict) -> None:
    with pytest.raises(ConfigError, match="exactly one of 'tokens' and 'text'"):
        DataSpec(**given)


@pytest.mark.parametrize("sizes", [(), (0,), (2, -1)])
def test_micro_batch_sizes_start_at_one(sizes: tuple) -> None:
    with pytest.raises(ConfigError, match="micro_batch_sizes is"):
        PlanSpec(micro_batch_sizes=sizes)


def test_a_deadline(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(TEXT + '[plan]\nobjective = { deadline = "1.5h" }\n')
    job = Job.load(tmp_path / "job.toml")
    assert isinstance(job.plan.objective, Deadline)
    assert job.plan.objective.seconds == 5400
    (tmp_path / "job.toml").write_text(TEXT + '[plan]\nobjective = { deadline = "soon" }\n')
    with pytest.raises(ConfigError, match=r"\[plan\.objective\]: 'soon' is not a duration"):
        Job.load(tmp_path / "job.toml")


def test_the_digest_knows_what_counts() -> None:
    def job(directory: str = ".", **changes: Any) -> Job:
        return Job(
            model=ModelSpec(config="c"), data=DataSpec(tokens="t"), train=train(**changes),
            directory=directory,
        )  # fmt: skip

    assert job().digest == job(directory="/elsewhere").digest
    assert job().digest != job(seed=1).digest
    # Equal to a dataclass, and what a plan file turns one into.
    assert job(weight_decay=0).digest == job(weight_decay=0.0).digest
