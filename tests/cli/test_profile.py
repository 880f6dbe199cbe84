"""`pluribus profile --from-aic`: what it writes, and what it says without the package."""

import importlib.util
import json
from dataclasses import replace

import pytest

from pluribus.cli.main import main
from pluribus.spec.profile import OptimizerTime, Profile

from ..small import make_job, make_model, make_pool, make_setting

needs_package = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("aiconfigurator_core", "pyarrow"))),
    reason="aiconfigurator-core is not installed: pluribus[aic]",
)


@pytest.fixture
def job_file(tmp_path):
    from pluribus.hardware.catalogue import find_chip

    pools = [make_pool("a", find_chip("nvidia-a100-80g", where="test")), make_pool("b")]
    setting = make_setting(pools, make_model(), make_job())
    setting.cluster.save(tmp_path / "cluster.toml")
    (tmp_path / "config.json").write_text(json.dumps(dict(setting.model.config)))
    (tmp_path / "job.toml").write_text(
        '[model]\nconfig = "config.json"\n[data]\ntokens = "*.bin"\n[train]\n'
        "sequence_length = 128\nglobal_batch_tokens = 1024\nsteps = 5\n"
    )
    return tmp_path / "job.toml"


@needs_package
def test_tables_are_filled_in_beside_what_was_measured(job_file, capsys) -> None:
    assert main(["profile", "--from-aic", str(job_file)]) == 0
    assert "chip-b" in capsys.readouterr().err  # predicted by formula, and said so
    out = job_file.parent / "profile.json"
    filled = Profile.load(out)
    assert {table.operator for table in filled.tables("nvidia-a100-80g")} >= {"gemm", "attention"}
    update = OptimizerTime(chip="chip-b", seconds_per_parameter=1e-9, spread=0.0)
    replace(filled, optimizers=(update,)).save(out)
    assert main(["profile", "--from-aic", str(job_file)]) == 0
    assert Profile.load(out) == replace(filled, optimizers=(update,))


def test_without_the_package(job_file, capsys, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["profile", "--from-aic", str(job_file)]) == 2
    assert "pluribus[aic]" in capsys.readouterr().err
