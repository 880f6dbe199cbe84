import statistics

import pytest

from pluribus.core.errors import ConfigError, PlanError
from pluribus.hardware.catalogue import find_chip, load_catalogue
from pluribus.hardware.chip import (
    DEFAULT_MATMUL_EFFICIENCY,
    MATMUL_EFFICIENCY_8BIT,
    VENDOR_MATMUL_EFFICIENCY,
    Chip,
)

NUMBERS = {
    "key": "mine", "vendor": "own", "name": "mine", "device": "cpu", "source": "test",
    "memory_gib": 2, "memory_gbytes_per_s": 10, "peak_tflops": {"bf16": 1.0},
}  # fmt: skip


def test_catalogue_has_many_chips_each_with_source_and_16_bit_rate():
    chips = load_catalogue()
    assert len(chips) >= 50
    for key, chip in chips.items():
        assert key == chip.key == key.lower()
        assert chip.source
        assert chip.vendor
        assert chip.name
        best = "bf16" if chip.supports("bf16") else "fp16"
        assert 30e12 < chip.matmul_flops(best) < 5000e12, key
        assert chip.memory_bytes_per_s > 1e11


def test_no_measurement_exceeds_its_peak():
    for chip in load_catalogue().values():
        for dtype, measured in chip.measured_tflops.items():
            assert measured <= chip.peak_tflops[dtype], (chip.key, dtype)


def test_efficiencies_are_the_medians_of_the_catalogue():
    wide: dict[str, list[float]] = {}
    narrow = []
    for chip in load_catalogue().values():
        for dtype, measured in chip.measured_tflops.items():
            group = narrow if dtype in ("fp8", "int8") else wide.setdefault(chip.vendor, [])
            group.append(measured / chip.peak_tflops[dtype])
    for vendor, efficiency in VENDOR_MATMUL_EFFICIENCY.items():
        assert efficiency == pytest.approx(statistics.median(wide[vendor]), abs=1e-3)
    medians = [statistics.median(ratios) for ratios in wide.values()]
    metax = 0.828  # FlagPerf's ratio; the catalogue has no absolute figure for the C550
    assert pytest.approx(statistics.median([*medians, metax]), abs=1e-3) == (
        DEFAULT_MATMUL_EFFICIENCY
    )
    assert pytest.approx(statistics.median(narrow), abs=1e-3) == MATMUL_EFFICIENCY_8BIT


def test_matmul_flops_prefers_the_measurement():
    chip = find_chip("nvidia-h100-80g", where="test")
    assert chip.matmul_flops("bf16") == 956e12
    assert chip.matmul_flops("fp8") == 1403e12
    assert chip.matmul_flops("fp16") == pytest.approx(989e12 * 0.935)


def test_matmul_flops_without_measurement_depends_on_vendor_and_width():
    a800 = find_chip("nvidia-a800-80g", where="test")
    assert a800.matmul_flops("bf16") == pytest.approx(312e12 * 0.935)
    assert a800.matmul_flops("int8") == pytest.approx(624e12 * 0.745)
    mi210 = find_chip("amd-mi210", where="test")
    assert mi210.matmul_flops("bf16") == pytest.approx(181e12 * 0.604)
    ascend = find_chip("ascend-910b3", where="test")
    assert ascend.matmul_flops("bf16") == pytest.approx(313e12 * 0.882)


def test_a_dtype_the_chip_lacks_is_told_from_one_without_figure():
    v100 = find_chip("nvidia-v100-32g", where="test")
    assert not v100.supports("bf16")
    with pytest.raises(PlanError) as lacking:
        v100.matmul_flops("bf16")
    assert "chip 'nvidia-v100-32g' has no bf16" in str(lacking.value)
    assert "It has fp16, fp32." in str(lacking.value)
    with pytest.raises(PlanError, match="has no known rate for int8"):
        v100.matmul_flops("int8")


def test_memory_is_binary_and_its_measured_bandwidth_wins():
    chip = Chip(**NUMBERS)
    assert chip.memory_bytes == 2 * 2**30
    assert chip.memory_bytes_per_s == 10e9
    assert Chip(**NUMBERS, measured_memory_gbytes_per_s=7).memory_bytes_per_s == 7e9


def test_chips_can_be_keys():
    assert {Chip(**NUMBERS): 1}[Chip(**NUMBERS)] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory_gib": 0}, "'memory_gib' is 0"),
        ({"memory_gbytes_per_s": float("nan")}, "'memory_gbytes_per_s' is nan"),
        ({"watts": -5}, "'watts' is -5"),
        ({"price_per_hour": -0.5}, "'price_per_hour' is -0.5"),
        ({"peak_tflops": {"bf16": -1}}, "'peak_tflops.bf16' is -1"),
        ({"peak_tflops": {"bf61": 1}}, "'peak_tflops' names the unknown dtype 'bf61'"),
        ({"unsupported_dtypes": ("fp88",)}, "did you mean 'fp8'?"),
        ({"peak_tflops": {}}, "chip 'mine' has no throughput of any dtype"),
        ({"unsupported_dtypes": ("bf16",)}, "chip 'mine' has no throughput of any dtype"),
    ],
)
def test_bad_numbers_are_named(change, message):
    with pytest.raises(ConfigError) as error:
        Chip(**NUMBERS | change)
    assert message in str(error.value)


def test_find_chip_offers_the_nearest_key():
    with pytest.raises(ConfigError) as error:
        find_chip("nvidia-a800-80gb", where="cluster.toml [pool[0].chip]")
    assert str(error.value) == (
        "cluster.toml [pool[0].chip]: unknown chip 'nvidia-a800-80gb'\n"
        "  Did you mean 'nvidia-a800-80g'? Or give the chip as a table with its numbers."
    )
