"""Predicted serving against the end-to-end measurements that aiconfigurator-core ships.

    .venv/bin/python bench/serving.py [--tables] [--rows N] [--csv FILE]

Of `silicon_sample.csv` the aggregated runs are taken (prefill and decode on the same chips) whose
model and precision we have: one engine, no data-parallel attention, bf16 or fp8 products. Batch
size is taken for the number of requests kept running. Nothing is fitted on these rows, but how
engines fuse kernels (`predict/serving_step.py`), what host work overlaps, which cache is narrow and
how much of a chip the cache gets were chosen after a look at them: in that, errors are in-sample.
Prints the mean and median absolute error and the median error of TPOT and TTFT per model, chip and
precision, by formula alone, and with `--tables` from the operator tables of the same package; and
how often TPOT's interval holds it. TTFT is that of a benchmark which starts all requests at once
and sends ten for each place: nine of ten come one by one, the first waits for a burst.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections import Counter, defaultdict
from pathlib import Path

from pluribus.core.errors import PluribusError
from pluribus.core.io import read_json
from pluribus.hardware.catalogue import find_chip
from pluribus.hardware.pool import Pool
from pluribus.measure.aic import SYSTEMS, aic_folder, aic_tables
from pluribus.model.latent_attention import LatentAttention
from pluribus.model.model import Model
from pluribus.predict.serving import Load, predict_serving
from pluribus.predict.serving_step import STEP_HOST_S, Deployment
from pluribus.spec.profile import Profile

THEIRS = """others: AIConfigurator 0.12 on 189 of these rows: TPOT 28.8 % (median 18.9 %),
  TTFT 55.3 %; by third parties on 38 vLLM runs: AIConfigurator 40-60 % end to end,
  BLIS-Evolved 13.1 %"""
CHIPS = {system: key for key, system in reversed(SYSTEMS.items())}
PRECISIONS = {"": "bf16", "bf16": "bf16", "fp8": "fp8", "fp8_block": "fp8"}
CONFIGS = {"nvidia/Llama-3.1-8B-Instruct-FP8": "meta-llama/Meta-Llama-3.1-8B",
           "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Meta-Llama-3.1-8B",
           "meta-llama/Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B"}  # fmt: skip
# TensorRT-LLM and SGLang do half of a step's host work during the step before (their overlap
# schedulers are on by default); how much is a typical figure, of 0, 0.3, 0.5 and 1 ms
# the best on a sixth of these rows. TensorRT-LLM is taken to cache in 8 bits what it multiplies in
# 8, but for latents: the rows do not say.
OVERLAPPED = ("trtllm", "sglang")
NARROW_CACHE = ("trtllm",)
BURST_SHARE = 0.1
# What a request takes outside the engine's steps (HTTP, tokeniser, first streamed piece): read off
# the one row with a single request, whose prompt waits for nothing (143 ms, of which 110 foreseen).
FRONT_END_S = 0.03
GROUPS = ("model", "chip", "precision")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", action="store_true", help="use measured operator tables")
    parser.add_argument("--rows", type=int, default=0, help="every n-th row only, to be quick")
    parser.add_argument("--csv", help="write every row with its prediction")
    arguments = parser.parse_args()
    folder = aic_folder()
    with (folder / "silicon_sample.csv").open() as file:
        rows = list(csv.DictReader(file))
    left_out: Counter[str] = Counter()
    models: dict[str, Model | None] = {}
    profiles: dict[str, Profile] = {}
    results = []
    for row in rows:
        reason = unfit(row)
        model = None if reason else load_model(row["model_path"], folder, models)
        if not reason and model is None:
            reason = f"model {row['model_path'].split('/')[-1]} not read"
        if not reason and not model.supports_tp(int(row["tp_size"])):
            reason = "tp does not divide the model"
        if reason:
            left_out[reason] += 1
            continue
        results.append((row, model))
    if arguments.rows:
        results = results[:: arguments.rows]
    scored = []
    for row, model in results:
        key = CHIPS[row["system"]]
        if arguments.tables and key not in profiles:
            profiles[key] = Profile(cluster_digest="", operators=aic_tables(key))
        scored.append(score(row, model, key, profiles.get(key)))
    report(scored)
    print(f"left out: {', '.join(f'{n} {reason}' for reason, n in left_out.most_common())}")
    print(THEIRS)
    if arguments.csv:
        with Path(arguments.csv).open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(scored[0]))
            writer.writeheader()
            writer.writerows(scored)
    return 0


def unfit(row: dict[str, str]) -> str:
    """Why a row is not predicted; empty if it is."""
    if row["mode"] != "agg":
        return "prefill and decode apart"
    if row["gemm_quant_mode"] not in PRECISIONS or row["precision"] in ("fp4", "int4"):
        return "4-bit weights"
    if row["attention_dp_size"] not in ("", "0", "1"):
        return "data-parallel attention"
    if row["system"] not in CHIPS:
        return f"chip {row['system']}"
    if int(row["tp_size"]) > 8 or row["pp_size"] not in ("", "1"):
        return "more than one node"
    if min(float(row["silicon_tpot_ms"] or 0), float(row["silicon_ttft_ms"] or 0)) <= 0:
        return "no time"
    return ""


def load_model(path: str, folder: Path, models: dict[str, Model | None]) -> Model | None:
    if path not in models:
        name = CONFIGS.get(path, path).replace("/", "--")
        file = folder.parent / "model_configs" / f"{name}_config.json"
        try:
            models[path] = Model.from_config(read_json(file))
        except PluribusError:
            models[path] = None
    return models[path]


def score(row: dict[str, str], model: Model, key: str, profile: Profile | None) -> dict:
    pool = Pool(address="dc/pool", chip=find_chip(key, where="bench"), nodes=1, chips_per_node=8,
                nic_gbps=400)  # fmt: skip
    precision, engine = PRECISIONS[row["gemm_quant_mode"]], row["backend"]
    latent = any(isinstance(b.attention, LatentAttention) for b in model.layers[1:-1])
    narrow = precision == "fp8" and engine in NARROW_CACHE and not latent
    deployment = Deployment(
        model=model, pool=pool, tp=int(row["tp_size"]), profile=profile, precision=precision,
        cache_precision="fp8" if narrow else None,
        host_s=STEP_HOST_S / 2 if engine in OVERLAPPED else STEP_HOST_S,
    )  # fmt: skip
    load = Load(
        requests=int(row["batch_size"]), prompts=(int(row["isl"]),), generated=(int(row["osl"]),)
    )
    found = predict_serving(deployment, load)
    tpot, ttft = (float(row[f"silicon_{name}_ms"]) * 1e-3 for name in ("tpot", "ttft"))
    burst = BURST_SHARE * found.ttft_burst_s
    return {
        "model": row["model_path"].split("/")[-1],
        "chip": key,
        "backend": row["backend"],
        "precision": deployment.precision,
        "tp": deployment.tp,
        "batch": load.requests,
        "isl": load.prompts[0],
        "osl": load.generated[0],
        "tpot": tpot,
        "tpot_predicted": found.tpot_s,
        "ttft": ttft,
        "ttft_predicted": (1 - BURST_SHARE) * found.ttft_s + burst + FRONT_END_S,
        "decode": found.decode_s,
        "held": found.interval.low <= tpot <= found.interval.high,
    }


def report(scored: list[dict]) -> None:
    groups = defaultdict(list)
    for row in scored:
        groups[tuple(row[name] for name in GROUPS)].append(row)
    print(f"{'model':28} {'chip':17} {'type':5} {'rows':>5} {'TPOT %':>7} {'median':>7} "
          f"{'bias':>7} {'TTFT %':>7} {'median':>7} {'bias':>7} {'held':>5}")  # fmt: skip
    for group, rows in [*sorted(groups.items()), (("all", "", ""), scored)]:
        numbers = []
        for name in ("tpot", "ttft"):
            errors = [row[f"{name}_predicted"] / row[name] - 1 for row in rows]
            sizes = [abs(error) for error in errors]
            median = statistics.median
            numbers += [statistics.fmean(sizes), median(sizes), median(errors)]
        held = statistics.fmean(row["held"] for row in rows)
        shown = " ".join(f"{100 * number:7.1f}" for number in numbers)
        print(f"{group[0]:28} {group[1]:17} {group[2]:5} {len(rows):5} {shown} {100 * held:4.0f}%")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PluribusError as error:
        sys.exit(f"error: {error}")
