"""What one rank does: builds its stage, runs steps, reports, writes its part of checkpoints."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pluribus.comm.fabric import Fabric, Hops
from pluribus.comm.rank import RankLine, rank_main
from pluribus.core.schema import from_table, to_table
from pluribus.nn.config import DecoderConfig
from pluribus.nn.stage import build_stage
from pluribus.predict.schedule import gradient_groups, plan_actions
from pluribus.predict.setting import Setting
from pluribus.spec.plan import Plan
from pluribus.store.checkpoint import PartManifest, load_residuals, write_residuals
from pluribus.store.manifest import step_directory
from pluribus.store.order import sample_indices
from pluribus.store.tokens import TokenDataset
from pluribus.train.gradients import Gradients
from pluribus.train.interpreter import Interpreter, MicroBatch, Neighbours
from pluribus.train.lanes import Lanes
from pluribus.train.optimizer import build_optimizer, clip_factor, learning_rate
from pluribus.train.state import restore, save_part


class Rank:
    """One rank of a run: a stage, its optimiser, and its place among the others."""

    def __init__(self, line: RankLine) -> None:
        config = line.config
        self.line = line
        self.plan = from_table(Plan, config["plan"], file="plan.json")
        self.setting = Setting.of_plan(self.plan)
        self.job = self.setting.job
        self.lanes = Lanes.of_plan(self.plan)
        self.rank: int = config["rank"]
        self.lane = self.lanes.lane_of[self.rank]
        self.pipeline = self.plan.pipelines[self.lane[0]]
        self.stage = self.pipeline.stages[self.lane[1]]
        torch.set_num_threads(max(1, len(config["cores"])) if config["cores"] else 1)
        kinds = [self.setting.pool(chip.rsplit("/", 2)[0]).chip.device for chip in self.plan.chips]
        self.device = _open_device(kinds[self.rank], self.stage.chips[0])
        self.codec: str = config["codec"]
        hops = Hops(island=config["islands"][self.rank], codec=self.codec)
        self.fabric = Fabric(
            self.rank,
            kinds,
            self.device,
            config["port"],
            config["timeout"],
            config["backend"],
            hops,
        )
        self.data = TokenDataset(config["shards"])
        self._build(config["start_from"], config["start_step"])
        if config["residuals"]:
            self.fabric.load_residuals(load_residuals(config["start_from"], self.rank))

    def _build(self, start_from: str | None, step: int) -> None:
        decoder = DecoderConfig.from_hf(self.plan.model_config, "plan.json [model_config]")
        self.module = build_stage(
            decoder,
            self.stage.layers,
            seed=self.job.train.seed,
            device=self.device,
            dtype=torch.float32,
            recompute=self.stage.recompute,
        )
        self.optimizer = build_optimizer(self.module, self.job.train)
        if start_from is not None:
            restore(Path(start_from), self.module, self.optimizer, step)
        groups = gradient_groups(self.plan, self.setting.tied_layers)
        fabric_groups = [self.fabric.group(self.lanes.ranks(g.holders)) for g in groups]
        self.gradients = Gradients(
            self.module, self.setting.model, self.lane, groups, fabric_groups
        )
        pipeline_index, stage_index = self.lane
        bf16 = self.job.train.precision == "bf16"
        self.interpreter = Interpreter(
            self.module,
            plan_actions(self.plan, groups)[pipeline_index][stage_index],
            self.fabric,
            Neighbours(
                self.lanes.rank_of.get((pipeline_index, stage_index - 1)),
                self.lanes.rank_of.get((pipeline_index, stage_index + 1)),
            ),
            self.gradients,
            hidden_shape=(
                self.pipeline.micro_batch_size,
                self.job.train.sequence_length,
                decoder.hidden_size,
            ),
            wire=torch.bfloat16 if bf16 else torch.float32,
            autocast=_autocast(self.device.type, bf16),
            step=self._step,
        )
        self.step = step
        self.stop = False

    def run(self, until: int, *, checkpoint_root: str | None, timeline_every: int) -> None:
        """Runs steps up to number ``until``, or until told to stop."""
        first = saved = self.step
        every = self.job.store.checkpoint_every_steps
        while self.step < until and not self.stop:
            # From the second step on: the first one warms up.
            self._one_step(timed=(self.step - first) % timeline_every == 1)
            if checkpoint_root and every and self.step % every == 0:
                self._save(checkpoint_root)
                saved = self.step
        if checkpoint_root and saved != self.step:
            self._save(checkpoint_root)
        self.fabric.barrier()

    def _one_step(self, *, timed: bool) -> None:
        start = time.perf_counter()
        self.gradients.zero()
        tokens = self.job.train.global_batch_tokens
        times = self.interpreter.run(self._micro_batches(), tokens, timed=timed)
        self.step += 1
        if timed:
            self.line.report(
                "timeline", step=self.step, actions=[asdict(action) for action in times]
            )
        if self.rank == 0:
            self.line.report(
                "step",
                step=self.step,
                loss=self.loss,
                seconds=time.perf_counter() - start,
                tokens=tokens,
                gradient_norm=self.norm,
                learning_rate=self.learning_rate,
            )

    def _step(self) -> None:
        """The STEP action: agree on norm, loss and stop; clip; update."""
        stop = float(self.line.told("stop"))
        shared = torch.tensor(
            [self.gradients.squared_norm().item(), self.interpreter.loss, stop],
            dtype=torch.float64,
        )
        self.fabric.sum(shared, self.fabric.everyone)
        self.norm = math.sqrt(shared[0].item())
        self.loss = shared[1].item()
        self.stop = shared[2].item() > 0
        factor = clip_factor(self.norm, self.job.train.clip_gradient_norm)
        if factor != 1.0:
            self.gradients.scale(factor)
        self.learning_rate = learning_rate(self.job.train, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.optimizer.step()

    def _micro_batches(self) -> dict[int, MicroBatch]:
        """This pipeline's slice of the global batch; stages in the middle need none."""
        length, size = self.job.train.sequence_length, self.pipeline.micro_batch_size
        order = sample_indices(
            self.step, self.job.train.global_batch, self.data.num_sequences(length),
            self.job.train.seed,
        )  # fmt: skip
        first = sum(pipeline.sequences for pipeline in self.plan.pipelines[: self.lane[0]])
        batch: dict[int, MicroBatch] = {}
        if not (self.module.holds_embedding or self.module.holds_head):
            return batch
        for m in range(self.pipeline.micro_batches):
            rows = order[first + m * size : first + (m + 1) * size]
            tokens = np.stack([self.data.sequence(int(row), length) for row in rows])
            ids = torch.from_numpy(tokens)
            batch[m] = MicroBatch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        return batch

    def _save(self, root: str) -> None:
        pipeline, part = self.lane
        final = step_directory(Path(root), self.step)
        folder = final.parent / f".{final.name}.partial"
        files = self._save_weights(folder, part).files if pipeline == 0 else ()
        if self.codec != "none":
            folder.mkdir(parents=True, exist_ok=True)
            ranks = self.fabric.world_size
            files += write_residuals(folder, self.rank, ranks, self.fabric.residuals()).files
        elif pipeline != 0:
            return
        manifest = to_table(PartManifest(files=files))
        self.line.report("part", step=self.step, folder=str(folder), manifest=manifest)

    def _save_weights(self, folder: Path, part: int) -> PartManifest:
        tied_copy = (
            {"model.embed_tokens.weight"}
            if self.setting.tied_layers and not self.module.holds_embedding
            else set()
        )
        return save_part(
            folder, part, len(self.pipeline.stages), self.module, self.optimizer, tied_copy
        )


def _open_device(kind: str, chip: str) -> torch.device:
    """The chip's device, made current; its number in the node is the address's last part."""
    if kind == "cpu":
        return torch.device("cpu")
    device = torch.device(kind, int(chip.split("/")[-1]))
    torch.accelerator.set_device_index(device)
    return device


def _autocast(device: str, bf16: bool) -> Callable[[], AbstractContextManager[Any]]:
    if not bf16:
        return contextlib.nullcontext
    return lambda: torch.autocast(device, dtype=torch.bfloat16)


def train_rank(line: RankLine) -> None:
    """A rank from its first line to its last."""
    rank = Rank(line)
    line.report("ready", pid=os.getpid())
    rank.run(
        line.config["until"],
        checkpoint_root=line.config["checkpoint_root"],
        timeline_every=line.config["timeline_every"],
    )
    rank.fabric.close()


if __name__ == "__main__":
    rank_main(train_rank)
