"""Setting: what every candidate plan of one search shares, with the times computed once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from pluribus.core.errors import PlanError
from pluribus.hardware.cluster import Cluster, Pool
from pluribus.model.layer import Layer, Recompute
from pluribus.model.model import Model
from pluribus.predict.compute import LayerCost, layer_cost, share_of
from pluribus.predict.measured_layer import measured_layers, measured_model
from pluribus.predict.software import PLURIBUS, Software
from pluribus.predict.stage_time import StageTime, added
from pluribus.predict.update import update_seconds
from pluribus.spec.calibration import IDENTITY, Calibration
from pluribus.spec.job import Job
from pluribus.spec.plan import Pipeline, Plan, Stage
from pluribus.spec.profile import Profile


@dataclass(frozen=True)
class Setting:
    """One job on one cluster.

    Attributes:
        model: with the sizes and names of layers that the profile has for them.
        profile: measured facts that replace formulas where it has them.
        software: what the training program makes of the chips.
        calibration: a cluster's factors on what formulas say.
    """

    job: Job
    model: Model
    cluster: Cluster
    profile: Profile | None = None
    software: Software = PLURIBUS
    calibration: Calibration = IDENTITY
    # Not for the hands of callers: a setting made by `replace` starts with empty ones.
    _layers: dict[str, tuple[Layer, ...]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )
    _costs: dict[tuple, LayerCost] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )
    _stage_times: dict[tuple, StageTime] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )
    _pools: dict[str, Pool] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.profile is not None:
            model = measured_model(self.model, self.profile, self.sequence_length, self.precision)
            object.__setattr__(self, "model", model)

    @classmethod
    def of_plan(
        cls, plan: Plan, profile: Profile | None = None, calibration: Calibration | None = None
    ) -> Setting:
        """The setting a plan was made in, from the tables it carries.

        Args:
            plan: the plan.
            profile, calibration: used instead of those it was planned with.

        Raises:
            PlanError: its job or cluster is no longer the one it was made for.
        """
        job = Job.from_table(plan.job, file="plan.json", directory=plan.directory)
        cluster = Cluster.from_table(plan.cluster, file="plan.json")
        for name, made_for, found in (
            ("job", plan.job_digest, job.digest),
            ("cluster", plan.cluster_digest, cluster.digest),
        ):
            if made_for != found:
                raise PlanError(
                    f"the plan's {name} was changed after planning (digest '{found}', the plan "
                    f"was made for '{made_for}')",
                    where=f"plan.json [{name}]",
                    do=f"Change the {name} file instead and plan again: pluribus plan job.toml.",
                )
        return cls(
            job,
            Model.from_config(plan.model_config),
            cluster,
            profile or plan.profile,
            calibration=calibration or plan.calibration or IDENTITY,
        )

    @property
    def sequence_length(self) -> int:
        return self.job.train.sequence_length

    @property
    def precision(self) -> str:
        return self.job.train.precision

    @property
    def tied_layers(self) -> tuple[int, int] | None:
        """(embedding, head) layer indices when they share a matrix."""
        return (0, len(self.model.layers) - 1) if self.model.tied else None

    def pool(self, address: str) -> Pool:
        """The pool at ``site/pool``."""
        if address not in self._pools:
            self._pools[address] = self.cluster.pool(address)
        return self._pools[address]

    def layers_on(self, pool: str) -> tuple[Layer, ...]:
        """The model's layers with the sizes measured on the chips of a pool, if any were."""
        if self.profile is None or not self.profile.sizes:
            return self.model.layers
        if pool not in self._layers:
            self._layers[pool] = measured_layers(
                self.model.layers, self.profile, self.pool(pool).chip.key, self.sequence_length,
                self.precision,
            )  # fmt: skip
        return self._layers[pool]

    def update_seconds(self, pool: str, layers: Sequence[int], tp: int, parameters: float) -> float:
        """Seconds of the optimiser on a chip of a pool.

        Args:
            layers: indices of what the chip holds.
            parameters: of it on the chip.
        """
        return update_seconds(
            [self.model.layers[i] for i in layers], parameters, self.pool(pool).chip, tp,
            self.sequence_length, self.precision, self.profile, self.calibration, self.software,
        )  # fmt: skip

    def calibrated(self, calibration: Calibration) -> Setting:
        """The same setting under other factors; what layers cost before them is kept."""
        other = replace(self, calibration=calibration)
        other._costs.update(self._costs)
        return other

    def stage_time(self, stage: Stage, micro_batch_size: int) -> StageTime:
        """Seconds of one micro-batch through the layers of one stage, on one replica."""
        return self.layers_time(
            stage.pool,
            stage.layers,
            micro_batch_size,
            stage.tensor_parallel,
            stage.recompute,
            cp=stage.context_parallel,
            ep=stage.expert_parallel,
        )

    def layers_time(
        self,
        pool: str,
        layers: tuple[int, int],
        micro_batch_size: int,
        tp: int,
        recompute: Recompute,
        *,
        cp: int = 1,
        ep: int = 1,
    ) -> StageTime:
        """Seconds of one micro-batch through layers [first, end) on chips of one pool."""
        key = (pool, layers, micro_batch_size, tp, recompute, cp, ep)
        if key not in self._stage_times:
            counts = Counter(self._alike[layers[0] : layers[1]])
            times = []
            for index, count in counts.items():
                cost = self._layer_cost(pool, index, (micro_batch_size, tp, cp, ep))
                times.append((cost.time(self.calibration, self.software, tp, recompute), count))
            self._stage_times[key] = added(times)
        return self._stage_times[key]

    def _layer_cost(self, pool: str, index: int, shape: tuple[int, int, int, int]) -> LayerCost:
        key = (pool, index, *shape)
        if key not in self._costs:
            size, tp, cp, ep = shape
            share = share_of(
                size, self.sequence_length, self.precision, self.software, tp=tp, cp=cp, ep=ep
            )
            self._costs[key] = layer_cost(
                self.model.layers[index], self.pool(pool), share, self.precision, self.software,
                self.profile,
            )  # fmt: skip
        return self._costs[key]

    @cached_property
    def _alike(self) -> tuple[int, ...]:
        """Of each layer, the first one with its signature: those cost the same."""
        first: dict[str, int] = {}
        return tuple(
            first.setdefault(layer.signature, i) for i, layer in enumerate(self.model.layers)
        )

    def boundary_bytes(self, pipeline: Pipeline) -> float:
        """Bytes of the hidden state that one micro-batch hands to the next stage."""
        return boundary_bytes(self, pipeline.micro_batch_size)


def boundary_bytes(setting: Setting, micro_batch_size: int) -> float:
    """Bytes of the hidden state of one micro-batch."""
    element = 4 if setting.precision == "fp32" else 2
    return micro_batch_size * setting.sequence_length * setting.model.hidden_size * element
