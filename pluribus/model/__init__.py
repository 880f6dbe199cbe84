"""Floor 1: the numbers of an LLM architecture, read from a Hugging Face config.json.

Here live the Layer list of a model with its parameters, FLOPs, memory traffic and activation
bytes as functions of the micro-batch, the sequence length and the sharding (tp, cp, ep).
Weights, tensors, speed (predict/), measured profiles (measure/) and placement (plan/) do not.
Start at `pluribus.model.model.Model.from_config`.
"""
