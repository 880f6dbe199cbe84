"""The foreign profile: measurements taken elsewhere, as JSON that other tools can write.

docs/measure.md describes every key. `ForeignProfile` is the file; `to_profile` makes a `Profile`
of one or several of them.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from pluribus.core.errors import ConfigError
from pluribus.core.io import read_json
from pluribus.core.schema import from_table
from pluribus.core.units import DTYPE_BYTES
from pluribus.spec.profile import LayerSize, LayerTime, LinkCurve, Profile

VERSION = 1
DEFAULT_SPREAD = 0.05  # of measurements that state none; not fitted
MOST_LAYERS = 100_000
_MOST = 1e30  # whatever is larger, in any unit of the format, is a mistake

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True, kw_only=True)
class ForeignTime:
    """Seconds of some layers on one chip, each of them by itself.

    Attributes:
        layers: ``embedding``, ``blocks``, ``head``, ``all``, an index or a range, ``2-24``.
        forward_s, backward_s: of one micro-batch, tensor-parallel sums included.
        update_s: of the optimiser, once per step.
    """

    chip: str
    layers: str
    tensor_parallel: int = 1
    micro_batch: int
    forward_s: float
    backward_s: float
    update_s: float | None = None
    spread: float = DEFAULT_SPREAD


@dataclass(frozen=True, kw_only=True)
class ForeignSize:
    """What one rank holds of each of some layers; `chip` only where chips differ."""

    layers: str
    tensor_parallel: int = 1
    micro_batch: int = 1
    parameters: int
    kept_bytes: float
    chip: str = ""


@dataclass(frozen=True, kw_only=True)
class ForeignLink:
    """A link by size: exactly one of `bandwidth`, `seconds` and `polynomial`.

    Attributes:
        between: two places, ``site/CHIP`` or ``CHIP``.
        chips: of each side that send at once; the rates are of all of them together.
        inside: between chips of one node.
        bandwidth: (bytes, bytes/s) pairs.
        seconds: (bytes, seconds) pairs.
        polynomial: 1e9 bytes/s in log2(1e6 bytes), highest power first.
    """

    between: tuple[str, str]
    chips: int = 1
    inside: bool = False
    latency_s: float = 0.0
    bandwidth: tuple[tuple[float, float], ...] = ()
    seconds: tuple[tuple[float, float], ...] = ()
    polynomial: tuple[float, ...] = ()
    limit_bytes_per_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class ForeignProfile:
    """One file of measurements of one model.

    Attributes:
        foreign_profile: version of the format.
        source: who measured with what.
        num_layers: embedding, blocks and head.
        chips: catalogue key, or key in the cluster file, of the chips' names in this file.
        hidden_size, vocab_size: for a model that has no Hugging Face config.
        file: where it came from, for messages.
    """

    foreign_profile: int = VERSION
    source: str
    model: str
    sequence_length: int
    precision: str
    num_layers: int
    hidden_size: int | None = None
    vocab_size: int | None = None
    chips: dict[str, str] = field(default_factory=dict)
    times: tuple[ForeignTime, ...] = ()
    sizes: tuple[ForeignSize, ...] = ()
    links: tuple[ForeignLink, ...] = ()
    file: str = ""

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ForeignProfile:
        """Reads and checks a file.

        Raises:
            MissingFileError, ConfigError: names file, key and value.
        """
        return cls.from_table(read_json(path), str(path))

    @classmethod
    def from_table(cls, table: Any, file: str) -> ForeignProfile:
        if isinstance(table, dict) and "file" in table:
            raise ConfigError("unknown key 'file'", where=file, do="Remove the key.")
        read = from_table(cls, table, file=file)
        read = replace(read, file=file)
        read.check()
        return read

    def check(self) -> None:
        """Raises ConfigError at the first value that cannot be."""
        if self.foreign_profile != VERSION:
            raise self.error(
                "foreign_profile", self.foreign_profile, f"This version reads {VERSION}."
            )
        if self.precision not in DTYPE_BYTES:
            raise self.error("precision", self.precision, f"Write one of {', '.join(DTYPE_BYTES)}.")
        for key in ("sequence_length", "hidden_size", "vocab_size"):
            value = getattr(self, key)
            if value is not None and not 1 <= value < _MOST:
                raise self.error(key, value, "Write a whole number of at least 1.")
        if not 3 <= self.num_layers <= MOST_LAYERS:
            raise self.error("num_layers", self.num_layers, "Count embedding, blocks and head.")
        for name in ("times", "sizes", "links"):
            for i, row in enumerate(getattr(self, name)):
                self._check_row(f"{name}[{i}]", row)

    def _check_row(self, at: str, row: ForeignTime | ForeignSize | ForeignLink) -> None:
        for name in (f.name for f in fields(row)):
            value = getattr(row, name)
            if isinstance(value, bool):
                continue
            counts = name == "chips" or name in ("tensor_parallel", "micro_batch")
            if counts and value < 1:
                raise self.error(f"{at}.{name}", value, "Write a whole number of at least 1.")
            if isinstance(value, (int, float)) and not 0 <= value < _MOST:
                raise self.error(f"{at}.{name}", value, f"Write a number from 0 to {_MOST:g}.")
        if isinstance(row, ForeignTime) and not row.forward_s + row.backward_s > 0:
            raise self.error(f"{at}.forward_s", row.forward_s, "A layer takes time.")
        if isinstance(row, ForeignLink):
            given = [k for k in ("bandwidth", "seconds", "polynomial") if getattr(row, k)]
            if len(given) != 1:
                raise self.error(
                    at, given or "neither", "Give one of bandwidth, seconds and polynomial."
                )
            pairs = [*row.bandwidth, *row.seconds]
            if any(not 0 < number < _MOST for pair in pairs for number in pair):
                raise self.error(f"{at}.{given[0]}", pairs, "Sizes and values are above zero.")
        else:
            self.indices(row.layers, f"{at}.layers")

    def indices(self, layers: str, at: str) -> range:
        """The layers that a row names."""
        last = self.num_layers - 1
        named = {
            "all": range(last + 1), "embedding": range(1), "blocks": range(1, last),
            "head": range(last, last + 1),
        }  # fmt: skip
        match = _RANGE.fullmatch(layers)
        if match:
            first, end = int(match[1]), int(match[2] or match[1])
            if first <= end <= last:
                return range(first, end + 1)
        elif layers in named:
            return named[layers]
        raise self.error(
            at, layers,
            f"Write embedding, blocks, head, all, an index from 0 to {last}, or a range like 1-2.",
        )  # fmt: skip

    def error(self, at: str, value: Any, do: str) -> ConfigError:
        text = str(value)
        shown = text if len(text) <= 60 else text[:57] + "…"
        return ConfigError(f"'{at}' is {shown}", where=f"{self.file} [{at}]", do=do)


def to_profile(files: Sequence[ForeignProfile], chip_key: Callable[[str], str]) -> Profile:
    """One Profile of all files.

    Args:
        files: of one model, sequence length and precision.
        chip_key: the key of a chip in cluster files by its name in the files.

    Raises:
        ConfigError: the files contradict each other, or a chip lacks a layer.
    """
    times: dict[tuple, tuple[Any, str]] = {}
    sizes: dict[tuple, tuple[Any, str]] = {}
    curves: dict[tuple, LinkCurve] = {}
    for file in files:
        keys = {name: chip_key(file.chips.get(name, name)) for name in _chips(file)}
        for i, time in enumerate(file.times):
            shape = (keys[time.chip], time.tensor_parallel, time.micro_batch)
            value = (time.forward_s, time.backward_s, time.update_s, time.spread)
            for layer in file.indices(time.layers, f"times[{i}].layers"):
                _enter(times, (*shape, layer), value, file, f"times[{i}]")
        for i, size in enumerate(file.sizes):
            shape = (keys.get(size.chip, ""), size.tensor_parallel, size.micro_batch)
            value = (size.parameters, size.kept_bytes)
            for layer in file.indices(size.layers, f"sizes[{i}].layers"):
                _enter(sizes, (*shape, layer), value, file, f"sizes[{i}]")
        for i, link in enumerate(file.links):
            curve = _curve(link, keys, file, f"links[{i}]")
            key = (frozenset(curve.between), curve.inside, curve.chips)
            if curves.setdefault(key, curve) != curve:
                raise file.error(f"links[{i}].between", list(link.between), "Give a link once.")
    first = files[0]
    _check_complete(times, first)
    common = {"sequence_length": first.sequence_length, "precision": first.precision}
    return Profile(
        layers=tuple(
            LayerTime(
                chip=chip, layer=layers, tensor_parallel=tp, micro_batch=size, forward=value[0],
                backward=value[1], update=value[2], spread=value[3], **common,
            )
            for (chip, tp, size), layers, value in _runs(times)
        ),
        sizes=tuple(
            LayerSize(
                chip=chip, layer=layers, tensor_parallel=tp, micro_batch=size,
                parameters=value[0], kept_bytes=value[1], **common,
            )
            for (chip, tp, size), layers, value in _runs(sizes)
        ),
        curves=tuple(curves.values()),
        source="; ".join(dict.fromkeys(file.source for file in files)),
    )  # fmt: skip


def _chips(file: ForeignProfile) -> Iterable[str]:
    """Every chip that a file names, those at the ends of links included."""
    names = [time.chip for time in file.times] + [size.chip for size in file.sizes if size.chip]
    names += [end.rpartition("/")[2] for link in file.links for end in link.between]
    return dict.fromkeys(names)


def _enter(
    rows: dict[tuple, tuple[Any, str]], key: tuple, value: Any, file: ForeignProfile, at: str
) -> None:
    place = f"{file.file} [{at}]"
    known, where = rows.setdefault(key, (value, place))
    if known != value:
        chip, tp, size, layer = key
        raise ConfigError(
            f"layer {layer} on {chip or 'every chip'} at tensor_parallel {tp} and micro_batch "
            f"{size} is {value}, but {known} in {where}",
            where=place,
            do="Keep one of the two.",
        )


def _check_complete(times: Iterable[tuple], file: ForeignProfile) -> None:
    known = defaultdict(set)
    for chip, _, _, layer in times:
        known[chip].add(layer)
    for chip, layers in known.items():
        missing = sorted(set(range(file.num_layers)) - layers)
        if missing:
            raise ConfigError(
                f"has no time of layer {missing[0]} on {chip} ({len(missing)} of "
                f"{file.num_layers} layers are missing there)",
                where=f"{file.file} [times]",
                do="Give every layer a time at one shape at least, or leave the chip out.",
            )


def _runs(rows: dict[tuple, tuple[Any, str]]) -> Iterable[tuple[tuple, str, Any]]:
    """Neighbouring layers of equal value as one row, named ``#3`` or ``#2-24``."""
    shapes: dict[tuple, dict[int, Any]] = defaultdict(dict)
    for (*shape, layer), (value, _) in rows.items():
        shapes[tuple(shape)][layer] = value
    for shape, values in sorted(shapes.items()):
        first = None
        for layer in sorted(values):
            first = layer if first is None else first
            if layer + 1 in values and values[layer + 1] == values[layer]:
                continue
            yield shape, f"#{first}" if first == layer else f"#{first}-{layer}", values[layer]
            first = None


def _curve(link: ForeignLink, keys: dict[str, str], file: ForeignProfile, at: str) -> LinkCurve:
    ends = []
    for end in link.between:
        site, _, name = end.rpartition("/")
        ends.append(f"{site}/{keys[name]}" if site else keys[name])
    points = link.bandwidth or tuple((size, size / seconds) for size, seconds in link.seconds)
    try:
        return LinkCurve(
            between=(ends[0], ends[1]), chips=link.chips, inside=link.inside,
            latency_s=link.latency_s, points=points, polynomial=link.polynomial,
            limit_bytes_per_s=link.limit_bytes_per_s,
        )  # fmt: skip
    except ConfigError as error:
        error.where = f"{file.file} [{at}]"
        raise
