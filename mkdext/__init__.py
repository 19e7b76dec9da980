"""Knowledge distillation for super-resolution networks, with C++ operators for PyTorch."""

__version__ = "0.1.0"
