"""Saves the report and the trace of a run beside each other."""

from __future__ import annotations

import json
from pathlib import Path

from pluribus.core.io import write_text
from pluribus.dashboard.report import ReportData, render_report
from pluribus.dashboard.trace import chrome_trace


def write_report(folder: Path, data: ReportData) -> tuple[Path, Path]:
    """Writes ``report.html`` and ``trace.json`` into a folder, each atomically.

    Returns:
        The paths of the two files.
    """
    page = write_text(folder / "report.html", render_report(data))
    trace = json.dumps(chrome_trace(data), separators=(",", ":"), allow_nan=False)
    return page, write_text(folder / "trace.json", trace)
