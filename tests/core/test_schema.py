from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.core.errors import ConfigError
from pluribus.core.schema import from_table, to_table
from pluribus.spec.job import Job, PlanSpec
from pluribus.spec.plan import Pipeline, Plan, Stage
from pluribus.spec.prediction import (
    Alternative,
    Breakdown,
    ChipMemory,
    Interval,
    Prediction,
    StagePrediction,
)
from pluribus.spec.profile import LayerTime, LinkTime, OptimizerTime, Profile

from ..small import make_job


@dataclass(frozen=True)
class Wheel:
    inches: float
    kind: Literal["road", "track"] = "road"

    def __post_init__(self) -> None:
        if self.inches <= 0:
            raise ConfigError(f"inches is {self.inches:g}", do="Write a number above zero.")


@dataclass(frozen=True)
class Bike:
    name: str
    gears: int
    wheels: tuple[Wheel, ...] = ()
    size: tuple[int, float] = (1, 1.0)
    electric: bool = False
    owner: str | None = None
    spares: dict[str, Wheel] = field(default_factory=dict)
    brake: Literal["rim", "disc"] | Wheel = "rim"
    extra: Any = None


def read(**table: Any) -> Bike:
    return from_table(Bike, {"name": "x", "gears": 3, **table}, file="bike.toml")


def message(**table: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(**table)
    return str(caught.value)


def test_values_reach_their_fields() -> None:
    bike = read(
        wheels=[{"inches": 28}, {"inches": 26.5, "kind": "track"}], size=[2, 3], electric=True,
        owner="ann", spares={"front": {"inches": 20}}, brake={"inches": 1}, extra=[1, {"a": 2}],
    )  # fmt: skip
    assert bike == Bike(
        "x", 3, (Wheel(28.0), Wheel(26.5, "track")), (2, 3.0), True, "ann",
        {"front": Wheel(20.0)}, Wheel(1.0), [1, {"a": 2}],
    )  # fmt: skip
    assert isinstance(bike.wheels[0].inches, float)
    assert isinstance(bike.size[1], float)


def test_an_unknown_key_offers_the_nearest() -> None:
    text = message(gear=4)
    assert text.startswith("bike.toml: unknown key 'gear' (value 4)")
    assert "Did you mean 'gears'?" in text


def test_an_unknown_key_deep_inside_says_where() -> None:
    assert message(wheels=[{"inches": 1}, {"inches": 1, "kinds": "road"}]).startswith(
        "bike.toml [wheels[1]]: unknown key 'kinds'"
    )


def test_an_unlike_key_lists_the_known_ones() -> None:
    assert "Known: brake, electric, extra, gears, name" in message(zzz=1)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match="missing key 'gears'"):
        from_table(Bike, {"name": "x"}, file="bike.toml")
    assert "[spares.front]: missing key 'inches'" in message(spares={"front": {}})


@pytest.mark.parametrize(
    ("table", "place", "advice"),
    [
        ({"gears": 3.0}, "'gears' is 3.0", "a whole number"),
        ({"gears": True}, "'gears' is True", "a whole number"),
        ({"gears": "3"}, "'gears' is '3'", "a whole number"),
        ({"name": 3}, "'name' is 3", "a string"),
        ({"electric": 1}, "'electric' is 1", "true or false"),
        ({"owner": 5}, "'owner' is 5", "a string"),
        ({"wheels": {"inches": 1}}, "'wheels' is {'inches': 1}", "a list"),
        ({"wheels": [{"inches": "big"}]}, "'wheels[0].inches' is 'big'", "a number"),
        ({"wheels": [{"inches": False}]}, "'wheels[0].inches' is False", "a number"),
        ({"size": [1]}, "'size' is [1]", "a list of 2"),
        ({"size": [1.5, 1]}, "'size[0]' is 1.5", "a whole number"),
        ({"spares": [1]}, "'spares' is [1]", "a table"),
    ],
)
def test_a_wrong_type_says_what_to_write(table: dict, place: str, advice: str) -> None:
    text = message(**table)
    assert place in text
    assert f"Write {advice} instead." in text


def test_a_list_where_a_table_belongs() -> None:
    text = message(wheels=[7])
    assert "bike.toml [wheels[0]]: expected a table, got 7" in text
    assert "inches, kind" in text


def test_a_long_value_is_cut_short() -> None:
    assert max(len(line) for line in message(gears="y" * 500).splitlines()) < 120


def test_a_literal_offers_its_values() -> None:
    text = message(wheels=[{"inches": 1, "kind": "tracks"}])
    assert "'tracks' is not a value of 'wheels[0].kind'" in text
    assert "Did you mean 'track'?" in text
    assert "Write one of: road, track." in text


def test_a_union_of_words_and_a_table_answers_in_kind() -> None:
    """A misspelt word is told the words, a misspelt table its keys."""
    assert "Did you mean 'disc'?" in message(brake="disk")
    assert "unknown key 'inch'" in message(brake={"inch": 3})
    with pytest.raises(ConfigError, match="Did you mean 'money'"):
        from_table(PlanSpec, {"objective": "mony"}, file="job.toml", at="plan")


def test_null_is_a_value_only_where_it_may_be() -> None:
    assert read(owner=None).owner is None
    assert "'gears' is None" in message(gears=None)


