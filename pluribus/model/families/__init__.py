"""One file per architecture family: from its config.json to a list of Layers.

A family is a function ``Config -> Pieces``; `registry` maps the ``model_type`` of a config to
it. What layers cost is not here but in the layer files of the room.
"""
