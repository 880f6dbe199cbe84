"""What planning for unlike chips is worth: our plan against four other ways to plan.

    .venv/bin/python bench/planner_value.py [--only NAME]

Six mixed clusters; every plan is placed and timed by the same predictor. A ratio is the other
planner's step ÷ ours; "–" means that it finds no plan that fits. Chips and links are from the
catalogue and from published node designs; nothing is measured here.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rivals import best_of, greedy, islands, repeated_shape, separate

from pluribus.hardware.catalogue import find_chip
from pluribus.hardware.cluster import Cluster
from pluribus.hardware.pool import Pool
from pluribus.model.model import Model
from pluribus.plan.search import Search
from pluribus.predict.setting import Setting
from pluribus.spec.job import DataSpec, Job, ModelSpec, PlanSpec, TrainSpec

EXAMPLE = Path(__file__).resolve().parent.parent / "examples/three-kinds/llama-70b/config.json"

LLAMA_7B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000,
    "num_attention_heads": 32, "num_hidden_layers": 32, "max_position_embeddings": 4096,
}  # fmt: skip
LLAMA_3B = {
    "model_type": "llama", "hidden_size": 3072, "intermediate_size": 8192, "vocab_size": 128256,
    "num_attention_heads": 24, "num_key_value_heads": 8, "num_hidden_layers": 28,
    "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
MIXTRAL = {
    "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 32000,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32,
    "num_local_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": 32768,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A cluster as (chip, nodes, chips per node, Gbit/s per chip), a model, sequences a step."""

    name: str
    pools: tuple[tuple[str, int, int, float], ...]
    config: dict | Path
    batch: int
    sequence: int = 4096
    precision: str = "bf16"

    @property
    def setting(self) -> Setting:
        pools = tuple(
            Pool(
                address=f"site/{chip}", chip=find_chip(chip, where=""), nodes=nodes,
                chips_per_node=per_node, nic_gbps=gbps, price_per_chip_hour=1.0,
            )
            for chip, nodes, per_node, gbps in self.pools
        )  # fmt: skip
        job = Job(
            model=ModelSpec(config="config.json"), data=DataSpec(tokens="*.bin"),
            train=TrainSpec(
                sequence_length=self.sequence, global_batch_tokens=self.batch * self.sequence,
                steps=1000, precision=self.precision,
            ),
            plan=PlanSpec(micro_batch_sizes=(1, 2, 4)),
        )  # fmt: skip
        return Setting(job, Model.from_config(self.config), Cluster(pools))


CASES = (
    Case(
        "64 A800 + 128 910B + 32 H20, 70B",
        (("nvidia-a800-80g", 8, 8, 200), ("ascend-910b3", 16, 8, 200),
         ("nvidia-h20-96g", 4, 8, 400)), EXAMPLE, 1024,
    ),
    Case(
        "336 H100 + 664 910B, 70B",
        (("nvidia-h100-80g", 42, 8, 400), ("ascend-910b3", 83, 8, 200)), EXAMPLE, 2048,
    ),
    Case(
        "16 A100 + 48 V100, 7B in fp16",
        (("nvidia-a100-40g", 2, 8, 100), ("nvidia-v100-32g", 6, 8, 25)), LLAMA_7B, 512,
        precision="fp16",
    ),
    Case(
        "six kinds, 1,000 cards, 70B",
        (("nvidia-h100-80g", 25, 8, 400), ("ascend-910b3", 25, 8, 200),
         ("nvidia-a100-80g", 25, 8, 200), ("amd-mi250x-gcd", 13, 8, 100),
         ("metax-c550", 25, 8, 200), ("nvidia-h20-96g", 12, 8, 200)), EXAMPLE, 2048,
    ),
    Case(
        "64 H20 + 128 910B, Mixtral 8x7B",
        (("nvidia-h20-96g", 8, 8, 200), ("ascend-910b3", 16, 8, 200)), MIXTRAL, 512,
    ),
    Case(
        "4 RTX 4090 + 4 L40S on 10 Gbit/s, 3B",
        (("nvidia-rtx-4090", 1, 4, 10), ("nvidia-l40s-48g", 1, 4, 10)), LLAMA_3B, 128, 2048,
    ),
)  # fmt: skip

RIVALS: dict[str, Callable] = {
    "one shape repeated": repeated_shape,
    "each pool apart": separate,
    "Megatron islands": islands,
    "Metis-like greedy": greedy,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="cases whose name holds this")
    arguments = parser.parse_args()
    names = ("even split", *RIVALS)
    print("| cluster and model | our step | aggregation | CPU s |", " | ".join(names), "|")
    print("|" + "---|" * (4 + len(names)))
    for case in CASES:
        if arguments.only in case.name:
            _row(case, names)


def _row(case: Case, names: tuple[str, ...]) -> None:
    setting = case.setting
    begin = time.process_time()
    search = Search(setting)
    plan = search.best()
    seconds = time.process_time() - begin
    assert plan.prediction is not None
    ours = plan.prediction.step_seconds.mid
    even = search.even()
    steps = {"even split": even.prediction.step_seconds.mid if even and even.prediction else None}
    steps |= {name: best_of(rival(setting), setting) for name, rival in RIVALS.items()}
    shown = " | ".join("–" if steps[n] is None else f"{steps[n] / ours:.3f}" for n in names)
    aggregation = plan.prediction.aggregation
    told = "–" if aggregation is None else f"{aggregation:.1%}"
    print(f"| {case.name} | {ours:.2f} s | {told} | {seconds:.1f} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
