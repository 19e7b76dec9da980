"""ONNX files: networks in operators that ONNX has, the exporters, the comparison with PyTorch."""
