"""Networks as files of other runtimes: exporters, targets, precisions, comparison with PyTorch."""

GRAPH, TRACE = "torch.export", "tracing"
"""The exporters: of graphs that hold for any size, and of what is done with one picture."""

LOADING, CONVERTING, QUANTISING, COMPARING = "loading", "converting", "quantising", "comparing"
"""What an attempt does before and after an exporter's work."""
