"""probe on the machine the tests run on."""

import os

import pytest

from pluribus.hardware.cluster import Cluster
from pluribus.measure.probe import SOURCE, ProbeResult, probe


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def found(told) -> ProbeResult:
    return probe(progress=told.append)


def test_the_cluster_is_valid_and_survives_its_file(found, tmp_path):
    path = found.cluster.save(tmp_path / "cluster.toml")
    assert Cluster.load(path) == found.cluster
    assert Cluster.load(path).digest == found.cluster.digest


def test_pools_are_this_machine_and_share_no_core(found):
    pools = found.cluster.pools
    assert all(pool.nodes == 1 and pool.site == "local" for pool in pools)
    cpu_cores = [core for pool in pools if pool.chip.device == "cpu" for core in pool.cores]
    assert len(cpu_cores) == len(set(cpu_cores))
    assert set(cpu_cores) <= set(range(os.cpu_count()))
    for pool in pools:
        if pool.chip.source == SOURCE:
            assert pool.chip.supports("fp32")
            assert pool.chip.memory_gib > 0


def test_every_pair_of_pools_has_a_measured_link(found):
    pools = found.cluster.pools
    for a in pools:
        for b in pools:
            link = found.cluster.link_between_pools(a.address, b.address)
            assert (link is None) == (a is b)
            # Neither adapter may hide what was measured between the pools.
            assert link is None or link.gbps <= min(a.nic_gbps, b.nic_gbps)


def test_chips_said_to_be_unlike_are(found):
    if not any("unlike" in note for note in found.notes):
        pytest.skip("no instruction-set cap slows this processor down")
    fast, slow = found.cluster.pools
    assert slow.environment
    assert fast.chip.key != slow.chip.key
    assert slow.chip.matmul_flops("fp32") < fast.chip.matmul_flops("fp32")


def test_it_says_what_it_does_and_found(found, told):
    assert len(told) >= 2
    for pool in found.cluster.pools:
        assert any(pool.address in note for note in found.notes)
