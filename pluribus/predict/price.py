"""What one stage of a plan takes: its chunks' times with everything a step puts on them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pluribus.predict.compute import share_of
from pluribus.predict.degrees import Degrees, Parameters, updated
from pluribus.predict.memory import held_parameters
from pluribus.predict.replicas import Replicas, exposed_seconds, gather_wait, gather_work
from pluribus.predict.setting import Setting
from pluribus.predict.stage_time import StageTime, added, scaled
from pluribus.predict.update import optimizer_seconds
from pluribus.spec.plan import Pipeline


@dataclass(frozen=True)
class StagePrice:
    """Seconds of one stage.

    Attributes:
        chunks: of one round through each chunk; see `Pipeline.rounds`.
        update: of the optimiser.
        gather: ZeRO 3 in a pipeline: the weights of the step, gathered once.
        rounds: of a step.
    """

    chunks: tuple[StageTime, ...]
    update: float
    rounds: int
    gather: float = 0.0

    @property
    def whole(self) -> StageTime:
        """One round through all chunks."""
        return added([(time, 1) for time in self.chunks])

    @property
    def busy(self) -> float:
        """Forwards and backwards of a step."""
        return self.rounds * sum(time.total for time in self.chunks)


def stage_price(setting: Setting, pipeline: Pipeline, index: int) -> StagePrice:
    """Prices stage ``index`` of a pipeline.

    A stage with more replicas than others counts as one that is as many times faster.
    """
    stage = pipeline.stages[index]
    degrees, pool = Degrees.of(stage), setting.pool(stage.pool)
    factors, software = setting.calibration, setting.software
    pace = factors.overhead * pipeline.replicas / degrees.dp
    host = software.micro_batch_s * factors.host / len(stage.by_chunk)
    replicas, once = None, 0.0
    if degrees.zero >= 3:
        replicas = Replicas.of_chips(stage.chips, degrees, pool, crowded=True)
    chunks = []
    for chunk in stage.by_chunk:
        time = setting.stage_time(chunk, pipeline.micro_batch_size)
        time = replace(time, forward=time.forward + host)
        if replicas:
            layers = [setting.model.layers[i] for i in chunk.layer_indices]
            work = gather_work(Parameters.of(layers, degrees), replicas, element(setting))
            # A pipeline gathers once a step and keeps its stage whole until the end.
            if len(pipeline.stages) > 1:
                once += exposed_seconds(work.seconds(factors), time.total)
            else:
                blocks = sum(layer.kind in ("dense", "moe") for layer in layers)
                wait = gather_wait(blocks, replicas, software) * factors.host
                time = with_gather(time, work.seconds(factors), wait)
        chunks.append(scaled(time, pace))
    held = held_parameters(setting, stage)
    owned = updated(held, degrees, software)
    if owned == held.total:
        update = setting.update_seconds(stage.pool, stage.layer_indices, degrees.tp, owned)
    else:
        update = optimizer_seconds(owned, pool.chip, setting.profile, factors, software)
    update += software.step_s * factors.host
    return StagePrice(
        tuple(chunks), update * factors.overhead, pipeline.rounds, once * factors.overhead
    )


def with_gather(time: StageTime, seconds: float, wait: float) -> StageTime:
    """The time of a stage whose weights are gathered for every micro-batch, half of it forward,
    while it computes what is there; a third of what ranks wait for one another is forward."""
    waits = exposed_seconds(seconds, time.total)
    return replace(
        time, forward=time.forward + waits / 2 + wait / 3,
        backward=time.backward + waits / 2 + 2 * wait / 3, gather=time.gather + waits + wait,
    )  # fmt: skip


def element(setting: Setting) -> float:
    """Bytes of a weight or an activation in computing."""
    return share_of(1, 1, setting.precision).bytes_per_element
