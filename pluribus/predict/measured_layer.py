"""A layer whose sizes were measured: as the model says it is, but for what the profile has."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pluribus.core.errors import ConfigError
from pluribus.core.units import DTYPE_BYTES
from pluribus.model.layer import Layer, LayerKind, Recompute
from pluribus.model.model import Model
from pluribus.model.operator import Operator
from pluribus.model.share import Share
from pluribus.predict.grid import read_grid, read_share
from pluribus.spec.profile import Grid, Profile


@dataclass(frozen=True)
class MeasuredLayer(Layer):
    """A layer in the place of another of the same work.

    Attributes:
        inner: the layer as the model's config describes it.
        signature_: by which the profile knows it.
        sequence_length: at which sizes were measured.
        bytes_per_element: in which sizes were measured.
        parameter_row: degree -> parameters of one rank, as pairs.
        kept_grid: degree -> micro-batch -> bytes kept, as nested pairs.
    """

    inner: Layer
    signature_: str
    sequence_length: int
    bytes_per_element: float
    parameter_row: tuple[tuple[int, int], ...] = ()
    kept_grid: tuple[tuple[int, tuple[tuple[int, float], ...]], ...] = ()

    @property
    def kind(self) -> LayerKind:
        return self.inner.kind

    @property
    def signature(self) -> str:
        return self.signature_

    @property
    def prefixes(self) -> tuple[str, ...]:
        return self.inner.prefixes

    @property
    def parameters(self) -> int:
        return self.parameters_per_rank() if self.parameter_row else self.inner.parameters

    @property
    def active_parameters(self) -> int:
        routed = self.inner.parameters - self.inner.active_parameters
        return self.parameters - routed

    @property
    def tied_parameters(self) -> int:
        """Zero where the layer, as measured, has a matrix of its own."""
        tied = self.inner.tied_parameters
        return 0 if self.parameter_row and self.parameters >= tied else tied

    def parameters_per_rank(self, tp: int = 1, ep: int = 1) -> int:
        if not self.parameter_row or ep > 1:
            return self.inner.parameters_per_rank(tp=tp, ep=ep)
        return round(read_share(dict(self.parameter_row), tp))

    def operators(self, share: Share) -> tuple[Operator, ...]:
        return self.inner.operators(share)

    def activation_bytes(self, share: Share, recompute: Recompute = "none") -> float:
        """Measured where nothing is recomputed, else as the inner layer says."""
        inner = self.inner.activation_bytes(share, recompute)
        shape = (share.sequence_length, share.bytes_per_element)
        measured = shape == (self.sequence_length, self.bytes_per_element) and share.cp == 1
        if not self.kept_grid or not measured:
            return inner
        if recompute != "none" and self.kind in ("dense", "moe"):
            return inner
        grid = {degree: dict(row) for degree, row in self.kept_grid}
        reading = read_grid(grid, share.tp, share.micro_batch)
        if reading:
            return reading.value
        # Bytes kept grow with the micro-batch from nothing.
        row = {degree: next(iter(sizes.items())) for degree, sizes in grid.items()}
        kept = read_share({d: kept / size for d, (size, kept) in row.items()}, share.tp)
        return share.micro_batch * kept

    def supports_tp(self, tp: int) -> bool:
        return self.inner.supports_tp(tp)

    def supports_ep(self, ep: int) -> bool:
        return self.inner.supports_ep(ep)


def measured_layers(
    layers: tuple[Layer, ...], profile: Profile, chip: str, sequence_length: int, precision: str
) -> tuple[Layer, ...]:
    """The layers, with the sizes and the names that a profile has for them on one chip.

    Args:
        chip: chip key; empty takes sizes that hold for every chip.
    """
    found = []
    for index, layer in enumerate(layers):
        inner = layer.inner if isinstance(layer, MeasuredLayer) else layer
        name = f"#{index}" if profile.num_layers else inner.signature
        sizes = profile.size_grid(chip, name, sequence_length, precision)
        if name == inner.signature and not sizes:
            found.append(inner)
            continue
        found.append(
            MeasuredLayer(
                inner.name,
                inner.hidden_size,
                inner,
                name,
                sequence_length,
                DTYPE_BYTES[precision],
                tuple((tp, next(iter(row.values())).parameters) for tp, row in sizes.items()),
                _kept(sizes),
            )
        )
    return tuple(found)


def measured_model(model: Model, profile: Profile, sequence_length: int, precision: str) -> Model:
    """The model with what a profile knows of its layers; the same model if that is nothing.

    Raises:
        ConfigError: the profile is of a model with another number of layers.
    """
    if profile.num_layers not in (0, len(model.layers)):
        raise ConfigError(
            f"has times of {profile.num_layers} layers, but {model.name} has {len(model.layers)} "
            f"(embedding, {model.num_blocks} blocks, head)",
            where="profile [layers]",
            do="Name the config.json of the model that was measured, or measure this one.",
        )
    layers = measured_layers(model.layers, profile, "", sequence_length, precision)
    if layers == model.layers:
        return model
    tied = model.tied and layers[-1].tied_parameters > 0
    return replace(model, layers=layers, tied=tied)


def _kept(grid: Grid) -> tuple[tuple[int, tuple[tuple[int, float], ...]], ...]:
    return tuple(
        (tp, tuple((size, row.kept_bytes) for size, row in sizes.items()))
        for tp, sizes in grid.items()
    )
