"""ONNX files: networks in operators that ONNX has, the exporters, the comparison with PyTorch."""

GRAPH, TRACE = "torch.export", "tracing"
"""The exporters: of graphs that hold for any size, and of what is done with one picture."""

LOADING, COMPARING = "loading", "comparing"
"""What an attempt does before and after an exporter's work."""

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
"""What an export needs beside PyTorch."""
