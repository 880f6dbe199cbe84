"""The planner, measured: `bench/planner.py PART [options]`.

scaling      seconds and proven gap by kinds, cards and model (planner_scaling.py)
optimality   against brute force on small clusters (planner_optimality.py)
value        against other ways to plan (planner_value.py)
replan       a new plan after a loss: seconds and bytes moved (planner_replan.py)
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

PARTS = ("scaling", "optimality", "value", "replan")

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    if len(sys.argv) < 2 or sys.argv[1] not in PARTS:
        sys.exit(__doc__)
    part = sys.argv.pop(1)
    importlib.import_module(f"planner_{part}").main()
