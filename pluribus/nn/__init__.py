"""Floor 2: the torch modules of a decoder-only LLM, with Hugging Face parameter names.

`stage.build_stage` makes the part of the model that one pipeline stage holds. Nothing here knows
of ranks, process groups, schedules or precision policies (`train`), nor of parameter and FLOP
counts (`model`), nor of files (`store`).
"""