def test_a_dataclass_checks_its_own_values_and_the_place_is_added() -> None:
    assert message(wheels=[{"inches": -1}]).startswith("bike.toml [wheels[0]]: inches is -1")


def test_a_top_level_value_that_is_no_table() -> None:
    with pytest.raises(ConfigError, match="expected a table, got 3"):
        from_table(Bike, 3, file="bike.json")  # type: ignore[arg-type]


# Round trips of the documents that rooms hand to each other.

numbers = st.floats(0, 1e15, allow_nan=False)
words = st.text("abc/é—\n\"'", max_size=6)
counts = st.integers(1, 10**6)
maybe = st.none() | numbers

stages = st.builds(
    Stage,
    chips=st.lists(words, min_size=1, max_size=3).map(tuple),
    layers=st.tuples(st.integers(0, 5), st.integers(6, 9)),
    tensor_parallel=counts, recompute=st.sampled_from(["none", "full"]), zero=st.integers(0, 3),
)  # fmt: skip
pipelines = st.builds(
    Pipeline,
    stages=st.lists(stages, min_size=1, max_size=3).map(tuple),
    micro_batch_size=counts, micro_batches=counts, schedule=st.sampled_from(["1f1b", "gpipe"]),
)  # fmt: skip
memories = st.builds(
    ChipMemory, weights=numbers, gradients=numbers, optimizer=numbers, activations=numbers,
    buffers=numbers, capacity=numbers,
)  # fmt: skip
predicted_stages = st.builds(
    StagePrediction, forward=numbers, backward=numbers, busy=numbers, memory=memories
)
predictions = st.builds(
    Prediction,
    step_seconds=st.builds(Interval, mid=numbers, low=numbers, high=numbers),
    breakdown=st.builds(
        Breakdown, compute=numbers, pipeline_communication=numbers, bubble=numbers,
        gradient_sync=numbers, optimizer=numbers,
    ),
    stages=st.lists(st.lists(predicted_stages, max_size=2).map(tuple), max_size=2).map(tuple),
    tokens_per_s=numbers, mfu=maybe, aggregation=maybe,
    alone_tokens_per_s=st.dictionaries(words, numbers, max_size=2), money_per_step=numbers,
)  # fmt: skip
alternatives = st.builds(
    Alternative, name=words, step_seconds=numbers, memory_share=numbers, aggregation=maybe,
    money_per_step=numbers, chosen=st.booleans(), note=words,
)  # fmt: skip
plans = st.builds(
    Plan,
    pipelines=st.lists(pipelines, min_size=1, max_size=2).map(tuple),
    job=st.dictionaries(words, words | st.integers() | st.none(), max_size=2),
    job_digest=words,
    cluster=st.dictionaries(words, st.lists(words, max_size=2), max_size=2),
    cluster_digest=words,
    model_config=st.dictionaries(words, st.booleans(), max_size=2),
    directory=words,
    prediction=st.none() | predictions,
    alternatives=st.lists(alternatives, max_size=2).map(tuple),
    explanation=st.lists(words, max_size=2).map(tuple),
)
profiles = st.builds(
    Profile,
    cluster_digest=words,
    layers=st.lists(
        st.builds(
            LayerTime, chip=words, layer=words, micro_batch=counts, sequence_length=counts,
            tensor_parallel=counts, precision=words, forward=numbers, backward=numbers,
            spread=numbers,
        ), max_size=2,
    ).map(tuple),
    optimizers=st.lists(
        st.builds(OptimizerTime, chip=words, seconds_per_parameter=numbers, spread=numbers),
        max_size=2,
    ).map(tuple),
    links=st.lists(
        st.builds(
            LinkTime, between=st.tuples(words, words), operation=words, latency_s=numbers,
            bytes_per_s=numbers, spread=numbers,
        ), max_size=2,
    ).map(tuple),
    seconds=numbers,
)  # fmt: skip
jobs = st.builds(
    make_job,
    st.integers(1, 50),
    sequence=st.integers(1, 5000),
    steps=st.integers(1, 10**6),
    precision=st.sampled_from(["fp32", "bf16", "fp16"]),
    sizes=st.lists(st.integers(1, 64), min_size=1, max_size=3).map(tuple),
    recompute=st.sampled_from(["auto", "none", "full"]),
    objective=st.sampled_from(["time", "money"]),
)


@settings(max_examples=30, deadline=None)
@given(plan=plans)
def test_a_plan_comes_back_from_its_file(plan: Plan, tmp_path_factory: Any) -> None:
    file = tmp_path_factory.mktemp("plan") / "plan.json"
    plan.save(file)
    again = Plan.load(file)
    assert again == plan
    assert again.digest == plan.digest


@settings(max_examples=30, deadline=None)
@given(profile=profiles)
def test_a_profile_comes_back_from_its_file(profile: Profile, tmp_path_factory: Any) -> None:
    file = tmp_path_factory.mktemp("profile") / "profile.json"
    profile.save(file)
    assert Profile.load(file) == profile


@settings(max_examples=30, deadline=None)
@given(job=jobs)
def test_a_job_comes_back_from_its_table(job: Job) -> None:
    again = Job.from_table(job.to_table(), file="job.toml")
    assert again == job
    assert again.digest == job.digest


def test_fields_that_are_none_are_left_out() -> None:
    assert to_table(Bike("x", 1))["gears"] == 1
    assert "owner" not in to_table(Bike("x", 1))
