"""What probe decides, from invented machines."""

import pytest

from pluribus.core.units import GIB
from pluribus.measure.accelerators import Accelerator, group_accelerators, match_chip
from pluribus.measure.host import choose_cores, halves, parse_cpuinfo
from pluribus.measure.levels import Level, capped_levels, choose_pair, native_level
from pluribus.measure.places import accelerator_places, cpu_places

A100 = Accelerator("cuda", "NVIDIA A100-SXM4-80GB", int(79.3 * GIB), "a1")
RTX = Accelerator("cuda", "NVIDIA GeForce RTX 4090", int(23.6 * GIB), "b2")


@pytest.mark.parametrize(
    ("rates", "pair"),
    [
        ({"avx2": 80e9, "sse4.2": 22e9}, ("avx2", "sse4.2")),
        ({"avx512": 158e9, "avx2": 92e9, "sse4.2": 35e9}, ("avx512", "sse4.2")),
        # Noise made the cap look a little faster: the uncapped level still stands for both.
        ({"avx512": 90e9, "avx2": 92e9, "sse4.2": 35e9}, ("avx512", "sse4.2")),
        # The strongest cap does nothing here, the weaker one does.
        ({"avx512": 100e9, "avx2": 50e9, "sse4.2": 80e9}, ("avx512", "avx2")),
        ({"avx2": 80e9, "sse4.2": 61e9}, None),
        ({"arm64": 80e9}, None),
    ],
)
def test_choose_pair(rates, pair):
    assert choose_pair(rates) == pair


def test_levels_name_every_variable_that_matters_on_their_processor():
    native = native_level(frozenset({"sse4_2", "avx2", "avx512f"}), "x86_64")
    assert native == Level("avx512")
    assert [level.name for level in capped_levels(native, "Intel")] == ["avx2", "sse4.2"]
    (amd,) = capped_levels(Level("avx2"), "AMD")
    (intel,) = capped_levels(Level("avx2"), "Intel")
    assert amd.environment == {**intel.environment, "MKL_CBWR": "COMPATIBLE"}
    assert capped_levels(native_level(frozenset({"asimd"}), "aarch64"), "") == ()


def test_cores_are_physical_ones_and_neighbours():
    # Two packages of two cores of two threads, numbered as Linux does.
    places = {thread: (thread % 4 // 2, thread % 2) for thread in range(8)}
    assert choose_cores(places) == (0, 1, 2, 3)
    assert halves((0, 1, 2, 3)) == ((0, 1), (2, 3))
    assert choose_cores({4: (0, 0), 5: (0, 0)}) == (4, 5)  # one core: its threads are all there is
    assert choose_cores(places, quota=2.5) == (0, 1)
    assert choose_cores(places, quota=0.5) == (0,)


def test_cpuinfo_of_the_first_processor():
    text = "vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nflags\t\t: sse4_2 avx2\n\n"
    name, vendor, flags = parse_cpuinfo(text + text.replace("avx2", "other"))
    assert (name, vendor, flags) == ("AMD EPYC", "AMD", {"sse4_2", "avx2"})
    assert parse_cpuinfo("") == ("", "", frozenset())


@pytest.mark.parametrize(
    ("device", "name", "gib", "key"),
    [
        ("cuda", "NVIDIA A100-SXM4-80GB", 79.3, "nvidia-a100-80g"),
        ("cuda", "NVIDIA A100-SXM4-40GB", 39.4, "nvidia-a100-40g"),
        ("cuda", "NVIDIA A100 80GB PCIe", 79.3, "nvidia-a100-pcie-80g"),
        ("cuda", "NVIDIA A100-PCIE-40GB", 39.4, None),
        ("cuda", "NVIDIA A100-SXM4-40GB MIG 3g.20gb", 19.5, None),
        ("cuda", "NVIDIA H100 80GB HBM3", 79.1, "nvidia-h100-80g"),
        ("cuda", "NVIDIA H100 NVL", 93.1, None),
        ("cuda", "NVIDIA H200", 139.8, "nvidia-h200-141g"),
        ("cuda", "NVIDIA H20", 95.6, "nvidia-h20-96g"),
        ("cuda", "NVIDIA GB200", 184.0, "nvidia-gb200-186g"),
        ("cuda", "NVIDIA GeForce RTX 4090", 23.6, "nvidia-rtx-4090"),
        ("cuda", "NVIDIA GeForce RTX 4090 D", 23.6, None),
        ("cuda", "NVIDIA GeForce GTX 1080", 8.0, None),
        ("cuda", "AMD Instinct MI300X", 191.7, "amd-mi300x"),
        ("npu", "Ascend910B3", 61.3, "ascend-910b3"),
        ("mps", "mps", 16.0, None),
    ],
)
def test_devices_are_recognised_by_part_build_and_memory(device, name, gib, key):
    chip = match_chip(Accelerator(device, name, int(gib * GIB)))
    assert (chip.key if chip else None) == key


def test_unlike_accelerators_are_pools_that_see_their_own_devices():
    (alone,) = group_accelerators([A100, A100])
    assert (alone.label, alone.count, alone.environment) == ("nvidia-a100-80g", 2, {})
    big, small = group_accelerators([A100, RTX, A100])
    assert big.environment == {"CUDA_VISIBLE_DEVICES": "GPU-a1,GPU-a1"}
    assert small.environment == {"CUDA_VISIBLE_DEVICES": "GPU-b2"}
    places, _ = accelerator_places([big, small], tuple(range(16)), Level("avx512"))
    assert [place.address for place in places] == [
        "local/nvidia-a100-80g", "local/nvidia-rtx-4090", "local/avx512",
    ]  # fmt: skip
    assert [len(place.cores) for place in places] == [6, 6, 10]
    assert not set(places[0].cores) & set(places[2].cores)


def test_an_accelerator_leaves_a_single_core_no_chip_of_its_own():
    places, _ = accelerator_places(group_accelerators([A100]), (0,), Level("avx2"))
    assert [place.device for place in places] == ["cuda"]


def test_halves_are_equal_chips_when_no_cap_works():
    places, notes = cpu_places([Level("aarch64")], {"aarch64": 50e9}, (0, 1, 2))
    assert [(place.name, place.cores) for place in places] == [
        ("aarch64-a", (0, 1)), ("aarch64-b", (2,)),
    ]  # fmt: skip
    assert "two equal chips" in notes[-1]


def test_one_core_is_one_chip():
    places, notes = cpu_places([Level("avx2")], {"avx2": 50e9}, (3,))
    assert [place.cores for place in places] == [(3,)]
    assert "One core" in notes[-1]
