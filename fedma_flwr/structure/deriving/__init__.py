"""A spec from a model: its graph, captured by ``torch.export``, says which axes share units.

Knows nothing of `proving`; `fedma_flwr.structure.derive` puts the two together.
"""
