"""The reader of aiconfigurator's measurements, on files of its layout and on the real ones."""

import importlib.util
from dataclasses import replace

import pytest

from pluribus.core.errors import MeasureError
from pluribus.hardware.catalogue import find_chip
from pluribus.hardware.cluster import Cluster
from pluribus.measure.aic import aic_folder, aic_tables, fill_profile
from pluribus.predict.compute import layer_time
from pluribus.spec.operator_table import OperatorTable
from pluribus.spec.profile import Profile

from ..small import make_chip, make_job, make_model, make_pool

PARQUET = importlib.util.find_spec("pyarrow") is not None
PACKAGE = PARQUET and importlib.util.find_spec("aiconfigurator_core") is not None
needs_parquet = pytest.mark.skipif(not PARQUET, reason="pyarrow is not installed: pluribus[aic]")
needs_package = pytest.mark.skipif(
    not PACKAGE, reason="aiconfigurator-core is not installed: pluribus[aic]"
)


def write(folder, place: str, *rows: dict) -> None:
    import pyarrow
    import pyarrow.parquet

    path = folder / f"{place}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


GEMM = {"gemm_dtype": "bfloat16", "m": 8, "n": 16, "k": 32, "latency": 0.5}
DECODE = {
    "kv_cache_dtype": "fp8", "batch_size": 4, "num_heads": 8, "num_key_value_heads": 2,
    "head_dim": 64, "isl": 1, "step": 127, "window_size": 0, "latency": 0.25,
}  # fmt: skip
EXPERTS = {
    "moe_dtype": "bfloat16", "num_tokens": 64, "hidden_size": 128, "inter_size": 512, "topk": 2,
    "num_experts": 8, "moe_tp_size": 2, "moe_ep_size": 4, "latency": 1.0,
}  # fmt: skip


@needs_parquet
def test_rows_in_their_layout_become_tables_in_ours(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("pluribus.measure.aic._version", lambda: "0")
    chip = tmp_path / "a100_sxm"
    write(chip, "gemm/vllm/0.9.0/gemm_perf", {**GEMM, "latency": 9.0})
    write(chip, "gemm/vllm/0.14.0/gemm_perf",  # newer than 0.9.0
          GEMM, {**GEMM, "latency": 0.4}, {**GEMM, "gemm_dtype": "int4_wo"})  # fmt: skip
    write(chip, "gemm/sglang/1.0.0/gemm_perf", {**GEMM, "latency": 0.1})  # vLLM comes first
    write(chip, "attention/sglang/1.0.0/generation_attention_perf",
          DECODE, {**DECODE, "window_size": 128, "latency": 0.1})  # fmt: skip
    write(chip, "moe/vllm/0.14.0/moe_perf", EXPERTS)
    write(chip, "comm/nccl/2.27.3/nccl_perf",
          {"nccl_dtype": "half", "op_name": "alltoall", "num_gpus": 8, "message_size": 1024,
           "latency": 0.02})  # fmt: skip
    tables = {t.operator: t for t in aic_tables("nvidia-a100-80g", data=tmp_path)}
    assert tables["gemm"].rows == {(8, 16, 32): 4e-4}
    assert "vllm 0.14.0" in tables["gemm"].source
    assert tables["decode_attention"].rows == {(4, 8, 2, 64, 128): 2.5e-4}
    assert tables["decode_attention"].precision == "fp8"
    assert tables["experts"].rows == {(32, 128, 256, 2): 1e-3}
    assert tables["all_to_all"].rows == {(8, 2048): 2e-5}
    assert "all_to_all" not in {t.operator for t in aic_tables("nvidia-a800-80g", data=tmp_path)}
    assert aic_tables("a-chip-it-does-not-have", data=tmp_path) == ()


@needs_package
def test_the_package_has_the_chips_it_is_asked_for() -> None:
    for chip, side in (("nvidia-a100-80g", 4096), ("intel-arc-pro-b60", 4096)):
        tables = {(t.operator, t.precision): t for t in aic_tables(chip)}
        seconds = tables["gemm", "bf16"].rows[side, side, side]
        assert 20e12 < 2 * side**3 / seconds < 312e12
        # Twice the data takes longer, by no more than four times.
        small, large = (tables["all_reduce", ""].rows[2, size] for size in (2**26, 2**27))
        assert small < large < 4 * small


def test_without_the_package_the_message_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MeasureError, match="aiconfigurator-core and pyarrow") as error:
        aic_folder()
    assert "pluribus[aic]" in error.value.do


@needs_package
def test_a_filled_profile_predicts_as_the_whole_tables_do() -> None:
    model = make_model(blocks=2, hidden=1024, vocab=4096)
    known, other = find_chip("nvidia-a100-80g", where="test"), make_chip("own")
    cluster = Cluster((make_pool("a", known, chips_per_node=2), make_pool("b", other)))
    before = Profile(
        cluster_digest="d",
        operators=(OperatorTable.of_rows("own", "gemm", "bf16", [((1, 1, 1), 1.0)], source="own"),),
    )
    filled, unknown = fill_profile(before, cluster, make_job(sequence=512), model)
    assert unknown == ("own",)
    assert filled.tables("own") == before.operators
    rows = sum(len(table.seconds) for table in filled.tables(known.key))
    assert 100 < rows < 5000
    whole = replace(filled, operators=aic_tables(known.key))
    for layer in model.layers:
        for size in (1, 2):
            few, full = (
                layer_time(layer, cluster.pools[0], size, 512, 2, "bf16", p)
                for p in (filled, whole)
            )  # fmt: skip
            assert few.forward == pytest.approx(full.forward, rel=0.02)
            assert few.backward == pytest.approx(full.backward, rel=0.02)
    again, _ = fill_profile(filled, cluster, make_job(sequence=512), model)
    assert again == filled
