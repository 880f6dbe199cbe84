import dataclasses
import tomllib

import pytest

from pluribus.core.errors import ConfigError, MissingFileError
from pluribus.hardware.catalogue import find_chip
from pluribus.hardware.cluster import Cluster
from pluribus.hardware.link import Link
from pluribus.hardware.pool import Pool

TEXT = """
[[pool]]
address = "wuhan/a800"
chip = "nvidia-a800-80g"
nodes = 8
chips_per_node = 8
nic_gbps = 200
rails = 8
price_per_chip_hour = 1.9

[[pool]]
address = "wuhan/910b"
chip = "ascend-910b3"
nodes = 16
chips_per_node = 8
nic_gbps = 100
nic_latency_us = 15

[[pool]]
address = "wuhan/own"
nodes = 1
chips_per_node = 2
nic_gbps = 10
intra_gbytes_per_s = 4
environment = { ISA_CAP = "AVX2", "odd key" = "quote \\" and \\\\ and \\u007f" }
cores = [0, 1]
[pool.chip]
device = "cpu"
memory_gib = 7.5
memory_gbytes_per_s = 20
peak_tflops = { fp32 = 0.1, bf16 = 0.2 }
unsupported_dtypes = ["fp8"]

[[pool]]
address = "beijing/h20"
chip = "nvidia-h20-96g"
nodes = 2
chips_per_node = 8
nic_gbps = 400

[[pool]]
address = "shanghai/b200"
chip = "nvidia-b200-180g"
nodes = 1
chips_per_node = 8
nic_gbps = 400

[[link]]
between = ["wuhan/910b", "wuhan/a800"]
gbps = 1600
latency_us = 12

[[link]]
between = ["wuhan", "beijing"]
gbps = 40
latency_us = 9000

[[link]]
between = ["wuhan/a800", "beijing/h20"]
gbps = 20
latency_us = 8000
"""


def read(text: str) -> Cluster:
    return Cluster.from_table(tomllib.loads(text), "cluster.toml")


def one_pool(**changes) -> str:
    values = {
        "address": '"wuhan/a800"', "chip": '"nvidia-a800-80g"', "nodes": 1,
        "chips_per_node": 8, "nic_gbps": 200,
    } | changes  # fmt: skip
    lines = "\n".join(f"{key} = {value}" for key, value in values.items() if value is not None)
    return f"[[pool]]\n{lines}\n"


@pytest.fixture
def cluster() -> Cluster:
    return read(TEXT)


def test_pools_have_their_chips_and_defaults(cluster):
    a800 = cluster.pool("wuhan/a800")
    assert a800.chip == find_chip("nvidia-a800-80g", where="test")
    assert (a800.site, a800.num_chips, a800.rails) == ("wuhan", 64, 8)
    assert a800.memory == 64 * 80 * 2**30
    assert a800.chip_addresses()[11] == "wuhan/a800/1/3"
    assert (a800.nic_latency_us, a800.intra_latency_us) == (10, 5)
    assert cluster.num_chips == 64 + 128 + 2 + 16 + 8


def test_a_chip_given_as_a_table_is_named_after_its_pool(cluster):
    own = cluster.pool("wuhan/own")
    assert own.chip.key == "own"
    assert own.chip.peak_tflops == {"fp32": 0.1, "bf16": 0.2}
    assert own.environment["ISA_CAP"] == "AVX2"
    assert own.cores == (0, 1)


def test_intra_bandwidth_is_the_pools_else_the_chips_else_pcie(cluster):
    assert cluster.pool("wuhan/own").intra_bytes_per_s == 4e9
    assert cluster.pool("wuhan/a800").intra_bytes_per_s == 200e9
    bare = dataclasses.replace(cluster.pool("wuhan/own"), intra_gbytes_per_s=None)
    assert bare.intra_bytes_per_s == 25e9


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("wuhan/a800/0/3", "wuhan/a800/0/3", Link(0.0, float("inf"), "self")),
        ("wuhan/a800/0/3", "wuhan/a800/0/4", Link(5e-6, 200e9, "node")),
        ("wuhan/a800/0/3", "wuhan/a800/1/3", Link(10e-6, 25e9, "pool")),
        # The link of the two pools is wider than the slower adapter, 100 Gbit/s.
        ("wuhan/a800/0/0", "wuhan/910b/0/0", Link(12e-6, 12.5e9, "pools")),
        # No link: the slower adapter and the larger latency.
        ("wuhan/910b/0/0", "wuhan/own/0/1", Link(15e-6, 1.25e9, "pools")),
        # The link of the two pools wins over that of their sites.
        ("wuhan/a800/0/0", "beijing/h20/0/0", Link(8e-3, 2.5e9, "sites")),
        ("wuhan/910b/0/0", "beijing/h20/1/0", Link(9e-3, 5e9, "sites")),
    ],
)
def test_link_between_two_chips(cluster, a, b, expected):
    for link in (cluster.link(a, b), cluster.link(b, a)):
        assert link.scope == expected.scope
        assert link.latency_s == pytest.approx(expected.latency_s)
        assert link.bytes_per_s == expected.bytes_per_s


