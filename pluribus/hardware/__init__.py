"""Floor 1: what there is to compute on. Chips, pools of nodes, and the links between them.

`chip` holds the numbers of one accelerator kind, `catalogue` the kinds we know (one TOML file
per vendor), `cluster` what a user has (cluster.toml), with `pool`, `link` and `toml_text` as
its parts. Pure values: nothing here looks at the machine (that is `measure`), predicts a time
(`predict`) or opens a connection (`comm`).
"""
