"""Small settings with numbers one can compute by hand: made-up chips, a tiny Llama, a job."""

from __future__ import annotations

from collections.abc import Sequence

from pluribus.hardware.chip import Chip
from pluribus.hardware.cluster import Cluster
from pluribus.hardware.link import LinkSpec
from pluribus.hardware.pool import Pool
from pluribus.model.model import Model
from pluribus.predict.setting import Setting
from pluribus.spec.job import DataSpec, Deadline, Job, ModelSpec, PlanSpec, TrainSpec
from pluribus.spec.plan import Pipeline, Plan, Stage
from pluribus.spec.profile import Profile

SEQUENCE = 128


def make_chip(
    name: str = "chip", tflops: float = 10, gib: float = 16, precisions: Sequence[str] = ("bf16",)
) -> Chip:
    """A chip whose measured rate is its peak, with 100 GB/s of memory bandwidth."""
    rates = dict.fromkeys(precisions, float(tflops))
    return Chip(
        key=name, vendor="own", name=name, device="cuda", memory_gib=gib,
        memory_gbytes_per_s=100, peak_tflops=rates, measured_tflops=rates, source="a test",
    )  # fmt: skip


def make_pool(
    name: str,
    chip: Chip | None = None,
    nodes: int = 1,
    chips_per_node: int = 1,
    gbps: float = 100,
    price: float = 1.0,
) -> Pool:
    return Pool(
        address=f"here/{name}", chip=chip or make_chip(f"chip-{name}"), nodes=nodes,
        chips_per_node=chips_per_node, nic_gbps=gbps, price_per_chip_hour=price,
    )  # fmt: skip


def make_model(blocks: int = 4, hidden: int = 64, vocab: int = 256, tied: bool = False) -> Model:
    """A Llama with 4 heads, 2 key-value heads and a feed-forward of twice its width."""
    return Model.from_config(
        {
            "model_type": "llama", "hidden_size": hidden, "intermediate_size": 2 * hidden,
            "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": blocks,
            "vocab_size": vocab, "max_position_embeddings": 4096, "tie_word_embeddings": tied,
        }
    )  # fmt: skip


def make_job(
    batch: int = 8,
    *,
    sequence: int = SEQUENCE,
    steps: int = 100,
    precision: str = "bf16",
    sizes: tuple[int, ...] = (1, 2),
    recompute: str = "auto",
    objective: str | Deadline = "time",
) -> Job:
    return Job(
        model=ModelSpec(config="config.json"),
        data=DataSpec(tokens="*.bin"),
        train=TrainSpec(
            sequence_length=sequence, global_batch_tokens=batch * sequence, steps=steps,
            precision=precision,
        ),
        plan=PlanSpec(objective=objective, micro_batch_sizes=sizes, recompute=recompute),
    )  # fmt: skip


def make_setting(
    pools: Sequence[Pool],
    model: Model | None = None,
    job: Job | None = None,
    links: Sequence[LinkSpec] = (),
    profile: Profile | None = None,
) -> Setting:
    cluster = Cluster(tuple(pools), tuple(links))
    return Setting(job or make_job(), model or make_model(), cluster, profile)


def make_pipeline(
    *stages: tuple[str, int, int], micro_batches: int = 4, micro_batch_size: int = 1,
    schedule: str = "1f1b", recompute: str = "none",
) -> Pipeline:  # fmt: skip
    """A pipeline of stages given as (chip address, first layer, end)."""
    return Pipeline(
        stages=tuple(
            Stage(chips=(chip,), layers=(first, end), recompute=recompute)
            for chip, first, end in stages
        ),
        micro_batch_size=micro_batch_size,
        micro_batches=micro_batches,
        schedule=schedule,
    )


def make_plan(setting: Setting, *pipelines: Pipeline) -> Plan:
    return Plan(
        pipelines=pipelines,
        job=setting.job.to_table(),
        job_digest=setting.job.digest,
        cluster=setting.cluster.to_table(),
        cluster_digest=setting.cluster.digest,
        model_config=dict(setting.model.config),
    )
