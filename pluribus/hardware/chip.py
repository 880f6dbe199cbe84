"""Chip: the numbers of one accelerator kind, and the matrix throughput to expect of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from pluribus.core.errors import ConfigError, PlanError, nearest
from pluribus.core.units import DTYPE_BYTES, GIB
from pluribus.hardware.checks import check_count, check_not_negative, check_positive

# Medians of best measured / nominal dense matmul over the catalogue; see `matmul_efficiency`.
VENDOR_MATMUL_EFFICIENCY: Mapping[str, float] = MappingProxyType({"NVIDIA": 0.935, "AMD": 0.604})
DEFAULT_MATMUL_EFFICIENCY = 0.882
MATMUL_EFFICIENCY_8BIT = 0.745


def matmul_efficiency(vendor: str, dtype: str) -> float:
    """The share of its nominal peak that a chip without measurements is expected to reach.

    Notes:
        Fitted on the catalogue chips that have both a nominal and a measured matmul (the best
        shape found by a sweep; sources in the catalogue):

        * 16-bit, by vendor: NVIDIA 0.935 (10 chips, 0.786 to 0.981; the H200 counts with the
          H100's figure, 0.934 without it), AMD 0.604 (MI300X, MI325X, MI355X, 0.514 to 0.626).
        * 16-bit, any other vendor: 0.882, the median of the four vendor medians NVIDIA 0.935,
          AMD 0.604, Intel 0.970 (Gaudi 2, Gaudi 3, Arc Pro B60) and MetaX 0.828 (FlagPerf
          publishes only the C550's ratio), so that no vendor counts by its number of chips.
          Intel has no entry of its own because its three chips are of two unlike families.
        * 8-bit: 0.745, the median of seven fp8 measurements (H100, H200, B200, B300, GB200,
          Gaudi 2, Gaudi 3; 0.709 to 0.956).

        The sources sweep differently: where one chip has two figures (H100: 956 and 795) the
        higher is in the catalogue, so vendors measured by one sweep alone look worse.
        No fp32 measurement is in the fit; wider types take the 16-bit figure.

    Args:
        vendor: as in the catalogue, in any case, e.g. ``NVIDIA``.
        dtype: a dtype key such as ``bf16``.

    Returns:
        A factor in (0, 1].
    """
    if DTYPE_BYTES[dtype] <= 1:
        return MATMUL_EFFICIENCY_8BIT
    return VENDOR_MATMUL_EFFICIENCY.get(vendor.upper(), DEFAULT_MATMUL_EFFICIENCY)


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator kind, as one torch device sees it.

    A card that shows itself as two devices (two dies) is described by one die.

    Attributes:
        key: lower-case name in the catalogue, e.g. ``nvidia-a800-80g``.
        vendor: who makes it; selects the default matmul efficiency.
        name: the vendor's name of the part.
        device: the torch device type that drives it, e.g. ``cuda``, ``npu``, ``cpu``.
        collective_library: the vendor's library for like chips, e.g. ``nccl``, ``hccl``.
        memory_gib: device memory, GiB. A datasheet's "80 GB" is entered as 80.
        memory_gbytes_per_s: nominal memory bandwidth, 1e9 bytes/s.
        measured_memory_gbytes_per_s: best measured memory bandwidth, 1e9 bytes/s.
        peak_tflops: nominal dense peak by dtype, 1e12 FLOP/s (8-bit integers: 1e12 op/s).
        measured_tflops: best measured large matmul by dtype, 1e12 FLOP/s.
        link_gbytes_per_s: to the other chips of its node, all links together, one direction,
            1e9 bytes/s; None where unknown.
        compute_units: units that each compute one tile of a matrix product at a time (NVIDIA:
            streaming multiprocessors); None where unknown.
        context_gib: memory that a training process takes before it holds any tensor: driver
            context, kernels, workspaces of libraries, buffers of communicators; None where
            unknown.
        watts: board power limit.
        price_per_hour: list price of one chip, in the currency of the cluster file.
        unsupported_dtypes: dtypes its matrix units lack, as against ones with no known figure.
        source: where the numbers come from.
        note: what is disputed, derived or remembered about them.

    Raises:
        ConfigError: a number out of range, an unknown dtype key, or no throughput at all.
    """

    key: str
    vendor: str
    name: str
    device: str
    collective_library: str = "gloo"
    memory_gib: float
    memory_gbytes_per_s: float
    measured_memory_gbytes_per_s: float | None = None
    peak_tflops: dict[str, float] = field(default_factory=dict, hash=False)
    measured_tflops: dict[str, float] = field(default_factory=dict, hash=False)
    link_gbytes_per_s: float | None = None
    compute_units: int | None = None
    context_gib: float | None = None
    watts: float | None = None
    price_per_hour: float | None = None
    unsupported_dtypes: tuple[str, ...] = ()
    source: str
    note: str = ""

    def __post_init__(self) -> None:
        check_positive("memory_gib", self.memory_gib)
        check_positive("memory_gbytes_per_s", self.memory_gbytes_per_s)
        for key in ("measured_memory_gbytes_per_s", "link_gbytes_per_s", "watts"):
            value = getattr(self, key)
            if value is not None:
                check_positive(key, value)
        if self.compute_units is not None:
            check_count("compute_units", self.compute_units)
        if self.context_gib is not None:
            check_not_negative("context_gib", self.context_gib)
        if self.price_per_hour is not None:
            check_not_negative("price_per_hour", self.price_per_hour)
        for key in ("peak_tflops", "measured_tflops"):
            for dtype, value in getattr(self, key).items():
                _check_dtype(key, dtype)
                check_positive(f"{key}.{dtype}", value)
        for dtype in self.unsupported_dtypes:
            _check_dtype("unsupported_dtypes", dtype)
        if not self.dtypes:
            raise ConfigError(
                f"chip '{self.key}' has no throughput of any dtype",
                do="Give at least one, e.g. `peak_tflops = { bf16 = 312 }`.",
            )

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes it can multiply at a known rate, as listed in its peaks and measurements."""
        listed = dict.fromkeys((*self.peak_tflops, *self.measured_tflops))
        return tuple(dtype for dtype in listed if dtype not in self.unsupported_dtypes)

    @property
    def memory_bytes(self) -> int:
        """Device memory in bytes."""
        return int(self.memory_gib * GIB)

    @property
    def memory_bytes_per_s(self) -> float:
        """Memory bandwidth to expect, bytes/s: measured where known, else nominal."""
        return (self.measured_memory_gbytes_per_s or self.memory_gbytes_per_s) * 1e9

    def supports(self, dtype: str) -> bool:
        """Whether matrix products in ``dtype`` run at a known rate."""
        return dtype in self.dtypes

    def matmul_flops(self, dtype: str) -> float:
        """FLOP/s to expect of a large matmul: measured if known, else peak × efficiency.

        Args:
            dtype: a dtype key such as ``bf16``.

        Raises:
            PlanError: the chip lacks the dtype, or no figure is known.
        """
        if not self.supports(dtype):
            lacks = "has no" if dtype in self.unsupported_dtypes else "has no known rate for"
            raise PlanError(
                f"chip '{self.key}' {lacks} {dtype}",
                do=f"It has {', '.join(self.dtypes)}. Use one of these, or give the chip as a "
                f"table with its {dtype} rate in peak_tflops.",
            )
        if dtype in self.measured_tflops:
            return self.measured_tflops[dtype] * 1e12
        return self.peak_tflops[dtype] * 1e12 * matmul_efficiency(self.vendor, dtype)


def _check_dtype(key: str, dtype: str) -> None:
    if dtype not in DTYPE_BYTES:
        raise ConfigError(
            f"'{key}' names the unknown dtype '{dtype}'", do=nearest(dtype, DTYPE_BYTES)
        )
