"""Profiles: what they read, and the curves and grids they hold."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pluribus.core.errors import ConfigError
from pluribus.core.io import write_json
from pluribus.spec.profile import (
    PROFILE_VERSION,
    LayerSize,
    LayerTime,
    LinkCurve,
    Profile,
    indices,
)


def layer_time(layer: str, **changes: object) -> LayerTime:
    given = {
        "chip": "c", "layer": layer, "micro_batch": 1, "sequence_length": 64, "precision": "fp32",
        "forward": 1.0, "backward": 2.0, "spread": 0.1,
    }  # fmt: skip
    return LayerTime(**{**given, **changes})


def test_a_profile_of_version_1_is_still_read(tmp_path: Path) -> None:
    time = {
        "chip": "c", "layer": "l", "micro_batch": 2, "sequence_length": 64, "precision": "bf16",
        "forward": 1.0, "backward": 2.0, "spread": 0.1, "tensor_parallel": 1,
    }  # fmt: skip
    old = {"cluster_digest": "d", "layers": [time], "optimizers": [], "links": [], "version": 1}
    write_json(tmp_path / "old.json", old)
    profile = Profile.load(tmp_path / "old.json")
    assert profile.layer("c", "l", 2, 64, 1, "bf16").backward == 2.0
    write_json(tmp_path / "new.json", {**old, "version": PROFILE_VERSION + 1})
    with pytest.raises(ConfigError, match="profile version 3 is not 2"):
        Profile.load(tmp_path / "new.json")


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    profile = Profile(
        layers=(layer_time("#0-2", update=0.5), layer_time("#3")),
        sizes=(
            LayerSize(
                layer="#0", micro_batch=1, sequence_length=64, precision="fp32", parameters=7,
                kept_bytes=9.0,
            ),
        ),
        curves=(LinkCurve(between=("s/a", "s/b"), points=((1e6, 1e9), (4e6, 2e9))),),
        source="a test",
    )  # fmt: skip
    profile.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == profile


def test_layers_are_named_by_index_or_signature() -> None:
    assert list(indices("#3")) == [3]
    assert list(indices("#2-4")) == [2, 3, 4]
    assert indices("dense-h64-a4-k2-f128") is None
    profile = Profile(layers=(layer_time("#0"), layer_time("#1-3", forward=5.0)))
    assert profile.num_layers == 4
    assert profile.layer("c", "#2", 1, 64, 1, "fp32").forward == 5.0
    assert profile.layer("c", "#4", 1, 64, 1, "fp32") is None
    assert Profile(layers=(layer_time("dense"),)).num_layers == 0


def test_sizes_of_a_chip_win_over_those_of_every_chip() -> None:
    def size(chip: str, parameters: int) -> LayerSize:
        return LayerSize(
            layer="#0", micro_batch=1, sequence_length=64, precision="fp32", kept_bytes=0.0,
            parameters=parameters, chip=chip,
        )  # fmt: skip

    profile = Profile(sizes=(size("", 1), size("odd", 2)))
    for chip, parameters in (("odd", 2), ("other", 1)):
        assert profile.size_grid(chip, "#0", 64, "fp32")[1][1].parameters == parameters
    assert profile.size_grid("odd", "#1", 64, "fp32") == {}


def test_a_curve_between_and_beyond_its_points() -> None:
    curve = LinkCurve(between=("a", "b"), points=((1e6, 1e9), (4e6, 3e9)))
    assert curve.bytes_per_s(1e6) == pytest.approx(1e9)
    assert curve.bytes_per_s(2e6) == pytest.approx(2e9)  # half way in the logarithm
    assert curve.bytes_per_s(1e9) == pytest.approx(3e9)
    # Below the first size a message takes as long as the first.
    assert 1e3 / curve.bytes_per_s(1e3) == pytest.approx(1e6 / 1e9)


def test_a_polynomial_never_turns_down_and_keeps_its_limit() -> None:
    curve = LinkCurve(between=("a", "b"), polynomial=(-0.5, 4.0, 2.0))  # highest, 10, at x = 4
    assert curve.bytes_per_s(2e6) == pytest.approx(5.5e9)
    assert curve.bytes_per_s(16e6) == pytest.approx(10e9)
    assert curve.bytes_per_s(2**12 * 1e6) == pytest.approx(10e9)
    rates = [curve.bytes_per_s(10**k) for k in range(1, 12)]
    assert rates == sorted(rates)
    capped = LinkCurve(between=("a", "b"), polynomial=(1.0, 0.5), limit_bytes_per_s=2.5e9)
    assert capped.bytes_per_s(64e6) == 2.5e9


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({}, "points or a polynomial"),
        ({"points": ((1.0, 1.0),), "polynomial": (1.0,)}, "points or a polynomial"),
        ({"points": ((2.0, 1.0), (1.0, 1.0))}, "do not ascend"),
        ({"points": ((1.0, 0.0),)}, "not above zero"),
        ({"points": ((1.0, math.inf),)}, "not above zero"),
        ({"polynomial": (1.0, -1.0)}, "not above zero"),
    ],
)
def test_a_curve_that_cannot_be(given: dict, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        LinkCurve(between=("a", "b"), **given)


def test_the_most_particular_curve_of_two_places_counts() -> None:
    anywhere = LinkCurve(between=("x", "y"), points=((1.0, 1.0),))
    here = LinkCurve(between=("y", "s/x"), chips=2, points=((1.0, 2.0),))
    alone = LinkCurve(between=("s/x", "y"), chips=1, points=((1.0, 3.0),))
    inside = LinkCurve(between=("x", "x"), inside=True, points=((1.0, 4.0),))
    profile = Profile(curves=(anywhere, here, alone, inside))
    x, y = ("s/p", "s/x", "x"), ("t/q", "t/y", "y")
    assert profile.curve(x, y) == profile.curve(y, x) == (alone, here)
    assert profile.curve(("x",), ("y",)) == (anywhere,)
    assert profile.curve(x, x) == ()
    assert profile.curve(x, x, inside=True) == (inside,)
