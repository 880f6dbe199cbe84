"""Planner, part b: seconds and proven gap by kinds of chips, cards and model.

    .venv/bin/python bench/planner.py scaling [--kinds 2 3 6] [--cards 64 256 1000 10000] [--json F]

Kinds come from the catalogue, equally many cards of each (whole nodes of eight, at least one), 400
Gbit/s per card; the global batch is four sequences of 4,096 tokens per card. Models: 80 dense
layers of a 70B Llama, and 61 layers (3 dense, 58 of experts) in the manner of DeepSeek-V3 but with
fewer and smaller experts, so that it fits the smaller clusters.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pluribus.core.errors import PlanError
from pluribus.core.io import write_json
from pluribus.hardware.catalogue import find_chip
from pluribus.hardware.cluster import Cluster
from pluribus.hardware.pool import Pool
from pluribus.model.model import Model
from pluribus.plan.search import Search
from pluribus.predict.setting import Setting
from pluribus.spec.job import DataSpec, Job, ModelSpec, PlanSpec, TrainSpec

KINDS = (
    "nvidia-a800-80g", "ascend-910b3", "nvidia-h20-96g", "nvidia-h100-80g", "amd-mi300x",
    "nvidia-a100-40g",
)  # fmt: skip
SEQUENCE = 4096

DENSE = {
    "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672,
    "num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 80,
    "vocab_size": 32000, "max_position_embeddings": SEQUENCE, "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {
    "model_type": "deepseek_v3", "hidden_size": 2048, "intermediate_size": 8192,
    "moe_intermediate_size": 1024, "num_attention_heads": 32, "num_key_value_heads": 32,
    "num_hidden_layers": 61, "first_k_dense_replace": 3, "n_routed_experts": 64,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_layer_freq": 1, "q_lora_rank": 768,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "vocab_size": 129280, "max_position_embeddings": SEQUENCE, "tie_word_embeddings": False,
}  # fmt: skip
MODELS = {"80 dense": DENSE, "61 experts": EXPERTS}


def setting(kinds: int, cards: int, model: dict) -> Setting:
    nodes = max(cards // kinds // 8, 1)
    pools = tuple(
        Pool(address=f"site/{key}", chip=find_chip(key, where="bench"), nodes=nodes,
             chips_per_node=8, nic_gbps=400, price_per_chip_hour=1.0)
        for key in KINDS[:kinds]
    )  # fmt: skip
    batch = 4 * max(cards, 128)
    job = Job(
        model=ModelSpec(config="config.json"),
        data=DataSpec(tokens="*.bin"),
        train=TrainSpec(sequence_length=SEQUENCE, global_batch_tokens=batch * SEQUENCE, steps=1000),
        plan=PlanSpec(micro_batch_sizes=(1, 2, 4)),
    )
    return Setting(job, Model.from_config(model), Cluster(pools))


def measure(kinds: int, cards: int, name: str) -> dict:
    where = setting(kinds, cards, MODELS[name])
    search = Search(where)
    wall, cpu = time.perf_counter(), time.process_time()
    row = {"model": name, "kinds": kinds, "cards": where.cluster.num_chips}
    try:
        plan = search.best()
    except PlanError as error:
        return {**row, "error": error.what}
    assert plan.prediction is not None
    return {
        **row,
        "cpu_seconds": time.process_time() - cpu,
        "wall_seconds": time.perf_counter() - wall,
        "step_seconds": plan.prediction.step_seconds.mid,
        "bound_seconds": plan.lower_bound_seconds,
        "gap": plan.gap,
        "columns": len(search.generator.columns),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", type=int, nargs="+", default=[2, 3, 6])
    parser.add_argument("--cards", type=int, nargs="+", default=[64, 256, 1000, 10000])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args(argv)
    console, rows = Console(width=110), []
    table = Table(title="Planner: seconds and proven gap")
    for word in ("model", "kinds", "cards", "CPU s", "wall s", "step s", "bound s", "gap"):
        table.add_column(word, justify="right")
    for name in arguments.models:
        for kinds in arguments.kinds:
            for cards in arguments.cards:
                row = measure(kinds, cards, name)
                rows.append(row)
                print(json.dumps(row), flush=True)
                if "error" in row:
                    table.add_row(name, str(kinds), str(row["cards"]), row["error"])
                    continue
                table.add_row(
                    name, str(kinds), f"{row['cards']:,}", f"{row['cpu_seconds']:.1f}",
                    f"{row['wall_seconds']:.1f}", f"{row['step_seconds']:.2f}",
                    f"{row['bound_seconds']:.2f}", f"{row['gap']:.1%}",
                )  # fmt: skip
    console.print(table)
    if arguments.json:
        write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
