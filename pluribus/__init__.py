"""Pluribus: out of many unlike chips, one machine that trains large language models.

    import pluribus as pl

    cluster = pl.Cluster.load("cluster.toml")
    job = pl.Job.load("job.toml")
    plan = pl.plan(job, cluster)
    pl.train(plan, "runs/first")
    pl.report("runs/first")

Every name below is public; everything else may change. Planning imports no torch.
"""

import importlib
from typing import Any

# Bind the rooms whose names the functions below take, so that importing one of them later
# cannot put the module in the function's place. Their `__init__` holds a docstring only.
import pluribus.plan
import pluribus.predict
import pluribus.train  # noqa: F401
from pluribus._api import calibrate, plan, predict, probe, profile, report, train
from pluribus._version import __version__
from pluribus.core.errors import PluribusError

_CLASSES = {
    "Calibration": "pluribus.spec.calibration",
    "Chip": "pluribus.hardware.chip",
    "Cluster": "pluribus.hardware.cluster",
    "Job": "pluribus.spec.job",
    "Model": "pluribus.model.model",
    "Plan": "pluribus.spec.plan",
    "Prediction": "pluribus.spec.prediction",
    "Profile": "pluribus.spec.profile",
}

__all__ = [
    "Calibration",
    "Chip",
    "Cluster",
    "Job",
    "Model",
    "Plan",
    "PluribusError",
    "Prediction",
    "Profile",
    "__version__",
    "calibrate",
    "plan",
    "predict",
    "probe",
    "profile",
    "report",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return getattr(importlib.import_module(_CLASSES[name]), name)
    raise AttributeError(f"module 'pluribus' has no attribute '{name}'")
