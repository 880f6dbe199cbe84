"""probe: describes the machine it runs on as a Cluster of unlike chips."""

from __future__ import annotations

import importlib.util
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from pluribus.comm.launch import RankProcess, Ranks
from pluribus.core.errors import MeasureError
from pluribus.core.schema import to_table
from pluribus.core.units import GBPS_TO_BYTES, GIB, format_bytes
from pluribus.hardware.chip import Chip
from pluribus.hardware.cluster import Cluster
from pluribus.hardware.link import LinkSpec
from pluribus.hardware.pool import Pool
from pluribus.measure.accelerators import Accelerator, group_accelerators
from pluribus.measure.fit import round_figures
from pluribus.measure.host import Host, look_at_host
from pluribus.measure.levels import Level, capped_levels, native_level
from pluribus.measure.places import Place, accelerator_places, cpu_places
from pluribus.measure.tasks import RatesTask, World

SOURCE = "measured by pluribus probe"

_MODULE = "pluribus.measure.worker"
_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class ProbeResult:
    """What `probe` found.

    Attributes:
        cluster: this machine.
        notes: what was found and decided, a line each.
    """

    cluster: Cluster
    notes: tuple[str, ...]


def probe(*, progress: Callable[[str], None] = lambda _: None) -> ProbeResult:
    """Looks at this machine and describes it as a cluster.

    Accelerators become a pool per kind, beside one of the CPU cores they leave over. A machine
    without any becomes two pools of one CPU chip each, on half of the cores, made unlike by an
    instruction-set cap where one really slows the processor down.

    Args:
        progress: told each thing before it is measured.

    Raises:
        MeasureError: PyTorch is not installed.
        RankError: a measuring process died.
    """
    if importlib.util.find_spec("torch") is None:
        raise MeasureError(
            "measuring needs PyTorch, which is not installed", do='pip install "pluribus[train]"'
        )
    host = look_at_host()
    with tempfile.TemporaryDirectory(prefix="pluribus-probe-") as folder:
        return _Probe(host, Path(folder), progress).run()


class _Probe:
    """One probe under way; its processes' logs live as long as it does."""

    def __init__(self, host: Host, logs: Path, progress: Callable[[str], None]) -> None:
        self._host = host
        self._logs = logs
        self._progress = progress

    def run(self) -> ProbeResult:
        places, notes = self._decide()
        together = " at the same time" if len(places) > 1 else ""
        names = " and ".join(place.name for place in places)
        self._progress(f"timing {names}{together}, and messages between processes")
        rates, links = self._ranks(places)
        if len(places) == 1:
            # The way to another process of this machine, since there is no other chip.
            _, links = self._ranks([replace(places[0], device="cpu", group=None)] * 2, rates=False)
        num_cpus = sum(place.group is None for place in places)
        pools = tuple(
            Pool(
                address=place.address,
                chip=_chip(place, self._host, rates.get(rank), num_cpus),
                nodes=1,
                chips_per_node=place.group.count if place.group else 1,
                nic_gbps=max(_gbps(link) for link in links.values()),
                nic_latency_us=min(_latency_us(link) for link in links.values()),
                environment=place.environment,
                cores=place.cores,
            )
            for rank, place in enumerate(places)
        )
        specs = tuple(
            LinkSpec(
                (places[a].address, places[b].address), _gbps(links[a, b]), _latency_us(links[a, b])
            )
            for a, b in combinations(range(len(places)), 2)
        )
        notes += [note for rank in rates for note in _chip_notes(places[rank], pools[rank].chip)]
        notes += [
            f"{' – '.join(spec.between)}: {spec.gbps:g} Gbit/s, latency {spec.latency_us:g} µs."
            for spec in specs
        ]
        return ProbeResult(Cluster(pools, specs), tuple(notes))

    def _decide(self) -> tuple[list[Place], list[str]]:
        host = self._host
        native = native_level(host.flags, platform.machine())
        self._progress(f"looking for accelerators, and timing {native.name} on one core")
        events = self._alone(native, look=True)
        groups = group_accelerators(
            [Accelerator(**entry) for entry in events["accelerators"]["found"]]
        )
        cores = f"{len(host.cores)} core{'s' * (len(host.cores) > 1)}"
        note = f"{host.name}: {cores} and {format_bytes(host.memory_bytes)} of memory to use"
        if groups:
            places, notes = accelerator_places(groups, host.cores, native)
            return places, [f"{note}.", *notes]
        rates = {native.name: events["rates"]["matmul"]["fp32"]}
        capped = capped_levels(native, host.vendor) if len(host.cores) > 1 else ()
        for level in capped:
            self._progress(f"timing {level.name} on one core")
            rates[level.name] = self._alone(level)["rates"]["matmul"]["fp32"]
        places, notes = cpu_places([native, *capped], rates, host.cores)
        return places, [f"{note}, no accelerator.", *notes]

    def _alone(self, level: Level, *, look: bool = False) -> dict[str, dict[str, Any]]:
        """Events of one level on one core: levels are compared, so nothing else may differ."""
        task = RatesTask(device="cpu", dtypes=("fp32",), memory=False, look=look)
        place = Place(name=level.name, device="cpu", cores=self._host.cores[:1], level=level)
        with Ranks(_MODULE, [_process(0, place, task)], self._logs) as ranks:
            return {event["event"]: event for _, event in ranks.events(_TIMEOUT_S)}

    def _ranks(
        self, places: Sequence[Place], *, rates: bool = True
    ) -> tuple[dict[int, dict[str, Any]], dict[tuple[int, int], dict[str, Any]]]:
        """The chips' rates by rank, taken while all of them work; then links by pair of ranks."""
        from pluribus.comm.fabric import host_store  # imports torch, which takes seconds

        store, port = host_store(_TIMEOUT_S)
        devices = tuple(place.device for place in places)
        world = World(port=port, devices=devices) if len(places) > 1 else None
        processes = [
            _process(
                rank,
                place,
                RatesTask(device=place.device, dtypes=place.dtypes if rates else (), world=world),
            )
            for rank, place in enumerate(places)
        ]
        measured, links = {}, {}
        with Ranks(_MODULE, processes, self._logs) as ranks:
            for rank, event in ranks.events(_TIMEOUT_S):
                if event["event"] == "rates":
                    measured[rank] = event
                else:
                    links[tuple(event["ranks"])] = event
        del store  # it had to live as long as the ranks
        return measured, links


