"""Tables of operators: what they refuse, and that they come back as they went."""

import pytest

from pluribus.core.errors import ConfigError
from pluribus.spec.operator_table import OperatorTable
from pluribus.spec.profile import Profile

ROWS = [((2, 8, 4), 2e-5), ((1, 8, 4), 1.23456789e-5)]


def table(**changes: object) -> OperatorTable:
    given = {
        "chip": "c", "operator": "gemm", "precision": "bf16", "seconds": (1.0, 2.0),
        "shape": {"m": (1, 2), "n": (8, 8), "k": (4, 4)}, "source": "a test",
    }  # fmt: skip
    return OperatorTable(**{**given, **changes})


def test_rows_come_back_sorted_and_rounded() -> None:
    made = OperatorTable.of_rows("c", "gemm", "bf16", ROWS, source="a test")
    assert made.rows == {(1, 8, 4): 1.235e-5, (2, 8, 4): 2e-5}
    assert made.shape["m"] == (1, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"operator": "gem"}, "unknown operator 'gem'"),
        ({"precision": "bf17"}, "unknown precision 'bf17'"),
        ({"shape": {"m": (1, 2), "n": (8, 8)}}, "columns m, n of equal length"),
        ({"seconds": (1.0,)}, "unequal length"),
        ({"seconds": (1.0, 0.0)}, r"holds 0\.0"),
        ({"shape": {"m": (1, -2), "n": (8, 8), "k": (4, 4)}}, "holds -2"),
    ],
)
def test_a_table_that_is_none(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        table(**changes)


def test_a_profile_keeps_its_tables(tmp_path) -> None:
    first, other = table(), table(chip="d", spread=0.1)
    profile = Profile(cluster_digest="", operators=(first, other))
    profile.save(tmp_path / "profile.json")
    read = Profile.load(tmp_path / "profile.json")
    assert read == profile
    assert read.tables("d") == (other,)
    assert read.tables("e") == ()


def test_equal_tables_are_one_key() -> None:
    assert {table(): 1}[table()] == 1
    for change in ({"seconds": (1.0, 3.0)}, {"spread": 0.1}, {"chip": "d"}):
        assert table(**change) != table()
