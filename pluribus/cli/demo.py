"""`pluribus demo`: the whole way once, on this machine, from nothing."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pluribus.cli.live import TrainView
from pluribus.cli.output import console, print_comparison, print_json, print_plan, say
from pluribus.cli.profile import print_profile
from pluribus.core.errors import ConfigError
from pluribus.core.io import write_json, write_text
from pluribus.core.schema import to_table
from pluribus.hardware.cluster import Cluster
from pluribus.model.model import Model
from pluribus.plan.search import Search
from pluribus.predict.setting import Setting
from pluribus.spec.job import Job
from pluribus.spec.plan import Plan
from pluribus.spec.profile import Profile
from pluribus.spec.run import Comparison, Measurement

VOCAB_SIZE = 2048

# A Llama of 5.3 M parameters: small enough to learn something visible in two minutes.
MODEL_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 256,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}

MARK = "# Written by `pluribus demo`"

JOB = f"""\
{MARK}; every step of the demo can be repeated by hand with it.

[model]
config = "config.json"

[data]
tokens = "data/tokens.bin"
tokenizer = "data/tokenizer.json"

[train]
sequence_length = 128
global_batch_tokens = 4096
steps = {{steps}}
precision = "fp32"
learning_rate = 0.002
warmup_steps = 5

[plan]
micro_batch_sizes = [1, 2, 4]
"""

TEXT_BYTES = 6_000_000
TOKENIZER_BYTES = 3_000_000
COMPARE_STEPS = 2
ALONE_SHARE = 2  # a chip alone is timed on this fraction of the batch: it takes less patience


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", default="runs/demo", help="of the run (runs/demo)")
    parser.add_argument(
        "--seconds", type=float, default=270, help="how long all of it may take (270)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    from pluribus.measure.host import look_at_host

    begin = time.monotonic()
    # Only the result goes to stdout then.
    console.stderr = arguments.json
    busy, cores = os.getloadavg()[0], len(look_at_host().cores)
    if busy > cores / 2:
        say(f"this machine works on other things (load {busy:.1f} on {cores} cores): expect less")
    demo = Demo(Path(arguments.folder), begin + arguments.seconds)
    demo.prepare()
    demo.plan()
    rows = demo.compare()
    rows += demo.train()
    comparison = Comparison(rows=tuple(rows))
    write_json(demo.folder / "comparison.json", to_table(comparison))

    from pluribus.dashboard.run import report_run

    page, trace = report_run(demo.folder)
    if arguments.json:
        print_json({**to_table(comparison), "report": str(page), "trace": str(trace)})
        return 0
    print_comparison(comparison)
    speedup = comparison.speedup_over_even
    if speedup is not None:
        console.print(f"the plan is {speedup:.2f} × as fast as the even split")
    console.print(f"checkpoint: {demo.checkpoint} (a Hugging Face folder)")
    console.print(f"report: {page} (open it in a browser), trace: {trace}")
    console.print(f"all of it took {time.monotonic() - begin:.0f} s")
    return 0


class Demo:
    """The steps of the demo, in one folder."""

    def __init__(self, folder: Path, deadline: float) -> None:
        self.folder = folder
        self.deadline = deadline
        self.checkpoint: Path | None = None

    def prepare(self) -> None:
        """Chips, text, profile."""
        from pluribus.measure.probe import probe
        from pluribus.measure.profile import profile

        _clear(self.folder)
        write_text(self.folder / "job.toml", JOB.format(steps=1000))
        console.rule("[bold]1 probe: what is here", align="left")
        result = probe(progress=say)
        result.cluster.save(self.folder / "cluster.toml")
        for note in result.notes:
            console.print(note)
        self.cluster: Cluster = result.cluster

        console.rule("[bold]2 text: the standard library of this Python", align="left")
        _tokenise(self.folder / "data")
        write_json(self.folder / "config.json", MODEL_CONFIG)
        self.job = Job.load(self.folder / "job.toml")
        self.model = Model.from_config(self.folder / "config.json")
        say(f"a Llama of {self.model.num_parameters / 1e6:.2f} M parameters")

        console.rule("[bold]3 profile: how fast each chip is", align="left")
        self.profile: Profile = profile(
            self.cluster,
            self.job,
            self.model,
            progress=lambda line, share: say(f"{share:4.0%} {line}"),
            log_folder=self.folder / "logs",
        )
        self.profile.save(self.folder / "profile.json")
        print_profile(self.profile)

    def plan(self) -> None:
        """Who does what; the number of steps is what is left of the time."""
        console.rule("[bold]4 plan: who does what", align="left")
        self.best = self._search(self.job).best()
        assert self.best.prediction is not None
        step = self.best.prediction.step_seconds.mid
        left = self.deadline - time.monotonic() - self._comparing_seconds()
        steps = max(10, math.floor(left / step))
        write_text(self.folder / "job.toml", JOB.format(steps=steps))
        self.job = Job.load(self.folder / "job.toml")
        self.best = self._search(self.job).best()
        self.best.save(self.folder / "plan.json")
        print_plan(self.best)

    def compare(self) -> list[Measurement]:
        """Each chip alone, then the even split, for a few steps each."""
        from pluribus.train.compare import measure_alone, measure_plan

        console.rule("[bold]5 compare: each chip alone, and the even split", align="left")
        folder = self.folder / "compare"
        alone, even = self._others()
        say("each chip alone, one model each, at the same time")
        rows = measure_alone(alone, folder, steps=COMPARE_STEPS) if alone else []
        for row in rows:
            say(f"{row.name}: {row.tokens_per_s:,.0f} tokens/s")
        if even is not None:
            say("even split")
            with TrainView(even, steps=COMPARE_STEPS + 1) as view:
                rows.append(
                    measure_plan(
                        even, "even split", "even", folder / "even",
                        steps=COMPARE_STEPS, listener=view.listen,
                    )
                )  # fmt: skip
        return rows

    def train(self) -> list[Measurement]:
        """The plan, to the end of its steps, of the time, or to Ctrl-C; one measurement if it
        made two steps."""
        from pluribus.train.compare import measurement
        from pluribus.train.run import StopRequest, train

        console.rule("[bold]6 train: all chips on one model", align="left")
        stop = StopRequest()
        with TrainView(self.best) as view:

            def listen(event: dict[str, Any]) -> None:
                view.listen(event)
                # A machine with other work makes fewer steps than it was predicted to.
                if time.monotonic() > self.deadline and not stop.asked:
                    say("the time is up")
                    stop.ask()

            result = train(self.best, self.folder, listener=listen, progress=say, stop=stop)
        self.checkpoint = result.checkpoint
        if len(result.steps) < 2:
            return []
        console.print(
            f"loss {result.steps[0].loss:.3f} → {result.steps[-1].loss:.3f} "
            f"in {len(result.steps)} steps"
        )
        return [measurement(self.best, "our plan", "plan", result.steps)]

    def _search(self, job: Job) -> Search:
        return Search(Setting(job, self.model, self.cluster, self.profile))

    def _others(self) -> tuple[dict[str, Plan], Plan | None]:
        """Each pool's plan by itself, on a part of the batch, and the even split."""
        if self.cluster.num_chips == 1:
            return {}, None
        train = replace(
            self.job.train, global_batch_tokens=self.job.train.global_batch_tokens // ALONE_SHARE
        )
        smaller = self._search(replace(self.job, train=train))
        alone = {
            f"{pool.address} alone": plan
            for pool in self.cluster.pools
            if (plan := smaller.alone(pool.address)) is not None
        }
        return alone, self._search(self.job).even()

    def _comparing_seconds(self) -> float:
        """What `compare` and the starts of its runs and of the last one will take."""
        start = 6.0  # importing torch and building the stage, per run
        alone, even = self._others()
        longest = [p.prediction.step_seconds.mid for p in alone.values() if p.prediction]
        seconds = max(longest, default=0.0)
        if even is not None and even.prediction is not None:
            seconds += even.prediction.step_seconds.mid
        return (COMPARE_STEPS + 1) * seconds + 3 * start


def _clear(folder: Path) -> None:
    """Removes an earlier demo; anything else in that place is not ours to remove."""
    if folder.exists() and any(folder.iterdir()):
        job = folder / "job.toml"
        if not (job.exists() and job.read_text(encoding="utf-8").startswith(MARK)):
            raise ConfigError(
                "is not empty and not an earlier demo", where=str(folder),
                do="Name another folder with --folder.",
            )  # fmt: skip
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)


def _tokenise(folder: Path) -> None:
    from pluribus.store.tokenizer import (
        encode_files,
        save_tokenizer,
        standard_library_text,
        train_bpe,
    )

    folder.mkdir(parents=True)
    files = standard_library_text(TEXT_BYTES, seed=0)
    say(f"{len(files)} files; training a byte-level BPE of {VOCAB_SIZE} tokens")
    tokenizer = train_bpe(files, VOCAB_SIZE, max_bytes=TOKENIZER_BYTES)
    save_tokenizer(tokenizer, folder / "tokenizer.json")
    tokens = encode_files(tokenizer, files, folder / "tokens.bin").tokens
    say(f"{len(tokens):,} tokens")