def _process(rank: int, place: Place, task: RatesTask) -> RankProcess:
    return RankProcess(
        rank=rank,
        chip=place.address,
        environment=place.environment,
        cores=place.cores,
        config={"rates": to_table(task)},
    )


def _chip(place: Place, host: Host, rates: Mapping[str, Any] | None, num_cpus: int) -> Chip:
    """The chip's table: the catalogue's, or as measured; CPUs share the memory evenly."""
    if place.group is not None and place.group.known is not None:
        return place.group.known
    assert rates is not None, f"{place.name} was not measured"
    if place.group is not None:
        key, name, vendor = place.name, place.group.first.name, "unknown"
        memory = place.group.first.memory_bytes
    else:
        assert place.level is not None
        cap = f", capped to {place.level.name}" if place.environment else ""
        key, name, vendor = f"cpu-{place.level.name}", f"{host.name}{cap}", host.vendor
        memory = host.memory_bytes // num_cpus
    tflops = {dtype: round_figures(rate / 1e12) for dtype, rate in rates["matmul"].items()}
    gbytes = round_figures(rates["copy"] / 1e9)
    return Chip(
        key=key,
        vendor=vendor or "unknown",
        name=name,
        device=place.device,
        memory_gib=round_figures(memory / GIB),
        memory_gbytes_per_s=gbytes,
        measured_memory_gbytes_per_s=gbytes,
        peak_tflops=tflops,
        measured_tflops=tflops,
        source=SOURCE,
    )


def _chip_notes(place: Place, chip: Chip) -> list[str]:
    listed = ", ".join(f"{dtype} {1e3 * rate:g}" for dtype, rate in chip.measured_tflops.items())
    memory = f"{chip.memory_gib:g} GiB of memory at {chip.memory_gbytes_per_s:g} GB/s"
    notes = [f"{place.address}: {listed} GFLOP/s, {memory}."]
    slow = [dtype for dtype in place.dtypes if dtype not in chip.measured_tflops]
    if slow:
        notes.append(
            f"{place.address} has no {' or '.join(slow)} worth using (under half the rate of "
            f'fp32): a job needs precision = "fp32" to include it.'
        )
    return notes


def _gbps(link: Mapping[str, Any]) -> float:
    return round_figures(link["bytes_per_s"] / GBPS_TO_BYTES)


def _latency_us(link: Mapping[str, Any]) -> float:
    return round_figures(link["latency_s"] * 1e6)
