"""Which chips to make of a machine, decided from what was found on it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pluribus.measure.accelerators import AcceleratorGroup
from pluribus.measure.host import halves
from pluribus.measure.levels import Level, choose_pair

SITE = "local"

_CORES_PER_ACCELERATOR = 2  # one drives it, one feeds it


@dataclass(frozen=True, kw_only=True)
class Place:
    """A pool to be: everything of it but what is yet to be measured.

    Attributes:
        name: of the pool in its site.
        device: torch device type.
        cores: the CPU cores of its processes.
        level: of a CPU.
        group: of accelerators.
    """

    name: str
    device: str
    cores: tuple[int, ...]
    level: Level | None = None
    group: AcceleratorGroup | None = None

    @property
    def address(self) -> str:
        return f"{SITE}/{self.name}"

    @property
    def environment(self) -> dict[str, str]:
        if self.group is not None:
            return dict(self.group.environment)
        return dict(self.level.environment) if self.level else {}

    @property
    def dtypes(self) -> tuple[str, ...]:
        """What to measure it in: nothing where the catalogue knows the chip."""
        if self.group is None:
            return ("fp32", "bf16")
        return () if self.group.known else ("fp32", "bf16", "fp16")


def accelerator_places(
    groups: Sequence[AcceleratorGroup], cores: tuple[int, ...], native: Level
) -> tuple[list[Place], list[str]]:
    """A pool per kind of accelerator, and one of the CPU cores they leave over.

    Args:
        groups: at least one.
        cores: of the machine.
        native: the CPU, which is not capped beside accelerators.

    Returns:
        The places, and a note on each decision.
    """
    wanted = _CORES_PER_ACCELERATOR * sum(group.count for group in groups)
    serving = cores[: max(1, min(wanted, len(cores) // 2))]
    rest = cores[len(serving) :]
    places, notes = [], []
    for group in groups:
        places.append(
            Place(name=group.label, device=group.first.device, cores=serving, group=group)
        )
        known = f"the catalogue's {group.known.key}" if group.known else "not in the catalogue"
        notes.append(f"{SITE}/{group.label}: {group.count} × {group.first.name}, {known}.")
    if rest:
        places.append(Place(name=native.name, device="cpu", cores=rest, level=native))
        notes.append(f"{SITE}/{native.name}: the CPU beside them, on {describe_cores(rest)}.")
    return places, notes


def cpu_places(
    levels: Sequence[Level], rates: Mapping[str, float], cores: tuple[int, ...]
) -> tuple[list[Place], list[str]]:
    """One chip of a single core, otherwise two of the halves, as unlike as the levels make them.

    Args:
        levels: native first, then ever more capped.
        rates: FLOP/s of each level on one core.
        cores: of the machine.

    Returns:
        The places, and a note on each decision.
    """
    native = levels[0]
    if len(cores) == 1:
        place = Place(name=native.name, device="cpu", cores=cores, level=native)
        return [place], ["One core makes one chip; a second core would make two."]
    shown = ", ".join(f"{name} {rate / 1e9:.3g}" for name, rate in rates.items())
    notes = [f"fp32 matrix products on one core, GFLOP/s: {shown}."]
    first, second = halves(cores)
    pair = choose_pair(rates)
    if pair is None:
        notes.append(
            "No instruction-set cap slows this processor down: its halves are two equal chips, "
            f"on {describe_cores(first)} and {describe_cores(second)}."
        )
        return [
            Place(name=f"{native.name}-{letter}", device="cpu", cores=half, level=native)
            for letter, half in (("a", first), ("b", second))
        ], notes
    by_name = {level.name: level for level in levels}
    ratio = rates[pair[0]] / rates[pair[1]]
    notes.append(
        f"Two unlike chips: {pair[0]} on {describe_cores(first)}, and on "
        f"{describe_cores(second)} {pair[1]}, {ratio:.1f} times slower per core."
    )
    return [
        Place(name=name, device="cpu", cores=half, level=by_name[name])
        for name, half in zip(pair, (first, second), strict=True)
    ], notes


def describe_cores(cores: Sequence[int]) -> str:
    """``core 3``, ``cores 0–7``, or ``8 cores from 0`` where they are not in a row."""
    if len(cores) == 1:
        return f"core {cores[0]}"
    if cores[-1] - cores[0] == len(cores) - 1:
        return f"cores {cores[0]}–{cores[-1]}"
    return f"{len(cores)} cores from {cores[0]}"
