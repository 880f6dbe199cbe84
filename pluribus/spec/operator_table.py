"""OperatorTable: measured seconds of one operator on one chip, by its shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from types import MappingProxyType

from pluribus.core.errors import ConfigError, nearest
from pluribus.core.units import DTYPE_BYTES

# Of each operator the numbers that make its shape.
SHAPES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "gemm": ("m", "n", "k"),
        "attention": ("batch", "heads", "kv_heads", "head_dim", "tokens"),
        "decode_attention": ("batch", "heads", "kv_heads", "head_dim", "context"),
        "experts": ("rows", "hidden", "intermediate", "experts"),
        "elementwise": ("bytes",),
        "all_reduce": ("members", "bytes"),
        "all_gather": ("members", "bytes"),
        "reduce_scatter": ("members", "bytes"),
        "all_to_all": ("members", "bytes"),
    }
)


@dataclass(frozen=True, kw_only=True, eq=False)
class OperatorTable:
    """Seconds of an operator on one chip at the shapes that were measured.

    ==================  ====================================================================
    operator            one row is
    ==================  ====================================================================
    gemm                one product of (m, k) with (k, n)
    attention           causal flash attention, ``batch`` sequences of ``tokens`` tokens
    decode_attention    one new token of each of ``batch`` sequences against ``context`` cached
                        ones; latent attention (DeepSeek) has kv_heads 1
    experts             gated experts: both products and the activation, ``rows`` token-expert
                        pairs over ``experts`` of width ``intermediate``
    elementwise         a kernel that reads and writes ``bytes`` in all
    all_reduce, …       a collective of ``members`` chips of one node; bytes as in
                        `collective_seconds`
    ==================  ====================================================================

    Attributes:
        chip: chip key.
        operator: a key of `SHAPES`.
        precision: of the operands; of the cache for decode_attention; empty for collectives,
            whose shape is in bytes.
        shape: a column for each name of the shape, equally long.
        seconds: of each row.
        spread: relative half-width of the middle half of the repeats, the median over rows; 0
            where the source does not say.
        source: where it was measured and with what.

    Raises:
        ConfigError: an unknown operator or dtype, missing columns, columns of unequal length,
            or numbers that are not above zero.
    """

    chip: str
    operator: str
    precision: str = ""
    shape: dict[str, tuple[int, ...]]
    seconds: tuple[float, ...]
    spread: float = 0.0
    source: str

    def __post_init__(self) -> None:
        if self.operator not in SHAPES:
            raise ConfigError(
                f"unknown operator '{self.operator}'", do=nearest(self.operator, SHAPES)
            )
        if self.precision and self.precision not in DTYPE_BYTES:
            raise ConfigError(
                f"unknown precision '{self.precision}'", do=nearest(self.precision, DTYPE_BYTES)
            )
        names = SHAPES[self.operator]
        lengths = {len(self.seconds), *(len(column) for column in self.shape.values())}
        if set(self.shape) != set(names) or len(lengths) > 1:
            raise ConfigError(
                f"a table of {self.operator} with the columns {', '.join(self.shape) or 'none'} "
                f"of {'unequal' if len(lengths) > 1 else 'equal'} length",
                do=f"Give {', '.join(names)} and seconds, equally long.",
            )
        numbers = (*self.seconds, *(n for column in self.shape.values() for n in column))
        if numbers and min(numbers) <= 0:
            raise ConfigError(
                f"a table of {self.operator} holds {min(numbers)}", do="Measure it again."
            )

    @classmethod
    def of_rows(
        cls, chip: str, operator: str, precision: str,
        rows: Iterable[tuple[tuple[int, ...], float]], *, source: str, spread: float = 0.0,
    ) -> OperatorTable:  # fmt: skip
        """A table of (shape, seconds) rows; seconds keep four significant figures."""
        listed = sorted(rows)
        columns = zip(*(shape for shape, _ in listed), strict=True)
        return cls(
            chip=chip, operator=operator, precision=precision, source=source, spread=spread,
            shape=dict(zip(SHAPES[operator], (tuple(c) for c in columns), strict=True)),
            seconds=tuple(float(f"{seconds:.4g}") for _, seconds in listed),
        )  # fmt: skip

    @cached_property
    def rows(self) -> dict[tuple[int, ...], float]:
        """Seconds by shape."""
        columns = (self.shape[name] for name in SHAPES[self.operator])
        return dict(zip(zip(*columns, strict=True), self.seconds, strict=True))

    # Tables key the caches of the predictor; hashing thousands of rows at every look-up would
    # cost more than the regression.
    @cached_property
    def _hash(self) -> int:
        columns = tuple(sorted(self.shape.items()))
        return hash((self.chip, self.operator, self.precision, self.seconds, columns))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, OperatorTable):
            return self is other
        return self._hash == other._hash and all(
            getattr(self, f.name) == getattr(other, f.name) for f in fields(self)
        )
