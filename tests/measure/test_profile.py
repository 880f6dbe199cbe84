"""profile with real ranks on the cores of the machine the tests run on."""

import dataclasses
import math
import os

import pytest

from pluribus.core.errors import MeasureError, RankError
from pluribus.hardware.chip import Chip
from pluribus.hardware.cluster import Cluster
from pluribus.hardware.pool import Pool
from pluribus.measure.host import look_at_host
from pluribus.measure.levels import Level, capped_levels
from pluribus.measure.profile import profile
from pluribus.model.model import Model
from pluribus.predict.collectives import ALL_REDUCE, POINT_TO_POINT
from pluribus.spec.job import Job

CONFIG = {
    "model_type": "mistral", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "sliding_window": 64, "tie_word_embeddings": True,
}  # fmt: skip
MODEL = Model.from_config(CONFIG)


def chip(key: str, *dtypes: str, device: str = "cpu") -> Chip:
    return Chip(
        key=key, vendor="test", name=key, device=device, memory_gib=1, memory_gbytes_per_s=10,
        peak_tflops=dict.fromkeys(dtypes or ("fp32",), 0.01), source="test",
    )  # fmt: skip


def pool(address: str, of: Chip, position: int, **given: object) -> Pool:
    cores = look_at_host().cores
    fields = {"nodes": 1, "chips_per_node": 1, "nic_gbps": 10,
              "cores": (cores[position % len(cores)],), **given}  # fmt: skip
    return Pool(address=address, chip=of, **fields)


def job(**train: object) -> Job:
    table = {
        "model": {"config": "config.json"},
        "data": {"text": "*.txt"},
        "train": {"sequence_length": 64, "global_batch_tokens": 1024, "steps": 1,
                  "precision": "fp32", **train},
        "plan": {"micro_batch_sizes": [1, 8]},
    }  # fmt: skip
    return Job.from_table(table, file="job.toml")


def test_every_layer_micro_batch_and_link_is_timed(tmp_path):
    (capped,) = capped_levels(Level("avx2"), look_at_host().vendor)
    cluster = Cluster(
        (
            pool("here/a", chip("fast"), 0),
            pool("here/b", chip("slow"), 1, environment=dict(capped.environment)),
        )
    )
    shares = []
    measured = profile(
        cluster, job(), MODEL, progress=lambda _, share: shares.append(share), repeats=3,
        log_folder=tmp_path,
    )  # fmt: skip
    assert measured.cluster_digest == cluster.digest
    signatures = {layer.signature for layer in MODEL.layers}
    assert len(signatures) == 3
    assert len(measured.layers) == 2 * len(signatures) * 2
    for key in ("fast", "slow"):
        for layer in MODEL.layers:
            one, eight = (measured.layer(key, layer.signature, n, 64, 1, "fp32") for n in (1, 8))
            for time in (one, eight):
                assert all(0 < t < math.inf for t in (time.forward, time.backward))
                assert time.spread >= 0
            if layer.kind != "embedding":
                assert eight.forward + eight.backward > one.forward + one.backward
        assert measured.optimizer(key).seconds_per_parameter > 0
    for operation in (POINT_TO_POINT, ALL_REDUCE):
        link = measured.link("here/b", "here/a", operation)
        assert link.latency_s >= 0
        assert 0 < link.bytes_per_s < math.inf
    assert len(measured.links) == 2
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    measured.save(tmp_path / "profile.json")
    assert type(measured).load(tmp_path / "profile.json") == measured


def test_pools_of_one_chip_kind_give_one_time_and_the_wrong_precision_none(tmp_path):
    same = chip("same", "fp32")
    cluster = Cluster(
        (
            pool("here/a", same, 0),
            pool("here/b", same, 1),
            pool("here/c", chip("other", "bf16"), 0),
        )
    )
    measured = profile(cluster, job(), MODEL, micro_batch_sizes=[2], repeats=1, log_folder=tmp_path)
    assert {(time.chip, time.micro_batch) for time in measured.layers} == {("same", 2)}
    assert len(measured.layers) == 3
    assert len(measured.optimizers) == 1
    assert {link.between for link in measured.links} == {("here/a", "here/b")}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"nodes": 2}, "has 2 nodes"),
        ({"cores": (0, os.cpu_count() + 7)}, f"on cores [{os.cpu_count() + 7}]"),
        ({"chip": chip("far", device="mlu")}, "PyTorch sees 0 here"),
    ],
)
def test_a_pool_that_is_elsewhere_is_named(changes, says, tmp_path):
    away = dataclasses.replace(pool("there/x", chip("far"), 0), **changes)
    with pytest.raises(MeasureError) as error:
        profile(Cluster((away,)), job(), MODEL, log_folder=tmp_path)
    assert "there/x" in error.value.what
    assert says in error.value.what
    assert "on a machine that has it" in error.value.do


def test_no_chip_of_the_precision(tmp_path):
    cluster = Cluster((pool("here/a", chip("fast"), 0),))
    with pytest.raises(MeasureError, match="no chip of the cluster supports bf16"):
        profile(cluster, job(precision="bf16"), MODEL, log_folder=tmp_path)


def test_what_a_rank_cannot_do_reaches_the_user_as_one_message(tmp_path):
    cluster = Cluster((pool("here/a", chip("fast"), 0),))
    with pytest.raises(RankError, match="longer than the sliding window of 64"):
        profile(
            cluster, job(sequence_length=128, global_batch_tokens=128), MODEL, log_folder=tmp_path
        )


def test_operators_are_timed_where_asked_for(tmp_path):
    one = Cluster((pool("here/a", chip("slow"), 0),))
    sizes = {"micro_batch_sizes": [2], "repeats": 1}
    measured = profile(one, job(), MODEL, operator_seconds=0.5, log_folder=tmp_path, **sizes)
    tables = {table.operator: table for table in measured.tables("slow")}
    assert set(tables) == {"gemm", "attention", "decode_attention", "elementwise"}
    assert tables["attention"].rows.keys() == {(2, 4, 2, 16, 64)}
    assert (128, 64, 64) in tables["gemm"].rows  # the output projection of two sequences
    assert all(table.precision == "fp32" and table.spread >= 0 for table in tables.values())
