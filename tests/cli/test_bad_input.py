"""What a user's mistake looks like: one message, exit code 2, no traceback, nothing lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pluribus.cli.main import main
from pluribus.hardware.cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 100,
}

JOB = """
[model]
config = "config.json"
[data]
tokens = "*.bin"
[train]
sequence_length = 32
global_batch_tokens = 256
steps = 10
precision = "fp32"
"""

CLUSTER = """
[[pool]]
address = "here/a"
nodes = 1
chips_per_node = 1
nic_gbps = 10
chip = {key = "small", device = "cpu", memory_gib = 1.0, memory_gbytes_per_s = 10.0, peak_tflops = {fp32 = 0.05}}
"""  # noqa: E501


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A job that plans, for one thing at a time to be broken in."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "cluster.toml").write_text(CLUSTER)
    return tmp_path


def complaint(folder: Path, capsys: pytest.CaptureFixture[str], command: str = "plan") -> str:
    """The message of a command that must fail."""
    name = {"plan": "job.toml", "train": "plan.json", "predict": "plan.json", "report": ""}[command]
    assert main([command, str(folder / name)]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err.replace("\n", " ")


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_the_unbroken_job_plans(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(folder / "job.toml"), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["pipelines"][0]["stages"][0]["layers"] == [0, 6]
    assert plan == json.loads((folder / "plan.json").read_text())


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("job.toml", "steps = 10", "stpes = 10", ["job.toml [train]", "'stpes'", "'steps'?"]),
        ("job.toml", "steps = 10", 'steps = "10"', ["[train.steps]", "'10'", "whole number"]),
        ("job.toml", '"fp32"', '"fp23"', ["[train.precision]", "'fp23'", "'fp32'?"]),
        ("job.toml", "= 256", "= 250", ["250", "multiple", "sequence_length 32", "224 or 256"]),
        ("job.toml", "[data]", "[dta]", ["unknown key 'dta'", "'data'?"]),
        ("job.toml", "steps = 10", "steps = ", ["job.toml", "not valid TOML", "line 9"]),
        ("job.toml", '"fp32"', '"fp16"', ["no chip of the cluster", "small", "fp16"]),
        ("job.toml", '"config.json"', '"other.json"', ["other.json", "no such file"]),
        ("cluster.toml", "nodes", "noes", ["cluster.toml", "'noes'", "'nodes'?"]),
        ("cluster.toml", "nodes = 1", "nodes = 0", ["cluster.toml [pool[0]]", "0"]),
        ("cluster.toml", '"here/a"', '"here"', ["'here'", "site/pool"]),
        ("config.json", '"llama"', '"llamma"', ["config.json", "model_type", "'llamma'", "llama"]),
        ("config.json", '"hidden_size": 64', '"hidden_size": 63', ["hidden_size", "63", "4"]),
        ("config.json", "{", "", ["config.json", "not valid JSON"]),
    ],
)
def test_a_mistake_in_a_file_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], file: str, old: str, new: str,
    words: list[str],
) -> None:  # fmt: skip
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))
    message = complaint(folder, capsys)
    for word in words:
        assert word in message
    assert not (folder / "plan.json").exists()


def test_an_unknown_catalogue_chip_offers_the_nearest(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (folder / "cluster.toml").read_text().splitlines()
    lines[-1] = 'chip = "nvidia-a800-80"'
    (folder / "cluster.toml").write_text("\n".join(lines))
    message = complaint(folder, capsys)
    assert "'nvidia-a800-80'" in message
    assert "'nvidia-a800-80g'?" in message


def test_a_model_that_does_not_fit_says_by_how_much_and_where(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(folder / "config.json", '"vocab_size": 100', '"vocab_size": 4000000')
    message = complaint(folder, capsys)
    assert "does not fit" in message
    # 2 × 4,000,000 × 64 parameters of 16 bytes are 7.63 GiB, the logits of 32 tokens and their
    # gradient 0.95, the process 0.4; the chip has 1 GiB, of which 0.95 count.
    lacking = float(message.split("lacks ")[1].split(" GiB")[0])
    assert lacking == pytest.approx(7.63 + 0.95 + 0.4 - 0.95, abs=0.05)
    assert "each small of here/a" in message


def test_an_impossible_deadline_says_what_the_fastest_needs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = folder / "job.toml"
    job.write_text(job.read_text() + '[plan]\nobjective = {deadline = "0.001s"}\n')
    message = complaint(folder, capsys)
    assert "no plan ends within 0.001s" in message
    assert "fastest needs" in message


def test_a_profile_of_another_cluster_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "profile.json").write_text('{"cluster_digest": "0123", "version": 1}')
    message = complaint(folder, capsys)
    assert "profile.json" in message
    assert "'0123'" in message
    assert "pluribus profile" in message


def test_a_plan_of_another_version_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(folder / "job.toml")]) == 0
    edit(folder / "plan.json", '"version": 1', '"version": 99')
    message = complaint(folder, capsys, "train")
    assert "plan.json" in message
    assert "version 99" in message


@pytest.mark.parametrize("command", ["train", "predict"])
def test_a_plan_edited_by_hand_is_read_against_the_laws(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert main(["plan", str(folder / "job.toml")]) == 0
    capsys.readouterr()
    plan = json.loads((folder / "plan.json").read_text())
    plan["pipelines"][0]["stages"][0]["layers"] = [0, 5]
    (folder / "plan.json").write_text(json.dumps(plan))
    message = complaint(folder, capsys, command)
    assert (
        "plan.json: the plan is not valid: pipelines[0]: layers [5, 6] are in no stage" in message
    )
    assert "plan again: pluribus plan job.toml" in message


def test_a_plan_that_does_not_fit_can_be_predicted_but_not_trained(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(folder / "job.toml", "sequence_length = 32", "sequence_length = 16")
    assert main(["plan", str(folder / "job.toml")]) == 0
    plan = json.loads((folder / "plan.json").read_text())
    pipeline = plan["pipelines"][0]
    sequences = pipeline["micro_batch_size"] * pipeline["micro_batches"]
    plan["cluster"]["pool"][0]["chip"]["memory_gib"] = 0.41
    cluster = Cluster.from_table(plan["cluster"], file="plan.json")
    plan["cluster_digest"] = cluster.digest
    pipeline.update(micro_batch_size=sequences, micro_batches=1)
    (folder / "plan.json").write_text(json.dumps(plan))
    capsys.readouterr()
    assert main(["predict", str(folder / "plan.json")]) == 0
    assert "does not fit: pipelines[0].stages[0]: needs" in capsys.readouterr().out
    assert "GiB on each small, which has 0.4 GiB" in complaint(folder, capsys, "train")


@pytest.mark.parametrize("options", [["--trial", "0"], ["--trial", "2", "--trial-steps", "0"]])
def test_a_trial_of_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    assert main(["plan", str(folder / "job.toml"), *options]) == 2
    assert "Give whole numbers from 1." in capsys.readouterr().err


def test_a_front_needs_prices(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    front = str(folder / "front.html")
    assert main(["plan", str(folder / "job.toml"), "--pareto", front]) == 2
    assert "the cluster has no prices" in capsys.readouterr().err


def test_a_plan_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "plan.json: no such file" in complaint(folder, capsys, "train")


def test_a_model_that_cannot_be_trained_yet_says_which_can(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpt2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100}
    (folder / "config.json").write_text(json.dumps(gpt2))
    assert main(["plan", str(folder / "job.toml")]) == 0
    message = complaint(folder, capsys, "train")
    assert "gpt2" in message
    assert "llama" in message


def test_a_stage_of_several_chips_is_planned_but_not_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(folder / "cluster.toml", "chips_per_node = 1", "chips_per_node = 4")
    edit(folder / "job.toml", "global_batch_tokens = 256", "global_batch_tokens = 32")
    assert main(["plan", str(folder / "job.toml")]) == 0
    plan = json.loads((folder / "plan.json").read_text())
    plan["pipelines"][0]["stages"] = [
        {"chips": [f"here/a/0/{i}" for i in range(4)], "layers": [0, 6], "tensor_parallel": 4}
    ]
    (folder / "plan.json").write_text(json.dumps(plan))
    message = complaint(folder, capsys, "train")
    assert "has 4 chips" in message
    assert "runs stages of one chip" in message


def test_no_data_is_named_before_any_rank_starts(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(folder / "job.toml")]) == 0
    message = complaint(folder, capsys, "train")
    assert "*.bin" in message


def test_a_report_of_a_folder_without_a_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "holds no plan.json" in complaint(folder, capsys, "report")


@pytest.mark.parametrize("package", ["torch", "tokenizers", "safetensors"])
def test_training_without_its_packages_says_what_to_install(folder: Path, package: str) -> None:
    assert main(["plan", str(folder / "job.toml")]) == 0
    program = (
        f"import sys; sys.modules[{package!r}] = None; from pluribus.cli.main import main; "
        f"sys.exit(main(['train', {str(folder / 'plan.json')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 2
    assert f"needs {package}" in done.stderr
    assert "pluribus[train]" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demo_does_not_remove_what_is_not_its_own(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--folder", str(folder)]) == 2
    message = capsys.readouterr().err
    assert "is not empty and not an earlier demo" in message
    assert str(folder) in message
    assert (folder / "config.json").exists()
