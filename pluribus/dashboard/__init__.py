"""Floor 7: what people look at. One self-contained HTML page of a plan or a run, and its trace.

`report` puts the page together, `plan_picture`, `gantt` and `charts` draw its figures, `tables`
and `summary` say it in numbers and words, `names` and `svg` help them all, `trace` writes the
same timelines for a trace viewer, `write` saves both. Everything drawn is handed in as
`ReportData`: nothing here predicts, measures, or reads a run folder (that is `cli`).
"""
