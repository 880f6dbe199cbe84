"""Measurements taken elsewhere: our format and Sailor's, what is taken and what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pluribus.core.errors import ConfigError, MissingFileError
from pluribus.core.io import write_json
from pluribus.hardware.catalogue import load_catalogue
from pluribus.hardware.cluster import Cluster
from pluribus.measure.foreign import ForeignProfile, to_profile
from pluribus.measure.imported import Defaults, chip_namer, find, profile_of
from pluribus.measure.starter import chip_of, starter_cluster, starter_config
from pluribus.model.model import Model
from pluribus.spec.profile import Profile

# Four layers of 8 numbers at a sequence of 16: an embedding, two blocks, a head of 24 words.
TIMES = {"chip": "Odd-7", "tensor_parallel": 1, "update_s": 0.5}
FOREIGN: dict[str, Any] = {
    "foreign_profile": 1, "source": "a test", "model": "tiny", "sequence_length": 16,
    "precision": "fp32", "num_layers": 4, "hidden_size": 8, "vocab_size": 24,
    "times": [
        {**TIMES, "layers": "embedding", "micro_batch": 1, "forward_s": 0.1, "backward_s": 0.0},
        {**TIMES, "layers": "blocks", "micro_batch": 1, "forward_s": 1.0, "backward_s": 2.0},
        {**TIMES, "layers": "blocks", "micro_batch": 2, "forward_s": 1.8, "backward_s": 3.6},
        {**TIMES, "layers": "head", "micro_batch": 1, "forward_s": 0.4, "backward_s": 0.8},
    ],
    "sizes": [
        {"layers": "embedding", "parameters": 200, "kept_bytes": 0},
        {"layers": "1-2", "parameters": 900, "kept_bytes": 4000},
        {"layers": "3", "parameters": 192, "kept_bytes": 3000},
    ],
    "links": [
        {"between": ["here/Odd-7", "there/Odd-7"], "seconds": [[1e6, 0.5], [4e6, 1.0]]},
        {"between": ["Odd-7", "Odd-7"], "chips": 2, "inside": True, "bandwidth": [[1e6, 3e9]]},
    ],
}  # fmt: skip


def changed(place: str, value: Any) -> dict[str, Any]:
    """The file with one value changed, e.g. at ``times.1.forward_s``."""
    table = copy.deepcopy(FOREIGN)
    at: Any = table
    *outer, last = [int(key) if key.isdecimal() else key for key in place.split(".")]
    for key in outer:
        at = at[key]
    at[last] = value
    return table


def test_a_foreign_profile_becomes_a_profile() -> None:
    file = ForeignProfile.from_table(FOREIGN, "f.json")
    profile = to_profile([file], str)
    assert profile.num_layers == 4
    assert {time.layer for time in profile.layers} == {"#0", "#1-2", "#3"}
    assert profile.layer("Odd-7", "#2", 2, 16, 1, "fp32").backward == 3.6
    assert profile.layer("Odd-7", "#0", 1, 16, 1, "fp32").update == 0.5
    assert profile.size_grid("Odd-7", "#1", 16, "fp32")[1][1].kept_bytes == 4000
    (curve,) = profile.curve(("here/Odd-7",), ("there/Odd-7",))
    assert curve.bytes_per_s(4e6) == pytest.approx(4e6)
    assert profile.cluster_digest == ""
    assert profile.source == "a test"


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        ("foreign_profile", 2, "'foreign_profile' is 2"),
        ("precision", "fp33", "'precision' is fp33"),
        ("num_layers", 2, "'num_layers' is 2"),
        ("num_layers", 10**9, "'num_layers' is 1000000000"),
        ("sequence_length", "16", "'sequence_length' is '16'"),
        ("times.1.forward_s", -1.0, "'times[1].forward_s' is -1.0"),
        ("times.1.forward_s", float("nan"), "'times[1].forward_s' is nan"),
        ("times.1.backward_s", 1e300, "'times[1].backward_s' is 1e+300"),
        ("times.1.micro_batch", 0, "'times[1].micro_batch' is 0"),
        ("times.1.layers", "1-9", "'times[1].layers' is 1-9"),
        ("times.1.layers", "block", "'times[1].layers' is block"),
        ("times.1.forwards", 1.0, "unknown key 'forwards'"),
        ("times.3.layers", "0", "layer 0 on Odd-7"),
        ("times.3.chip", "Even-8", "no time of layer 3 on Odd-7"),
        ("sizes.0.parameters", 0.5, "'sizes[0].parameters' is 0.5"),
        ("sizes.0.parameters", 10**400, "'sizes[0].parameters' is 1000"),
        ("sizes.0.kept_bytes", float("inf"), "'sizes[0].kept_bytes' is inf"),
        ("links.0.polynomial", [1.0], "'links[0]' is ['seconds', 'polynomial']"),
        ("links.0.seconds", [[4e6, 1.0], [1e6, 0.5]], "do not ascend"),
        ("links.0.seconds", [[1e6, 0.0]], "'links[0].seconds'"),
        ("links.1", {"between": ["a", "b"], "polynomial": [float("nan")]}, "not above zero"),
        ("links.1.between", ["here/Odd-7"], "'links[1].between'"),
    ],
)
def test_what_cannot_be_used_is_named(place: str, value: Any, complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        to_profile([ForeignProfile.from_table(changed(place, value), "f.json")], str)
    assert complaint in str(error.value)
    assert "f.json" in str(error.value)
    assert error.value.do


# Sailor's forms of the same: two micro-batches at one degree, one at the other.
def sailor_times(forward: float = 1.0) -> dict[str, Any]:
    def layers(scale: float) -> dict[str, list[float]]:
        block = [forward * scale, 2 * forward * scale, 0.5]
        return {"0": [0.1, 0.0, 0.5], "1": block, "2": block, "3": [0.4, 0.8, 0.5]}

    return {"1": {"1": layers(1.0), "2": layers(0.6)}, "2": {"1": layers(1.8)}}


SIZE_KEYS = ("params_floats", "act_mem_floats", "act_output_floats")
SAILOR_SIZES = {
    str(tp): {
        str(i): dict(zip(SIZE_KEYS, values, strict=True))
        for i, values in enumerate(
            [
                (200 // tp, 0, 128), (900 // tp, 1000 // tp, 128), (900 // tp, 1000 // tp, 128),
                (192 // tp, 700, 16 * 24 // tp),
            ]
        )
    }
    for tp in (1, 2)
}  # fmt: skip
INSIDE = {"A100-40": {"2": [[0.0, 0.0, 50.0], 40e9]}}
FLAT = [[0.0, 0.0, 2.0], 1.5e9]
ZONES = {"z1": {"A100-40": {"2": {"z1": {"A100-40": {"2": FLAT}}, "z2": {"Odd-7": {"2": FLAT}}}}}}


@pytest.fixture
def sailor(tmp_path: Path) -> Path:
    write_json(tmp_path / "times.json", {"tiny": {"A100-40": sailor_times()}})
    write_json(tmp_path / "sizes.json", {"tiny": SAILOR_SIZES})
    write_json(tmp_path / "inside.json", INSIDE)
    write_json(tmp_path / "zones.json", ZONES)
    return tmp_path


DEFAULTS = Defaults(sequence_length=16)


def test_sailors_files_become_a_profile(sailor: Path) -> None:
    write_json(sailor / "settings.json", {"note": "no profile"})
    found = find([sailor], defaults=DEFAULTS)
    assert [Path(name).name for name in found.skipped] == ["settings.json"]
    assert (found.first.hidden_size, found.first.vocab_size) == (8, 24)
    profile = profile_of(found)
    key = "nvidia-a100-40g"
    assert profile.layer(key, "#2", 1, 16, 2, "fp32").forward == pytest.approx(0.6)
    assert profile.size_grid(key, "#1", 16, "fp32")[2][1].parameters == 450
    assert profile.size_grid(key, "#1", 16, "fp32")[1][1].kept_bytes == 4000
    (inside,) = profile.curve((key,), (key,), inside=True)
    assert inside.bytes_per_s(64e6) == 2 * 40e9  # of both chips together
    (across,) = profile.curve(("z2/Odd-7",), (f"z1/{key}",))
    assert (across.chips, across.bytes_per_s(64e6)) == (2, 1.5e9)


def test_folders_name_what_their_files_do_not(sailor: Path, tmp_path: Path) -> None:
    (sailor / "times.json").unlink()
    folder = tmp_path / "tiny" / "A100-40"
    write_json(folder / "profile.json", sailor_times())
    assert find([tmp_path], defaults=DEFAULTS).first.model == "tiny"
    profile = profile_of(find([tmp_path], defaults=DEFAULTS))
    assert profile.layer("nvidia-a100-40g", "#1", 1, 16, 1, "fp32").backward == 2.0


def test_a_shape_that_did_not_fit_is_a_hole(sailor: Path) -> None:
    times = sailor_times()
    times["2"]["1"]["1"] = [float("inf"), float("inf"), 0.5]
    times["4"] = {}
    text = json.dumps({"tiny": {"A100-40": times}})
    (sailor / "times.json").write_text(text)
    profile = profile_of(find([sailor], defaults=DEFAULTS))
    assert profile.layer("nvidia-a100-40g", "#1", 2, 16, 1, "fp32") is None
    assert profile.layer("nvidia-a100-40g", "#2", 2, 16, 1, "fp32").forward == 1.8


def edit(file: Path, change: Callable[[Any], None]) -> None:
    table = json.loads(file.read_text())
    change(table)
    file.write_text(json.dumps(table))


def set_time(value: Any) -> Callable[[Any], None]:
    def change(table: Any) -> None:
        table["tiny"]["A100-40"]["1"]["2"]["3"] = value

    return change


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("times", set_time([1.0, -2.0, 0.5]), "tiny.A100-40.1.2.3"),
        ("times", set_time([1.0]), "tiny.A100-40.1.2.3"),
        ("times", set_time(["1", 2.0, 3.0]), "tiny.A100-40.1.2.3"),
        ("times", lambda t: t["tiny"]["A100-40"].update(two={"1": {"0": [1, 2, 3]}}), "'two'"),
        ("times", lambda t: t["tiny"]["A100-40"]["1"]["1"].pop("2"), None),  # another shape has it
        ("sizes", lambda t: t["tiny"]["1"]["1"].pop("act_mem_floats"), "act_mem_floats"),
        ("sizes", lambda t: t["tiny"]["1"]["1"].update(act_output_floats=100), "--sequence-length"),
        ("sizes", lambda t: t["tiny"]["1"].update({"9": t["tiny"]["1"]["1"]}), "below 4"),
        ("inside", lambda t: t["A100-40"]["2"].append(3), "A100-40.2"),
        ("zones", lambda t: t.update(z={"A": {"2": {"z": {"B": {"2": [["x"], 1]}}}}}), "A.2.z.B"),
    ],
)  # fmt: skip
def test_a_mistake_in_sailors_files_is_named(
    sailor: Path, name: str, change: Callable[[Any], None], complaint: str | None
) -> None:
    edit(sailor / f"{name}.json", change)
    if complaint is None:
        assert profile_of(find([sailor], defaults=DEFAULTS)).num_layers == 4
        return
    with pytest.raises(ConfigError) as error:
        profile_of(find([sailor], defaults=DEFAULTS))
    assert complaint in str(error.value)
    assert f"{name}.json" in str(error.value)


def test_one_of_several_models_is_chosen_by_name(sailor: Path) -> None:
    write_json(sailor / "more.json", {"other": {"A100-40": sailor_times(2.0)}})
    with pytest.raises(ConfigError, match="hold 2 models: other, tiny"):
        find([sailor], defaults=DEFAULTS)
    with pytest.raises(ConfigError, match="Did you mean 'tiny'"):
        find([sailor], "tinny", DEFAULTS)
    assert find([sailor], "other", DEFAULTS).first.sizes == ()
    write_json(sailor / "again.json", {"tiny": {"A100-40": sailor_times(3.0)}})
    with pytest.raises(ConfigError, match=r"layer 1 on nvidia-a100-40g.*again\.json"):
        profile_of(find([sailor], "tiny", DEFAULTS))


def test_files_that_are_no_profile(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such file"):
        find([tmp_path / "none"])
    write_json(tmp_path / "list.json", ["words"])
    with pytest.raises(ConfigError, match=r"list\.json"):
        find([tmp_path / "list.json"])
    with pytest.raises(ConfigError, match="no layer times found"):
        find([tmp_path])


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("A100-40", "nvidia-a100-40g"), ("A100-80", "nvidia-a100-80g"), ("H100", "nvidia-h100-80g"),
        ("V100-16", "nvidia-v100-16g"), ("GH-96", "nvidia-gh200-96g"), ("T4", "T4"),
        ("Titan-RTX", "nvidia-titan-rtx"), ("nvidia-l40s-48g", "nvidia-l40s-48g"),
        ("odd-7", "mine"), ("MI300X", "amd-mi300x"),
    ],
)  # fmt: skip
def test_chips_are_found_in_the_catalogue_by_their_words(name: str, key: str) -> None:
    assert chip_namer({"Odd-7": "mine"})(name) == key


def test_a_starter_plans_with_what_was_imported(sailor: Path) -> None:
    found = find([sailor], defaults=DEFAULTS)
    profile = profile_of(found)
    model = Model.from_config(starter_config(profile, found.first))
    assert [layer.parameters for layer in model.layers] == [200, 900, 900, 192]
    assert [layer.supports_tp(tp) for layer in model.layers for tp in (1, 2, 4)][:3] == [
        True, True, False,
    ]  # fmt: skip
    cluster = starter_cluster(profile, found.first)
    (pool,) = cluster.pools
    assert pool.address == "z1/nvidia-a100-40g"
    assert pool.nic_gbps == pytest.approx(1.5 * 8 / 2)
    assert pool.intra_gbytes_per_s == pytest.approx(40)


def test_an_unknown_chip_is_what_its_times_show(tmp_path: Path) -> None:
    write_json(tmp_path / "f.json", FOREIGN)
    found = find([tmp_path / "f.json"])
    profile = profile_of(found)
    chip = chip_of("Odd-7", profile, found.first)
    # 6 · 900 parameters · 32 tokens in 5.4 s, and 28 bytes of 900 parameters in half a second.
    assert chip.measured_tflops["fp32"] == 0.1  # the least that is written
    assert chip.memory_gib == 7
    assert chip_of("Odd-48g", profile, found.first).memory_gib == 48
    assert chip_of("T4", profile, found.first).memory_gib == 16
    cluster = starter_cluster(profile, found.first)
    assert Cluster.from_table(cluster.to_table(), "f").pools[0].chip == chip


def test_the_slowest_link_is_still_one(tmp_path: Path) -> None:
    links = [
        {"between": ["Odd-7", "Odd-7"], "inside": inside, "bandwidth": [[1e6, 1.0]]}
        for inside in (False, True)
    ]
    write_json(tmp_path / "f.json", {**FOREIGN, "links": links})
    found = find([tmp_path / "f.json"])
    (pool,) = starter_cluster(profile_of(found), found.first).pools
    assert (pool.nic_gbps, pool.intra_gbytes_per_s) == (0.001, 0.001)


def test_a_measured_chip_has_the_precision_it_was_measured_in(tmp_path: Path) -> None:
    rows = [{**row, "chip": "RTX-4090"} for row in FOREIGN["times"]]
    write_json(tmp_path / "f.json", {**FOREIGN, "times": rows})
    found = find([tmp_path / "f.json"])
    (pool,) = starter_cluster(profile_of(found), found.first).pools
    assert not load_catalogue()["nvidia-rtx-4090"].supports("fp32")
    assert pool.chip.supports("fp32")
    assert pool.chip.memory_gib == 24


def test_a_starter_needs_sizes(sailor: Path) -> None:
    (sailor / "sizes.json").unlink()
    found = find([sailor], defaults=DEFAULTS)
    with pytest.raises(ConfigError, match="how large the layers are"):
        starter_config(profile_of(found), found.first)


def test_a_file_may_be_ours_in_every_detail(tmp_path: Path) -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / "imported" / "opt-350m.json"
    profile = profile_of(find([example]))
    profile.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == profile
    assert {time.chip for time in profile.layers} == {
        "nvidia-a100-40g", "nvidia-v100-16g", "nvidia-gh200-96g",
    }  # fmt: skip
