"""What our interpreter of the action list costs over a plain PyTorch loop, in one process.

    .venv/bin/python bench/overhead.py [--rounds 12]

The same model, data, clipping and AdamW, one step of each in turn; CPU seconds of the process,
which other work on the machine disturbs least. The ratio is of medians.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable

import torch

from pluribus.cli.demo import MODEL_CONFIG
from pluribus.comm.fabric import Fabric, host_store
from pluribus.model.model import Model
from pluribus.nn.config import DecoderConfig
from pluribus.nn.stage import StageModule, build_stage
from pluribus.predict.schedule import Action, ActionKind, pipeline_actions
from pluribus.spec.plan import Pipeline, Stage
from pluribus.train.gradients import Gradients
from pluribus.train.interpreter import Interpreter, MicroBatch, Neighbours
from pluribus.train.optimizer import clip_factor

MICRO_BATCHES, SIZE, TOKENS = 16, 2, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    shape = (MICRO_BATCHES, SIZE, TOKENS + 1)
    ids = torch.randint(MODEL_CONFIG["vocab_size"], shape, generator=generator)
    steps = {"plain loop": plain(ids), "interpreter": interpreted(ids)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = time.process_time()
            loss = step()
            taken = time.process_time() - start
            if number:  # the first round warms up
                seconds[name].append(taken)
        print(f"round {number}: loss {loss:.4f}", flush=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [b / a for a, b in zip(seconds["plain loop"], seconds["interpreter"], strict=True)]
    result = {**medians, "overhead": statistics.median(ratios) - 1}
    print(json.dumps(result))


def _model() -> StageModule:
    config = DecoderConfig.from_hf(MODEL_CONFIG, "bench")
    layers = (0, config.num_stage_layers)
    return build_stage(config, layers, seed=0, device="cpu", dtype=torch.float32)


def plain(ids: torch.Tensor) -> Callable[[], float]:
    """The loop anyone would write."""
    model = _model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    total = ids[..., 1:].numel()

    def step() -> float:
        optimizer.zero_grad()
        loss = 0.0
        for batch in ids:
            part = model.loss(batch[:, :-1], batch[:, 1:]) / total
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    return step


def interpreted(ids: torch.Tensor) -> Callable[[], float]:
    """The same step through the interpreter, as a rank runs it."""
    module = _model()
    model = Model.from_config(MODEL_CONFIG)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
    store, port = host_store(timeout=60)
    fabric = Fabric(0, ("cpu",), torch.device("cpu"), port, 60)
    gradients = Gradients(module, model, (0, 0), (), ())
    pipeline = Pipeline(
        stages=(Stage(chips=("a/b/0/0",), layers=module.layers),),
        micro_batch_size=SIZE,
        micro_batches=MICRO_BATCHES,
    )
    shared = torch.zeros(3, dtype=torch.float64)

    def update() -> None:
        shared[0] = gradients.squared_norm()
        fabric.sum(shared, fabric.everyone)
        factor = clip_factor(shared[0].item() ** 0.5, 1.0)
        if factor != 1.0:
            gradients.scale(factor)
        optimizer.step()

    interpreter = Interpreter(
        module,
        (*pipeline_actions(pipeline)[0], Action(ActionKind.STEP)),
        fabric,
        Neighbours(None, None),
        gradients,
        hidden_shape=(SIZE, TOKENS, model.hidden_size),
        wire=torch.float32,
        autocast=contextlib.nullcontext,
        step=update,
    )
    batches = {
        index: MicroBatch(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        for index, batch in enumerate(ids)
    }

    def step() -> float:
        gradients.zero()
        interpreter.run(batches, ids[..., 1:].numel(), timed=True)
        assert store is not None  # keeps the rendezvous open
        return interpreter.loss

    return step


if __name__ == "__main__":
    main()
