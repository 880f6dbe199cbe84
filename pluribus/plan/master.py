"""The master problem: how often to use each column, one row per pool (HiGHS).

Gilmore and Gomory's cutting stock (1961) with chips for stock: at a deadline every column delivers
so many sequences, and the columns of a plan may not take more chips of a pool than it has.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pluribus.plan.prices import Array

# Branch-and-bound nodes, not seconds: the same input must give the same plan.
_MAX_NODES = 300
_MIP_GAP = 1e-4


@dataclass(frozen=True)
class Mix:
    """A solution.

    Attributes:
        total: sequences delivered, or money per hour where that is minimised.
        uses: [columns] how often each is used.
        chip_values: [pools] sequences that one more chip of a pool adds (dual values).
        pipeline_value: sequences that one pipeline more adds where their number is limited; below
            zero where there have to be so many.
    """

    total: float
    uses: Array
    chip_values: Array
    pipeline_value: float = 0.0


def most_sequences(
    values: Array,
    chips: Array,
    available: Array,
    *,
    whole: bool = False,
    pipelines: tuple[float, float] | None = None,
) -> Mix | None:
    """The mix of columns that delivers most; None where there is none.

    Args:
        values: [columns] sequences each delivers by the deadline.
        chips: [pools, columns] chips each takes.
        available: [pools] chips there are.
        whole: whether columns are used a whole number of times.
        pipelines: the least and the most there are in all.
    """
    pools = len(chips)
    matrix, low, high = chips, np.full(pools, -np.inf), available.astype(np.float64)
    if pipelines is not None:
        matrix = np.vstack([chips, np.ones(chips.shape[1])])
        low, high = np.append(low, pipelines[0]), np.append(high, pipelines[1])
    return _solve(-values, matrix, (low, high), available, whole, sign=-1.0)


def least_money(
    prices: Array,
    values: Array,
    chips: Array,
    available: Array,
    sequences: float,
    *,
    whole: bool = False,
) -> Mix | None:
    """The cheapest mix that delivers at least so many sequences; None where none does.

    Args:
        prices: [columns] money per hour.
    """
    pools = len(chips)
    matrix = np.vstack([chips, values])
    rows = (
        np.append(np.full(pools, -np.inf), sequences),
        np.append(available.astype(np.float64), np.inf),
    )
    return _solve(prices, matrix, rows, available, whole, sign=1.0)


def _solve(
    cost: Array,
    matrix: Array,
    rows: tuple[Array, Array],
    available: Array,
    whole: bool,
    sign: float,
) -> Mix | None:
    import highspy

    num_rows, num_columns = matrix.shape
    if not num_columns:
        return Mix(0.0, np.zeros(0), np.zeros(len(available)))
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = num_columns, num_rows
    lp.col_cost_ = cost.astype(np.float64)
    lp.col_lower_ = np.zeros(num_columns)
    lp.col_upper_ = np.full(num_columns, np.inf)
    lp.row_lower_, lp.row_upper_ = rows
    held: NDArray[np.bool_] = matrix.T != 0
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = np.concatenate([[0], np.cumsum(held.sum(axis=1))]).astype(np.int32)
    lp.a_matrix_.index_ = np.nonzero(held)[1].astype(np.int32)
    lp.a_matrix_.value_ = matrix.T[held].astype(np.float64)
    if whole:
        lp.integrality_ = [highspy.HighsVarType.kInteger] * num_columns
    solver = _quiet_solver()()
    solver.setOptionValue("threads", 1)
    if whole:
        solver.setOptionValue("mip_max_nodes", _MAX_NODES)
        solver.setOptionValue("mip_rel_gap", _MIP_GAP)
        # They solve programs of their own: half of the time, for nothing on mixes of pipelines.
        solver.setOptionValue("mip_heuristic_run_rins", False)
        solver.setOptionValue("mip_heuristic_run_rens", False)
    solver.passModel(lp)
    solver.run()
    if solver.getInfo().primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return None
    answer = solver.getSolution()
    uses = np.maximum(np.array(answer.col_value), 0.0)
    if whole:
        uses = np.round(uses)
    duals = -np.array(answer.row_dual) if not whole else np.zeros(num_rows)
    chip_values, others = np.maximum(duals[: len(available)], 0.0), duals[len(available) :]
    return Mix(sign * float(cost @ uses), uses, chip_values, float(others.sum()))


@functools.cache
def _quiet_solver() -> type:
    """`highspy.Highs` that prints no banner on stdout, where results go.

    Imported on first use: it loads in 50 ms, and only planning needs it.
    """
    import highspy

    class Quiet(highspy.Highs):
        def enableCallbacks(self) -> None:  # noqa: N802 - the first thing it does when made
            self.silent()
            super().enableCallbacks()

    return Quiet