def test_link_seconds():
    assert Link(1e-3, 1e9, "pool").seconds(5e8) == pytest.approx(0.501)
    assert Link(0.0, float("inf"), "self").seconds(5e8) == 0


def test_link_between_pools_tells_the_shared_capacity(cluster):
    assert cluster.link_between_pools("wuhan/a800", "wuhan/910b").gbps == 1600
    assert cluster.link_between_pools("beijing/h20", "wuhan/910b").gbps == 40
    assert cluster.link_between_pools("wuhan/910b", "wuhan/own") is None
    assert cluster.link_between_pools("wuhan/a800", "wuhan/a800") is None


def test_sites_without_a_link_say_which_to_add(cluster):
    with pytest.raises(ConfigError) as error:
        cluster.link("wuhan/a800/0/0", "shanghai/b200/0/0")
    assert "no link between the sites 'wuhan' and 'shanghai'" in str(error.value)
    assert 'between = ["wuhan", "shanghai"]' in error.value.do


def test_unknown_pool_and_chip(cluster):
    with pytest.raises(ConfigError, match=r"no pool 'wuhan/a80'\n  Did you mean 'wuhan/a800'\?"):
        cluster.pool("wuhan/a80")
    with pytest.raises(ConfigError, match="no pool 'wuhan/a80'"):
        cluster.pool_of("wuhan/a80/0/0")
    with pytest.raises(ConfigError) as error:
        cluster.link("wuhan/a800/0/0", "wuhan/a800/8/0")
    assert "no chip 'wuhan/a800/8/0'" in str(error.value)
    assert "NODE from 0 to 7 and CHIP from 0 to 7" in str(error.value)


def test_round_trip_through_a_table_and_a_file(cluster, tmp_path):
    table = cluster.to_table()
    assert table["pool"][0]["chip"] == "nvidia-a800-80g"
    assert "cores" not in table["pool"][0]
    assert Cluster.from_table(table, "x") == cluster
    loaded = Cluster.load(cluster.save(tmp_path / "sub" / "cluster.toml"))
    assert loaded == cluster
    assert loaded.digest == cluster.digest


def test_a_changed_catalogue_chip_is_written_as_a_table(cluster, tmp_path):
    pool = cluster.pools[0]
    chip = dataclasses.replace(pool.chip, measured_tflops={"bf16": 280.5})
    changed = Cluster((dataclasses.replace(pool, chip=chip),))
    assert changed.to_table()["pool"][0]["chip"]["measured_tflops"] == {"bf16": 280.5}
    assert Cluster.load(changed.save(tmp_path / "c.toml")) == changed


def test_digest_follows_numbers_and_ignores_words(cluster):
    def with_chip(**changes):
        pools = (dataclasses.replace(pool, chip=dataclasses.replace(pool.chip, **changes)),)
        return Cluster(pools).digest

    pool = cluster.pools[0]
    assert with_chip() == with_chip(note="reworded") == with_chip(memory_gib=80)
    assert with_chip() != with_chip(memory_gib=79.5)
    assert hash(cluster) == hash(read(TEXT))


def test_missing_file(tmp_path):
    with pytest.raises(MissingFileError, match="no such file"):
        Cluster.load(tmp_path / "cluster.toml")


