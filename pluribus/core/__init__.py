"""Floor 0: what every room needs and no room is about.

Errors that tell the user what to do, units, strict reading of TOML/JSON into frozen
dataclasses, atomic writing, progress. Nothing here knows of chips, models or plans.
"""
