"""Floor 1: the documents that travel between rooms: Job, Profile, Plan, Prediction, Run events.

Each is a frozen dataclass with a versioned file format. What they *mean* is computed elsewhere:
`predict` times a Plan, `plan` searches one, `train` executes it, `dashboard` draws it.
"""