@pytest.mark.parametrize(
    ("text", "place", "message", "hint"),
    [
        ("", "cluster.toml:", "has no pools", "Add a [[pool]]"),
        ("pools = []", "cluster.toml:", "unknown key 'pools'", "Did you mean 'pool'?"),
        ("[pool]\nnodes = 1", "cluster.toml:", "'pool' is not a list", "Write [[pool]]"),
        (one_pool(node=3), "[pool[0]]", "unknown key 'node' (value 3)", "Did you mean 'nodes'?"),
        (one_pool(nodes=None), "[pool[0]]", "missing key 'nodes'", "Add `nodes = …`"),
        (one_pool(chip=None), "[pool[0]]", "missing key 'chip'", "Add `chip = …`"),
        (one_pool(nodes=1.5), "[pool[0].nodes]", "'pool[0].nodes' is 1.5", "whole number"),
        (one_pool(nodes=0), "[pool[0]]", "'nodes' is 0", "at least 1"),
        (one_pool(chips_per_node=-1), "[pool[0]]", "'chips_per_node' is -1", "at least 1"),
        (one_pool(nic_gbps=0), "[pool[0]]", "'nic_gbps' is 0", "above 0"),
        (one_pool(nic_latency_us=-1), "[pool[0]]", "'nic_latency_us' is -1", "0 or a number"),
        (one_pool(intra_gbytes_per_s=-2), "[pool[0]]", "'intra_gbytes_per_s' is -2", "above 0"),
        (one_pool(intra_latency_us=-1), "[pool[0]]", "'intra_latency_us' is -1", "0 or a number"),
        (one_pool(rails=0), "[pool[0]]", "'rails' is 0", "at least 1"),
        (one_pool(price_per_chip_hour=-1), "[pool[0]]", "'price_per_chip_hour' is -1", "0 or"),
        (one_pool(cores=[-1]), "[pool[0]]", "'cores' is -1", "0 or"),
        (one_pool(cores=[2, 2]), "[pool[0]]", "'cores' is [2, 2]", "each core once"),
        (one_pool(address='"a800"'), "[pool[0]]", "'address' is 'a800'", "Write site/pool"),
        (one_pool(address='"a/b/c"'), "[pool[0]]", "'address' is 'a/b/c'", "one slash"),
        (one_pool(address='"a/.."'), "[pool[0]]", "'address' is 'a/..'", "beginning with a letter"),
        (
            one_pool(chip='"ascend-910c"'), "[pool[0].chip]", "unknown chip 'ascend-910c'",
            "Did you mean 'ascend-910c-die'?",
        ),
        (
            one_pool(chip='{ device = "cpu", memory_gb = 4 }'), "[pool[0].chip]",
            "unknown key 'memory_gb' (value 4)", "Did you mean 'memory_gib'?",
        ),
        (
            one_pool(chip='{ device = "cpu", memory_gib = 0, memory_gbytes_per_s = 9 }'),
            "[pool[0].chip]", "'memory_gib' is 0", "above 0",
        ),
        (
            one_pool() + one_pool(address='"Wuhan/A800"'), "cluster.toml:",
            "pool[1].address 'Wuhan/A800' is taken", "its own address",
        ),
    ],
)  # fmt: skip
def test_mistakes_in_pools(text, place, message, hint):
    with pytest.raises(ConfigError) as error:
        read(text)
    said = str(error.value)
    assert said.startswith("cluster.toml")
    assert place in said
    assert message in said
    assert hint in said


@pytest.mark.parametrize(
    ("ends", "gbps", "latency", "message", "hint"),
    [
        ('"wuhan/a8", "beijing/h20"', 1, 1,
         "link[0].between names the unknown pool 'wuhan/a8'", "Did you mean 'wuhan/a800'?"),
        ('"wuhan", "bejing"', 1, 1,
         "link[0].between names the unknown site 'bejing'", "Did you mean 'beijing'?"),
        ('"wuhan", "wuhan"', 1, 1, "'between' names 'wuhan' twice", "two different ends"),
        ('"wuhan", "beijing/h20"', 1, 1, "names a pool and a site", "two pools"),
        ('"wuhan"', 1, 1, "'link[0].between' is ['wuhan']", "a list of 2"),
        ('"wuhan", "beijing"', -4, 1, "'gbps' is -4", "above 0"),
        ('"wuhan", "beijing"', 4, -1, "'latency_us' is -1", "0 or a number"),
    ],
)  # fmt: skip
def test_mistakes_in_links(ends, gbps, latency, message, hint):
    pools = one_pool() + one_pool(address='"beijing/h20"')
    with pytest.raises(ConfigError) as error:
        read(f"{pools}[[link]]\nbetween = [{ends}]\ngbps = {gbps}\nlatency_us = {latency}\n")
    said = str(error.value)
    assert said.startswith("cluster.toml")
    assert message in said
    assert hint in said


def test_a_link_given_twice_is_refused_in_either_order():
    link = '[[link]]\nbetween = ["{}", "{}"]\ngbps = 1\nlatency_us = 1\n'
    text = one_pool() + one_pool(address='"beijing/h20"')
    text += link.format("wuhan", "beijing") + link.format("beijing", "wuhan")
    with pytest.raises(ConfigError, match=r"link\[1\].between repeats the link of 'beijing'"):
        read(text)


def test_the_example_is_a_cluster_of_three_kinds(request):
    path = request.config.rootpath / "examples" / "three-kinds" / "cluster.toml"
    cluster = Cluster.load(path)
    assert [pool.num_chips for pool in cluster.pools] == [64, 128, 32]
    assert cluster.link("wuhan/910b/0/0", "wuhan/h20/0/0").bytes_per_s == 25e9


def test_pools_compare_by_value():
    chip = find_chip("amd-mi300x", where="test")
    assert Pool("a/b", chip, 1, 8, 400) == Pool("a/b", chip, 1, 8, 400.0)
